"""The two limits of a step and of a sample, counted for the paper's sizes: operations and bytes.

    python -m benchmarks.speed.counted [--write]

Prints the tables of docs/performance.md, or with ``--write`` puts them there. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import scaling
from benchmarks.scaling import (
    FLOAT,
    NAMES,
    forward_macs,
    parameters,
    pictures,
    short,
    step_flops,
    table,
)
from jitkit.nn.memory import training_bytes

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
GB = 1e9
EMAS = 2
BATCHES = (1, 2, 8, 128)
PASSES, TEXTBOOK_PASSES = 187, 198  # of 50 guided steps of Heun; tests count them


@dataclass(frozen=True)
class Traffic:
    """Values moved through memory once per parameter in a step, for any batch size.

    Attributes:
        why: the purpose.
        read, written: float32 values, as jitkit's step moves them.
        least_read, least_written: if optimizer and EMAs read the weights in a single pass, and
            the norm of the gradient were computed when it is written.
    """

    why: str
    read: int
    written: int
    least_read: int
    least_written: int


TRAFFIC = (
    Traffic("weights, forward", 1, 0, 1, 0),
    Traffic("weights, backward", 1, 0, 1, 0),
    Traffic("gradients, as they are made", 0, 1, 0, 1),
    Traffic("norm of the gradient", 1, 0, 0, 0),
    Traffic("AdamW: weight, gradient, two moments", 4, 3, 4, 3),
    Traffic(f"{EMAS} EMAs: each and the weight", 2 * EMAS, EMAS, EMAS, EMAS),
)


def bytes_a_weight(*, least: bool = False) -> int:
    """Bytes that a step moves per parameter."""
    if least:
        return FLOAT * sum(t.least_read + t.least_written for t in TRAFFIC)
    return FLOAT * sum(t.read + t.written for t in TRAFFIC)


def activation_bytes(name: str) -> int:
    """Bytes that a step moves per sample: stored activations are written once and read once."""
    kept = training_bytes(pictures(name).network, 1, emas=EMAS)["activations"]
    return 2 * kept


def operations() -> str:
    """FLOPs of a step per sample, and of a guided sample."""
    head = ["model", "parameters", "GMAC, forward", "TFLOP per sample, training"]
    head += [f"TFLOP per drawn sample, {PASSES} passes", f"{TEXTBOOK_PASSES} passes"]
    rows = []
    for name in NAMES:
        denoiser = pictures(name)
        one = 2 * forward_macs(denoiser) / 1e12
        drawn = [short(passes * one) for passes in (PASSES, TEXTBOOK_PASSES)]
        work = [short(forward_macs(denoiser) / 1e9), short(step_flops(denoiser) / 1e12)]
        rows.append([f"{name}/16", f"{parameters(denoiser.network):,}", *work, *drawn])
    return table(head, rows)


def traffic() -> str:
    """Values moved per parameter in a step."""
    head = ["what", "read", "written", "least read", "least written"]
    rows: list[list[object]] = [
        [t.why, t.read, t.written, t.least_read, t.least_written] for t in TRAFFIC
    ]
    sums = [sum(column) for column in zip(*(row[1:] for row in rows), strict=True)]
    return table(head, [*rows, ["values", *sums]])


def moved() -> str:
    """Bytes of a step in float32: fixed, for each sample, and operations for each of them."""
    head = ["model", "GB per step, fixed", "least", "GB per sample, activations"]
    head += [f"FLOP per byte, batch {n}" for n in BATCHES]
    rows: list[list[object]] = []
    for name in NAMES:
        denoiser = pictures(name)
        weights = parameters(denoiser.network)
        fixed, least = (bytes_a_weight(least=x) * weights for x in (False, True))
        sample = activation_bytes(name)
        dense = [n * step_flops(denoiser) / (fixed + n * sample) for n in BATCHES]
        sizes = [short(size / GB) for size in (fixed, least, sample)]
        rows.append([f"{name}/16", *sizes, *(short(each) for each in dense)])
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "operations": operations,
    "traffic": traffic,
    "moved": moved,
}


def filled(text: str) -> str:
    """A document with the tables between its marks replaced."""
    return scaling.filled(text, TABLES)


if __name__ == "__main__":
    scaling.main(__doc__ or "", DOCUMENT, TABLES)
