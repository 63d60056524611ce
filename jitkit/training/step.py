"""One step of training: loss, gradient, optimizer, means; alone or with other processes.

What step k does is a function of (seed, k): t, the noise and which conditions are dropped belong to
a sample's place in the batch, so they are the same however the batch is cut into parts. Dropout
alone is drawn for each part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from jitkit.fields import Batch
from jitkit.nn.conditioning import drop
from jitkit.nn.memory import GIB, peak_of
from jitkit.optim.ema import EMA, mean_name
from jitkit.optim.optimizers import MuonAdamW, Optimizer, adamw, learning_rate, peak_learning_rate
from jitkit.recipe.load import Recipe
from jitkit.training.memory_plan import memory_settings
from jitkit.utils.console import warn
from jitkit.utils.distributed import ALONE, Shared, Team, forget_gathered, local, shard, whole
from jitkit.utils.seeding import mix

NOISE_GROUP = 16  # places of a batch that share a generator; one for each would cost small models


@dataclass(frozen=True)
class StepResult:
    """What a step came to, in this process.

    Attributes:
        losses: of this process's samples, in the order of their places, (n,), on the device.
        t: their times, (n,).
        rate: the learning rate.
        gradient: norm of the gradient of all processes, before it is clipped.
        bad: why the step was passed over: no finite loss or gradient; None where it was not.
        overflow: whether it was only the gradient in float16, whose scale has been lowered since.
    """

    losses: Tensor
    t: Tensor
    rate: float
    gradient: float
    bad: str | None = None
    overflow: bool = False


class LossScale:
    """What the loss is multiplied with in float16, so that small gradients are not lost.

    Halved where the gradient overflows, doubled after 2,000 steps without (Micikevicius et al.
    2018, arXiv:1710.03740).
    """

    def __init__(self, value: float = 2.0**15) -> None:
        self.value, self.good = value, 0

    def update(self, *, overflow: bool) -> None:
        """Take in whether the last gradient was finite."""
        self.good = 0 if overflow else self.good + 1
        if overflow:
            self.value = max(self.value / 2, 1.0)
        elif self.good == 2_000:
            self.value, self.good = self.value * 2, 0


class Learner:
    """A model in training, with its optimizer and the running means of its weights.

    Attributes:
        step: steps that are done.
        compiled: whether `torch.compile` makes the blocks.
    """

    def __init__(self, recipe: Recipe, domain: Domain, team: Team) -> None:
        section = recipe.train
        self.recipe, self.team, self.step = recipe, team, 0
        torch.manual_seed(mix(section.seed, "weights"))
        self.device = choose_device()
        self.denoiser = assemble(recipe, domain).to(self.device)
        self.denoiser.autocast, self.precision = choose_precision(section.precision, self.device)
        self.scale = LossScale() if self.denoiser.autocast == torch.float16 else None
        network = self.denoiser.network
        network.checkpoint_activations = section.checkpoint_activations
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.fp32_precision = "tf32" if section.tf32 else "ieee"
            torch.backends.cudnn.fp32_precision = "tf32" if section.tf32 else "ieee"
        self.how = self._sharing()
        if self.how == "fsdp":
            shard(network, list(network.blocks), team, self.device)
        far = torch.device("cpu") if section.ema_device == "cpu" else None
        self.ema = EMA(network, section.ema, section.ema_sigma_rel, device=far)
        if section.optimizer == "muon" and self.how == "fsdp":
            raise RecipeError(
                "train.optimizer=muon needs whole matrices, and train.parallel=fsdp holds parts of "
                "them; use ddp, or adamw"
            )
        make = MuonAdamW if section.optimizer == "muon" else adamw
        self.optimizer: Optimizer = make(
            network, betas=section.betas, weight_decay=section.weight_decay
        )
        wanted = section.compile is True or (
            section.compile == "auto" and self.device.type == "cuda"
        )
        self.compiled = wanted and _compile(network.compile_blocks, self.device)
        self._shared = Shared(_Losses(self.denoiser), network, self.how, team, self.device)

    def step(self, parts: Iterator[Batch], first_place: Callable[[int], int]) -> StepResult:
        """One step of the optimizer on a batch that comes in parts.

        Args:
            parts: the next ``train.accumulate`` parts are result.
            first_place: place in the whole batch of a part's first sample.
        """
        section, losses, times = self.recipe.train, [], []
        t, drops = self._draws()
        factor = self.team.world / section.batch_size * (self.scale.value if self.scale else 1)
        for i in range(section.accumulate):
            batch = next(parts).to(self.device)
            place = first_place(i)
            rows = slice(place, place + len(batch.x))
            torch.manual_seed(mix(section.seed, "dropout", self.step, place))
            eps = self._noise(batch.x.shape, place)
            cond = drop(
                self.denoiser.conditions, batch.cond, {n: d[rows] for n, d in drops.items()}
            )
            with self._shared.part(last=i == section.accumulate - 1):
                own = self._shared(batch.x, eps, t[rows], cond, batch.mask, batch.coords)
                torch.autograd.backward(own.sum() * factor)
            losses.append(own.detach())
            times.append(t[rows])
        rate = self._rate()
        gradient, bad = self._update(rate)
        self.step += 1
        result = StepResult(torch.cat(losses), torch.cat(times), rate, gradient, bad)
        if bad and self.scale:
            wrong = self.team.max([not bool(result.losses.isfinite().all())])[0]
            return replace(result, overflow=not wrong and self.scale.value > 1)
        return result

    @contextmanager
    def means(self) -> Iterator[None]:
        """The first running mean in place of the weights, in eval mode; then back."""
        mean = self.ema.means[mean_name(self.recipe.train.ema[0])]
        pairs = [(local(p), local(mean[n])) for n, p in self.denoiser.network.named_parameters()]

        def swap() -> None:
            forget_gathered(self.denoiser.network)
            with torch.no_grad():
                for weight, other in pairs:
                    kept = weight.clone()
                    weight.copy_(other)
                    other.copy_(kept)

        swap()
        self.denoiser.eval()
        try:
            yield
        finally:
            swap()
            self.denoiser.train()

    def become(self, name: str) -> Denoiser:
        """The model with a running mean for weights, in eval mode, for good."""
        network = self.denoiser.network
        forget_gathered(network)
        with torch.no_grad():
            for key, parameter in network.named_parameters():
                local(parameter).copy_(local(self.ema.means[name][key]))
        return self.denoiser.eval()

    def finite(self) -> bool:
        """Whether every weight is a finite number, in all processes."""
        bad = any(not bool(local(p).isfinite().all()) for p in self.denoiser.network.parameters())
        return not self.team.max([bad])[0]

    def _draws(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Times and what decides on dropped conditions, for the whole batch, (batch_size,)."""
        section, numbers = self.recipe.train, self.recipe.diffusion
        generator = torch.Generator().manual_seed(mix(section.seed, "step", self.step))
        n = section.batch_size
        if numbers.t_distribution == "uniform":
            t = uniform_t(n, generator=generator)
        else:
            t = logit_normal_t(n, P_mean=numbers.P_mean, P_std=numbers.P_std, generator=generator)
        drops = {name: torch.rand(n, generator=generator) for name in self.denoiser.conditions}
        return t.to(self.device), {name: d.to(self.device) for name, d in drops.items()}

    def _noise(self, shape: Sequence[int], place: int) -> Tensor:
        """Noise for samples at ``place`` and on, scaled, (n, C, X1..Xn).

        It is drawn on the layout's grid or the samples' own, whichever is larger, and cut, so that
        what samples are padded to does not change it.
        """
        grid = [max(a, b) for a, b in zip(self.denoiser.layout.grid, shape[2:], strict=True)]
        drawn = torch.empty(shape[0], shape[1], *grid, device=self.device)
        generator = torch.Generator(self.device)
        for group in range(place // NOISE_GROUP, -(-(place + shape[0]) // NOISE_GROUP)):
            seed = mix(self.recipe.train.seed, "noise", self.step, group)
            generator.manual_seed(seed)
            first, last = group * NOISE_GROUP, (group + 1) * NOISE_GROUP
            begin, end = max(first, place), min(last, place + shape[0])
            into = drawn[begin - place : end - place]
            if (begin, end) == (first, last):
                into.normal_(generator=generator)
            else:  # a processor's generator makes the first so many of a group as it makes all
                cut_short = self.device.type == "cpu" and into[0].numel() % 16 == 0
                size = end - first if cut_short else NOISE_GROUP
                full = torch.empty(size, shape[1], *grid, device=self.device)
                into.copy_(full.normal_(generator=generator)[begin - first : end - first])
        cut = drawn[(slice(None), slice(None), *(slice(size) for size in shape[2:]))]
        return cut * self.denoiser.diffusion.noise_scale

    def _rate(self) -> float:
        section = self.recipe.train
        return learning_rate(
            self.step,
            peak=peak_learning_rate(self.recipe.train),
            warmup_steps=section.warmup_steps,
            steps=section.steps,
            schedule=section.schedule,
        )

    def _update(self, rate: float) -> tuple[float, str | None]:
        """Gradient to weights and means; the gradient's norm, and why nothing was done if so."""
        section = self.recipe.train
        gradients = [p.grad for p in self.denoiser.network.parameters() if p.grad is not None]
        scale = self.scale.value if self.scale else 1.0
        # the one wait for the device in a step: nothing may reach weights before this is known
        norm = float(whole(torch.nn.utils.get_total_norm(gradients))) / scale
        bad = None if isfinite(norm) else f"the gradient's norm is {norm}"
        if self.scale:
            self.scale.update(overflow=bad is not None)
        if bad is None:
            most = section.clip_gradient or norm
            factor = min(1.0, most / max(norm, 1e-12)) / scale
            if factor != 1.0:
                torch._foreach_mul_([local(g) for g in gradients], factor)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        return norm if bad is None else nan, bad

    def _sharing(self) -> str:
        """How processes share the model, ``train.parallel`` decided."""
        section, team = self.recipe.train, self.team
        if team.world == 1:
            return "alone"
        if section.parallel != "auto":
            return section.parallel
        settings = memory_settings(
            section, self.denoiser.network, self.device, processes=team.world
        )
        return "fsdp" if settings["sharded"] else "ddp"


def rehearse(recipe: Recipe, domain: Domain) -> dict[str, Any]:
    """Two real steps of a recipe on its data, and what they took; nothing is written.

    The second has all in memory at once, so it is the one that is told of: ``step_seconds``,
    ``step_loss`` and ``step_memory_gib``, at the peak, to set beside the estimate.
    """
    section, items = recipe.train, domain.items("train")
    device = choose_device()
    with peak_of(device) as peak:
        learner = Learner(recipe, domain, ALONE)
        learner.denoiser.train()
        plan = BatchPlan.over(
            items, section.batch_size, section.seed, stop=2, accumulate=section.accumulate
        )
        parts = batches(domain, items, plan)
        learner.step(parts, plan.first_place)
        began = time.monotonic()
        result = learner.step(parts, plan.first_place)
        loss = float(result.losses.mean())
        took = time.monotonic() - began
    return {"step_seconds": took, "step_loss": loss, "step_memory_gib": peak.bytes / GIB}


class _Losses(nn.Module):
    """`Denoiser.losses` as a module, for those that hook into a module's forward."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        x: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None,
        coords: Tensor | None,
    ) -> Tensor:
        """Losses of samples, (B,)."""
        return self.denoiser.losses(x, eps, t, cond, mask, coords)


def _compile(compile_blocks: Callable[[], Any], device: torch.device) -> bool:
    """Compile the blocks, or say that this machine cannot and go on without; whether it can."""
    try:
        probe = torch.compile(lambda x: x * 2 + 1)
        probe(torch.ones(8, device=device, requires_grad=True)).sum().backward()
    except Exception as error:  # no C compiler, no Triton: many kinds, all of them the machine's
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warn(f"torch.compile does not work on this machine ({why}); going on without")
        return False
    compile_blocks()
    return True
