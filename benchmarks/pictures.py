"""Cost of an image from JPEG to training batch, in CPU time of one core.

    python -m benchmarks.pictures [--batches 12] [--rounds 3]

Images are synthetic, 500 x 375, with the spectrum of photographs, cropped to 256 as in ADM. CPU
time hardly depends on machine load, so images per second and core follow from it: docs/scaling.md
uses them for eight GPUs. Files are in the page cache.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.speed import jpegs
from jitkit.data import BatchPlan, batches
from jitkit.domains.images.files import centre_crop
from jitkit.registry import domain_class

SIZE, BATCH, FILES = 256, 32, 96
WAYS: dict[str, dict[str, Any]] = {
    "a thread": {"threads": 1},
    "a worker": {"threads": 1, "workers": 1},
    "a thread, packed": {"threads": 1, "packed": True},
}


def cropped(path: Path) -> None:
    """A file's pixels, cropped, by Pillow alone."""
    with Image.open(path) as image:
        centre_crop(image.convert("RGB"), SIZE)


def by_pillow(files: Sequence[Path], work: Callable[[Path], None]) -> float:
    """CPU milliseconds per file."""
    began = time.process_time()
    for path in files:
        work(path)
    return 1000 * (time.process_time() - began) / len(files)


def used() -> float:
    """CPU seconds of this process and its running children."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def settled() -> float:
    """`used`, when all that is prepared ahead is there."""
    before, now = -1.0, used()
    while now - before > 0.02:
        time.sleep(0.5)
        before, now = now, used()
    return now


def by_jitkit(
    folder: Path, number: int, *, threads: int, workers: int = 0, packed: bool = False
) -> float:
    """CPU milliseconds per image over ``number`` batches, in the middle of training."""
    Images = domain_class("images")
    keys = {"path": folder / "jpegs", "size": SIZE, "holdout": 0, "threads": threads}
    if packed:
        keys["cache"] = folder / "packed"
    domain = Images(Images.Section.model_validate({"name": "images"} | keys))
    items = domain.items("train")
    reading = batches(
        domain, items, BatchPlan.over(items, BATCH, 0, stop=number + 9), workers=workers
    )
    for _ in range(3):
        next(reading)
    began = settled()
    for _ in range(number):
        next(reading)
    return 1000 * (settled() - began) / (number * BATCH)


def main() -> None:
    """Print a row for each way, medians of the rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        files = jpegs.write(Path(place) / "jpegs", FILES)
        for _ in range(arguments.rounds):
            found.setdefault("Pillow, decoding", []).append(by_pillow(files, jpegs.decode))
            found.setdefault("Pillow, and cropping", []).append(by_pillow(files, cropped))
            for name, way in WAYS.items():
                took = by_jitkit(Path(place), arguments.batches, **way)
                found.setdefault(f"jitkit, {name}", []).append(took)
        kilobytes = sum(path.stat().st_size for path in files) / len(files) / 1e3
    print(f"JPEG of {kilobytes:.0f} kB; CPU ms per image, images per second and core")
    for name, times in found.items():
        took = statistics.median(times)
        print(f"{name:24} {took:6.2f} ({min(times):.2f} to {max(times):.2f}) {1000 / took:6.0f}")


if __name__ == "__main__":
    main()
