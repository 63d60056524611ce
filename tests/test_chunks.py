"""Chunk cache: one decode per chunk, bounded memory, threads, forks and spawned workers."""

from __future__ import annotations

import multiprocessing
import pickle
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numcodecs import BZ2, LZ4, Blosc, GZip, Zlib, Zstd
from storefiles import field, raw_dataset, write

from jitkit.errors import DataError
from jitkit.stores.chunks import ChunkCache
from jitkit.stores.codecs import zarr_v2_decoder
from jitkit.stores.store import Store

Array = np.ndarray[Any, Any]


@pytest.fixture
def chunked(tmp_path: Path) -> Path:
    """A store of 8 chunks of 4 KB."""
    return write(raw_dataset(field((8, 32, 32)), {}), "zarr3", tmp_path, (1, 32, 32))


def test_a_cached_chunk_is_decoded_once(chunked: Path) -> None:
    store = Store(chunked)
    for _ in range(3):
        for step in range(8):
            store.read("v", {"time": step, "y": slice(0, 5)})
    assert store.stats.decoded == 8 and store.stats.hits == 16
    assert store.stats.decoded_bytes == 8 * 4096


def test_the_cache_stays_within_its_size_and_evicts_the_least_recently_used_chunk(
    chunked: Path,
) -> None:
    store = Store(chunked, buffer_bytes=15_000)  # 85 % are used: three chunks
    for step in (0, 1, 2, 0, 3, 0, 1):
        store.read("v", {"time": step})
        assert store._cache.bytes_held <= 3 * 4096 + 100
    assert store.stats.decoded == 5  # 1 was the least recently used when 3 was read
    store.read("v")
    assert store._cache.bytes_held == 3 * 4096


def test_a_chunk_larger_than_the_buffer_is_read_but_not_cached(
    chunked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(chunked, buffer_bytes=100)
    for _ in range(2):
        np.testing.assert_array_equal(store.read("v", {"time": 3}), field((8, 32, 32))[3])
    assert store.stats.decoded == 2 and store._cache.bytes_held == 0
    assert capsys.readouterr().err.count("do not fit into a buffer") == 1


def test_many_threads_wait_for_one_decode() -> None:
    cache, decodes = ChunkCache(2**20), []
    gate = threading.Barrier(8)

    def decode() -> Array:
        decodes.append(1)
        time.sleep(0.05)
        return field()

    def request(_: int) -> Array:
        gate.wait()
        return cache.get("key", decode)

    with ThreadPoolExecutor(8) as pool:
        chunks = list(pool.map(request, range(8)))
    assert len(decodes) == 1 and all(chunk is chunks[0] for chunk in chunks)


def test_a_failed_decode_raises_in_all_threads_and_is_retried() -> None:
    cache, gate = ChunkCache(2**20), threading.Barrier(4)

    def broken() -> Array:
        time.sleep(0.05)
        raise DataError("torn")

    def request(_: int) -> str:
        gate.wait()
        try:
            cache.get("key", broken)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(request, range(4))) == ["torn"] * 4
    assert cache.get("key", field).shape == (6, 5, 4)


@pytest.mark.parametrize("kind", ["zarr3", "netcdf4", "sharded", "zarr2.zip"])
def test_threads_read_what_one_thread_reads(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((40, 9, 8), "f4")
    path = write(raw_dataset(values, {}), kind, tmp_path, (3, 5, 8))
    store = Store(path, buffer_bytes=2000)  # about four chunks, so chunks are evicted
    steps = np.random.default_rng(1).integers(0, 40, 400)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda step: store.read("v", {"time": int(step)}), steps))
    np.testing.assert_array_equal(np.stack(found), values[steps])


def test_threads_share_h5py_for_chunks_that_only_it_can_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((40, 9, 8), "f4")
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("v", data=values, chunks=(3, 9, 8), compression="lzf")
    store = Store(tmp_path / "v.h5", buffer_bytes=3000)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda step: store.read("v", {"phony_dim_0": step}), range(40)))
    np.testing.assert_array_equal(np.stack(found), values)
    with h5py.File(tmp_path / "v.h5", "r") as file:  # the file can be opened by other code
        assert file["v"].shape == values.shape


def _read_step(store: Store, out: Any) -> None:
    out.put((store.read("v", {"time": 5}), store.stats.hits))


@pytest.mark.parametrize("kind", ["zarr3", "netcdf4", "netcdf3", "hdf5"])
def test_a_fork_opens_new_files_and_starts_with_an_empty_cache(tmp_path: Path, kind: str) -> None:
    path = write(raw_dataset(field((8, 4, 4)), {}), kind, tmp_path, (1, 4, 4))
    store = Store(path)
    store.read("v")  # all files are open and all chunks cached
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    with store._cache._lock:  # as if a thread of the parent held the lock
        child = context.Process(target=_read_step, args=(store, out))
        child.start()
    values, hits = out.get(timeout=20)
    child.join()
    np.testing.assert_array_equal(values, field((8, 4, 4))[5])
    assert hits == 0


@pytest.mark.parametrize("kind", ["zarr2", "sharded", "netcdf3"])
def test_a_spawned_worker_reads_without_the_heavy_libraries(tmp_path: Path, kind: str) -> None:
    path = write(
        raw_dataset(field((8, 4, 4)), {"_FillValue": np.float32(3)}), kind, tmp_path, (1, 4, 4)
    )
    store = Store(path)
    store.read("v")
    (tmp_path / "store.pickle").write_bytes(pickle.dumps(store))
    program = (
        "import pickle, sys\n"
        f"store = pickle.load(open({str(tmp_path / 'store.pickle')!r}, 'rb'))\n"
        "assert store.stats.decoded == 0 and store._cache.bytes_held == 0\n"
        "print(store.read('v', {'time': 5}).sum())\n"
        "heavy = {'torch', 'xarray', 'zarr', 'h5py', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert store.coords['y'].size == 4\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(field((8, 4, 4))[5].sum()), done.stderr
    assert done.returncode == 0, done.stderr


def test_a_pickle_contains_no_chunks(chunked: Path) -> None:
    store = Store(chunked)
    before = len(pickle.dumps(store))
    store.read("v")
    assert len(pickle.dumps(store)) == before < 10_000


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32, 32), "f4")
    path = write(raw_dataset(values, {}), "zarr3", tmp_path, (1, 32, 32))
    store = Store(path)
    (path / "v/c/3/0/0").write_bytes(b"torn")
    chunk = path / "v/c/4/0/0"
    chunk.write_bytes(chunk.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"v\.zarr: variable 'v', chunk v/c/3/0/0: "):
        store.read("v", {"time": 3})
    with pytest.raises(DataError, match=r"chunk v/c/4/0/0: "):
        store.read("v", {"time": 4})
    store.read("v", {"time": 5})


@pytest.mark.parametrize("kind", ["netcdf4", "netcdf3", "hdf5", "zarr2.zip"])
def test_a_truncated_file_is_reported(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((8, 32, 32), "f4")
    path = write(raw_dataset(values, {}), kind, tmp_path, (1, 32, 32))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"v\.(nc|h5|zip): .*cut short"):
        Store(path)


FRAMES: list[Any] = [
    *(
        Blosc(name, 5, mode)
        for name in ("lz4", "lz4hc", "blosclz", "zstd", "zlib")
        for mode in (0, 1)
    ),
    *(Blosc("lz4", 0, 0), LZ4(), Zstd(3), Zlib(), GZip(), BZ2()),
]


@pytest.mark.parametrize("codec", FRAMES, ids=str)
def test_a_chunk_that_is_cut_short_or_too_small_is_an_error(codec: Any) -> None:
    values = np.random.default_rng(0).integers(0, 50, (20, 30)).astype("<i4")
    steps = zarr_v2_decoder(
        {"chunks": [20, 30], "filters": None, "compressor": codec.get_config(), "order": "C"},
        values.dtype,
    )
    assert steps is not None
    frame = bytes(codec.encode(values))
    np.testing.assert_array_equal(steps(frame), values)
    for cut in (*range(9, 13), 15, 16, len(frame) // 2, len(frame) - 3, len(frame) - 17):
        with pytest.raises((ValueError, RuntimeError, OSError, EOFError, zlib.error)):
            steps(frame[:-cut])
    with pytest.raises(ValueError, match="its frame holds 840 bytes|840|210 values, not the 600"):
        steps(bytes(codec.encode(values[:7])))


def test_a_blosc_chunk_that_is_cut_short_on_disk_is_named(tmp_path: Path) -> None:
    """numcodecs alone would decode it to other values."""
    path = write(raw_dataset(field((4, 32, 32)), {}), "zarr2", tmp_path, (1, 32, 32))
    (chunk,) = [file for file in path.rglob("*") if file.name.endswith("2.0.0")]
    chunk.write_bytes(chunk.read_bytes()[:-5])
    store = Store(path)
    with pytest.raises(DataError, match=r"2\.0\.0"):
        store.read("v", {"time": 2})
