"""Running means of the weights, several at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn


class EMA:
    """Exponential means of a module's parameters, float32, one for each decay.

    The mean after update k is m + (1 - d_k)(w - m) with d_k = min(decay, (1 + k) / (10 + k)), so
    that it follows the weights from the first steps on and forgets where they started.
    """

    def __init__(self, module: nn.Module, decays: Sequence[float]) -> None:
        self.updates = 0
        self._source = dict(module.named_parameters())
        self.means = {
            decay: {name: p.detach().float().clone() for name, p in self._source.items()}
            for decay in decays
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        k = self.updates
        weights = [p.detach() for p in self._source.values()]
        for decay, mean in self.means.items():
            step = 1 - min(decay, (1 + k) / (10 + k))
            _lerp(list(mean.values()), weights, step)
        self.updates += 1

    def load(self, updates: int, means: Mapping[float, Mapping[str, Tensor]]) -> None:
        """Go on from saved means; their names and shapes have been checked."""
        self.updates = updates
        for decay, mean in self.means.items():
            for name, value in mean.items():
                value.copy_(means[decay][name])


def _lerp(means: Iterable[Tensor], weights: Iterable[Tensor], step: float) -> None:
    torch._foreach_lerp_(list(means), list(weights), step)
