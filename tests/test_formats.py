"""Formats: every codec and filter matches its reference library; other formats are refused."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from storefiles import field, source, zipped
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from jitkit.errors import DataError
from jitkit.stores.store import Store

Array = np.ndarray[Any, Any]
V2: dict[str, tuple[Any, Any, Any]] = {
    "none": (None, None, "C"),
    "zlib": (numcodecs.Zlib(3), None, "C"),
    "gzip": (numcodecs.GZip(3), None, "F"),
    "zstd": (numcodecs.Zstd(3), None, "F"),
    "blosc": (numcodecs.Blosc("lz4", shuffle=numcodecs.Blosc.SHUFFLE), None, "C"),
    "bitshuffle": (numcodecs.Blosc("zstd", shuffle=numcodecs.Blosc.BITSHUFFLE), None, "C"),
    "lz4": (numcodecs.LZ4(), None, "C"),
    "bz2": (numcodecs.BZ2(), None, "C"),
    "delta": (numcodecs.Zstd(3), [numcodecs.Delta("<f4")], "C"),
    "shuffle": (numcodecs.Zlib(3), [numcodecs.Shuffle(4)], "C"),
    "quantized": (numcodecs.Zlib(3), [numcodecs.FixedScaleOffset(0, 10, "<f4", "<i2")], "F"),
}


@pytest.mark.parametrize("name", V2)
@pytest.mark.parametrize("separator", [".", "/"])
def test_zarr_2_codecs_match_zarr_python(tmp_path: Path, name: str, separator: Any) -> None:
    compressor, filters, order = V2[name]
    array = zarr.create_array(
        tmp_path / "a.zarr",
        name="v",
        shape=(7, 5),
        chunks=(3, 4),
        dtype="<f4",
        compressors=compressor,
        filters=filters,
        order=order,
        zarr_format=2,
        fill_value=1.5,
        chunk_key_encoding={"name": "v2", "separator": separator},
        attributes={"_ARRAY_DIMENSIONS": ["a", "b"]},
    )
    array[:3] = field((3, 5))  # the other chunks are never written
    store = Store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.read_raw("v"), array[:])
    assert type(source(store, "v")).__name__ == "ZarrChunks"


V3: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "big": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "zstd": {"compressors": ZstdCodec(level=3)},
    "gzip": {"compressors": GzipCodec(level=3)},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "checked": {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "checked first": {"compressors": [Crc32cCodec(), ZstdCodec(level=1)]},
    "transposed": {"filters": TransposeCodec(order=(1, 0)), "compressors": ZstdCodec(level=1)},
    "sharded": {"shards": (6, 8), "compressors": ZstdCodec(level=3)},
    "index first": {
        "shards": {"shape": (6, 8), "index_location": "start"},
        "compressors": BloscCodec(),
    },
}


@pytest.mark.parametrize("name", V3)
@pytest.mark.parametrize("keys", ["default", "v2"])
def test_zarr_3_codecs_match_zarr_python(tmp_path: Path, name: str, keys: Any) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr",
        name="v",
        shape=(7, 9),
        chunks=(3, 4),
        dtype="f4",
        fill_value=1.5,
        dimension_names=["a", "b"],
        chunk_key_encoding={"name": keys, "separator": "."},
        **V3[name],
    )
    array[:3] = field((3, 9))
    store = Store(tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.read_raw("v"), array[:])
    np.testing.assert_array_equal(store.read_raw("v", {"a": 1, "b": slice(3, 6)}), array[1, 3:6])
    assert type(source(store, "v")).__name__ in ("ZarrChunks", "ShardChunks")


def test_an_unknown_codec_is_read_by_zarr_python(tmp_path: Path) -> None:
    with pytest.warns(UserWarning):
        from zarr.codecs.numcodecs import Delta

        array = zarr.create_array(
            tmp_path / "a.zarr",
            name="v",
            shape=(7,),
            chunks=(3,),
            dtype="i4",
            filters=Delta(dtype="<i4"),
            dimension_names=["a"],
        )
    array[:] = field((7,), "i4")
    store = Store(tmp_path / "a.zarr")
    assert type(source(store, "v")).__name__ == "ZarrArray"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("v"), field((7,)))


def test_a_zip_with_an_unknown_codec_is_read_by_zarr_python(tmp_path: Path) -> None:
    with pytest.warns(UserWarning):
        from zarr.codecs.numcodecs import Delta

        array = zarr.create_array(
            tmp_path / "a.zarr", name="v", shape=(7,), dtype="i4", filters=Delta(dtype="<i4")
        )
    array[:] = field((7,), "i4")
    store = Store(zipped(tmp_path / "a.zarr", zipfile.ZIP_DEFLATED))
    np.testing.assert_array_equal(store.read("v"), field((7,)))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("v"), field((7,)))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*specification")
def test_text_times_and_complex_numbers_of_zarr_are_not_numeric(
    tmp_path: Path, version: Any
) -> None:
    raw = xr.Dataset(
        {
            "word": (("n",), np.array(["ab", "c", "def"], object)),
            "when": (("n",), np.array(["2001-01-01", "NaT", "2001-01-03"], "M8[ns]")),
            "wave": (("n",), np.array([1j, 2, 3], "c8")),
            "yes": (("n",), np.array([True, False, True])),
        }
    )
    raw.to_zarr(tmp_path / "a.zarr", zarr_format=version, consolidated=False)
    store = Store(tmp_path / "a.zarr")
    assert [n for n, v in store.variables.items() if v.numeric] == ["yes"]
    assert store.read_raw("word", {"n": slice(1, None)}).tolist() == ["c", "def"]
    assert store.read_raw("when", {"n": 2}) == np.datetime64("2001-01-03")
    assert store.read_raw("wave").tolist() == [1j, 2, 3]
    assert store.read_raw("yes").tolist() == [True, False, True]
    assert store.read("yes").tolist() == [1, 0, 1]
    with pytest.raises(DataError, match="'when' is not numeric but datetime64"):
        store.read("when")


HDF5: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "big-endian": {"dtype": ">f8"},
    "chunks": {"chunks": (3, 4)},
    "gzip": {"chunks": (3, 4), "compression": "gzip"},
    "shuffled": {"chunks": (3, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
    "big shuffled": {"chunks": (3, 4), "compression": "gzip", "shuffle": True, "dtype": ">i4"},
    "half": {"chunks": (3, 4), "dtype": "f2"},
    "lzf": {"chunks": (3, 4), "compression": "lzf"},
    "scaled": {"chunks": (3, 4), "scaleoffset": 2, "dtype": "f4"},
    "bool": {"chunks": (3, 4), "dtype": "bool"},
}


@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("name", HDF5)
def test_hdf5_filters_match_h5py(tmp_path: Path, name: str, userblock: int) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w", userblock_size=userblock) as file:
        options = {"dtype": "f4", "shape": (7, 9), "fillvalue": 1} | HDF5[name]
        dataset = file.create_dataset("v", **options)
        dataset[:3] = field((3, 9)).astype(dataset.dtype)
        expected = dataset[:]
    store = Store(path)
    np.testing.assert_array_equal(store.read("v"), expected.astype("f4"))
    cut: dict[str, int | slice] = {"phony_dim_0": slice(1, 6, 2), "phony_dim_1": 8}
    np.testing.assert_array_equal(store.read("v", cut), expected[1:6:2, 8].astype("f4"))
    assert store.read_raw("v").dtype == expected.dtype.newbyteorder("=")


def test_hdf5_chunks_with_a_filter_mask_are_read(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(
            "v", (4, 4), "i4", chunks=(2, 4), compression="gzip", shuffle=True
        )
        plain = np.arange(8, dtype="<i4")
        dataset.id.write_direct_chunk((0, 0), plain.tobytes(), filter_mask=0b11)
        shuffled = numcodecs.Shuffle(4).encode(plain)
        dataset.id.write_direct_chunk((2, 0), bytes(shuffled), filter_mask=0b10)
        expected = dataset[:]
    np.testing.assert_array_equal(Store(path).read_raw("v"), expected)


@pytest.mark.parametrize("number", [32015, 32001])
def test_hdf5_with_zstandard_and_blosc_needs_no_plugin(tmp_path: Path, number: int) -> None:
    codec = {32015: numcodecs.Zstd(3), 32001: numcodecs.Blosc("lz4", shuffle=1)}[number]
    path, values = tmp_path / "v.h5", field((4, 6))
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((2, 6))
        plist.set_filter(number, h5py.h5z.FLAG_OPTIONAL, (0, 0, 4, 48))
        space = h5py.h5s.create_simple(values.shape)
        dataset = h5py.h5d.create(file.id, b"v", h5py.h5t.NATIVE_FLOAT, space, plist)
        for i in (0, 2):
            dataset.write_direct_chunk((i, 0), bytes(codec.encode(values[i : i + 2])))
    np.testing.assert_array_equal(Store(path).read("v"), values)


def test_a_missing_hdf5_filter_is_named(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((2, 6))
        plist.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, (0,))
        space = h5py.h5s.create_simple((4, 6))
        dataset = h5py.h5d.create(file.id, b"v", h5py.h5t.NATIVE_FLOAT, space, plist)
        dataset.write_direct_chunk((0, 0), bytes(48))
    text = r"v\.h5: variable 'v', chunk /v/0\.0: HDF5 filter 32004 is not installed; pip install"
    with pytest.raises(DataError, match=text):
        Store(path).read("v")


def test_rare_kinds_of_hdf5_datasets_are_read_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["w"] = field((4,))
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((2, 4), "f4")
        layout[0] = layout[1] = h5py.VirtualSource(tmp_path / "other.h5", "w", (4,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("outside", data=field((4,)), external=[(str(tmp_path / "raw"), 0, 16)])
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((4,))
        compact = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, plist)
        compact.write(h5py.h5s.ALL, h5py.h5s.ALL, field((4,)))
        file.create_dataset("empty", (0, 4), "f4")
        file.create_dataset("scalar", data=np.float32(3))
        file.create_dataset("never", (4,), "f4", fillvalue=2)
        file["compound"] = np.zeros(4, [("a", "f4"), ("b", "i4")])
        file["complex"] = np.zeros(4, "c8")
        file["words"] = ["a", "bc"]
    store = Store(path)
    np.testing.assert_array_equal(store.read("virtual"), [field((4,))] * 2)
    np.testing.assert_array_equal(store.read("outside"), field((4,)))
    np.testing.assert_array_equal(store.read("compact"), field((4,)))
    assert store.read("empty").shape == (0, 4) and store.read("scalar") == 3
    np.testing.assert_array_equal(store.read("never"), [2] * 4)
    assert [n for n, v in store.variables.items() if not v.numeric] == [
        "complex",
        "compound",
        "words",
    ]
    assert store.read_raw("words").tolist() == ["a", "bc"]


def write_cdf5(path: Path, records: int) -> dict[str, Array]:
    """Write CDF-5 with 64-bit integers by the specification: one fixed and two record variables."""
    arrays = {
        "grid": field((2, 3), ">u8"),
        "odd": field((records, 3), "i1"),
        "even": field((records, 2), ">f4"),
    }

    def name(text: str) -> bytes:
        return struct.pack(">Q", len(text)) + text.encode().ljust(-(-len(text) // 4) * 4, b"\0")

    dims = [("record", 0), ("two", 2), ("three", 3)]
    shapes = {"grid": (1, 2), "odd": (0, 2), "even": (0, 1)}
    types = {"grid": 11, "odd": 1, "even": 5}

    def header(begins: dict[str, int]) -> bytes:
        out = b"CDF\5" + struct.pack(">Q", records)
        out += struct.pack(">IQ", 10, 3) + b"".join(name(d) + struct.pack(">Q", n) for d, n in dims)
        out += struct.pack(">IQ", 12, 1) + name("title") + struct.pack(">IQ", 2, 5) + b"hello\0\0\0"
        out += struct.pack(">IQ", 11, 3)
        for key, axes in shapes.items():
            out += name(key) + struct.pack(f">Q{len(axes)}Q", len(axes), *axes)
            out += struct.pack(">IQ", 12, 1) + name("units") + struct.pack(">IQ", 2, 1) + b"K\0\0\0"
            out += struct.pack(">IQQ", types[key], 0, begins[key])
        return out

    start = len(header(dict.fromkeys(shapes, 0)))
    begins = {"grid": start, "odd": start + 48, "even": start + 52}
    data = header(begins) + arrays["grid"].tobytes()
    for odd, even in zip(arrays["odd"], arrays["even"], strict=True):
        data += odd.tobytes().ljust(4, b"\0") + even.tobytes()
    path.write_bytes(data)
    return arrays


@pytest.mark.parametrize("records", [0, 1, 4])
def test_netcdf_3_with_64_bit_data_is_read(tmp_path: Path, records: int) -> None:
    arrays = write_cdf5(tmp_path / "v.nc", records)
    store = Store(tmp_path / "v.nc")
    assert store.attrs == {"title": "hello"} and store.variables["even"].attrs == {"units": "K"}
    for name, values in arrays.items():
        np.testing.assert_array_equal(store.read(name), values.astype("f4"))
    if records:
        np.testing.assert_array_equal(
            store.read("even", {"record": -1, "two": 1}), arrays["even"][-1, 1]
        )


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_netcdf_3_records_written_by_scipy_are_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    from scipy.io import netcdf_file

    path = tmp_path / "v.nc"
    dtypes = {"a": "i1", "b": ">i2", "c": ">f8"}
    with netcdf_file(path, "w", version=2) as file:
        file.createDimension("t", None)
        file.createDimension("x", 3)
        for name in names:
            variable = file.createVariable(name, np.dtype(dtypes[name]), ("t", "x"))
            variable[:] = field((5, 3), dtypes[name])
    store = Store(path)
    for name in names:
        np.testing.assert_array_equal(store.read(name), field((5, 3)))
        np.testing.assert_array_equal(store.read(name, {"t": 2}), field((5, 3))[2])


@pytest.mark.parametrize("encoding", ["utf-8", "latin1"])
def test_netcdf_3_names_are_read_in_utf_8_and_latin_1(tmp_path: Path, encoding: str) -> None:
    from scipy.io import netcdf_file

    written = "été".encode(encoding).decode("latin1")  # SciPy writes Latin-1
    with netcdf_file(tmp_path / "v.nc", "w") as file:
        file.createDimension(written, 3)
        variable = file.createVariable(written, "f", (written,))
        variable[:] = field((3,))
        variable.units = "µm".encode()
    store = Store(tmp_path / "v.nc")
    assert store.coords["été"].values.tolist() == [0, 1, 2]
    assert store.coords["été"].attrs == {"units": "µm"}


def write_uncompressed(folder: Path, kind: str) -> tuple[Path, str]:
    """A file with an uncompressed array of 256 KB; the name of its variable."""
    path, values = folder / f"v.{kind}", field((4, 128, 128))
    if kind == "npy":
        np.save(path, values)
    elif kind == "nc":
        xr.Dataset({"v": (("a", "b", "c"), values)}).to_netcdf(path, engine="scipy")
    else:
        with h5py.File(path, "w") as file:
            file["v"] = values
    return path, "values" if kind == "npy" else "v"


@pytest.mark.parametrize("kept", [0, 100_000])
@pytest.mark.parametrize("kind", ["npy", "nc", "h5"])
def test_a_memory_mapped_file_that_becomes_shorter_is_reported(
    tmp_path: Path, kind: str, kept: int
) -> None:
    path, name = write_uncompressed(tmp_path, kind)
    store, unread = Store(path), Store(path)
    np.testing.assert_array_equal(store.read(name), field((4, 128, 128)))
    with path.open("r+b") as file:
        file.truncate(kept)
    for each in (store, unread):  # without the check the process ends with a bus error
        with pytest.raises(
            DataError, match=rf"v\.{kind}: .*(cut short|empty file).* copy it again"
        ):
            each.read(name)


def test_memory_mapped_files_do_not_exhaust_file_descriptors(tmp_path: Path) -> None:
    """Four variables in each of 80 files, in a process that may open 300 files."""
    for number in range(80):
        raw = xr.Dataset({n: (("t", "x"), field((1, 3)) + number) for n in "abcd"}, {"t": [number]})
        raw.to_netcdf(tmp_path / f"{number:03}.nc", engine="scipy")
    program = (
        "import resource, sys\n"
        "from jitkit.stores.store import Store\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))\n"
        f"store = Store({str(tmp_path / '*.nc')!r})\n"
        "print([int(store.read(name).sum()) for name in 'abcd'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = int(80 * field((1, 3)).sum() + 3 * sum(range(80)))
    assert done.stdout.strip() == str([expected] * 4), done.stderr


def test_numpy_files_are_memory_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", field((6, 5), ">f8"))
    np.save(tmp_path / "f.npy", np.asfortranarray(field((6, 5, 4))))
    np.savez(tmp_path / "a.npz", u=field((6, 5)), label=np.arange(6))
    np.savez_compressed(tmp_path / "c.npz", u=field((6, 5)), mask=np.ones((5, 5), bool))
    store = Store(tmp_path / "a.npy")
    assert store.variables["values"].dims == ("dim_0", "dim_1")
    np.testing.assert_array_equal(store.read("values", {"dim_1": 2}), field((6, 5))[:, 2])
    np.testing.assert_array_equal(Store(tmp_path / "f.npy").read("values"), field((6, 5, 4)))
    for name in ("a.npz", "c.npz"):
        store = Store(tmp_path / name)
        np.testing.assert_array_equal(store.read("u", {"dim_0": slice(2, 4)}), field((6, 5))[2:4])
    assert Store(tmp_path / "a.npz").variables["label"].dims == ("dim_0",)
    assert store.variables["mask"].dims == ("dim_0_of_5", "dim_1")
    assert store.read_raw("mask").dtype == bool


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_no_code_in_a_file_is_executed(tmp_path: Path) -> None:
    bad = np.array([Touch(tmp_path / "ran")], object)
    np.save(tmp_path / "a.npy", bad, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=bad)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(bad))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(bad))
    for name, text in {
        "a.npy": "Python objects; save numbers: np.save",
        "a.npz": "Python objects; save numbers: np.save",
        "a.pkl": "is pickle.*a pickle can run code",
        "a.pt": "PyTorch file, a pickle.*tensor.numpy",
    }.items():
        with pytest.raises(DataError, match=text):
            Store(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_unsupported_formats_are_refused_with_a_conversion(tmp_path: Path) -> None:
    import iris_sample_data

    samples = Path(iris_sample_data.path)
    (tmp_path / "empty.nc").touch()
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.nc").touch()
    refused: dict[Any, str] = {
        samples / "air_temp.pp": r"is Met Office PP.*iris.save\(iris.load",
        samples / "polar_stereo.grib2": r"is GRIB.*cfgrib.*to_netcdf",
        tmp_path / "empty.nc": "is empty",
        tmp_path / "text.csv": r"no known format \(it starts with b'a,b",
        tmp_path / "absent.nc": "no such file or folder",
        tmp_path / "*.hdf": "no file matches",
        tmp_path / "more": r"without Zarr metadata.*more/\*.nc",
        "ftp://host/a.nc": "no scheme 'ftp'; known: s3, gs",
    }
    for path, text in refused.items():
        with pytest.raises(DataError, match=text):
            Store(path)
    with pytest.raises(
        DataError, match="is empty"
    ):  # not an error about options, which apply to URLs
        Store(tmp_path / "empty.nc", options={"anonymous": True})
