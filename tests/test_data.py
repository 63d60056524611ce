"""Items into batches: the order, the augmentation, what is passed over, what is padded."""

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

from jitkit.data import BatchPlan, batches, collate, encode, held_out, spread
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
    """Items are numbers; all cells of one hold it, plus less than 1/2 that its rng draws.

    Those in ``bad`` cannot be read.
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


def drawn(
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


def values(found: Sequence[Batch]) -> list[float]:
    """What the items of batches hold, one after the other."""
    return [float(x) for batch in found for x in batch.x[:, 0, 0, 0]]


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
def test_every_epoch_is_a_permutation_and_batches_run_on_without_a_gap(
    size: int, batch_size: int, seed: int
) -> None:
    found = drawn(Numbers(size), 0, 3 * size, batch_size=batch_size, seed=seed)
    assert [len(batch.x) for batch in found] == [batch_size] * (3 * size)
    order = [int(value) for value in values(found)]
    for epoch in range(0, len(order), size):
        assert sorted(order[epoch : epoch + size]) == list(range(size))


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    orders = {
        tuple(int(v) for v in values(drawn(Numbers(20), k, k + 1, batch_size=20, seed=seed)))
        for k in range(3)
        for seed in range(3)
    }
    assert len(orders) == 9


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_to_start_in_the_middle_is_to_run_through(start: int, more: int, batch_size: int) -> None:
    through = drawn(Numbers(7, bad=[3]), 0, start + more, batch_size=batch_size)
    started = drawn(Numbers(7, bad=[3]), start, start + more, batch_size=batch_size)
    assert same(through[start:], started)


def test_workers_change_nothing() -> None:
    domain = Numbers(10, bad=[2, 3])
    assert same(drawn(domain, 1, 9, workers=0), drawn(domain, 1, 9, workers=2))


def test_more_workers_than_cores_are_one_line_of_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    assert len(drawn(Numbers(), 0, 1, workers=2)) == 1
    told = capsys.readouterr().err
    assert told == "warning: train.workers is 2 on 1 cores; fewer may be faster\n"


def test_augmentation_is_a_function_of_seed_epoch_and_item() -> None:
    def by_number(batch_size: int, seed: int = 0) -> list[dict[int, float]]:
        """For each of three epochs, what each item was moved to."""
        order = values(drawn(Numbers(6), 0, 18 // batch_size, batch_size=batch_size, seed=seed))
        return [{int(v): v for v in order[at : at + 6]} for at in range(0, 18, 6)]

    assert by_number(2) == by_number(9)
    first, second, third = by_number(2)
    for number in range(6):
        assert len({first[number], second[number], third[number]}) == 3
        assert by_number(2, seed=1)[0][number] != first[number]


# What is passed over


def test_an_item_that_cannot_be_read_is_replaced_by_the_next_and_noted() -> None:
    found = drawn(Numbers(8, bad=[2, 7]), 0, 1, batch_size=8)[0]
    numbers = sorted(int(v) for v in values([found]))
    assert numbers == [0, 0, 1, 3, 3, 4, 5, 6]
    assert sorted(found.notes) == [("number 2", "unlucky"), ("number 7", "unlucky")]
    assert drawn(Numbers(8), 0, 1, batch_size=8)[0].notes == ()


@pytest.mark.parametrize("workers", [0, 1])
def test_sixteen_unreadable_items_in_a_row_stop_with_the_first_one_s_reason(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        drawn(Numbers(40, bad=range(40)), 0, 1, batch_size=1, workers=workers)
    text = str(caught.value)  # of one line: no traceback of a worker
    assert text.startswith("16 items in a row cannot be read; the first: number ")
    assert text.endswith(": unlucky") and "\n" not in text


def test_fifteen_unreadable_items_in_a_row_do_not_stop() -> None:
    found = drawn(Numbers(40, bad=range(15)), 0, 1, batch_size=40)[0]
    assert [int(v) for v in values([found])].count(15) == 16
    assert len(set(found.notes)) == 15


class Gone(Numbers):
    """Its store is not there any more."""

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        raise DataError("store.zarr: gone")


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_are_wrong_altogether_stop_at_once_in_their_own_words(workers: int) -> None:
    with pytest.raises(DataError) as caught:
        drawn(Gone(), 0, 1, workers=workers)
    assert str(caught.value) == "store.zarr: gone"


def test_a_split_without_items_is_refused() -> None:
    with pytest.raises(DataError, match="the training split has no items"):
        drawn(Numbers(0), 0, 1)


class Given(Digits):
    """Items are fields already."""

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
        encode(Given(layout), field)


def test_a_field_with_data_in_a_single_cell_is_a_good_one() -> None:
    one = NOWHERE.clone()
    one[1, 2] = 0
    assert encode(Given(HOLES), Field(one)).values is one
    assert encode(Given(HOLES), Field(CROSSED)).values is CROSSED


# Batches


@st.composite
def fields(draw: st.DrawFn) -> tuple[Layout, list[Field]]:
    """Fields of one to three axes and differing sizes, with NaN, masks or both."""
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
    """Where a field has data, (C, X1..Xn), told cell by cell."""
    there = torch.zeros_like(field.values, dtype=torch.bool)
    for index in np.ndindex(*field.values.shape):
        mask = True
        if field.mask is not None:
            mask = bool(field.mask[index if field.mask.ndim == len(index) else index[1:]])
        there[index] = mask and not field.values[index].isnan()
    if not layout.missing:  # a cell counts where all of its channels are there
        there &= there.all(dim=0, keepdim=True)
    return there


@given(fields())
@settings(max_examples=100, deadline=None)
def test_a_batch_holds_what_is_known_and_zero_elsewhere(case: tuple[Layout, list[Field]]) -> None:
    layout, made = case
    batch = collate(layout, {}, made)
    grid = tuple(np.max([field.values.shape[1:] for field in made], axis=0))
    assert batch.x.shape == (len(made), len(layout.channels), *grid)
    wanted_x, wanted_mask = torch.zeros_like(batch.x), torch.zeros_like(batch.x, dtype=torch.bool)
    for i, field in enumerate(made):
        there = known(layout, field)
        own: Any = (..., *(slice(size) for size in field.values.shape[1:]))
        wanted_mask[i][own] = there
        wanted_x[i][own] = torch.where(there, field.values, 0.0)
    assert torch.equal(batch.x, wanted_x)
    if batch.mask is None:
        assert bool(wanted_mask.all())
    else:
        assert batch.mask.shape[1] == (len(layout.channels) if layout.missing else 1)
        assert torch.equal(batch.mask.expand_as(batch.x), wanted_mask)
        assert not bool(wanted_mask.all())


EVERY: dict[str, Condition] = {
    "kind": Category(5),
    "numbers": Scalars(("a", "b")),
    "ground": Grid(("height",)),
    "residue": PerToken(20),
}


def test_conditions_on_the_grid_are_padded_with_what_stands_for_not_told() -> None:
    def field(size: int) -> Field:
        told = {
            "kind": 3,
            "numbers": torch.tensor([0.5, nan]),
            "ground": torch.arange(float(size))[None],
            "residue": torch.arange(size, dtype=torch.int32),
        }
        return Field(torch.ones(2, size), cond=told)

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


def test_coordinates_are_counted_in_cells_where_a_field_gives_none() -> None:
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


# What is held out


@given(st.integers(0, 500), st.integers(1, 500))
@settings(deadline=None)
def test_indices_are_spread_evenly_and_start_at_the_first(size: int, most: int) -> None:
    indices = spread(size, most)
    assert len(indices) == min(size, most)
    assert indices[:1] == ([0] if size else [])
    ends = [*indices, size]
    gaps = [ends[i + 1] - ends[i] for i in range(len(indices))]
    assert not gaps or 1 <= min(gaps) and max(gaps) - min(gaps) <= 1


def test_held_out_items_are_not_augmented_and_keep_their_indices() -> None:
    domain = Numbers(100, bad=[30])

    def found(batch_size: int) -> Iterator[tuple[int, float]]:
        for indices, batch, own in held_out(domain, most=10, batch_size=batch_size):
            assert own
            assert len(indices) <= batch_size
            yield from zip(indices, values([batch]), strict=True)

    wanted = [(i, float(i)) for i in range(0, 100, 10) if i != 30]
    assert list(found(3)) == list(found(10)) == list(found(1)) == wanted
