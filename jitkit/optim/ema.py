"""EMA of the weights: exponential moving averages with warm-up, and power-function EMAs.

An EMA with decay d averages over about the last 1 / (1 - d) steps, whatever the length of the run.
A power-function EMA (Karras et al. 2023, arXiv:2312.02696, section 3.1) averages over a fraction of
the run: after k updates the weights of update j have a weight proportional to (j / k)^gamma. With
relative width 0.1 it averages over about a tenth of the training so far; the initial weights never
contribute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import expm1, log1p

import numpy as np
import torch
from torch import Tensor, nn

from jitkit.errors import JitkitError
from jitkit.utils.distributed import copy_into, float32_copies, local_shard

SIGMA_PREFIX = "sigma-"
MAX_SIGMA_REL = 12**-0.5  # gamma 0: the uniform mean of all weights since the start


class EMA:
    """EMAs of a module's parameters in float32, one for each decay and each relative width.

    Update k, counted from 1, moves an EMA m to m + s (w - m), where s is

    - for decay d with warm-up: 1 - min(d, k / (9 + k)), so the EMA follows the weights from the
      first steps and forgets the initial weights;
    - for a power function: 1 - (1 - 1/k)^(gamma + 1); after one update it equals the weights.

    EMAs of sharded parameters (FSDP2) are sharded in the same way; each process updates its shard
    without communication.

    EMAs may be kept on the CPU while the weights are on a GPU: updates then run on the CPU in
    parallel with the GPU, and access to `averages` waits for them.

    Args:
        module: its parameters are averaged.
        decays: decays of the exponential moving averages.
        sigma_rels: relative widths of the power-function EMAs.
        device: device of the EMAs; default: that of each parameter.

    Attributes:
        updates: number of updates so far.

    Raises:
        JitkitError: a relative width outside the range of power functions.
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
        self._decays = {decay_name(decay): decay for decay in decays}
        self._gammas = {sigma_name(sigma): gamma_of(sigma) for sigma in sigma_rels}
        names = [*self._decays, *self._gammas]
        self._averages = {name: float32_copies(self._source, device) for name in names}
        offload = device and any(p.device.type != device.type for p in self._source.values())
        self._offloader = _Offloader(self._weights()) if offload else None

    @property
    def averages(self) -> dict[str, dict[str, Tensor]]:
        """EMA weights by name (`decay_name`, then `sigma_name`) and parameter."""
        if self._offloader is not None:
            self._offloader.wait()
        return self._averages

    @torch.no_grad()
    def update(self) -> None:
        """Update all EMAs with the module's current weights."""
        self.updates += 1
        steps = {name: self._step(name) for name in self._averages}
        shards = {
            name: [local_shard(value) for value in average.values()]
            for name, average in self._averages.items()
        }

        def apply(weights: Sequence[Tensor]) -> None:
            for name, average in shards.items():
                _lerp(average, weights, steps[name])

        if self._offloader is None:
            apply([weight.float() for weight in self._weights()])
        else:
            self._offloader.submit(self._weights(), apply)

    def _weights(self) -> list[Tensor]:
        """This process's shard of the weights."""
        return [local_shard(p.detach()) for p in self._source.values()]

    def load(self, updates: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Resume from saved, unsharded EMAs; names and shapes are already checked."""
        self.updates = updates
        for name, average in self.averages.items():  # waits for a pending update
            for key, value in average.items():
                copy_into(value, averages[name][key])

    def _step(self, name: str) -> float:
        """Step size s of an EMA in update number ``updates``."""
        k = self.updates
        if name in self._decays:
            return 1 - min(self._decays[name], k / (9 + k))
        return 1.0 if k == 1 else -expm1((self._gammas[name] + 1) * log1p(-1 / k))


class _Offloader:
    """Copies weights from a GPU to the CPU, where a thread updates the EMAs.

    The copy into pinned memory is queued on the GPU's stream before the next optimizer step, so no
    step waits for the CPU; only the next copy does.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        pinned = torch.cuda.is_available()
        self._buffers = [
            torch.empty(w.shape, dtype=torch.float32, pin_memory=pinned) for w in weights
        ]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ema")
        self._pending: Future[None] | None = None

    def submit(self, weights: Sequence[Tensor], apply: Callable[[Sequence[Tensor]], None]) -> None:
        """Call ``apply`` in the thread with the current weights, float32 on the CPU."""
        self.wait()
        for buffer, weight in zip(self._buffers, weights, strict=True):
            buffer.copy_(weight, non_blocking=True)
        copied = None
        if torch.cuda.is_available():
            copied = torch.cuda.current_stream().record_event()

        def work() -> None:
            if copied is not None:
                copied.synchronize()
            apply(self._buffers)

        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Wait for the pending update; raises its exception."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def decay_name(decay: float) -> str:
    """Name of the EMA with a decay, in files and on the command line.

    >>> decay_name(0.9999)
    '0.9999'
    """
    return str(float(decay))


def sigma_name(sigma_rel: float) -> str:
    """Name of the power-function EMA of a relative width.

    >>> sigma_name(0.1)
    'sigma-0.1'
    """
    return f"{SIGMA_PREFIX}{float(sigma_rel)}"


def gamma_of(sigma_rel: float) -> float:
    """Exponent of the power function of a relative width (standard deviation of its profile over
    the length of the run): sigma_rel² = (gamma + 1) / ((gamma + 2)² (gamma + 3)).

    Karras et al. 2023, arXiv:2312.02696, equation 123 and algorithm 2.

    Raises:
        JitkitError: the width is outside the range of power functions that favour late weights.

    >>> round(gamma_of(0.05), 2), round(gamma_of(0.1), 2)
    (16.97, 6.94)
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL:
        raise JitkitError(
            f"relative width (sigma_rel) {sigma_rel} is out of range: power-function EMAs have "
            f"widths above 0 (only the last weights) up to {MAX_SIGMA_REL:.4f} (the uniform mean "
            "of all weights); usual are 0.05 to 0.2"
        )
    t = float(sigma_rel) ** -2
    return max(float(np.roots([1, 7, 16 - t, 12 - t]).real.max()), 0.0)


def _lerp(averages: list[Tensor], weights: Sequence[Tensor], step: float) -> None:
    foreach_lerp = getattr(torch, "_foreach_lerp_", None)  # private: may be removed from torch
    if foreach_lerp is not None:
        foreach_lerp(averages, weights, step)
        return
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, step)
