"""Fill values of `domain.fill` are read as if the file declared them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from climate import as_netcdf, section, smooth
from storefiles import field, raw_dataset, write

from jitkit import testing
from jitkit.domains.arrays.adapter import Arrays
from jitkit.errors import DataError
from jitkit.stores.store import Store


def write_pair(dtype: str, kind: str, folder: Path, packing: dict[str, Any]) -> tuple[Path, Path]:
    """Two files of the same values; the second declares the stored value 7 as missing."""
    values, seven = field(dtype=dtype), np.dtype(dtype).newbyteorder("=").type(7)
    paths = []
    for name, attrs in (("undeclared", packing), ("declared", packing | {"_FillValue": seven})):
        (folder / name).mkdir()
        paths.append(write(raw_dataset(values, attrs), kind, folder / name, (4, 3, 4)))
    return paths[0], paths[1]


@pytest.mark.parametrize("packing", [{}, {"scale_factor": 0.1, "add_offset": -2.0}])
@pytest.mark.parametrize("dtype", ["f4", "i2", "u1", ">f8", ">i4"])
def test_a_fill_value_reads_like_a_declared_one(
    dtype: str, packing: dict[str, Any], tmp_path: Path
) -> None:
    undeclared, declared = write_pair(
        dtype, "netcdf3" if dtype[0] == ">" else "zarr2", tmp_path, packing
    )
    physical = 7 * packing.get("scale_factor", 1.0) + packing.get("add_offset", 0.0)
    plain, expected = Store(undeclared), Store(declared)
    assert np.isfinite(plain.read("v")).all() and np.isnan(expected.read("v")).sum() > 0
    for fill in (physical, {"v": physical}):
        store = Store(undeclared, fill=fill)
        np.testing.assert_array_equal(store.read("v"), expected.read("v"))
        one, other = store.variables["v"], expected.variables["v"]
        assert one.missing and one.dtype.kind == "f" and (packing or one.dtype == other.dtype)
        assert store.fingerprint() != plain.fingerprint()


def test_a_fill_value_is_added_to_a_declared_one(tmp_path: Path) -> None:
    _, declared = write_pair("i2", "netcdf4", tmp_path, {})
    values = Store(declared, fill=9).read("v").ravel()
    assert np.flatnonzero(np.isnan(values)).tolist() == [7, 9]


def test_a_fill_value_applies_to_all_concatenated_files(tmp_path: Path) -> None:
    for i in range(2):
        values = np.arange(12, dtype="i2").reshape(3, 4)
        data = xr.Dataset({"v": (("time", "x"), values)}, {"time": np.arange(3.0) + 3 * i})
        data.to_netcdf(tmp_path / f"{i}.nc", engine="h5netcdf")
    values = Store(tmp_path / "*.nc", fill=5).read("v")
    assert np.argwhere(np.isnan(values)).tolist() == [[1, 1], [4, 1]]


@pytest.mark.parametrize("fill", [-999, 7.5, 1e300, -1])
def test_a_fill_value_outside_the_dtype_matches_no_cell(fill: float, tmp_path: Path) -> None:
    undeclared, _ = write_pair("u1", "zarr2", tmp_path, {})
    store = Store(undeclared, fill=fill)
    assert store.read("v").tolist() == field().tolist()
    assert store.variables["v"] == Store(undeclared).variables["v"]
    floats = write(raw_dataset(field(), {}), "netcdf4", tmp_path, None)
    assert Store(floats, fill=1e300).read("v").tolist() == field().tolist()


def test_an_unknown_or_non_numeric_variable_of_a_fill_value_is_named(tmp_path: Path) -> None:
    names = np.array(["a", "b"], object)
    data = xr.Dataset({"rain": ("time", np.ones(2)), "station": ("time", names)})
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"no variable 'rian' for domain.fill; .*mean 'rain'"):
        Store(tmp_path / "a.nc", fill={"rian": -1})
    with pytest.raises(DataError, match="domain.fill: 'station' is not numeric but"):
        Store(tmp_path / "a.nc", fill={"station": -1})
    assert np.isnan(Store(tmp_path / "a.nc", fill=1).read("rain")).all()


def test_a_recipe_with_a_fill_value_marks_the_cells_as_missing(tmp_path: Path) -> None:
    values = smooth(20, 6, 8)
    values[:, :2] = -999
    path = as_netcdf(xr.Dataset({"t": (("time", "y", "x"), values)}), tmp_path / "a.nc")
    keys: dict[str, Any] = {"path": path, "axes": {"y": "line", "x": "line"}}
    domain = Arrays(section(**keys, fill={"t": -999}))
    testing.check_domain(domain, tolerance=1e-4)
    assert domain.layout.missing and not Arrays(section(**keys)).layout.missing
    item = domain.items("train")[0].values
    assert np.isnan(item[:, :2]).all() and np.isfinite(item[:, 2:]).all()
