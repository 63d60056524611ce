"""`jitkit fetch`: copies have the same items, resume after a kill, are repaired or refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from climate import (
    CONDITIONED,
    GLOBE,
    arrays_domain,
    as_netcdf,
    as_zarr,
    climate,
    everything,
    films,
    levels,
    sea,
)
from conftest import Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jitkit.domain import Split
from jitkit.domains.arrays.adapter import Arrays
from jitkit.errors import DataError
from jitkit.recipe.load import load_recipe
from jitkit.registry import open_domain
from jitkit.stores import download, local_copy
from jitkit.stores.download import copied_variables

SPLITS: tuple[Split, ...] = ("train", "val")
ALREADY_THERE = "of it are in"


def check_same_items(ours: Any, theirs: Any) -> None:
    """Check that every item of both splits and its conditioning are bit-identical."""
    for part in SPLITS:
        a, b = ours.items(part), theirs.items(part)
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert x.name == y.name
            np.testing.assert_array_equal(x.values, y.values)
            assert x.cond.keys() == y.cond.keys()
            for name, value in x.cond.items():
                np.testing.assert_array_equal(value, y.cond[name])


def files(folder: Path) -> dict[str, bytes]:
    """All files of a copy except its log."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path.read_bytes()
        for name, path in sorted(paths.items())
        if path.is_file() and not name.startswith(local_copy.NOTES)
    }


def write_recipe(folder: Path, keys: str) -> Path:
    """Write a recipe for arrays."""
    path = folder / "a.yaml"
    model = "{width: 16, depth: 1, heads: 2}"
    path.write_text(f"domain: {{name: arrays, {keys}}}\nmodel: {model}\n", encoding="utf-8")
    return path


def selection(folder: Path) -> dict[str, Any]:
    """One level, splits by date, a gap, earlier steps."""
    path = as_zarr(climate(), folder / "selection.zarr")
    splits = {"train": {"to": "2000-02-29"}, "val": {"from": "2000-03-04T12"}}
    return {"path": path} | CONDITIONED | {"select": {"level": [850]}, "splits": splits}


@pytest.mark.parametrize("recipe", [levels, sea, films, everything, selection])
def test_a_copy_has_bit_identical_items(
    recipe: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    keys = recipe(tmp_path)
    ours = arrays_domain(**keys)
    overrides = ours.fetch(tmp_path / "copy")
    assert overrides == [f"domain.path={tmp_path / 'copy'}"]
    theirs = arrays_domain(**keys | {"path": str(tmp_path / "copy")})
    check_same_items(ours, theirs)
    assert theirs.layout == ours.layout and theirs.conditions == ours.conditions


ENTRIES = st.integers(0, 39)


@settings(max_examples=12, deadline=None)
@example([0, 1, 3, 5, 7, 9], [20, 21, 23, 25, 27], 0, 2, 0, False)  # every second entry is left out
@given(
    st.lists(ENTRIES, min_size=1, max_size=12, unique=True),
    st.lists(ENTRIES, min_size=1, max_size=6, unique=True),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(0, 2),
    st.booleans(),
)
def test_a_copy_has_the_same_items_for_any_selection_of_times(
    tmp_path_factory: pytest.TempPathFactory,
    train: list[int],
    val: list[int],
    gap: int,
    window: int,
    past: int,
    rest: bool,
) -> None:
    folder = tmp_path_factory.mktemp("selection")
    path = as_zarr(climate()[["t2m"]].drop_vars("time"), folder / "a.zarr")
    splits: dict[str, Any] = {"val": sorted(val)}
    if not rest:
        splits["train"] = sorted(set(train) - set(val))
    keys = {"axes": GLOBE, "gap": gap, "window": window, "splits": splits}
    keys["conditions"] = {"past": past}
    try:
        ours = arrays_domain(path=path, **keys)
    except ValueError:  # no item is left
        return
    ours.fetch(folder / "copy")
    check_same_items(ours, arrays_domain(path=str(folder / "copy"), **keys))


def test_a_copy_contains_only_the_data_read(tmp_path: Path) -> None:
    keys = {"axes": GLOBE, "unroll": ["level"], "variables": ["z"], "select": {"level": [850]}}
    keys["splits"] = {"train": {"to": "2000-02-29"}, "val": {"from": "2000-03-05"}}
    arrays_domain(path=as_zarr(climate(), tmp_path / "a.zarr"), **keys).fetch(tmp_path / "copy")
    with xr.open_zarr(tmp_path / "copy") as copy:
        assert list(copy.data_vars) == ["z"]
        assert copy.sizes == {"time": 12 + 12, "level": 1, "latitude": 6, "longitude": 8}
        assert copy["z"].attrs == {"units": "m2 s-2"} and copy.attrs == climate().attrs
        assert float(copy["height"]) == 2.0
        source = climate()["z"].sel(level=[850], time=copy["time"])
        xr.testing.assert_identical(copy["z"].load(), source)


def test_stored_values_keep_their_packing(tmp_path: Path) -> None:
    packed = {"dtype": "i2", "scale_factor": 0.01, "add_offset": 280.0, "_FillValue": -1}
    path = tmp_path / "packed.nc"
    data = climate()[["sst", "t2m"]]
    unsigned = {"dtype": "i1", "_Unsigned": "true", "scale_factor": 0.5, "add_offset": 230.0}
    unsigned["_FillValue"] = -1
    data.to_netcdf(path, engine="h5netcdf", encoding={"sst": packed, "t2m": unsigned})
    ours = arrays_domain(path=str(path), axes=GLOBE)
    ours.fetch(tmp_path / "copy")
    check_same_items(ours, arrays_domain(path=str(tmp_path / "copy"), axes=GLOBE))
    raw: Any = zarr.open_group(tmp_path / "copy", mode="r")
    assert [str(raw[name].dtype) for name in ("sst", "t2m")] == ["int16", "int8"]
    assert raw["sst"].attrs["scale_factor"] == 0.01 and raw["sst"].fill_value == -1


def test_files_with_different_packing_are_copied_as_values(tmp_path: Path) -> None:
    data = climate()[["t2m"]]
    for number, scale in enumerate((0.01, 0.02)):
        packed = {"dtype": "i2", "scale_factor": scale, "add_offset": 280.0, "_FillValue": -1}
        part = data.isel(time=slice(20 * number, 20 * number + 20))
        part.to_netcdf(tmp_path / f"{number}.nc", engine="h5netcdf", encoding={"t2m": packed})
    ours = arrays_domain(path=str(tmp_path / "*.nc"), axes=GLOBE)
    ours.fetch(tmp_path / "copy")
    check_same_items(ours, arrays_domain(path=str(tmp_path / "copy"), axes=GLOBE))


def test_chunks_are_a_few_steps_of_whole_grids(tmp_path: Path) -> None:
    """A step of 4.15 MB is one chunk; smaller steps share a chunk; many levels are split."""
    store = zarr.open_group(tmp_path / "big.zarr", mode="w", zarr_format=2)
    for name, shape in (("q", (8, 13, 721, 1440)), ("t", (8, 721, 1440)), ("s", (93_544, 64, 32))):
        dims = ["time", "level", "y", "x"] if name == "q" else ["time", "y", "x"]
        if name == "s":
            dims = ["step", "longitude", "latitude"]
        store.create_array(
            name,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="f4",
            attributes={"_ARRAY_DIMENSIONS": dims},
        )

    def chunks(name: str, **keys: Any) -> list[tuple[int, ...]]:
        domain = arrays_domain(path=str(tmp_path / "big.zarr"), variables=[name], **keys)
        return [v.chunks for v in copied_variables(domain.download_requests()[0])]

    axes = {"y": "line", "x": "circle"}
    assert chunks("t", axes=axes) == [(1, 721, 1440)]
    assert chunks("q", axes=axes, unroll=["level"]) == [(1, 1, 721, 1440)]
    assert chunks("s", axes={"longitude": "circle", "latitude": "line"}) == [(256, 64, 32)]


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_each_source_chunk_is_read_once(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 5 * 6 * 8 * 4)  # five steps
    path = as_zarr(climate()[["t2m"]], tmp_path / "a.zarr", chunk=chunk)
    domain = arrays_domain(path=path, axes=GLOBE, select={"time": {"from": "2000-02-28T06"}})
    (request,) = domain.download_requests()
    download.download(request, tmp_path / "copy", threads=3)
    used = -(-40 // chunk) - 5 // chunk
    fingerprinted = min(4, -(-40 // chunk))
    assert request.store.stats.decoded <= used + fingerprinted
    check_same_items(domain, arrays_domain(path=str(tmp_path / "copy"), axes=GLOBE))


def test_a_chunk_larger_than_the_cache_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK_BYTES", 5 * 6 * 8 * 4)
    path = as_zarr(climate()[["t2m"]], tmp_path / "a.zarr", chunk=40)
    (request,) = arrays_domain(path=path, axes=GLOBE, buffer="1kB").download_requests()
    download.download(request, tmp_path / "copy", threads=3)
    fingerprinted = 1
    assert request.store.stats.decoded == 1 + fingerprinted


# Kill, damage, full disk, other content


@pytest.fixture
def slow_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store of 120 steps in chunks of one step, on a slow web server."""
    from test_remote import WebServer

    time_ = np.datetime64("2000-01-01", "ns") + np.arange(120) * np.timedelta64(6, "h")
    values = np.random.default_rng(0).standard_normal((120, 64, 128)).astype("f4")
    data = xr.Dataset({"t": (("time", "y", "x"), values)}, {"time": time_})
    chunks: Any = {"t": {"chunks": (1, 64, 128)}}
    data.to_zarr(tmp_path / "web" / "a.zarr", zarr_format=2, consolidated=True, encoding=chunks)
    with WebServer(tmp_path / "web") as server:
        fault = server.fault

        def slow(path: str) -> str | None:
            time.sleep(0.015)
            return fault(path)

        monkeypatch.setattr(server, "fault", slow)
        yield server
        server.shutdown()


def test_a_killed_copy_resumes_and_equals_an_uninterrupted_one(
    slow_source: Any, tmp_path: Path
) -> None:
    keys = f"path: '{slow_source.url}/a.zarr', axes: {{y: line, x: line}}, threads: 1"
    recipe = write_recipe(tmp_path, keys)
    program = (
        "import sys; from jitkit.stores import download; "
        "download.CHUNK_BYTES = 2**17; from jitkit.cli import main; main()"
    )

    def start(to: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, "fetch", str(recipe), "--to", str(tmp_path / to)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    began = start("killed")
    written = tmp_path / "killed.part" / local_copy.WRITTEN
    deadline = time.monotonic() + 60
    while not (written.exists() and written.read_text().count('"t/') >= 12):
        assert time.monotonic() < deadline and began.poll() is None, began.communicate()
        time.sleep(0.01)
    os.kill(began.pid, signal.SIGKILL)
    began.communicate()
    assert not (tmp_path / "killed").exists()
    with open(written, "a") as file:
        file.write('["t/9.0.0", 12')  # truncated
    slow_source.requests.clear()
    again = start("killed")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert ALREADY_THERE in out
    requests = sum(re.search(r"/t/\d", path) is not None for path in slow_source.requests)
    assert 30 < requests < 100  # of 120, plus some for checks: present chunks are not requested
    uninterrupted = start("whole")
    assert uninterrupted.wait(60) == 0, uninterrupted.communicate()
    uninterrupted.communicate()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not (tmp_path / "killed.part").exists()


def copy_of_climate(tmp_path: Path) -> tuple[Arrays, Path]:
    path = as_zarr(climate()[["t2m", "z"]], tmp_path / "a.zarr")
    domain = arrays_domain(path=path, axes=GLOBE, unroll=["level"])
    domain.fetch(tmp_path / "copy")
    return domain, tmp_path / "copy"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [shorten, flip, Path.unlink])
@pytest.mark.parametrize("key", ["t2m/0.0.0", "z/0.0.0.0", "time/0", ".zmetadata", "z/.zarray"])
def test_a_damaged_file_is_downloaded_again(
    damage: Callable[[Path], None], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    domain, folder = copy_of_climate(tmp_path)
    before = files(folder)
    damage(folder / key)
    assert files(folder) != before
    domain.fetch(folder)
    assert files(folder) == before
    capsys.readouterr()
    domain.fetch(folder)
    assert "to fetch" not in capsys.readouterr().out


def test_a_copy_that_does_not_fit_on_the_disk_is_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_zarr(climate()[["t2m"]], tmp_path / "a.zarr")

    def full(folder: Path) -> Any:
        return type("Usage", (), {"free": 5000})()

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(DataError, match=r"7\.68 kB do not fit: 5 kB are free.*--to"):
        arrays_domain(path=path, axes=GLOBE).fetch(tmp_path / "copy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


def test_a_copy_of_another_recipe_is_refused(tmp_path: Path) -> None:
    _, folder = copy_of_climate(tmp_path)
    path = str(tmp_path / "a.zarr")
    other = arrays_domain(path=path, axes=GLOBE, unroll=["level"], select={"level": [500]})
    with pytest.raises(DataError, match="has a copy of other data: its entries.* differs"):
        other.fetch(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="mine has files that `jitkit fetch` did not write; choose"):
        other.fetch(tmp_path / "mine")
    as_zarr(climate()[["t2m", "z"]] + 1, tmp_path / "b.zarr")
    (tmp_path / "a.zarr").rename(tmp_path / "old.zarr")
    (tmp_path / "b.zarr").rename(tmp_path / "a.zarr")
    with pytest.raises(DataError, match="its data has changed since the copy started"):
        arrays_domain(path=path, axes=GLOBE, unroll=["level"]).fetch(folder)


def fail(*_: Any) -> None:
    raise OSError("no more")


def test_an_empty_folder_stays_empty_until_the_copy_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    domain = arrays_domain(path=as_zarr(climate()[["t2m"]], tmp_path / "a.zarr"), axes=GLOBE)
    with monkeypatch.context() as patch:
        patch.setattr(download, "_fill", fail)
        with pytest.raises(OSError, match="no more"):
            domain.fetch(tmp_path / "copy")
    assert not any((tmp_path / "copy").iterdir())
    domain.fetch(tmp_path / "copy")
    check_same_items(domain, arrays_domain(path=str(tmp_path / "copy"), axes=GLOBE))


def test_two_processes_cannot_write_the_same_copy(tmp_path: Path) -> None:
    path = as_zarr(climate()[["t2m"]], tmp_path / "a.zarr")
    domain = arrays_domain(path=path, axes=GLOBE)
    (request,) = domain.download_requests()
    description = download._description(request, copied_variables(request))
    with local_copy.LocalCopy(tmp_path / "copy", json.loads(json.dumps(description))):
        with pytest.raises(DataError, match="another process is making the copy"):
            domain.fetch(tmp_path / "copy")


def test_the_command_copies_and_prints_the_command_to_train_on_the_copy(
    jitkit: Callable[..., Result], tmp_path: Path
) -> None:
    path = as_netcdf(climate()[["t2m"]], tmp_path / "a.nc")
    recipe = write_recipe(tmp_path, f"path: {path}, axes: {{latitude: line, longitude: circle}}")
    answer = jitkit("fetch", recipe, "--to", tmp_path / "copy")
    assert answer.code == 0, answer.err
    words = answer.out.strip().splitlines()[-1].partition("jitkit train ")[2].split()
    assert words == [str(recipe), f"domain.path={tmp_path / 'copy'}"]
    ours, theirs = (load_recipe(recipe, words[1:n]).domain for n in (1, 2))
    check_same_items(open_domain(ours), open_domain(theirs))


def test_a_domain_without_data_to_copy_is_refused(
    jitkit: Callable[..., Result], tmp_path: Path
) -> None:
    answer = jitkit("fetch", "digits", "--to", tmp_path / "copy")
    assert answer.code == 2 and "domain 'digits' cannot copy data" in answer.err
    assert not (tmp_path / "copy").exists()
