"""Gaussian fields of the benchmark: known distribution, and metrics that detect errors."""

from __future__ import annotations

import sys
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from jitkit.utils.types import Array

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.fields import compare  # noqa: E402
from benchmarks.gaussian import (  # noqa: E402
    CORRELATION,
    MEANS,
    STDS,
    GaussianFields,
    ks_critical,
    ks_distance,
    marginals,
    standardized,
)

FIELDS = GaussianFields()


@pytest.fixture(scope="module")
def z() -> Array:
    return standardized(FIELDS.draw(2000, np.random.default_rng(0)))


def test_variance_is_one_and_covariance_on_the_circle_matches_the_spectrum(
    z: Array,
) -> None:
    assert FIELDS.circle_power.sum(axis=1) == pytest.approx([1, 1])
    full = z[:, :, FIELDS.full_rows]
    lags = np.arange(FIELDS.columns)
    k = np.arange(FIELDS.columns // 2 + 1)
    known = FIELDS.circle_power @ np.cos(2 * np.pi * np.outer(k, lags) / FIELDS.columns)
    found = np.stack([(full * np.roll(full, -lag, axis=3)).mean(axis=(0, 2, 3)) for lag in lags])
    np.testing.assert_allclose(found.T, known, atol=0.03)


def test_spectra_and_marginals_match_the_known_ones(z: Array) -> None:
    for found, known in (
        (FIELDS.circle_power_of(z), FIELDS.circle_power),
        (FIELDS.line_power_of(z), np.stack([FIELDS.line_power] * 2)),
    ):
        assert np.abs((found.value - known) / found.error).max() < 4
        assert (found.error < 0.05 * known).all()
    mean, std, correlation = marginals(z)
    assert np.abs(mean.value / mean.error).max() < 4
    assert np.abs((std.value - 1) / std.error).max() < 4
    assert correlation.value == pytest.approx(CORRELATION, abs=4 * float(correlation.error))


def test_rows_have_the_known_covariance(z: Array) -> None:
    columns = z[:, :, :, FIELDS.full_columns].transpose(2, 0, 1, 3).reshape(FIELDS.rows, -1)
    np.testing.assert_allclose(np.cov(columns), FIELDS.line_covariance, atol=0.05)


def test_the_island_is_across_the_seam_and_missing_in_every_field(z: Array) -> None:
    assert FIELDS.island[:, 0].any() and FIELDS.island[:, -1].any()
    assert (np.isnan(z) == FIELDS.island).all()
    assert len(FIELDS.full_rows) >= FIELDS.rows // 2


def test_true_fields_have_no_seam(z: Array) -> None:
    ratio = FIELDS.seam_ratio(z, 4)
    assert np.abs((ratio.value - 1) / ratio.error).max() < 4
    assert (FIELDS.seam_distance(z) < ks_critical(len(z), len(z), 0.01)).all()


def test_a_seam_is_detected(z: Array) -> None:
    torn = np.concatenate([z[..., :1], np.roll(z, 1, axis=0)[..., 1:]], axis=-1)
    assert (FIELDS.seam_ratio(torn, 4).value > 2).all()
    assert (FIELDS.seam_distance(torn) > ks_critical(len(z), len(z), 0.01)).all()


def test_discontinuities_between_tokens_are_detected(z: Array) -> None:
    ratio = FIELDS.edge_ratio(z, 4)
    assert np.abs((ratio.value - 1) / ratio.error).max() < 4
    tokens = np.repeat(np.random.default_rng(3).standard_normal((len(z), 1, 1, 8)), 4, axis=-1)
    assert (FIELDS.edge_ratio(z + 0.3 * tokens, 4).value > 1.2).all()


def test_the_covariance_matches_the_fields_and_gives_the_minimal_loss(z: Array) -> None:
    known = FIELDS.covariance()
    flat = z[:, :, ~FIELDS.island].reshape(len(z), -1)
    np.testing.assert_allclose(np.cov(flat.T), known, atol=0.15)
    t = 0.6  # the conditional mean of x given z = t x + (1 - t) eps, and its error
    gain = t * np.linalg.solve(t**2 * known + (1 - t) ** 2 * np.eye(len(known)), known)
    eps: Array = np.random.default_rng(2).standard_normal(flat.shape)
    error = (t * flat + (1 - t) * eps) @ gain - flat
    loss = np.square(error).mean() / (1 - t) ** 2
    assert FIELDS.least_loss(np.array([t]))[0] == pytest.approx(loss, rel=0.01)
    assert FIELDS.least_loss(np.array([0.0]))[0] == pytest.approx(1)


def test_the_exact_sampler_equals_the_ode_with_the_conditional_mean() -> None:
    fields = GaussianFields(rows=6, columns=8)
    eps: Array = np.random.default_rng(4).standard_normal((3, 2, 6, 8))
    s, vectors = np.linalg.eigh(fields.covariance())
    z, steps = eps[..., ~fields.island].reshape(3, -1) @ vectors, 4000
    for t in (np.arange(steps) + 0.5) / steps:  # midpoints of dz/dt = (x_hat - z) / (1 - t)
        slope = (t * s - (1 - t)) / (t**2 * s + (1 - t) ** 2)
        z = z * (1 + slope / steps / 2) / (1 - slope / steps / 2)
    found = standardized(fields.from_noise(eps))[..., ~fields.island].reshape(3, -1)
    np.testing.assert_allclose(found, z @ vectors.T, atol=2e-3)


def test_exact_samples_have_the_distribution(z: Array) -> None:
    eps: Array = np.random.default_rng(5).standard_normal((2000, 2, 16, 32))
    exact = standardized(FIELDS.from_noise(eps))
    assert (np.isnan(exact) == FIELDS.island).all()
    power = FIELDS.circle_power_of(exact)
    assert np.abs((power.value - FIELDS.circle_power) / power.error).max() < 4


def test_true_fields_pass_every_criterion_and_spoiled_ones_do_not() -> None:
    true, exact, other = (FIELDS.draw(1000, np.random.default_rng(seed)) for seed in (6, 7, 8))
    assert all(row.met for row in compare(FIELDS, true, exact, other))
    spoiled = {
        "missing": np.nan_to_num(other, nan=0.0),
        "standard deviation": (other - MEANS[:, None, None]) * 1.05 + MEANS[:, None, None],
        "mean": other + 0.05 * STDS[:, None, None],
        "correlation": np.stack([other[:, 0], np.roll(other[:, 1], 1, axis=0)], axis=1),
        "seam": np.concatenate([other[..., :1], np.roll(other, 1, axis=0)[..., 1:]], axis=-1),
        "circle": other + np.random.default_rng(9).standard_normal(other.shape) * 0.1 * STDS[1],
    }
    for what, values in spoiled.items():
        broken = [row.name for row in compare(FIELDS, true, exact, values) if not row.met]
        assert any(what in name for name in broken), (what, broken)


def test_the_kolmogorov_smirnov_distance() -> None:
    assert ks_distance(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])) == 0
    assert ks_distance(np.array([1.0, 2]), np.array([3.0, 4])) == 1
    assert ks_distance(np.array([1.0, 3]), np.array([2.0, 4])) == 0.5
    assert ks_critical(500, 500, 0.05) == pytest.approx(1.358 * sqrt(2 / 500), rel=1e-3)


def test_equal_distributions_exceed_the_critical_distance_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    critical = ks_critical(200, 200, 0.05)
    above = [ks_distance(*rng.standard_normal((2, 200))) > critical for _ in range(1000)]
    assert 0.02 < np.mean(above) < 0.07
