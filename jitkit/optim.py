"""Optimizer and learning rate, by the paper's rules (Li & He 2025, table 9)."""

from __future__ import annotations

from math import cos, pi
from typing import Literal

import torch
from torch import nn


def adamw(
    module: nn.Module, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone; the learning rate is set at every step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    steps: int,
    schedule: Literal["constant", "cosine"],
) -> float:
    """The rate of step ``step``, counted from 0: linear from 0, then constant or half a cosine.

    >>> [learning_rate(k, peak=1.0, warmup_steps=2, steps=6, schedule="cosine") for k in (0, 1, 2, 4)]
    [0.0, 0.5, 1.0, 0.5]
    """  # noqa: E501
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (1 + cos(pi * min(done, 1.0))) / 2
