"""Running means of the weights, several at once: exponential ones, and power functions of time.

A mean of decay d holds the last 1 / (1 - d) steps or so, however long a run is. A power function
(Karras et al. 2023, arXiv:2312.02696, section 3.1) holds a share of the run: after k updates the
weights of update j count in proportion to (j / k)^gamma, so that a mean of relative width 0.1
always averages over about a tenth of what has been trained, and never knows the first weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import expm1, log1p

import numpy as np
import torch
from torch import Tensor, nn

from jitkit.errors import JitkitError
from jitkit.utils.distributed import copies, local, put

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

    Means may be kept on the processor while the weights are on a GPU: an update is then worked out
    while the GPU goes on, and whoever asks for `means` waits for it.

    Args:
        module: whose parameters are averaged.
        decays: of exponential means.
        sigma_rels: relative widths of power functions.
        device: where means are kept; where each parameter is, if not given.

    Attributes:
        updates: how many there were.

    Raises:
        JitkitError: a relative width that no power function has.
    """

    def __init__(
        self,
        module: nn.Module,
        decays: Sequence[float] = (),
        sigma_rels: Sequence[float] = (),
        *,
        device: torch.device | None = None,
    ) -> None:
        self.updates = 0
        self._source = dict(module.named_parameters())
        self._decays = {mean_name(decay): decay for decay in decays}
        self._gammas = {sigma_name(sigma): gamma_of(sigma) for sigma in sigma_rels}
        names = [*self._decays, *self._gammas]
        self._means = {name: copies(self._source, device) for name in names}
        far = device and any(p.device.type != device.type for p in self._source.values())
        self._ferry = _Ferry(self._weights()) if far else None

    @property
    def means(self) -> dict[str, dict[str, Tensor]]:
        """By `mean_name` of a decay, then by `sigma_name` of a width, then by parameter."""
        if self._ferry is not None:
            self._ferry.wait()
        return self._means

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights as they are now."""
        self.updates += 1
        steps = {name: self._step(name) for name in self._means}
        means = {name: [local(m) for m in mean.values()] for name, mean in self._means.items()}

        def take(weights: Sequence[Tensor]) -> None:
            for name, mean in means.items():
                _lerp(mean, weights, steps[name])

        if self._ferry is None:
            take([weight.float() for weight in self._weights()])
        else:
            self._ferry.carry(self._weights(), take)

    def _weights(self) -> list[Tensor]:
        """What this process holds of the weights."""
        return [local(p.detach()) for p in self._source.values()]

    def load(self, updates: int, means: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from saved means, whole ones; their names and shapes have been checked."""
        self.updates = updates
        for name, mean in self.means.items():  # waits for an update that is on its way
            for key, value in mean.items():
                put(value, means[name][key])

    def _step(self, name: str) -> float:
        """How far a mean goes towards the weights in the update that is counted last."""
        k = self.updates
        if name in self._decays:
            return 1 - min(self._decays[name], k / (9 + k))
        return 1.0 if k == 1 else -expm1((self._gammas[name] + 1) * log1p(-1 / k))


class _Ferry:
    """Brings weights from a GPU to the processor, and has them taken in there by a thread.

    They are copied into pinned memory, in turn with the GPU's other work, so that the optimizer's
    next step comes after it and no step waits for the processor; only the next copy does.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        pinned = torch.cuda.is_available()
        self._landed = [
            torch.empty(w.shape, dtype=torch.float32, pin_memory=pinned) for w in weights
        ]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="means")
        self._work: Future[None] | None = None

    def carry(self, weights: Sequence[Tensor], take: Callable[[Sequence[Tensor]], None]) -> None:
        """Have ``take`` called with the weights as they are now, float32 on the processor."""
        self.wait()
        for landed, weight in zip(self._landed, weights, strict=True):
            landed.copy_(weight, non_blocking=True)
        arrived = None
        if torch.cuda.is_available():
            arrived = torch.cuda.current_stream().record_event()

        def work() -> None:
            if arrived is not None:
                arrived.synchronize()
            take(self._landed)

        self._work = self._thread.submit(work)

    def wait(self) -> None:
        """Until what was carried last is taken in; raises what went wrong with it."""
        work, self._work = self._work, None
        if work is not None:
            work.result()


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


def _lerp(means: list[Tensor], weights: Sequence[Tensor], step: float) -> None:
    together = getattr(torch, "_foreach_lerp_", None)  # not public, so it may go one day
    if together is not None:
        together(means, weights, step)
        return
    for mean, weight in zip(means, weights, strict=True):
        mean.lerp_(weight, step)
