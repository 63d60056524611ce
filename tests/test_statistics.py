"""Streaming statistics: precision, decode undoes encode, errors that name the channel."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jitkit.domains.arrays.normalize import moments
from jitkit.domains.arrays.normalize.moments import Moments, Normalize
from jitkit.domains.arrays.normalize.statistics import Statistics
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.errors import DataError, RecipeError
from jitkit.utils.types import Array


def field(
    rng: np.random.Generator, *, n: int = 24, offset: float = 0.0, gaps: float = 0.0
) -> Array:
    """Items of two channels on a 3 x 4 grid, (n, 2, 3, 4) float32, a fraction of cells missing."""
    values = (offset + rng.standard_normal((n, 2, 3, 4)) * [[[3.0]], [[0.2]]]).astype(np.float32)
    values[rng.random(values.shape) < gaps] = np.nan
    return values


def exact(values: Array) -> tuple[float, float]:
    """Mean and variance in exact arithmetic, rounded once."""
    numbers = [Fraction(float(x)) for x in values[~np.isnan(values)].ravel()]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return float(mean), float(sum(((x - mean) ** 2 for x in numbers), Fraction(0)) / len(numbers))


def per_cell(found: Statistics) -> tuple[Array, Array]:
    """Mean and standard deviation of each cell, (C, X1..Xn)."""
    assert found.cell_shift is not None and found.cell_ratio is not None
    shape = (-1, *[1] * (found.cell_shift.ndim - 1))
    center, spread = found.center.reshape(shape), found.spread.reshape(shape)
    return center + spread * found.cell_shift, spread * found.cell_ratio


def test_statistics_of_known_values() -> None:
    values = np.array([[1.0, np.nan], [3.0, 5.0]])[:, None]  # (2, 1, 2)
    found = Statistics.measure([values], ["a"])
    assert [found.count[0], found.missing[0]] == [3, 0.25]
    assert [found.mean[0], found.min[0], found.max[0]] == [3, 1, 5]
    assert found.std == pytest.approx(np.sqrt(8 / 3), rel=1e-15)


@settings(deadline=None)
@given(
    st.floats(-1e12, 1e12),
    st.floats(1e-3, 1e3),
    st.lists(st.integers(0, 60), max_size=5),
    st.integers(0, 2**32),
    st.floats(0, 0.9),
)
def test_mean_and_variance_are_exact_for_any_offset_and_blocks(
    offset: float, scale: float, cuts: list[int], seed: int, gaps: float
) -> None:
    rng = np.random.default_rng(seed)
    values = offset + scale * rng.standard_normal((60, 1, 3))
    values[rng.random(values.shape) < gaps] = np.nan
    assume(np.unique(values[~np.isnan(values)]).size > 1)
    found = Statistics.measure(np.split(values, sorted(cuts)), ["a"])
    mean, variance = exact(values)
    assert found.mean[0] == pytest.approx(mean, rel=4e-16 * 4, abs=1e-14 * scale)
    assert found.std[0] ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize(
    ("offset", "scale", "dtype"),
    [(101_325, 300, np.float32), (1e9, 1, np.float64), (1e15, 1, np.float64), (-273.15, 1e-9, "d")],
)
def test_a_large_offset_loses_no_precision(offset: float, scale: float, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    values = (offset + scale * rng.standard_normal((300, 1, 700))).astype(dtype)
    found = Statistics.measure(np.split(values, 100), ["pressure"], per_cell=True)
    wide = values.astype(np.longdouble) - offset  # so that the reference loses no digits
    assert found.mean[0] == pytest.approx(float(offset + wide.mean()), rel=3e-16)
    assert found.std[0] == pytest.approx(float(wide.std()), rel=1e-12)
    cell_mean, cell_std = per_cell(found)
    off = cell_mean[0] - offset - wide.mean(axis=0)[0]
    assert np.abs(off).max() <= 3e-16 * abs(offset) + 1e-7 * scale
    np.testing.assert_allclose(cell_std[0], wide.std(axis=0)[0].astype("d"), rtol=2e-7)


def test_many_small_blocks_are_as_exact_as_one_large_block() -> None:
    values = 1e9 + np.random.default_rng(1).standard_normal((20_000, 1, 1))
    found = Statistics.measure(np.split(values, 20_000), ["a"])
    mean, variance = exact(values)
    assert found.mean[0] == pytest.approx(mean, rel=3e-16)
    assert found.std[0] ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("piece", [1, 7, 64, 2**18])
def test_statistics_do_not_depend_on_the_piece_size(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [field(np.random.default_rng(2), offset=1e5, gaps=0.3)]
    options: dict[str, Any] = {"per_cell": True}
    whole = Statistics.measure(blocks, ["a", "b"], **options).metadata()
    monkeypatch.setattr(moments, "PIECE", piece)
    parts = Statistics.measure(blocks, ["a", "b"], **options).metadata()
    for name, value in whole.items():
        if isinstance(value, float | list) and name not in ("channels", "transforms"):
            np.testing.assert_allclose(parts[name], value, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(parts["cell_shift"], whole["cell_shift"], atol=1e-6)
    np.testing.assert_allclose(parts["cell_ratio"], whole["cell_ratio"], rtol=1e-6)


def test_memory_does_not_grow_with_the_stream() -> None:
    def stream(num: int) -> Iterator[Array]:
        for seed in range(num):
            yield np.random.default_rng(seed).standard_normal((1, 1, 1 << 18), dtype=np.float32)

    def peak(num: int) -> int:
        tracemalloc.start()
        Statistics.measure(stream(num), ["a"], normalize="robust")
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak_bytes

    assert peak(24) < 1.2 * peak(6)


def test_statistics_per_cell() -> None:
    values = field(np.random.default_rng(5), n=50, gaps=0.2)
    values += np.arange(12).reshape(3, 4) * 10
    values[:, 0, 0, 0] = np.nan  # never observed
    values[:, 0, 0, 1] = 7.25  # does not vary
    values[:, 0, 0, 2] = np.nan
    values[3, 0, 0, 2] = 5  # observed once
    found = Statistics.measure(np.split(values, [0, 7, 20]), ["a", "b"], per_cell=True)
    assert found.observed is not None
    assert (~found.observed).sum() == 1 and not found.observed[0, 0, 0]
    cell_mean, cell_std = per_cell(found)
    wide = values[:, 1].astype("d")
    np.testing.assert_allclose(cell_mean[1], np.nanmean(wide, axis=0), atol=1e-5)
    np.testing.assert_allclose(cell_std[1], np.nanstd(wide, axis=0), rtol=1e-6)
    assert np.isnan(cell_mean[0, 0, 0]) and np.isnan(cell_std[0, 0, 0])
    np.testing.assert_allclose(cell_mean[0, 0, 1:3], [7.25, 5], rtol=1e-6)
    np.testing.assert_allclose(cell_std[0, 0, 1:3], found.std[0], rtol=1e-6)
    encoded = np.stack([found.encode(item) for item in values])
    assert np.abs(np.nanmean(encoded[:, 1], axis=0)).max() < 3e-5  # float32 of 110 / 0.2
    np.testing.assert_allclose(np.nanstd(encoded[:, 1], axis=0), 1, rtol=1e-5)
    assert np.abs(encoded[:, 0, 0, 1]).max() < 1e-6
    assert np.isnan(found.decode(np.zeros((2, 3, 4), np.float32))[0, 0, 0])


@pytest.mark.parametrize("constant", [0.1, 1e9 + 0.1, -273.15, 1e-300])
def test_a_constant_cell_gets_no_variance_from_rounding(constant: float) -> None:
    values = np.random.default_rng(6).standard_normal((1000, 1, 2))
    values[..., 0] = constant
    found = Statistics.measure(np.split(values, [3, 500, 777]), ["a"], per_cell=True)
    assert found.cell_ratio is not None and found.cell_ratio[0, 0] == 1


@pytest.mark.parametrize("transform", ["none", "sqrt", {"log1p": 0.5}])
@pytest.mark.parametrize("normalize", ["standard", "minmax", "robust"])
def test_encoded_values_are_normalized(transform: Any, normalize: Normalize) -> None:
    values = np.random.default_rng(8).gamma(2.0, 5.0, (400, 1, 9))
    found = Statistics.measure(
        np.split(values, 5), ["a"], transforms={"a": transform}, normalize=normalize
    )
    encoded = np.concatenate([found.encode(item) for item in values])
    assert encoded.dtype == np.float32
    if normalize == "standard":
        assert abs(encoded.mean()) < 1e-5 and encoded.std() == pytest.approx(1, rel=1e-5)
    elif normalize == "minmax":
        assert (encoded.min(), encoded.max()) == pytest.approx((-1, 1), abs=1e-6)
    else:
        quarter, half, most = np.quantile(encoded, [0.25, 0.5, 0.75])
        assert abs(half) < 1e-5 and most - quarter == pytest.approx(1.349, rel=1e-3)


def test_robust_statistics_ignore_outliers() -> None:
    values = np.random.default_rng(9).standard_normal((100, 1, 1000))
    values[:, :, :10] = 1e9  # 1 % of the values
    found = Statistics.measure(np.split(values, 10), ["a"], normalize="robust")
    assert abs(found.center[0]) < 0.03 and found.spread[0] == pytest.approx(1, rel=0.03)
    assert found.std[0] > 1e7


def test_without_normalization_values_are_unchanged() -> None:
    values = field(np.random.default_rng(10))
    constant = np.concatenate([values, np.full_like(values[:, :1], 2)], axis=1)
    found = Statistics.measure([constant], ["a", "b", "c"], normalize="none")
    np.testing.assert_array_equal(found.encode(constant[0]), constant[0])
    np.testing.assert_array_equal(found.decode(constant[0]), constant[0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Statistics, Array]:
    """Statistics with any settings, and items to encode, (n, 2, 5) float32."""
    transform = draw(st.sampled_from(["none", "sqrt", "log1p", {"log1p": 1e-3}, {"log1p": 50.0}]))
    normalize = draw(st.sampled_from(get_args(Normalize)))
    offset = draw(st.sampled_from([0.0, 5.0, 1e5]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = offset + rng.gamma(0.7, draw(st.floats(1e-4, 1e4)), (30, 2, 5))
    if transform == "none":
        values -= draw(st.floats(0, 1e4))
    values = values.astype(np.float32)
    values[rng.random(values.shape) < draw(st.floats(0, 0.5))] = np.nan
    assume(all(len(np.unique(values[:, c])) > 8 for c in range(2)))
    per_cell = normalize == "standard" and draw(st.booleans())
    transforms: dict[str, Any] = {"a": transform, "b": "none"}
    try:
        found = Statistics.measure(
            [values], ["a", "b"], transforms=transforms, normalize=normalize, per_cell=per_cell
        )
    except DataError:  # no interquartile range
        assume(False)
    return found, values


@settings(deadline=None, max_examples=200)
@given(cases())
def test_decode_undoes_encode_up_to_float32_rounding(case: tuple[Statistics, Array]) -> None:
    found, values = case
    for item in values:
        encoded = found.encode(item)
        again = found.decode(encoded)
        assert encoded.dtype == again.dtype == np.float32
        np.testing.assert_array_equal(np.isnan(encoded), np.isnan(item))
        np.testing.assert_array_equal(np.isnan(again), np.isnan(item))
        for c, transform in enumerate(found.transforms):
            # rounding of the encoded value times the slope of the inverse
            x = item[c].astype("d")
            slope = {
                "none": np.ones_like(x),
                "sqrt": 2 * np.sqrt(np.abs(x)),
                "log1p": np.abs(x + transform.scale),
            }[transform.name]
            size = np.abs(encoded[c].astype("d"))
            ratio = 1.0 if found.cell_ratio is None else found.cell_ratio[c].astype("d")
            step = size * ratio * found.spread[c] * 2.0**-23
            bound = slope * step + 2 * step**2 + np.abs(x) * 2.0**-23 + 1e-12 * abs(found.center[c])
            wrong = np.abs(again[c] - x) > bound
            assert not wrong.any(), (item[c][wrong], again[c][wrong])


@settings(deadline=None)
@given(cases(), st.lists(st.floats(-1e6, 1e6, width=32), min_size=10, max_size=10))
def test_decode_clips_any_value_to_the_range_of_the_transform(
    case: tuple[Statistics, Array], numbers: list[float]
) -> None:
    found, _ = case
    if found.cell_shift is not None:
        assume(not np.isnan(found.cell_shift).any())
    decoded = found.decode(np.array(numbers, np.float32).reshape(2, 5))
    assert np.isfinite(decoded).all()
    if found.transforms[0].name != "none":
        assert (decoded[0] >= 0).all()


def test_decoded_rain_is_negative_only_if_the_data_are() -> None:
    rain = np.random.default_rng(11).gamma(0.1, 1e-3, (50, 1, 20)).astype(np.float32)
    options: dict[str, Any] = {"transforms": {"rain": {"log1p": 1e-3}}}
    dry = np.full((1, 20), -9, np.float32)
    assert not Statistics.measure([rain], ["rain"], **options).decode(dry).any()
    rain[0, 0, 0] = -1e-6  # as in packed files
    found = Statistics.measure([rain], ["rain"], **options)
    np.testing.assert_allclose(found.decode(dry), -1e-6, rtol=1e-5)
    again = found.decode(found.encode(rain[0]))
    np.testing.assert_allclose(again[0, 0], -1e-6, rtol=1e-3)


def test_encode_and_decode_take_axes_between_channels_and_grid() -> None:
    values = field(np.random.default_rng(12), n=6)
    found = Statistics.measure([values], ["a", "b"], per_cell=True)
    window = values.swapaxes(0, 1)  # (C, steps, 3, 4)
    np.testing.assert_array_equal(found.encode(window)[:, 2], found.encode(values[2]))
    np.testing.assert_array_equal(found.decode(window)[:, 2], found.decode(values[2]))


def test_statistics_of_values_without_a_grid() -> None:
    values = np.random.default_rng(13).standard_normal((100, 2))
    found = Statistics.measure([values], ["a", "b"])
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12)
    assert found.encode(values[0]).shape == (2,)


def refusals() -> dict[str, tuple[dict[str, Any], Array, str]]:
    rng = np.random.default_rng(14)
    good = rng.gamma(2.0, 1.0, (10, 2, 4))

    def with_b(values: Any) -> Array:
        return np.concatenate([good[:, :1], np.broadcast_to(values, (10, 1, 4))], axis=1)

    return {
        "no variance": ({}, with_b(3.0), "1 of 2.*'b' has no variance: all 40 values are 3; leave"),
        "nothing": ({}, with_b(np.nan), "1 of 2.*'b' has no value: all 40 are missing; leave"),
        "infinite": ({}, with_b(-np.inf), "'b' has 40 infinite values; mark them as missing"),
        "log": (
            {"transforms": {"b": {"log1p": 0.5}}},
            with_b(-0.5),
            "'b' has a value of -0.5, but its transform log1p needs values above -0.5",
        ),
        "root": ({"transforms": {"b": "sqrt"}}, with_b(-1e-9), "'b'.*-1e-09.*needs values 0 or ab"),
        "quartiles": (
            {"normalize": "robust"},
            with_b(np.arange(10)[:, None, None] == 5),
            "'b' has no interquartile range: at least half of its 40 values are equal; use",
        ),
        "both": ({}, np.zeros((10, 2, 4)), "(?s)2 of 2.*'a' has no variance.*'b' has no variance"),
        "shape": ({}, good[:, :1], r"block of shape \(10, 1, 4\) is not \(n, 2, X1..Xn\)"),
    }


@pytest.mark.parametrize("which", refusals())
def test_an_unusable_channel_is_named(which: str) -> None:
    options, values, text = refusals()[which]
    with pytest.raises(DataError, match=f"(?s){text}"):
        Statistics.measure([values], ["a", "b"], **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"normalize": "standart"}, "'standart' is not standard, .* did you mean 'standard'"),
        ({"normalize": "minmax", "per_cell": True}, "per_cell .* needs normalize standard"),
        (
            {"transforms": {"tempp": "sqrt"}},
            "'tempp', which is not a channel.* did you mean 'temp'",
        ),
        ({"transforms": {"temp": "sqr"}}, "'sqr' is not none, log1p or sqrt; did you mean 'sqrt'"),
        ({"transforms": {"temp": {"log1p": 0}}}, "scale 0.0 is not a number above 0"),
        ({"transforms": {"temp": {"log1p": np.nan}}}, "scale nan is not a number above 0"),
        ({"transforms": {"temp": {"sqrt": 2.0}}}, "sqrt has no scale"),
        ({"transforms": {"temp": {"log1p": "x"}}}, "is invalid; give none, sqrt, log1p or"),
        ({"transforms": {"temp": {"log1p": 1, "sqrt": 1}}}, "is invalid"),
    ],
)
def test_invalid_settings_are_refused_before_data_are_read(
    options: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError, match=text):
        Statistics.measure([], ["temp", "rain"], **options)


def test_another_grid_is_refused() -> None:
    blocks = [np.zeros((2, 1, 4)), np.zeros((2, 1, 5))]
    with pytest.raises(
        DataError, match=r"'a': a block on a grid of \(5,\) after one on a grid of \(4,\)"
    ):
        Statistics.measure(blocks, ["a"])


def test_statistics_of_no_blocks_are_refused() -> None:
    with pytest.raises(DataError, match="'a' has no value"):
        Statistics.measure([], ["a"])


def test_encode_refuses_values_outside_the_transform_and_other_channels() -> None:
    values = np.random.default_rng(15).gamma(2.0, 1.0, (10, 2, 4))
    found = Statistics.measure([values], ["a", "b"], transforms={"a": "sqrt"})
    bad = values[0].copy()
    bad[0, 1], bad[0, 2] = -2, np.nan
    with pytest.raises(DataError, match="'a' has a value of -2, but its transform sqrt"):
        found.encode(bad)
    assert np.isnan(found.encode(np.full((2, 4), np.nan))).all()
    for method in (found.encode, found.decode):
        with pytest.raises(DataError, match=r"shape \(1, 4\): the first axis has 1 channels, .* 2"):
            method(values[0, :1])


def test_metadata_are_json_except_arrays_per_cell() -> None:
    values = field(np.random.default_rng(16), gaps=0.2)
    values[:, 0, 0, 0] = np.nan
    for per_cell in (False, True):
        found = Statistics.measure([values], ["a", "b"], per_cell=per_cell)
        metadata = found.metadata()
        arrays = {k: v for k, v in metadata.items() if isinstance(v, np.ndarray)}
        assert set(arrays) <= {"observed", "cell_shift", "cell_ratio"}
        plain = {k: v for k, v in metadata.items() if k not in arrays}
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        again = Statistics.from_metadata(json.loads(json.dumps(plain)) | arrays)
        np.testing.assert_array_equal(again.encode(values[0]), found.encode(values[0]))
        np.testing.assert_array_equal(again.decode(values[0]), found.decode(values[0]))
        np.testing.assert_equal(again.metadata(), metadata)
        np.testing.assert_equal(pickle.loads(pickle.dumps(found)).metadata(), metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"mean": [1.0]},
        {"channels": ["a"]},
        {"transforms": [["cube", 1.0], ["none", 1.0]]},
        {"normalize": "other"},
        {"cell_shift": np.zeros((2, 3))},
        {"observed": np.ones((3, 3))},
        {"center": None},
        {"count": "many"},
    ],
)
def test_inconsistent_metadata_are_refused(change: dict[str, Any]) -> None:
    found = Statistics.measure([field(np.random.default_rng(17))], ["a", "b"])
    with pytest.raises(DataError, match="statistics"):
        Statistics.from_metadata(found.metadata() | change)


def test_moments_of_no_values_are_nan() -> None:
    nothing = Moments((2,))
    nothing.add(np.full((3, 2), np.nan))
    assert np.isnan(nothing.std).all() and not nothing.count.any()


@given(st.floats(-0.99, 1e30), st.floats(1e-6, 1e6))
def test_backward_undoes_log1p(share: float, scale: float) -> None:
    transform = Transform("log1p", scale)
    x = np.array([share * scale])
    again = transform.backward(transform.forward(x), least=float(x[0]))
    # log1p has the rounding error of 1 + x / scale
    np.testing.assert_allclose(again, x, rtol=1e-12, atol=1e-14 * scale)


def test_importing_statistics_imports_no_heavy_library() -> None:
    code = "import sys, jitkit.domains.arrays.normalize.statistics; print(sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    for heavy in ("torch", "xarray", "matplotlib", "scipy", "pandas"):
        assert f"'{heavy}'" not in loaded.stdout
