"""Data loading: order, augmentation, skipped items, padding, validation batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from math import nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.data import BatchPlan, batches, collate, encode, evenly_spaced, validation_batches
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.errors import BadItem, DataError
from jitkit.fields import (
    Axis,
    Batch,
    Category,
    Condition,
    Field,
    Grid,
    Layout,
    PerToken,
    Scalars,
)


class Numbers(Digits):
    """Items are integers; all cells of an item hold it, plus a random number below 1/2 with an rng.

    Items in ``bad`` cannot be read.
    """

    def __init__(self, size: int = 10, bad: Sequence[int] = ()) -> None:
        super().__init__(DigitsSection(name="digits"))
        self.size, self.bad = size, set(bad)

    def items(self, split: Any) -> Any:
        return range(self.size)

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        if item in self.bad:
            raise BadItem(f"number {item}", "unlucky")
        moved = item + (0.0 if rng is None else rng.random() / 2)
        return Field(torch.full((1, 8, 8), moved), cond={"label": item % 10})


def load_batches(
    domain: Numbers,
    start: int,
    stop: int,
    *,
    batch_size: int = 4,
    seed: int = 0,
    workers: int = 0,
) -> list[Batch]:
    items = domain.items("train")
    plan = BatchPlan(len(items), batch_size, seed, start, stop)
    return list(batches(domain, items, plan, workers=workers))


def values(loaded: Sequence[Batch]) -> list[float]:
    """Values of the items of all batches in order."""
    return [float(x) for batch in loaded for x in batch.x[:, 0, 0, 0]]


def same(a: Sequence[Batch], b: Sequence[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(one.x, other.x)
        and torch.equal(one.cond["label"], other.cond["label"])
        and one.notes == other.notes
        for one, other in zip(a, b, strict=True)
    )


# The order


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**63))
@settings(max_examples=40, deadline=None)
def test_every_epoch_is_a_permutation_and_batches_continue_without_a_gap(
    size: int, batch_size: int, seed: int
) -> None:
    loaded = load_batches(Numbers(size), 0, 3 * size, batch_size=batch_size, seed=seed)
    assert [len(batch.x) for batch in loaded] == [batch_size] * (3 * size)
    order = [int(value) for value in values(loaded)]
    for epoch in range(0, len(order), size):
        assert sorted(order[epoch : epoch + size]) == list(range(size))


def test_every_epoch_and_every_seed_has_a_different_order() -> None:
    orders = {
        tuple(int(v) for v in values(load_batches(Numbers(20), k, k + 1, batch_size=20, seed=seed)))
        for k in range(3)
        for seed in range(3)
    }
    assert len(orders) == 9


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_batches_do_not_depend_on_the_start(start: int, more: int, batch_size: int) -> None:
    full = load_batches(Numbers(7, bad=[3]), 0, start + more, batch_size=batch_size)
    resumed = load_batches(Numbers(7, bad=[3]), start, start + more, batch_size=batch_size)
    assert same(full[start:], resumed)


def test_workers_do_not_change_batches() -> None:
    domain = Numbers(10, bad=[2, 3])
    assert same(load_batches(domain, 1, 9, workers=0), load_batches(domain, 1, 9, workers=2))


def test_more_workers_than_cores_print_one_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert len(load_batches(Numbers(), 0, 1, workers=2)) == 1
    printed = capsys.readouterr().err
    assert printed == "warning: train.workers is 2 on 1 cores; fewer may be faster\n"


def test_augmentation_is_a_function_of_seed_epoch_and_item() -> None:
    def by_number(batch_size: int, seed: int = 0) -> list[dict[int, float]]:
        """For each of three epochs, the augmented value of each item."""
        order = values(
            load_batches(Numbers(6), 0, 18 // batch_size, batch_size=batch_size, seed=seed)
        )
        return [{int(v): v for v in order[at : at + 6]} for at in range(0, 18, 6)]

    assert by_number(2) == by_number(9)
    first, second, third = by_number(2)
    for number in range(6):
        assert len({first[number], second[number], third[number]}) == 3
        assert by_number(2, seed=1)[0][number] != first[number]


# Skipped items


def test_an_unreadable_item_is_replaced_by_the_next_and_noted() -> None:
    batch = load_batches(Numbers(8, bad=[2, 7]), 0, 1, batch_size=8)[0]
    numbers = sorted(int(v) for v in values([batch]))
    assert numbers == [0, 0, 1, 3, 3, 4, 5, 6]
    assert sorted(batch.notes) == [("number 2", "unlucky"), ("number 7", "unlucky")]
    assert load_batches(Numbers(8), 0, 1, batch_size=8)[0].notes == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_sixteen_consecutive_unreadable_items_stop_with_the_reason_of_the_first(
    workers: int,
) -> None:
    with pytest.raises(DataError) as caught:
        load_batches(Numbers(40, bad=range(40)), 0, 1, batch_size=1, workers=workers)
    text = str(caught.value)  # one line, without a traceback of a worker
    assert text.startswith("16 items in a row cannot be read; the first: number ")
    assert text.endswith(": unlucky") and "\n" not in text


def test_fifteen_consecutive_unreadable_items_do_not_stop() -> None:
    batch = load_batches(Numbers(40, bad=range(15)), 0, 1, batch_size=40)[0]
    assert [int(v) for v in values([batch])].count(15) == 16
    assert len(set(batch.notes)) == 15


class Gone(Numbers):
    """Its store no longer exists."""

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        raise DataError("store.zarr: gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_stops_at_once_with_its_text(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        load_batches(Gone(), 0, 1, workers=workers)
    assert str(caught.value) == "store.zarr: gone"


def test_a_split_without_items_is_refused() -> None:
    with pytest.raises(DataError, match="the training split has no items"):
        load_batches(Numbers(0), 0, 1)


class Encoded(Digits):
    """Items are encoded fields."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(DigitsSection(name="digits"))
        self.layout = layout

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        return item


LINE = Layout((Axis("x", 4),), ("u", "v"))
HOLES = Layout((Axis("x", 4),), ("u", "v"), missing=True)
NOWHERE = torch.full((2, 4), nan)
MASKED = torch.zeros(4, dtype=torch.bool)
CROSSED = torch.tensor([[1.0, nan, 1.0, nan], [nan, 1.0, nan, 1.0]])  # no cell has both channels


@pytest.mark.parametrize(
    ("layout", "field"),
    [
        (LINE, Field(NOWHERE)),
        (HOLES, Field(NOWHERE)),
        (HOLES, Field(torch.zeros(2, 4), mask=MASKED)),
        (HOLES, Field(CROSSED, mask=CROSSED.isnan())),
        (LINE, Field(CROSSED)),
    ],
)
def test_a_field_without_data_is_a_bad_item(layout: Layout, field: Field) -> None:
    with pytest.raises(BadItem, match="an item: no data in any of its cells"):
        encode(Encoded(layout), field)


def test_a_field_with_data_in_a_single_cell_is_valid() -> None:
    one = NOWHERE.clone()
    one[1, 2] = 0
    assert encode(Encoded(HOLES), Field(one)).values is one
    assert encode(Encoded(HOLES), Field(CROSSED)).values is CROSSED


# Batches


@st.composite
def fields(draw: st.DrawFn) -> tuple[Layout, list[Field]]:
    """Fields of one to three axes and different sizes, with NaN, masks or both."""
    axes = draw(st.integers(1, 3))
    channels = draw(st.integers(1, 2))
    layout = Layout(
        tuple(Axis(f"axis {i}", 4) for i in range(axes)),
        tuple(f"channel {i}" for i in range(channels)),
        missing=draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    holes, masks = draw(st.sampled_from([0.0, 0.3])), draw(st.sampled_from(["none", "one", "each"]))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        grid = tuple(int(n) for n in rng.integers(1, 5, axes))
        numbers = torch.from_numpy(rng.normal(size=(channels, *grid)).astype(np.float32))
        numbers[torch.from_numpy(rng.random((channels, *grid)) < holes)] = nan
        shape = {"none": None, "one": grid, "each": (channels, *grid)}[masks]
        mask = None if shape is None else torch.from_numpy(rng.random(shape) < 0.7)
        made.append(Field(numbers, mask))
    return layout, made


def known(layout: Layout, field: Field) -> Tensor:
    """Mask of cells with data, (C, X1..Xn), computed cell by cell."""
    observed = torch.zeros_like(field.values, dtype=torch.bool)
    for index in np.ndindex(*field.values.shape):
        mask = True
        if field.mask is not None:
            mask = bool(field.mask[index if field.mask.ndim == len(index) else index[1:]])
        observed[index] = mask and not field.values[index].isnan()
    if not layout.missing:  # a cell has data if all of its channels have
        observed &= observed.all(dim=0, keepdim=True)
    return observed


@given(fields())
@settings(max_examples=100, deadline=None)
def test_a_batch_holds_observed_values_and_zero_elsewhere(case: tuple[Layout, list[Field]]) -> None:
    layout, made = case
    batch = collate(layout, {}, made)
    grid = tuple(np.max([field.values.shape[1:] for field in made], axis=0))
    assert batch.x.shape == (len(made), len(layout.channels), *grid)
    expected = torch.zeros_like(batch.x)
    expected_mask = torch.zeros_like(batch.x, dtype=torch.bool)
    for i, field in enumerate(made):
        observed = known(layout, field)
        cells: Any = (..., *(slice(size) for size in field.values.shape[1:]))
        expected_mask[i][cells] = observed
        expected[i][cells] = torch.where(observed, field.values, 0.0)
    assert torch.equal(batch.x, expected)
    if batch.mask is None:
        assert bool(expected_mask.all())
    else:
        assert batch.mask.shape[1] == (len(layout.channels) if layout.missing else 1)
        assert torch.equal(batch.mask.expand_as(batch.x), expected_mask)
        assert not bool(expected_mask.all())


EVERY: dict[str, Condition] = {
    "kind": Category(5),
    "numbers": Scalars(("a", "b")),
    "ground": Grid(("height",)),
    "residue": PerToken(20),
}


def test_conditions_on_the_grid_are_padded_with_the_unset_value() -> None:
    def field(size: int) -> Field:
        cond = {
            "kind": 3,
            "numbers": torch.tensor([0.5, nan]),
            "ground": torch.arange(float(size))[None],
            "residue": torch.arange(size, dtype=torch.int32),
        }
        return Field(torch.ones(2, size), cond=cond)

    cond = collate(LINE, EVERY, [field(2), field(4)]).cond
    assert cond["kind"].tolist() == [3, 3] and cond["kind"].dtype == torch.long
    torch.testing.assert_close(
        cond["numbers"], torch.tensor([[0.5, nan], [0.5, nan]]), equal_nan=True
    )
    assert cond["ground"].shape == (2, 1, 4)
    torch.testing.assert_close(
        cond["ground"][0, 0], torch.tensor([0.0, 1.0, nan, nan]), equal_nan=True
    )
    assert cond["residue"].tolist() == [[0, 1, 20, 20], [0, 1, 2, 3]]
    assert cond["residue"].dtype == torch.long


def test_default_coordinates_count_cells() -> None:
    layout = Layout((Axis("row", 2), Axis("column", 3)), ("u",))
    moved = torch.full((1, 2, 2), 7.5)
    batch = collate(
        layout, {}, [Field(torch.zeros(1, 2, 3)), Field(torch.zeros(1, 1, 2), coords=moved)]
    )
    assert batch.coords is not None and batch.coords.shape == (2, 2, 3, 2)
    rows, columns = batch.coords[0].unbind(-1)
    assert rows.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert columns.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.coords[1, 0, :2].tolist() == [[7.5, 7.5], [7.5, 7.5]]
    assert collate(layout, {}, [Field(torch.zeros(1, 2, 3))]).coords is None


# Validation batches


@given(st.integers(0, 500), st.integers(1, 500))
@settings(deadline=None)
def test_indices_are_evenly_spaced_and_start_at_the_first(size: int, max_items: int) -> None:
    indices = evenly_spaced(size, max_items)
    assert len(indices) == min(size, max_items)
    assert indices[:1] == ([0] if size else [])
    ends = [*indices, size]
    gaps = [ends[i + 1] - ends[i] for i in range(len(indices))]
    assert not gaps or 1 <= min(gaps) and max(gaps) - min(gaps) <= 1


def test_validation_items_are_not_augmented_and_keep_their_indices() -> None:
    domain = Numbers(100, bad=[30])

    def read(batch_size: int) -> Iterator[tuple[int, float]]:
        for indices, batch, own in validation_batches(domain, max_items=10, batch_size=batch_size):
            assert own
            assert len(indices) <= batch_size
            yield from zip(indices, values([batch]), strict=True)

    expected = [(i, float(i)) for i in range(0, 100, 10) if i != 30]
    assert list(read(3)) == list(read(10)) == list(read(1)) == expected
