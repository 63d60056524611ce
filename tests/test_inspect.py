"""`jitkit inspect`: recognized dimensions, and proposed recipes that run unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from climate import as_netcdf, as_zarr, climate, smooth
from conftest import Result

import jitkit as package
from jitkit.domains.arrays.adapter import Arrays
from jitkit.domains.arrays.data import open_data
from jitkit.domains.arrays.inspect.dimensions import dimension_kind, is_periodic
from jitkit.domains.arrays.inspect.guess import candidates
from jitkit.domains.arrays.inspect.inspection import _slow_chunks, inspect_arrays
from jitkit.domains.arrays.inspect.proposal import Proposal, as_yaml
from jitkit.domains.arrays.inspect.value_scan import scan_values
from jitkit.domains.arrays.section import ArraysSection
from jitkit.errors import DataError
from jitkit.recipe.load import load_recipe
from jitkit.sections import SampleSection
from jitkit.stores.store import Store

Maker = Callable[[Path], str]
LEAST: dict[str, Any] = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 2}
LEAST |= {"train.preview_samples": 1, "sample.steps": 2, "train.log": []}
Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are cached in the test's folder."""
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))


def train_and_sample(proposal: Proposal, folder: Path) -> xr.Dataset | np.ndarray[Any, Any]:
    """Write the recipe, train two steps, sample, and open the written file."""
    path = folder / "proposed.yaml"
    path.write_text(proposal.text())
    run = package.train(load_recipe(path, LEAST), run=folder / "run")
    denoiser = package.load(run)
    from jitkit.sampling.generate import sample_items
    from jitkit.sampling.requests import conditioning_for

    cond = conditioning_for(denoiser, 2)
    items = sample_items(denoiser, 2, cond, SampleSection(steps=2))
    (file,) = denoiser.domain.write(items, folder / "out")
    if file.suffix == ".npy":
        return np.load(file)
    if file.suffix == ".npz":
        return next(iter(np.load(file).values()))
    if file.suffix == ".zarr":
        return xr.open_zarr(file)
    return xr.open_dataset(file, engine="h5netcdf")


def saved(name: str, values: np.ndarray[Any, Any]) -> Maker:
    def make(folder: Path) -> str:
        np.save(folder / name, values)
        return str(folder / name)

    return make


def volumes(folder: Path) -> str:
    """Three axes and times, with dimension names but without coordinates."""
    data = xr.Dataset({"rho": (("time", "z", "y", "x"), smooth(30, 12, 6, 8))})
    return as_netcdf(data, folder / "volumes.nc")


def members(folder: Path) -> str:
    """An ensemble on a globe, in Zarr."""
    data = climate(12)[["t2m"]].expand_dims(number=3).copy()
    return as_zarr(data, folder / "members.zarr")


def many(folder: Path) -> str:
    """200 named channels of a line."""
    values = smooth(40, 200, 16)
    data = xr.Dataset(
        {"signal": (("sample", "channel", "position"), values)},
        {"channel": [f"c{i}" for i in range(200)]},
    )
    return as_netcdf(data, folder / "many.nc")


def signals(folder: Path) -> str:
    """Trials of a few channels; time is the axis."""
    data = xr.Dataset({"v": (("trial", "channel", "time"), smooth(80, 3, 50))})
    return as_netcdf(data, folder / "signals.nc")


def stations(folder: Path) -> str:
    """One long time series at named stations."""
    time = np.datetime64("2000-01-01", "ns") + np.arange(400) * np.timedelta64(1, "h")
    coords = {"time": time, "station": ["Exeter", "Bonn", "Oslo"]}
    data = xr.Dataset({"v": (("time", "station"), smooth(400, 3))}, coords)
    return as_netcdf(data, folder / "stations.nc")


def well(folder: Path) -> str:
    """Five simulations of a volume in the format of The Well: a density and a velocity."""
    shape, names = (8, 9, 10), ("x", "y", "z")
    with h5py.File(folder / "well.h5", "w") as file:
        file.attrs.update(n_spatial_dims=3, grid_type="cartesian", n_trajectories=5)
        file["dimensions/time"] = np.linspace(0, 1, 6, dtype=np.float32)
        file["dimensions"].attrs["spatial_dims"] = list(names)
        for name, size in zip(names, shape, strict=True):
            file[f"dimensions/{name}"] = np.linspace(0, 1, size, dtype=np.float32)
        for order, (group, name) in enumerate((("t0_fields", "rho"), ("t1_fields", "v"))):
            file[f"{group}/{name}"] = smooth(5, 6, *shape, *[3] * order)
            file[f"{group}/{name}"].attrs.update(sample_varying=True, time_varying=True)
    return str(folder / "well.h5")


def columns(folder: Path) -> str:
    """One long time series of four unnamed columns: a random walk."""
    steps = np.random.default_rng(0).standard_normal((2_000, 4))
    np.save(folder / "columns.npy", np.cumsum(steps, axis=0).astype(np.float32))
    return str(folder / "columns.npy")


def unordered(folder: Path) -> str:
    """200 unnamed channels on a smooth grid, each with a different offset."""
    rng = np.random.default_rng(0)
    levels = 9 * rng.standard_normal((1, 200, 1, 1))
    values = smooth(30, 1, 12, 14) * rng.standard_normal((30, 200, 1, 1)) + levels
    np.savez(folder / "unordered.npz", u=values.astype(np.float32))
    return str(folder / "unordered.npz")


def ocean(folder: Path) -> str:
    """One field on a folded grid with two-dimensional coordinates; the first rows are land."""
    y, x = np.mgrid[0:24, 0:36].astype(np.float32)
    values = smooth(1, 24, 36)[0] + y / 9
    values[:3] = np.nan
    coords = {
        "nav_lat": (("y", "x"), 6 * y - 70, {"standard_name": "latitude"}),
        "nav_lon": (("y", "x"), (73 + 10 * x + y / 9) % 360, {"standard_name": "longitude"}),
    }
    data = xr.Dataset({"tos": (("time_counter", "y", "x"), values[None])}, coords)
    return as_netcdf(data, folder / "ocean.nc")


def deep(folder: Path) -> str:
    """Unevenly spaced levels, the lowest below the sea floor everywhere, and a flag variable."""
    data = climate(24)[["t2m"]]
    water = np.stack([data["t2m"].values] * 4, axis=1) + smooth(24, 4, 6, 8)
    water[:, 3] = np.nan
    level = ("depth", np.array([5.0, 15.0, 40.0, 4000.0], np.float32), {"positive": "down"})
    data["water"] = (("time", "depth", "latitude", "longitude"), water.astype(np.float32))
    data["quality"] = data["t2m"].astype(np.int16).assign_attrs(flag_values=[0, 1])
    return as_netcdf(data.assign_coords(depth=level), folder / "deep.nc")


LINES, GLOBE = {"dim_1": "line", "dim_2": "line"}, {"latitude": "line", "longitude": "circle"}
CASES: dict[str, tuple[Maker, dict[str, str], int, dict[str, Any]]] = {
    "globe": (
        lambda folder: as_netcdf(climate()[["t2m", "sst"]], folder / "globe.nc"),
        GLOBE,
        2,
        {"sample": ["time"], "gap": 2},
    ),
    "levels": (
        lambda folder: as_zarr(climate()[["z", "t2m"]], folder / "levels.zarr"),
        GLOBE,
        3,
        {"unroll": ["level"]},
    ),
    "many variables": (
        lambda folder: as_netcdf(climate(), folder / "everything.nc"),
        GLOBE,
        5,
        {"variables": ["z", "t2m", "sst", "rain"], "unroll": ["level"]},
    ),
    "members": (members, GLOBE, 1, {"sample": ["time", "number"]}),
    "volumes": (volumes, {"z": "line", "y": "line", "x": "line"}, 1, {}),
    "many": (many, {"position": "line"}, 200, {"unroll": ["channel"]}),
    "lines": (saved("lines.npy", smooth(30, 17)), {"dim_1": "line"}, 1, {"sample": ["dim_0"]}),
    "pictures": (saved("a.npy", smooth(30, 3, 12, 16)), {"dim_2": "line", "dim_3": "line"}, 3, {}),
    "last channels": (saved("a.npy", smooth(30, 12, 16, 3)), LINES, 3, {"unroll": ["dim_3"]}),
    "films": (
        saved("films.npy", smooth(9, 6, 8, 9, 10)),
        {f"dim_{i}": "line" for i in (1, 2, 3, 4)},
        1,
        {"sample": ["dim_0"]},
    ),
    "series": (saved("series.npy", smooth(3_000)), {}, 1, {"window": 256, "stride": 64}),
    "columns": (columns, {}, 4, {"unroll": ["dim_1"], "window": 128}),
    "unordered": (unordered, {"dim_2": "line", "dim_3": "line"}, 200, {"unroll": ["dim_1"]}),
    "signals": (signals, {"time": "line"}, 3, {"sample": ["trial"], "unroll": ["channel"]}),
    "stations": (stations, {}, 3, {"unroll": ["station"], "window": 32}),
    "well": (
        well,
        {"x": "line", "y": "line", "z": "line"},
        4,
        {"sample": ["sample", "time"], "unroll": ["component"], "val": 0.2},
    ),
    "ocean": (ocean, {"x": "circle"}, 1, {"sample": ["y"], "window": 4}),
    "deep": (deep, GLOBE, 4, {"select": {"depth": [5.0, 15.0, 40.0]}}),
    "three": (saved("a.npy", smooth(3, 9, 11)), LINES, 1, {"val": 0.3333}),
    "two": (saved("a.npy", smooth(2, 9, 11)), LINES, 1, {"val": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_proposed_recipe_trains_and_samples_unchanged(name: str, tmp_path: Path) -> None:
    make, axes, channels, keys = CASES[name]
    proposal = inspect_arrays(make(tmp_path))
    section = proposal.recipe["domain"]
    assert section["axes"] == axes
    assert {key: section[key] for key in keys} == keys
    out = train_and_sample(proposal, tmp_path)
    if isinstance(out, xr.Dataset):
        shapes = [v.shape for v in out.data_vars.values() if v.ndim > 1]
        assert all(shape[0] == 2 for shape in shapes)
    else:
        assert out.shape[0] == 2
    domain = package.load(tmp_path / "run").domain
    assert len(domain.layout.channels) == channels


@pytest.mark.parametrize(
    ("pattern", "axes", "count"),
    [
        ("ostia_monthly.nc", {"latitude": "line", "longitude": "circle"}, 48),
        ("A1B_north_america.nc", {"latitude": "line", "longitude": "line"}, 215),
        ("E1_north_america.nc", {"latitude": "line", "longitude": "line"}, 215),
        ("NEMO/*.nc", {"y": "line", "x": "circle"}, 2),
        ("NEMO/nemo_1m_20150101-20150201_grid-T.nc", {"x": "circle"}, 50),
        ("orca2_votemper.nc", {"dim1": "circle"}, 42),
        ("SOI_Darwin.nc", {}, 44),
        ("hybrid_height.nc", {"grid_latitude": "line", "grid_longitude": "line"}, 13),
        ("space_weather.nc", {"rLat": "line", "rLon": "line"}, 26),
    ],
)
def test_real_files_train_and_samples_keep_their_units(
    pattern: str, axes: dict[str, str], count: int, tmp_path: Path
) -> None:
    iris = pytest.importorskip("iris_sample_data")
    folder = Path(iris.__file__).parent / "sample_data"
    proposal = inspect_arrays(str(folder / pattern))
    assert proposal.recipe["domain"]["axes"] == axes and proposal.items["train"] == count
    out = train_and_sample(proposal, tmp_path)
    assert isinstance(out, xr.Dataset) and out.sizes["sample"] == 2
    (name,) = (row.name for row in proposal.rows if row.role == "predicted")
    units = Store(str(folder / pattern)).variables[name].attrs.get("units")
    assert out[name].attrs.get("units") == units


def test_the_command_writes_a_recipe_and_lists_doubts(
    jitkit: Callable[..., Result], tmp_path: Path
) -> None:
    data = as_netcdf(climate()[["t2m", "sst", "land"]], tmp_path / "globe.nc")
    out = tmp_path / "globe.yaml"
    answer = jitkit("inspect", data, "--out", out)
    assert answer.code == 0 and f"train with: jitkit train {out}" in answer.out
    assert "longitude (8): axis, circle, because its steps cover 360 degrees" in answer.out
    assert "domain.conditions.static=[land]" in answer.out
    recipe = load_recipe(out)
    assert recipe.domain.name == "arrays" and recipe.name == "globe"
    before = out.read_text()
    refused = jitkit("inspect", data, "--out", out)
    assert refused.code == 2 and "exists already" in refused.err and out.read_text() == before
    proposal = json.loads(jitkit("inspect", data, "--json").out)
    assert proposal["recipe"]["domain"]["axes"] == {"latitude": "line", "longitude": "circle"}
    missing = {row["name"]: row["missing"] for row in proposal["variables"]}
    assert missing["t2m"] == 0 and missing["sst"] > 0.1


def test_inspecting_does_not_load_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    data = as_netcdf(climate(8)[["t2m"]], tmp_path / "globe.nc")
    code = (
        "import sys; from jitkit.registry import domain_class\n"
        f"domain_class('arrays').inspect({data!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("cells", "step", "periodic"), [(8, 45.0, True), (8, 40.0, False), (2, 180.0, False)]
)
def test_a_longitude_is_periodic_only_if_its_steps_cover_360_degrees(
    cells: int, step: float, periodic: bool, tmp_path: Path
) -> None:
    values = np.arange(cells) * step
    coords = {"lon": ("lon", values, {"units": "degrees_east"})}
    data = xr.Dataset({"a": (("time", "lon"), smooth(4, cells))}, coords)
    store = Store(as_netcdf(data, tmp_path / "a.nc"))
    assert bool(is_periodic(store, "lon")) is periodic


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (xr.Dataset({"a": ((), 1.0)}), "no numeric variable with more than one value"),
        (xr.Dataset({"a": (("time", "x"), np.ones((9, 4)))}), "the same in every cell"),
        (xr.Dataset({"a": (("time",), np.array(["x", "y"]))}), "no numeric variable"),
    ],
)
def test_data_without_anything_to_train_on_are_refused(
    data: xr.Dataset, text: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        inspect_arrays(as_netcdf(data, tmp_path / "a.nc"))


def test_a_constant_variable_is_left_out(tmp_path: Path) -> None:
    data = climate(12)[["t2m"]]
    data["zero"] = data["t2m"] * 0
    proposal = inspect_arrays(as_netcdf(data, tmp_path / "a.nc"))
    assert proposal.recipe["domain"]["variables"] == ["t2m"]
    assert {row.name: row.role for row in proposal.rows}["zero"] == "left out: constant"


def test_chunks_larger_than_the_buffer_give_a_warning(tmp_path: Path) -> None:
    data = climate(40)[["t2m"]]
    path = as_netcdf(data, tmp_path / "a.nc", chunk=40)
    keys = {"name": "arrays", "path": path, "axes": {"latitude": "line", "longitude": "circle"}}
    (warning,) = _slow_chunks(open_data(ArraysSection(**keys, buffer="8KiB")))
    assert "40 times as much is decoded as is used" in warning
    assert list(_slow_chunks(open_data(ArraysSection(**keys)))) == []


def test_a_logarithm_is_suggested_for_a_long_tail(tmp_path: Path) -> None:
    data = climate(40)[["rain"]]
    unsure = dict(inspect_arrays(as_netcdf(data, tmp_path / "a.nc")).unsure)
    assert any("rain has a long tail" in doubt for doubt in unsure)


# Guesses from values


def test_the_day_of_the_year_is_a_condition_if_it_explains_variance(tmp_path: Path) -> None:
    time = np.arange("2001-01", "2007-01", dtype="M8[M]").astype("M8[ns]")
    noise = smooth(72, 6, 8)
    season = 3 * np.sin(2 * np.pi * np.arange(72) / 12)[:, None, None]
    for name, values, used in (("with", noise + season, True), ("without", noise, False)):
        data = xr.Dataset({"t": (("time", "y", "x"), values)}, {"time": time})
        proposal = inspect_arrays(as_netcdf(data, tmp_path / f"{name}.nc"))
        assert ("conditions" in proposal.recipe["domain"]) is used
        (key,) = (key for doubt, key in proposal.unsure if "time.dayofyear" in doubt)
        assert key == f"domain.conditions.scalars=[{'' if used else 'time.dayofyear'}]"


def test_an_undeclared_fill_value_is_proposed(tmp_path: Path) -> None:
    values = smooth(20, 6, 8)
    values[:, :2] = -9999
    proposal = inspect_arrays(saved("a.npy", values)(tmp_path))
    assert proposal.recipe["domain"]["fill"] == {"values": -9999} and not proposal.warnings
    (reason,) = (reason for reason in proposal.reasons if "-9999" in reason)
    assert reason.startswith("values is -9999 in 33.3% of its cells")
    (row,) = proposal.rows
    assert row.missing == pytest.approx(1 / 3) and row.low is not None and row.low > -10
    (tmp_path / "r.yaml").write_text(proposal.text())
    for override, missing in ((), True), (["domain.fill.values=null"], False):
        section: Any = load_recipe(tmp_path / "r.yaml", override).domain
        assert Arrays(section).layout.missing is missing
    assert "domain.fill.values=null" in [key for _, key in proposal.unsure]


def test_of_two_undeclared_fill_values_one_is_proposed_and_one_warned_of(tmp_path: Path) -> None:
    values = smooth(20, 6, 8)
    values[:, :2], values[:, 2] = -99999, -999
    proposal = inspect_arrays(saved("a.npy", values)(tmp_path))
    assert proposal.recipe["domain"]["fill"] == {"values": -99999}
    assert "values is -999 in" in proposal.warnings[0]


def test_a_circle_is_suggested_if_the_ends_of_an_axis_match(tmp_path: Path) -> None:
    phase = np.random.default_rng(0).uniform(0, 6, (40, 1))
    periodic = np.sin(np.linspace(0, 2 * np.pi, 64, endpoint=False) + phase)
    unsure = inspect_arrays(saved("periodic.npy", periodic)(tmp_path)).unsure
    assert any(key == "domain.axes.dim_1=circle" for _, key in unsure)
    half = np.cos(np.linspace(0, np.pi, 64) + phase)
    unsure = inspect_arrays(saved("half.npy", half)(tmp_path)).unsure
    assert not any("circle" in key for _, key in unsure)


def test_a_scan_reads_a_few_chunks_of_a_large_store(tmp_path: Path) -> None:
    values = np.zeros((4_000, 8, 1_024), np.float32)
    data = xr.Dataset({"a": (("time", "y", "x"), values)})
    data.to_zarr(tmp_path / "a.zarr", zarr_format=2, encoding={"a": {"chunks": (1, 8, 1_024)}})
    store = Store(tmp_path / "a.zarr")
    scan = scan_values(store, ["a"])["a"]
    assert len(scan.boxes) == 8 and not scan.complete
    assert store.stats.decoded_bytes <= 2**26
    assert scan.missing == 0 and scan.range == (0, 0) and scan.constant


# The recipe


def test_every_doubt_names_an_override_that_loads(tmp_path: Path) -> None:
    for name in ("many variables", "pictures", "films", "columns", "signals", "well", "ocean"):
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        proposal = inspect_arrays(CASES[name][0](folder))
        (folder / "r.yaml").write_text(proposal.text())
        for _, override in proposal.unsure:
            if not override.startswith("domain.path"):
                section: Any = load_recipe(folder / "r.yaml", override.split(" ")).domain
                assert len(Arrays(section).items("train")), override


def test_doubts_are_comments_above_their_keys(tmp_path: Path) -> None:
    text = inspect_arrays(volumes(tmp_path)).text()
    lines = text.splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith("  axes:"))
    assert "domain.axes.x=circle" in lines[i - 1] and lines[i - 1].startswith("  # unsure: ")
    assert text.startswith("# Proposed by `jitkit inspect ")


def test_names_and_paths_with_special_meaning_in_yaml_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "on: a # ${b}"
    folder.mkdir()
    data = xr.Dataset({"1e5": (("time", "y", "n m"), smooth(20, 6, 20))})
    proposal = inspect_arrays(as_netcdf(data, folder / "no.nc"))
    (tmp_path / "r.yaml").write_text(proposal.text())
    section: Any = load_recipe(tmp_path / "r.yaml").domain
    assert section.path == str(folder / "no.nc") and section.variables == ["1e5"]
    assert section.axes == {"y": "line", "n m": "line"}
    assert as_yaml([True, None, "null", "a"]) == '[true, null, "null", a]'


def test_the_model_grows_with_the_number_of_items(tmp_path: Path) -> None:
    few = inspect_arrays(saved("few.npy", smooth(20, 16))(tmp_path)).recipe
    many = inspect_arrays(saved("many.npy", smooth(4_000, 16))(tmp_path)).recipe
    assert few["model"]["width"] < many["model"]["width"] <= 192
    assert few["train"]["batch_size"] <= 10 and few["train"]["steps"] <= many["train"]["steps"]


# Dimensions


@pytest.mark.parametrize(
    ("dim", "attrs", "kind"),
    [
        ("time_counter", {"axis": "T"}, "time"),
        ("rlon", {}, "x"),
        ("south_north", {}, "y"),
        ("a", {"units": "degrees_north"}, "y"),
        ("a", {"standard_name": "air_pressure"}, "level"),
        ("a", {"positive": "down"}, "level"),
        ("a", {"units": "days since 2000-01-01"}, "time"),
        ("realization", {}, "member"),
        ("depth", {}, "level"),
        ("channel", {}, "names"),
        ("q", {}, "unknown"),
    ],
)
def test_a_dimension_is_recognized_by_attributes_or_name(
    dim: str, attrs: dict[str, str], kind: str, tmp_path: Path
) -> None:
    coords = {dim: (dim, np.arange(4.0), attrs)} if attrs else {}
    data = xr.Dataset({"v": ((dim, "other"), smooth(4, 5))}, coords)
    assert dimension_kind(Store(as_netcdf(data, tmp_path / "a.nc")), dim)[0] == kind


def test_a_mesh_is_refused(tmp_path: Path) -> None:
    iris = pytest.importorskip("iris_sample_data")
    file = Path(iris.__file__).parent / "sample_data" / "mesh_C4_synthetic_float.nc"
    with pytest.raises(DataError, match="a mesh without rows and columns; interpolate"):
        candidates(Store(file))


def test_null_removes_an_axis() -> None:
    text = json.dumps({"name": "arrays", "axes": {"y": None, "x": "line"}})
    assert ArraysSection.model_validate_json(text, strict=True).axes == {"x": "line"}
