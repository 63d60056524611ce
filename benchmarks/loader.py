"""Loading speed and memory of a reanalysis: raw reads, xarray in a PyTorch DataLoader, and jitkit.

    python -m benchmarks.loader [--gb 2] [--threads 2] [--buffer-gb 1] [--folder CACHE]

A synthetic reanalysis (time, 13 levels, 181 x 360 cells, float32 rounded to two digits) is written
once, raw and as Zarr 3 with zstd in chunks of 1 and of 24 steps. An item is one step of all levels,
3.4 MB. Each case reads the items in a random order, batches of 8, in its own process, with the
files in the page cache:

    memmap   one thread copies steps from the raw file: the limit of the machine
    xarray   open_zarr(chunks=None)[...].isel(time=i) in a PyTorch DataLoader of ``threads`` workers
    ours     `jitkit.data.batches` over a `Store`, order shuffled in blocks of chunks, ``threads``

Requirements: ours has at least 3 times the rate of xarray with chunks of 24 steps and 1.2 times
with chunks of 1, and never uses more memory than the buffer and 1 GB. Rates are measured after the
first batch, because workers take seconds to start.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LEVELS, ROWS, COLUMNS = 13, 181, 360
STEP_BYTES = LEVELS * ROWS * COLUMNS * 4
CHUNKS = (1, 24)
BATCH = 8
LEAST = {1: 1.2, 24: 3.0}  # ours over xarray's, by steps per chunk
SPARE = 1.0  # GB beside the buffer
MOST_FROM_XARRAY = 96  # items; one from chunks of 24 steps takes 0.1 s


def write(folder: Path, steps: int) -> None:
    """The reanalysis in chunks of 1 and 24 steps and raw; existing files are reused."""
    import zarr
    from zarr.codecs import ZstdCodec

    done = folder / f"{steps}.done"
    if done.exists():
        return
    raw = np.lib.format.open_memmap(
        folder / "raw.npy", "w+", np.float32, (steps, LEVELS, ROWS, COLUMNS)
    )
    arrays = [
        zarr.create_array(
            folder / f"{chunk}.zarr",
            name="t",
            shape=raw.shape,
            chunks=(chunk, *raw.shape[1:]),
            dtype="f4",
            compressors=ZstdCodec(level=3),
            dimension_names=["time", "level", "latitude", "longitude"],
            overwrite=True,
        )
        for chunk in CHUNKS
    ]
    rng = np.random.default_rng(0)
    for first in range(0, steps, max(CHUNKS)):
        block = raw[first : first + max(CHUNKS)]
        for step in block:
            noise = rng.standard_normal((LEVELS, ROWS, COLUMNS), np.float32)
            step[:] = np.round(250 + np.cumsum(noise, axis=-1), 2)
        for array in arrays:
            array[first : first + len(block)] = block
    raw.flush()
    done.touch()


class Items(Sequence[Any]):
    """Every step of all levels; implements `jitkit.protocols.Chunked`."""

    def __init__(self, path: Path, threads: int, buffer_bytes: int) -> None:
        from jitkit.stores.store import Store

        self.store = Store(path, buffer_bytes=buffer_bytes)
        self.threads = threads
        self._starts = self.store.starts("t", "time")
        chunk = self.store.variables["t"].chunks[0] * STEP_BYTES
        self._per_block = max(1, buffer_bytes // 2 // chunk)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: Any) -> Any:
        return self.store.read("t", {"time": int(index)})  # (level, latitude, longitude)

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Order with chunks shuffled, and items shuffled in blocks that fill half the buffer."""
        chunks = rng.permutation(len(self._starts) - 1)
        blocks = []
        for first in range(0, len(chunks), self._per_block):
            mine = chunks[first : first + self._per_block]
            block = [np.arange(self._starts[c], self._starts[c + 1]) for c in mine]
            blocks.append(rng.permutation(np.concatenate(block)))
        return np.concatenate(blocks)


class Steps:
    """A minimal domain: levels are channels, values are not normalized."""

    def __init__(self) -> None:
        from jitkit.fields import Axis, Layout

        axes = (Axis("latitude", ROWS, 8), Axis("longitude", COLUMNS, 8, "circle"))
        self.layout = Layout(axes, tuple(f"t.{level}" for level in range(LEVELS)))
        self.conditions: dict[str, Any] = {}

    def encode(self, item: Any, rng: Any = None) -> Any:
        import torch

        from jitkit.fields import Field

        return Field(torch.from_numpy(item))


class XarraySteps:
    """A data set for a PyTorch DataLoader, as in common tutorials."""

    def __init__(self, path: Path, order: Sequence[int]) -> None:
        self.path, self.order = path, order
        self.array: Any = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Any:
        import torch
        import xarray

        if self.array is None:  # in the worker
            self.array = xarray.open_zarr(self.path, chunks=None, consolidated=False)["t"]
        return torch.from_numpy(self.array.isel(time=int(self.order[index])).values)


def by_memmap(folder: Path, chunk: int, threads: int, buffer_bytes: int) -> Iterable[Any]:
    """Batches copied from the raw file."""
    import torch

    raw = np.load(folder / "raw.npy", mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(raw))
    for first in range(0, len(order) - BATCH + 1, BATCH):
        steps = [torch.from_numpy(np.array(raw[i])) for i in order[first : first + BATCH]]
        yield torch.stack(steps)


def by_xarray(folder: Path, chunk: int, threads: int, buffer_bytes: int) -> Iterable[Any]:
    """Batches of a DataLoader with ``threads`` workers."""
    from torch.utils.data import DataLoader

    steps = len(np.load(folder / "raw.npy", mmap_mode="r"))
    order = np.random.default_rng(0).permutation(steps)
    order = order if chunk == 1 else order[:MOST_FROM_XARRAY]
    data: Any = XarraySteps(folder / f"{chunk}.zarr", order.tolist())
    return DataLoader(
        data, BATCH, num_workers=threads, multiprocessing_context="spawn", drop_last=True
    )


def by_jitkit(folder: Path, chunk: int, threads: int, buffer_bytes: int) -> Iterable[Any]:
    """Batches of jitkit's loader, one epoch."""
    from jitkit.data import BatchPlan, batches

    items = Items(folder / f"{chunk}.zarr", threads, buffer_bytes)
    domain: Any = Steps()
    plan = BatchPlan(len(items), BATCH, 0, 0, len(items) // BATCH, items.order)
    return (batch.x for batch in batches(domain, items, plan))


CASES: dict[str, Callable[[Path, int, int, int], Iterable[Any]]] = {
    "memmap": by_memmap,
    "xarray": by_xarray,
    "ours": by_jitkit,
}


def measure(case: str, folder: Path, chunk: int, threads: int, buffer_bytes: int) -> dict[str, Any]:
    """Rate after the first batch, and peak memory in GB, workers included."""
    reading = iter(CASES[case](folder, chunk, threads, buffer_bytes))
    total = float(next(reading).sum())
    began, samples = time.perf_counter(), 0
    for batch in reading:
        samples += len(batch)
        total += float(batch[:, 0, 0, 0].sum())  # reads the batch, which might be lazy
    seconds = time.perf_counter() - began
    own = own_peak()
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if case == "xarray" else 0
    return {
        "case": case,
        "chunk": chunk,
        "samples": samples,
        "samples/s": round(samples / seconds, 1),
        "MB/s": round(samples * STEP_BYTES / 1e6 / seconds),
        "peak GB": round((own + threads * worker) * 1024 / 1e9, 2),
    }


def own_peak(status: Path = Path("/proc/self/status")) -> int:
    """Peak memory of this process, in KiB.

    `getrusage` would report at least the peak of the parent process.
    """
    try:
        lines = status.read_text().splitlines()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def apart(case: str, folder: Path, chunk: int, threads: int, buffer_bytes: int) -> dict[str, Any]:
    """`measure` in a separate process."""
    words = [case, str(folder), str(chunk), str(threads), str(buffer_bytes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", "--case", *words],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def into_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def main() -> None:
    """Print a line for each case; exit code 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--buffer-gb", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--case", nargs=5, default=None)
    arguments = parser.parse_args()
    if arguments.case:
        case, folder, *numbers = arguments.case
        print(json.dumps(measure(case, Path(folder), *map(int, numbers))))
        return
    steps = max(96, round(arguments.gb * 1e9 / STEP_BYTES / 24) * 24)
    folder = arguments.folder or Path(tempfile.gettempdir()) / f"jitkit-loader-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, steps)
    into_page_cache(folder)
    met = True
    for chunk in CHUNKS:
        settings = (folder, chunk, arguments.threads, int(arguments.buffer_gb * 1e9))
        rows = {case: apart(case, *settings) for case in CASES}
        ours, theirs = rows["ours"], rows["xarray"]
        ours["times xarray"] = round(ours["samples/s"] / theirs["samples/s"], 2)
        ours["met"] = (
            ours["times xarray"] >= LEAST[chunk] and ours["peak GB"] < arguments.buffer_gb + SPARE
        )
        met = met and ours["met"]
        for row in rows.values():
            print(json.dumps(row), flush=True)
    raise SystemExit(not met)


if __name__ == "__main__":
    main()
