"""Axes, layouts, conditions and batches: laws, known answers, refused values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jitkit.errors import JitkitError
from jitkit.fields import (
    Axis,
    Batch,
    Category,
    Condition,
    Grid,
    Kind,
    Layout,
    PerToken,
    Scalars,
    describe,
    described,
)

NAMES = st.text(max_size=5)
SEVERAL = st.lists(NAMES, min_size=1, max_size=4, unique=True).map(tuple)
DROPS = st.floats(0, 1, exclude_max=True)


@st.composite
def axes(draw: st.DrawFn, name: str) -> Axis:
    kinds: list[Kind] = ["line", "circle", "set"]
    kind = draw(st.sampled_from(kinds))
    size = draw(st.integers(1, 50))
    return Axis(name, size, 1 if kind == "set" else draw(st.integers(1, size)), kind)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    names = draw(SEVERAL)
    return Layout(tuple(draw(axes(n)) for n in names), draw(SEVERAL), missing=draw(st.booleans()))


CONDITIONS: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Category, st.integers(1, 1000), DROPS),
    st.builds(Scalars, SEVERAL, DROPS),
    st.builds(Grid, SEVERAL, DROPS),
    st.builds(PerToken, st.integers(1, 100), DROPS),
)


# Laws


@given(layouts(), st.dictionaries(NAMES, CONDITIONS, max_size=4))
def test_layout_and_conditions_survive_a_round_trip_through_json(
    layout: Layout, conditions: dict[str, Condition]
) -> None:
    again = described(json.loads(json.dumps(describe(layout, conditions))))
    assert again == (layout, conditions)
    assert list(again[1]) == list(conditions)  # training drops conditions in this order


@given(layouts())
def test_tokens_cover_every_axis_and_no_more(layout: Layout) -> None:
    total = 1
    for axis in layout.axes:
        assert (axis.tokens - 1) * axis.patch < axis.size <= axis.tokens * axis.patch
        total *= axis.tokens
    assert layout.num_tokens == total


# Known answers


def test_the_papers_images_have_256_tokens_of_768_features() -> None:
    for side in (256, 512, 1024):
        axes = (Axis("row", side, side // 16), Axis("column", side, side // 16))
        layout = Layout(axes, ("red", "green", "blue"))
        assert (layout.grid, layout.patch) == ((side, side), (side // 16, side // 16))
        assert layout.num_tokens == 256
        assert layout.patch_features == 768 * (side // 256) ** 2


@pytest.mark.parametrize(
    ("patch", "expected"),
    [(None, (2, 2, 1)), (4, (4, 4, 1)), ((1, 3, 1), (1, 3, 1))],
    ids=["as it is", "one number for ordered axes", "one for each"],
)
def test_the_patch_of_a_layout_can_be_replaced(patch: Any, expected: tuple[int, ...]) -> None:
    axes = (Axis("row", 6, 2), Axis("longitude", 8, 2, "circle"), Axis("atom", 5, kind="set"))
    layout = Layout(axes, ("u", "v"), missing=True)
    other = layout.with_patch(patch)
    assert other.patch == expected
    assert (other.grid, other.channels, other.missing) == (layout.grid, layout.channels, True)
    assert [axis.kind for axis in other.axes] == ["line", "circle", "set"]


def test_lists_are_converted_to_tuples() -> None:
    as_lists: Any = [Axis("row", 6)], ["u"]
    assert Layout(*as_lists) == Layout((Axis("row", 6),), ("u",))
    assert hash(Layout(*as_lists)) == hash(Layout((Axis("row", 6),), ("u",)))


def test_all_tensors_of_a_batch_move_to_a_device() -> None:
    batch = Batch(
        torch.zeros(2, 1, 3),
        torch.ones(2, 1, 3, dtype=torch.bool),
        {"label": torch.zeros(2)},
        torch.zeros(2, 3, 1),
        notes=(("a.png", "dark"),),
    )
    moved = batch.to("meta")
    assert moved.mask is not None and moved.coords is not None
    for tensor in (moved.x, moved.mask, moved.cond["label"], moved.coords):
        assert tensor.device.type == "meta"
    assert moved.notes == batch.notes
    bare = Batch(torch.zeros(2, 1, 3)).to("meta")
    assert bare.x.device.type == "meta" and bare.mask is None and bare.coords is None


# Errors


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Axis("row", 0), "axis 'row': size 0 and patch 1 must be at least 1"),
        (lambda: Axis("row", 4, 0), "axis 'row': size 4 and patch 0 must be at least 1"),
        (
            lambda: Axis("row", 4, 6),
            "axis 'row': patch 6 is larger than its 4 cells; use a patch of at most 4",
        ),
        (
            lambda: Axis("atom", 4, 2, "set"),
            "axis 'atom' is a set, whose cells have no neighbours to form a patch: "
            "patch 2 must be 1",
        ),
        (lambda: Layout((), ("u",)), "a layout has 1 to 4 axes, not 0"),
        (
            lambda: Layout(tuple(Axis(str(i), 2) for i in range(5)), ("u",)),
            "a layout has 1 to 4 axes, not 5",
        ),
        (
            lambda: Layout((Axis("row", 2), Axis("row", 3)), ("u",)),
            "axes need distinct names, and at least one: row, row",
        ),
        (
            lambda: Layout((Axis("row", 2),), ("u", "v", "u")),
            "channels need distinct names, and at least one: u, v, u",
        ),
        (
            lambda: Layout((Axis("row", 2),), ()),
            "channels need distinct names, and at least one: ",
        ),
        (
            lambda: Layout((Axis("row", 8), Axis("column", 8)), ("u",)).with_patch((2, 2, 2)),
            "patch [2, 2, 2] has 3 numbers for 2 axes (row, column)",
        ),
        (
            lambda: Layout((Axis("row", 8), Axis("column", 2)), ("u",)).with_patch(4),
            "axis 'column': patch 4 is larger than its 2 cells; use a patch of at most 2",
        ),
    ],
)
def test_invalid_axes_and_layouts_are_refused(make: Callable[[], Any], text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        make()


def test_an_unknown_kind_of_axis_is_refused() -> None:
    ring: Kind = "ring"  # type: ignore[assignment]
    with pytest.raises(JitkitError, match="^axis 'row': kind 'ring' is not line, circle or set$"):
        Axis("row", 4, kind=ring)


@pytest.mark.parametrize("drop", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        lambda drop: Category(3, drop),
        lambda drop: Scalars(("a",), drop),
        lambda drop: Grid(("a",), drop),
        lambda drop: PerToken(3, drop),
    ],
    ids=["category", "scalars", "grid", "per token"],
)
def test_a_condition_that_is_always_dropped_is_refused(
    make: Callable[[float], Condition], drop: float
) -> None:
    with pytest.raises(JitkitError, match=f"^drop {drop} is not a probability below 1$"):
        make(drop)
