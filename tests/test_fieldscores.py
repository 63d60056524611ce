"""Scores of arrays: known answers, agreement with scipy, missing cells, copies, and speed."""

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
from jitkit.metrics.fields import scores as fieldscores
from jitkit.metrics.fields import spectra as fieldspectra
from jitkit.metrics.fields.scores import by_channel, measures
from jitkit.metrics.fields.spectra import power_spectrum
from jitkit.utils.types import Array

stats = pytest.importorskip("scipy.stats")

GLOBE = [("latitude", "line"), ("longitude", "circle")]
GAUSSIAN = np.sqrt(2 / np.pi)  # mean of |N(0, 1)|


@dataclass
class Item:
    values: Array


def items(values: Array) -> list[Item]:
    """Items of an array (N, C, X1..Xn)."""
    return [Item(v.astype(np.float32)) for v in values]


def scores(a: Array, b: Array, channels: Sequence[str], axes: Any) -> dict[str, float]:
    samples, real = items(a), items(b)
    return {name: score(samples, real) for name, score in measures(channels, axes).items()}


def ar1(rng: np.random.Generator, n: int, size: int, phi: float) -> Array:
    """Rows (n, size) of a stationary autoregressive process of variance 1."""
    x = np.empty((n, size))
    x[:, 0] = rng.standard_normal(n)
    for i in range(1, size):
        x[:, i] = phi * x[:, i - 1] + np.sqrt(1 - phi**2) * rng.standard_normal(n)
    return x


# Marginal distributions


@pytest.mark.parametrize("kind", ["shifted", "wider", "skewed", "outside", "rain", "whole numbers"])
def test_wasserstein_is_that_of_scipy(kind: str) -> None:
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
    found = scores(a, b, ["t"], [("x", "line")])
    exact = stats.wasserstein_distance(np.float32(a).ravel(), np.float32(b).ravel())
    assert found["wasserstein.t"] == pytest.approx(exact, rel=3e-3, abs=1e-3 * b.std())
    assert found["relative_wasserstein"] == pytest.approx(exact / b.std(), rel=3e-3, abs=1e-3)


def test_wasserstein_of_equal_distributions_is_the_noise_that_scipy_finds() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 100, 1, 64))
    found = scores(a, b, ["t"], [("x", "line")])["wasserstein.t"]
    assert found == pytest.approx(stats.wasserstein_distance(a.ravel(), b.ravel()), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_wasserstein_moves_with_the_units(seed: int, shift: float, unit: float) -> None:
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
    climate = 100 * rng.standard_normal((2, 8, 16))  # in every item, and no part of the spread
    a, b = climate + rng.standard_normal((2, 500, 2, 8, 16))
    a[:, 1] = climate[1] + 0.25 * (a[:, 1] - climate[1])
    found = scores(a, b, ["t", "q"], GLOBE)
    assert found["spread.t"] == pytest.approx(1, abs=0.01)
    assert found["spread.q"] == pytest.approx(0.25, abs=0.005)


def test_a_model_that_always_says_the_same_has_no_spread() -> None:
    rng = np.random.default_rng(4)
    b = rng.standard_normal((50, 1, 8, 16))
    assert scores(np.repeat(b[:1], 30, axis=0), b, ["t"], GLOBE)["spread.t"] < 1e-3


# Spectra


def test_white_noise_has_a_flat_spectrum_of_its_variance() -> None:
    rows = 3 * np.random.default_rng(5).standard_normal((20_000, 32))
    for kind, first in (("circle", 1), ("line", 3)):  # a line's trend took from the lowest
        power = power_spectrum(rows, kind).mean(axis=0)
        assert power[first:] == pytest.approx(9, rel=0.05), kind


def test_a_sine_has_its_power_at_its_own_wavenumber() -> None:
    row = 2 + 3 * np.sin(2 * np.pi * 5 * np.arange(64) / 64 + 0.3)
    expected = np.zeros(33)
    expected[5] = 3**2 * 64 / 4
    assert power_spectrum(row, "circle") == pytest.approx(expected, abs=1e-9)


def test_the_spectrum_of_ar1_is_its_own() -> None:
    phi, size = 0.7, 256
    rows = ar1(np.random.default_rng(6), 4000, size, phi)
    k = np.arange(4, size // 2 + 1)
    exact = (1 - phi**2) / (1 + phi**2 - 2 * phi * np.cos(2 * np.pi * k / size))
    assert power_spectrum(rows, "line").mean(axis=0)[4:] == pytest.approx(exact, rel=0.1)


def test_a_trend_leaves_no_trace_in_the_spectrum_of_a_line() -> None:
    rows = np.random.default_rng(7).standard_normal((3, 40))
    assert power_spectrum(rows + 5 * np.arange(40), "line") == pytest.approx(
        power_spectrum(rows, "line"), abs=1e-9
    )


def test_a_spectrum_score_is_the_mean_log_ratio_of_known_spectra() -> None:
    rng = np.random.default_rng(8)
    a, b = (ar1(rng, 3000, 128, phi)[:, None] for phi in (0.0, 0.6))
    k = np.arange(1, 65)
    exact = 0.64 / (1.36 - 1.2 * np.cos(2 * np.pi * k / 128))  # white noise has 1
    ends = np.unique(np.geomspace(1, 65, 17).round().astype(int))
    bands = [exact[i - 1 : j - 1].mean() for i, j in zip(ends, ends[1:], strict=False)]
    found = scores(a, b, ["t"], [("x", "line")])["spectrum.x"]
    assert found == pytest.approx(np.abs(np.log(bands)).mean(), rel=0.05)


@pytest.mark.parametrize("kind", ["line", "circle"])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 16])
def test_doubled_values_are_log_4_apart_along_axes_of_any_length(kind: str, size: int) -> None:
    b = np.random.default_rng(9).standard_normal((20, 1, size, 6))
    found = scores(2 * b, b, ["t"], [("y", kind), ("x", "circle")])
    assert found["spectrum.y"] == pytest.approx(np.log(4), rel=1e-4)
    assert found["spectrum.x"] == pytest.approx(np.log(4), rel=1e-4)


def test_an_axis_of_one_cell_has_no_spectrum() -> None:
    b = np.random.default_rng(9).standard_normal((20, 1, 1, 6))
    assert np.isnan(scores(b, b, ["t"], [("y", "line"), ("x", "circle")])["spectrum.y"])


def test_blurring_along_one_axis_is_seen_along_that_axis() -> None:
    b = np.random.default_rng(10).standard_normal((200, 1, 32, 64))
    a = (b + np.roll(b, 1, axis=-1)) / np.sqrt(2)
    found = scores(a[::-1], b, ["t"], GLOBE)
    assert found["spectrum.latitude"] < 0.1
    assert found["spectrum.longitude"] > 0.5


def test_power_that_real_data_have_from_rounding_alone_is_not_resolved() -> None:
    x = 2 * np.pi * np.arange(128) / 128
    rng = np.random.default_rng(11)
    waves = [
        280 + sum(rng.standard_normal() * np.sin(k * x + rng.uniform(0, 6)) for k in (1, 2, 3))
        for _ in range(300)
    ]
    b = np.array(waves)[:, None]
    a = b[::-1] + 1e-5 * rng.standard_normal(b.shape)  # less than a step of float32 at 280
    assert scores(a, b, ["t"], [("x", "circle")])["spectrum.x"] < 0.1
    a = b[::-1] + 0.1 * rng.standard_normal(b.shape)
    assert scores(a, b, ["t"], [("x", "circle")])["spectrum.x"] < 0.1


# Channels together, patches


def test_correlations_of_channels_are_compared() -> None:
    rng = np.random.default_rng(12)
    a, b = rng.standard_normal((2, 200, 3, 8, 16))
    a[:, 1] = 0.8 * a[:, 0] + 0.6 * a[:, 1]
    found = scores(a, b, ["t", "u", "v"], GLOBE)
    assert found["correlation_error_worst"] == pytest.approx(0.8, abs=0.02)
    assert found["correlation_error"] == pytest.approx(0.8 / 3, abs=0.02)


def test_correlations_with_missing_cells_are_those_of_the_cells_both_know() -> None:
    rng = np.random.default_rng(13)
    a, b = rng.standard_normal((2, 100, 2, 8, 16))
    a[:, 1] = -a[:, 0]
    a[:, 0, :3], b[:, 0, :3] = np.nan, np.nan
    a[:, 1, 5:], b[:, 1, 5:] = np.nan, np.nan
    assert scores(a, b, ["t", "u"], GLOBE)["correlation_error"] == pytest.approx(1, abs=0.03)
    a[:, 0, :5], b[:, 0, :5] = np.nan, np.nan
    assert np.isnan(scores(a, b, ["t", "u"], GLOBE)["correlation_error"])


@pytest.mark.parametrize(("shape", "kinds"), [((64,), "l"), ((16, 24), "lc"), ((8, 8, 8), "lll")])
def test_sliced_wasserstein_of_scaled_noise_is_known(shape: tuple[int, ...], kinds: str) -> None:
    names = {"l": "line", "c": "circle"}
    axes = [(f"x{i}", names[k]) for i, k in enumerate(kinds)]
    a, b = np.random.default_rng(14).standard_normal((2, 400, 2, *shape))
    found = scores(1.5 * a, b, ["t", "q"], axes)["sliced_wasserstein"]
    assert found == pytest.approx(0.5 * GAUSSIAN, rel=0.03)  # |s - r| E|N(0, 1)| in any direction


def test_sliced_wasserstein_of_correlated_gaussians_is_known() -> None:
    rng = np.random.default_rng(15)
    a, b = (ar1(rng, 6000, 16, phi)[:, None] for phi in (0.0, 0.9))  # equal marginals; one patch
    found = scores(a, b, ["t"], [("x", "line")])
    covariance = 0.9 ** np.abs(np.subtract.outer(np.arange(16), np.arange(16)))
    d = rng.standard_normal((100_000, 16))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    std = np.sqrt(np.einsum("ni,ij,nj->n", d, covariance, d))
    exact = np.abs(std - 1).mean() * GAUSSIAN
    assert found["relative_wasserstein"] < 0.03
    assert found["sliced_wasserstein"] == pytest.approx(exact, rel=0.15)  # 64 directions


def test_patches_shrink_where_missing_cells_leave_no_room() -> None:
    rng = np.random.default_rng(32)
    a, b = rng.standard_normal((2, 200, 1, 16, 16))
    a[:, :, ::3], b[:, :, ::3] = np.nan, np.nan  # two cells between rows that are missing
    found = scores(1.5 * a, b, ["t"], [("y", "line"), ("x", "line")])
    assert found["sliced_wasserstein"] == pytest.approx(0.5 * GAUSSIAN, rel=0.03)


# Copies


def test_copies_are_told_from_new_items() -> None:
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


def test_a_copy_is_found_wherever_it_stands_in_a_long_reference() -> None:
    rng = np.random.default_rng(17)
    real = rng.standard_normal((3000, 1, 32))
    found = scores(real[[1, 1234, 2998]], real, ["t"], [("x", "line")])
    assert found["copied_share"] == 1


def test_copies_are_found_under_masks_that_move() -> None:
    rng = np.random.default_rng(18)
    real, new = rng.standard_normal((2, 100, 2, 12, 12))
    holes = rng.random(real.shape) < 0.3
    copies = np.where(holes, np.nan, real)
    axes = [("y", "line"), ("x", "line")]
    assert scores(copies, real, ["t", "u"], axes)["copied_share"] == 1
    masked = np.where(rng.random(real.shape) < 0.3, np.nan, real)
    assert scores(copies, masked, ["t", "u"], axes)["copied_share"] == 1
    found = scores(np.where(holes, np.nan, new), masked, ["t", "u"], axes)
    assert found["copied_share"] == 0
    assert found["nearest_ratio"] == pytest.approx(1, abs=0.05)


# Missing cells


def test_a_static_mask_changes_no_score() -> None:
    rng = np.random.default_rng(19)
    a, b = rng.standard_normal((2, 200, 2, 16, 32))
    a, b = a * 1.5, b
    a[:, :, 4:9], b[:, :, 4:9] = np.nan, np.nan  # rows along longitude are whole or gone
    found = scores(a, b, ["t", "u"], GLOBE)
    assert found["wasserstein.t"] == pytest.approx(0.5 * GAUSSIAN, rel=0.05)
    assert found["sliced_wasserstein"] == pytest.approx(0.5 * GAUSSIAN, rel=0.05)
    assert found["spread.u"] == pytest.approx(1.5, rel=0.02)
    assert found["spectrum.longitude.t"] == pytest.approx(2 * np.log(1.5), rel=0.05)
    assert np.isnan(found["spectrum.latitude.t"])  # no row along latitude is whole
    assert found["missing_error"] == 0


def test_the_rows_of_a_spectrum_are_counted() -> None:
    rng = np.random.default_rng(20)
    a, b = rng.standard_normal((2, 10, 1, 16, 32))
    a[:, :, 4:9], b[:, :, 4:9] = np.nan, np.nan
    a[0] = np.nan
    found = by_channel(items(a), items(b), ["t"], GLOBE)["t"]
    assert found["rows.longitude"] == 9 * 11
    assert found["rows.latitude"] == 0


def test_gaps_are_not_filled_in_for_spectra() -> None:
    rng = np.random.default_rng(21)
    a, b = (ar1(rng, 2000, 24, 0.9)[:, None] for _ in range(2))
    a[rng.random(a.shape) < 0.05] = np.nan  # of 24 cells, 0.3 of rows have no gap
    found = scores(a, b, ["t"], [("x", "line")])
    assert found["spectrum.x"] < 0.1
    assert 0.02 < found["missing_error"] < 0.08


def test_what_is_not_finite_counts_as_missing() -> None:
    rng = np.random.default_rng(22)
    a, b = rng.standard_normal((2, 50, 2, 24, 16))
    a[:, 0, 0], a[:, 1, 1] = np.inf, -np.inf
    found = scores(a, b, ["t", "u"], GLOBE)
    assert all(np.isfinite(value) for name, value in found.items() if "latitude" not in name)
    assert found["missing_error"] == pytest.approx(1 / 24, rel=1e-3)


def test_a_model_that_diverged_is_scored_without_a_warning() -> None:
    b = np.random.default_rng(23).standard_normal((20, 2, 8, 16))
    far = scores(b * 1e30, b, ["t", "u"], GLOBE)
    assert far["relative_wasserstein_mean"] > 1e5
    nothing = scores(b * np.nan, b, ["t", "u"], GLOBE)
    assert all(np.isnan(value) for name, value in nothing.items() if name != "missing_error")
    assert nothing["missing_error"] == 1


def test_a_channel_without_data_or_variance_leaves_the_others_their_scores() -> None:
    a, b = np.random.default_rng(24).standard_normal((2, 20, 3, 8, 16))
    a[:, 1], b[:, 1] = np.nan, np.nan
    a[:, 2], b[:, 2] = 273.25, 273.15
    found = by_channel(items(a), items(b), ["t", "empty", "constant"], GLOBE)
    assert np.isnan([v for k, v in found["empty"].items() if not k.startswith("rows")]).all()
    assert found["constant"]["wasserstein"] == pytest.approx(0.1, abs=1e-4)
    assert np.isnan(found["constant"]["relative_wasserstein"])
    listed = scores(a, b, ["t", "empty", "constant"], GLOBE)
    assert listed["relative_wasserstein_mean"] == found["t"]["relative_wasserstein"]


# The list


def test_the_list_is_readable_for_few_and_for_many_channels() -> None:
    one = measures(["t"], GLOBE)
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
    assert "spectrum.longitude.c3" in measures([f"c{i}" for i in range(4)], GLOBE)
    assert len(measures([f"c{i}" for i in range(8)], GLOBE)) < 30
    many = measures([f"c{i}" for i in range(200)], [*GLOBE, ("level", "line"), ("time", "line")])
    assert len(many) < 20
    assert not any("c1" in name for name in many)
    assert {"spectrum.time_mean", "spectrum.time_worst", "spread_error_worst"} <= set(many)


def test_the_worst_of_many_channels_is_the_one_that_by_channel_names() -> None:
    a, b = np.random.default_rng(25).standard_normal((2, 40, 12, 6, 8))
    a[:, 7] *= 3
    channels = [f"c{i}" for i in range(12)]
    listed = scores(a, b, channels, GLOBE)
    found = by_channel(items(a), items(b), channels, GLOBE)
    worst = max(found, key=lambda channel: found[channel]["relative_wasserstein"])
    assert worst == "c7"
    assert listed["relative_wasserstein_worst"] == found["c7"]["relative_wasserstein"]
    assert listed["spread_error_worst"] == pytest.approx(np.log(3), abs=0.1)
    assert listed["spectrum.longitude_worst"] == pytest.approx(np.log(9), abs=0.2)


def test_real_items_against_themselves_are_without_fault() -> None:
    b = np.random.default_rng(26).standard_normal((30, 2, 4, 5, 6))
    axes = [("z", "line"), ("y", "line"), ("x", "circle")]
    for name, value in scores(b, b, ["t", "u"], axes).items():
        right = 1.0 if name.startswith("spread.") or name == "copied_share" else 0.0
        assert value == pytest.approx(right, abs=1e-5), name


# What is remembered


def both(a: list[Item], b: list[Item], score: Metric) -> tuple[float, float]:
    """A score with what was remembered, and one that starts anew."""
    anew = measures(["t"], [("x", "line")])["wasserstein.t"]
    return score(a, b), anew(a, b)


def test_a_score_does_not_depend_on_what_was_scored_before() -> None:
    rng = np.random.default_rng(27)
    a, b = items(rng.standard_normal((40, 1, 16))), items(rng.standard_normal((50, 1, 16)))
    score = measures(["t"], [("x", "line")])["wasserstein.t"]
    resample = [a[i] for i in rng.integers(40, size=40)]
    for samples, real in ((resample, b), (a, b), (b, a), (a[:7], b[:20]), (a, b)):
        found, anew = both(samples, real, score)
        assert found == pytest.approx(anew, rel=1e-5)
    b[3] = Item(b[3].values + 100)  # in the same list
    found, anew = both(a, b, score)
    assert found == pytest.approx(anew, rel=1e-5)


def test_a_resample_is_scored_as_a_set_in_which_items_repeat() -> None:
    rng = np.random.default_rng(28)
    a, b = items(rng.standard_normal((40, 1, 16))), items(rng.standard_normal((50, 1, 16)))
    chosen = rng.integers(40, size=40)
    for name, score in measures(["t"], [("x", "line")]).items():
        repeated = score([a[i] for i in chosen], b)
        assert repeated == pytest.approx(score([Item(a[i].values.copy()) for i in chosen], b)), name


def test_no_more_summaries_are_kept_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fieldscores, "REMEMBERED", 50)
    rng = np.random.default_rng(29)
    b = items(rng.standard_normal((50, 1, 16)))
    score = measures(["t"], [("x", "line")])["wasserstein.t"]
    for _ in range(3):
        found, anew = both(items(rng.standard_normal((40, 1, 16))), b, score)
        assert found == pytest.approx(anew, rel=1e-5)
    assert len(score.func.__self__._found._held) == 40  # type: ignore[attr-defined]


def test_items_that_are_read_when_asked_for_are_scored_too() -> None:
    class Read(Sequence[Item]):
        def __init__(self, values: Array) -> None:
            self.values = values

        def __len__(self) -> int:
            return len(self.values)

        def __getitem__(self, i: Any) -> Any:
            if i >= len(self):
                raise IndexError(i)
            return Item(self.values[i])

    a, b = np.random.default_rng(30).standard_normal((2, 20, 1, 16))
    score = measures(["t"], [("x", "line")])["wasserstein.t"]
    assert score(Read(a), Read(b)) == pytest.approx(score(items(a), items(b)), rel=1e-5)


def test_forty_resamples_look_at_no_item_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    honest = fieldspectra.power_spectrum

    def counted(rows: Array, kind: str) -> Array:
        nonlocal looks
        looks += 1
        return honest(rows, kind)

    monkeypatch.setattr(fieldspectra, "power_spectrum", counted)
    rng = np.random.default_rng(31)
    a, b = items(rng.standard_normal((30, 2, 6, 8))), items(rng.standard_normal((40, 2, 6, 8)))
    for score in measures(["t", "u"], GLOBE).values():
        score(a, b)
        for _ in range(40):
            score([a[i] for i in rng.integers(30, size=30)], b)
    assert looks == 2 * (30 + 40)  # axes times items


# Odd input


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


# Mistakes


def test_items_of_another_shape_are_refused() -> None:
    b = np.zeros((3, 2, 4, 6))
    with pytest.raises(DataError, match=r"\(2, 4, 6\) are not 3 channels on 2 axes .*latitude"):
        scores(b, b, ["t", "u", "v"], GLOBE)
    with pytest.raises(DataError, match=r"\(2, 4, 6\) are not 2 channels on 1 axes"):
        scores(b, b, ["t", "u"], GLOBE[:1])
    with pytest.raises(DataError, match=r"item 0 has values of shape \(2, 4, 7\).*\(2, 4, 6\)"):
        scores(np.zeros((3, 2, 4, 7)), b, ["t", "u"], GLOBE)


def test_no_items_are_refused() -> None:
    score = measures(["t"], [("x", "line")])["wasserstein.t"]
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
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
