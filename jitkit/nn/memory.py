"""How much memory a step takes, counted from the network's sizes, and how much there is.

The count follows the operations of `layers.Block` one by one: what each of them keeps for the
backward pass, in which type, and which of it they share. Against it stand the tensors that autograd
saves (`tests/test_memory.py`) and the peak of real steps (`python -m benchmarks.memory`).
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch

from jitkit.errors import JitkitError
from jitkit.nn.cpu_kernels import FEW
from jitkit.nn.layers import Block
from jitkit.nn.transformer import Transformer

GIB = 2**30
FLOAT = 4  # bytes; weights, gradients, means and the residual stream are float32
RESERVE = 0.1  # of an estimate, kept free: no measured step took that much more than it
MAPPED = 32 * 2**20  # bytes from which glibc gives a tensor pages of its own, and gives them back
HOLES = 7
"""Tensors of the residual stream's size whose places are lost for each block in the CPU's heap.

glibc cannot give a freed place to an aligned tensor of just the same size (its bug 14581, in
version 2.36 as measured). A short-lived tensor that is freed between two that stay is such a place:
what a norm makes on its way, the product with the gate, parts of turned queries and keys, which
even together are too small for the next products of matrices. How many there are was measured.
"""
UNITS = {"B": 1} | {
    f"{prefix}{end}": base**power
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
    for end, base in (("iB", 1024), ("B", 1000))
}

_MIB = 2**20


def training_bytes(
    network: Transformer,
    batch_size: int,
    *,
    emas: int,
    checkpointing: bool = False,
    compute_bytes: int = FLOAT,
    accumulate: int = 1,
    world: int = 1,
    sharded: bool = False,
    optimizer: str = "adamw",
    device: torch.device | None = None,
) -> dict[str, int]:
    """Bytes that one process takes at the peak of training, by what holds them.

    All parts are taken as held at once: gradients stay from one part of a step to the next (in a
    step of one part they come while activations go, so that this is a little too much). Not
    counted: data, the loader's buffers, and what `torch.compile` saves.

    Args:
        network: its sizes are read; it may be on the device `meta`.
        batch_size: samples that go through the network at once, in one process.
        emas: running means of the weights that are kept on this device.
        checkpointing: whether blocks are computed again in the backward pass.
        compute_bytes: bytes of a number inside the network; 2 under autocast.
        accumulate: parts of a step that a process takes one after the other.
        world: processes that share the model.
        sharded: whether each of them holds a part of it (FSDP2), not all of it.
        optimizer: ``adamw`` (two means of each weight), or ``muon`` (one of each weight of a
            matrix, two of the others).
        device: where training runs; where the network is if not given (`meta` is counted as CPU).

    Returns:
        ``weights``, ``gradients``, ``optimizer``, ``ema``, ``activations`` (linear in the batch)
        and ``framework``; ``half_weights`` under autocast, ``gathered`` under FSDP2, and on the CPU
        ``holes``, unless tensors are so large that they get pages of their own.
    """
    on_gpu = (device or next(network.parameters()).device).type == "cuda"
    among = world if sharded else 1
    weights = FLOAT * sum(p.numel() for p in network.parameters())
    matrices = FLOAT * sum(p.numel() for p in network.parameters() if p.ndim == 2)
    means = 2 * weights - (matrices if optimizer == "muon" else 0)
    # FSDP2 without a meeting of the processes after each part keeps each gradient whole
    gradients = weights if accumulate > 1 else ceil(weights / among)
    activations, lost = _sample_bytes(network, compute_bytes, checkpointing, on_gpu)
    parts = {
        "weights": ceil(weights / among),
        "gradients": gradients,
        "optimizer": ceil(means / among),
        "ema": ceil(emas * weights / among),
        "activations": batch_size * activations,
    }
    if compute_bytes < FLOAT:
        parts["half_weights"] = _half_weights(network, compute_bytes)
    if among > 1:
        parts["gathered"] = _gathered(network)
    if not on_gpu and batch_size * _stream_bytes(network) < MAPPED:
        parts["holes"] = batch_size * lost
    return parts | {"framework": _framework_bytes(on_gpu, half=compute_bytes < FLOAT)}


def largest_batch(network: Transformer, memory: int, **settings: Any) -> int:
    """The most samples at once whose `training_bytes` fit, a tenth more kept free; 0 if none do.

    Args:
        network: as in `training_bytes`.
        memory: bytes there are.
        settings: the other arguments of `training_bytes`.
    """
    budget = int(memory / (1 + RESERVE))
    fixed, one = (training_bytes(network, n, **settings) for n in (0, 1))
    room = budget - sum(fixed.values())
    lean = one["activations"]
    for sample in (lean, lean + one.get("holes", 0)):  # large batches may leave no holes
        most = max(0, room // sample)
        if sum(training_bytes(network, most, **settings).values()) <= budget:
            return most
    return 0


def held_before_training(device: torch.device) -> int:
    """Bytes that a process holds before it has a model; they are not in `training_bytes`.

    Measured, not counted. On the CPU: Python with torch loaded (0.5 GiB with torch 2.14). On a GPU:
    the context and the kernels, of which nobody but the driver knows (0.3 to 0.6 GiB).
    """
    return 512 * _MIB


def sampling_bytes(network: Transformer) -> int:
    """Bytes that one sample takes in the sampler at the peak of a guided pass, in float32."""
    sizes = network.sizes
    block = 2 * sizes.width + max(8 * sizes.width, 4 * sizes.mlp_hidden)
    cells = prod(network.layout.patch) * len(network.layout.channels)
    tokens = network.layout.num_tokens + network.num_context
    return 2 * FLOAT * tokens * (block + 6 * cells)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on a device (on the machine, for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _told_by_kernel("/proc/meminfo", "MemAvailable")  # what files only cache is free
    return free or 4 * 2**30  # not Linux: a guess that small machines have


@dataclass
class Peak:
    """What `peak_of` measured.

    Attributes:
        bytes: the most that was held inside the block, less what was held before it.
    """

    bytes: int = 0


@contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    """Measure the memory that the block takes at its peak, to set beside `training_bytes`.

    On the CPU this is the growth of the process's resident set, on a GPU that of what torch has
    allocated there. Make the model inside, and take two steps: the first one makes the optimizer's
    means, so that only the second has everything at once.
    """
    found = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _forget_highest()
    before = _told_by_kernel("/proc/self/status", "VmRSS") or _highest()
    yield found
    found.bytes = _highest() - before


def parse_bytes(text: str) -> int:
    """A size of memory in bytes: a number with a unit, B, KB or KiB to TB or TiB.

    Raises:
        JitkitError: no number above zero, no unit, or an unknown one.

    >>> parse_bytes("24GiB"), parse_bytes("24 GB"), parse_bytes("1.5 MiB")
    (25769803776, 24000000000, 1572864)
    """
    units = {name.lower(): size for name, size in UNITS.items()}
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*", text)
    size = int(Decimal(match[1]) * units.get(match[2].lower(), 0)) if match else 0
    if size > 0:
        return size
    if match and not match[2]:
        why = f"the unit is missing (did you mean {text.strip()}GiB?)"
    elif match and match[2].lower() not in units:
        why = f"{match[2]!r} is no unit; there are {', '.join(UNITS)}"
    else:
        why = "not a number above zero with a unit"
    raise JitkitError(f"memory {text!r}: {why}; write it as 24GiB, 24GB or 800 MiB")


def _sample_bytes(
    network: Transformer, compute: int, checkpointing: bool, on_gpu: bool
) -> tuple[int, int]:
    """Bytes of activations for one sample, and of the holes that they leave in the CPU's heap."""
    sizes, width, tokens = network.sizes, network.sizes.width, network.layout.num_tokens
    longest = tokens + network.num_context
    lengths = [tokens if i < sizes.in_context_start else longest for i in range(sizes.depth)]
    kept = [
        length * _token_bytes(network, length, compute, drop=drop, on_gpu=on_gpu)
        + 8 * compute * width
        for length, drop in zip(lengths, _dropping(network), strict=True)
    ]  # for a whole sample: the six vectors of adaLN, and two of them plus one
    # gradients on their way back: of the residual stream and a sum in it, and in SwiGLU those that
    # find no place left by what they are made of
    backward = longest * (2 * FLOAT * width + 2 * compute * sizes.mlp_hidden)
    always, top = (tokens * size for size in _end_bytes(network, compute))
    holes = HOLES * FLOAT * width * sum(lengths)
    if not checkpointing:
        return always + sum(kept) + max(top, backward), holes
    # the input of each block; then the loss, or the largest block in full, whichever is more
    inputs, block = FLOAT * width * sum(lengths), max(kept) + backward
    # the inputs stay in the midst of what the forward pass leaves, so that a block that is made
    # again finds no room for its largest tensors there: the places of one block are lost
    return always + inputs + max(top, block), holes + max(kept)


def _dropping(network: Transformer) -> list[bool]:
    """Which blocks have dropout."""
    return [isinstance(block, Block) and block.attn.dropout.p > 0 for block in network.blocks]


def _token_bytes(
    network: Transformer, length: int, compute: int, *, drop: bool, on_gpu: bool
) -> int:
    """Bytes for each of ``length`` tokens that a block keeps for its backward pass."""
    width, hidden = network.sizes.width, network.sizes.mlp_hidden
    # float32, whatever the arithmetic: what the norms of the stream (2), of queries and of keys
    # give before their weights
    float32 = 2 + 2
    # in the type of the arithmetic: modulated inputs of attention and SwiGLU (2); queries, keys
    # and values (3), the former two turned (2); what attention mixed, by head and by token (2);
    # what attention and SwiGLU say, for the gradient of their gates (2)
    narrow = 2 + 3 + 2 + 2 + 2
    if network.layout.positions:  # turned values (1) in place of all three
        narrow -= 2
    mlp = 4  # gate and value, SiLU of the gate, and the product
    roots = 3 * network.sizes.heads  # of squares of queries and keys; attention's normaliser
    if length <= FEW and compute == FLOAT and not on_gpu:  # attention's weights, values alone
        narrow -= 1 if network.layout.positions else 3
        roots += (length - 1) * network.sizes.heads
    kept = FLOAT * (float32 * width + roots) + compute * (narrow * width + mlp * hidden)
    if drop:  # what the product is multiplied with: on a GPU a byte for each, whether it stays
        kept += (1 if on_gpu else compute) * (width + hidden)
    return kept


def _end_bytes(network: Transformer, compute: int) -> tuple[int, int]:
    """Bytes for each token outside the blocks: held throughout, and around the loss alone."""
    sizes, said = network.sizes, network.layout.patch_features
    told = network.embed.proj1.in_features  # of data, masks and conditioning channels
    # the batch with its conditions and the noise; patches and bottleneck, kept for their gradients
    always = FLOAT * (told + said) + compute * (told + sizes.bottleneck)
    if network.layout.positions:  # what each token of each head turns by
        always += FLOAT * sizes.width
    # what the last norm gives before its weight; then modulated
    last = (FLOAT + compute) * sizes.width
    # z; the guess; guess and truth in the space of the loss, their difference and its square
    return always, last + 6 * FLOAT * said


def _stream_bytes(network: Transformer) -> int:
    """Bytes of the residual stream of one sample, the size of most tensors of a block."""
    return FLOAT * (network.layout.num_tokens + network.num_context) * network.sizes.width


def _half_weights(network: Transformer, compute: int) -> int:
    """Bytes of the narrow copies that autocast makes of linear maps, kept for the backward pass.

    With checkpointing it forgets them at the end of the forward pass, but then all are there with
    all gradients if a step has several parts. Under FSDP2 they are not spread: each is a copy of
    weights that were gathered for the moment.
    """
    linear = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
    return compute * sum(p.numel() for m in linear for p in m.parameters())


def _gathered(network: Transformer) -> int:
    """Bytes of weights that FSDP2 has whole for the moment, and of their gradients.

    The block at work and the one that is fetched ahead; gradients of a block, and the buffer from
    which they are sent; what belongs to no block is whole from the first forward to the last
    backward operation.
    """
    block = sum(p.numel() for p in network.blocks[0].parameters())
    rest = sum(p.numel() for p in network.parameters()) - block * len(network.blocks)
    return FLOAT * (4 * block + 2 * rest)


def _framework_bytes(on_gpu: bool, *, half: bool) -> int:
    """Bytes of what torch itself loads and makes at a first step: measured, not counted.

    On the CPU these are libraries that it opens when they are first called, whatever the model: 124
    to 163 MiB in float32 and 138 to 195 in bfloat16 (torch 2.14 on x86; it depends on which pages
    of them the machine has at hand). On a GPU it is cuBLAS's workspace, by its documentation.
    """
    if on_gpu:
        return 32 * _MIB
    return (165 if half else 140) * _MIB


def _told_by_kernel(path: str, key: str) -> int:
    """A size in bytes from a file of Linux's /proc; 0 where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return int(found[key].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def _highest() -> int:
    """The largest resident set of this process since it was last forgotten, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _told_by_kernel("/proc/self/status", "VmHWM") or most


def _forget_highest() -> None:
    """Let the kernel count the peak from now on, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak of the whole process is then at least not too small
