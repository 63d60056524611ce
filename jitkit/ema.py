"""Running means of the weights, several at once: exponential ones, and power functions of time.

A mean of decay d holds the last 1 / (1 - d) steps or so, however long a run is. A power function
(Karras et al. 2023, arXiv:2312.02696, section 3.1) holds a share of the run: after k updates the
weights of update j count in proportion to (j / k)^gamma, so that a mean of relative width 0.1
always averages over about a tenth of what has been trained, and never knows the first weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import expm1, log1p

import numpy as np
import torch
from torch import Tensor, nn

from jitkit.errors import JitkitError
from jitkit.parallel import local, put

SIGMA = "sigma-"
WIDEST = 12**-0.5  # of gamma 0, the plain mean of all weights since the start


class EMA:
    """Means of a module's parameters in float32, one for each decay and each relative width.

    The mean after update k, counted from 1, is m + s (w - m), where s is

    - of a decay d: 1 - min(d, k / (9 + k)), so that the mean follows the weights from the first
      steps on and forgets where they started;
    - of a power function: 1 - (1 - 1/k)^(gamma + 1); the first mean is the weights themselves.

    Parameters that are spread over processes (FSDP2) have means that are spread alike, and each
    process updates its own part: nothing is sent.

    Attributes:
        means: by `mean_name` of a decay, then by `sigma_name` of a width, then by parameter.
        updates: how many there were.

    Raises:
        JitkitError: a relative width that no power function has.
    """

    def __init__(
        self, module: nn.Module, decays: Sequence[float] = (), sigma_rels: Sequence[float] = ()
    ) -> None:
        self.updates = 0
        self._source = dict(module.named_parameters())
        self._decays = {mean_name(decay): decay for decay in decays}
        self._gammas = {sigma_name(sigma): gamma_of(sigma) for sigma in sigma_rels}
        self.means: dict[str, dict[str, Tensor]] = {
            name: {key: p.detach().float().clone() for key, p in self._source.items()}
            for name in [*self._decays, *self._gammas]
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        self.updates += 1
        weights = [local(p.detach()).float() for p in self._source.values()]
        for name, mean in self.means.items():
            _lerp([local(value) for value in mean.values()], weights, self._step(name))

    def load(self, updates: int, means: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from saved means, whole ones; their names and shapes have been checked."""
        self.updates = updates
        for name, mean in self.means.items():
            for key, value in mean.items():
                put(value, means[name][key])

    def _step(self, name: str) -> float:
        """How far a mean goes towards the weights in the update that is counted last."""
        k = self.updates
        if name in self._decays:
            return 1 - min(self._decays[name], k / (9 + k))
        return 1.0 if k == 1 else -expm1((self._gammas[name] + 1) * log1p(-1 / k))


def mean_name(decay: float) -> str:
    """What the mean of a decay is called, in files and on the command line.

    >>> mean_name(0.9999)
    '0.9999'
    """
    return str(float(decay))


def sigma_name(sigma_rel: float) -> str:
    """What the power-function mean of a relative width is called.

    >>> sigma_name(0.1)
    'sigma-0.1'
    """
    return f"{SIGMA}{float(sigma_rel)}"


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the power function of a relative width, the standard deviation of its profile
    over the length of the run: sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)).

    Karras et al. 2023, arXiv:2312.02696, equation 123 and algorithm 2.

    Raises:
        JitkitError: no power function that favours late weights is that wide or narrow.

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.1), 2)
    (16.97, 6.94)
    """
    if not 0 < sigma_rel <= WIDEST:
        raise JitkitError(
            f"a relative width (sigma_rel) of {sigma_rel} is none of a power function's: they lie "
            f"above 0 (the last weights alone) and reach {WIDEST:.4f} (the plain mean of all "
            "weights); the usual ones are 0.05 to 0.2"
        )
    t = float(sigma_rel) ** -2
    return max(float(np.roots([1, 7, 16 - t, 12 - t]).real.max()), 0.0)


def _lerp(means: list[Tensor], weights: list[Tensor], step: float) -> None:
    together = getattr(torch, "_foreach_lerp_", None)  # not public, so it may go one day
    if together is not None:
        together(means, weights, step)
        return
    for mean, weight in zip(means, weights, strict=True):
        mean.lerp_(weight, step)
