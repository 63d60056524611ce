"""Selections, training and validation splits, windows, and the reading order of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitkit.domains.arrays.coordinates import Range, label, matching
from jitkit.domains.arrays.splits import (
    ItemIndex,
    SplitsSection,
    shuffled_in_blocks,
    split,
    window_starts,
)
from jitkit.errors import DataError
from jitkit.stores.chunks import as_slices


@given(st.lists(st.integers(0, 40), unique=True, min_size=1))
def test_slices_cover_the_entries(entries: list[int]) -> None:
    again = [
        i for cut in as_slices(np.array(entries)) for i in range(cut.start, cut.stop, cut.step)
    ]
    assert again == entries


def test_ranges_include_both_ends_and_times_may_be_partial() -> None:
    times = np.arange("1999-12-30", "2000-03-03", dtype="M8[D]").astype("M8[ns]")

    def count(selection: dict[str, Any]) -> int:
        return len(matching(times, Range.model_validate(selection), "key"))

    assert count({"to": 1999}) == 2
    assert count({"from": "2000-01", "to": "2000-01"}) == 31
    assert count({"from": "2000-02-29"}) == 3
    depths = np.array([0.1, 0.2, 0.3], np.float32)
    assert matching(depths, Range.model_validate({"from": 0.1, "to": 0.2}), "key").tolist() == [
        0,
        1,
    ]
    assert matching(depths, [0.3, 0.1], "key").tolist() == [2, 0]
    assert label(np.float32(0.1)) == "0.1"


# Splits and windows


@given(
    st.integers(2, 60),
    st.floats(0.05, 0.6),
    st.integers(0, 4),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 4),
    st.sets(st.integers(1, 59), max_size=3),
)
def test_windows_stay_in_their_split_and_cross_no_gap(
    num: int, share: float, gap: int, window: int, past: int, stride: int, lost: set[int]
) -> None:
    hours = np.cumsum([0 if i == 0 else 30 if i in lost else 6 for i in range(num)])
    times = np.datetime64("2000-01-01", "s") + hours * np.timedelta64(1, "h")
    try:
        parts = split(times, dim="time", share=share, gap=gap, explicit=None)
    except DataError:
        return
    used = {}
    for name, members in parts.items():
        starts = window_starts(times, members, window=window, past=past, stride=stride)
        spans = [range(b - past, b + window) for b in starts]
        used[name] = {step for span in spans for step in span}
        assert used[name] <= set(members.tolist())
        if window + past > 1 and len(lost) * 2 < num - 1:
            assert not any(set(span[1:]) & lost for span in spans)
    if used["train"] and used["val"]:
        assert min(used["val"]) - max(used["train"]) > gap


def test_all_windows_that_fit_are_used() -> None:
    starts = window_starts(np.arange(20), np.arange(3, 15), window=4, past=2, stride=3)
    assert starts.tolist() == [5, 8, 11]  # 12 members from 3 to 14; the last ends at 14
    assert window_starts(np.arange(20), np.arange(10), window=1, past=0, stride=4).tolist() == [
        0,
        4,
        8,
    ]


def test_windows_of_spaced_steps_cross_no_gap() -> None:
    times = np.delete(np.arange(30), 17)  # a gap after position 16
    starts = window_starts(times, np.arange(29), window=2, past=1, stride=1, spacing=4)
    assert starts.tolist() == [*range(4, 13), *range(21, 25)]
    for start in starts:
        around = times[start - 4 : start + 5]
        assert len(around) == 9 and around[-1] - around[0] == 8


def test_months_of_different_length_are_no_gaps() -> None:
    months = np.arange("2000-01", "2010-01", dtype="M8[M]").astype("M8[ns]")
    assert len(window_starts(months, np.arange(120), window=3, past=0, stride=1)) == 118
    winters = months[[i for i in range(120) if i % 12 < 2]]
    assert len(window_starts(winters, np.arange(20), window=2, past=0, stride=1)) == 10


def test_splits_by_coordinate() -> None:
    days = np.arange("2000-01-01", "2002-01-01", dtype="M8[D]").astype("M8[ns]")

    def parts(**given: Any) -> dict[Any, Any]:
        gap = given.pop("gap", 0)
        explicit = SplitsSection.model_validate(given)
        return split(days, dim="time", share=0.1, gap=gap, explicit=explicit)

    found = parts(val={"from": "2001-03"})
    assert found["train"].tolist() == list(range(366 + 59))
    assert found["val"].tolist() == list(range(366 + 59, 731))
    assert parts(val={"from": "2001-03"}, gap=5)["train"][-1] == 366 + 59 - 6
    inside = parts(val={"from": "2000-06", "to": "2000-06"}, gap=1)
    assert len(inside["val"]) == 30 and len(inside["train"]) == 731 - 32
    assert len(parts(train={"to": 2000}, val={"from": "2001-12-31"})["train"]) == 366
    with pytest.raises(DataError, match=r"share 31 of time \(2000-12-01 to 2000-12-31\)"):
        parts(train={"to": 2000}, val={"from": "2000-12"})
    with pytest.raises(DataError, match="no time is left for training: 731 of 731"):
        parts(val={"from": 2000})


# The order of reading


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 9))
def test_the_reading_order_is_a_permutation_block_by_block(
    ids: list[int], block: int, seed: int
) -> None:
    _, groups = np.unique(ids, return_inverse=True)
    order = shuffled_in_blocks(groups, block, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(ids)))
    again = shuffled_in_blocks(groups, block, np.random.default_rng(seed))
    assert order.tolist() == again.tolist()
    visited = groups[order].tolist()
    inside: list[set[int]] = [set()]
    for group in visited:
        if group not in inside[-1] and len(inside[-1]) == block:
            inside.append(set())
        inside[-1].add(group)
    assert sum(map(len, inside)) == len(set(ids))  # no group occurs again after its block


def test_the_last_sample_dimension_varies_fastest() -> None:
    index = ItemIndex({"a": np.array([4, 7]), "b": np.array([0, 2, 5])})
    assert len(index) == 6
    assert [tuple(index[i].values()) for i in (0, 1, 3, 5)] == [(4, 0), (4, 2), (7, 0), (7, 5)]
    groups, count = index.groups({"a": np.array([1, 2]), "b": np.array([0, 0, 9])})
    assert (groups.tolist(), count) == ([0, 0, 1, 2, 2, 3], 4)
