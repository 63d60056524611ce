"""A strange file is looked at, and the recipe that is proposed for it runs as it is."""

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
from conftest import Answer

import jitkit as package
from jitkit.domains.arrays.guesses import closes
from jitkit.domains.arrays.inspection import Proposal, inspect
from jitkit.domains.stores.store import Store
from jitkit.errors import DataError
from jitkit.recipe import load_recipe
from jitkit.sections import SampleSection

Maker = Callable[[Path], str]
LEAST: dict[str, Any] = {"model.width": 16, "model.depth": 1, "model.heads": 2, "train.steps": 2}
LEAST |= {"train.preview_samples": 1, "sample.steps": 2, "train.log": []}


def chain(proposal: Proposal, folder: Path) -> xr.Dataset | np.ndarray[Any, Any]:
    """Write the recipe, train two steps, sample, and open what came out."""
    path = folder / "proposed.yaml"
    path.write_text(proposal.text())
    run = package.train(load_recipe(path, LEAST), run=folder / "run")
    denoiser = package.load(run)
    from jitkit.generate import conditions_for, generate

    told = conditions_for(denoiser, 2)
    items = generate(denoiser, 2, told, SampleSection(steps=2))
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
    """Three axes, times, no coordinates but names of dimensions."""
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


def record(folder: Path) -> str:
    """One long record of four channels."""
    with h5py.File(folder / "record.h5", "w") as file:
        file["eeg"] = smooth(4, 4_000)
    return str(folder / "record.h5")


CASES: dict[str, tuple[Maker, dict[str, str], int, dict[str, Any]]] = {
    "globe": (
        lambda folder: as_netcdf(climate()[["t2m", "sst"]], folder / "globe.nc"),
        {"latitude": "line", "longitude": "circle"},
        2,
        {"sample": ["time"]},
    ),
    "levels": (
        lambda folder: as_zarr(climate()[["z", "t2m"]], folder / "levels.zarr"),
        {"latitude": "line", "longitude": "circle"},
        3,
        {"unroll": ["level"]},
    ),
    "members": (members, {"latitude": "line", "longitude": "circle"}, 1, {}),
    "volumes": (volumes, {"z": "line", "y": "line", "x": "line"}, 1, {}),
    "many": (many, {"position": "line"}, 200, {"unroll": ["channel"]}),
    "lines": (saved("lines.npy", smooth(30, 17)), {"dim_1": "line"}, 1, {}),
    "films": (saved("films.npy", smooth(9, 4, 6, 5)), None, 1, {"sample": ["dim_0"]}),  # type: ignore[dict-item]
    "series": (saved("series.npy", smooth(3_000)), {}, 1, {"window": 256, "stride": 64}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_proposed_recipe_trains_and_samples_as_it_is(name: str, tmp_path: Path) -> None:
    make, axes, channels, keys = CASES[name]
    found = inspect(make(tmp_path))
    section = found.recipe["domain"]
    if axes is not None:
        assert section["axes"] == axes
    assert {key: section[key] for key in keys} == keys
    out = chain(found, tmp_path)
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
        ("ostia_monthly.nc", {"latitude": "line", "longitude": "circle"}, 49),
        ("A1B_north_america.nc", {"latitude": "line", "longitude": "line"}, 216),
        ("E1_north_america.nc", {"latitude": "line", "longitude": "line"}, 216),
        ("NEMO/*.nc", {"y": "line", "x": "line"}, 2),
        ("SOI_Darwin.nc", {}, 46),
    ],
)
def test_real_files_of_the_field_train_and_come_back(
    pattern: str, axes: dict[str, str], count: int, tmp_path: Path
) -> None:
    real = pytest.importorskip("iris_sample_data")
    folder = Path(real.__file__).parent / "sample_data"
    found = inspect(str(folder / pattern))
    assert found.recipe["domain"]["axes"] == axes and found.items["train"] == count
    out = chain(found, tmp_path)
    assert isinstance(out, xr.Dataset) and out.sizes["sample"] == 2
    (name,) = (row.name for row in found.rows if row.role == "predicted")
    units = Store(str(folder / pattern)).variables[name].attrs.get("units")
    assert out[name].attrs.get("units") == units


def test_the_command_writes_a_recipe_and_tells_what_it_is_unsure_of(
    jitkit: Callable[..., Answer], tmp_path: Path
) -> None:
    data = as_netcdf(climate()[["t2m", "sst", "land"]], tmp_path / "globe.nc")
    out = tmp_path / "globe.yaml"
    answer = jitkit("inspect", data, "--out", out)
    assert answer.code == 0 and f"train with: jitkit train {out}" in answer.out
    assert "longitude (8): axis, circle, since its steps make 360 degrees" in answer.out
    assert "domain.conditions.static=[land]" in answer.out
    recipe = load_recipe(out)
    assert recipe.domain.name == "arrays" and recipe.name == "globe"
    before = out.read_text()
    refused = jitkit("inspect", data, "--out", out)
    assert refused.code == 2 and "exists already" in refused.err and out.read_text() == before
    told = json.loads(jitkit("inspect", data, "--json").out)
    assert told["recipe"]["domain"]["axes"] == {"latitude": "line", "longitude": "circle"}
    missing = {row["name"]: row["missing"] for row in told["variables"]}
    assert missing["t2m"] == 0 and missing["sst"] > 0.1


def test_inspecting_does_not_load_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    data = as_netcdf(climate(8)[["t2m"]], tmp_path / "globe.nc")
    code = (
        "import sys; from jitkit.domain import domain_class\n"
        f"domain_class('arrays').inspect({data!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("cells", "step", "whole"), [(8, 45.0, True), (8, 40.0, False), (2, 180.0, False)]
)
def test_a_longitude_closes_only_if_its_steps_make_a_circle(
    cells: int, step: float, whole: bool, tmp_path: Path
) -> None:
    values = np.arange(cells) * step
    coords = {"lon": ("lon", values, {"units": "degrees_east"})}
    data = xr.Dataset({"a": (("time", "lon"), smooth(4, cells))}, coords)
    store = Store(as_netcdf(data, tmp_path / "a.nc"))
    assert closes(store, "lon", values) is whole


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (xr.Dataset({"a": ((), 1.0)}), "no numeric variable with more than one value"),
        (xr.Dataset({"a": (("time", "x"), np.ones((9, 4)))}), "the same in every cell"),
        (xr.Dataset({"a": (("time",), np.array(["x", "y"]))}), "no numeric variable"),
    ],
)
def test_what_cannot_be_trained_on_is_told_in_words(
    data: xr.Dataset, text: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=text):
        inspect(as_netcdf(data, tmp_path / "a.nc"))


def test_a_variable_that_never_changes_is_left_out(tmp_path: Path) -> None:
    data = climate(12)[["t2m"]]
    data["zero"] = data["t2m"] * 0
    found = inspect(as_netcdf(data, tmp_path / "a.nc"))
    assert found.recipe["domain"]["variables"] == ["t2m"]
    assert {row.name: row.role for row in found.rows}["zero"] == "left out: constant"


def test_chunks_that_the_buffer_cannot_hold_are_warned_of(tmp_path: Path) -> None:
    data = climate(40)[["t2m"]]
    path = as_netcdf(data, tmp_path / "a.nc", chunk=40)
    from jitkit.domains.arrays.data import open_data
    from jitkit.domains.arrays.inspection import _slow
    from jitkit.domains.arrays.section import ArraysSection

    keys = {"name": "arrays", "path": path, "axes": {"latitude": "line", "longitude": "circle"}}
    (told,) = _slow(open_data(ArraysSection(**keys, buffer="8KiB")))
    assert "40 times as much is decoded as is used" in told
    assert _slow(open_data(ArraysSection(**keys))) == []


def test_a_long_tail_is_pointed_out(tmp_path: Path) -> None:
    data = climate(40)[["rain"]]
    told = dict(inspect(as_netcdf(data, tmp_path / "a.nc")).unsure)
    assert any("rain has a long tail" in what for what in told)
