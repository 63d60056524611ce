"""Memory estimate of training and sampling (activations, checkpointing); free and peak memory.

The estimate follows the operations of `layers.Block` one by one: the tensors that each saves for
the backward pass, their dtype, and which are shared. It is tested against the tensors that autograd
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
from jitkit.nn.cpu_kernels import SHORT_SEQUENCE
from jitkit.nn.layers import Block
from jitkit.nn.transformer import Transformer

GIB = 2**30
FLOAT_BYTES = 4  # parameters, gradients, optimizer state, EMA and the residual stream are float32
RESERVE = 0.1  # share of an estimate kept free; no measured step exceeded its estimate by more
MMAP_BYTES = 32 * 2**20  # size from which glibc maps a tensor separately and unmaps it when freed
HEAP_HOLES = 7
"""Heap fragmentation on the CPU: lost tensors of the residual stream's size per block (measured).

glibc cannot reuse a freed chunk for an aligned tensor of exactly the same size (its bug 14581;
measured with version 2.36). A short-lived tensor that is freed between two long-lived ones leaves
such a hole: intermediates of a norm, the product with the gate, parts of rotated queries and keys.
Even adjacent holes are too small for the next matrix products.
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
    compute_bytes: int = FLOAT_BYTES,
    accumulate: int = 1,
    world: int = 1,
    sharded: bool = False,
    optimizer: str = "adamw",
    device: torch.device | None = None,
) -> dict[str, int]:
    """Peak memory of training in one process, in bytes by part.

    All parts are assumed to exist at the same time: gradients are kept between the micro-batches
    of gradient accumulation (without accumulation they replace activations gradually, so this is a
    slight overestimate). Not counted: data, the loader's buffers, savings by `torch.compile`.

    Args:
        network: only its sizes are used; it may be on the meta device.
        batch_size: samples per forward pass of one process (micro-batch).
        emas: number of EMAs of the weights kept on this device.
        checkpointing: activation checkpointing: recompute blocks in the backward pass.
        compute_bytes: bytes per element inside the network; 2 under autocast.
        accumulate: micro-batches per step (gradient accumulation).
        world: number of processes.
        sharded: whether parameters are sharded over the processes (FSDP2).
        optimizer: ``adamw`` (two moments per parameter), or ``muon`` (one per matrix parameter,
            two for the others).
        device: where training runs; default: the network's device (`meta` counts as CPU).

    Returns:
        ``weights``, ``gradients``, ``optimizer``, ``ema``, ``activations`` (linear in the batch)
        and ``framework``; ``half_weights`` under autocast, ``gathered`` under FSDP2, and on the CPU
        ``holes`` (fragmentation), unless tensors are large enough to be mapped separately.
    """
    on_gpu = (device or next(network.parameters()).device).type == "cuda"
    num_shards = world if sharded else 1
    weights = FLOAT_BYTES * sum(p.numel() for p in network.parameters())
    matrices = FLOAT_BYTES * sum(p.numel() for p in network.parameters() if p.ndim == 2)
    moments = 2 * weights - (matrices if optimizer == "muon" else 0)
    # FSDP2 keeps full gradients when it does not reduce them after each micro-batch
    gradients = weights if accumulate > 1 else ceil(weights / num_shards)
    activations, holes = _sample_bytes(network, compute_bytes, checkpointing, on_gpu)
    parts = {
        "weights": ceil(weights / num_shards),
        "gradients": gradients,
        "optimizer": ceil(moments / num_shards),
        "ema": ceil(emas * weights / num_shards),
        "activations": batch_size * activations,
    }
    if compute_bytes < FLOAT_BYTES:
        parts["half_weights"] = _half_weights(network, compute_bytes)
    if num_shards > 1:
        parts["gathered"] = _gathered(network)
    if not on_gpu and batch_size * _stream_bytes(network) < MMAP_BYTES:
        parts["holes"] = batch_size * holes
    return parts | {"framework": _framework_bytes(on_gpu, half=compute_bytes < FLOAT_BYTES)}


def largest_batch(network: Transformer, memory: int, **settings: Any) -> int:
    """Largest micro-batch whose `training_bytes` plus a tenth fit into memory; 0 if none does.

    Args:
        network: as in `training_bytes`.
        memory: available bytes.
        settings: the other arguments of `training_bytes`.
    """
    budget = int(memory / (1 + RESERVE))
    fixed, one = (training_bytes(network, n, **settings) for n in (0, 1))
    available = budget - sum(fixed.values())
    activations = one["activations"]
    # large batches may leave no holes
    for per_sample in (activations, activations + one.get("holes", 0)):
        largest = max(0, available // per_sample)
        if sum(training_bytes(network, largest, **settings).values()) <= budget:
            return largest
    return 0


def baseline_bytes(device: torch.device) -> int:
    """Bytes of a process before it builds a model; not included in `training_bytes`.

    Measured. On the CPU: Python with torch loaded (0.5 GiB with torch 2.14). On a GPU: the context
    and the kernels, which torch does not report (0.3 to 0.6 GiB).
    """
    return 512 * _MIB


def sampling_bytes(network: Transformer) -> int:
    """Peak bytes per sample in the sampler under classifier-free guidance (CFG), in float32."""
    sizes = network.sizes
    block = 2 * sizes.width + max(8 * sizes.width, 4 * sizes.mlp_hidden)
    cells = prod(network.layout.patch) * len(network.layout.channels)
    tokens = network.layout.num_tokens + network.num_context
    return 2 * FLOAT_BYTES * tokens * (block + 6 * cells)


def free_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes (of the machine, for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _read_proc("/proc/meminfo", "MemAvailable")  # includes the page cache
    return free or 4 * 2**30  # not Linux: what a small machine has


@dataclass
class PeakMemory:
    """Result of `measure_peak`.

    Attributes:
        bytes: peak memory inside the block minus the memory before it.
    """

    bytes: int = 0


@contextmanager
def measure_peak(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak memory of the block, to compare with `training_bytes`.

    On the CPU this is the growth of the resident set, on a GPU that of torch's allocations. Build
    the model inside and take two steps: the first creates the optimizer state, so only the second
    holds everything.
    """
    peak = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _reset_peak_resident()
    before = _read_proc("/proc/self/status", "VmRSS") or _peak_resident()
    yield peak
    peak.bytes = _peak_resident() - before


def parse_bytes(text: str) -> int:
    """Parse a memory size into bytes: a number with a unit, B, KB or KiB to TB or TiB.

    Raises:
        JitkitError: not a positive number, no unit, or an unknown one.

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
        why = f"{match[2]!r} is not a unit; units are {', '.join(UNITS)}"
    else:
        why = "not a positive number with a unit"
    raise JitkitError(f"memory {text!r}: {why}; write it as 24GiB, 24GB or 800 MiB")


def _sample_bytes(
    network: Transformer, compute: int, checkpointing: bool, on_gpu: bool
) -> tuple[int, int]:
    """Bytes of activations per sample, and of the holes that they leave in the CPU's heap."""
    sizes, width, tokens = network.sizes, network.sizes.width, network.layout.num_tokens
    longest = tokens + network.num_context
    lengths = [tokens if i < sizes.in_context_start else longest for i in range(sizes.depth)]
    kept = [
        length * _token_bytes(network, length, compute, drop=drop, on_gpu=on_gpu)
        + 8 * compute * width
        for length, drop in zip(lengths, _has_dropout(network), strict=True)
    ]  # 8 vectors per sample: the six of adaLN, and 1 + scale of both norms
    # gradients in the backward pass: of the residual stream and of a sum in it, and those in SwiGLU
    # that cannot reuse the memory of their inputs
    backward = longest * (2 * FLOAT_BYTES * width + 2 * compute * sizes.mlp_hidden)
    always, top = (tokens * size for size in _end_bytes(network, compute))
    holes = HEAP_HOLES * FLOAT_BYTES * width * sum(lengths)
    if not checkpointing:
        return always + sum(kept) + max(top, backward), holes
    # the input of each block, plus the larger of the loss and the largest block
    inputs, block = FLOAT_BYTES * width * sum(lengths), max(kept) + backward
    # the saved inputs fragment the memory that the forward pass frees, so the largest tensors of a
    # recomputed block do not fit there: one block is lost to fragmentation
    return always + inputs + max(top, block), holes + max(kept)


def _has_dropout(network: Transformer) -> list[bool]:
    """Whether each block has dropout."""
    return [isinstance(block, Block) and block.attn.dropout.p > 0 for block in network.blocks]


def _token_bytes(
    network: Transformer, length: int, compute: int, *, drop: bool, on_gpu: bool
) -> int:
    """Bytes per token that a block of ``length`` tokens saves for its backward pass."""
    width, hidden = network.sizes.width, network.sizes.mlp_hidden
    # always float32: outputs of the residual-stream norms (2), of the query norm and of the key
    # norm, before their weights
    float32 = 2 + 2
    # in the compute dtype: modulated inputs of attention and SwiGLU (2); queries, keys and values
    # (3), the former two rotated (2); the attention output by head and by token (2); the outputs
    # of attention and SwiGLU, for the gradient of their gates (2)
    narrow = 2 + 3 + 2 + 2 + 2
    if network.layout.positions:  # rotated values (1) instead of queries, keys and values (3)
        narrow -= 2
    mlp = 4  # gate and value, SiLU of the gate, and the product
    per_head = 3 * network.sizes.heads  # RMS of queries and keys; log-sum-exp of attention
    if length <= SHORT_SEQUENCE and compute == FLOAT_BYTES and not on_gpu:  # attention weights
        narrow -= 1 if network.layout.positions else 3
        per_head += (length - 1) * network.sizes.heads
    kept = FLOAT_BYTES * (float32 * width + per_head) + compute * (narrow * width + mlp * hidden)
    if drop:  # the dropout mask; on a GPU one byte per element
        kept += (1 if on_gpu else compute) * (width + hidden)
    return kept


def _end_bytes(network: Transformer, compute: int) -> tuple[int, int]:
    """Bytes per token outside the blocks: for the whole step, and only around the loss."""
    sizes, outputs = network.sizes, network.layout.patch_features
    inputs = network.embed.proj1.in_features  # of data, masks and conditioning channels
    # the batch with its conditions and the noise; patches and bottleneck, kept for their gradients
    always = FLOAT_BYTES * (inputs + outputs) + compute * (inputs + sizes.bottleneck)
    if network.layout.positions:  # rotary embedding per token and head
        always += FLOAT_BYTES * sizes.width
    # output of the last norm before its weight; then modulated
    last = (FLOAT_BYTES + compute) * sizes.width
    # z; prediction; prediction and target in the loss space, their difference and its square
    return always, last + 6 * FLOAT_BYTES * outputs


def _stream_bytes(network: Transformer) -> int:
    """Bytes of the residual stream of one sample, the size of most tensors of a block."""
    return FLOAT_BYTES * (network.layout.num_tokens + network.num_context) * network.sizes.width


def _half_weights(network: Transformer, compute: int) -> int:
    """Bytes of autocast's half-precision copies of linear layers, kept for the backward pass.

    With activation checkpointing they are freed at the end of the forward pass, but with gradient
    accumulation all of them exist beside all gradients. Under FSDP2 they are not sharded: each is
    a copy of gathered parameters.
    """
    linear = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
    return compute * sum(p.numel() for m in linear for p in m.parameters())


def _gathered(network: Transformer) -> int:
    """Bytes of parameters that FSDP2 has gathered at the peak, and of their gradients.

    The current block and the prefetched one; gradients of a block and their communication buffer;
    parameters outside the blocks stay gathered from the first forward to the last backward
    operation.
    """
    block = sum(p.numel() for p in network.blocks[0].parameters())
    rest = sum(p.numel() for p in network.parameters()) - block * len(network.blocks)
    return FLOAT_BYTES * (4 * block + 2 * rest)


def _framework_bytes(on_gpu: bool, *, half: bool) -> int:
    """Bytes that torch itself loads and allocates in the first step: measured.

    On the CPU these are lazily loaded libraries, independent of the model: 124 to 163 MiB in
    float32 and 138 to 195 in bfloat16 (torch 2.14 on x86; depends on which of their pages are
    already in memory). On a GPU it is cuBLAS's workspace, by its documentation.
    """
    if on_gpu:
        return 32 * _MIB
    return (165 if half else 140) * _MIB


def _read_proc(path: str, key: str) -> int:
    """A size in bytes from a file of Linux's /proc; 0 if not available."""
    try:
        lines = Path(path).read_text().splitlines()
        values = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return int(values[key].split()[0]) * 1024
    except (OSError, KeyError):
        return 0


def _peak_resident() -> int:
    """Peak resident set of this process since the last reset, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    overall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return _read_proc("/proc/self/status", "VmHWM") or overall


def _reset_peak_resident() -> None:
    """Reset the kernel's peak counter, where possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak of the whole process is an upper bound
