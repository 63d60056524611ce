"""FLOPs: multiply-accumulate operations (MACs) of a forward pass, counted on the meta device."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from jitkit.fields import Category, Grid, PerToken, Scalars
from jitkit.nn.conditioning import null_condition
from jitkit.nn.transformer import Transformer


def macs(network: Transformer) -> int:
    """Multiply-accumulate operations (MACs) of one forward pass on one sample.

    Counted on a copy on the meta device because torch does not count its CPU attention.
    """
    grid, device = network.layout.grid, torch.device("meta")
    z = torch.empty(1, len(network.layout.channels), *grid, device=device)
    cond = {}
    for name, condition in network.conditions.items():
        match condition:
            case Category():
                value = torch.empty(1, dtype=torch.long, device=device)
            case Scalars(names=names):
                value = torch.empty(1, len(names), device=device)
            case Grid(channels=channels):
                value = torch.empty(1, len(channels), *grid, device=device)
            case PerToken():
                value = torch.empty(1, *grid, dtype=torch.long, device=device)
        cond[name] = null_condition(condition, value)
    with device:
        meta_copy = Transformer(network.layout, network.conditions, network.sizes).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        meta_copy(z, torch.empty(1, device=device), cond)
    return counter.get_total_flops() // 2
