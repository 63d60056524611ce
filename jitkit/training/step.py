"""Training step: forward, backward, mixed precision, gradient clipping, optimizer, EMA update.

Step k is a function of (seed, k): t, the noise and the dropped conditions depend on a sample's
index in the batch, not on how the batch is split into parts. Only dropout is drawn per part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor, nn

from jitkit.data import BatchPlan, batches
from jitkit.diffusion.build import assemble, choose_device, choose_precision
from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.flow import logit_normal_t, uniform_t
from jitkit.domain import Domain
from jitkit.errors import RecipeError
from jitkit.fields import Batch, Conditioning
from jitkit.nn.conditioning import drop
from jitkit.nn.memory import GIB, measure_peak
from jitkit.optim.ema import EMA, decay_name
from jitkit.optim.optimizers import MuonAdamW, Optimizer, adamw, learning_rate, peak_learning_rate
from jitkit.recipe.load import Recipe
from jitkit.training.memory_plan import memory_settings
from jitkit.utils.console import warn
from jitkit.utils.distributed import (
    ALONE,
    DistributedLoss,
    Team,
    full_tensor,
    local_shard,
    reshard,
    shard,
)
from jitkit.utils.seeding import mix

NOISE_GROUP = 16  # samples of a batch that share a generator; one each would slow small models


@dataclass(frozen=True)
class StepResult:
    """Result of one optimizer step on this rank.

    Attributes:
        losses: losses of this rank's samples in batch order, (n,), on the device.
        t: their times, (n,).
        learning_rate: learning rate of this step.
        gradient_norm: over all ranks, before clipping.
        skip_reason: why the step was skipped (no finite loss or gradient); None if it was not.
        overflow: only the float16 gradient overflowed; the loss scale has been lowered since.
    """

    losses: Tensor
    t: Tensor
    learning_rate: float
    gradient_norm: float
    skip_reason: str | None = None
    overflow: bool = False


class LossScale:
    """Dynamic loss scale for float16: it keeps small gradients from underflowing.

    Halved when the gradient overflows, doubled after 2,000 steps without an overflow (Micikevicius
    et al. 2018, arXiv:1710.03740).
    """

    def __init__(self, value: float = 2.0**15) -> None:
        self.value, self.good = value, 0

    def update(self, *, overflow: bool) -> None:
        """Update the scale; ``overflow``: the last gradient was not finite."""
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.value = max(self.value / 2, 1.0)
        elif self.good == 2_000:
            self.value, self.good = self.value * 2, 0


class Learner:
    """A model in training, with its optimizer and the EMAs of its weights.

    Attributes:
        step: optimizer steps done.
        compiled: whether the blocks are compiled with `torch.compile`.
        parallel: "alone", "ddp" or "fsdp".
    """

    def __init__(self, recipe: Recipe, domain: Domain, team: Team) -> None:
        section = recipe.train
        self.recipe, self.team, self.step = recipe, team, 0
        torch.manual_seed(mix(section.seed, "weights"))
        self.device = choose_device()
        self.denoiser = assemble(recipe, domain).to(self.device)
        network = self.denoiser.network
        network.autocast, self.precision = choose_precision(section.precision, self.device)
        self.scale = LossScale() if network.autocast == torch.float16 else None
        network.checkpoint_activations = section.checkpoint_activations
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if section.tf32 else "ieee"
            torch.backends.cudnn.fp32_precision = "tf32" if section.tf32 else "ieee"
        self.parallel = self._choose_parallel()
        if self.parallel == "fsdp":
            shard(network, list(network.blocks), team, self.device)
        ema_device = torch.device("cpu") if section.ema_device == "cpu" else None
        self.ema = EMA(network, section.ema, section.ema_sigma_rel, device=ema_device)
        if section.optimizer == "muon" and self.parallel == "fsdp":
            raise RecipeError(
                "train.optimizer=muon needs whole matrices, but train.parallel=fsdp shards them; "
                "use ddp, or adamw"
            )
        make_optimizer = MuonAdamW if section.optimizer == "muon" else adamw
        self.optimizer: Optimizer = make_optimizer(
            network, betas=section.betas, weight_decay=section.weight_decay
        )
        requested = section.compile is True or (
            section.compile == "auto" and self.device.type == "cuda"
        )
        self.compiled = requested and _compile(network.compile_blocks, self.device)
        self._loss = DistributedLoss(
            _Losses(self.denoiser), network, self.parallel, team, self.device
        )

    def train_step(self, parts: Iterator[Batch], first_index: Callable[[int], int]) -> StepResult:
        """One optimizer step on a batch that comes in parts (gradient accumulation).

        Args:
            parts: the next ``train.accumulate`` parts are consumed.
            first_index: index in the whole batch of a part's first sample.
        """
        section, losses, times = self.recipe.train, [], []
        t, drops = self._draws()
        factor = self.team.world / section.batch_size * (self.scale.value if self.scale else 1)
        for i in range(section.accumulate):
            batch = next(parts).to(self.device)
            first = first_index(i)
            rows = slice(first, first + len(batch.x))
            torch.manual_seed(mix(section.seed, "dropout", self.step, first))
            eps = self._noise(batch.x.shape, first)
            own_drops = {name: draws[rows] for name, draws in drops.items()}
            cond = drop(self.denoiser.conditions, batch.cond, own_drops)
            conditioning = replace(batch.conditioning, cond=cond)
            with self._loss.gradient_sync(last=i == section.accumulate - 1):
                loss = self._loss(batch.x, eps, t[rows], conditioning)
                torch.autograd.backward(loss.sum() * factor)
            losses.append(loss.detach())
            times.append(t[rows])
        lr = self._learning_rate()
        norm, skip_reason = self._update(lr)
        self.step += 1
        result = StepResult(torch.cat(losses), torch.cat(times), lr, norm, skip_reason)
        if skip_reason and self.scale:
            bad_loss = self.team.max([not bool(result.losses.isfinite().all())])[0]
            return replace(result, overflow=not bad_loss and self.scale.value > 1)
        return result

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context in which the model has the first EMA's weights and is in eval mode."""
        network = self.denoiser.network
        ema = self.ema.averages[decay_name(self.recipe.train.ema[0])]
        pairs = [(local_shard(p), local_shard(ema[n])) for n, p in network.named_parameters()]

        def swap() -> None:
            reshard(network)
            with torch.no_grad():
                for weight, averaged in pairs:
                    kept = weight.clone()
                    weight.copy_(averaged)
                    averaged.copy_(kept)

        swap()
        self.denoiser.eval()
        try:
            yield
        finally:
            swap()
            self.denoiser.train()

    def load_ema(self, name: str) -> Denoiser:
        """The model with an EMA's weights loaded permanently, in eval mode."""
        network = self.denoiser.network
        reshard(network)
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                local_shard(parameter).copy_(local_shard(self.ema.averages[name][key]))
        return self.denoiser.eval()

    def weights_are_finite(self) -> bool:
        """Whether every weight is finite, on all ranks."""
        shards = map(local_shard, self.denoiser.network.parameters())
        bad = any(not bool(each.isfinite().all()) for each in shards)
        return not self.team.max([bad])[0]

    def _draws(self) -> tuple[Tensor, dict[str, Tensor]]:
        """t, and uniform draws that decide which conditions are dropped, (batch_size,) each."""
        section, diffusion = self.recipe.train, self.recipe.diffusion
        generator = torch.Generator().manual_seed(mix(section.seed, "step", self.step))
        n = section.batch_size
        if diffusion.t_distribution == "uniform":
            t = uniform_t(n, generator=generator)
        else:
            t = logit_normal_t(
                n, P_mean=diffusion.P_mean, P_std=diffusion.P_std, generator=generator
            )
        drops = {name: torch.rand(n, generator=generator) for name in self.denoiser.conditions}
        return t.to(self.device), {name: d.to(self.device) for name, d in drops.items()}

    def _noise(self, shape: Sequence[int], start: int) -> Tensor:
        """Scaled noise for the samples from batch index ``start`` on, (n, C, X1..Xn).

        Drawn on the layout's grid or the samples' grid, whichever is larger, then cropped, so that
        padding does not change it.
        """
        grid = [max(a, b) for a, b in zip(self.denoiser.layout.grid, shape[2:], strict=True)]
        drawn = torch.empty(shape[0], shape[1], *grid, device=self.device)
        generator = torch.Generator(self.device)
        for group in range(start // NOISE_GROUP, -(-(start + shape[0]) // NOISE_GROUP)):
            seed = mix(self.recipe.train.seed, "noise", self.step, group)
            generator.manual_seed(seed)
            first, last = group * NOISE_GROUP, (group + 1) * NOISE_GROUP
            begin, end = max(first, start), min(last, start + shape[0])
            into = drawn[begin - start : end - start]
            if (begin, end) == (first, last):
                into.normal_(generator=generator)
            else:  # a CPU generator draws the first samples as if it drew the whole group
                can_stop = self.device.type == "cpu" and into[0].numel() % 16 == 0
                size = end - first if can_stop else NOISE_GROUP
                full = torch.empty(size, shape[1], *grid, device=self.device)
                into.copy_(full.normal_(generator=generator)[begin - first : end - first])
        cropped = drawn[(slice(None), slice(None), *(slice(size) for size in shape[2:]))]
        return cropped * self.denoiser.diffusion.noise_scale

    def _learning_rate(self) -> float:
        section = self.recipe.train
        return learning_rate(
            self.step,
            peak=peak_learning_rate(self.recipe.train),
            warmup_steps=section.warmup_steps,
            steps=section.steps,
            schedule=section.schedule,
        )

    def _update(self, lr: float) -> tuple[float, str | None]:
        """Update weights and EMAs; return the gradient norm and the reason for a skipped step."""
        section = self.recipe.train
        gradients = [p.grad for p in self.denoiser.network.parameters() if p.grad is not None]
        scale = self.scale.value if self.scale else 1.0
        # the one device synchronization of a step: weights must not change before this is checked
        norm = float(full_tensor(torch.nn.utils.get_total_norm(gradients))) / scale
        skip_reason = None if isfinite(norm) else f"the gradient norm is {norm}"
        if self.scale:
            self.scale.update(overflow=skip_reason is not None)
        if skip_reason is None:
            max_norm = section.clip_gradient or norm
            factor = min(1.0, max_norm / max(norm, 1e-12)) / scale
            if factor != 1.0:
                torch._foreach_mul_([local_shard(g) for g in gradients], factor)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        return norm if skip_reason is None else nan, skip_reason

    def _choose_parallel(self) -> str:
        """``train.parallel`` with "auto" resolved."""
        section, team = self.recipe.train, self.team
        if team.world == 1:
            return "alone"
        if section.parallel != "auto":
            return section.parallel
        settings = memory_settings(
            section, self.denoiser.network, self.device, processes=team.world
        )
        return "fsdp" if settings["sharded"] else "ddp"


def run_two_steps(recipe: Recipe, domain: Domain) -> dict[str, Any]:
    """Two real training steps of a recipe on its data; nothing is written.

    The second step is reported, because only then is everything in memory: ``step_seconds``,
    ``step_loss`` and ``step_memory_gib`` (the peak, to compare with the estimate).
    """
    section, items = recipe.train, domain.items("train")
    device = choose_device()
    with measure_peak(device) as peak:
        learner = Learner(recipe, domain, ALONE)
        learner.denoiser.train()
        plan = BatchPlan.over(
            items, section.batch_size, section.seed, stop=2, accumulate=section.accumulate
        )
        parts = batches(domain, items, plan)
        learner.train_step(parts, plan.first_position)
        began = time.monotonic()
        result = learner.train_step(parts, plan.first_position)
        loss = float(result.losses.mean())
        took = time.monotonic() - began
    return {"step_seconds": took, "step_loss": loss, "step_memory_gib": peak.bytes / GIB}


class _Losses(nn.Module):
    """`Denoiser.losses` as a module: DDP and FSDP hook into a module's forward."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, eps: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Loss of each sample, (B,)."""
        return self.denoiser.losses(x, eps, t, conditioning)


def _compile(compile_blocks: Callable[[], Any], device: torch.device) -> bool:
    """Compile the blocks, or warn and continue uncompiled; whether it worked."""
    try:
        probe = torch.compile(lambda x: x * 2 + 1)
        probe(torch.ones(8, device=device, requires_grad=True)).sum().backward()
    except Exception as error:  # e.g. no C compiler or no Triton; many exception types
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warn(f"torch.compile does not work on this machine ({why}); training continues uncompiled")
        return False
    compile_blocks()
    return True
