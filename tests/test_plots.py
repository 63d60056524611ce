"""Figures of arrays: layout, colour scales, degrees, coastlines, and unusual input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jitkit.errors import DataError
from jitkit.plots.grids import curved_grid_view, plane_views
from jitkit.plots.panels import panels
from jitkit.plots.sheet import Sheet, printable
from jitkit.plots.views import (
    FieldView,
    coordinate_ruler,
    downsample,
    format_unit,
    unwrap_longitude,
)
from jitkit.utils.types import Array

matplotlib = pytest.importorskip("matplotlib")

PLANE = [("y", "line"), ("x", "line")]
GLOBE = [("latitude", "line"), ("longitude", "circle")]
DEGREES = {"latitude": "degrees_north", "longitude": "degrees_east"}


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[Sheet]:
    """The sheets that `panels` draws."""
    drawn: list[Sheet] = []
    honest = Sheet.image

    def image(sheet: Sheet) -> Any:
        drawn.append(sheet)
        return honest(sheet)

    monkeypatch.setattr(Sheet, "image", image)
    return drawn


def texts(sheet: Sheet) -> list[str]:
    """All text on a sheet."""
    written = [text.get_text() for text in sheet.figure.texts]
    for axes in sheet.figure.axes:
        written += [axes.get_xlabel(), axes.get_ylabel()]
        for side in (axes.xaxis, axes.yaxis):
            written += [tick.label1.get_text() for tick in side.get_major_ticks()]
    return [text for text in written if text]


def maps(sheet: Sheet) -> list[Any]:
    """The axes with an image, in drawing order."""
    return [axes for axes in sheet.figure.axes if axes.images]


# Positions


def test_real_items_are_left_and_samples_right_on_the_same_colour_scale(
    sheets: list[Sheet],
) -> None:
    ramp = np.linspace(0, 1, 64).reshape(1, 8, 8)
    picture = panels([ramp * 0, ramp * 0 + 1], [ramp, ramp], channels=["t"], axes=PLANE)
    assert picture.mode == "RGB"
    assert ["real", "sampled"] == [t for t in texts(sheets[0]) if t in ("real", "sampled")]
    real, _, low, high = maps(sheets[0])
    assert real.get_position().x1 < low.get_position().x0 < high.get_position().x0
    first, last = (np.asarray(real.images[0].get_array())[at] for at in ((0, 0), (-1, -1)))
    assert (np.asarray(low.images[0].get_array()) == first).all()
    assert (np.asarray(high.images[0].get_array()) == last).all()


def test_samples_are_drawn_alone_without_real_items(sheets: list[Sheet]) -> None:
    panels([np.zeros((1, 4, 4))], [], channels=["t"], axes=PLANE)
    assert "sampled" in texts(sheets[0])
    assert "real" not in texts(sheets[0])


@pytest.mark.parametrize("flipped", [False, True])
def test_north_is_up_for_rising_and_falling_latitudes(flipped: bool) -> None:
    at = np.array([-60.0, -20.0, 20.0, 60.0])[:: -1 if flipped else 1]
    coords = {"latitude": at, "longitude": np.arange(0, 360, 30.0)}
    view = plane_views(GLOBE, (4, 12), coords, DEGREES)[0, 1]
    shown = view.to_pixels(np.broadcast_to(at[:, None], (4, 12)))
    assert (np.diff(shown[:, 0]) > 0).all()  # bottom row first


def test_longitudes_from_0_to_360_are_drawn_from_180_west_to_180_east() -> None:
    longitude = np.arange(0, 360, 2.5)
    coords = {"latitude": np.linspace(-88.75, 88.75, 72), "longitude": longitude}
    view = plane_views(GLOBE, (72, 144), coords, DEGREES)[0, 1]
    row = view.to_pixels(np.broadcast_to(longitude, (72, 144)))[0]
    assert row[0] == 180 and row[71] == 357.5 and row[72] == 0 and row[-1] == 177.5
    assert view.extent == (-181.25, 178.75, -90, 90)


def test_a_region_across_the_date_line_or_greenwich_is_not_torn() -> None:
    across = [170.0, 175, 180, 185, 190]
    assert unwrap_longitude(np.array(across)).tolist() == across
    assert unwrap_longitude(np.array([170.0, 175, 180, -175, -170])).tolist() == across
    assert unwrap_longitude(np.array([350.0, 355, 0, 5])).tolist() == [-10, -5, 0, 5]


def test_longitude_is_horizontal_even_as_the_first_axis() -> None:
    longitude, latitude = np.arange(5.0), np.arange(40.0, 48.0)
    coords = {"latitude": latitude, "longitude": longitude}
    view = plane_views(GLOBE[::-1], (5, 8), coords, DEGREES)[0, 1]
    values = longitude[:, None] + 100 * latitude
    assert np.array_equal(view.to_pixels(values), values.T)


def test_gaussian_latitudes_are_drawn_at_their_positions() -> None:
    latitude = np.degrees(np.arcsin(np.linspace(-0.99, 0.99, 41)))  # steps from 1.4 to 9 degrees
    steps = coordinate_ruler("latitude", 41, latitude, "degrees_north")
    points = np.linspace(*steps.ends, 2 * len(steps.cells) + 1)[1::2]
    nearest = np.abs(latitude[:, None] - points).argmin(axis=0)
    assert np.array_equal(steps.cells, nearest)


def test_levels_with_very_uneven_steps_are_drawn_equally_wide_with_value_ticks() -> None:
    levels = np.array([1000.0, 925, 850, 700, 500, 250, 100, 50, 10, 1])
    axis = coordinate_ruler("level", 10, levels, "hPa")
    assert axis.down and axis.label == "level (hPa)"
    assert axis.ticks is not None
    assert axis.ticks[0] == (0, "1") and axis.ticks[-1] == (9, "1000")
    assert axis.cells.tolist() == list(range(10))[::-1]


def test_the_planes_of_a_volume_are_its_three_middle_slices(sheets: list[Sheet]) -> None:
    volume = np.arange(4 * 6 * 8.0).reshape(1, 4, 6, 8)
    axes = [("z", "line"), *PLANE]
    panels([volume], [volume], channels=["t"], axes=axes, coords={"z": np.arange(4) * 0.5})
    assert [t for t in texts(sheets[0]) if "z =" in t] == ["z = 1"] * 2
    assert {"y 4 of 6", "x 5 of 8"} <= set(texts(sheets[0]))
    assert len(maps(sheets[0])) == 6


@pytest.mark.parametrize("names", ["time y x", "level latitude longitude"])
def test_films_and_stacks_of_maps_show_first_middle_and_last_step(
    sheets: list[Sheet], names: str
) -> None:
    film = np.random.default_rng(0).standard_normal((1, 7, 6, 8))
    axes = [(name, "line") for name in names.split()]
    coords = {"latitude": np.arange(6.0), "longitude": np.arange(8.0)}
    panels([film], [film], channels=["t"], axes=axes, coords=coords)
    first = axes[0][0]
    titles = [f"{first} {i} of 7" for i in (1, 4, 7)]
    assert [t for t in texts(sheets[0]) if t.startswith(f"{first} ")] == titles * 2


def test_four_axes_are_cut_in_the_middle_of_the_second(sheets: list[Sheet]) -> None:
    values = np.random.default_rng(0).standard_normal((1, 2, 5, 6, 8))
    axes = [("time", "line"), ("level", "line"), *GLOBE]
    coords = {"level": np.array([100.0, 200, 300, 400, 500])}
    panels([values], [], channels=["t"], axes=axes, coords=coords, coord_units={"level": "hPa"})
    assert "at level = 300 hPa" in texts(sheets[0])
    assert {"time 1 of 2", "time 2 of 2"} <= set(texts(sheets[0]))


def test_a_subset_of_many_channels_is_drawn_with_a_note(sheets: list[Sheet]) -> None:
    values = np.random.default_rng(0).standard_normal((200, 4, 6))
    channels = [f"z.{i}" for i in range(200)]
    panels([values], [values], channels=channels, axes=PLANE)
    written = texts(sheets[0])
    assert "4 of 200 channels" in written
    assert [t for t in written if t.startswith("z.")] == ["z.0", "z.66", "z.133", "z.199"]
    assert len(maps(sheets[0])) == 8


def test_lines_break_where_values_are_missing(sheets: list[Sheet]) -> None:
    signal = np.sin(np.arange(50.0))[None]
    signal[0, 10:13] = np.nan
    panels([signal], [signal * 2], channels=["v"], axes=[("time", "line")], units={"v": "mV"})
    left, right = sheets[0].figure.axes
    assert np.isnan(np.asarray(left.lines[0].get_ydata())[10:13]).all()
    assert left.get_ylim() == right.get_ylim()
    assert {"v (mV)", "time"} <= set(texts(sheets[0]))


# Colours


def colours(values: Array) -> Any:
    from jitkit.plots.scales import ColourScale

    found = ColourScale([[values]])
    scale = found._scale
    return found, scale.cmap.name, scale.norm.vmin, scale.norm.vmax


def test_signed_values_have_a_diverging_scale_about_zero() -> None:
    x = np.random.default_rng(0).standard_normal(10_000)
    _, name, low, high = colours(x + 0.3)
    assert name == "RdBu_r" and low == -high and 2.6 < high < 3.2
    assert colours(x + 280)[1] == "viridis"
    assert colours(np.linspace(-1.8, 30, 1000))[1] == "viridis"  # °C of the sea


def test_outliers_do_not_stretch_the_colour_scale() -> None:
    x = np.append(np.linspace(10, 11, 10_000), 1e6)
    found, _, low, high = colours(x)
    assert 9.9 < low < high < 11.1
    assert found._extend == "both"


def test_rain_has_a_logarithmic_scale_and_ice_has_not() -> None:
    rng = np.random.default_rng(0)
    rain = np.where(rng.random(10_000) < 0.7, 0, rng.lognormal(0, 1.5, 10_000))
    found, name, low, high = colours(rain)
    assert found.log and name == "YlGnBu" and high / low == pytest.approx(1000)
    assert found.to_rgba(np.array([[0.0]]))[0, 0].tolist() == [255, 255, 255, 255]
    assert not colours(np.where(rng.random(10_000) < 0.7, 0, rng.uniform(0, 100, 10_000)))[0].log


def test_missing_cells_are_grey_and_outside_the_grid_is_white() -> None:
    from jitkit.plots.scales import LAND

    ramp = np.linspace(0, 1, 256).reshape(1, 16, 16)
    ramp[:, :8] = np.nan
    picture = np.asarray(panels([ramp], [], channels=["t"], axes=PLANE))
    grey = tuple(int(LAND[i : i + 2], 16) for i in (1, 3, 5))
    assert (picture == grey).all(axis=-1).mean() > 0.1


# Coasts and curved grids


def test_a_coastline_is_drawn_where_missing_cells_are_constant(sheets: list[Sheet]) -> None:
    rng = np.random.default_rng(0)
    sea = rng.standard_normal((4, 1, 12, 16))
    moving = np.where(rng.random(sea.shape) < 0.2, np.nan, sea)
    sea[..., 3:8, 5:9] = np.nan
    for values, expected in ((sea, 1), (moving, 0)):
        panels(list(values[:2]), list(values[2:]), channels=["t"], axes=PLANE)
        lines = [len(c.get_segments()) for a in maps(sheets[-1]) for c in a.collections]
        assert sum(lines) == expected * 4  # one island on each of four maps


def test_a_coastline_encloses_the_missing_cells() -> None:
    absent = np.zeros((12, 16), bool)
    absent[3:8, 5:9] = True
    view = plane_views(PLANE, (12, 16), {}, {})[0, 1]
    (line,) = view.coast(absent)
    assert line.min(axis=0) == pytest.approx([4.5, 2.5], abs=0.06)  # cells are centred on 0, 1, 2
    assert line.max(axis=0) == pytest.approx([8.5, 7.5], abs=0.06)


def drawn(latitude: Array, longitude: Array) -> FieldView:
    view = curved_grid_view(latitude, longitude)
    assert view is not None
    return view


def test_a_regular_grid_given_as_curvilinear_is_drawn_the_same() -> None:
    latitude, longitude = np.meshgrid(
        np.arange(-60, 61, 4.0), np.arange(0, 360, 5.0), indexing="ij"
    )
    view = drawn(latitude, longitude)
    left, right, bottom, top = view.extent
    assert view.extent == (-180, 180, -62, 62)
    height, width = view.index.shape
    y = bottom + (top - bottom) * (np.arange(height) + 0.5) / height
    x = left + (right - left) * (np.arange(width) + 0.5) / width
    away_y = np.abs(view.to_pixels(latitude) - y[:, None])
    away_x = np.abs((view.to_pixels(longitude) - x + 180) % 360 - 180)
    assert (view.index >= 0).all()
    assert away_y.max() < 2.01 + (top - bottom) / height
    assert away_x.max() < 2.51 + (right - left) / width


def test_a_rotated_grid_leaves_the_corners_of_its_map_empty() -> None:
    a, b = np.meshgrid(np.arange(-10, 10.5, 0.5), np.arange(-10, 10.5, 0.5), indexing="ij")
    view = drawn(45 + (a + b) / 2, 7 + (a - b) / 2)
    assert 0.4 < (view.index >= 0).mean() < 0.6  # a square on its corner
    height, width = view.index.shape
    middle = view.index[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5]
    assert (middle >= 0).all()


def test_a_polar_grid_is_drawn_on_its_own_axes_with_parallels() -> None:
    y, x = np.meshgrid(*[np.linspace(-30, 30, 61)] * 2, indexing="ij")
    view = drawn(90 - np.hypot(x, y), np.degrees(np.arctan2(x, -y)))
    assert view.index.shape == (61, 61) and view.aspect == 1
    assert {"80°N", "70°N", "0°", "90°E", "180°", "90°W"} <= {text for *_, text in view.marks}


def test_fill_values_in_coordinates_are_ignored() -> None:
    latitude, longitude = np.meshgrid(np.arange(20.0, 40), np.arange(10.0, 50), indexing="ij")
    latitude[:3, :4], longitude[:3, :4] = 9.97e36, np.nan
    view = drawn(latitude, longitude)
    assert view.extent == pytest.approx((9.5, 49.5, 19.5, 39.5), abs=0.01)
    assert curved_grid_view(latitude * 1e30, longitude) is None


def test_large_planes_are_drawn_as_block_means() -> None:
    values = np.random.default_rng(0).standard_normal((721, 1440))
    values[:2, :2] = np.nan
    small, outside = downsample(values, np.isnan(values), 200, 400)
    assert small.shape == outside.shape == (241, 480)
    assert small[5, 7] == pytest.approx(values[15:18, 21:24].mean())
    assert small[0, 0] == pytest.approx(np.nanmean(values[:3, :3]))


# Text


def test_units_are_formatted_as_in_print() -> None:
    printed = {
        "m s-1": "m s⁻¹",
        "m**2 s**-2": "m² s⁻²",
        "W m^-2": "W m⁻²",
        "kg/m3": "kg/m³",
        "degC": "°C",
        "degree_C": "°C",
        "degrees": "°",
        "1e-3": "10⁻³",
        "1E11 e/m^3": "10¹¹ e/m³",
        "log10(Pa)": "log10(Pa)",
        "K": "K",
        "1": "",
        "": "",
    }
    assert {unit: format_unit(unit) for unit in printed} == printed


def test_maps_are_labelled_in_degrees(sheets: list[Sheet]) -> None:
    values = np.random.default_rng(0).standard_normal((1, 36, 72))
    coords = {"latitude": np.arange(87.5, -90, -5), "longitude": np.arange(0, 360, 5.0)}
    panels(
        [values] * 4, [values] * 4, channels=["t"], axes=GLOBE, coords=coords, coord_units=DEGREES
    )
    assert {"90°W", "0°", "90°E", "60°N", "60°S"} <= set(texts(sheets[0]))


def test_names_may_contain_any_character(sheets: list[Sheet]) -> None:
    values = np.random.default_rng(0).standard_normal((3, 4, 6))
    channels = ["温度", r"$\frac{x$ %_^\n", "line\nbreak\ttab\x00" + "long" * 50]
    axes = [("$y_{", "line"), ("経度", "line")]
    panels(
        [values], [values], channels=channels, axes=axes, units=dict.fromkeys(channels, "$度 m-2")
    )
    assert "??" in texts(sheets[0])
    assert printable("σ² °C µ ‰ ∂ å") == "σ² °C µ ‰ ∂ å"


def test_the_users_matplotlib_style_is_neither_used_nor_changed() -> None:
    values = np.random.default_rng(0).standard_normal((1, 8, 8))
    before = np.asarray(panels([values], [values], channels=["t"], axes=PLANE))
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.grid": True}):
        after = np.asarray(panels([values], [values], channels=["t"], axes=PLANE))
        assert matplotlib.rcParams["text.usetex"] and matplotlib.rcParams["font.size"] == 30
    assert np.array_equal(before, after)


# Odd input


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Arrays of one to four axes with gaps, infinities and coordinates of any kind."""
    n = draw(st.integers(1, 4))
    grid = tuple(draw(st.integers(1, 9)) for _ in range(n))
    channels = [f"c{i}" for i in range(draw(st.integers(1, 6)))]
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    unit = draw(st.sampled_from([0.0, 1e-30, 1.0, 1e30]))
    values = (
        draw(st.sampled_from([0.0, 280.0])) + rng.standard_normal((5, len(channels), *grid))
    ) * unit
    values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = np.nan
    values[rng.random(values.shape) < draw(st.sampled_from([0.0, 0.1]))] = np.inf
    names = draw(st.permutations(["time", "latitude", "longitude", "x", "level"]))[:n]
    steps = st.sampled_from(["none", "even", "uneven", "nan", "texts", "times"])
    coords: dict[str, Array] = {}
    for name, size in zip(names, grid, strict=True):
        kind = draw(steps)
        made: dict[str, Array] = {
            "even": np.arange(size, dtype=float)[:: draw(st.sampled_from([1, -1]))],
            "uneven": np.arange(size, dtype=float) ** 3,
            "nan": np.full(size, np.nan),
            "texts": np.array(["a"] * size),
            "times": np.datetime64("2000-01-01") + np.arange(size) * np.timedelta64(6, "h"),
        }
        coords |= {name: made[kind]} if kind != "none" else {}
    real = draw(st.integers(0, 3))
    axes = [(name, draw(st.sampled_from(["line", "circle"]))) for name in names]
    sides = {
        "real": list(values[:real]),
        "sampled": list(values[real : draw(st.integers(real, 5))]),
    }
    return sides | {"channels": channels, "axes": axes, "coords": coords}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_arrays_can_be_drawn(case: dict[str, Any]) -> None:
    if not case["real"] and not case["sampled"]:
        with pytest.raises(DataError, match="no items to draw"):
            panels(**case)
        return
    picture = panels(**case)
    assert picture.mode == "RGB" and picture.width <= 1600


def test_arrays_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"shape \(1, 4, 6\) are not all 2 channels on 2 axes"):
        panels([np.zeros((1, 4, 6))], [], channels=["t", "u"], axes=PLANE)
    with pytest.raises(DataError, match=r"\(1, 4, 6\), \(1, 4, 7\) are not all 1 channels"):
        panels([np.zeros((1, 4, 6))], [np.zeros((1, 4, 7))], channels=["t"], axes=PLANE)


def test_drawing_needs_no_pyplot_and_importing_no_matplotlib() -> None:
    code = (
        "import sys, numpy as np; from jitkit.plots.panels import panels;"
        "assert not {'matplotlib', 'torch', 'xarray', 'scipy'} & set(sys.modules);"
        "panels([np.eye(4)[None]], [], channels=['t'], axes=[('y', 'line'), ('x', 'line')]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# Files of the field


@pytest.fixture
def field() -> Any:
    """A folder of real files, and how to open one."""
    pytest.importorskip("xarray")
    return Path(pytest.importorskip("iris_sample_data").path)


@pytest.mark.filterwarnings("default")
def test_a_tripolar_ocean_model_is_drawn_at_its_coordinates(field: Path) -> None:
    import xarray

    found = xarray.open_dataset(sorted((field / "NEMO").glob("*.nc"))[0], decode_times=False)
    latitude, longitude = found["nav_lat"].values, found["nav_lon"].values
    view = drawn(latitude, longitude)
    left, right, bottom, top = view.extent
    height, width = view.index.shape
    y = bottom + (top - bottom) * (np.arange(height) + 0.5) / height
    x = left + (right - left) * (np.arange(width) + 0.5) / width
    south = y < 85
    assert (view.index[south & (y > -75)] >= 0).mean() > 0.999
    turn = (view.to_pixels(longitude) - x + 180) % 360 - 180
    away = np.abs(turn) * np.cos(np.radians(y))[:, None]
    assert np.nanpercentile(away[south], 99.9) < 1.1  # cells of a degree
    assert np.nanpercentile(np.abs(view.to_pixels(latitude) - y[:, None])[south], 99.9) < 1.1
    sea = found["tos"].values
    assert len(view.coast(np.isnan(sea[0]))) > 20
