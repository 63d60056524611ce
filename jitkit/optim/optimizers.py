"""Optimizer and learning rate, by the paper's rules (Li & He 2025, table 9)."""

from __future__ import annotations

from math import cos, pi
from typing import Any, Literal

import torch
from torch import nn

from jitkit.sections import TrainSection


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


class MuonAdamW:
    """Muon for the matrices of the blocks, AdamW for the rest, as one optimizer.

    Muon (Jordan et al. 2024) steps along the momentum with all its singular values made one. It is
    scaled to AdamW's step (root mean square 0.2), so that both take one learning rate. The
    modulation of blocks (adaLN), embeddings, the last layer, norms and biases stay with AdamW.
    """

    def __init__(
        self, module: nn.Module, *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        def turned(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and name.startswith("blocks.") and ".adaLN." not in name

        mine = [p for name, p in module.named_parameters() if turned(name, p)]
        rest = [p for name, p in module.named_parameters() if not turned(name, p)]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.muon = torch.optim.Muon(
            mine, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    def step(self) -> None:
        """One step of both."""
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)


Optimizer = torch.optim.AdamW | MuonAdamW
ADAMW_KEYS = ("exp_avg", "exp_avg_sq", "step")


def state_of(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[dict[str, Any], list[str]]:
    """What an optimizer keeps for a parameter, to be changed in place, and the names it goes by."""
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


def peak_learning_rate(section: TrainSection) -> float:
    """The learning rate after the warm-up: ``lr``, or blr x batch_size / 256."""
    return section.lr or section.blr * section.batch_size / 256
