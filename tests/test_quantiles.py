"""Streaming quantiles: exact for few values, within the stated standard error for any length."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitkit.domains.arrays.normalize.quantiles import Reservoir

PROBABILITIES = [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0]
Values = np.ndarray[Any, Any]


def reservoir_of(values: Values, size: int, cuts: list[int] | None = None) -> Reservoir:
    reservoir = Reservoir(size)
    for part in np.split(values, sorted(cuts or [])):
        reservoir.add(part)
    return reservoir


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.data())
def test_quantiles_of_few_values_are_exact_for_any_pieces(
    numbers: list[float], data: st.DataObject
) -> None:
    values = np.array(numbers)
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    quantiles = reservoir_of(values, 256, cuts).quantiles(PROBABILITIES)
    np.testing.assert_allclose(quantiles, np.quantile(values, PROBABILITIES), rtol=1e-12, atol=1e-6)


@pytest.mark.parametrize("order", ["as drawn", "sorted", "falling"])
def test_ranks_have_the_stated_standard_error(order: str) -> None:
    """64 reservoirs of other values: the mean square of rank errors over their variance is chi²."""
    size, p = 256, np.array([0.1, 0.25, 0.5, 0.9])
    errors = []
    for seed in range(64):
        values = np.random.default_rng(seed).uniform(size=10_000)  # a value is its rank
        values = {"as drawn": values, "sorted": np.sort(values), "falling": -np.sort(-values)}[
            order
        ]
        reservoir = Reservoir(size)
        reservoir._random = np.random.default_rng([seed, 1])  # other keys for each
        reservoir.add(values)
        errors.append(reservoir.quantiles(p.tolist()) - np.quantile(values, p))
    ratio = np.square(errors).mean(axis=0) / (p * (1 - p) / size)
    assert (0.6 < ratio).all() and (ratio < 1.5).all()
    assert np.abs(np.mean(errors, axis=0)).max() < 0.012


def test_quantiles_of_a_million_values_are_close_to_those_of_all() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    reservoir = reservoir_of(values, 2**16, [10, 500_000])
    ranks = np.searchsorted(np.sort(values), reservoir.quantiles([0.25, 0.5, 0.75])) / 1e6
    assert np.abs(ranks - [0.25, 0.5, 0.75]).max() < 4 * 0.5 / 2**8
    assert len(reservoir._values) == 2**16


@given(st.lists(st.integers(0, 5_000), max_size=6))
@settings(max_examples=40, deadline=None)
def test_the_reservoir_does_not_depend_on_the_pieces(cuts: list[int]) -> None:
    values = np.random.default_rng(1).standard_normal(5_000)
    whole, parts = reservoir_of(values, 32), reservoir_of(values, 32, cuts)
    np.testing.assert_array_equal(whole.quantiles(PROBABILITIES), parts.quantiles(PROBABILITIES))


def test_quantiles_of_no_values_are_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        Reservoir().quantiles([0.5])
