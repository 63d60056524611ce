"""Domain weather: dimensions, levels, forcings, cell areas on the sphere, and the three tasks."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import cftime  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from weatherstores import anemoi, arco, weatherbench2

from jitkit import testing
from jitkit.data import batches
from jitkit.domains.weather.adapter import Weather
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.sphere import BlockMeans, Interpolation, cell_areas, latitude_edges
from jitkit.domains.weather.sun import SOLAR_CONSTANT, cos_zenith, toa_radiation
from jitkit.domains.weather.timedelta import duration
from jitkit.errors import BadItem, DataError, JitkitError, RecipeError
from jitkit.utils.types import Array


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths of small stores in the layouts of public data sets."""
    folder = tmp_path_factory.mktemp("bucket")
    made = {"wb": weatherbench2(folder), "arco": arco(folder), "anemoi": anemoi(folder)}
    return {name: str(path) for name, path in made.items()}


def section(**keys: Any) -> WeatherSection:
    """As a recipe gives it: from JSON, strictly."""
    return WeatherSection.model_validate_json(json.dumps({"name": "weather"} | keys), strict=True)


def weather(**keys: Any) -> Weather:
    """The domain, with its data opened."""
    domain = Weather(section(**keys))
    domain.opened()
    return domain


def globe(
    folder: Path, *, steps: int = 24, hours: int = 6, transposed: bool = False, **variables: Array
) -> str:
    """A store of fields on 6 x 8 cells; one variable of noise where none is given."""
    rng = np.random.default_rng(0)
    time = np.datetime64("2001-02-25", "ns") + np.arange(steps) * np.timedelta64(hours, "h")
    found = variables or {"t": rng.standard_normal((steps, 6, 8)).astype("f4")}
    latitude, longitude = np.linspace(75, -75, 6), np.arange(0, 360, 45.0)
    data = xr.Dataset(
        {name: (("time", "latitude", "longitude"), v, {"units": "K"}) for name, v in found.items()},
        {
            "time": time,
            "latitude": ("latitude", latitude, {"units": "degrees_north"}),
            "longitude": ("longitude", longitude, {"units": "degrees_east"}),
        },
    )
    if transposed:
        data = data.transpose("longitude", "time", "latitude").isel(latitude=slice(None, None, -1))
    path = folder / f"globe{len(list(folder.iterdir()))}.zarr"
    data.to_zarr(path, zarr_format=2)
    return str(path)


# The checks of every adapter, for each task, on stores laid out as public ones

LEVELS = {"2m_temperature": None, "temperature": [850, 500], "geopotential": [500]}
TASKS: dict[str, dict[str, Any]] = {
    "states": {"path": "wb", "variables": LEVELS, "static": ["land_sea_mask", "latitude"]},
    "forecast": {
        "path": "wb",
        "variables": LEVELS,
        "task": "forecast",
        "lead": "24h",
        "inputs": 2,
        "forcings": ["cos_zenith", "toa_radiation", "dayofyear", "hour"],
        "val": 0.3,
    },
    "sea": {"path": "wb", "variables": ["sea_surface_temperature"], "task": "forecast"},
    "rain": {
        "path": "arco",
        "variables": {"temperature": [500], "total_precipitation": None},
        "accumulate": {"total_precipitation": "6h"},
        "transforms": {"total_precipitation": {"log1p": 0.001}},
        "every": "6h",
        "static": ["geopotential_at_surface"],
        "task": "forecast",
        "target": "state",
        "val": 0.3,
    },
    "downscaling": {
        "path": "wb",
        "variables": {"2m_temperature": None, "temperature": [500]},
        "task": "downscaling",
        "coarse": {"factor": 4},
    },
    "anemoi": {
        "path": "anemoi",
        "variables": {"2t": None, "t": [500, 850]},
        "task": "forecast",
        "static": ["lsm"],
    },
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_passes_the_domain_checks(task: str, bucket: dict[str, str]) -> None:
    asked = section(**TASKS[task] | {"path": bucket[TASKS[task]["path"]]})
    testing.check_domain(Weather(asked), asked, split="val", num_items=2)


def test_importing_the_adapter_imports_no_file_libraries() -> None:
    code = (
        "import sys; import jitkit.domains.weather.adapter\n"
        "print(sorted({'torch', 'xarray', 'zarr', 'h5py', 'pandas', 'matplotlib', 'scipy'} "
        "& set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# What is read


def test_channels_are_variables_at_their_levels_as_xarray_reads_them(
    bucket: dict[str, str],
) -> None:
    domain = weather(path=bucket["wb"], variables=LEVELS)
    names = ("2m_temperature", "temperature.850", "temperature.500", "geopotential.500")
    assert domain.layout.channels == names
    assert [(axis.name, axis.kind) for axis in domain.layout.axes] == [
        ("latitude", "line"),
        ("longitude", "circle"),
    ]
    with xr.open_zarr(bucket["wb"], chunks=None) as data:
        there = data.isel(time=7).transpose(..., "latitude", "longitude")
        assert np.array_equal(
            domain.items("train")[7].values,
            np.stack(
                [
                    there["2m_temperature"],
                    there["temperature"].sel(level=850),
                    there["temperature"].sel(level=500),
                    there["geopotential"].sel(level=500),
                ]
            ),
        )


def test_the_order_of_dimensions_and_rows_changes_no_value(tmp_path: Path) -> None:
    plain, transposed = (weather(path=globe(tmp_path, transposed=t)) for t in (False, True))
    item, other = plain.items("train")[3], transposed.items("train")[3]
    assert np.array_equal(item.values, other.values[:, ::-1])
    rows, others = plain.states().latitude, transposed.states().latitude
    assert rows is not None and others is not None and np.array_equal(rows, others[::-1])


def test_sea_surface_temperature_is_not_sampled_on_land(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["wb"], variables=["sea_surface_temperature"], task="forecast")
    item = domain.items("val")[0]
    land = np.isnan(item.values)
    assert land.any() and not land.all()
    field = domain.encode(item)
    assert field.mask is not None and bool((field.mask.numpy() == ~land).all())
    made = domain.decode(type(field)(torch.zeros_like(field.values), None, field.cond))
    assert np.array_equal(np.isnan(made.values), land)


def test_hourly_data_are_used_every_six_hours(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["arco"], variables=["2m_temperature"], every="6h")
    times = domain.states().times
    assert set((times - times.astype("M8[D]")) // np.timedelta64(1, "h")) == {0, 6, 12, 18}
    with xr.open_zarr(bucket["arco"], chunks=None) as data:
        assert np.array_equal(domain.items("train")[1].values[0], data["2m_temperature"][6])


def test_precipitation_is_accumulated_over_the_hours_before(bucket: dict[str, str]) -> None:
    domain = weather(
        path=bucket["arco"],
        variables=["total_precipitation"],
        accumulate={"total_precipitation": "6h"},
        every="6h",
    )
    with xr.open_zarr(bucket["arco"], chunks=None) as data:
        rain = data["total_precipitation"].values.astype(np.float64)
    states = domain.states()
    assert states.times[0] == np.datetime64("2016-01-01T06")  # its window is complete
    for k in (0, 5):
        hour = 6 * (k + 1)
        assert np.allclose(states.read(k)[0], rain[hour - 5 : hour + 1].sum(axis=0), rtol=1e-6)


def test_an_accumulation_window_does_not_span_a_gap(tmp_path: Path) -> None:
    path = globe(tmp_path, hours=1, steps=48)
    with xr.open_zarr(path, chunks=None) as data:
        cut = data.load().drop_isel(time=[20])
    cut.to_zarr(tmp_path / "cut.zarr", zarr_format=2)
    domain = weather(path=str(tmp_path / "cut.zarr"), accumulate={"t": "3h"})
    hours = (domain.states().times - data.time.values[0]) // np.timedelta64(1, "h")
    assert hours.tolist() == [h for h in range(48) if h >= 2 and h not in (20, 21, 22)]


def test_a_gap_is_warned_of_once_and_no_item_spans_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = weatherbench2(tmp_path, 80, hole=True)
    keys: dict[str, Any] = {"path": str(path), "variables": ["2m_temperature"], "task": "forecast"}
    for _ in range(2):
        domain = weather(**keys, lead="12h", inputs=2, val=0)
    assert capsys.readouterr().err.count("1 gap in time, the first after 2015-12-19T18:00:00") == 1
    states = domain.states()
    assert (states.after(38, 1), states.after(39, 1), states.after(42, -1)) == (None, None, 40)
    assert 39 not in states.starts("train") and 41 not in states.starts("train")
    after = states.name(40)
    with pytest.raises(
        DataError, match=f"needs 2 states up to {after}, and some are not in the data"
    ):
        domain.init_times([after])
    with xr.open_zarr(path, chunks=None) as data:
        known = data["2m_temperature"].transpose("time", "latitude", "longitude")
        for item in domain.items("train"):
            at = int(item.index["time"])
            time = data.time.values[at]
            for back, part in ((1, item.cond["past"][1]), (2, item.cond["past"][0])):
                before = time - back * np.timedelta64(12, "h")
                assert np.array_equal(part, known.sel(time=before))


def test_a_missing_date_of_anemoi_is_a_gap(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["anemoi"], variables={"t": [850]}, task="forecast", val=0)
    assert np.datetime64("2020-01-08T12") not in domain.states().times
    assert len(domain.items("train")) == 120 - 1 - 2  # two segments, each without its first


def test_anemoi_cells_are_at_their_latitude_and_longitude(bucket: dict[str, str]) -> None:
    import zarr

    store: Any = zarr.open_group(bucket["anemoi"], mode="r")
    item = weather(path=bucket["anemoi"], variables={"t": [850], "2t": None}).items("train")[3]
    rows = np.unique(store["latitudes"][:])[::-1]
    columns = np.unique(store["longitudes"][:])
    for cell in (0, 17, 100):
        y, x = (rows == store["latitudes"][cell]), (columns == store["longitudes"][cell])
        assert item.values[0][y][:, x] == store["data"][3, 3, 0, cell]
        assert item.values[1][y][:, x] == store["data"][3, 0, 0, cell]


def test_a_reduced_grid_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no regular grid of latitudes and longitudes.*regular grid"
    ):
        weather(path=str(anemoi(tmp_path, 31, reduced=True)))


def test_a_region_is_not_periodic_and_has_its_own_area_weights(bucket: dict[str, str]) -> None:
    select = {"latitude": {"from": 30, "to": 72}, "longitude": {"from": 0, "to": 40}}
    domain = weather(
        path=bucket["wb"],
        variables=["2m_temperature"],
        select=select,
        forcings=["cos_zenith"],
        task="downscaling",
        coarse={"factor": 2},
    )
    assert [axis.kind for axis in domain.layout.axes] == ["line", "line"]
    states, item = domain.states(), domain.items("train")[2]
    assert states.latitude is not None and states.longitude is not None
    assert 30 <= states.latitude.min() and states.latitude.max() <= 72
    shape = (len(states.latitude), len(states.longitude))
    assert domain.weights is not None and domain.weights.shape == shape
    assert np.isclose(domain.weights.mean(), 1, atol=1e-6)
    whole = weather(path=bucket["wb"], variables=["2m_temperature"]).states()
    assert whole.latitude is not None
    rows = np.isin(whole.latitude, states.latitude)
    assert np.array_equal(item.values[0], whole.read(2)[0][rows][:, :8])
    expected = cos_zenith(states.times[2:3], states.latitude[:, None], states.longitude[None])
    assert np.array_equal(item.cond["grids"][0], expected[0])


def test_a_projected_grid_gets_solar_forcings_from_its_2d_latitudes(tmp_path: Path) -> None:
    """Rows and columns in metres, as in regional models; all cells have equal weight."""
    y, x = np.meshgrid(np.arange(5) * 1e5, np.arange(7) * 1e5, indexing="ij")
    latitude, longitude = 50 + y / 1e5 + x / 5e5, 5 + x / 7e4 - y / 9e5
    time = np.datetime64("2001-06-01", "ns") + np.arange(20) * np.timedelta64(3, "h")
    values = np.random.default_rng(0).standard_normal((20, 5, 7)).astype("f4")
    data = xr.Dataset(
        {"t": (("time", "y", "x"), values)},
        {
            "time": time,
            "y": ("y", y[:, 0], {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", x[0], {"standard_name": "projection_x_coordinate", "units": "m"}),
            "latitude": (("y", "x"), latitude, {"units": "degrees_north"}),
            "longitude": (("y", "x"), longitude, {"units": "degrees_east"}),
        },
    )
    data.to_netcdf(tmp_path / "region.nc", engine="h5netcdf")
    domain = weather(path=str(tmp_path / "region.nc"), forcings=["cos_zenith"], task="forecast")
    assert domain.weights is None
    assert [(axis.name, axis.kind) for axis in domain.layout.axes] == [("y", "line"), ("x", "line")]
    item = domain.items("train")[1]
    assert np.array_equal(item.cond["grids"][0], cos_zenith(time[2:3], latitude, longitude)[0])


def test_members_are_items_and_a_forecast_needs_one_of_them(tmp_path: Path) -> None:
    rng, time = np.random.default_rng(0), np.arange(20) * np.timedelta64(6, "h")
    data = xr.Dataset(
        {"t": (("number", "time", "lat", "lon"), rng.standard_normal((3, 20, 6, 8)).astype("f4"))},
        {
            "time": np.datetime64("2001-01-01", "ns") + time,
            "number": np.arange(3),
            "lat": ("lat", np.linspace(75, -75, 6), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0, 360, 45.0), {"units": "degrees_east"}),
        },
    )
    data.to_zarr(tmp_path / "members.zarr", zarr_format=2)
    keys: dict[str, Any] = {"path": str(tmp_path / "members.zarr"), "task": "forecast", "val": 0}
    domain = weather(**keys)
    assert len(domain.items("train")) == 3 * 19
    item = domain.items("train")[4]
    assert np.array_equal(item.cond["past"][0], data["t"][item.index["number"], 1])
    with pytest.raises(DataError, match="have number besides time; choose one entry"):
        domain.init_times(["2001-01-02"])
    one = weather(**keys, select={"number": [2]})
    assert one.init_times(["2001-01-02"]) == ["2001-01-02T00"]
    assert np.array_equal(one.states().read(3)[0], data["t"][2, 3])


# The three tasks


def test_past_states_are_one_lead_apart_and_changes_are_from_the_last(
    bucket: dict[str, str],
) -> None:
    domain = weather(path=bucket["wb"], variables=["2m_temperature"], task="forecast", lead="12h",
                     inputs=2)  # fmt: skip
    states, item = domain.states(), domain.items("val")[0]
    at = int(np.flatnonzero(states.times == states.times[int(item.index["time"])])[0])
    assert np.array_equal(item.values, states.read(at))
    assert np.array_equal(item.cond["past"], np.concatenate([states.read(at - 4),
                                                             states.read(at - 2)]))  # fmt: skip
    train = [states.read(i).astype(np.float64) for i in states.train]
    mean, std = np.mean(train), np.std(train)
    changes = [
        states.read(i).astype(np.float64) - states.read(i - 2)
        for i in states.train[4:]  # items have two states before them
    ]
    expected = (item.values - item.cond["past"][1:] - np.mean(changes)) / np.std(changes)
    field = domain.encode(item)
    assert np.allclose(field.values, expected, atol=2e-4)
    assert np.allclose(field.cond["past"][1], (item.cond["past"][1] - mean) / std, atol=1e-4)
    assert np.allclose(domain.decode(field).values, item.values, atol=1e-3)


def test_changes_have_unit_variance_over_the_training_split(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["wb"], variables=LEVELS, task="forecast")
    values = torch.stack([domain.encode(item).values for item in domain.items("train")]).double()
    assert values.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (values.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-4


def test_a_change_without_its_past_state_is_refused(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["wb"], variables=["2m_temperature"], task="forecast")
    field = domain.encode(domain.items("val")[0])
    null_past = {"past": torch.full_like(torch.as_tensor(field.cond["past"]), torch.nan)}
    with pytest.raises(DataError, match="changes and needs the state before"):
        domain.decode(type(field)(field.values, None, null_past))


def test_coarsening_conserves_the_integral_of_every_block(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["wb"], variables=["2m_temperature"], task="downscaling",
                     coarse={"factor": 8})  # fmt: skip
    item, weights = domain.items("train")[0], domain.weights
    fine, coarse = item.values[0].astype(np.float64), item.cond["grids"][0]
    assert domain.conditions["grids"].channels == ("coarse.2m_temperature",)  # type: ignore[union-attr]
    assert weights is not None

    def integrals(values: Array) -> Array:
        return (values * weights).reshape(4, 8, 8, 8).sum(axis=(1, 3))

    assert np.allclose(integrals(coarse), integrals(fine), rtol=1e-6)
    assert np.ptp(coarse.reshape(4, 8, 8, 8), axis=(1, 3)).max() == 0


def test_a_coarse_store_is_interpolated_and_only_shared_times_are_used(tmp_path: Path) -> None:
    fine = globe(tmp_path, steps=24)
    coarse_rows, coarse_columns = np.array([60.0, 0.0, -60.0]), np.arange(10, 360, 90.0)
    time = np.datetime64("2001-02-26", "ns") + np.arange(12) * np.timedelta64(6, "h")
    plane = coarse_rows[:, None] + 10 * np.cos(np.radians(coarse_columns))
    data = xr.Dataset(
        {"t": (("time", "lat", "lon"), np.arange(12)[:, None, None] + plane)},
        {
            "time": time,
            "lat": ("lat", coarse_rows, {"units": "degrees_north"}),
            "lon": ("lon", coarse_columns, {"units": "degrees_east"}),
        },
    )
    data.to_zarr(tmp_path / "coarse.zarr", zarr_format=2)
    domain = weather(
        path=fine, task="downscaling", coarse={"path": str(tmp_path / "coarse.zarr")}, val=0.25
    )
    assert domain.states().times.tolist() == time.tolist()
    item = domain.items("train")[2]
    found = item.cond["grids"][0]
    # at 45 N and 315 E: rows 60 and 0, columns 280 and 10 (over the date line of the coarse grid)
    east = (315 - 280) / 90
    column = 10 * ((1 - east) * np.cos(np.radians(280)) + east * np.cos(np.radians(10)))
    assert np.isclose(found[1, 7], 2 + 45 + column, atol=1e-4)


@pytest.mark.parametrize("origin", [0, 360])
def test_a_coarse_region_may_have_another_longitude_origin(origin: int) -> None:
    source = (
        np.array([50.0, 40]),
        np.arange(-20, 41, 10.0) % 360 if origin else np.arange(-20, 41, 10.0),
    )
    target = np.array([45.0]), np.array([350.0, 355, 0, 5, 10])
    regrid = Interpolation.grids(source, target)
    found = regrid(np.arange(-20, 41, 10.0)[None].repeat(2, axis=0))
    assert np.allclose(found, [[-10, -5, 0, 5, 10]], atol=1e-5)


def test_a_coarse_region_that_does_not_cover_the_fine_grid_is_refused(tmp_path: Path) -> None:
    fine = globe(tmp_path)
    with xr.open_zarr(fine, chunks=None) as data:
        part = data.load().isel(latitude=slice(0, 3), longitude=[7, 0, 1, 2])
    part.to_zarr(tmp_path / "part.zarr", zarr_format=2)
    keys: dict[str, Any] = {"path": fine, "task": "downscaling"}
    keys["coarse"] = {"path": str(tmp_path / "part.zarr")}
    with pytest.raises(DataError, match=r"3 of 6 entries of latitude \(-75 to -15\) are outside of "
                       r"15 to 75; 4 of 8 entries of longitude.*with domain.select"):  # fmt: skip
        weather(**keys)
    domain = weather(**keys, select={"latitude": {"from": 15}, "longitude": {"to": 90}})
    item = domain.items("train")[0]
    assert np.array_equal(item.cond["grids"][0], item.values[0])


# The sphere


def test_cell_areas_sum_to_four_pi_with_and_without_poles() -> None:
    for rows in (
        np.linspace(90, -90, 19),
        np.linspace(-87.1875, 87.1875, 32),
        np.degrees(np.arcsin(np.polynomial.legendre.leggauss(32)[0])),  # a Gaussian grid
    ):
        for columns in (np.arange(0, 360, 10.0), np.linspace(-180, 180, 64, endpoint=False)):
            areas = cell_areas(rows, columns)
            assert areas.shape == (len(rows), len(columns)) and (areas > 0).all()
            assert np.isclose(areas.sum(), 4 * np.pi, rtol=1e-12)


def test_the_area_of_a_polar_row_is_that_of_its_cap() -> None:
    areas = cell_areas(np.linspace(90, -90, 19), np.arange(0, 360, 10.0))
    cap = 2 * np.pi * (1 - np.cos(np.radians(5)))
    assert np.isclose(areas[0].sum(), cap) and np.isclose(areas[-1].sum(), cap)
    zone = 2 * np.pi * (np.sin(np.radians(45)) - np.sin(np.radians(35)))
    assert np.isclose(areas[5].sum(), zone)  # 40 N


def test_edges_of_a_region_are_half_a_row_outside_its_centres() -> None:
    assert latitude_edges(np.array([30.0, 40, 50])).tolist() == [25, 35, 45, 55]


@given(st.integers(1, 5), st.booleans())
def test_block_means_of_a_constant_are_that_constant(factor: int, missing: bool) -> None:
    values = np.full((2, 7, 9), 3.5)
    values[0, 0, 0] = np.nan if missing else 3.5
    areas = cell_areas(np.linspace(60, -60, 7), np.arange(0, 360, 40.0))
    found = BlockMeans(areas, factor)(values)
    empty = missing and factor == 1
    assert np.isnan(found).sum() == empty and np.allclose(found[np.isfinite(found)], 3.5)


def test_interpolation_is_exact_for_linear_fields_and_periodic_in_longitude() -> None:
    source = (np.linspace(90, -90, 13), np.arange(0, 360, 15.0))
    target = (np.linspace(88, -88, 40), np.linspace(-179, 179, 50))
    regrid = Interpolation.grids(source, target)
    rows = regrid(np.repeat(source[0][:, None], 24, axis=1))
    assert np.allclose(rows, target[0][:, None], atol=1e-4)
    wave = regrid(np.cos(np.radians(source[1]))[None].repeat(13, axis=0))
    assert np.allclose(wave, np.cos(np.radians(target[1])), atol=0.01)  # (15 degrees)^2 / 8


def test_area_weights_have_mean_one_and_follow_cell_areas(bucket: dict[str, str]) -> None:
    domain = weather(path=bucket["wb"], variables=["2m_temperature"])
    weights = domain.weights
    assert weights is not None and np.isclose(weights.mean(), 1, atol=1e-6)
    areas = cell_areas(-90 + (np.arange(32) + 0.5) * 180 / 32, np.arange(64) * 360 / 64)
    assert np.allclose(weights / weights.sum(), areas / areas.sum(), rtol=1e-5)
    assert (
        weather(path=bucket["wb"], variables=["2m_temperature"], area_weights=False).weights is None
    )


# Solar forcings


def test_the_solar_zenith_angle_agrees_with_the_example_of_nrel() -> None:
    """Reda & Andreas 2004 (NREL/TP-560-34302), table A5.1: October 17, 2003, 12:30:30 in Golden,
    Colorado, seven hours behind UTC; zenith 50.11162 degrees, about 0.016 of it by refraction."""
    time = np.array(["2003-10-17T19:30:30"], "M8[s]")
    cosine = cos_zenith(time, np.array([39.742476]), np.array([-105.1786]))[0, 0]
    assert abs(np.degrees(np.arccos(cosine)) - 50.128) < 0.02


@pytest.mark.parametrize(
    ("time", "latitude"),
    [("2024-06-20T20:51", 23.436), ("2024-12-21T09:20", -23.436), ("2024-03-20T03:06", 0.0)],
)
def test_at_solstice_and_equinox_the_sun_is_over_tropic_and_equator(
    time: str, latitude: float
) -> None:
    rows, columns = np.linspace(-90, 90, 3601), np.linspace(-180, 180, 1441)
    found = cos_zenith(np.array([time], "M8[s]"), rows[:, None], columns[None])[0]
    y, _ = np.unravel_index(found.argmax(), found.shape)
    assert abs(rows[y] - latitude) <= 0.05 and found.max() > 0.99999
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.02)


def test_mean_radiation_is_a_quarter_of_the_solar_constant() -> None:
    """Averaged over the sphere and a year; the orbit's eccentricity is 1.67 %."""
    times = np.datetime64("2021-01-01", "s") + np.arange(0, 365 * 24, 23) * np.timedelta64(1, "h")
    rows = np.degrees(np.arcsin(np.linspace(-1, 1, 61)[1::2] / 1))  # equal areas, nearly
    radiation = toa_radiation(times, rows[:, None], np.arange(0, 360, 20.0)[None])
    assert radiation.mean() == pytest.approx(SOLAR_CONSTANT / 4, rel=0.01)


def test_seasons_are_right_in_calendars_without_leap_years() -> None:
    position = (np.array([51.5]), np.array([0.0]))
    for month, day, hour in ((1, 5, 12), (6, 21, 9), (10, 2, 15)):
        real = np.array([datetime(2003, month, day, hour)], "M8[s]")
        model = np.array([cftime.DatetimeNoLeap(2003, month, day, hour)])
        assert cos_zenith(model, *position) == pytest.approx(cos_zenith(real, *position), abs=0.01)


def test_forcings_are_those_of_the_predicted_time(bucket: dict[str, str]) -> None:
    domain = weather(**TASKS["forecast"] | {"path": bucket["wb"]})
    item, states = domain.items("val")[3], domain.states()
    time = states.times[int(item.index["time"])]
    longitude, latitude = states.longitude, states.latitude
    assert latitude is not None and longitude is not None
    expected = cos_zenith(np.array([time]), latitude[:, None], longitude[None])[0]
    assert np.array_equal(item.cond["grids"][0], expected)
    assert item.cond["time.hour"] == int((time - time.astype("M8[D]")) / np.timedelta64(1, "h"))


# User errors


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"variables": ["2m_temperatur"]}, "no variable '2m_temperatur'.*did you mean '2m_temp"),
        (
            {"variables": {"temperature": [501]}},
            "domain.variables.temperature: no 501.*nearest is 500",
        ),
        (
            {"variables": {"2m_temperature": [500]}},
            "levels 500 are requested, but the variable has none",
        ),
        (
            {"variables": {"2m_temperature": None, "wave_height": None}},
            "no variable 'wave_height'.*to replace them give domain.variables=null first",
        ),
        ({"static": ["orography"]}, r"no variable 'orography' \(domain.static\)"),
        ({"task": "forecast", "lead": "9h"}, "domain.lead: 9h is not a multiple of the 6h"),
        ({"static": ["temperature"]}, "'temperature' has levels, but a map has none"),
        ({"transforms": {"temprature": "sqrt"}}, "domain.transforms: no variable.*'temperature'"),
        ({"accumulate": {"rain": "6h"}}, "domain.accumulate: 'rain' is not among the variables"),
        ({"every": "3h"}, "domain.every: 3h is not a multiple of the 6h between steps"),
        (
            {"variables": ["2m_temperature", "land_sea_mask"]},
            "a variable without time belongs in domain.static",
        ),
    ],
)
def test_a_user_error_is_one_clear_message(
    keys: dict[str, Any], text: str, bucket: dict[str, str]
) -> None:
    with pytest.raises(JitkitError, match=text):
        weather(**{"path": bucket["wb"], "variables": ["temperature"]} | keys).layout  # noqa: B018


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"lead": "6h"}, "lead is for task: forecast, but task is unconditional"),
        ({"task": "downscaling"}, "needs coarse.factor or coarse.path"),
        ({"task": "downscaling", "coarse": {"factor": 1}}, "coarsens nothing"),
        ({"every": "six hours"}, "'six hours' is no duration; write 6h"),
        ({"every": "48h"}, "every: 48h does not divide a day.*'8 steps'"),
        ({"every": "5h"}, "every: 5h does not divide a day"),
        ({"condition_drop": {"past": 0.1}}, "condition_drop: no condition 'past'; there are: none"),
    ],
)
def test_an_invalid_section_is_refused_before_data_are_opened(
    keys: dict[str, Any], text: str
) -> None:
    with pytest.raises((RecipeError, ValueError), match=text):
        section(path="nowhere.zarr", **keys)


def test_durations_are_whole_numbers_of_steps() -> None:
    assert duration("1d").in_steps(21_600, "lead") == 4
    assert duration("3 steps").in_steps(2.6e6, "lead") == 3
    with pytest.raises(RecipeError, match="lead: 1h is not a multiple of the 6h"):
        duration("1h").in_steps(21_600, "lead")


def test_a_missing_cell_in_the_past_state_makes_an_item_bad(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((24, 6, 8)).astype("f4")
    values[22, 1, 1] = np.nan  # in the validation split
    domain = weather(path=globe(tmp_path, t=values), task="forecast", missing=False, val=0.2)
    items = domain.items("val")
    bad = [i for i, item in enumerate(items) if np.isnan(item.values).any()]
    with pytest.raises(BadItem, match="1 cells of the state before it are missing"):
        domain.encode(items[bad[0] + 1])


def test_the_domain_can_be_pickled_and_its_batches_are_masked(bucket: dict[str, str]) -> None:
    from jitkit.data import BatchPlan

    domain = weather(path=bucket["wb"], variables=["sea_surface_temperature"], task="forecast")
    domain.layout  # noqa: B018  # measures statistics
    copy = pickle.loads(pickle.dumps(domain))
    plan = BatchPlan(len(copy.items("train")), 4, 0, 0, 1)
    batch = next(iter(batches(copy, copy.items("train"), plan)))
    assert batch.mask is not None and not bool(batch.mask.all())
    assert bool((batch.x[~batch.mask.expand_as(batch.x)] == 0).all())


def test_a_trained_model_refuses_another_lead_or_number_of_past_states(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"path": globe(tmp_path), "task": "forecast", "lead": "6h", "val": 0}
    metadata = weather(**keys).metadata()
    with pytest.raises(RecipeError, match="domain.inputs is 2, but the model was trained with 1"):
        Weather.from_metadata(section(**keys, inputs=2), metadata)
    other = Weather.from_metadata(section(**keys | {"lead": "12h"}), metadata)
    with pytest.raises(DataError, match="12h apart, but the model's step is 6h; set domain.lead"):
        other.items("train")


def test_a_trained_model_refuses_another_grid_and_other_units(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"path": globe(tmp_path), "task": "forecast"}
    metadata = weather(**keys).metadata()
    with xr.open_zarr(keys["path"], chunks=None) as data:
        data.load()
    rolled = data.roll(longitude=4, roll_coords=True)
    moved = rolled.assign_coords(longitude=("longitude", np.arange(-180, 180, 45.0)))
    celsius = data.assign(t=(data["t"] - 273.15).assign_attrs(units="degC"))
    nudged = data.assign_coords(longitude=data["longitude"] + 0.01)
    rounded = data.assign_coords(latitude=data["latitude"].astype("f4") + np.float32(1e-3))

    def opened(name: str, other: xr.Dataset) -> Weather:
        other.to_zarr(tmp_path / name, zarr_format=2)
        return Weather.from_metadata(section(**keys | {"path": str(tmp_path / name)}), metadata)

    for name, other, text in (
        ("n", data.isel(latitude=slice(None, None, -1)), "latitude runs from -75 to 75.*from 75 to "
         "-75.*Flip the data"),
        ("w", moved, "longitude runs from -180 to 135.*from 0 to 315.*same positions in another"),
        ("u", celsius, "t is in 'degC', but the model was trained in 'K'; convert"),
        ("s", nudged, "longitude runs from 0.01 to.*regrid the data to the model's grid"),
    ):  # fmt: skip
        domain = opened(name, other)
        with pytest.raises(DataError, match=text):
            domain.init_times(["val:1"])
    assert opened("r", rounded).init_times(["val:1"])


def test_a_trained_model_refuses_other_units_of_its_conditions(tmp_path: Path) -> None:
    fine = globe(tmp_path)
    with xr.open_zarr(fine, chunks=None) as data:
        celsius = data.load().assign(t=(data["t"] - 273.15).assign_attrs(units="degC"))
    celsius.to_zarr(tmp_path / "celsius.zarr", zarr_format=2)
    keys: dict[str, Any] = {"path": fine, "task": "downscaling"}
    metadata = weather(**keys, coarse={"path": fine}).metadata()
    domain = Weather.from_metadata(
        section(**keys, coarse={"path": str(tmp_path / "celsius.zarr")}), metadata
    )
    with pytest.raises(DataError, match="coarse.t is in 'degC', but the model was trained in 'K'"):
        domain.items("val")


def test_a_trained_model_refuses_other_accumulation_windows(bucket: dict[str, str]) -> None:
    keys = TASKS["rain"] | {"path": bucket["arco"]}
    metadata = weather(**keys).metadata()
    with pytest.raises(RecipeError, match="domain.accumulate is .*'3h'.* trained with .*'6h'"):
        Weather.from_metadata(
            section(**keys | {"accumulate": {"total_precipitation": "3h"}}), metadata
        )
