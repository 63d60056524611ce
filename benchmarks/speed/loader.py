"""Loading speed: arrays, against raw reads and xarray; images, against Pillow.

Arrays are measured as by `python -m benchmarks.loader`, on less data. Images are JPEGs of 500 x 375
pixels, cropped to 256 as in ADM; their limit is decoding alone. Files are in the page cache. Rates
are measured while all workers run, without their start.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from benchmarks import loader as arrays
from benchmarks.speed import jpegs
from benchmarks.speed.limits import read_rate
from benchmarks.speed.measure import middle, seconds_of
from benchmarks.speed.results import Demand, Plan, Result, Table, percent
from jitkit.data import BatchPlan as Order
from jitkit.data import batches
from jitkit.domain import Domain
from jitkit.fields import Batch
from jitkit.registry import domain_class

GB = 1e9
BATCH = 16  # images per batch
DECODE = "decode alone"


class ReadBy(Sequence[Any]):
    """Items read by a fixed number of threads; with 0 they are read one after the other."""

    def __init__(self, items: Sequence[Any], threads: int) -> None:
        self.items, self.threads = items, threads

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.items[index]


def pictures(folder: Path, size: int) -> Domain:
    """The adapter of a folder of images."""
    Images = domain_class("images")
    section = Images.Section.model_validate(
        {"name": "images", "path": folder, "size": size, "holdout": 0.0}
    )
    return Images(section)


def read(domain: Domain, items: Sequence[Any], number: int, workers: int) -> float:
    """Seconds per image over ``number`` batches, after every worker has delivered two.

    There are more batches than are timed, because workers at the end of their work would deliver
    the last batches together.
    """
    skipped = 1 + 2 * workers
    stop = 2 * skipped + number
    order = Order.over(items, BATCH, 0, stop=stop)
    reading: Iterator[Batch] = batches(domain, items, order, workers=workers)
    for _ in range(skipped):
        next(reading)
    took = seconds_of(lambda: next(reading), repeats=number)
    for _ in reading:  # so that no worker is stopped inside a batch
        pass
    return took / BATCH


def picture_ways(
    folder: Path, files: Sequence[Path], plan: Plan, *, size: int
) -> dict[str, list[float]]:
    """Images per second for each way to read them, in alternating rounds."""
    domain = pictures(folder, size)
    items = domain.items("train")
    number = plan.pick(40, 16, 2)
    several = plan.pick((2, 4), (2, 4), (2,))
    found: dict[str, list[float]] = {}
    for _ in range(plan.pick(3, 1, 1)):
        for threads in (1, *several):
            name = f"{DECODE}, threads: {threads}"
            found.setdefault(name, []).append(jpegs.decode_rate(files, threads))
        ways = {"jitkit, as it comes": (items, 0), "jitkit, one by one": (ReadBy(items, 0), 0)}
        ways |= {f"jitkit, threads: {n}": (ReadBy(items, n), 0) for n in several}
        if plan.size != "tiny":  # workers take seconds to start
            ways |= {f"jitkit, workers: {n}": (ReadBy(items, 0), n) for n in several}
        for name, (way, workers) in ways.items():
            found.setdefault(name, []).append(1 / read(domain, way, number, workers))
    return found


def of_pictures(plan: Plan, result: Result) -> None:
    """Images per second, and their share of the rate of decoding alone."""
    high, wide = plan.pick((jpegs.HIGH, jpegs.WIDE), (jpegs.HIGH, jpegs.WIDE), (30, 40))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = jpegs.write(folder, plan.pick(160, 80, 16), high=high, wide=wide)
        kilobytes = sum(path.stat().st_size for path in files) / len(files) / 1e3
        rates = picture_ways(folder, files, plan, size=plan.pick(256, 256, 16))
    best = max(middle(rate)[0] for name, rate in rates.items() if name.startswith(DECODE))
    rows: list[list[object]] = []
    for name, rate in rates.items():
        rows.append([name, f"{middle(rate)[0]:.0f}", percent(middle(rate)[1])])
        rows[-1].append(percent(middle(rate)[0] / best))
    head = ["reader", "images/s", "spread", "share of the best decoding"]
    title = f"JPEG of {wide} x {high}, {kilobytes:.0f} kB, cropped and scaled"
    result.tables.append(Table(title, head, rows))
    result.numbers["pictures_per_second"] = {name: middle(rate)[0] for name, rate in rates.items()}
    result.numbers["kilobytes"] = kilobytes


def of_arrays(plan: Plan, result: Result) -> None:
    """Steps of a synthetic reanalysis per second: copied from a raw file, by xarray, by jitkit."""
    steps, buffer_bytes = plan.pick(288, 96, 24), int(GB)
    folder = Path(tempfile.gettempdir()) / f"jitkit-loader-{steps}"  # kept for the next time
    folder.mkdir(parents=True, exist_ok=True)
    arrays.write(folder, steps)
    arrays.into_page_cache(folder)
    raw = result.numbers["raw_bytes_per_second"] = read_rate(folder / "raw.npy")
    rows: list[list[object]] = []
    for chunk in arrays.CHUNKS:
        found = {case: arrays.apart(case, folder, chunk, 2, buffer_bytes) for case in arrays.CASES}
        result.numbers[f"chunks of {chunk}"] = found
        for case, row in found.items():
            rows.append([chunk, case, row["samples/s"], row["MB/s"], f"{row['peak GB']} GB"])
            rows[-1].append(percent(row["MB/s"] * 1e6 / raw))
        over = found["ours"]["samples/s"] / found["xarray"]["samples/s"]
        what = f"arrays in chunks of {chunk}, speed over xarray's"
        result.demands.append(Demand(what, over, arrays.LEAST[chunk], "at least"))
        most = buffer_bytes / GB + arrays.SPARE
        what = f"arrays in chunks of {chunk}, memory"
        result.demands.append(Demand(what, found["ours"]["peak GB"], most, unit="GB"))
    head = ["steps per chunk", "reader", "samples/s", "MB/s", "memory", "share of a raw read"]
    title = f"Arrays of 3.4 MB, 2 threads or workers; a raw read: {raw / GB:.1f} GB/s"
    result.tables.append(Table(title, head, rows))


def run(plan: Plan) -> Result:
    """Arrays (skipped in tests, which cover them elsewhere) and images."""
    result = Result("loader")
    if plan.size != "tiny":
        of_arrays(plan, result)
    of_pictures(plan, result)
    return result
