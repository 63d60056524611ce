"""Arrays domain: reading, conditions, splits, reading order, decoding and writing."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from climate import (
    GLOBE,
    arrays_domain,
    as_netcdf,
    as_zarr,
    climate,
    everything,
    films,
    globe,
    levels,
    lines,
    many,
    sea,
    section,
    smooth,
)
from hypothesis import given
from hypothesis import strategies as st

import jitkit
from jitkit import testing
from jitkit.data import encode
from jitkit.domain import Split
from jitkit.domains.arrays.adapter import Arrays
from jitkit.domains.arrays.conditions import ScalarCondition
from jitkit.domains.arrays.items import Sample
from jitkit.domains.arrays.plan import make_axes
from jitkit.errors import BadItem, DataError, JitkitError, RecipeError
from jitkit.fields import Category, Grid, Scalars
from jitkit.utils.json_arrays import with_arrays, without_arrays

Maker = Callable[[Path], dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Statistics are cached in the test's folder."""
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# The checks of every adapter, on arrays of several kinds


@pytest.mark.parametrize("maker", [lines, globe, levels, sea, films, many, everything])
@pytest.mark.parametrize("part", ["train", "val"])
def test_arrays_of_every_kind_pass_the_domain_checks(
    maker: Maker, part: Split, tmp_path: Path
) -> None:
    keys = section(**maker(tmp_path))
    testing.check_domain(Arrays(keys), keys, split=part, num_items=4, tolerance=1e-4)


def test_importing_the_adapter_imports_no_file_library() -> None:
    code = (
        "import sys; import jitkit.domains.arrays.adapter\n"
        "print(sorted({'torch', 'xarray', 'zarr', 'h5py', 'h5netcdf', 'pandas', 'matplotlib', "
        "'scipy'} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


# Reading


def test_items_equal_the_selection_of_xarray(tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(path=as_zarr(data, tmp_path / "a.zarr"), axes=GLOBE, unroll=["level"])
    assert domain.layout.channels == ("rain", "sst", "t2m", "z.500", "z.850")
    items = domain.items("train")
    assert (len(items), len(domain.items("val"))) == (36, 4)
    step = data.isel(time=7)
    for name, values in zip(domain.layout.channels, items[7].values, strict=True):
        variable, _, level = name.partition(".")
        wanted = step[variable].sel(level=int(level)) if level else step[variable]
        np.testing.assert_array_equal(values, wanted.transpose(*GLOBE))
    assert items[7].name == "time=2000-02-28T18:00:00"
    assert items[7].index == {"time": 7}
    np.testing.assert_array_equal(items[-1].values, items[35].values)
    assert [item.name for item in items[:2]] == [items[0].name, items[1].name]
    with pytest.raises(IndexError):
        items[36]


def test_axes_are_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    path = as_netcdf(climate(), tmp_path / "a.nc")
    axes = dict(reversed(GLOBE.items()))
    transposed = arrays_domain(path=path, axes=axes, variables=["t2m"])
    original = arrays_domain(path=path, axes=GLOBE, variables=["t2m"])
    assert [axis.name for axis in transposed.layout.axes] == ["longitude", "latitude"]
    a, b = transposed.items("val")[0].values, original.items("val")[0].values
    np.testing.assert_array_equal(a, b.transpose(0, 2, 1))


def test_entries_are_selected_by_coordinate(tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(
        path=as_netcdf(data, tmp_path / "a.nc"),
        axes={"latitude": "line", "longitude": "line"},
        variables=["z"],
        unroll=["level"],
        select={
            "level": [850, 500],
            "latitude": {"from": -50, "to": 15},
            "longitude": [0, 45, 90, 225],
            "time": {"from": "2000-02-29", "to": "2000-02"},
        },
        val=0.25,
    )
    wanted = data.z.sel(
        level=[850, 500],
        latitude=slice(15, -50),
        longitude=[0, 45, 90, 225],
        time=slice("2000-02-29", "2000-02"),
    )
    assert domain.layout.channels == ("z.850", "z.500")
    assert (len(domain.items("train")), len(domain.items("val"))) == (3, 1)
    np.testing.assert_array_equal(domain.items("val")[0].values, wanted[-1])
    written = domain.write([domain.items("val")[0]], tmp_path / "out")
    with xr.open_dataset(written[0]) as again:
        np.testing.assert_array_equal(again.longitude, [0, 45, 90, 225])
        np.testing.assert_array_equal(again.z[0], wanted[-1])


def test_a_dimension_with_one_entry_needs_no_role(tmp_path: Path) -> None:
    data = climate()
    path = as_netcdf(data, tmp_path / "a.nc")
    domain = arrays_domain(path=path, axes=GLOBE, variables=["z", "t2m"], select={"level": [850]})
    assert domain.layout.channels == ("z", "t2m")
    np.testing.assert_array_equal(domain.items("train")[2].values[0], data.z[2, 1])


def test_windows_are_the_first_axis(tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(
        path=as_zarr(data, tmp_path / "a.zarr"), variables=["t2m"], axes=GLOBE, window=4
    )
    assert [(a.name, a.size, a.kind) for a in domain.layout.axes] == [
        ("time", 4, "line"),
        ("latitude", 6, "line"),
        ("longitude", 8, "circle"),
    ]
    np.testing.assert_array_equal(domain.items("train")[5].values[0], data.t2m[5:9])


def test_the_first_sample_dimension_is_split_and_windows_are_along_another(tmp_path: Path) -> None:
    domain = arrays_domain(**films(tmp_path))
    train, val = domain.items("train"), domain.items("val")
    assert (len(train), len(val)) == (4 * 7, 7)
    assert {item.index["run"] for item in val} == {4}
    assert [item.index["step"] for item in train[:8]] == [*range(7), 0]
    with h5py.File(tmp_path / "films.h5") as file:
        np.testing.assert_array_equal(train[9].values[0], file["u"][1, 2:5])


def test_samples_are_written_if_the_source_has_a_dimension_named_sample(tmp_path: Path) -> None:
    """A file with dimensions sample and time, like those of The Well."""
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.attrs["n_trajectories"] = 4
        for i, size in enumerate((4, 7, 6, 8)):
            name = ("sample", "time", "x", "y")[i]
            file[name] = np.arange(size, dtype=np.float32)
            file[name].make_scale(name)
        file["density"] = smooth(4, 7, 6, 8)
        for i, name in enumerate(("sample", "time", "x", "y")):
            file["density"].dims[i].attach_scale(file[name])
    domain = arrays_domain(
        path=str(tmp_path / "a.hdf5"),
        axes={"x": "circle", "y": "circle"},
        along="time",
        window=2,
        val=0.25,
    )
    assert (len(domain.items("train")), len(domain.items("val"))) == (18, 6)
    (file,) = domain.write(domain.items("val")[:2], tmp_path / "out")
    with xr.open_dataset(file) as again:
        assert again.density.dims == ("sample", "time", "x", "y")


def test_time_can_be_the_axis_and_stations_the_channels(tmp_path: Path) -> None:
    time = np.arange("2001-01-01", "2001-01-25", dtype="M8[D]").astype("M8[ns]")
    data = xr.Dataset(
        {"level": (("run", "station", "time"), smooth(20, 3, 24))},
        {"time": time, "station": ["Wien", "Linz", "Graz am See"]},
    )
    path = as_zarr(data, tmp_path / "a.zarr")
    domain = arrays_domain(path=path, axes={"time": "line"}, unroll=["station"])
    assert domain.layout.channels == ("level.Wien", "level.Linz", "level.Graz am See")
    (file,) = domain.write(domain.items("train")[:2], tmp_path / "out")
    with xr.open_zarr(file) as again:
        np.testing.assert_array_equal(again.time, data.time)
        assert again.station.values.tolist() == data.station.values.tolist()
        np.testing.assert_array_equal(again.level, data.level[:2])


# The patch


@pytest.mark.parametrize(
    ("grid", "window", "patch"),
    [
        ((512,), 1, [1]),
        ((1000,), 1, [2]),
        ((8, 8), 1, [1, 1]),
        ((64, 64), 1, [4, 4]),
        ((18, 432), 1, [8, 8]),
        ((721, 1440), 1, [64, 64]),
        ((64, 64), 2, [2, 4, 4]),
        ((16, 64, 64), 1, [8, 8, 8]),
        ((16, 16, 16), 16, [4, 4, 4, 4]),
    ],
)
def test_the_default_patch_is_the_smallest_power_of_two_for_512_tokens(
    grid: tuple[int, ...], window: int, patch: list[int]
) -> None:
    axes = make_axes({f"x{i}": "line" for i in range(len(grid))}, grid, ("time", window))
    assert [axis.patch for axis in axes] == patch
    assert np.prod([axis.tokens for axis in axes]) <= 512


def test_ensemble_members_are_held_out_by_name(tmp_path: Path) -> None:
    data = xr.Dataset(
        {"u": (("member", "time", "x"), smooth(4, 6, 10))},
        {"member": ["a", "b", "c", "d"], "time": np.arange(6)},
    )
    path = as_netcdf(data, tmp_path / "a.nc")
    domain = arrays_domain(path=path, axes={"x": "line"}, splits={"val": ["b", "d"]})
    assert {item.name.split(",")[0] for item in domain.items("val")} == {"member=b", "member=d"}
    assert (len(domain.items("train")), len(domain.items("val"))) == (12, 12)


# Conditions


def test_conditions_are_maps_scalars_and_categories(tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(**everything(tmp_path))
    conditions = domain.conditions
    assert conditions["static"] == Grid(("land", "latitude"))
    assert conditions["grids"] == Grid(("t2m", "rain"))
    channels = ("z.500", "z.850", "sst")
    names = tuple(f"{name}@-{steps}" for steps in (2, 1) for name in channels)
    assert conditions["past"] == Grid(names)
    assert conditions["scalars"] == Scalars(
        ("time.dayofyear.sin", "time.dayofyear.cos", "time.hour.sin", "time.hour.cos", "co2")
    )
    assert (conditions["regime"], conditions["phase"]) == (Category(3), Category(2))

    item = domain.items("train")[4]
    step = item.index["time"]
    assert step == 6  # after two past steps
    np.testing.assert_array_equal(item.cond["past"][2], data.sst[step - 2])
    np.testing.assert_array_equal(item.cond["past"][3], data.z[step - 1, 0])
    np.testing.assert_array_equal(item.cond["grids"][0], data.t2m[step])
    assert item.cond["time.dayofyear"] == pytest.approx(31 + 28 + 0.5)  # February 28, 12 hours
    assert (item.cond["time.hour"], item.cond["regime"], item.cond["phase"]) == (12, "calm", 0)

    cond = domain.encode(item).cond
    assert cond["scalars"][2:4].tolist() == pytest.approx([0, -(2**0.5)], abs=1e-5)  # noon
    train = data.co2[:34]  # validation: 4; gap: 2
    expected = float((data.co2[step] - train.mean()) / train.std())
    assert float(cond["scalars"][4]) == pytest.approx(expected, rel=1e-4)  # read as float32
    assert (int(cond["regime"]), int(cond["phase"])) == (0, 0)
    latitude = cond["static"][1]
    assert torch.equal(latitude, latitude[:, :1].expand(6, 8))
    assert bool(latitude[0, 0] > latitude[-1, 0])
    torch.testing.assert_close(
        cond["past"][3:], domain.encode(domain.items("train")[3]).values, equal_nan=True
    )

    again = domain.decode(domain.encode(item))
    np.testing.assert_allclose(again.cond["past"], item.cond["past"], rtol=1e-5)
    assert again.cond["time.hour"] == pytest.approx(12)
    assert again.cond["co2"] == pytest.approx(float(data.co2[step]))
    assert again.cond["regime"] == "calm"


def test_conditions_that_an_item_lacks_are_unknown(tmp_path: Path) -> None:
    domain = arrays_domain(**everything(tmp_path))
    bare = Sample(domain.items("train")[0].values)
    cond = domain.encode(bare).cond
    assert bool(cond["past"].isnan().all()) and bool(cond["scalars"].isnan().all())
    assert int(cond["regime"]) == 3  # the null class


def test_each_condition_has_the_drop_probability_of_the_recipe(tmp_path: Path) -> None:
    keys = everything(tmp_path) | {"condition_drop": {"past": 0.0, "regime": 0.5}}
    conditions = arrays_domain(**keys).conditions
    assert [conditions[name].drop for name in ("static", "past", "regime")] == [0.1, 0.0, 0.5]
    assert arrays_domain(**keys | {"condition_drop": 0.3}).conditions["scalars"].drop == 0.3


@given(st.floats(0, 1), st.sampled_from([24.0, 365.25]), st.sampled_from([0.0, 1.0]))
def test_decode_undoes_encode_of_a_cyclic_scalar(phase: float, length: float, start: float) -> None:
    scalar = ScalarCondition("n", start, length, cyclic=True)
    value = start + phase * length
    decoded = scalar.decode(scalar.encode(value))
    difference = abs(decoded - value) % length
    assert min(difference, length - difference) < 1e-6 * length


def test_time_scalars_of_a_calendar_with_360_days(tmp_path: Path) -> None:
    data = climate(48)[["t2m"]].drop_vars("height")
    time = xr.date_range("2001-01-15", periods=48, freq="MS", calendar="360_day", use_cftime=True)
    path = as_netcdf(data.assign_coords(time=time), tmp_path / "a.nc")
    domain = arrays_domain(
        path=path,
        axes=GLOBE,
        conditions={"scalars": ["time.dayofyear", "time.year"]},
        splits={"train": {"to": 2002}, "val": {"from": "2003-03", "to": "2003-05"}},
    )
    assert (len(domain.items("train")), len(domain.items("val"))) == (23, 3)
    item = domain.items("val")[0]
    assert (item.name, item.cond["time.dayofyear"]) == ("time=2003-03-01", 61)
    assert item.cond["time.year"] == 2003


# Missing data


def test_never_observed_cells_and_masked_cells_are_missing_in_samples(tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(
        path=as_netcdf(data, tmp_path / "a.nc"), variables=["sst", "t2m"], axes=GLOBE
    )
    assert domain.layout.missing
    field = domain.encode(domain.items("train")[3])
    assert field.mask is not None
    assert torch.equal(field.mask[0], torch.from_numpy(~np.isnan(data.sst[3].values)))
    assert bool(field.mask[1].all())
    sampled = domain.decode(jitkit.fields.Field(torch.zeros(2, 6, 8)))  # without a mask
    np.testing.assert_array_equal(np.isnan(sampled.values[0]), np.isnan(data.sst[0]))
    assert np.isfinite(sampled.values[1]).all()
    masked = domain.decode(jitkit.fields.Field(torch.zeros(2, 6, 8), field.mask))
    np.testing.assert_array_equal(np.isnan(masked.values[0]), np.isnan(data.sst[3]))


def test_a_layout_has_missing_cells_only_if_training_data_do(tmp_path: Path) -> None:
    data = climate()
    path = as_netcdf(data, tmp_path / "a.nc")
    assert not arrays_domain(path=path, variables=["t2m"], axes=GLOBE).layout.missing
    assert arrays_domain(path=path, variables=["t2m"], axes=GLOBE, missing=True).layout.missing
    data["t2m"][-1, 0, 0] = np.nan  # in the validation split
    other = arrays_domain(path=as_netcdf(data, tmp_path / "b.nc"), variables=["t2m"], axes=GLOBE)
    assert not other.layout.missing
    with pytest.raises(BadItem, match=r"time=2000-03-07T18:00:00: 1 of 48 cells are missing"):
        encode(other, other.items("val")[3])


def test_items_with_missing_cells_are_skipped_if_missing_is_false(tmp_path: Path) -> None:
    data = climate()
    data["t2m"][3, 0, 0] = np.nan
    path = as_netcdf(data, tmp_path / "a.nc")
    domain = arrays_domain(path=path, variables=["t2m"], axes=GLOBE, missing=False)
    with pytest.raises(BadItem, match="1 of 48 cells"):
        encode(domain, domain.items("train")[3])
    encode(domain, domain.items("train")[4])
    land = arrays_domain(path=path, variables=["sst"], axes=GLOBE, missing=False)
    with pytest.raises(DataError, match="all have some: sst has cells that are never observed"):
        land.layout  # noqa: B018


def test_a_channel_may_be_missing_and_an_item_without_data_is_named(tmp_path: Path) -> None:
    data = climate()
    data["t2m"][5] = np.nan
    data["sst"][6] = np.nan
    data["t2m"][6] = np.nan
    domain = arrays_domain(
        path=as_netcdf(data, tmp_path / "a.nc"), variables=["sst", "t2m"], axes=GLOBE
    )
    field = encode(domain, domain.items("train")[5])
    assert field.mask is not None and bool(field.mask[0].any()) and not bool(field.mask[1].any())
    with pytest.raises(BadItem, match="time=2000-02-28T12:00:00: no data in any of its cells"):
        encode(domain, domain.items("train")[6])


def test_values_that_cannot_be_encoded_raise_bad_item(tmp_path: Path) -> None:
    data = climate()
    data["rain"][-1, 0, 0] = -1  # in the validation split
    data["rain"][-2, 0, 0] = np.inf
    path = as_netcdf(data, tmp_path / "a.nc")
    domain = arrays_domain(path=path, axes=GLOBE, variables=["rain"], transforms={"rain": "sqrt"})
    with pytest.raises(BadItem, match="time=2000-03-07T18:00:00: .*rain.*-1"):
        domain.encode(domain.items("val")[3])
    with pytest.raises(BadItem, match="time=2000-03-07T12:00:00: infinite values"):
        domain.encode(domain.items("val")[2])


# Statistics


def test_statistics_do_not_depend_on_validation_data(tmp_path: Path) -> None:
    data = climate()
    one = arrays_domain(path=as_netcdf(data, tmp_path / "a.nc"), variables=["t2m"], axes=GLOBE)
    data["t2m"][-4:] += 1000
    two = arrays_domain(path=as_netcdf(data, tmp_path / "b.nc"), variables=["t2m"], axes=GLOBE)
    assert one.metadata()["statistics"] == two.metadata()["statistics"]
    values = data.t2m[:36].values.astype(np.float64)
    assert one.metadata()["statistics"]["mean"][0] == pytest.approx(values.mean())
    assert one.metadata()["statistics"]["std"][0] == pytest.approx(values.std())


def test_statistics_are_cached(tmp_path: Path, cache: Path) -> None:
    path = as_zarr(climate(), tmp_path / "a.zarr")
    first = arrays_domain(path=path, axes=GLOBE, variables=["t2m"])
    metadata = first.metadata()
    cached = [file.stat().st_mtime_ns for file in sorted(cache.rglob("*.npz"))]
    assert len(cached) == 1
    second = arrays_domain(path=path, axes=GLOBE, variables=["t2m"])
    assert second.metadata()["statistics"] == metadata["statistics"]
    assert [file.stat().st_mtime_ns for file in sorted(cache.rglob("*.npz"))] == cached
    arrays_domain(path=path, axes=GLOBE, variables=["t2m"], val=0.2).metadata()
    assert len(list(cache.rglob("*.npz"))) == 2


def test_statistics_can_use_part_of_the_values(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", 5 + smooth(400, 64, 32))
    keys: dict[str, Any] = {
        "path": str(tmp_path / "a.npy"),
        "axes": {"dim_1": "line", "dim_2": "line"},
    }
    whole, part = arrays_domain(**keys), arrays_domain(**keys, measure=400_000)
    counts = [domain.metadata()["statistics"]["count"][0] for domain in (whole, part)]
    assert counts[0] == 360 * 64 * 32
    assert 200_000 < counts[1] <= 400_000
    assert part.metadata()["statistics"]["mean"][0] == pytest.approx(5, abs=0.1)


def test_a_constant_channel_is_refused_by_name(tmp_path: Path) -> None:
    data = climate()
    data["rain"][:] = 0
    domain = arrays_domain(
        path=as_netcdf(data, tmp_path / "a.nc"), axes=GLOBE, variables=["t2m", "rain"]
    )
    with pytest.raises(DataError, match="rain"):
        domain.layout  # noqa: B018


# The order of reading


@pytest.mark.parametrize(("window", "limit"), [(1, 1.0), (4, 1.2)])
def test_an_epoch_decodes_each_chunk_about_once_with_a_small_buffer(
    window: int, limit: float, tmp_path: Path
) -> None:
    data = xr.Dataset({"u": (("time", "x"), smooth(640, 64))})
    path = as_zarr(data, tmp_path / "a.zarr", chunk=4)  # 160 chunks of 1 KiB
    keys: dict[str, Any] = {"path": path, "axes": {"x": "line"}, "val": 0, "window": window}

    def decoded(buffer: str, order: Callable[[Any], Any]) -> int:
        domain = arrays_domain(**keys, buffer=buffer)
        items = domain.items("train")
        store = items._spec.store
        before = store.stats.decoded
        for index in order(items):
            items[int(index)]
        return store.stats.decoded - before

    def in_blocks(items: Any) -> Any:
        return items.order(np.random.default_rng(0))

    def shuffled(items: Any) -> Any:
        return np.random.default_rng(0).permutation(len(items))

    assert decoded("64KiB", in_blocks) <= limit * 160
    assert decoded("64KiB", shuffled) > 2 * 160


def test_all_items_are_shuffled_together_if_they_fit_in_the_buffer(tmp_path: Path) -> None:
    data = xr.Dataset({"u": (("time", "x"), smooth(200, 8))})
    keys: dict[str, Any] = {"path": as_zarr(data, tmp_path / "a.zarr"), "axes": {"x": "line"}}
    order = arrays_domain(**keys).items("train").order(np.random.default_rng(0))
    assert order.dtype == np.int64 and sorted(order.tolist()) == list(range(180))
    assert abs(np.corrcoef(order, np.arange(180))[0, 1]) < 0.3


def test_items_read_by_several_threads_are_identical(tmp_path: Path) -> None:
    keys = everything(tmp_path)
    items, alone = (
        arrays_domain(**keys, buffer="20KiB").items("train"),
        arrays_domain(**keys).items("train"),
    )
    assert items.threads == 4 and arrays_domain(**keys, threads=2).items("val").threads == 2
    order = items.order(np.random.default_rng(0)).tolist()
    with ThreadPoolExecutor(items.threads) as pool:
        for index, item in zip(order, pool.map(items.__getitem__, order), strict=True):
            np.testing.assert_array_equal(item.values, alone[index].values)
            np.testing.assert_array_equal(item.cond["past"], alone[index].cond["past"])


# Metadata


def stored(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata after saving to JSON and tensors, as in a checkpoint."""
    from safetensors.numpy import load, save

    plain, arrays = without_arrays(metadata)
    return with_arrays(json.loads(json.dumps(plain)), load(save(arrays)) if arrays else {})


@pytest.mark.parametrize("maker", [lines, sea, films, many, everything])
def test_metadata_are_enough_without_the_data(maker: Maker, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    keys = maker(tmp_path / "data")
    domain = arrays_domain(**keys)
    fields = [domain.encode(item) for item in domain.items("train")[:2]]
    metadata = stored(domain.metadata())
    wanted = domain.write([domain.decode(field) for field in fields], tmp_path / "one")
    shutil.rmtree(tmp_path / "data")
    loaded = Arrays.from_metadata(section(**keys), metadata)
    assert loaded.layout == domain.layout and loaded.conditions == domain.conditions
    files = loaded.write([loaded.decode(field) for field in fields], tmp_path / "two")
    assert [file.name for file in files] == [file.name for file in wanted]
    for field in fields:
        np.testing.assert_array_equal(loaded.decode(field).values, domain.decode(field).values)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "data"))):
        loaded.items("train")
    if files[0].suffix == ".nc":
        with xr.open_dataset(files[0]) as a, xr.open_dataset(wanted[0]) as b:
            xr.testing.assert_identical(a, b)


def test_data_that_differ_from_training_are_refused(tmp_path: Path) -> None:
    path = as_netcdf(climate(), tmp_path / "a.nc")
    metadata = arrays_domain(path=path, axes=GLOBE, variables=["t2m"]).metadata()
    keys = section(path=path, axes=GLOBE, variables=["sst"])
    other = Arrays.from_metadata(keys, metadata)
    with pytest.raises(DataError, match=r"has channels sst on .*the model was trained on t2m"):
        other.items("val")
    flipped = as_netcdf(climate().isel(latitude=slice(None, None, -1)), tmp_path / "flipped.nc")
    keys = section(path=flipped, axes=GLOBE, variables=["t2m"])
    other = Arrays.from_metadata(keys, metadata)
    with pytest.raises(DataError, match="latitude runs from .*Flip the data"):
        other.items("val")
    with pytest.raises(DataError, match="metadata of format 0"):
        Arrays.from_metadata(section(path=path), metadata | {"format": 0})


def test_items_are_pickled_without_open_files(tmp_path: Path) -> None:
    items = arrays_domain(**everything(tmp_path)).items("train")
    items[0]
    again = pickle.loads(pickle.dumps(items))
    np.testing.assert_array_equal(again[3].values, items[3].values)
    assert len(pickle.dumps(items)) < 200_000


# Errors

T2M: dict[str, Any] = {"variables": ["t2m"]}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"axes": None}, r"domain.axes is not set.* There are time \(40\), .*for example axes: {"),
        ({"axes": {"latitud": "line"}}, "no dimension 'latitud'.*did you mean 'latitude'"),
        ({"path": None}, "domain.path is not set"),
        ({"variables": ["t2n"]}, "no variable 't2n'.*did you mean 't2m'"),
        ({"variables": ["regime"]}, "'regime' is not numeric"),
        ({"variables": ["land"]}, "no dimension is left to draw samples from: land"),
        ({"variables": ["co2"]}, r"co2\(time\) lacks axis latitude, longitude"),
        ({}, "rain.* has no dimension level, along which samples of z are drawn; unroll it"),
        (
            {"variables": ["z"], "sample": ["time"]},
            r"dimension level \(2\) of 'z' is neither axis nor sample dimension nor unrolled",
        ),
        ({"unroll": ["levels"]}, "domain.unroll: no dimension 'levels'.*did you mean 'level'"),
        ({"variables": ["t2m"], "along": "tme"}, "domain.along: 'tme' is not a sample dimension"),
        (
            {"select": {"level": [505]}},
            "domain.select.level: no 505; there are 500, 850; the nearest is 500",
        ),
        ({"select": {"time": {"from": 2001}}}, r"no entries from 2001; there are 40 values from"),
        ({"select": {"time": {"from": "x"}}}, "'x' is not a time; write it as 2000 or 2000-02-27"),
        (
            {"select": {"longitude": {"to": 90}}} | T2M,
            "circle, but domain.select leaves 3 of its 8",
        ),
        (
            {"window": 5} | T2M,
            "no item is left for val: it has 4 of 40 .*5 consecutive steps.*raise domain.val",
        ),
        (
            {"variables": ["t2m"], "window": 37, "val": 0.1},
            "no item is left for train: it has 36 of 40",
        ),
        ({"variables": ["t2m"], "val": 0.9, "gap": 9}, "no time is left for training"),
        ({"variables": ["t2m"], "transforms": {"t2n": "sqrt"}}, "no variable or channel 't2n'"),
        (
            T2M | {"conditions": {"static": ["sst"]}},
            "static: 'sst' has dimension time; maps that change .* domain.conditions.grids",
        ),
        (
            T2M | {"conditions": {"grids": ["co2"]}},
            "'co2' has none of the axes latitude, longitude; .*conditions.scalars",
        ),
        (
            T2M | {"conditions": {"scalars": ["land"]}},
            "'land' has dimension latitude, longitude; .*is a map",
        ),
        (
            T2M | {"conditions": {"scalars": ["regime"]}},
            "'regime' is not numeric",
        ),
        (
            T2M | {"conditions": {"scalars": ["height"]}},
            "'height' has one value, 2",
        ),
        (T2M | {"conditions": {"scalars": ["co3"]}}, "did you mean 'co2'"),
        (
            T2M | {"conditions": {"scalars": ["level.hour"]}},
            "not hold times but|dimension",
        ),
        (T2M | {"conditions": {"categories": ["co2"]}}, "'co2' holds fractions"),
        (T2M | {"conditions": {"categories": ["time"]}}, "'time' holds times"),
    ],
)
def test_keys_that_do_not_fit_the_data_are_refused(
    keys: dict[str, Any], text: str, tmp_path: Path
) -> None:
    path = as_netcdf(climate(), tmp_path / "a.nc")
    with pytest.raises(JitkitError, match=text):
        arrays_domain(**{"path": path, "axes": GLOBE} | keys).metadata()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"axes": {"x": "ring"}}, "axes"),
        ({"select": {"x": {}}}, "give from, to or both"),
        ({"buffer": "much"}, "'much' is not a size; write 512MiB"),
        ({"transforms": {"x": "log"}}, "transforms.x: .*log1p"),
        ({"condition_drop": {"past": 0.2}}, "no condition 'past'; there are: none"),
        ({"axes": {"x": "line"}, "unroll": ["x"]}, "x is an axis"),
    ],
)
def test_invalid_keys_are_refused(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        section(**keys)


def test_a_circle_in_degrees_must_cover_360(tmp_path: Path) -> None:
    data = climate()
    data = data.assign_coords(longitude=data.longitude / 2)  # keeps no attributes
    data.longitude.attrs["units"] = "degrees_east"
    path = as_netcdf(data, tmp_path / "a.nc")
    with pytest.raises(RecipeError, match="8 cells of 22.5 degrees_east make 180 degrees, not 360"):
        arrays_domain(path=path, axes=GLOBE, variables=["t2m"])


@pytest.mark.parametrize(
    ("size", "num_bytes"), [("1GiB", 2**30), ("1.5 MB", 1_500_000), ("64k", 64_000), ("123", 123)]
)
def test_memory_sizes_are_parsed(size: str, num_bytes: int) -> None:
    assert section(buffer=size).buffer_bytes == num_bytes


# Training and sampling


def test_a_recipe_of_six_lines_trains_and_samples(tmp_path: Path) -> None:
    data = climate()
    path = as_netcdf(data, tmp_path / "sea.nc")
    recipe = tmp_path / "sea.yaml"
    recipe.write_text(
        f"domain: {{name: arrays, path: {path}, variables: [sst, t2m], axes: "
        "{latitude: line, longitude: circle}}\n"
        "model: {width: 16, depth: 2, heads: 2, bottleneck: 8, patch: 2}\n"
        "train: {steps: 4, batch_size: 4, lr: 1e-3, preview_every_steps: 2, "
        "validate_every_steps: 2, preview_samples: 2}\n"
        "sample: {steps: 2}\n"
    )
    run = jitkit.train(recipe, run=tmp_path / "run")
    denoiser = jitkit.load(run)
    x = jitkit.sample(denoiser, n=2, steps=2)
    items = [denoiser.domain.decode(jitkit.fields.Field(values)) for values in x]
    (file,) = denoiser.domain.write(items, tmp_path / "out")
    with xr.open_dataset(file) as again:
        assert again.sst.shape == (2, 6, 8)
        np.testing.assert_array_equal(np.isnan(again.sst[0]), np.isnan(data.sst[0]))
        xr.testing.assert_identical(again.latitude, data.latitude)
    assert list((run / "samples").rglob("samples.nc")) or list((run / "samples").iterdir())


def test_training_with_all_conditions_is_identical_with_workers(tmp_path: Path) -> None:
    recipe = {
        "domain": {"name": "arrays", **everything(tmp_path), "window": 2},
        "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8, "patch": 2},
        "train": {"steps": 3, "batch_size": 4, "lr": 1e-3, "preview_samples": 2},
        "sample": {"steps": 2},
    }
    one = jitkit.load(jitkit.train(recipe, run=tmp_path / "one"))
    two = jitkit.load(jitkit.train(recipe, {"train.workers": 1}, run=tmp_path / "two"))
    for a, b in zip(one.network.parameters(), two.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_resumes_but_refuses_changed_data(tmp_path: Path) -> None:
    path = as_netcdf(climate(), tmp_path / "a.nc")
    recipe = {
        "domain": {"name": "arrays", "path": path, "axes": GLOBE, "variables": ["sst", "t2m"]},
        "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8, "patch": 2},
        "train": {"steps": 2, "batch_size": 4, "lr": 1e-3, "preview_samples": 2},
        "sample": {"steps": 2},
    }
    run = jitkit.train(recipe, run=tmp_path / "run")
    assert jitkit.train(recipe, {"train.steps": 3}, run=run) == run
    changed = climate()
    changed["t2m"] += 1
    as_netcdf(changed, tmp_path / "a.nc")
    with pytest.raises(DataError, match="metadata"):
        jitkit.train(recipe, {"train.steps": 4}, run=run)


REAL: list[tuple[str, dict[str, Any]]] = [
    ("ostia_monthly.nc", {"axes": GLOBE, "conditions": {"scalars": ["time.dayofyear"]}}),
    (
        "A1B_north_america.nc",
        {
            "axes": {"latitude": "line", "longitude": "line"},
            "conditions": {"past": 1, "scalars": ["time.year"]},
            "window": 3,
        },
    ),
    (
        "hybrid_height.nc",
        {
            "axes": {"grid_latitude": "line", "grid_longitude": "line"},
            "conditions": {"static": ["surface_altitude"]},
            "val": 0.2,
        },
    ),
    ("orca2_votemper.nc", {"axes": {"dim1": "line"}}),
    ("atlantic_profiles.nc", {"axes": {"depth": "line"}, "sample": ["lat", "lon"], "val": 0.2}),
    ("NEMO/*.nc", {"axes": {"y": "line", "x": "circle"}, "val": 0.34}),
]


@pytest.mark.parametrize(("name", "keys"), REAL, ids=[name for name, _ in REAL])
def test_items_of_real_files_are_written_unchanged(
    name: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    """Sea temperature with land, a regional scenario with years of 360 days, curved grids."""
    data = pytest.importorskip("iris_sample_data")
    path = str(Path(data.path) / name)
    domain = arrays_domain(path=path, **keys)
    items = domain.items("train")
    item = items[len(items) // 2]
    again = domain.decode(encode(domain, item))
    np.testing.assert_allclose(again.values, item.values, rtol=1e-4, atol=1e-4)
    (file,) = domain.write([again], tmp_path)
    first = path.replace("*", "nemo_1m_20150101-20150201_grid-T")
    with xr.open_dataset(file) as written, xr.open_dataset(first) as source:
        for name in {v["name"] for v in domain.metadata()["output"]["variables"]}:
            assert written[name].attrs == source[name].attrs
            for kept in set(source[name].coords):
                if set(source[kept].dims) <= set(keys["axes"]):
                    np.testing.assert_array_equal(written[kept], source[kept])
