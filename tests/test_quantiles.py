"""Streaming quantiles: exact for few values, within the stated rank error for any length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitkit.domains.arrays.normalize.quantiles import QuantileSketch

PROBABILITIES = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]


def sketch_of(values: np.ndarray, size: int, cuts: list[int] | None = None) -> QuantileSketch:
    sketch = QuantileSketch(size)
    for part in np.split(values, sorted(cuts or [])):
        sketch.add(part)
    return sketch


def rank_errors(values: np.ndarray, sketch: QuantileSketch) -> np.ndarray:
    """Rank error of each quantile as a fraction of the count; zero within ties."""
    ordered, quantiles = np.sort(values), sketch.quantiles(PROBABILITIES)
    ranks = np.array(PROBABILITIES) * (len(values) - 1)
    low, high = (np.searchsorted(ordered, quantiles, side) for side in ("left", "right"))
    return np.maximum(np.maximum(low - 1 - ranks, ranks - high), 0) / len(values)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.data())
def test_quantiles_of_few_values_are_exact_for_any_pieces(
    numbers: list[float], data: st.DataObject
) -> None:
    values = np.array(numbers)
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    quantiles = sketch_of(values, 256, cuts).quantiles(PROBABILITIES)
    np.testing.assert_allclose(quantiles, np.quantile(values, PROBABILITIES), rtol=1e-12, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30_000), st.sampled_from(["normal", "sorted", "falling", "ties", "tail"]))
def test_the_rank_error_is_within_the_bound(num: int, kind: str) -> None:
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


def test_the_rank_error_of_a_million_values_is_below_a_hundredth_of_a_percent() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    sketch = sketch_of(values, 8192)
    assert sketch.rank_error < 5e-4
    assert rank_errors(values, sketch).max() < 1e-4
    stored = sum(len(b) for b in [*sketch._levels, *sketch._open] if b is not None)
    assert stored <= 8192 * 9


@given(st.lists(st.integers(0, 5_000), max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_sketch_does_not_depend_on_the_pieces(cuts: list[int]) -> None:
    values = np.random.default_rng(1).standard_normal(5_000)
    whole, parts = sketch_of(values, 32), sketch_of(values, 32, cuts)
    np.testing.assert_array_equal(whole.quantiles(PROBABILITIES), parts.quantiles(PROBABILITIES))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3_000), st.integers(1, 3_000))
def test_the_rank_error_of_a_merged_sketch_is_within_the_bound(first: int, second: int) -> None:
    values = np.random.default_rng(2).gamma(0.5, size=first + second)
    sketch = sketch_of(values[:first], 32)
    sketch.merge(sketch_of(values[first:], 32))
    assert sketch.count == len(values)
    assert (rank_errors(values, sketch) <= sketch.rank_error + 1 / len(values)).all()


def test_quantiles_of_no_values_are_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        QuantileSketch().quantiles([0.5])
