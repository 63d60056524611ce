"""The cache: computed once, again if a file is corrupt or of another key; concurrent writers."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jitkit.domains.arrays.normalize.statistics import Statistics, load_or_measure


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


class Maker:
    """Measures statistics and counts the calls."""

    def __init__(self, seed: int = 18) -> None:
        rng = np.random.default_rng(seed)
        self.values = rng.standard_normal((20, 2, 3, 4)).astype(np.float32)
        self.values[rng.random(self.values.shape) < 0.2] = np.nan
        self.values[:, 0, 0, 0] = np.nan
        self.calls = 0

    def __call__(self) -> Statistics:
        self.calls += 1
        return Statistics.measure([self.values], ["a", "b"], per_cell=True)


def test_statistics_are_measured_once(cache: Path) -> None:
    make = Maker()
    first, second = load_or_measure("abc123", make), load_or_measure("abc123", make)
    assert make.calls == 1 and [p.name for p in cache.iterdir()] == ["abc123.npz"]
    np.testing.assert_equal(first.metadata(), second.metadata())
    load_or_measure("another", make)
    assert make.calls == 2


def test_keys_need_not_be_valid_file_names(cache: Path) -> None:
    make = Maker()
    for key in ("../../up/and away", "a" * 500, "", ".."):
        load_or_measure(key, make)
        load_or_measure(key, make)
    assert make.calls == 4 and len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("length", [0, 1, 100, 500, -1])
def test_a_truncated_file_is_measured_again_and_replaced(cache: Path, length: int) -> None:
    make = Maker()
    load_or_measure("k", make)
    file = cache / "k.npz"
    complete = file.read_bytes()
    file.write_bytes(complete[:length])
    measured = load_or_measure("k", make)
    assert make.calls == 2
    load_or_measure("k", make)
    assert make.calls == 2
    np.testing.assert_equal(measured.metadata(), make().metadata())


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_file_with_a_flipped_byte_gives_the_same_values_or_is_measured_again(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, make = tmp_path_factory.mktemp("flip"), Maker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JITKIT_CACHE", str(folder))
        original = load_or_measure("k", make)
        file = folder / "statistics" / "k.npz"
        corrupt = bytearray(file.read_bytes())
        corrupt[data.draw(st.integers(0, len(corrupt) - 1))] ^= data.draw(st.integers(1, 255))
        file.write_bytes(corrupt)
        np.testing.assert_equal(load_or_measure("k", make).metadata(), original.metadata())


def test_a_foreign_file_is_measured_again(cache: Path) -> None:
    make = Maker()
    cache.mkdir(parents=True)
    file = cache / "k.npz"
    with open(file, "wb") as out:
        np.savez(out, head=np.array("[1]"), other=np.arange(3))
    load_or_measure("k", make)
    assert make.calls == 1
    load_or_measure("other", make)
    (cache / "other.npz").replace(file)  # intact, but of another key
    load_or_measure("k", make)
    assert make.calls == 3
    pickled = np.array([{"a": 1}], dtype=object)
    with open(file, "wb") as out:
        np.savez(out, head=pickled)  # would run code if loaded with allow_pickle
    load_or_measure("k", make)
    assert make.calls == 4


def test_a_file_of_another_version_is_measured_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    monkeypatch.setattr("jitkit.domains.arrays.normalize.statistics.STATISTICS_FORMAT", 0)
    load_or_measure("k", make)
    monkeypatch.undo()
    monkeypatch.setenv("JITKIT_CACHE", str(cache.parent))
    load_or_measure("k", make)
    assert make.calls == 2


def test_an_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "file"))
    make = Maker()
    load_or_measure("k", make)
    load_or_measure("k", make)
    assert make.calls == 2


def test_the_cache_is_in_the_home_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JITKIT_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    load_or_measure("k", Maker())
    assert (tmp_path / ".cache" / "jitkit" / "statistics" / "k.npz").is_file()


def test_concurrent_writers_leave_intact_files(cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_and_read, args=(18,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [p.name for p in cache.iterdir()] == ["k.npz"]


def _write_and_read(seed: int) -> None:
    """Write one file repeatedly while others do, and read it intact each time."""
    from jitkit.utils import cache

    metadata = Maker(seed)().metadata()
    for _ in range(100):
        cache.save_entry("statistics", "k", metadata)
        np.testing.assert_equal(cache.load_entry("statistics", "k"), metadata)
