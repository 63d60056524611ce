"""Limits of the machine: products of float32 matrices, copies in memory, reads of a file.

Nothing can be faster, so results are reported as a share of these limits, from the same run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from benchmarks.speed.measure import Timing, seconds_of
from jitkit.nn import cpu_kernels

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = (
    (2048, 2048, 2048),
    (512, 768, 2304),  # B/16 with two samples: queries, keys and values
    (512, 768, 4096),  # the first linear layer of SwiGLU
    (512, 2048, 768),  # and the last
    (2048, 768, 4096),  # the same of eight samples
)
"""Rows, inner size and columns of products."""
FEW: tuple[Shape, ...] = ((64, 64, 64),)
"""For tests."""
MIB = 2**20


Maker = Literal["torch.mm", "kernels.linear"]
"""Backend of a matrix product: torch, or the library that jitkit uses for large ones."""


def name_of(shape: Shape, maker: Maker = "torch.mm") -> str:
    """How a product is called among timings.

    >>> name_of((512, 768, 2304))
    '512 x 768 x 2304 by torch.mm'
    """
    return f"{' x '.join(map(str, shape))} by {maker}"


def products(shapes: Sequence[Shape] = SHAPES) -> dict[str, Callable[[], object]]:
    """Products of random matrices for each shape, to be timed together with other calls."""
    found: dict[str, Callable[[], object]] = {}
    for shape in shapes:
        rows, inner, columns = shape
        generator = torch.Generator().manual_seed(0)
        left = torch.randn(rows, inner, generator=generator)
        weight = torch.randn(columns, inner, generator=generator)
        found[name_of(shape)] = partial(torch.mm, left, weight.T, out=torch.empty(rows, columns))
        found[name_of(shape, "kernels.linear")] = partial(
            cpu_kernels.fast_linear, left, weight, None
        )
    return found


def best_flops(
    timings: Mapping[str, Timing], shapes: Sequence[Shape] = SHAPES, maker: Maker = "torch.mm"
) -> float:
    """The highest FLOP/s of timed products, each by its median."""
    return max(2 * m * k * n / timings[name_of((m, k, n), maker)].median for m, k, n in shapes)


def copy_rate(size: int = 512 * MIB, times: int = 5) -> float:
    """Bytes per second of a copy in memory, read plus written; the best of a few."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    took = [seconds_of(lambda: target.copy_(source)) for _ in range(times + 1)]
    return 2 * size / min(took[1:])


def read_rate(path: Path, times: int = 3) -> float:
    """Bytes per second from a file in the page cache into memory; the best of a few."""
    buffer = bytearray(8 * MIB)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    took = [seconds_of(read) for _ in range(times + 1)]  # the first fills the cache
    return os.path.getsize(path) / min(took[1:])
