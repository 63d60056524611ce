"""The synthetic forecast system: covariance, exact ensembles, optimal CRPS, benchmark page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from jitkit.utils.types import Array

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.forecast import EXACT, HEADING, STEPS, compare, filled  # noqa: E402
from benchmarks.forecastsystem import (  # noqa: E402
    CHANNELS,
    CORRELATION,
    DRIFT,
    STDS,
    DriftingFields,
    latitudes,
    optimum,
    physical,
    standardised,
    write_zarr,
)
from jitkit.metrics.forecasts.ensemble_scores import ScoreFrame, fair_crps  # noqa: E402
from jitkit.metrics.forecasts.verify import VerificationPlan, verify  # noqa: E402

SMALL = DriftingFields(rows=6, columns=16)
OPEN = DriftingFields(rows=6, columns=16, has_island=False)


@pytest.fixture(scope="module")
def open_series() -> Array:
    """A long series without an island, (n, 2, rows, columns)."""
    return OPEN.series(8000, np.random.default_rng(0))


@pytest.fixture(scope="module")
def series() -> Array:
    return SMALL.series(8000, np.random.default_rng(1))


def test_without_an_island_variance_is_one_and_power_matches_the_specification(
    open_series: Array,
) -> None:
    assert open_series.var(axis=(0, 2, 3)) == pytest.approx([1, 1], rel=0.05)
    modes = np.fft.rfft(open_series) / OPEN.columns
    twice = np.r_[1, np.full(OPEN.columns // 2 - 1, 2), 1]
    power = (twice * np.abs(modes) ** 2).mean(axis=(0, 2))
    np.testing.assert_allclose(power, OPEN.power, rtol=0.15)


def test_a_state_correlates_with_the_advected_and_damped_previous_state(open_series: Array) -> None:
    modes = np.fft.rfft(open_series)
    for c, drift in enumerate(DRIFT):
        moved = np.fft.rfft(np.roll(open_series[:-1, c], drift, axis=-1))
        cross = (modes[1:, c] * moved.conj()).real.mean(axis=(0, 1))
        power = (np.abs(moved) ** 2).mean(axis=(0, 1))
        np.testing.assert_allclose(cross / power, OPEN.memory[c], atol=0.02)


def test_the_stationary_covariance_matches_that_of_a_series_with_an_island(series: Array) -> None:
    flat = series.reshape(len(series), -1)
    known = SMALL.stationary_covariance
    np.testing.assert_allclose(flat.T @ flat / len(flat), known, atol=0.15)
    assert np.diag(known)[np.tile(SMALL.island.ravel(), 2)].max() == 0
    step = SMALL.step_matrix
    np.testing.assert_allclose(known, step @ known @ step.T + SMALL.noise_covariance, atol=1e-9)


def test_without_an_island_the_stationary_variance_is_one_in_every_cell() -> None:
    np.testing.assert_allclose(np.diag(OPEN.stationary_covariance), 1, atol=1e-9)


def test_noise_is_correlated_between_channels_and_independent_in_time() -> None:
    e = OPEN.noise(4000, np.random.default_rng(2))
    flat = e.reshape(len(e), -1)
    np.testing.assert_allclose(flat.T @ flat / len(e), OPEN.noise_covariance, atol=0.05)
    modes = np.fft.rfft(e)
    cross = (modes[:, 0] * modes[:, 1].conj()).real.mean(axis=(0, 1))
    size = np.sqrt(np.prod((np.abs(modes) ** 2).mean(axis=(0, 2)), axis=0))
    np.testing.assert_allclose(cross / size, CORRELATION, atol=0.05)
    assert abs((e[1:] * e[:-1]).mean()) < 0.002


def test_the_step_matrix_equals_the_step(series: Array) -> None:
    x = series[7].astype(np.float64)
    np.testing.assert_allclose(SMALL.step_matrix @ x.ravel(), SMALL.advance(x).ravel(), atol=1e-12)


def test_the_exact_ensemble_has_the_forecast_mean_and_variance() -> None:
    x = SMALL.series(1, np.random.default_rng(3))[0].astype(np.float64)
    drawn = SMALL.ensemble(x, 4000, 3, np.random.default_rng(4))
    ahead = SMALL.advance(SMALL.advance(SMALL.advance(x)))
    np.testing.assert_allclose(drawn[2].mean(axis=0), ahead, atol=0.08)
    known = SMALL.forecast_variance(3)
    np.testing.assert_allclose(drawn.var(axis=1), known, rtol=0.15)


def test_the_crps_of_the_exact_ensemble_matches_the_closed_form() -> None:
    rng = np.random.default_rng(5)
    states = SMALL.series(300, rng).astype(np.float64)
    observed = ~SMALL.island
    scores = [
        STDS[..., 0]
        * fair_crps(ensemble[s - 1][..., observed], states[i + s][..., observed]).mean(axis=-1)[
            :, None
        ]
        for i in range(0, 280, 4)
        for s, ensemble in [(4, SMALL.ensemble(states[i], 8, 4, rng))]
    ]
    known = optimum(SMALL, [4])[0][:, observed].mean(axis=-1)
    assert np.mean(scores, axis=0)[:, 0] == pytest.approx(known, rel=0.03)


def test_the_optimal_crps_increases_with_lead_to_that_of_climatology() -> None:
    scores = optimum(SMALL, [1, 5, 200])[..., ~SMALL.island].mean(axis=-1)
    assert (np.diff(scores, axis=0) > 0).all()
    climatology = np.sqrt(np.diag(SMALL.stationary_covariance) / np.pi).reshape(2, 6, 16)
    last = STDS[:, 0, 0] * climatology[:, ~SMALL.island].mean(axis=-1)
    assert scores[2] == pytest.approx(last, rel=1e-3)


def test_a_store_of_states_reads_back_in_its_units(tmp_path: Path, series: Array) -> None:
    import xarray

    write_zarr(series[:300], SMALL, tmp_path / "s.zarr", "2000-01-01")
    with xarray.open_zarr(tmp_path / "s.zarr", consolidated=False) as data:
        assert data.temperature.attrs["units"] == "K"
        assert str(data.time.values[1])[:13] == "2000-01-01T06"
        np.testing.assert_allclose(data.latitude, latitudes(SMALL))
        values = np.stack([data.temperature.values, data.pressure.values], axis=1)
        assert (np.isnan(values) == (data.land_sea_mask.values > 0.5)).all()
    np.testing.assert_allclose(standardised(values), series[:300], atol=2e-4)
    np.testing.assert_array_equal(physical(series[:300], SMALL), values)


class Series:
    """A state series in memory, (n, 2, rows, columns) in standard deviations."""

    times, train, channels = np.arange(0), np.arange(0), CHANNELS

    def __init__(self, states: Array, fields: DriftingFields) -> None:
        self.states, self.fields = states, fields

    def read(self, position: int) -> Array:
        return physical(self.states[position], self.fields)

    def after(self, position: int, steps: int) -> int | None:
        return position + steps if position + steps < len(self.states) else None


class ScaledEnsemble:
    """Exact ensembles with their deviations from the exact mean scaled by ``width``."""

    members = 8

    def __init__(self, name: str, series: Series, seed: int, width: float = 1) -> None:
        self.name, self.series, self.seed, self.width = name, series, seed, width
        self.cached: tuple[int, Array] = (-1, np.empty(0))

    def forecast(self, start: int, steps: int) -> Array:
        if self.cached[0] != start:
            rng, x = np.random.default_rng([self.seed, start]), self.series.states[start]
            drawn = self.series.fields.ensemble(x.astype(float), self.members, STEPS, rng)
            self.cached = start, drawn
        ensemble = self.cached[1][steps - 1]
        mean = self.series.states[start].astype(float)
        for _ in range(steps):
            mean = self.series.fields.advance(mean)
        return physical(mean + self.width * (ensemble - mean), self.series.fields)


@pytest.mark.parametrize(("width", "met"), [(1.0, True), (0.8, False)])
def test_the_exact_forecast_passes_the_benchmark_and_an_underdispersive_one_fails(
    width: float, met: bool
) -> None:
    fields = DriftingFields(columns=16)
    series = Series(fields.series(900, np.random.default_rng(6)), fields)
    axes = (("latitude", "line"), ("longitude", "circle"))
    frame = ScoreFrame(CHANNELS, axes, np.ones((fields.rows, fields.columns)))
    plan = VerificationPlan(range(0, 880, 11), [1, STEPS], ["6h", "60h"])
    systems = [ScaledEnsemble("model", series, 1, width), ScaledEnsemble(EXACT, series, 2)]
    rows = compare(verify(systems, series, frame, plan))
    failed = [row.name for row in rows if not row.met]
    assert not failed if met else {"temperature, 6h: spread over RMSE"} <= set(failed)


def test_results_are_inserted_once_and_then_replaced() -> None:
    text = "# Title\n\n## Others\n\nx\n\n## Not measured\n\ny\n"
    once = filled(text, f"{HEADING}\n\nfirst\n")
    assert once == f"# Title\n\n## Others\n\nx\n\n{HEADING}\n\nfirst\n\n## Not measured\n\ny\n"
    assert filled(once, f"{HEADING}\n\nsecond\n") == once.replace("first", "second")
