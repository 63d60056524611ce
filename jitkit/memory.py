"""How much memory a step takes, counted from the network's sizes, and how much there is."""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch

from jitkit.transformer import Transformer

FLOAT = 4  # bytes; weights, gradients, means and the residual stream are float32


def training_bytes(
    network: Transformer, batch_size: int, *, emas: int, checkpointing: bool = False
) -> dict[str, int]:
    """Bytes that training holds at its peak, by what holds them, in float32.

    Counted: weights, gradients, AdamW's two means, EMAs, and what the blocks keep for the
    backward pass. Not counted: the framework itself, its cache, the loader's buffers.
    """
    weights = FLOAT * sum(p.numel() for p in network.parameters())
    kept = _kept_by_block(network)
    if checkpointing:  # the input of each block, and one block at a time in full
        blocks = network.sizes.depth * network.sizes.width + kept
    else:
        blocks = network.sizes.depth * kept
    cells = prod(network.layout.patch) * len(network.layout.channels)
    ends = 6 * cells + 4 * network.sizes.width + network.sizes.bottleneck
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "ema": emas * weights,
        "activations": FLOAT * batch_size * _tokens(network) * (blocks + ends),
    }


def sampling_bytes(network: Transformer) -> int:
    """Bytes that one sample takes in the sampler at the peak of a guided pass, in float32."""
    sizes = network.sizes
    block = 2 * sizes.width + max(8 * sizes.width, 4 * sizes.mlp_hidden)
    cells = prod(network.layout.patch) * len(network.layout.channels)
    return 2 * FLOAT * _tokens(network) * (block + 6 * cells)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now on a device (on the machine, for the CPU)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return int(found["MemAvailable"].split()[0]) * 1024  # what files only cache is free
    except (OSError, KeyError):
        return 4 * 2**30  # not Linux: a guess that small machines have


def _tokens(network: Transformer) -> int:
    return network.layout.num_tokens + network.num_context


def _kept_by_block(network: Transformer) -> int:
    """Numbers that a block keeps for the backward pass, for each token."""
    width, hidden = network.sizes.width, network.sizes.mlp_hidden
    attention = 2 + 3 + 4 + 2 + 2  # norm and its modulation, qkv, norms and rotation, mix, gate
    return (attention + 4) * width + 5 * hidden
