"""Optimizers (AdamW, Muon) and learning-rate schedule with warm-up (Li & He 2025, table 9)."""

from __future__ import annotations

from math import cos, pi
from typing import Any, Literal

import torch
from torch import nn

from jitkit.sections import TrainSection


def adamw(
    module: nn.Module, *, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; the learning rate is set at every step."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for the rest, as one optimizer.

    Muon (Jordan et al. 2024) steps along the orthogonalised momentum (all singular values one),
    scaled to AdamW's step (root mean square 0.2), so both use one learning rate. AdamW optimizes
    the adaLN modulation, embeddings, the last layer, norms and biases.
    """

    def __init__(
        self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        def uses_muon(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and name.startswith("blocks.") and ".adaLN." not in name

        matrices = [p for name, p in module.named_parameters() if uses_muon(name, p)]
        rest = [p for name, p in module.named_parameters() if not uses_muon(name, p)]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.muon = torch.optim.Muon(
            matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        """Step both optimizers."""
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)


Optimizer = torch.optim.AdamW | MuonAdamW
ADAMW_KEYS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_state(
    optimizer: Optimizer, parameter: nn.Parameter
) -> tuple[dict[str, Any], list[str]]:
    """Optimizer state of a parameter, which may be modified in place, and its keys."""
    if isinstance(optimizer, torch.optim.AdamW):
        return optimizer.state[parameter], list(ADAMW_KEYS)
    if any(parameter is p for p in optimizer.muon.param_groups[0]["params"]):
        return optimizer.muon.state[parameter], ["momentum_buffer"]
    return optimizer.adamw.state[parameter], list(ADAMW_KEYS)


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    steps: int,
    schedule: Literal["constant", "cosine"],
) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant or cosine decay.

    >>> [learning_rate(k, peak=1.0, warmup_steps=2, steps=6, schedule="cosine") for k in (0, 1, 2, 4)]
    [0.0, 0.5, 1.0, 0.5]
    """  # noqa: E501
    if step < warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    return peak * (1 + cos(pi * min(progress, 1.0))) / 2


def peak_learning_rate(section: TrainSection) -> float:
    """Peak learning rate after the warm-up: ``lr``, or blr x batch_size / 256."""
    return section.lr or section.blr * section.batch_size / 256
