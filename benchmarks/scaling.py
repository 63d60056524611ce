"""Counted cost of training on many GPUs: memory, bytes sent, checkpoints, data. Nothing is run.

    python -m benchmarks.scaling [--write]

Prints the tables of docs/scaling.md, or with ``--write`` writes them there. Networks are built
without memory (device `meta`), so that a laptop can count G on 64 GPUs. The speed of a GPU is an
assumption, see `GPU_FLOPS`, `SHARE`, `GPU_BYTES`; `jitkit.nn.memory` counts memory,
`jitkit.nn.flops` operations.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jitkit.diffusion.denoiser import Denoiser
from jitkit.fields import Axis, Category, Grid, Layout
from jitkit.nn.flops import macs
from jitkit.nn.memory import baseline_bytes, largest_batch, training_bytes
from jitkit.nn.transformer import Sizes, Transformer
from jitkit.sections import ModelSection

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
GPU = torch.device("cuda")
GPU_FLOPS = 989e12  # H100 SXM, bfloat16, dense: NVIDIA's data sheet
SHARE = 0.4  # assumed MFU
GPU_BYTES = 79 * 2**30  # what torch sees of an H100's 80 GB
DISK = 1e9  # bytes a second, an assumption
FLOAT, HALF = 4, 2  # bytes
EMAS = 2
BATCH = 1024  # samples a step, the paper's
GIB, GB = 2**30, 1e9
WORLDS = (8, 64)
NAMES = ("B", "L", "H", "G")

PICTURES = (256, 256, 3)
JPEG = 110e3  # mean bytes of an ImageNet image
FROM_JPEG, FROM_PACKED = 5.36, 0.78  # core milliseconds per image: `python -m benchmarks.pictures`
LEVELS = 69  # channels of a reanalysis
EARTH = (721, 1440)


# Models


@cache
def pictures(name: str) -> Denoiser:
    """The paper's model of a size on 256 x 256 colour images, 1,000 classes, on the meta device."""
    rows, columns, channels = PICTURES
    layout = Layout((Axis("row", rows, 16), Axis("column", columns, 16)), tuple("rgb"[:channels]))
    with torch.device("meta"):
        sizes = Sizes(**ModelSection.model_validate({"size": name}).resolved())
        return Denoiser(layout, {"label": Category(1000)}, sizes)


@cache
def reanalysis(name: str, patch: int) -> Denoiser:
    """A model of a size on 69 channels of 0.25 degrees, conditioned on the previous state."""
    rows, columns = EARTH
    axes = (Axis("latitude", rows, patch), Axis("longitude", columns, patch, kind="circle"))
    channels = tuple(f"channel {i}" for i in range(LEVELS))
    with torch.device("meta"):
        sizes = Sizes(**ModelSection.model_validate({"size": name}).resolved())
        return Denoiser(Layout(axes, channels), {"before": Grid(channels)}, sizes)


def parameters(network: Transformer) -> int:
    """Number of parameters of a network."""
    return sum(p.numel() for p in network.parameters())


@cache
def forward_macs(denoiser: Denoiser) -> int:
    """Multiply-accumulates of one pass on one sample."""
    return macs(denoiser.network)


def step_flops(denoiser: Denoiser) -> int:
    """FLOPs of a training step per sample: a forward pass, and twice that for the backward pass."""
    return 3 * 2 * forward_macs(denoiser)


def seconds(denoiser: Denoiser, samples: int) -> float:
    """Time to train on this number of samples on one GPU at the assumed `SHARE` of its FLOP/s."""
    return samples * step_flops(denoiser) / (SHARE * GPU_FLOPS)


# Bytes that a GPU sends in a step


def all_reduce_bytes(numbers: int, world: int) -> float:
    """Bytes that each process sends in a ring all-reduce of float32 values: 2 (N - 1)/N x 4 each.

    A reduce-scatter is followed by an all-gather (Patarasuk & Yuan 2009).
    """
    return 2 * (world - 1) / world * FLOAT * numbers


def all_gather_bytes(numbers: int, world: int) -> float:
    """Bytes that each process sends in a ring all-gather of float32 values: (N - 1)/N x 4 each.

    A reduce-scatter sends the same.
    """
    return (world - 1) / world * FLOAT * numbers


def ddp_bytes(network: Transformer, world: int) -> float:
    """Bytes that each GPU sends in a step under DDP: gradients once, also if accumulated."""
    return all_reduce_bytes(parameters(network), world)


def fsdp_bytes(network: Transformer, world: int, parts: int = 1) -> float:
    """Bytes that each GPU sends in a step under FSDP2, see `jitkit.utils.distributed.shard`.

    Blocks are gathered for forward and again for backward; parameters outside the blocks once for
    both, in each part of an accumulated step. Gradients are reduce-scattered after the last part.
    The padding of parameters whose rows N does not divide is not counted (below 0.2 %).
    """
    blocks = sum(p.numel() for block in network.blocks for p in block.parameters())
    rest = parameters(network) - blocks
    return all_gather_bytes(parts * (2 * blocks + rest) + parameters(network), world)


# What fits


def settings(world: int, *, sharded: bool, checkpointing: bool, parts: int = 1) -> dict[str, Any]:
    """Arguments of `training_bytes` for training in bfloat16 on GPUs."""
    return {
        "emas": EMAS,
        "checkpointing": checkpointing,
        "compute_bytes": HALF,
        "accumulate": parts,
        "world": world,
        "sharded": sharded,
        "device": GPU,
    }


def most_samples(
    network: Transformer, world: int, *, sharded: bool, checkpointing: bool, parts: int = 1
) -> int:
    """The largest number of samples per forward pass that fits in the memory of a GPU."""
    room = GPU_BYTES - baseline_bytes(GPU)
    how = settings(world, sharded=sharded, checkpointing=checkpointing, parts=parts)
    return largest_batch(network, room, **how)


def fewest_parts(
    network: Transformer, world: int, *, sharded: bool, checkpointing: bool = False
) -> int:
    """The smallest ``train.accumulate`` with which a step of 1,024 fits; 0 if none does."""
    share = BATCH // world
    for parts in (n for n in range(1, share + 1) if share % n == 0):
        most = most_samples(
            network, world, sharded=sharded, checkpointing=checkpointing, parts=parts
        )
        if most >= share // parts:
            return parts
    return 0


# Tables


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def short(number: float) -> str:
    """Three digits of a number, without an exponent.

    >>> short(0.04891), short(2614.9), short(17.0)
    ('0.0489', '2,610', '17')
    """
    if number >= 1000:
        return f"{int(float(f'{number:.3g}')):,}"
    return f"{number:.3g}"


def models() -> str:
    """Parameters, operations, and time of a step."""
    head = ["model", "parameters", "GMAC per sample", "TFLOP per sample, training"]
    head += ["1 GPU", "8 GPUs", "64 GPUs", "samples/s per GPU"]
    rows = []
    for name in NAMES:
        denoiser = pictures(name)
        times = [short(1000 * seconds(denoiser, BATCH // n)) + " ms" for n in (1, *WORLDS)]
        work = short(step_flops(denoiser) / 1e12)
        count, gmac = f"{parameters(denoiser.network):,}", short(forward_macs(denoiser) / 1e9)
        rows.append((f"{name}/16", count, gmac, work, *times, short(1 / seconds(denoiser, 1))))
    return table(head, rows)


def memory() -> str:
    """GiB on each GPU independent of the batch, and per sample."""
    head = ["model", "weights", "gradients", "AdamW", f"{EMAS} EMAs", "sum, DDP"]
    head += ["sum, FSDP2 on 8", "on 64", "bfloat16 copies", "gathered (FSDP2)"]
    rows = []
    for name in NAMES:
        network = pictures(name).network
        ddp, *spread = (
            training_bytes(network, 0, **settings(n, sharded=n > 1, checkpointing=False))
            for n in (1, *WORLDS)
        )
        kept = ("weights", "gradients", "optimizer", "ema")
        sums = [sum(parts[key] for key in kept) for parts in (ddp, *spread)]
        each = [ddp[key] for key in kept]
        more = [ddp["half_weights"], spread[0]["gathered"]]
        rows.append((f"{name}/16", *(short(n / GIB) for n in (*each, *sums, *more))))
    return table(head, rows)


def fits() -> str:
    """Activations per sample, samples that fit, and the accumulation that a step needs.

    Each without / with activation checkpointing.
    """
    head = ["model", "MiB per sample", "DDP", "FSDP2 on 8", "FSDP2 on 64"]
    head += ["parts, DDP on 8", "parts, FSDP2 on 8"]
    rows = []
    for name in NAMES:
        columns = zip(
            *(_fits(pictures(name).network, saved) for saved in (False, True)), strict=True
        )
        rows.append(
            (f"{name}/16", *(f"{short(plain)} / {short(saved)}" for plain, saved in columns))
        )
    return table(head, rows)


def _fits(network: Transformer, checkpointing: bool) -> list[float]:
    """A row of `fits`."""
    alone = settings(1, sharded=False, checkpointing=checkpointing)
    sample = training_bytes(network, 1, **alone)["activations"]
    most = [
        most_samples(network, n, sharded=n > 1, checkpointing=checkpointing) for n in (1, *WORLDS)
    ]
    parts = [
        fewest_parts(network, 8, sharded=spread, checkpointing=checkpointing)
        for spread in (False, True)
    ]
    return [sample / 2**20, *most, *parts]


def traffic() -> str:
    """Bytes sent in a step of 1,024, and the bandwidth at which this takes as long as computing."""
    head = ["model", "GPUs", "samples each", "compute time", "DDP sends", "equal at"]
    head += ["parts", "FSDP2 sends", "equal at"]
    rows: list[tuple[object, ...]] = []
    for name in NAMES:
        denoiser = pictures(name)
        for world in WORLDS:
            share = BATCH // world
            time = seconds(denoiser, share)
            parts = fewest_parts(denoiser.network, world, sharded=True)
            ddp = ddp_bytes(denoiser.network, world)
            fsdp = fsdp_bytes(denoiser.network, world, parts)
            sent = (*_sent(ddp, time), parts, *_sent(fsdp, time))
            rows.append((f"{name}/16", world, share, f"{short(1000 * time)} ms", *sent))
    return table(head, rows)


def _sent(size: float, time: float) -> tuple[str, str]:
    """Bytes, and the bandwidth that sends them in a given time, as text."""
    return f"{short(size / GB)} GB", f"{short(size / time / GB)} GB/s"


def checkpoints() -> str:
    """Sizes of a checkpoint's files, and the time to write them."""
    head = ["model", "weights", "each EMA", "AdamW", f"checkpoint, {EMAS} EMAs", "at 1 GB/s"]
    head += ["host memory, loading"]
    rows = []
    for name in NAMES:
        one = FLOAT * parameters(pictures(name).network)
        whole = (1 + EMAS + 2) * one
        sizes = [f"{short(x / GB)} GB" for x in (one, one, 2 * one, whole)]
        host = f"{short((1 + 2) * one / GB)} GB"  # an EMA while the optimizer's tensors are read
        rows.append((f"{name}/16", *sizes, f"{short(whole / DISK)} s", host))
    return table(head, rows)


def picture_data() -> str:
    """Rate that the loader must deliver to eight GPUs for images, and the cores it needs."""
    cells = PICTURES[0] * PICTURES[1] * PICTURES[2]
    head = ["model", "samples/s per GPU", "samples/s, 8 GPUs", "JPEG, 110 kB", "packed, uint8"]
    head += ["to the GPUs, float32", "cores, JPEG", "cores, packed"]
    rows = []
    for name in NAMES:
        one = 1 / seconds(pictures(name), 1)
        rate = 8 * one
        sizes = [f"{short(rate * x / GB)} GB/s" for x in (JPEG, cells, FLOAT * cells)]
        cores = [short(rate * each / 1000) for each in (FROM_JPEG, FROM_PACKED)]
        rows.append((f"{name}/16", short(one), short(rate), *sizes, *cores))
    return table(head, rows)


def reanalysis_data() -> str:
    """Rate that the loader must deliver to each GPU for a reanalysis."""
    state = FLOAT * LEVELS * EARTH[0] * EARTH[1]
    head = ["model", "tokens", "TFLOP per sample, training", "samples/s", "one state", "two states"]
    head += ["GiB per sample, checkpointing"]
    rows: list[tuple[object, ...]] = []
    for name, patch in (("B", 16), ("B", 8), ("L", 8), ("G", 16), ("G", 8)):
        denoiser = reanalysis(name, patch)
        rate, work = 1 / seconds(denoiser, 1), step_flops(denoiser)
        speeds = [f"{short(n * rate * state / GB)} GB/s" for n in (1, 2)]
        how = settings(1, sharded=False, checkpointing=True)
        kept = training_bytes(denoiser.network, 1, **how)["activations"]
        numbers = (f"{denoiser.layout.num_tokens:,}", short(work / 1e12), short(rate))
        rows.append((f"{name}/{patch}", *numbers, *speeds, short(kept / GIB)))
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": models,
    "memory": memory,
    "fits": fits,
    "traffic": traffic,
    "checkpoints": checkpoints,
    "pictures": picture_data,
    "reanalysis": reanalysis_data,
}


def filled(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """A document with the tables between its marks replaced."""

    def fresh(match: re.Match[str]) -> str:
        return f"{match[1]}{tables[match[2]]()}<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->\n).*?<!-- end -->", fresh, text, flags=re.DOTALL)


def main(
    about: str = __doc__ or "",
    document: Path = DOCUMENT,
    tables: Mapping[str, Callable[[], str]] = TABLES,
) -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {document.name}")
    if parser.parse_args().write:
        text = filled(document.read_text(encoding="utf-8"), tables)
        document.write_text(text, encoding="utf-8")
        return
    for name, make in tables.items():
        print(f"{name}\n\n{make()}")


if __name__ == "__main__":
    main()
