"""Sample files: the format, coordinates, attributes and types of the source data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from climate import GLOBE, arrays_domain, as_netcdf, as_zarr, climate, lines, many, smooth

from jitkit.domains.arrays.items import Sample
from jitkit.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are cached in the test's folder."""
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))


def source(kind: str, folder: Path) -> dict[str, Any]:
    data = climate().drop_vars(["regime"])
    if kind == "zarr":
        return {"path": as_zarr(data, folder / "a.zarr")} | WRITTEN
    return {"path": as_netcdf(data, folder / f"a.{kind}")} | WRITTEN


WRITTEN: dict[str, Any] = {
    "axes": GLOBE,
    "unroll": ["level"],
    "conditions": {"scalars": ["co2"], "categories": ["phase"]},
}


@pytest.mark.parametrize("kind", ["nc", "h5", "zarr"])
def test_sample_files_have_the_format_of_the_data(kind: str, tmp_path: Path) -> None:
    data = climate()
    domain = arrays_domain(**source(kind, tmp_path))
    items = [domain.items("train")[i] for i in range(3)]
    samples = [domain.decode(domain.encode(item)) for item in items]
    (file,) = domain.write(samples, tmp_path / "out")
    assert file.name == f"samples.{kind}"
    engine: Any = "zarr" if kind == "zarr" else "h5netcdf"
    with xr.open_dataset(file, engine=engine) as again:
        assert again.attrs == data.attrs
        for name in ("level", "latitude", "longitude", "height"):
            assert again[name].dtype == data[name].dtype
            xr.testing.assert_identical(again[name].variable, data[name].variable)
        for name in ("z", "t2m", "sst", "rain"):
            wanted = data[name].isel(time=slice(0, 3)).rename(time="sample")
            assert again[name].dims == wanted.dims
            assert (again[name].dtype, again[name].attrs) == (wanted.dtype, wanted.attrs)
            np.testing.assert_allclose(again[name], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again.co2, data.co2[:3], rtol=1e-6)
        assert again.phase.values.tolist() == [0, 10, 0]
    assert list((tmp_path / "out").iterdir()) == [file]


def test_numpy_data_are_written_as_numpy_files(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(3, (20, 7, 9)).astype(np.uint8)
    np.save(tmp_path / "a.npy", counts)
    domain = arrays_domain(path=str(tmp_path / "a.npy"), axes={"dim_1": "line", "dim_2": "line"})
    items = [domain.decode(domain.encode(domain.items("train")[i])) for i in range(12)]
    (file,) = domain.write(items, tmp_path / "out")
    again = np.load(file)
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, counts[:12])
    too_large = Sample(np.full((1, 7, 9), 1e9, np.float32))
    assert int(np.load(domain.write([too_large], tmp_path / "out")[0]).min()) == 255

    domain = arrays_domain(**many(tmp_path))
    (file,) = domain.write([domain.items("train")[0]], tmp_path / "out")
    with np.load(file) as archive, np.load(tmp_path / "many.npz") as given:
        np.testing.assert_array_equal(archive["u"], given["u"][:1])


def test_windows_are_written_with_the_time_since_their_first_step(tmp_path: Path) -> None:
    data = climate()
    path = as_netcdf(data, tmp_path / "a.nc")
    domain = arrays_domain(path=path, axes=GLOBE, variables=["z"], unroll=["level"], window=3)
    item = domain.items("train")[2]
    (file,) = domain.write([item, item], tmp_path / "out")
    with xr.open_dataset(file) as again:
        assert again.z.dims == ("sample", "time", "level", "latitude", "longitude")
        assert again.time.values.tolist() == [0, 6, 12]
        assert again.time.attrs["units"] == "hours"
        np.testing.assert_array_equal(again.z[1], data.z[2:5])


def test_curved_grids_keep_their_coordinates(tmp_path: Path) -> None:
    y, x = np.mgrid[0:5, 0:7].astype(np.float32)
    data = xr.Dataset(
        {
            "tos": (("t", "y", "x"), smooth(12, 5, 7), {"units": "degC", "grid_mapping": "crs"}),
            "crs": ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"}),
        },
        {
            "nav_lat": (("y", "x"), 10 + y + x / 10, {"units": "degrees_north"}),
            "nav_lon": (("y", "x"), 20 + x - y / 10, {"units": "degrees_east"}),
            "t": np.arange("2000-01", "2001-01", dtype="M8[M]").astype("M8[ns]"),
        },
    )
    domain = arrays_domain(path=as_netcdf(data, tmp_path / "a.nc"), axes={"y": "line", "x": "line"})
    (file,) = domain.write([domain.items("train")[0]], tmp_path / "out")
    with xr.open_dataset(file) as again:
        xr.testing.assert_identical(again.nav_lat, data.nav_lat)
        assert set(again.tos.coords) == {"nav_lat", "nav_lon"}
        assert again.tos.attrs == data.tos.attrs
        assert again.crs.attrs == data.crs.attrs
    domain.preview([domain.items("train")[0]])


def test_items_before_an_interruption_are_written(tmp_path: Path) -> None:
    domain = arrays_domain(**lines(tmp_path))

    def some() -> Iterator[Sample]:
        yield from domain.items("train")[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        domain.write(some(), tmp_path / "out")
    assert np.load(tmp_path / "out/samples.npy").shape == (2, 17)
    domain.write(domain.items("val"), tmp_path / "out")
    assert np.load(tmp_path / "out/samples.npy").shape == (3, 17)
    with pytest.raises(DataError, match="no items to write"):
        domain.write([], tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["samples.npy"]
