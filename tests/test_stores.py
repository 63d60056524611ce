"""Stores: every format reads the values that xarray reads, decoded by the CF conventions."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from storefiles import DTYPES, FORMATS, as_xarray_reads, field, raw_dataset, write

from jitkit.errors import DataError
from jitkit.stores.store import Store

Array = np.ndarray[Any, Any]


@st.composite
def stored(draw: st.DrawFn) -> tuple[str, Array, dict[str, Any], tuple[int, ...] | None]:
    """A store format, values, CF attributes and chunks."""
    kind = draw(st.sampled_from(FORMATS))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(draw(st.integers(2, 3))))
    seed = draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 100, shape).astype(dtype)
    attrs: dict[str, Any] = {}
    if draw(st.booleans()):
        attrs["_FillValue"] = dtype.newbyteorder("=").type(draw(st.sampled_from([0, 7, 99])))
    if draw(st.booleans()):
        scale = draw(st.sampled_from([np.float32, np.float64]))
        attrs |= {"scale_factor": scale(0.01), "add_offset": scale(273.15)}
    elif dtype.kind == "i" and draw(st.booleans()):
        attrs["_Unsigned"] = "true"
        values = rng.integers(-100, 100, shape).astype(dtype)
    if draw(st.booleans()):
        attrs["valid_range"] = np.array([1, 50], dtype.newbyteorder("="))
    chunks = tuple(draw(st.integers(1, n)) for n in shape) if draw(st.booleans()) else None
    if kind == "sharded" and chunks is None:
        chunks = (1,) * len(shape)
    return kind, values, attrs, chunks


def random_box(draw: Any, sizes: dict[str, int]) -> dict[str, int | slice]:
    """Random indices and slices of some dimensions."""
    where: dict[str, int | slice] = {}
    for dim, size in sizes.items():
        match draw(st.sampled_from(["all", "index", "slice"])):
            case "index":
                where[dim] = draw(st.integers(-size, size - 1))
            case "slice":
                ends = st.none() | st.integers(-size - 1, size + 1)
                step = draw(st.none() | st.integers(1, 3))
                where[dim] = slice(draw(ends), draw(ends), step)
    return where


@given(case=stored(), data=st.data())
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_any_box_of_any_format_equals_what_xarray_reads(
    case: Any, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, values, attrs, chunks = case
    # xarray 2026.9 reads this fill value in the wrong byte order and masks other cells
    assume(not ("_Unsigned" in attrs and values.dtype.byteorder == ">"))
    path = write(raw_dataset(values, attrs), kind, tmp_path_factory.mktemp("store"), chunks)
    reference, store = as_xarray_reads(path), Store(path)
    info = store.variables["v"]
    assert list(store.variables) == ["v"]
    assert info.dims == reference["v"].dims and info.shape == values.shape
    assert info.dtype.kind == reference["v"].dtype.kind
    xr.testing.assert_identical(store.coords, reference.coords.to_dataset())
    for _ in range(3):
        where = random_box(data.draw, {str(d): n for d, n in reference["v"].sizes.items()})
        expected = reference["v"].isel(where).values.astype(np.float32)
        cells = store.read("v", where)
        assert cells.dtype == np.float32 and cells.flags.writeable
        np.testing.assert_allclose(cells, expected, rtol=1e-6)
        raw = store.read_raw("v", where)
        assert raw.shape == cells.shape


def test_packed_values_are_decoded_to_full_float32_precision(tmp_path: Path) -> None:
    raw = np.array([[20_000_001, 20_000_003]], "i4")
    attrs = {"scale_factor": 0.001, "add_offset": -20000.0}
    path = write(raw_dataset(raw, attrs), "netcdf4", tmp_path, None)
    np.testing.assert_allclose(Store(path).read("v"), [[0.001, 0.003]], rtol=1e-4)


def test_a_double_missing_value_masks_float32_cells(tmp_path: Path) -> None:
    values = np.array([[1.0, 1e20]], "f4")
    path = write(raw_dataset(values, {"missing_value": np.float64(1e20)}), "zarr3", tmp_path, None)
    np.testing.assert_array_equal(Store(path).read("v"), [[1.0, np.nan]])


@pytest.mark.parametrize("value", ["text", b"text"])
def test_text_is_read_as_text(tmp_path: Path, value: Any) -> None:
    names = np.array([["ab", "c"], ["def", ""]])
    raw = xr.Dataset({"name": (("n", "m"), names.astype("S3" if value == b"text" else object))})
    for engine, path in (("scipy", tmp_path / "3.nc"), ("h5netcdf", tmp_path / "4.nc")):
        if engine == "scipy" and value == "text":
            continue
        raw.to_netcdf(path, engine=engine)  # type: ignore[call-overload]
        store = Store(path)
        assert store.variables["name"].dims == ("n", "m") and not store.variables["name"].numeric
        text = store.read_raw("name", {"n": 1})
        assert [v.decode() if isinstance(v, bytes) else v for v in text] == ["def", ""]
        with pytest.raises(DataError, match="'name' is not numeric but"):
            store.read("name")


def test_non_standard_calendars_are_decoded(tmp_path: Path) -> None:
    raw = raw_dataset(field((3, 2)), {})
    raw["time"].attrs["calendar"] = "360_day"
    store = Store(write(raw, "netcdf4", tmp_path, None))
    last = store.coords["time"].values[-1]
    assert (last.year, last.month, last.day) == (2001, 2, 29)


def test_bounds_and_grid_mappings_are_not_variables_and_positions_are_coordinates(
    tmp_path: Path,
) -> None:
    raw = raw_dataset(field((3, 2, 2)), {"grid_mapping": "crs"})
    raw["time"].attrs["bounds"] = "time_bnds"
    raw["time_bnds"] = (("time", "nv"), np.zeros((3, 2)))
    raw["crs"] = ((), 0, {"grid_mapping_name": "latitude_longitude"})
    raw["lat2d"] = (("y", "x"), np.ones((2, 2)), {"units": "degrees_north"})
    raw["height"] = ((), 2.0)
    raw["v"].attrs["coordinates"] = "height"
    raw["orography"] = (("y", "x"), np.ones((2, 2)), {"units": "m"})
    store = Store(write(raw, "netcdf4", tmp_path, None))
    assert set(store.variables) == {"v", "orography"}
    assert set(store.coords.coords) == {"time", "y", "crs", "lat2d", "height"}
    assert "bounds" not in store.coords["time"].attrs
    assert store.read("lat2d").sum() == 4  # numeric coordinates can be read too


def test_variable_info_has_dtype_chunks_attributes_and_encoding(tmp_path: Path) -> None:
    attrs = {"scale_factor": 0.5, "_FillValue": np.int16(-1), "units": "K", "long_name": "heat"}
    path = write(raw_dataset(field((6, 5), "i2"), attrs), "netcdf4", tmp_path, (4, 5))
    info = Store(path).variables["v"]
    assert info.chunks == (4, 5) and info.missing is True and info.numeric
    assert info.attrs == {"units": "K", "long_name": "heat"}
    assert info.encoding == {
        "dtype": np.dtype("i2"),
        "scale_factor": 0.5,
        "_FillValue": np.int16(-1),
    }
    whole = Store(write(raw_dataset(field((6, 5), "i2"), {}), "zarr3", tmp_path, None))
    assert whole.variables["v"].missing is False and whole.variables["v"].dtype == np.int16
    assert (
        Store(write(raw_dataset(field((6, 5)), {}), "netcdf3", tmp_path, None))
        .variables["v"]
        .missing
        is None
    )


def test_real_files_read_the_same_as_by_xarray() -> None:
    import iris_sample_data

    samples = Path(iris_sample_data.path)
    for name in (
        "ostia_monthly.nc",
        "A1B_north_america.nc",
        "SOI_Darwin.nc",
        "space_weather.nc",
        "vlstr_type.nc",
        "orca2_votemper.nc",
        "mesh_C4_synthetic_float.nc",
    ):
        store, reference = Store(samples / name), as_xarray_reads(samples / name)
        for variable in store.variables:
            expected = reference[variable].values.astype("f4")
            np.testing.assert_allclose(store.read(variable), expected, rtol=1e-6)
    assert store.variables["synthetic"].dims == ("nexample_C4_face",)
    assert Store(samples / "vlstr_type.nc").coords["expver"].values[0] == "AB"


def test_monthly_files_of_a_real_model_are_concatenated() -> None:
    import iris_sample_data

    folder = Path(iris_sample_data.path) / "NEMO"
    store = Store(folder / "*.nc")
    paths = sorted(folder.glob("*.nc"))
    parts = [xr.open_dataset(path, decode_timedelta=False) for path in paths]
    expected = np.concatenate([part["tos"].values for part in parts])
    np.testing.assert_array_equal(store.read("tos"), expected)
    assert np.all(
        store.coords["time_centered"].values[1:] > store.coords["time_centered"].values[:-1]
    )
    for part in parts:
        part.close()


def test_groups_are_read_and_listed(tmp_path: Path) -> None:
    raw = raw_dataset(field((3, 2)), {})
    raw.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", group="forecast/surface")
    with pytest.warns(UserWarning):
        raw.to_zarr(tmp_path / "a.zarr", group="forecast/surface", consolidated=False)
        zarr.consolidate_metadata(tmp_path / "a.zarr")
    raw.to_zarr(tmp_path / "b.zarr", group="forecast/surface", consolidated=False, zarr_format=2)
    for name in ("a.nc", "a.zarr", "b.zarr"):
        path = tmp_path / name
        store = Store(path, group="forecast/surface")
        np.testing.assert_array_equal(store.read("v"), field((3, 2)))
        with pytest.raises(DataError, match="'forecast/surfac'.*forecast/surface"):
            Store(path, group="forecast/surfac")
        with pytest.raises(DataError, match="the root has no arrays; .*forecast/surface"):
            Store(path)
    with pytest.raises(DataError, match="has no groups, so there is no group 'a'"):
        Store(write(raw, "netcdf3", tmp_path, None), group="a")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata:UserWarning")
def test_consolidated_groups_single_arrays_and_unnamed_axes_of_zarr_open(
    tmp_path: Path, version: Any
) -> None:
    raw_dataset(field((3, 2)), {}).to_zarr(
        tmp_path / "a.zarr", consolidated=True, zarr_format=version
    )
    np.testing.assert_array_equal(Store(tmp_path / "a.zarr").read("v"), field((3, 2)))
    array = zarr.create_array(
        tmp_path / "single.zarr", shape=(3, 2), dtype="f4", zarr_format=version
    )
    array[:] = field((3, 2))
    single = Store(tmp_path / "single.zarr")
    np.testing.assert_array_equal(single.read("values", {"dim_0": 1}), [2, 3])
    group = zarr.open_group(str(tmp_path / "plain.zarr"), mode="w", zarr_format=version)
    group.create_array("u", shape=(3, 2), dtype="f4")[:] = field((3, 2))
    group.create_array("w", shape=(3,), dtype="f4", fill_value=0)[:] = 1
    assert Store(tmp_path / "plain.zarr").variables["w"].dims == ("dim_0",)
    np.testing.assert_array_equal(Store(tmp_path / "plain.zarr").read("u"), field((3, 2)))


def test_coordinates_of_parent_groups_are_inherited(tmp_path: Path) -> None:
    coords = xr.Dataset(coords={"y": ("y", [1.0, 2.0]), "lat": ("y", [50.0, 60.0]), "z": [0, 1]})
    inner = xr.Dataset({"v": (("x", "y"), field((3, 2)))})
    coords.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    inner.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", group="deep/er", mode="a")
    coords.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    inner.to_zarr(tmp_path / "a.zarr", group="deep/er", mode="a", zarr_format=2, consolidated=False)
    for name in ("a.nc", "a.zarr"):
        store = Store(tmp_path / name, group="deep/er")
        assert list(store.variables) == ["v"] and set(store.coords.coords) == {"y", "lat"}
        assert store.coords["lat"].values.tolist() == [50, 60]


def write_well_file(path: Path, parameter: float = 1.0) -> None:
    """Write a file of The Well: 2 simulations, 3 steps, 4 x 5 cells."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"n_spatial_dims": 2, "n_trajectories": 2, "dataset_name": "toy"})
        dims = file.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        for name, size in (("time", 3), ("x", 4), ("y", 5)):
            dims[name] = np.linspace(0, 1, size, dtype="f4")
        scalars = file.create_group("scalars")
        scalars["viscosity"] = np.float32(parameter)
        scalars["viscosity"].attrs.update({"sample_varying": False, "time_varying": False})
        for order, (name, shape, flags) in enumerate(
            [
                ("density", (2, 3, 4, 5), (True, True, [True, True])),
                ("velocity", (2, 3, 4, 5, 2), (True, True, [True, True])),
                ("stress", (2, 3, 4, 5, 2, 2), (True, True, [True, True])),
            ]
        ):
            group = file.create_group(f"t{order}_fields")
            group[name] = field(shape) * parameter
            keys = ("sample_varying", "time_varying", "dim_varying")
            group[name].attrs.update(dict(zip(keys, flags, strict=True)))
        depth = file["t0_fields"].create_dataset("depth", data=field((5,)))
        depth.attrs.update(
            {"sample_varying": False, "time_varying": False, "dim_varying": [False, True]}
        )


def test_files_of_the_well_have_named_axes_and_parameters(tmp_path: Path) -> None:
    write_well_file(tmp_path / "a.hdf5")
    store = Store(tmp_path / "a.hdf5")
    dims = {name: v.dims for name, v in store.variables.items()}
    assert dims == {
        "density": ("sample", "time", "x", "y"),
        "depth": ("y",),
        "velocity": ("sample", "time", "x", "y", "component"),
        "stress": ("sample", "time", "x", "y", "component", "component_2"),
    }
    assert store.coords["component"].values.tolist() == ["x", "y"]
    assert store.coords["viscosity"] == 1 and store.attrs["dataset_name"] == "toy"
    got = store.read("velocity", {"sample": 1, "time": 2, "component": 0})
    np.testing.assert_array_equal(got, field((2, 3, 4, 5, 2))[1, 2, ..., 0])


def test_simulations_of_the_well_are_concatenated(tmp_path: Path) -> None:
    write_well_file(tmp_path / "a.hdf5", 1.0)
    write_well_file(tmp_path / "b.hdf5", 3.0)
    store = Store(tmp_path / "*.hdf5")
    assert store.variables["density"].shape == (4, 3, 4, 5)
    assert store.coords["viscosity"].values.tolist() == [1, 1, 3, 3]
    first = store.read("density", {"sample": slice(1, 3)})
    np.testing.assert_array_equal(first[1], 3 * field((2, 3, 4, 5))[0])


def write_months(folder: Path, **changes: Any) -> list[Path]:
    """Write three files of 4, 3 and 5 days, each packed with a different scale."""
    paths = []
    for number, (start, days) in enumerate([(0, 4), (4, 3), (7, 5)]):
        values = field((days, 3)) + 100 * start
        raw = xr.Dataset(
            {"v": (("time", "y"), values), "area": (("y",), np.ones(3))},
            {
                "time": ("time", np.arange(days), {"units": f"days since 2001-01-{start + 1:02}"}),
                "y": ("y", np.array([1.0, 2.0, 3.0])),
            },
            attrs={"title": "toy"},
        )
        raw["ref"] = ((), float(number))
        raw = raw.set_coords("ref")
        if number == 1:
            raw = changes.get("change", lambda raw: raw)(raw)
        path = folder / f"{'bca'[number]}.nc"  # file names and times are ordered differently
        packed = {"dtype": "i2", "scale_factor": 0.5 + number, "_FillValue": -999}
        chunks = tuple(2 if dim == "time" else raw.sizes[dim] for dim in raw["v"].dims)
        encoding = {"v": packed | {"chunksizes": chunks}}
        raw.to_netcdf(path, engine="h5netcdf", encoding=encoding)
        paths.append(path)
    return paths


def test_files_are_concatenated_in_the_order_of_their_coordinate(tmp_path: Path) -> None:
    paths = write_months(tmp_path)
    store = Store(tmp_path / "*.nc")
    expected = np.concatenate([as_xarray_reads(path)["v"].values for path in paths])
    np.testing.assert_allclose(store.read("v"), expected, rtol=1e-6)
    for cut in (5, slice(3, 9), slice(2, 11, 3), slice(4, 4), -1):
        cells = store.read("v", {"time": cut, "y": slice(1, 3)})
        np.testing.assert_allclose(cells, expected[cut, 1:3], rtol=1e-6)
    times = store.coords["time"].values
    assert np.all(np.diff(times) == np.timedelta64(1, "D")) and len(times) == 12
    assert store.coords["ref"].dims == ("time",)  # a scalar per file varies along time
    assert store.variables["area"].shape == (3,) and store.attrs == {"title": "toy"}
    assert store.starts("v", "time").tolist() == [0, 2, 4, 6, 7, 9, 11, 12]
    assert store.starts("v", "y").tolist() == [0, 3]
    assert pickle.loads(pickle.dumps(store)).read("v").shape == (12, 3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda raw: raw.assign_coords(y=[1.0, 2.0, 9.0]), "those of time, y differ|'y' differs"),
        (lambda raw: raw.isel(y=slice(2)), "differ"),
        (lambda raw: raw.drop_vars("area"), "only one of them has area"),
        (lambda raw: raw.assign(area=raw["area"] + 1), "'area' does not vary along 'time'"),
        (lambda raw: raw.transpose(), "'v' has dimensions time, y in .* and y, time in"),
        (lambda raw: raw.assign_coords(time=raw["time"] + np.int64(1)), "overlap: 'time' ends at"),
    ],
)
def test_files_that_cannot_be_concatenated_are_refused(
    tmp_path: Path, change: Callable[[xr.Dataset], xr.Dataset], text: str
) -> None:
    def with_time_attrs(raw: xr.Dataset) -> xr.Dataset:
        out = change(raw)
        if "time" in out.coords:
            out["time"].attrs = raw["time"].attrs
        return out

    write_months(tmp_path, change=with_time_attrs)
    with pytest.raises(DataError, match=text):
        Store(tmp_path / "*.nc")


def test_files_whose_coordinates_are_all_equal_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        raw = raw_dataset(field((1, 2)), {}).isel(time=0)
        raw.to_netcdf(tmp_path / f"{name}.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"none differs here; if time differs.*concat_dim='time'"):
        Store(tmp_path / "*.nc")


def test_invalid_variables_dimensions_and_indices_are_reported(tmp_path: Path) -> None:
    store = Store(write(raw_dataset(field((8, 3)), {}), "zarr3", tmp_path, None))
    for name, where, text in [
        ("w", {}, "no variable 'w'; it has"),
        ("v", {"tim": 3}, "'v' has no dimension 'tim'.*did you mean 'time'"),
        ("v", {"time": 8}, "'v' has 8 cells along 'time', not 8"),
        ("v", {"time": slice(None, None, -1)}, "cannot be read backwards along 'time'"),
    ]:
        with pytest.raises(DataError, match=text):
            store.read(name, where)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=text):
            store.read_raw(name, where)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'v' has no dimension 'z'"):
        store.starts("v", "z")


def tree(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Path, modification time and content hash of everything in a folder."""
    for path in sorted([folder, *folder.rglob("*")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        yield str(path), path.stat().st_mtime_ns, content


@pytest.mark.parametrize("kind", [*FORMATS, "npy"])
def test_reading_changes_no_file(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    raw = raw_dataset(field((8, 4, 4)), {})
    if kind == "npy":
        np.save(path := folder / "v.npy", field((8, 4, 4)))
    else:
        path = write(raw, kind, folder, (2, 4, 4))
    for each in [folder, *folder.rglob("*")]:
        each.chmod(0o555 if each.is_dir() else 0o444)
    before = list(tree(folder))
    store = Store(path)
    store.read("values" if kind == "npy" else "v")
    store.fingerprint()
    pickle.loads(pickle.dumps(store)).coords.load()
    assert list(tree(folder)) == before


@pytest.mark.parametrize("kind", ["zarr3", "sharded", "netcdf3", "netcdf4"])
def test_a_fingerprint_changes_with_the_data(tmp_path: Path, kind: str) -> None:
    values = field((8, 4, 4))
    for name in "abc":
        (tmp_path / name).mkdir()
    first = Store(write(raw_dataset(values, {}), kind, tmp_path / "a", (2, 4, 4)))
    again = Store(write(raw_dataset(values, {}), kind, tmp_path / "b", (2, 4, 4)))
    assert first.fingerprint() == first.fingerprint() == Store(first.path).fingerprint()
    assert first.fingerprint(times=False) == again.fingerprint(times=False)
    assert first.fingerprint() != again.fingerprint()  # different modification time
    other = values.copy()
    other[-1, -1, -1] += 1
    changed = Store(write(raw_dataset(other, {}), kind, tmp_path / "c", (2, 4, 4)))
    assert changed.fingerprint(times=False) != first.fingerprint(times=False)
    assert first.fingerprint(["v"]) != first.fingerprint(["time"])
    if kind.startswith("netcdf"):
        (tmp_path / "d").mkdir()
        units = write(raw_dataset(values, {"units": "K"}), kind, tmp_path / "d", (2, 4, 4))
        assert Store(units).fingerprint(times=False) != first.fingerprint(times=False)


def test_importing_the_stores_loads_no_heavy_library() -> None:
    program = (
        "import sys, jitkit.stores.store\n"
        "heavy = 'torch xarray zarr h5py matplotlib scipy numcodecs obstore'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
