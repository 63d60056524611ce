"""Quantiles of a stream: exact while few, and within the stated error of rank for any length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitkit.domains.arrays.normalize.quantiles import QuantileSketch

SHARES = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]


def sketch_of(values: np.ndarray, size: int, cuts: list[int] | None = None) -> QuantileSketch:
    sketch = QuantileSketch(size)
    for part in np.split(values, sorted(cuts or [])):
        sketch.add(part)
    return sketch


def rank_errors(values: np.ndarray, sketch: QuantileSketch) -> np.ndarray:
    """How far the rank of each answer is from what was asked, as a share; ties count as met."""
    ordered, found = np.sort(values), sketch.quantiles(SHARES)
    asked = np.array(SHARES) * (len(values) - 1)
    least, most = (np.searchsorted(ordered, found, side) for side in ("left", "right"))
    return np.maximum(np.maximum(least - 1 - asked, asked - most), 0) / len(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.data())
def test_few_numbers_have_the_quantiles_of_numpy_however_they_are_cut(
    numbers: list[float], data: st.DataObject
) -> None:
    values = np.array(numbers)
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    found = sketch_of(values, 256, cuts).quantiles(SHARES)
    np.testing.assert_allclose(found, np.quantile(values, SHARES), rtol=1e-12, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30_000), st.sampled_from(["normal", "sorted", "falling", "ties", "tail"]))
def test_the_rank_is_within_the_stated_error(num: int, kind: str) -> None:
    rng = np.random.default_rng(num)
    values = {
        "normal": rng.standard_normal(num),
        "sorted": np.arange(num, dtype=float),
        "falling": -np.arange(num, dtype=float),
        "ties": rng.integers(0, 4, num).astype(float),
        "tail": rng.pareto(0.5, num),
    }[kind]
    sketch = sketch_of(values, 64)
    assert sketch.count == num
    assert (rank_errors(values, sketch) <= sketch.rank_error + 1 / num).all()


def test_a_million_numbers_are_told_with_a_hundredth_of_a_percent() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    sketch = sketch_of(values, 8192)
    assert sketch.rank_error < 5e-4
    assert rank_errors(values, sketch).max() < 1e-4
    kept = sum(len(b) for b in [*sketch._levels, *sketch._open] if b is not None)
    assert kept <= 8192 * 9


@given(st.lists(st.integers(0, 5_000), max_size=6))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_depends_on_the_numbers_alone_and_not_on_the_cuts(cuts: list[int]) -> None:
    values = np.random.default_rng(1).standard_normal(5_000)
    whole, parts = sketch_of(values, 32), sketch_of(values, 32, cuts)
    np.testing.assert_array_equal(whole.quantiles(SHARES), parts.quantiles(SHARES))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3_000), st.integers(1, 3_000))
def test_a_merged_sketch_holds_both_within_the_stated_error(first: int, second: int) -> None:
    values = np.random.default_rng(2).gamma(0.5, size=first + second)
    sketch = sketch_of(values[:first], 32)
    sketch.merge(sketch_of(values[first:], 32))
    assert sketch.count == len(values)
    assert (rank_errors(values, sketch) <= sketch.rank_error + 1 / len(values)).all()


def test_quantiles_of_nothing_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        QuantileSketch().quantiles([0.5])
