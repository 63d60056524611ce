"""Remote stores: an S3 server, web servers, and failing connections."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from zarr.codecs import ZstdCodec

from jitkit.errors import DataError
from jitkit.stores import remote
from jitkit.stores.locations import File
from jitkit.stores.remote import Remote
from jitkit.stores.store import Store

Array = np.ndarray[Any, Any]
SHAPE = (12, 6, 5)


def values() -> Array:
    return np.random.default_rng(0).standard_normal(SHAPE, "f4")


def dataset() -> xr.Dataset:
    coords = {"time": np.arange(12), "y": np.linspace(0.0, 1.0, 6)}
    return xr.Dataset({"v": (("time", "y", "x"), values())}, coords)


def write_all(folder: Path) -> None:
    """Write the same values in every format that is read remotely."""
    chunks = {"v": {"chunks": (1, 6, 5), "compressors": (ZstdCodec(),)}}
    dataset().to_zarr(folder / "3.zarr", encoding=chunks, zarr_format=3, consolidated=False)
    dataset().to_zarr(
        folder / "2.zarr", encoding={"v": {"chunks": (2, 6, 5)}}, zarr_format=2, consolidated=True
    )
    shards = {"v": {"chunks": (1, 6, 5), "shards": (4, 6, 5)}}
    dataset().to_zarr(folder / "sharded.zarr", encoding=shards, consolidated=False)
    dataset().to_netcdf(folder / "3.nc", engine="scipy")
    packed = {"v": {"chunksizes": (3, 6, 5), "zlib": True, "shuffle": True}}
    dataset().to_netcdf(folder / "4.nc", engine="h5netcdf", encoding=packed)
    dataset().to_netcdf(folder / "flat.nc", engine="h5netcdf")
    np.save(folder / "v.npy", values())
    with h5py.File(folder / "lzf.h5", "w") as file:
        file.create_dataset("v", data=values(), chunks=(3, 6, 5), compression="lzf")


FILES = ("3.zarr", "2.zarr", "sharded.zarr", "3.nc", "4.nc", "flat.nc", "v.npy", "lzf.h5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    """An S3 server with the folder in the public bucket ``data``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="data", ACL="public-read")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(
                Bucket="data",
                Key=f"deep/{path.relative_to(folder)}",
                Body=path.read_bytes(),
                ACL="public-read",
            )
    client.close()
    yield url
    server.stop()


class Web(SimpleHTTPRequestHandler):
    """Serves files of a folder, with byte ranges; its server can make requests fail."""

    protocol_version = "HTTP/1.1"
    server: WebServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        self.server.requests.append(self.path)
        fault = self.server.fault(self.path)
        if fault == "close":
            self.close_connection = True
            return
        if fault == "busy" or not path.is_file():
            self.send_response(503 if fault == "busy" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, status = path.read_bytes(), 200
        requested = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if requested and self.server.ranges:
            first, last = requested.groups()
            total = len(data)
            begin = int(first) if first else total - int(last)
            end = min(total, int(last) + 1) if first and last else total
            data, status = data[begin:end], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.send_header("Last-Modified", self.date_time_string(int(path.stat().st_mtime)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data[: len(data) // 2] if fault == "half" else data)
            self.close_connection = fault == "half"


class WebServer(ThreadingHTTPServer):
    """A web server whose connections fail as ``faults`` sets: kind of fault and number of times."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), lambda *a: Web(*a, directory=str(folder)))
        self.ranges = True
        self.faults: dict[str, list[Any]] = {}  # part of a path -> [kind, times]
        self.requests: list[str] = []
        self.sent = 0
        self._lock = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str | None:
        with self._lock:
            for part, fault in self.faults.items():
                if part in path and fault[1] > 0:
                    fault[1] -= 1
                    return str(fault[0])
        return None


@pytest.fixture
def web(folder: Path) -> Iterator[WebServer]:
    with WebServer(folder) as server:
        yield server
        server.shutdown()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the waits between tries 100 times shorter."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.002)


def check(store: Store) -> None:
    """Check a full read and the read of a box."""
    (name,) = store.variables
    np.testing.assert_array_equal(store.read(name), values())
    first, second, _ = store.variables[name].dims
    box = store.read(name, {first: 7, second: slice(1, 6, 2)})
    np.testing.assert_array_equal(box, values()[7, 1:6:2])


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_read_from_s3(endpoint: str, name: str) -> None:
    options = {"anonymous": True, "endpoint": endpoint, "allow_http": True}
    store = Store(f"s3://data/deep/{name}", options=options)
    check(store)
    again = pickle.loads(pickle.dumps(store))
    check(again)
    assert again.fingerprint() == store.fingerprint()
    if name.endswith(("zarr", "3.nc", "4.nc")):
        assert store.coords["y"].size == 6


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("3.zarr", "sharded.zarr")])
def test_stores_that_need_no_listing_are_read_from_a_web_server(web: WebServer, name: str) -> None:
    store = Store(f"{web.url}/{name}")
    check(store)
    check(pickle.loads(pickle.dumps(store)))


def test_a_file_is_read_by_byte_ranges(web: WebServer, folder: Path) -> None:
    big = np.random.default_rng(0).standard_normal((64, 256, 256), "f4")
    with h5py.File(folder / "big.h5", "w") as file:
        file.create_dataset("v", data=big, chunks=(1, 256, 256))
    store = Store(f"{web.url}/big.h5")
    np.testing.assert_array_equal(store.read("v", {"phony_dim_0": 9}), big[9])
    assert web.sent < big.nbytes // 8


def test_the_error_for_zarr_without_listing_names_consolidation(web: WebServer) -> None:
    with pytest.raises(DataError, match=r"3\.zarr: .*zarr\.consolidate_metadata"):
        Store(f"{web.url}/3.zarr")


@pytest.mark.parametrize("kind", ["close", "half", "busy"])
@pytest.mark.parametrize("name", ["2.zarr", "4.nc"])
def test_a_temporarily_failing_connection_is_retried(
    web: WebServer, quick: None, kind: str, name: str
) -> None:
    store = Store(f"{web.url}/{name}")
    web.faults["/" + name] = [kind, 4]
    check(store)
    assert web.faults["/" + name][1] == 0


@pytest.mark.parametrize("kind", ["close", "busy"])
def test_opening_is_retried(web: WebServer, quick: None, kind: str) -> None:
    web.faults["/2.zarr"] = [kind, 3]
    check(Store(f"{web.url}/2.zarr"))
    web.faults["/4.nc"] = [kind, 3]
    check(Store(f"{web.url}/4.nc"))


@pytest.mark.parametrize("kind", ["close", "half", "busy"])
def test_a_permanently_failing_key_is_named(web: WebServer, quick: None, kind: str) -> None:
    store = Store(f"{web.url}/2.zarr", options={"retries": 3})
    web.faults["/v/2.0.0"] = [kind, 10**9]
    store.read("v", {"time": 1})
    began, before = time.monotonic(), len(web.requests)
    with pytest.raises(DataError) as error:
        store.read("v", {"time": 4})
    text = str(error.value)
    assert (
        f"{store.path}: variable 'v', chunk v/2.0.0: {store.path}/v/2.0.0: failed 4 times" in text
    )
    assert len(web.requests) - before == 4 and time.monotonic() - began < 20
    web.faults.clear()
    check(store)  # a failure is not cached


def test_a_server_that_shut_down_is_reported(web: WebServer, quick: None) -> None:
    store = Store(f"{web.url}/2.zarr", options={"retries": 2})
    web.faults["/"] = ["close", 10**9]  # for connections that are open
    web.shutdown()
    web.server_close()
    with pytest.raises(DataError, match=r"chunk v/0\.0\.0: .* failed 3 times"):
        store.read("v", {"time": 0})
    with pytest.raises(DataError, match=r"2\.zarr.*failed 3 times"):
        Store(store.path, options={"retries": 2})


def test_a_missing_path_is_reported_without_retries(web: WebServer, endpoint: str) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match="absent: does not exist"):
        Store(f"{web.url}/absent")
    options = {"anonymous": True, "endpoint": endpoint, "allow_http": True}
    with pytest.raises(DataError, match="absent: does not exist"):
        Store("s3://data/absent", options=options)
    assert time.monotonic() - began < 5


def test_denied_access_is_reported_without_retries(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Web, "answer", lambda self, body: self.send_error(403))
    with pytest.raises(
        DataError, match="access denied; for public data set domain.options.anonymous"
    ):
        Store(f"{web.url}/2.zarr")


def test_a_server_without_ranges_still_serves_zarr(web: WebServer) -> None:
    web.ranges = False
    check(Store(f"{web.url}/2.zarr"))
    with pytest.raises(
        DataError, match="4.nc.*does not support the request.*copy the data to disk"
    ):
        Store(f"{web.url}/4.nc")


def test_chunks_of_one_read_are_requested_in_parallel(
    web: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, answer, most, now = Store(f"{web.url}/2.zarr"), Web.answer, [0], [0]
    lock = threading.Lock()

    def slow(self: Web, *, body: bool) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        answer(self, body=body)
        with lock:
            now[0] -= 1

    monkeypatch.setattr(Web, "answer", slow)
    store.read("v")
    assert most[0] > 1


def test_many_threads_read_remotely(web: WebServer) -> None:
    store = Store(f"{web.url}/2.zarr")
    with ThreadPoolExecutor(8) as pool:
        steps = list(pool.map(lambda step: store.read("v", {"time": step % 12}), range(96)))
    np.testing.assert_array_equal(np.stack(steps[:12]), values())
    assert store.stats.decoded == 6


def test_a_fork_is_refused_and_does_not_hang(web: WebServer) -> None:
    program = f"""
import os, signal, sys
from jitkit.stores.store import Store
store = Store({web.url + "/2.zarr"!r})
store.read("v", {{"time": 0}})
if os.fork() == 0:
    signal.alarm(20)
    try:
        store.read("v", {{"time": 5}})
        os._exit(3)
    except Exception as error:
        print(error, flush=True)
        os._exit(4)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4, done.stderr
    assert "start workers by spawn" in done.stdout


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="globs are for files on disk"):
        Store("s3://bucket/*.nc")
    with pytest.raises(DataError, match=r"options\.anonymus: unknown.*did you mean 'anonymous'"):
        Store("s3://bucket/a.zarr", options={"anonymus": True})
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(DataError, match=r"obstore, which is not installed: pip install"):
        Store("s3://bucket/a.zarr")


def test_shared_credentials_are_used(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = key\naws_secret_access_key = secret\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    check(Store("s3://data/deep/2.zarr", options={"endpoint": endpoint, "allow_http": True}))


def test_local_and_remote_locations_return_the_same_bytes(web: WebServer, folder: Path) -> None:
    local, distant = File(str(folder / "v.npy")), Remote(web.url, {})
    for start, length in ((0, None), (10, 20), (-16, None), (-16, 4), (200, None), (5, 0)):
        assert distant.read("v.npy", start, length) == local.read("", start, length)
    assert distant.read("absent") is None and distant.stamp("absent") == ""
