"""Scores of forecasts agree with known answers and with an independent library."""

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
from jitkit.domains.weather.verify import areas_of, grid_of, held_out  # noqa: E402
from jitkit.domains.weather.verify import verify as verify_weather  # noqa: E402
from jitkit.errors import DataError  # noqa: E402
from jitkit.evaluation.evaluate import score_table as evaluation_table  # noqa: E402
from jitkit.metrics.forecasts.baselines import (  # noqa: E402
    LinearRegression,
    OtherYears,
    baselines,
    neighbourhood,
)
from jitkit.metrics.forecasts.climatology import Climatology, year_and_hour  # noqa: E402
from jitkit.metrics.forecasts.ensemble_scores import (  # noqa: E402
    ScoreFrame,
    Tally,
    block_length,
    drawn_blocks,
    fair_crps,
    ranks,
)
from jitkit.metrics.forecasts.forecast_files import ForecastFile  # noqa: E402
from jitkit.metrics.forecasts.verify import Verification, VerificationPlan, verify  # noqa: E402
from jitkit.plots import forecasts  # noqa: E402
from jitkit.plots.forecasts import Shown, draw_maps, draw_spectra  # noqa: E402
from jitkit.plots.projection import Map, equal_earth  # noqa: E402
from jitkit.protocols import RollOutFunction

AXES = (("latitude", "line"), ("longitude", "circle"))
SHAPE = (6, 8)


def frame(weights: Array | None = None, channels: Sequence[str] = ("t",)) -> ScoreFrame:
    return ScoreFrame(channels, AXES, np.ones(SHAPE) if weights is None else weights)


def tallied(ensembles: Array, truths: Array, weights: Array | None = None) -> Tally:
    """A tally of (I, L, M, C, X1..Xn) against (I, L, C, X1..Xn)."""
    inits, leads, members, channels = ensembles.shape[:4]
    names = [f"c{i}" for i in range(channels)]
    tally = Tally(frame(weights, names), inits, leads, members)
    for i in range(inits):
        for lead in range(leads):
            rng = np.random.default_rng([i, lead])
            tally.add(i, lead, ensembles[i, lead], truths[i, lead], rng)
    return tally


@pytest.fixture(scope="module")
def drawn() -> tuple[Array, Array, Array]:
    """Ensembles (5, 2, 7, 2, 6, 8), truths with missing cells, weights by latitude."""
    rng = np.random.default_rng(0)
    ensembles = rng.normal(1, 2, (5, 2, 7, 2, *SHAPE))
    truths = rng.normal(0, 2, (5, 2, 2, *SHAPE))
    truths[..., 1, 2:4, 3] = np.nan  # a cell of land
    truths[1, 0, 0, 0] = np.nan  # a row that is missing once
    weights = np.cos(np.radians(np.linspace(-75, 75, 6)))[:, None] * np.ones(8)
    return ensembles, truths, weights


# Against an independent library, `scores` (Leeuwenburg et al. 2024, doi:10.21105/joss.06889)


def test_crps_rmse_and_bias_agree_with_an_independent_library(
    drawn: tuple[Array, Array, Array],
) -> None:
    import scores.continuous
    import scores.probability
    import xarray

    ensembles, truths, weights = drawn
    dims = ("init", "lead", "number", "channel", "latitude", "longitude")
    forecast = xarray.DataArray(ensembles, dims=dims)
    truth = xarray.DataArray(truths, dims=[d for d in dims if d != "number"])
    area = xarray.DataArray(weights, dims=dims[-2:])
    kept = {"preserve_dims": ["lead", "channel"], "weights": area}
    crps = scores.probability.crps_for_ensemble(forecast, truth, "number", method="fair", **kept)
    mean = forecast.mean("number")
    rmse = scores.continuous.rmse(mean, truth, **kept)
    bias = scores.continuous.additive_bias(mean, truth, **kept)
    found = tallied(*drawn).scores()
    np.testing.assert_allclose(found["crps"], crps, rtol=1e-6)
    np.testing.assert_allclose(found["rmse"], rmse, rtol=1e-6)
    np.testing.assert_allclose(found["bias"], bias, rtol=1e-6)


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_fair_crps_is_the_double_sum(members: int, seed: int) -> None:
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
def test_spread_over_skill_is_one_for_an_exact_ensemble_and_less_for_a_narrow_one(
    members: int, width: float
) -> None:
    rng = np.random.default_rng(1)
    mean = rng.normal(0, 3, (400, 1, 1, 1, *SHAPE))
    ensembles = mean + width * rng.normal(size=(400, 1, members, 1, *SHAPE))
    truths = mean[:, :, 0] + rng.normal(size=(400, 1, 1, *SHAPE))
    skill = tallied(ensembles, truths).scores()["spread_skill"][0, 0]
    error = sqrt(1 + width**2 / members)  # of the mean; the truth's own variance is one
    assert skill == pytest.approx(width * sqrt((members + 1) / members) / error, rel=0.02)
    if width == 1:
        assert skill == pytest.approx(1, rel=0.02)


def test_the_rank_histogram_of_an_exact_ensemble_is_flat_up_to_chance() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(300, 1, 7, 1, 1, 1))  # cells that say the same: no independent trials
    both = shared + 0.1 * rng.normal(size=(300, 1, 7, 1, *SHAPE))
    tally = tallied(both[:, :, :6], both[:, :, 6])
    assert tally.shares()[0, 0].sum() == pytest.approx(1)
    chance = tally.rank_error_by_chance(np.arange(300))[0, 0]
    assert chance == pytest.approx(6 / 300, rel=0.4)  # (bins - 1) / trials, near enough
    assert tally.scores()["rank_error"][0, 0] < 3 * chance
    narrow = tallied(0.3 * both[:, :, :6], both[:, :, 6])
    assert narrow.shares()[0, 0, [0, -1]].sum() > 0.6
    assert narrow.scores()["rank_error"][0, 0] > 20 * chance


def test_ranks_break_ties_evenly() -> None:
    found = ranks(np.zeros((4, 50_000)), np.zeros(50_000), np.random.default_rng(3))
    np.testing.assert_allclose(np.bincount(found) / len(found), 1 / 5, atol=0.01)
    assert ranks(np.array([[1.0], [2.0], [2.0]]), np.array([1.5]), np.random.default_rng()) == 1


def test_missing_cells_count_nowhere_and_lacking_ones_are_told(
    drawn: tuple[Array, Array, Array],
) -> None:
    ensembles, truths, weights = drawn
    before = tallied(*drawn)
    other = np.where(np.isnan(truths)[:, :, None], 1e6, ensembles)
    after = tallied(other, truths, weights)
    for name, values in before.scores().items():
        np.testing.assert_array_equal(values, after.scores()[name], err_msg=name)
    assert before.lacking == 0
    holed = ensembles.copy()
    holed[:, :, 3, :, 5] = np.nan  # one member does not know the last row
    share = tallied(holed, truths, weights).lacking
    known = np.isfinite(truths)
    assert share == pytest.approx((known * weights)[..., 5, :].sum() / (known * weights).sum())


def test_a_single_forecast_has_its_absolute_error_and_no_spread(
    drawn: tuple[Array, Array, Array],
) -> None:
    ensembles, truths, _ = drawn
    found = tallied(ensembles[:, :, :1], truths).scores()
    error = np.nanmean(np.abs(ensembles[:, :, 0] - truths)[:, 1, 0])
    assert found["crps"][1, 0] == pytest.approx(error)
    assert "spread_skill" not in found and "rank_error" not in found


def test_a_smoothed_ensemble_lacks_power_and_one_of_its_kind_does_not() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 1, 3, 1, *SHAPE))
    same = tallied(x[:, :, :2], x[:, :, 2])
    np.testing.assert_allclose(same.power_ratio("longitude"), 1, atol=0.15)
    smooth = (x + np.roll(x, 1, axis=-1)) / 2  # damps wavenumber k by cos²(π k / 8)
    ratio = tallied(smooth[:, :, :2], x[:, :, 2]).power_ratio("longitude")[0, 0]
    known = np.cos(np.pi * np.arange(1, 5) / 8) ** 2
    np.testing.assert_allclose(ratio, known, rtol=0.15, atol=1e-9)


def test_arrays_of_another_shape_are_refused() -> None:
    tally = Tally(frame(), 1, 1, 3)
    with pytest.raises(DataError, match=r"\(2, 1, 6, 8\).*expected \(3, 1, 6, 8\)"):
        tally.add(0, 0, np.zeros((2, 1, *SHAPE)), np.zeros((1, *SHAPE)), np.random.default_rng())


# Bootstrap


@given(st.integers(1, 40), st.integers(1, 10), st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_a_resample_is_as_long_and_made_of_neighbours(n: int, length: int, seed: int) -> None:
    found = drawn_blocks(n, length, np.random.default_rng(seed))
    assert len(found) == n and found.min() >= 0 and found.max() < n
    inside = np.arange(1, n) % length > 0
    assert ((found[1:] - found[:-1])[inside] % n == 1 % n).all()


def test_intervals_cover_the_true_score_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    covered = []
    for seed in range(80):
        truths = rng.normal(size=(30, 1, 1, 1, 4))  # bias of a forecast of zero is 0 on average
        tally = Tally(ScoreFrame(["t"], (("x", "line"), ("y", "line")), np.ones((1, 4))), 30, 1, 1)
        for i in range(30):
            tally.add(i, 0, np.zeros((1, 1, 1, 4)), truths[i, 0], rng)
        draws = [
            drawn_blocks(30, block_length(30), np.random.default_rng([seed, r])) for r in range(60)
        ]
        again = [tally.scores(d)["bias"][0, 0] for d in draws]
        covered.append(abs(tally.scores()["bias"][0, 0]) <= 1.96 * np.std(again, ddof=1))
    assert 0.85 <= np.mean(covered) <= 1


# Baselines


class Held:
    """States in memory, (n, C, X1..Xn), for all that asks for `States`."""

    def __init__(self, values: Array, times: Array, train: int, spacing: int = 1) -> None:
        self.values, self.times, self.spacing = values, times, spacing
        self.train = np.arange(train)
        self.channels = tuple(f"c{i}" for i in range(values.shape[1]))

    def read(self, position: int) -> Array:
        return self.values[position]

    def after(self, position: int, steps: int) -> int | None:
        at = position + steps * self.spacing
        return at if at < len(self.values) else None


def hourly(n: int, hours: int = 12) -> Array:
    return np.datetime64("2001-01-01", "ns") + np.arange(n) * np.timedelta64(hours, "h")


def seasonal(times: Array, shape: tuple[int, ...] = (1, *SHAPE)) -> Array:
    """A yearly wave and a difference of day and night, with another phase in each cell."""
    share, hour = year_and_hour(times)
    phase = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    beside = [slice(None)] + [None] * len(shape)
    year = np.cos(2 * np.pi * (share[tuple(beside)] - phase))
    return 280 + 10 * year + np.where(hour == 12, 3.0, 0.0)[tuple(beside)]


def test_the_climatology_finds_the_season_and_the_hour() -> None:
    times = hourly(4 * 730)
    noise = np.random.default_rng(6).normal(size=(len(times), 1, *SHAPE))
    states = Held(seasonal(times) + noise, times, 3 * 730)
    found = Climatology.fit(states, states.train)
    assert found.waves == 3 and found.slot[:3].tolist() == [0, 1, 0]
    for position in (3 * 730 + 5, 3 * 730 + 400):
        known = seasonal(times[position : position + 1])[0]
        np.testing.assert_allclose(found.of(position), known, atol=0.35)
    assert found.deviation[0] == pytest.approx(1, rel=0.03)


def test_the_climatology_of_less_than_a_year_is_the_mean_of_each_hour() -> None:
    times = hourly(200)
    values = np.random.default_rng(7).normal(5, 1, (200, 2, *SHAPE))
    found = Climatology.fit(Held(values, times, 200), np.arange(200))
    assert found.waves == 0
    np.testing.assert_allclose(found.of(3), values[1::2].mean(axis=0), rtol=1e-5)


def test_the_climatology_fits_cells_that_are_missing_at_times_by_what_is_there() -> None:
    times = hourly(3 * 730)
    whole = seasonal(times)
    share, _ = year_and_hour(times)
    holed = whole.copy()
    holed[(share > 0.3) & (share < 0.5), 0, 2, 3] = np.nan  # ice of one season
    holed[:, 0, 4] = np.nan  # land
    found = Climatology.fit(Held(holed, times, len(times)), np.arange(len(times)))
    at = found.of(100)
    assert np.isnan(at[0, 4]).all()
    np.testing.assert_allclose(at[0, 2, 3], whole[100, 0, 2, 3], atol=0.01)
    np.testing.assert_allclose(at[0, :4], whole[100, 0, :4], atol=0.01)


def test_other_calendars_have_years_and_hours() -> None:
    import xarray

    times = xarray.date_range("2000-01-01", periods=720, calendar="360_day", use_cftime=True)
    share, hour = year_and_hour(times.values)
    assert share[180] == pytest.approx(0.5) and share[719] < 1 and set(hour) == {0.0}


def test_other_years_are_of_the_same_season_and_hour_and_follow_one_another() -> None:
    times = hourly(6 * 730)
    number = np.arange(len(times), dtype=float)[:, None, None] * np.ones((1, 1, 4))
    system = OtherYears(Held(number, times, 5 * 730), members=6, longest=10, seed=0)
    start = 5 * 730 + 300
    first, later = (system.forecast(start, s)[:, 0, 0].astype(int) for s in (1, 9))
    np.testing.assert_array_equal(later - first, 8)
    share, hour = year_and_hour(times)
    apart = np.abs(share[first] - share[start])
    assert (np.minimum(apart, 1 - apart) < 17 / 365).all()
    assert set(hour[first]) == {hour[start + 1]}
    assert len(set(first)) == 6 and first.max() < 5 * 730
    np.testing.assert_array_equal(system.forecast(start, 1)[:, 0, 0], first)  # as often as asked


def test_other_years_are_refused_where_training_is_too_short() -> None:
    with pytest.raises(DataError, match="2 stretches of 10 steps, fewer than 6 members"):
        OtherYears(Held(np.zeros((12, 1, 4)), hourly(12), 12), members=6, longest=10, seed=0)


def test_a_neighbourhood_closes_on_a_circle_and_ends_on_a_line() -> None:
    anomaly = np.arange(12.0).reshape(1, 3, 4)
    found = neighbourhood(anomaly, ["line", "circle"])
    assert found.shape == (9, 1, 3, 4)
    assert found[:, 0, 0, 0].tolist() == [0, 0, 0, 3, 0, 1, 7, 4, 5]


def test_the_linear_regression_finds_a_drift() -> None:
    rng = np.random.default_rng(8)
    x = np.zeros((1500, 1, 4, 8))
    for i in range(1, 1500):
        x[i] = 0.9 * np.roll(x[i - 1], 1, axis=-1) + rng.normal(size=(1, 4, 8))
    states = Held(x + 100, hourly(1500), 1200)
    mean = Climatology.fit(states, states.train)
    found = LinearRegression.fit(states, mean, states.train, ["line", "circle"])
    np.testing.assert_allclose(found.weights[3], 0.9, atol=0.12)  # the cell to the west
    np.testing.assert_allclose(np.delete(found.weights, 3, axis=0), 0, atol=0.15)
    ahead = found.forecast(1300, 3)[0] - 100
    known = 0.9**3 * np.roll(x[1300], 3, axis=-1)
    assert np.corrcoef(ahead.ravel(), known.ravel())[0, 1] > 0.95
    fresh = LinearRegression(states, mean, found.weights, ["line", "circle"])
    np.testing.assert_array_equal(found.forecast(1300, 1), fresh.forecast(1300, 1))  # after 3
    np.testing.assert_array_equal(found.forecast(1300, 3)[0] - 100, ahead)


@pytest.mark.parametrize("drift", [0.0, 0.03])
def test_a_linear_regression_on_few_noisy_states_stays_bounded(drift: float) -> None:
    x = np.random.default_rng(14).normal(size=(100, 1, 8, 10))
    for _ in range(2):  # neighbours that say almost the same
        near = [np.roll(x, (i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        x = np.sum(near, axis=0) / 3
    x += drift * np.arange(100)[:, None, None, None]
    states = Held(x, hourly(100, 24), 40)
    mean = Climatology.fit(states, states.train)
    found = LinearRegression.fit(states, mean, states.train, ["line", "line"])

    def rmse(forecast: Any) -> float:
        return sqrt(np.mean([np.square(forecast(p) - states.read(p + 20)) for p in range(40, 80)]))

    climatology = rmse(lambda p: mean.of(p + 20))
    assert rmse(lambda p: found.forecast(p, 20)[0]) < 1.5 * climatology


def test_a_linear_regression_is_no_worse_than_what_its_ridge_pulls_to() -> None:
    rng = np.random.default_rng(18)
    noise = rng.normal(size=(100, 1, 8, 10))
    for x in (noise, np.cumsum(noise, axis=0)):  # known: climatology is best; persistence is
        states = Held(x, hourly(100, 24), 40)
        mean = Climatology.fit(states, states.train)
        found = LinearRegression.fit(states, mean, states.train, ["line", "line"])
        ahead = [(found.forecast(p, 1)[0], mean.of(p + 1), x[p], x[p + 1]) for p in range(39, 60)]
        own, climatology, persistence = (
            sqrt(np.mean([np.square(each[i] - each[3]) for each in ahead])) for i in range(3)
        )
        assert own < 1.1 * min(climatology, persistence)


def test_a_linear_regression_on_states_that_grow_does_not_grow_for_ever() -> None:
    rng = np.random.default_rng(15)
    x = 1.05 ** np.arange(140)[:, None, None, None] * rng.normal(1, 0.1, (1, 1, 4, 6))
    states = Held(x, hourly(140, 24), 60)
    mean = Climatology.fit(states, states.train)
    found = LinearRegression.fit(states, mean, states.train, ["line", "line"])
    start, far = (np.abs(f - mean.of(60)).max() for f in (x[60], found.forecast(60, 70)))
    assert far < 1.5 * start


def test_a_baseline_that_training_is_too_short_for_is_left_out_with_a_note(
    system: tuple[DriftingFields, Array, Held],
) -> None:
    held = system[2]
    found, notes = baselines(
        held, kinds=["line", "circle"], members=3000, longest=4, most=200, seed=0
    )
    names = [each.name for each in found]
    assert names == ["persistence", "climatology", "linear_regression"]
    assert notes == [
        "no climatological ensemble: training has 1996 stretches of 4 steps, fewer than 3000 "
        "members; forecast less far, or with fewer members"
    ]


# The whole


class Exact:
    """The exact ensemble of `DriftingFields`, as the model."""

    name = "model"

    def __init__(self, fields: DriftingFields, states: Array, members: int, longest: int) -> None:
        self.fields, self.states, self.members, self.longest = fields, states, members, longest

    def forecast(self, start: int, steps: int) -> Array:
        rng = np.random.default_rng(start)
        x = self.states[start].astype(np.float64)
        drawn = self.fields.ensemble(x, self.members, self.longest, rng)
        return physical(drawn[steps - 1], self.fields)


@pytest.fixture(scope="module")
def system() -> Iterator[tuple[DriftingFields, Array, Held]]:
    fields = DriftingFields(rows=6, columns=8)
    states = fields.series(2400, np.random.default_rng(9))
    yield fields, states, Held(physical(states, fields), hourly(2400, 6), 2000)


def test_the_exact_forecast_beats_every_baseline_and_its_rows_say_so(
    system: tuple[DriftingFields, Array, Held],
) -> None:
    fields, states, held = system
    plan = VerificationPlan(range(2000, 2380, 8), [1, 2, 4], ["6h", "12h", "24h"], seed=1)
    against, notes = baselines(
        held, kinds=["line", "circle"], members=5, longest=4, most=1000, seed=0
    )
    assert notes == []
    model = Exact(fields, states, 5, 4)
    whole = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    found = verify([model, *against], held, whole, plan)
    rows = found.rows({"temperature": "K", "pressure": "Pa"})
    for channel in whole.channels:
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
    assert found.tallies["model"].lacking == 0


def test_differences_are_of_scores_on_the_same_resamples(
    system: tuple[DriftingFields, Array, Held],
) -> None:
    fields, states, held = system
    twin = Exact(fields, states, 2, 1)
    twin.name = "twin"
    whole = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    plan = VerificationPlan(range(2000, 2040, 4), [1], ["6h"])
    rows = verify([Exact(fields, states, 2, 1), twin], held, whole, plan).rows({})
    assert rows["crps.pressure.6h"]["baselines"]["twin"]["difference"] == [0, 0]
    assert rows["crps.pressure.6h"]["std"] > 0


def test_a_lead_past_the_end_is_left_out_and_one_without_any_truth_is_refused(
    system: tuple[DriftingFields, Array, Held],
) -> None:
    fields, states, held = system
    whole = ScoreFrame(("temperature", "pressure"), AXES, np.ones((6, 8)))
    some = verify(
        [Exact(fields, states, 2, 4)],
        held,
        whole,
        VerificationPlan([2300, 2397], [1, 4], ["6h", "24h"]),
    )
    assert (some.tallies["model"].sums["weight"][1, :, 0] > 0).tolist() == [True, False]
    assert np.isfinite(some.scores()["model"]["crps"]).all()
    with pytest.raises(DataError, match="24h later"):
        verify(
            [Exact(fields, states, 2, 4)],
            held,
            whole,
            VerificationPlan([2397], [1, 4], ["6h", "24h"]),
        )


# A domain and its files


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A domain of forecasts on a small store."""
    fields = DriftingFields(rows=6, columns=8)
    path = tmp_path_factory.mktemp("weather") / "fields.zarr"
    write_zarr(fields.series(1500, np.random.default_rng(10)), fields, path, "2001-01-01")
    section = WeatherSection.model_validate(
        {"name": "weather", "path": str(path), "task": "forecast", "lead": "6h", "val": 0.2}
        | {"variables": ["temperature", "pressure"], "static": ["land_sea_mask"]}
        | {"verify": {"lead": "24h", "members": 3, "inits": 5, "learn_from": 400}}
    )
    return Weather(section)


def exact_roll_out(domain: Any) -> RollOutFunction:
    """The exact ensemble as a model; a member is a function of its start and number."""
    fields, states = DriftingFields(rows=6, columns=8), domain.states()

    def roll_out(start: str, members: Sequence[int], steps: int) -> Iterator[list[Sample]]:
        position = states.position(start)
        x = standardised(states.read(position))
        rngs = [np.random.default_rng([position, member]) for member in members]
        drawn = [physical(fields.ensemble(x, 1, steps, rng), fields)[:, 0] for rng in rngs]
        for step in range(steps):
            yield [Sample(each[step]) for each in drawn]

    return roll_out


def write_forecasts(
    roll_out: RollOutFunction, states: Any, starts: Sequence[str], path: Path
) -> None:
    """Three members and four steps of each start, by the names of WeatherBench 2."""
    import xarray

    rolled = [list(roll_out(start, range(3), 4)) for start in starts]
    values = np.array([[[m.values for m in step] for step in each] for each in rolled])
    dims = ("time", "prediction_timedelta", "number", "latitude", "longitude")
    coords = {
        "time": states.times[[states.position(start) for start in starts]],
        "prediction_timedelta": np.arange(1, 5) * np.timedelta64(6, "h").astype("m8[ns]"),
        "latitude": states.latitude,
        "longitude": states.longitude,
    }
    fields = {name: (dims, values[:, :, :, c]) for c, name in enumerate(states.channels)}
    found = xarray.Dataset(fields, coords).transpose("time", "number", ...)
    found.to_zarr(path, zarr_format=2, consolidated=True)


def test_a_domain_is_verified_from_a_roll_out_and_from_its_file_alike(
    weather: Any, tmp_path: Path
) -> None:
    roll_out = exact_roll_out(weather)
    direct = weather.verify(roll_out, tmp_path / "direct", seed=1)
    starts = direct["settings"]["starts"]
    write_forecasts(roll_out, weather.states(), starts, tmp_path / "fc.zarr")
    section = weather.section.verify.model_copy(update={"forecasts": str(tmp_path / "fc.zarr")})
    read = verify_weather(
        weather.states(),
        section,
        roll_out,
        tmp_path / "read",
        layout=weather.layout,
        weights=weather.weights,
        metadata=weather.metadata(),
        seed=1,
    )
    assert read["scores"] == direct["scores"]
    json.dumps(direct, allow_nan=False)  # plain
    assert direct["samples"] == 15 and direct["held_out"] == 5
    assert direct["scores"]["crps.temperature.6h"]["unit"] == "K"
    assert "climatological ensemble" in direct["table"] and "1d" in direct["table"]
    for name in direct["pictures"]:
        assert (tmp_path / "direct" / name).read_bytes()[:4] == b"\x89PNG"
    import xarray

    with xarray.open_dataset(tmp_path / "direct" / "verification" / "scores.nc") as data:
        row = data.crps.sel(system="model", channel="temperature", lead=6)
        assert float(row) == pytest.approx(direct["scores"]["crps.temperature.6h"]["value"])


def test_starts_are_held_out_to_the_end_of_their_forecast(weather: Any) -> None:
    states = weather.states()
    found = held_out(states, 4, 5)
    assert len(found) == 5 and set(found) <= set(states.val.tolist())
    assert {states.after(p, 4) for p in found} <= set(states.val.tolist())
    with pytest.raises(DataError, match="no forecast of 100d"):
        held_out(states, 400, 5)


def test_a_file_that_does_not_fit_the_truth_is_refused_in_words(
    weather: Any, tmp_path: Path
) -> None:
    import xarray

    states, grid = weather.states(), grid_of(weather.layout, weather.metadata())
    path = tmp_path / "fc.nc"
    with pytest.raises(DataError, match="no file of forecasts at .*jitkit forecast RUN --out"):
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
    found = ForecastFile(path, states, "model", grid)
    assert (found.starts, found.leads, found.members) == ([len(states) - 20], [1, 2], 1)
    wrong = {
        "no forecast of pressure; it has temperature": whole.drop_vars("pressure"),
        "its latitude is not that of the truth": whole.assign_coords(latitude=np.arange(6.0)),
        "has none of its 1 initial times": whole.assign_coords(time=states.times[:1] - 10**15),
        "none of its leads is a multiple": whole.assign_coords(
            prediction_timedelta=np.array([1, 2], "m8[h]").astype("m8[ns]")
        ),
        "temperature lies on .* lat, longitude; it should on .* latitude, longitude": (
            whole.rename(latitude="lat")
        ),
        "no dimension prediction_timedelta": whole.isel(prediction_timedelta=0, drop=True),
    }
    for number, (text, data) in enumerate(wrong.items()):
        data.to_netcdf(tmp_path / f"{number}.nc", engine="h5netcdf")
        with pytest.raises(DataError, match=text):
            ForecastFile(tmp_path / f"{number}.nc", states, "model", grid)


def test_dimensions_and_cells_of_a_file_are_found_by_name_and_place(
    weather: Any, tmp_path: Path
) -> None:
    import xarray

    states, grid = weather.states(), grid_of(weather.layout, weather.metadata())
    starts = [states.name(int(p)) for p in states.val[[5, 9]]]
    write_forecasts(exact_roll_out(weather), states, starts, tmp_path / "fc.zarr")
    known = ForecastFile(tmp_path / "fc.zarr", states, "model", grid)
    with xarray.open_zarr(tmp_path / "fc.zarr", decode_timedelta=True) as store:
        data = store.load().drop_encoding()
    turned = {
        "order": data.transpose("longitude", "prediction_timedelta", "time", "latitude", "number"),
        "flipped": data.isel(latitude=slice(None, None, -1)),
        "rolled": data.roll(longitude=3, roll_coords=True),
    }
    start = known.starts[1]
    for name, other in turned.items():
        other.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
        found = ForecastFile(tmp_path / f"{name}.nc", states, "model", grid)
        assert found.members == 3, name
        np.testing.assert_array_equal(found.forecast(start, 2), known.forecast(start, 2), name)


def test_starts_of_a_file_that_are_not_held_out_are_left_out_with_a_note(
    weather: Any, tmp_path: Path
) -> None:
    states, roll_out = weather.states(), exact_roll_out(weather)
    told, held = states.train[[-400, -2]].tolist(), states.val[[0, 30]].tolist()

    def verified(positions: list[int], name: str) -> dict[str, Any]:
        names = [states.name(p) for p in positions]
        write_forecasts(roll_out, states, names, tmp_path / name)
        update = {"forecasts": str(tmp_path / name)}
        section = weather.section.verify.model_copy(update=update)
        return verify_weather(
            states,
            section,
            roll_out,
            tmp_path / "run",
            layout=weather.layout,
            weights=weather.weights,
            metadata=weather.metadata(),
            seed=1,
        )

    found = verified(told + held, "some.zarr")
    assert found["settings"]["starts"] == [states.name(p) for p in held]
    assert "2 of 4 initial times" in found["notes"][0]
    assert found["notes"][0] in evaluation_table(found)
    with pytest.raises(DataError, match="none of the 2 initial times .* is held out"):
        verified(told, "none.zarr")


def test_cells_count_by_area_also_where_the_model_was_not_trained_so(weather: Any) -> None:
    by_area = areas_of(weather.layout, weather.weights, weather.states())
    section = weather.section.model_copy(update={"area_weights": False})
    plain = Weather(section)
    assert plain.weights is None
    np.testing.assert_allclose(
        areas_of(plain.layout, plain.weights, plain.states()) / by_area,
        4 * pi / by_area.sum(),
        rtol=1e-5,
    )
    assert by_area[0, 0] < 0.5 * by_area[3, 0]


def test_maps_name_long_channels_in_two_lines_and_say_which_are_left_out(tmp_path: Path) -> None:
    names = [f"mean_top_net_long_wave_radiation_flux_{i}" for i in range(6)]
    fields = np.random.default_rng(17).normal(size=(2, 6, 6, 8))
    shown = [Shown.of(f"{h}h", fields, fields[0]) for h in (6, 12, 18)]
    place = {"latitude": np.linspace(75, -75, 6), "longitude": np.arange(0, 360, 45.0)}
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecasts, "_save", lambda figure, path: drawn.append(figure))
        draw_maps(
            shown, channels=names, units={}, title="forecast", path=tmp_path / "m.png", **place
        )
    figure = drawn[0]
    figure.canvas.draw()
    assert "2 of 6 channels; not shown: " in figure.get_suptitle()
    boxes = [t.get_window_extent() for ax in figure.axes[::5] if (t := ax.yaxis.label).get_text()]
    assert len(boxes) == 6
    assert all(upper.y0 >= lower.y1 for upper, lower in pairwise(boxes))


def test_a_file_of_another_kind_is_refused_in_one_line(weather: Any, tmp_path: Path) -> None:
    (tmp_path / "fc.txt").write_text("no forecasts")
    with pytest.raises(DataError, match="should be a Zarr store or a NetCDF file") as caught:
        ForecastFile(
            tmp_path / "fc.txt",
            weather.states(),
            "model",
            grid_of(weather.layout, weather.metadata()),
        )
    assert "\n" not in str(caught.value)


def test_land_in_every_row_leaves_a_spectrum_out_and_its_picture_says_so(tmp_path: Path) -> None:
    truths = np.random.default_rng(16).normal(size=(20, 1, 6, 8))
    truths[..., 2] = np.nan  # a column of land
    held = Held(truths, hourly(20), 10)
    against = verify(
        [OtherYears(held, 2, 1, 0)], held, frame(channels=["c0"]), VerificationPlan([12], [1], [""])
    )
    tally = against.tallies["climatological_ensemble"]
    found = Verification(against.plan, against.frame, {"model": tally})
    names = {name.split(".c0")[0] for name in found.rows({})}
    assert "spectrum.latitude" in names and "spectrum.longitude" not in names
    draw_spectra(found, "longitude", np.arange(1, 5), tmp_path / "spectrum.png")
    assert (tmp_path / "spectrum.png").read_bytes()[:4] == b"\x89PNG"


# Maps


def test_equal_earth_keeps_areas_and_has_the_published_ends() -> None:
    up, across = np.meshgrid(np.linspace(-90, 90, 721), np.linspace(-180, 180, 1441), indexing="ij")
    x, y = equal_earth(up, across)
    dx, dy = np.diff(x[:-1], axis=1), np.diff(y[:, :-1], axis=0)
    area = ((dx + np.diff(x[1:], axis=1)) / 2 * dy).sum(axis=1)
    known = 2 * pi * np.diff(np.sin(np.radians(np.linspace(-90, 90, 721))))
    np.testing.assert_allclose(area, known, rtol=2e-3, atol=1e-6)
    assert float(x.max()) == pytest.approx(2.7066, abs=1e-3)
    assert float(y.max()) == pytest.approx(1.3173, abs=1e-3)


def test_a_globe_is_turned_to_greenwich_and_a_part_is_left_as_it_is() -> None:
    globe = Map.of(np.linspace(80, -80, 9), np.arange(0, 360, 45.0))
    assert globe.order[0] == 4 and globe.outline is not None
    part = Map.of(np.array([10.0, 20.0]), np.array([30.0, 40.0, 50.0]))
    assert part.outline is None and part.x[0].tolist() == [25, 35, 45, 55]
