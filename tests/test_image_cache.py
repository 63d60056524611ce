"""Image cache: equal to reading the files, written once, refused if it cannot be written."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jitkit.data import BatchPlan, batches
from jitkit.domains.images import image_cache
from jitkit.domains.images.adapter import Images, ImagesSection
from jitkit.domains.images.image_cache import open_image_cache
from jitkit.errors import BadItem, DataError

RNG = np.random.default_rng(0)
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images of two classes, larger than requested; one is broken."""
    for i in range(12):
        path = tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = RNG.integers(0, 256, (20 + i, 23, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "data" / "b" / "05.png").write_bytes(b"no image")
    return tmp_path


def images(folder: Path, **keys: Any) -> Images:
    section = {"name": "images", "path": folder / "data", "size": 8, "holdout": 0, "threads": 3}
    return Images(ImagesSection.model_validate(section | keys))


def cached(folder: Path, **keys: Any) -> Images:
    return images(folder, cache=folder / "new" / "cache", **keys)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "new" / "cache").iterdir())


def read(domain: Images) -> Iterator[Any]:
    """Name, label and pixels of each image, or why it cannot be read."""
    items = domain.items("train")
    for i in range(len(items)):
        try:
            yield items[i].name, items[i].label, items[i].pixels.tolist()
        except BadItem as error:
            yield error.name, error.why


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cached_images_equal_those_of_the_files(
    folder: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = list(read(images(folder, channels=channels)))
    assert list(read(cached(folder, channels=channels))) == plain
    out, err = capsys.readouterr()
    assert out.startswith("writing the image cache ") and " GB of " in out
    assert "1 of 12 images cannot be read and will be skipped (the first: cannot" in err


def test_the_file_is_a_numpy_file_and_written_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = list(read(cached(folder)))
    (path,) = files(folder)
    with path.open("rb") as file:
        pixels = np.load(file)
    assert pixels.shape == (12, 8, 8, 3) and pixels.dtype == np.uint8
    assert not pixels[8].any()  # the broken one: six of class a come first
    monkeypatch.setattr(image_cache, "_fill", None)  # fails if called
    assert list(read(cached(folder))) == first


def test_batches_read_in_threads_from_files_or_cache_equal_sequential_ones(folder: Path) -> None:
    def drawn(domain: Images, threads: int, start: int = 0) -> list[Any]:
        items: Any = domain.items("train")
        items.threads = threads
        return list(batches(domain, items, BatchPlan(len(items), 5, 7, start, 9)))

    sequential = drawn(images(folder), 0)
    for domain, start in ((images(folder), 0), (cached(folder), 0), (cached(folder), 4)):
        threaded = drawn(domain, 3, start)
        for a, b in zip(threaded, sequential[start:], strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.cond["label"], b.cond["label"])
            assert a.notes == b.notes
    assert any(batch.notes for batch in sequential)


@pytest.mark.parametrize("change", ["content", "time", "name", "size", "channels"])
def test_a_changed_image_or_crop_gets_another_cache_file(folder: Path, change: str) -> None:
    keys: dict[str, Any] = {}
    list(read(cached(folder)))
    path = folder / "data" / "a" / "00.png"
    if change == "content":
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path)
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "name":
        path.rename(path.with_name("99.png"))
    else:
        keys = {"size": 9} if change == "size" else {"channels": 1}
    assert list(read(cached(folder, **keys))) == list(read(images(folder, **keys)))
    assert len(files(folder)) == 2


def test_the_cache_file_is_reused_when_the_data_are_moved(folder: Path) -> None:
    before = list(read(cached(folder)))
    (folder / "data").rename(folder / "moved")
    again = list(read(cached(folder, path=folder / "moved")))
    assert [item[1:] for item in again if len(item) == 3] == [
        item[1:] for item in before if len(item) == 3
    ]
    assert len(files(folder)) == 1


def test_each_split_is_cached_at_its_first_use(folder: Path) -> None:
    (folder / "data").rename(folder / "train")
    shutil.copytree(folder / "train" / "a", folder / "data" / "val" / "a")
    (folder / "train").rename(folder / "data" / "train")
    domain = cached(folder)
    assert len(domain.items("val")) == 6 and len(files(folder)) == 1
    assert len(domain.items("train")) == 12 and len(files(folder)) == 2


def test_cached_items_pickle_without_their_pixels(folder: Path) -> None:
    items = cached(folder, size=64).items("train")
    assert items[0].pixels.shape == (64, 64, 3)
    text = pickle.dumps(items)
    assert len(text) < 3000
    np.testing.assert_array_equal(pickle.loads(text)[0].pixels, items[0].pixels)


def test_a_full_disk_is_refused_before_an_image_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 2303, 2303))
    with pytest.raises(DataError, match=r"2.3e-06 GB are free.*domain.cache=FOLDER .*cache=null"):
        cached(folder).items("train")
    assert not [path for path in files(folder) if path.suffix == ".npy"]
    monkeypatch.undo()
    assert len(list(read(cached(folder)))) == 12


def test_a_folder_that_cannot_be_written_is_reported(folder: Path) -> None:
    (folder / "new").write_text("a file")
    with pytest.raises(DataError, match="cannot be written: .*; domain.cache=FOLDER names another"):
        cached(folder).items("train")


def test_the_partial_file_of_a_killed_process_is_not_used(folder: Path) -> None:
    list(read(cached(folder)))
    (path,) = files(folder)
    whole = path.read_bytes()
    path.rename(aside := path.with_name(f".{path.name}.part"))
    aside.write_bytes(whole[:1000])
    list(read(cached(folder)))
    assert files(folder) == [path] and path.read_bytes() == whole


def _open_cache(path: Path, calls: Any) -> None:
    def read_image(index: int) -> Any:
        with calls.get_lock():
            calls.value += 1
        return np.full((4, 4, 1), index, np.uint8)

    assert open_image_cache(path, (50, 4, 4, 1), read_image, threads=2)[49][0, 0, 0] == 49


@pytest.mark.slow
def test_one_of_several_processes_writes_the_cache_and_the_others_wait(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    calls = context.Value("i", 0)
    args = (tmp_path / "a.npy", calls)
    workers = [context.Process(target=_open_cache, args=args) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert calls.value == 50 and [path.name for path in tmp_path.iterdir()] == ["a.npy"]
