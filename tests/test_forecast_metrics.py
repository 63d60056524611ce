"""Forecast metrics: CRPS, RMSE, spread-skill, ranks, baselines; known answers and a reference."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitkit.utils.types import Array

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.forecastsystem import (  # noqa: E402
    DriftingFields,
    physical,
    standardised,
    write_zarr,
)
from jitkit.domains.arrays.items import Sample  # noqa: E402
from jitkit.domains.weather.adapter import Weather  # noqa: E402
from jitkit.domains.weather.section import WeatherSection  # noqa: E402
from jitkit.domains.weather.verify import (  # noqa: E402
    cell_weights,
    grid_coordinates,
    held_out_starts,
    verify_model,
)
from jitkit.errors import DataError  # noqa: E402
from jitkit.evaluation.evaluate import score_table as evaluation_table  # noqa: E402
from jitkit.metrics.forecasts.baselines import (  # noqa: E402
    ClimatologicalEnsemble,
    LinearRegression,
    baselines,
    neighbourhood,
)
from jitkit.metrics.forecasts.climatology import Climatology, year_and_hour  # noqa: E402
from jitkit.metrics.forecasts.ensemble_scores import (  # noqa: E402
    ScoreAccumulator,
    ScoreFrame,
    block_bootstrap_indices,
    block_length,
    fair_crps,
    ranks,
)
from jitkit.metrics.forecasts.forecast_files import ForecastFile  # noqa: E402
from jitkit.metrics.forecasts.verify import Verification, VerificationPlan, verify  # noqa: E402
from jitkit.plots import forecasts  # noqa: E402
from jitkit.plots.forecasts import ForecastMaps, draw_maps, draw_spectra  # noqa: E402
from jitkit.plots.projection import MapProjection, equal_earth  # noqa: E402
from jitkit.protocols import RolloutFunction

AXES = (("latitude", "line"), ("longitude", "circle"))
SHAPE = (6, 8)


def frame(weights: Array | None = None, channels: Sequence[str] = ("t",)) -> ScoreFrame:
    return ScoreFrame(channels, AXES, np.ones(SHAPE) if weights is None else weights)


def accumulate(ensembles: Array, analyses: Array, weights: Array | None = None) -> ScoreAccumulator:
    """Score sums of (I, L, M, C, X1..Xn) against (I, L, C, X1..Xn)."""
    inits, leads, members, channels = ensembles.shape[:4]
    names = [f"c{i}" for i in range(channels)]
    sums = ScoreAccumulator(frame(weights, names), inits, leads, members)
    for i in range(inits):
        for lead in range(leads):
            rng = np.random.default_rng([i, lead])
            sums.add(i, lead, ensembles[i, lead], analyses[i, lead], rng)
    return sums


@pytest.fixture(scope="module")
def random_case() -> tuple[Array, Array, Array]:
    """Ensembles (5, 2, 7, 2, 6, 8), analyses with missing cells, weights by latitude."""
    rng = np.random.default_rng(0)
    ensembles = rng.normal(1, 2, (5, 2, 7, 2, *SHAPE))
    analyses = rng.normal(0, 2, (5, 2, 2, *SHAPE))
    analyses[..., 1, 2:4, 3] = np.nan  # a cell of land
    analyses[1, 0, 0, 0] = np.nan  # a row missing once
    weights = np.cos(np.radians(np.linspace(-75, 75, 6)))[:, None] * np.ones(8)
    return ensembles, analyses, weights


# Against the reference library `scores` (Leeuwenburg et al. 2024, doi:10.21105/joss.06889)


def test_crps_rmse_and_bias_agree_with_the_scores_library(
    random_case: tuple[Array, Array, Array],
) -> None:
    import scores.continuous
    import scores.probability
    import xarray

    ensembles, analyses, weights = random_case
    dims = ("init", "lead", "number", "channel", "latitude", "longitude")
    forecast = xarray.DataArray(ensembles, dims=dims)
    analysis = xarray.DataArray(analyses, dims=[d for d in dims if d != "number"])
    area = xarray.DataArray(weights, dims=dims[-2:])
    options = {"preserve_dims": ["lead", "channel"], "weights": area}
    crps = scores.probability.crps_for_ensemble(
        forecast, analysis, "number", method="fair", **options
    )
    mean = forecast.mean("number")
    rmse = scores.continuous.rmse(mean, analysis, **options)
    bias = scores.continuous.additive_bias(mean, analysis, **options)
    result = accumulate(*random_case).scores()
    np.testing.assert_allclose(result["crps"], crps, rtol=1e-6)
    np.testing.assert_allclose(result["rmse"], rmse, rtol=1e-6)
    np.testing.assert_allclose(result["bias"], bias, rtol=1e-6)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_fair_crps_equals_the_double_sum(members: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-3, 4, (members, 5)).astype(float), rng.normal(size=5)
    pairs = np.abs(x[:, None] - x[None]).sum(axis=(0, 1)) / max(1, 2 * members * (members - 1))
    np.testing.assert_allclose(fair_crps(x, y), np.abs(x - y).mean(axis=0) - pairs, atol=1e-12)


@pytest.mark.parametrize("members", [2, 5, 40])
def test_fair_crps_of_an_exact_ensemble_is_sigma_over_root_pi_for_any_size(members: int) -> None:
    rng = np.random.default_rng(members)
    x, y = rng.normal(3, 2, (members, 200_000)), rng.normal(3, 2, 200_000)
    assert fair_crps(x, y).mean() == pytest.approx(2 / sqrt(pi), rel=0.01)


# Ensembles of a known distribution


@pytest.mark.parametrize("members", [2, 5, 20])
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_spread_skill_is_one_for_an_exact_ensemble_and_less_for_an_underdispersive_one(
    members: int, width: float
) -> None:
    rng = np.random.default_rng(1)
    mean = rng.normal(0, 3, (400, 1, 1, 1, *SHAPE))
    ensembles = mean + width * rng.normal(size=(400, 1, members, 1, *SHAPE))
    analyses = mean[:, :, 0] + rng.normal(size=(400, 1, 1, *SHAPE))
    skill = accumulate(ensembles, analyses).scores()["spread_skill"][0, 0]
    error = sqrt(1 + width**2 / members)  # of the mean; the analysis has variance one
    assert skill == pytest.approx(width * sqrt((members + 1) / members) / error, rel=0.02)
    if width == 1:
        assert skill == pytest.approx(1, rel=0.02)


def test_the_rank_histogram_of_an_exact_ensemble_is_flat_up_to_chance() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(300, 1, 7, 1, 1, 1))  # correlated cells are not independent trials
    both = shared + 0.1 * rng.normal(size=(300, 1, 7, 1, *SHAPE))
    exact = accumulate(both[:, :, :6], both[:, :, 6])
    assert exact.rank_shares()[0, 0].sum() == pytest.approx(1)
    chance = exact.expected_rank_error(np.arange(300))[0, 0]
    assert chance == pytest.approx(6 / 300, rel=0.4)  # about (bins - 1) / trials
    assert exact.scores()["rank_error"][0, 0] < 3 * chance
    narrow = accumulate(0.3 * both[:, :, :6], both[:, :, 6])
    assert narrow.rank_shares()[0, 0, [0, -1]].sum() > 0.6
    assert narrow.scores()["rank_error"][0, 0] > 20 * chance


def test_ties_of_ranks_are_broken_evenly() -> None:
    result = ranks(np.zeros((4, 50_000)), np.zeros(50_000), np.random.default_rng(3))
    np.testing.assert_allclose(np.bincount(result) / len(result), 1 / 5, atol=0.01)
    assert ranks(np.array([[1.0], [2.0], [2.0]]), np.array([1.5]), np.random.default_rng()) == 1


def test_missing_cells_are_ignored_and_cells_missing_in_forecasts_are_counted(
    random_case: tuple[Array, Array, Array],
) -> None:
    ensembles, analyses, weights = random_case
    before = accumulate(*random_case)
    other = np.where(np.isnan(analyses)[:, :, None], 1e6, ensembles)
    after = accumulate(other, analyses, weights)
    for name, values in before.scores().items():
        np.testing.assert_array_equal(values, after.scores()[name], err_msg=name)
    assert before.missing == 0
    incomplete = ensembles.copy()
    incomplete[:, :, 3, :, 5] = np.nan  # the last row is missing in one member
    share = accumulate(incomplete, analyses, weights).missing
    known = np.isfinite(analyses)
    assert share == pytest.approx((known * weights)[..., 5, :].sum() / (known * weights).sum())


def test_the_crps_of_a_single_forecast_is_its_absolute_error(
    random_case: tuple[Array, Array, Array],
) -> None:
    ensembles, analyses, _ = random_case
    result = accumulate(ensembles[:, :, :1], analyses).scores()
    error = np.nanmean(np.abs(ensembles[:, :, 0] - analyses)[:, 1, 0])
    assert result["crps"][1, 0] == pytest.approx(error)
    assert "spread_skill" not in result and "rank_error" not in result


def test_the_power_ratio_is_one_for_an_exact_ensemble_and_less_for_a_smoothed_one() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 1, 3, 1, *SHAPE))
    same = accumulate(x[:, :, :2], x[:, :, 2])
    np.testing.assert_allclose(same.power_ratio("longitude"), 1, atol=0.15)
    smooth = (x + np.roll(x, 1, axis=-1)) / 2  # damps wavenumber k by cos²(π k / 8)
    ratio = accumulate(smooth[:, :, :2], x[:, :, 2]).power_ratio("longitude")[0, 0]
    known = np.cos(np.pi * np.arange(1, 5) / 8) ** 2
    np.testing.assert_allclose(ratio, known, rtol=0.15, atol=1e-9)


def test_arrays_of_another_shape_are_refused() -> None:
    sums = ScoreAccumulator(frame(), 1, 1, 3)
    with pytest.raises(DataError, match=r"\(2, 1, 6, 8\).*expected \(3, 1, 6, 8\)"):
        sums.add(0, 0, np.zeros((2, 1, *SHAPE)), np.zeros((1, *SHAPE)), np.random.default_rng())


# Bootstrap


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_a_resample_has_the_same_length_and_consists_of_blocks(
    n: int, length: int, seed: int
) -> None:
    indices = block_bootstrap_indices(n, length, np.random.default_rng(seed))
    assert len(indices) == n and indices.min() >= 0 and indices.max() < n
    inside = np.arange(1, n) % length > 0
    assert ((indices[1:] - indices[:-1])[inside] % n == 1 % n).all()


def test_intervals_cover_the_true_score_at_about_the_nominal_rate() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(80):
        analyses = rng.normal(size=(30, 1, 1, 1, 4))  # bias of a forecast of zero is 0 on average
        sums = ScoreAccumulator(
            ScoreFrame(["t"], (("x", "line"), ("y", "line")), np.ones((1, 4))), 30, 1, 1
        )
        for i in range(30):
            sums.add(i, 0, np.zeros((1, 1, 1, 4)), analyses[i, 0], rng)
        draws = [
            block_bootstrap_indices(30, block_length(30), np.random.default_rng([seed, r]))
            for r in range(60)
        ]
        again = [sums.scores(d)["bias"][0, 0] for d in draws]
        covered.append(abs(sums.scores()["bias"][0, 0]) <= 1.96 * np.std(again, ddof=1))
    assert 0.85 <= np.mean(covered) <= 1


# Baselines


class MemoryStates:
    """A state series in memory, (n, C, X1..Xn)."""

    def __init__(self, values: Array, times: Array, train: int, spacing: int = 1) -> None:
        self.values, self.times, self.spacing = values, times, spacing
        self.train = np.arange(train)
        self.channels = tuple(f"c{i}" for i in range(values.shape[1]))

    def read(self, position: int) -> Array:
        return self.values[position]

    def after(self, position: int, steps: int) -> int | None:
        later = position + steps * self.spacing
        return later if later < len(self.values) else None


def hourly(n: int, hours: int = 12) -> Array:
    return np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(hours, "h")


def seasonal(times: Array, shape: tuple[int, ...] = (1, *SHAPE)) -> Array:
    """An annual cycle with a different phase in each cell, and a difference of day and night."""
    fraction, hour = year_and_hour(times)
    phase = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    expand = [slice(None)] + [None] * len(shape)
    year = np.cos(2 * np.pi * (fraction[tuple(expand)] - phase))
    return 280 + 10 * year + np.where(hour == 12, 3.0, 0.0)[tuple(expand)]


def test_the_climatology_recovers_season_and_hour() -> None:
    times = hourly(4 * 730)
    noise = np.random.default_rng(6).normal(size=(len(times), 1, *SHAPE))
    states = MemoryStates(seasonal(times) + noise, times, 3 * 730)
    fitted = Climatology.fit(states, states.train)
    assert fitted.harmonics == 3 and fitted.hour_index[:3].tolist() == [0, 1, 0]
    for position in (3 * 730 + 5, 3 * 730 + 400):
        known = seasonal(times[position : position + 1])[0]
        np.testing.assert_allclose(fitted.mean_at(position), known, atol=0.35)
    assert fitted.deviation[0] == pytest.approx(1, rel=0.03)


def test_the_climatology_of_less_than_a_year_is_the_mean_of_each_hour() -> None:
    times = hourly(200)
    values = np.random.default_rng(7).normal(5, 1, (200, 2, *SHAPE))
    fitted = Climatology.fit(MemoryStates(values, times, 200), np.arange(200))
    assert fitted.harmonics == 0
    np.testing.assert_allclose(fitted.mean_at(3), values[1::2].mean(axis=0), rtol=1e-5)


def test_the_climatology_fits_partly_missing_cells_to_their_observed_states() -> None:
    times = hourly(3 * 730)
    whole = seasonal(times)
    fraction, _ = year_and_hour(times)
    incomplete = whole.copy()
    incomplete[(fraction > 0.3) & (fraction < 0.5), 0, 2, 3] = np.nan  # seasonal ice
    incomplete[:, 0, 4] = np.nan  # land
    fitted = Climatology.fit(MemoryStates(incomplete, times, len(times)), np.arange(len(times)))
    mean = fitted.mean_at(100)
    assert np.isnan(mean[0, 4]).all()
    np.testing.assert_allclose(mean[0, 2, 3], whole[100, 0, 2, 3], atol=0.01)
    np.testing.assert_allclose(mean[0, :4], whole[100, 0, :4], atol=0.01)


def test_years_and_hours_of_other_calendars() -> None:
    import xarray

    times = xarray.date_range("2000-01-01", periods=720, calendar="360_day", use_cftime=True)
    fraction, hour = year_and_hour(times.values)
    assert fraction[180] == pytest.approx(0.5) and fraction[719] < 1 and set(hour) == {0.0}


def test_members_of_the_climatological_ensemble_are_consecutive_states_of_the_same_season() -> None:
    times = hourly(6 * 730)
    number = np.arange(len(times), dtype=float)[:, None, None] * np.ones((1, 1, 4))
    system = ClimatologicalEnsemble(
        MemoryStates(number, times, 5 * 730), members=6, max_steps=10, seed=0
    )
    start = 5 * 730 + 300
    first, later = (system.forecast(start, s)[:, 0, 0].astype(int) for s in (1, 9))
    np.testing.assert_array_equal(later - first, 8)
    fraction, hour = year_and_hour(times)
    distance = np.abs(fraction[first] - fraction[start])
    assert (np.minimum(distance, 1 - distance) < 17 / 365).all()
    assert set(hour[first]) == {hour[start + 1]}
    assert len(set(first)) == 6 and first.max() < 5 * 730
    np.testing.assert_array_equal(system.forecast(start, 1)[:, 0, 0], first)  # repeatable


def test_the_climatological_ensemble_is_refused_when_training_is_too_short() -> None:
    with pytest.raises(DataError, match="2 sequences of 10 steps, fewer than 6 members"):
        ClimatologicalEnsemble(
            MemoryStates(np.zeros((12, 1, 4)), hourly(12), 12), members=6, max_steps=10, seed=0
        )


def test_a_neighbourhood_is_periodic_on_a_circle_and_zero_padded_on_a_line() -> None:
    anomaly = np.arange(12.0).reshape(1, 3, 4)
    neighbours = neighbourhood(anomaly, ["line", "circle"])
    assert neighbours.shape == (9, 1, 3, 4)
    assert neighbours[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 0, 1, 7, 4, 5]


def test_the_linear_regression_recovers_advection() -> None:
    rng = np.random.default_rng(8)
    x = np.zeros((1500, 1, 4, 8))
    for i in range(1, 1500):
        x[i] = 0.9 * np.roll(x[i - 1], 1, axis=-1) + rng.normal(size=(1, 4, 8))
    states = MemoryStates(x + 100, hourly(1500), 1200)
    mean = Climatology.fit(states, states.train)
    regression = LinearRegression.fit(states, mean, states.train, ["line", "circle"])
    np.testing.assert_allclose(regression.weights[3], 0.9, atol=0.12)  # the cell to the west
    np.testing.assert_allclose(np.delete(regression.weights, 3, axis=0), 0, atol=0.15)
    ahead = regression.forecast(1300, 3)[0] - 100
    known = 0.9**3 * np.roll(x[1300], 3, axis=-1)
    assert np.corrcoef(ahead.ravel(), known.ravel())[0, 1] > 0.95
    fresh = LinearRegression(states, mean, regression.weights, ["line", "circle"])
    np.testing.assert_array_equal(regression.forecast(1300, 1), fresh.forecast(1300, 1))  # after 3
    np.testing.assert_array_equal(regression.forecast(1300, 3)[0] - 100, ahead)


@pytest.mark.parametrize("drift", [0.0, 0.03])
def test_a_linear_regression_on_few_noisy_states_stays_bounded(drift: float) -> None:
    x = np.random.default_rng(14).normal(size=(100, 1, 8, 10))
    for _ in range(2):  # highly correlated neighbours
        rolled = [np.roll(x, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        x = np.sum(rolled, axis=0) / 3
    x += drift * np.arange(100)[:, None, None, None]
    states = MemoryStates(x, hourly(100, 24), 40)
    mean = Climatology.fit(states, states.train)
    regression = LinearRegression.fit(states, mean, states.train, ["line", "line"])

    def rmse(forecast: Any) -> float:
        return sqrt(np.mean([np.square(forecast(p) - states.read(p + 20)) for p in range(40, 80)]))

    climatology = rmse(lambda p: mean.mean_at(p + 20))
    assert rmse(lambda p: regression.forecast(p, 20)[0]) < 1.5 * climatology


def test_a_linear_regression_is_no_worse_than_climatology_or_persistence() -> None:
    rng = np.random.default_rng(18)
    noise = rng.normal(size=(100, 1, 8, 10))
    for x in (noise, np.cumsum(noise, axis=0)):  # climatology is best; persistence is best
        states = MemoryStates(x, hourly(100, 24), 40)
        mean = Climatology.fit(states, states.train)
        regression = LinearRegression.fit(states, mean, states.train, ["line", "line"])
        ahead = [
            (regression.forecast(p, 1)[0], mean.mean_at(p + 1), x[p], x[p + 1])
            for p in range(39, 60)
        ]
        fitted, climatology, persistence = (
            sqrt(np.mean([np.square(each[i] - each[3]) for each in ahead])) for i in range(3)
        )
        assert fitted < 1.1 * min(climatology, persistence)


def test_a_linear_regression_on_growing_states_stays_bounded() -> None:
    rng = np.random.default_rng(15)
    x = 1.05 ** np.arange(140)[:, None, None, None] * rng.normal(1, 0.1, (1, 1, 4, 6))
    states = MemoryStates(x, hourly(140, 24), 60)
    mean = Climatology.fit(states, states.train)
    regression = LinearRegression.fit(states, mean, states.train, ["line", "line"])
    start, far = (np.abs(f - mean.mean_at(60)).max() for f in (x[60], regression.forecast(60, 70)))
    assert far < 1.5 * start


def test_a_baseline_without_enough_training_states_is_left_out_with_a_note(
    system: tuple[DriftingFields, Array, MemoryStates],
) -> None:
    states = system[2]
    systems, notes = baselines(
        states, kinds=["line", "circle"], members=3000, max_steps=4, max_states=200, seed=0
    )
    names = [each.name for each in systems]
    assert names == ["persistence", "climatology", "linear_regression"]
    assert notes == [
        "no climatological ensemble: training has 1996 sequences of 4 steps, fewer than 3000 "
        "members; use shorter leads or fewer members"
    ]


# Verification of systems


class Exact:
    """The exact ensemble of `DriftingFields`, as the model."""

    name = "model"

    def __init__(self, fields: DriftingFields, states: Array, members: int, steps: int) -> None:
        self.fields, self.states, self.members, self.steps = fields, states, members, steps

    def forecast(self, start: int, steps: int) -> Array:
        rng = np.random.default_rng(start)
        x = self.states[start].astype(np.float64)
        drawn = self.fields.ensemble(x, self.members, self.steps, rng)
        return physical(drawn[steps - 1], self.fields)


@pytest.fixture(scope="module")
def system() -> Iterator[tuple[DriftingFields, Array, MemoryStates]]:
    fields = DriftingFields(rows=6, columns=8)
    states = fields.series(2400, np.random.default_rng(9))
    yield fields, states, MemoryStates(physical(states, fields), hourly(2400, 6), 2000)


def test_the_exact_forecast_beats_every_baseline(
    system: tuple[DriftingFields, Array, MemoryStates],
) -> None:
    fields, states, series = system
    plan = VerificationPlan(range(2000, 2380, 8), [1, 2, 4], ["6h", "12h", "24h"], seed=1)
    reference, notes = baselines(
        series, kinds=["line", "circle"], members=5, max_steps=4, max_states=1000, seed=0
    )
    assert notes == []
    model = Exact(fields, states, 5, 4)
    both = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    verification = verify([model, *reference], series, both, plan)
    rows = verification.rows({"temperature": "K", "pressure": "Pa"})
    for channel in both.channels:
        row = rows[f"crps.{channel}.6h"]
        assert set(row["baselines"]) == {
            "persistence",
            "climatology",
            "climatological_ensemble",
            "linear_regression",
        }
        assert row["interval"][0] < row["value"] < row["interval"][1]
        assert all(b["difference"][1] < 0 for b in row["baselines"].values())
        skill = rows[f"spread_skill.{channel}.24h"]
        assert skill["value"] == pytest.approx(1, abs=0.1) and skill["floor"] == 1
    regression = rows["rmse.temperature.6h"]["baselines"]["linear_regression"]["value"]
    assert regression < rows["rmse.temperature.6h"]["baselines"]["climatology"]["value"]
    assert rows["crps.temperature.6h"]["unit"] == "K"
    assert verification.accumulators["model"].missing == 0


def test_differences_use_the_same_resamples(
    system: tuple[DriftingFields, Array, MemoryStates],
) -> None:
    fields, states, series = system
    twin = Exact(fields, states, 2, 1)
    twin.name = "twin"
    both = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    plan = VerificationPlan(range(2000, 2040, 4), [1], ["6h"])
    rows = verify([Exact(fields, states, 2, 1), twin], series, both, plan).rows({})
    assert rows["crps.pressure.6h"]["baselines"]["twin"]["difference"] == [0, 0]
    assert rows["crps.pressure.6h"]["std"] > 0


def test_leads_past_the_end_are_left_out_and_a_lead_without_any_analysis_is_refused(
    system: tuple[DriftingFields, Array, MemoryStates],
) -> None:
    fields, states, series = system
    both = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    some = verify(
        [Exact(fields, states, 2, 4)],
        series,
        both,
        VerificationPlan([2300, 2397], [1, 4], ["6h", "24h"]),
    )
    assert (some.accumulators["model"].sums["weight"][1, :, 0] > 0).tolist() == [True, False]
    assert np.isfinite(some.scores()["model"]["crps"]).all()
    with pytest.raises(DataError, match="24h later"):
        verify(
            [Exact(fields, states, 2, 4)],
            series,
            both,
            VerificationPlan([2397], [1, 4], ["6h", "24h"]),
        )


# Verification of a domain and of forecast files


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A forecast domain on a small store."""
    fields = DriftingFields(rows=6, columns=8)
    path = tmp_path_factory.mktemp("weather") / "fields.zarr"
    write_zarr(fields.series(1500, np.random.default_rng(10)), fields, path, "2001-01-01")
    section = WeatherSection.model_validate(
        {"name": "weather", "path": str(path), "task": "forecast", "lead": "6h", "val": 0.2}
        | {"variables": ["temperature", "pressure"], "static": ["land_sea_mask"]}
        | {"verify": {"lead": "24h", "members": 3, "inits": 5, "learn_from": 400}}
    )
    return Weather(section)


def exact_rollout(domain: Any) -> RolloutFunction:
    """The exact ensemble as a model; a member is a function of its start and index."""
    fields, states = DriftingFields(rows=6, columns=8), domain.states()

    def rollout(start: str, members: Sequence[int], steps: int) -> Iterator[list[Sample]]:
        position = states.position(start)
        x = standardised(states.read(position))
        rngs = [np.random.default_rng([position, member]) for member in members]
        drawn = [physical(fields.ensemble(x, 1, steps, rng), fields)[:, 0] for rng in rngs]
        for step in range(steps):
            yield [Sample(each[step]) for each in drawn]

    return rollout


def write_forecasts(
    rollout: RolloutFunction, states: Any, starts: Sequence[str], path: Path
) -> None:
    """Write three members and four steps of each start, with WeatherBench 2 names."""
    import xarray

    rolled = [list(rollout(start, range(3), 4)) for start in starts]
    values = np.array([[[m.values for m in step] for step in each] for each in rolled])
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    coords = {
        "time": states.times[[states.position(start) for start in starts]],
        "prediction_timedelta": np.arange(1, 5) * np.timedelta64(6, "h").astype("m8[ns]"),
        "latitude": states.latitude,
        "longitude": states.longitude,
    }
    fields = {name: (dims, values[:, :, :, c]) for c, name in enumerate(states.channels)}
    data = xarray.Dataset(fields, coords).transpose("time", "number", ...)
    data.to_zarr(path, zarr_format=2, consolidated=True)


def test_verification_of_a_rollout_and_of_its_file_is_the_same(
    weather: Any, tmp_path: Path
) -> None:
    rollout = exact_rollout(weather)
    direct = weather.verify(rollout, tmp_path / "direct", seed=1)
    starts = direct["settings"]["starts"]
    write_forecasts(rollout, weather.states(), starts, tmp_path / "fc.zarr")
    section = weather.section.verify.model_copy(update={"forecasts": str(tmp_path / "fc.zarr")})
    read = verify_model(
        weather.states(),
        section,
        rollout,
        tmp_path / "read",
        layout=weather.layout,
        weights=weather.weights,
        metadata=weather.metadata(),
        seed=1,
    )
    assert read["scores"] == direct["scores"]
    json.dumps(direct, allow_nan=False)  # plain JSON
    assert direct["samples"] == 15 and direct["held_out"] == 5
    assert direct["scores"]["crps.temperature.6h"]["unit"] == "K"
    assert "climatological ensemble" in direct["table"] and "1d" in direct["table"]
    for name in direct["pictures"]:
        assert (tmp_path / "direct" / name).read_bytes()[:4] == b"\x89PNG"
    import xarray

    with xarray.open_dataset(tmp_path / "direct" / "verification" / "scores.nc") as data:
        row = data.crps.sel(system="model", channel="temperature", lead=6)
        assert float(row) == pytest.approx(direct["scores"]["crps.temperature.6h"]["value"])


def test_held_out_starts_have_held_out_forecasts_to_the_end(weather: Any) -> None:
    states = weather.states()
    starts = held_out_starts(states, 4, 5)
    assert len(starts) == 5 and set(starts) <= set(states.val.tolist())
    assert {states.after(p, 4) for p in starts} <= set(states.val.tolist())
    with pytest.raises(DataError, match="no forecast of 100d"):
        held_out_starts(states, 400, 5)


def test_a_file_that_does_not_fit_the_analysis_is_refused(weather: Any, tmp_path: Path) -> None:
    import xarray

    states, grid = weather.states(), grid_coordinates(weather.layout, weather.metadata())
    path = tmp_path / "fc.nc"
    with pytest.raises(DataError, match="no forecast file at .*jitkit forecast RUN --out"):
        ForecastFile(path, states, "model", grid)
    dims = ("time", "prediction_timedelta", "latitude", "longitude")
    values = np.zeros((1, 2, 6, 8))
    coords = {
        "time": states.times[-20:-19],
        "prediction_timedelta": np.array([6, 12], "m8[h]").astype("m8[ns]"),
        "latitude": states.latitude,
        "longitude": states.longitude,
    }
    whole = xarray.Dataset({n: (dims, values) for n in states.channels}, coords)
    whole.to_netcdf(path, engine="h5netcdf")
    file = ForecastFile(path, states, "model", grid)
    assert (file.starts, file.leads, file.members) == ([len(states) - 20], [1, 2], 1)
    wrong = {
        "no forecast of pressure; it has temperature": whole.drop_vars("pressure"),
        "its latitude differs from that of the verifying analysis": whole.assign_coords(
            latitude=np.arange(6.0)
        ),
        "have none of its 1 initial times": whole.assign_coords(time=states.times[:1] - 10**15),
        "none of its leads is a multiple": whole.assign_coords(
            prediction_timedelta=np.array([1, 2], "m8[h]").astype("m8[ns]")
        ),
        "temperature has dimensions .* lat, longitude; it needs .* latitude, longitude": (
            whole.rename(latitude="lat")
        ),
        "no dimension prediction_timedelta": whole.isel(prediction_timedelta=0, drop=True),
    }
    for number, (text, data) in enumerate(wrong.items()):
        data.to_netcdf(tmp_path / f"{number}.nc", engine="h5netcdf")
        with pytest.raises(DataError, match=text):
            ForecastFile(tmp_path / f"{number}.nc", states, "model", grid)


def test_dimensions_and_cells_of_a_file_are_matched_by_name_and_coordinate(
    weather: Any, tmp_path: Path
) -> None:
    import xarray

    states, grid = weather.states(), grid_coordinates(weather.layout, weather.metadata())
    starts = [states.name(int(p)) for p in states.val[[5, 9]]]
    write_forecasts(exact_rollout(weather), states, starts, tmp_path / "fc.zarr")
    known = ForecastFile(tmp_path / "fc.zarr", states, "model", grid)
    with xarray.open_zarr(tmp_path / "fc.zarr", decode_timedelta=True) as store:
        data = store.load().drop_encoding()
    variants = {
        "order": data.transpose("longitude", "prediction_timedelta", "time", "latitude", "number"),
        "flipped": data.isel(latitude=slice(None, None, -1)),
        "rolled": data.roll(longitude=3, roll_coords=True),
    }
    start = known.starts[1]
    for name, other in variants.items():
        other.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        file = ForecastFile(tmp_path / f"{name}.nc", states, "model", grid)
        assert file.members == 3, name
        np.testing.assert_array_equal(file.forecast(start, 2), known.forecast(start, 2), name)


def test_starts_of_a_file_that_are_not_held_out_are_left_out_with_a_note(
    weather: Any, tmp_path: Path
) -> None:
    states, rollout = weather.states(), exact_rollout(weather)
    trained, held_out = states.train[[-400, -2]].tolist(), states.val[[0, 30]].tolist()

    def verified(positions: list[int], name: str) -> dict[str, Any]:
        names = [states.name(p) for p in positions]
        write_forecasts(rollout, states, names, tmp_path / name)
        update = {"forecasts": str(tmp_path / name)}
        section = weather.section.verify.model_copy(update=update)
        return verify_model(
            states,
            section,
            rollout,
            tmp_path / "run",
            layout=weather.layout,
            weights=weather.weights,
            metadata=weather.metadata(),
            seed=1,
        )

    result = verified(trained + held_out, "some.zarr")
    assert result["settings"]["starts"] == [states.name(p) for p in held_out]
    assert "2 of 4 initial times" in result["notes"][0]
    assert result["notes"][0] in evaluation_table(result)
    with pytest.raises(DataError, match="none of the 2 initial times .* is held out"):
        verified(trained, "none.zarr")


def test_verification_weights_cells_by_area_even_if_training_did_not(weather: Any) -> None:
    by_area = cell_weights(weather.layout, weather.weights, weather.states())
    section = weather.section.model_copy(update={"area_weights": False})
    plain = Weather(section)
    assert plain.weights is None
    np.testing.assert_allclose(
        cell_weights(plain.layout, plain.weights, plain.states()) / by_area,
        4 * pi / by_area.sum(),
        rtol=1e-5,
    )
    assert by_area[0, 0] < 0.5 * by_area[3, 0]


def test_maps_wrap_long_channel_names_and_list_the_omitted_channels(tmp_path: Path) -> None:
    names = [f"mean_top_net_long_wave_radiation_flux_{i}" for i in range(6)]
    fields = np.random.default_rng(17).normal(size=(2, 6, 6, 8))
    shown = [ForecastMaps.of(f"{h}h", fields, fields[0]) for h in (6, 12, 18)]
    grid = {"latitude": np.linspace(75, -75, 6), "longitude": np.arange(0, 360, 45.0)}
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasts, "_save", lambda figure, path: drawn.append(figure))
        draw_maps(
            shown, channels=names, units={}, title="forecast", path=tmp_path / "m.png", **grid
        )
    figure = drawn[0]
    figure.canvas.draw()
    assert "2 of 6 channels; not shown: " in figure.get_suptitle()
    boxes = [t.get_window_extent() for ax in figure.axes[::5] if (t := ax.yaxis.label).get_text()]
    assert len(boxes) == 6
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


def test_a_file_of_another_format_is_refused_in_one_line(weather: Any, tmp_path: Path) -> None:
    (tmp_path / "fc.txt").write_text("no forecasts")
    with pytest.raises(DataError, match="should be a Zarr store or a NetCDF file") as caught:
        ForecastFile(
            tmp_path / "fc.txt",
            weather.states(),
            "model",
            grid_coordinates(weather.layout, weather.metadata()),
        )
    assert "\n" not in str(caught.value)


def test_a_spectrum_without_complete_rows_is_left_out_and_noted_in_its_figure(
    tmp_path: Path,
) -> None:
    analyses = np.random.default_rng(16).normal(size=(20, 1, 6, 8))
    analyses[..., 2] = np.nan  # a column of land
    series = MemoryStates(analyses, hourly(20), 10)
    against = verify(
        [ClimatologicalEnsemble(series, 2, 1, 0)],
        series,
        frame(channels=["c0"]),
        VerificationPlan([12], [1], [""]),
    )
    sums = against.accumulators["climatological_ensemble"]
    verification = Verification(against.plan, against.frame, {"model": sums})
    names = {name.split(".c0")[0] for name in verification.rows({})}
    assert "spectrum.latitude" in names and "spectrum.longitude" not in names
    draw_spectra(verification, "longitude", np.arange(1, 5), tmp_path / "spectrum.png")
    assert (tmp_path / "spectrum.png").read_bytes()[:4] == b"\x89PNG"


# Maps


def test_equal_earth_preserves_areas_and_has_the_published_extent() -> None:
    up, across = np.meshgrid(np.linspace(-90, 90, 721), np.linspace(-180, 180, 1441), indexing="ij")
    x, y = equal_earth(up, across)
    dx, dy = np.diff(x[:-1], axis=1), np.diff(y[:, :-1], axis=0)
    area = ((dx + np.diff(x[1:], axis=1)) / 2 * dy).sum(axis=1)
    known = 2 * pi * np.diff(np.sin(np.radians(np.linspace(-90, 90, 721))))
    np.testing.assert_allclose(area, known, rtol=2e-3, atol=1e-6)
    assert float(x.max()) == pytest.approx(2.7066, abs=1e-3)
    assert float(y.max()) == pytest.approx(1.3173, abs=1e-3)


def test_a_global_map_is_centred_on_greenwich_and_a_region_is_not_projected() -> None:
    globe = MapProjection.of(np.linspace(80, -80, 9), np.arange(0, 360, 45.0))
    assert globe.order[0] == 4 and globe.outline is not None
    part = MapProjection.of(np.array([10.0, 20.0]), np.array([30.0, 40.0, 50.0]))
    assert part.outline is None and part.x[0].tolist() == [25, 35, 45, 55]
