"""Field metrics: known answers, agreement with SciPy, missing cells, copies, caching."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitkit.domain import Metric
from jitkit.errors import DataError
from jitkit.metrics.fields import scores as score_module
from jitkit.metrics.fields import spectra as spectra_module
from jitkit.metrics.fields.scores import field_metrics, scores_by_channel
from jitkit.metrics.fields.spectra import power_spectrum
from jitkit.utils.types import Array

stats = pytest.importorskip("scipy.stats")

GLOBE = [("latitude", "line"), ("longitude", "circle")]
GAUSSIAN = np.sqrt(2 / np.pi)  # mean of |N(0, 1)|


@dataclass
class Item:
    values: Array


def items(values: Array) -> list[Item]:
    """Items from an array (N, C, X1..Xn)."""
    return [Item(v.astype(np.float32)) for v in values]


def scores(a: Array, b: Array, channels: Sequence[str], axes: Any) -> dict[str, float]:
    samples, real = items(a), items(b)
    return {name: score(samples, real) for name, score in field_metrics(channels, axes).items()}


def ar1(rng: np.random.Generator, n: int, size: int, phi: float) -> Array:
    """Rows (n, size) of a stationary autoregressive process of variance 1."""
    x = np.empty((n, size))
    x[:, 0] = rng.standard_normal(n)
    for i in range(1, size):
        x[:, i] = phi * x[:, i - 1] + np.sqrt(1 - phi**2) * rng.standard_normal(n)
    return x


# Marginal distributions


@pytest.mark.parametrize("kind", ["shifted", "wider", "skewed", "outside", "rain", "whole numbers"])
def test_wasserstein_equals_that_of_scipy(kind: str) -> None:
    rng = np.random.default_rng(1)
    b = rng.standard_normal((50, 1, 64)) * 10 + 280
    make: dict[str, Callable[[], Array]] = {
        "shifted": lambda: b[::-1] + 3,
        "wider": lambda: (b[:20] - 280) * 1.7 + 280,
        "skewed": lambda: 270 + rng.gamma(2, 5, (70, 1, 64)),
        "outside": lambda: b * 0 + 1000,
        "rain": lambda: np.where(rng.random(b.shape) < 0.6, 0, rng.gamma(0.3, 400, b.shape)),
        "whole numbers": lambda: rng.integers(270, 290, b.shape),
    }
    a = make[kind]().astype(np.float64)
    if kind == "rain":
        b = np.where(rng.random(b.shape) < 0.7, 0, rng.gamma(0.4, 400, b.shape))
    if kind == "whole numbers":
        b = np.round(b)
    result = scores(a, b, ["t"], [("x", "line")])
    exact = stats.wasserstein_distance(np.float32(a).ravel(), np.float32(b).ravel())
    assert result["wasserstein.t"] == pytest.approx(exact, rel=3e-3, abs=1e-3 * b.std())
    assert result["relative_wasserstein"] == pytest.approx(exact / b.std(), rel=3e-3, abs=1e-3)


def test_wasserstein_of_equal_distributions_is_sampling_noise_as_in_scipy() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 100, 1, 64))
    result = scores(a, b, ["t"], [("x", "line")])["wasserstein.t"]
    assert result == pytest.approx(stats.wasserstein_distance(a.ravel(), b.ravel()), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_wasserstein_scales_with_the_units(seed: int, shift: float, unit: float) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((8, 1, 16)) ** 3, rng.standard_normal((9, 1, 16))
    before = scores(a, b, ["t"], [("x", "line")])
    after = scores(a * unit + shift, b * unit + shift, ["t"], [("x", "line")])
    rounding = 1e-5 * (abs(shift) + unit) / unit
    relative = after["relative_wasserstein"] - before["relative_wasserstein"]
    assert abs(relative) < 1e-3 + 10 * rounding
    assert after["wasserstein.t"] / unit == pytest.approx(
        before["wasserstein.t"], rel=0.01, abs=rounding
    )


def test_spread_is_the_ratio_of_standard_deviations_over_items() -> None:
    rng = np.random.default_rng(3)
    climate = 100 * rng.standard_normal(
        (2, 8, 16)
    )  # the same in every item, so not part of the spread
    a, b = climate + rng.standard_normal((2, 500, 2, 8, 16))
    a[:, 1] = climate[1] + 0.25 * (a[:, 1] - climate[1])
    result = scores(a, b, ["t", "q"], GLOBE)
    assert result["spread.t"] == pytest.approx(1, abs=0.01)
    assert result["spread.q"] == pytest.approx(0.25, abs=0.005)


def test_identical_samples_have_no_spread() -> None:
    rng = np.random.default_rng(4)
    b = rng.standard_normal((50, 1, 8, 16))
    assert scores(np.repeat(b[:1], 30, axis=0), b, ["t"], GLOBE)["spread.t"] < 1e-3


# Spectra


def test_white_noise_has_a_flat_spectrum_equal_to_its_variance() -> None:
    rows = 3 * np.random.default_rng(5).standard_normal((20_000, 32))
    for kind, first in (("circle", 1), ("line", 3)):  # detrending a line reduces the lowest
        power = power_spectrum(rows, kind).mean(axis=0)
        assert power[first:] == pytest.approx(9, rel=0.05), kind


def test_a_sine_has_power_at_its_wavenumber_only() -> None:
    row = 2 + 3 * np.sin(2 * np.pi * 5 * np.arange(64) / 64 + 0.3)
    expected = np.zeros(33)
    expected[5] = 3**2 * 64 / 4
    assert power_spectrum(row, "circle") == pytest.approx(expected, abs=1e-9)


def test_the_spectrum_of_ar1_equals_the_closed_form() -> None:
    phi, size = 0.7, 256
    rows = ar1(np.random.default_rng(6), 4000, size, phi)
    k = np.arange(4, size // 2 + 1)
    exact = (1 - phi**2) / (1 + phi**2 - 2 * phi * np.cos(2 * np.pi * k / size))
    assert power_spectrum(rows, "line").mean(axis=0)[4:] == pytest.approx(exact, rel=0.1)


def test_the_spectrum_of_a_line_is_independent_of_a_linear_trend() -> None:
    rows = np.random.default_rng(7).standard_normal((3, 40))
    assert power_spectrum(rows + 5 * np.arange(40), "line") == pytest.approx(
        power_spectrum(rows, "line"), abs=1e-9
    )


def test_the_spectrum_score_is_the_mean_log_ratio_of_known_spectra() -> None:
    rng = np.random.default_rng(8)
    a, b = (ar1(rng, 3000, 128, phi)[:, None] for phi in (0.0, 0.6))
    k = np.arange(1, 65)
    exact = 0.64 / (1.36 - 1.2 * np.cos(2 * np.pi * k / 128))  # white noise has 1
    ends = np.unique(np.geomspace(1, 65, 17).round().astype(int))
    bands = [exact[i - 1 : j - 1].mean() for i, j in zip(ends, ends[1:], strict=False)]
    result = scores(a, b, ["t"], [("x", "line")])["spectrum.x"]
    assert result == pytest.approx(np.abs(np.log(bands)).mean(), rel=0.05)


@pytest.mark.parametrize("kind", ["line", "circle"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 16])
def test_doubled_values_score_log_4_along_axes_of_any_length(kind: str, size: int) -> None:
    b = np.random.default_rng(9).standard_normal((20, 1, size, 6))
    result = scores(2 * b, b, ["t"], [("y", kind), ("x", "circle")])
    assert result["spectrum.y"] == pytest.approx(np.log(4), rel=1e-4)
    assert result["spectrum.x"] == pytest.approx(np.log(4), rel=1e-4)


def test_an_axis_of_one_cell_has_no_spectrum() -> None:
    b = np.random.default_rng(9).standard_normal((20, 1, 1, 6))
    assert np.isnan(scores(b, b, ["t"], [("y", "line"), ("x", "circle")])["spectrum.y"])


def test_blurring_along_one_axis_changes_the_spectrum_of_that_axis_only() -> None:
    b = np.random.default_rng(10).standard_normal((200, 1, 32, 64))
    a = (b + np.roll(b, 1, axis=-1)) / np.sqrt(2)
    result = scores(a[::-1], b, ["t"], GLOBE)
    assert result["spectrum.latitude"] < 0.1
    assert result["spectrum.longitude"] > 0.5


def test_power_of_real_data_below_rounding_errors_is_ignored() -> None:
    x = 2 * np.pi * np.arange(128) / 128
    rng = np.random.default_rng(11)
    signals = [
        280 + sum(rng.standard_normal() * np.sin(k * x + rng.uniform(0, 6)) for k in (1, 2, 3))
        for _ in range(300)
    ]
    b = np.array(signals)[:, None]
    a = b[::-1] + 1e-5 * rng.standard_normal(b.shape)  # less than the float32 spacing at 280
    assert scores(a, b, ["t"], [("x", "circle")])["spectrum.x"] < 0.1
    a = b[::-1] + 0.1 * rng.standard_normal(b.shape)
    assert scores(a, b, ["t"], [("x", "circle")])["spectrum.x"] < 0.1


# Correlations and patches


def test_correlations_of_channels_are_compared() -> None:
    rng = np.random.default_rng(12)
    a, b = rng.standard_normal((2, 200, 3, 8, 16))
    a[:, 1] = 0.8 * a[:, 0] + 0.6 * a[:, 1]
    result = scores(a, b, ["t", "u", "v"], GLOBE)
    assert result["correlation_error_worst"] == pytest.approx(0.8, abs=0.02)
    assert result["correlation_error"] == pytest.approx(0.8 / 3, abs=0.02)


def test_correlations_use_cells_observed_in_both_channels() -> None:
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal((2, 100, 2, 8, 16))
    a[:, 1] = -a[:, 0]
    a[:, 0, :3], b[:, 0, :3] = np.nan, np.nan
    a[:, 1, 5:], b[:, 1, 5:] = np.nan, np.nan
    assert scores(a, b, ["t", "u"], GLOBE)["correlation_error"] == pytest.approx(1, abs=0.03)
    a[:, 0, :5], b[:, 0, :5] = np.nan, np.nan
    assert np.isnan(scores(a, b, ["t", "u"], GLOBE)["correlation_error"])


@pytest.mark.parametrize(("shape", "kinds"), [((64,), "l"), ((16, 24), "lc"), ((8, 8, 8), "lll")])
def test_sliced_wasserstein_of_scaled_noise_equals_the_closed_form(
    shape: tuple[int, ...], kinds: str
) -> None:
    names = {"l": "line", "c": "circle"}
    axes = [(f"x{i}", names[k]) for i, k in enumerate(kinds)]
    a, b = np.random.default_rng(14).standard_normal((2, 400, 2, *shape))
    result = scores(1.5 * a, b, ["t", "q"], axes)["sliced_wasserstein"]
    assert result == pytest.approx(0.5 * GAUSSIAN, rel=0.03)  # |s - r| E|N(0, 1)| in any direction


def test_sliced_wasserstein_of_correlated_gaussians_equals_the_closed_form() -> None:
    rng = np.random.default_rng(15)
    a, b = (ar1(rng, 6000, 16, phi)[:, None] for phi in (0.0, 0.9))  # equal marginals; one patch
    result = scores(a, b, ["t"], [("x", "line")])
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    d = rng.standard_normal((100_000, 16))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    std = np.sqrt(np.einsum("ni,ij,nj->n", d, covariance, d))
    exact = np.abs(std - 1).mean() * GAUSSIAN
    assert result["relative_wasserstein"] < 0.03
    assert result["sliced_wasserstein"] == pytest.approx(exact, rel=0.15)  # 64 directions


def test_patches_shrink_where_missing_cells_leave_no_room() -> None:
    rng = np.random.default_rng(32)
    a, b = rng.standard_normal((2, 200, 1, 16, 16))
    a[:, :, ::3], b[:, :, ::3] = np.nan, np.nan  # two cells between missing rows
    result = scores(1.5 * a, b, ["t"], [("y", "line"), ("x", "line")])
    assert result["sliced_wasserstein"] == pytest.approx(0.5 * GAUSSIAN, rel=0.03)


# Copies


def test_copies_are_distinguished_from_new_items() -> None:
    rng = np.random.default_rng(16)
    real, new = rng.standard_normal((2, 300, 3, 8, 16)) * 5 + 280
    independent = scores(new, real, ["t", "u", "v"], GLOBE)
    assert independent["nearest_ratio"] == pytest.approx(1, abs=0.02)
    assert independent["copied_share"] == 0
    copies = scores(real[rng.integers(300, size=100)], real, ["t", "u", "v"], GLOBE)
    assert copies["nearest_ratio"] < 1e-6
    assert copies["copied_share"] == 1
    noisy = real[:100] + 0.1 * rng.standard_normal((100, 3, 8, 16))
    mixed = scores(np.concatenate([noisy[:40], new[:60]]), real, ["t", "u", "v"], GLOBE)
    assert mixed["nearest_ratio"] == pytest.approx(1, abs=0.02)  # a median
    assert mixed["copied_share"] == pytest.approx(0.4)


def test_a_copy_is_detected_anywhere_in_a_long_reference() -> None:
    rng = np.random.default_rng(17)
    real = rng.standard_normal((3000, 1, 32))
    result = scores(real[[1, 1234, 2998]], real, ["t"], [("x", "line")])
    assert result["copied_share"] == 1


def test_copies_are_detected_under_varying_masks() -> None:
    rng = np.random.default_rng(18)
    real, new = rng.standard_normal((2, 100, 2, 12, 12))
    holes = rng.random(real.shape) < 0.3
    copies = np.where(holes, np.nan, real)
    axes = [("y", "line"), ("x", "line")]
    assert scores(copies, real, ["t", "u"], axes)["copied_share"] == 1
    masked = np.where(rng.random(real.shape) < 0.3, np.nan, real)
    assert scores(copies, masked, ["t", "u"], axes)["copied_share"] == 1
    result = scores(np.where(holes, np.nan, new), masked, ["t", "u"], axes)
    assert result["copied_share"] == 0
    assert result["nearest_ratio"] == pytest.approx(1, abs=0.05)


# Missing cells


def test_a_static_mask_does_not_change_the_scores() -> None:
    rng = np.random.default_rng(19)
    a, b = rng.standard_normal((2, 200, 2, 16, 32))
    a, b = a * 1.5, b
    a[:, :, 4:9], b[:, :, 4:9] = np.nan, np.nan  # rows along longitude are complete or missing
    result = scores(a, b, ["t", "u"], GLOBE)
    assert result["wasserstein.t"] == pytest.approx(0.5 * GAUSSIAN, rel=0.05)
    assert result["sliced_wasserstein"] == pytest.approx(0.5 * GAUSSIAN, rel=0.05)
    assert result["spread.u"] == pytest.approx(1.5, rel=0.02)
    assert result["spectrum.longitude.t"] == pytest.approx(2 * np.log(1.5), rel=0.05)
    assert np.isnan(result["spectrum.latitude.t"])  # no row along latitude is complete
    assert result["missing_error"] == 0


def test_the_rows_of_a_spectrum_are_counted() -> None:
    rng = np.random.default_rng(20)
    a, b = rng.standard_normal((2, 10, 1, 16, 32))
    a[:, :, 4:9], b[:, :, 4:9] = np.nan, np.nan
    a[0] = np.nan
    result = scores_by_channel(items(a), items(b), ["t"], GLOBE)["t"]
    assert result["rows.longitude"] == 9 * 11
    assert result["rows.latitude"] == 0


def test_spectra_use_complete_rows_only() -> None:
    rng = np.random.default_rng(21)
    a, b = (ar1(rng, 2000, 24, 0.9)[:, None] for _ in range(2))
    a[rng.random(a.shape) < 0.05] = np.nan  # 0.3 of the rows of 24 cells have no gap
    result = scores(a, b, ["t"], [("x", "line")])
    assert result["spectrum.x"] < 0.1
    assert 0.02 < result["missing_error"] < 0.08


def test_non_finite_values_count_as_missing() -> None:
    rng = np.random.default_rng(22)
    a, b = rng.standard_normal((2, 50, 2, 24, 16))
    a[:, 0, 0], a[:, 1, 1] = np.inf, -np.inf
    result = scores(a, b, ["t", "u"], GLOBE)
    assert all(np.isfinite(value) for name, value in result.items() if "latitude" not in name)
    assert result["missing_error"] == pytest.approx(1 / 24, rel=1e-3)


def test_diverged_samples_are_scored_without_a_warning() -> None:
    b = np.random.default_rng(23).standard_normal((20, 2, 8, 16))
    far = scores(b * 1e30, b, ["t", "u"], GLOBE)
    assert far["relative_wasserstein_mean"] > 1e5
    nothing = scores(b * np.nan, b, ["t", "u"], GLOBE)
    assert all(np.isnan(value) for name, value in nothing.items() if name != "missing_error")
    assert nothing["missing_error"] == 1


def test_a_channel_without_data_or_variance_does_not_affect_the_others() -> None:
    a, b = np.random.default_rng(24).standard_normal((2, 20, 3, 8, 16))
    a[:, 1], b[:, 1] = np.nan, np.nan
    a[:, 2], b[:, 2] = 273.25, 273.15
    result = scores_by_channel(items(a), items(b), ["t", "empty", "constant"], GLOBE)
    assert np.isnan([v for k, v in result["empty"].items() if not k.startswith("rows")]).all()
    assert result["constant"]["wasserstein"] == pytest.approx(0.1, abs=1e-4)
    assert np.isnan(result["constant"]["relative_wasserstein"])
    listed = scores(a, b, ["t", "empty", "constant"], GLOBE)
    assert listed["relative_wasserstein_mean"] == result["t"]["relative_wasserstein"]


# Names of the scores


def test_the_list_of_scores_stays_short_for_many_channels() -> None:
    one = field_metrics(["t"], GLOBE)
    assert list(one) == [
        "wasserstein.t",
        "relative_wasserstein",
        "spread.t",
        "spectrum.latitude",
        "spectrum.longitude",
        "sliced_wasserstein",
        "missing_error",
        "nearest_ratio",
        "copied_share",
    ]
    assert "spectrum.longitude.c3" in field_metrics([f"c{i}" for i in range(4)], GLOBE)
    assert len(field_metrics([f"c{i}" for i in range(8)], GLOBE)) < 30
    many = field_metrics(
        [f"c{i}" for i in range(200)], [*GLOBE, ("level", "line"), ("time", "line")]
    )
    assert len(many) < 20
    assert not any("c1" in name for name in many)
    assert {"spectrum.time_mean", "spectrum.time_worst", "spread_error_worst"} <= set(many)


def test_the_worst_score_is_that_of_the_worst_channel() -> None:
    a, b = np.random.default_rng(25).standard_normal((2, 40, 12, 6, 8))
    a[:, 7] *= 3
    channels = [f"c{i}" for i in range(12)]
    listed = scores(a, b, channels, GLOBE)
    result = scores_by_channel(items(a), items(b), channels, GLOBE)
    worst = max(result, key=lambda channel: result[channel]["relative_wasserstein"])
    assert worst == "c7"
    assert listed["relative_wasserstein_worst"] == result["c7"]["relative_wasserstein"]
    assert listed["spread_error_worst"] == pytest.approx(np.log(3), abs=0.1)
    assert listed["spectrum.longitude_worst"] == pytest.approx(np.log(9), abs=0.2)


def test_real_items_against_themselves_have_ideal_scores() -> None:
    b = np.random.default_rng(26).standard_normal((30, 2, 4, 5, 6))
    axes = [("z", "line"), ("y", "line"), ("x", "circle")]
    for name, value in scores(b, b, ["t", "u"], axes).items():
        ideal = 1.0 if name.startswith("spread.") or name == "copied_share" else 0.0
        assert value == pytest.approx(ideal, abs=1e-5), name


# Caching of summaries


def cached_and_fresh(a: list[Item], b: list[Item], score: Metric) -> tuple[float, float]:
    """A score with cached summaries, and one without."""
    fresh = field_metrics(["t"], [("x", "line")])["wasserstein.t"]
    return score(a, b), fresh(a, b)


def test_a_score_does_not_depend_on_earlier_scores() -> None:
    rng = np.random.default_rng(27)
    a, b = items(rng.standard_normal((40, 1, 16))), items(rng.standard_normal((50, 1, 16)))
    score = field_metrics(["t"], [("x", "line")])["wasserstein.t"]
    resample = [a[i] for i in rng.integers(40, size=40)]
    for samples, real in ((resample, b), (a, b), (b, a), (a[:7], b[:20]), (a, b)):
        result, fresh = cached_and_fresh(samples, real, score)
        assert result == pytest.approx(fresh, rel=1e-5)
    b[3] = Item(b[3].values + 100)  # in the same list
    result, fresh = cached_and_fresh(a, b, score)
    assert result == pytest.approx(fresh, rel=1e-5)


def test_a_resample_is_scored_like_a_list_with_repeated_items() -> None:
    rng = np.random.default_rng(28)
    a, b = items(rng.standard_normal((40, 1, 16))), items(rng.standard_normal((50, 1, 16)))
    indices = rng.integers(40, size=40)
    for name, score in field_metrics(["t"], [("x", "line")]).items():
        repeated = score([a[i] for i in indices], b)
        assert repeated == pytest.approx(score([Item(a[i].values.copy()) for i in indices], b)), (
            name
        )


def test_the_number_of_cached_summaries_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "MAX_CACHED_ITEMS", 50)
    rng = np.random.default_rng(29)
    b = items(rng.standard_normal((50, 1, 16)))
    score = field_metrics(["t"], [("x", "line")])["wasserstein.t"]
    for _ in range(3):
        result, fresh = cached_and_fresh(items(rng.standard_normal((40, 1, 16))), b, score)
        assert result == pytest.approx(fresh, rel=1e-5)
    assert len(score.func.__self__._cached._items) == 40  # type: ignore[attr-defined]


def test_lazily_read_items_are_scored() -> None:
    class LazyItems(Sequence[Item]):
        def __init__(self, values: Array) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def __getitem__(self, i: Any) -> Any:
            if i >= len(self):
                raise IndexError(i)
            return Item(self.values[i])

    a, b = np.random.default_rng(30).standard_normal((2, 20, 1, 16))
    score = field_metrics(["t"], [("x", "line")])["wasserstein.t"]
    assert score(LazyItems(a), LazyItems(b)) == pytest.approx(score(items(a), items(b)), rel=1e-5)


def test_resamples_do_not_read_items_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    original = spectra_module.power_spectrum

    def counted(rows: Array, kind: str) -> Array:
        nonlocal calls
        calls += 1
        return original(rows, kind)

    monkeypatch.setattr(spectra_module, "power_spectrum", counted)
    rng = np.random.default_rng(31)
    a, b = items(rng.standard_normal((30, 2, 6, 8))), items(rng.standard_normal((40, 2, 6, 8)))
    for score in field_metrics(["t", "u"], GLOBE).values():
        score(a, b)
        for _ in range(40):
            score([a[i] for i in rng.integers(30, size=30)], b)
    assert calls == 2 * (30 + 40)  # axes times items


# Arbitrary input


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_arrays_have_scores(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 4))
    grid = [data.draw(st.integers(1, 6)) for _ in range(n)]
    num_channels = data.draw(st.integers(1, 11))
    num = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    unit = data.draw(st.sampled_from([0.0, 1e-30, 1.0, 1e18]))
    values = [unit * (300 + rng.standard_normal((k, num_channels, *grid))) for k in num]
    for side in values:
        side[rng.random(side.shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = np.nan
        side[rng.random(side.shape) < data.draw(st.sampled_from([0.0, 0.3]))] = np.inf
    axes = [(f"x{i}", data.draw(st.sampled_from(["line", "circle", "set"]))) for i in range(n)]
    channels = [f"c{i}" for i in range(num_channels)]
    for name, value in scores(values[0], values[1], channels, axes).items():
        assert isinstance(value, float), name
        assert not np.isinf(value) and not value < 0, name


# Errors


def test_items_of_another_shape_are_refused() -> None:
    b = np.zeros((3, 2, 4, 6))
    with pytest.raises(DataError, match=r"\(2, 4, 6\) are not 3 channels on 2 axes .*latitude"):
        scores(b, b, ["t", "u", "v"], GLOBE)
    with pytest.raises(DataError, match=r"\(2, 4, 6\) are not 2 channels on 1 axes"):
        scores(b, b, ["t", "u"], GLOBE[:1])
    with pytest.raises(DataError, match=r"item 0 has values of shape \(2, 4, 7\).*\(2, 4, 6\)"):
        scores(np.zeros((3, 2, 4, 7)), b, ["t", "u"], GLOBE)


def test_empty_lists_are_refused() -> None:
    score = field_metrics(["t"], [("x", "line")])["wasserstein.t"]
    some = items(np.zeros((3, 1, 8)))
    with pytest.raises(DataError, match="no real items"):
        score(some, [])
    with pytest.raises(DataError, match="no samples"):
        score([], some)


def test_importing_the_scores_loads_no_heavy_library() -> None:
    code = (
        "import sys, jitkit.metrics.fields.scores;"
        "print([m for m in ('torch', 'scipy', 'xarray', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
