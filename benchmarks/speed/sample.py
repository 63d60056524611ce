"""A guided Heun trajectory of jitkit against the plain JiT reference, with equal results.

The reference makes two passes at every evaluation, one after the other. jitkit makes both in one
batch where guidance acts, and one pass where it does not. The share of evaluations where it acts
depends on the number of steps, so times of a short trajectory are scaled to the paper's 50 steps:
evaluations of each kind are counted with a tiny network, and timed by a trajectory with guidance
and one without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.referencemodel import JiT
from benchmarks.speed.measure import Timing, interleaved, middle
from benchmarks.speed.results import Demand, Plan, Result, Table, milliseconds, percent
from benchmarks.speed.step import pictures
from jitkit.diffusion.build import assemble
from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.sampler import sample
from jitkit.recipe.load import Recipe
from jitkit.registry import domain_class

PAPER_STEPS = 50
GUIDANCE = 3.0
MOST = 0.77  # of jitkit's time over the reference's
ALIKE = 1e-4


@dataclass(frozen=True)
class Counted:
    """Evaluations of a trajectory: those with both passes of guidance, and those with one pass."""

    guided: int
    plain: int

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the velocity."""
        return self.guided + self.plain

    @property
    def passes(self) -> int:
        """Passes of one sample through the network."""
        return 2 * self.guided + self.plain


def made(recipe: Recipe) -> tuple[Denoiser, JiT]:
    """A model with random weights, and the reference with the same weights."""
    denoiser = assemble(recipe, domain_class("images")(recipe.domain))
    reference.randomise(denoiser.network)
    return denoiser.eval(), reference.like(denoiser)


def request(denoiser: Denoiser) -> tuple[Tensor, Tensor]:
    """Noise of one sample, scaled, (1, C, X1, X2), and its label."""
    rng = torch.Generator().manual_seed(0)
    shape = (1, len(denoiser.layout.channels), *denoiser.layout.grid)
    noise = torch.randn(shape, generator=rng) * denoiser.diffusion.noise_scale
    return noise, torch.tensor([7])


def takers(denoiser: Denoiser, theirs: JiT, steps: int) -> dict[str, Callable[[], Tensor]]:
    """A trajectory of each kind."""
    z, y = request(denoiser)

    def ours(guidance: float) -> Tensor:
        return sample(denoiser, noise=z, cond={"label": y}, guidance=guidance, steps=steps)

    return {
        "jitkit": lambda: ours(GUIDANCE),
        "jitkit, not guided": lambda: ours(1.0),
        "reference": lambda: reference.sample(theirs, z, y, steps=steps, guidance=GUIDANCE),
    }


@cache
def counted(steps: int) -> dict[str, Counted]:
    """Evaluations of each kind for each of `takers`, counted on a tiny network."""
    denoiser, theirs = made(pictures(1, 32, width=16, depth=1, heads=2, in_context_tokens=0))
    batches: list[int] = []
    for network in (denoiser.network, theirs):
        network.register_forward_pre_hook(lambda module, inputs: batches.append(len(inputs[0])))
    found = {}
    for name, taker in takers(denoiser, theirs, steps).items():
        batches.clear()
        taker()
        if name == "reference":  # passes one after the other, in pairs
            found[name] = Counted(len(batches) // 2, 0)
        else:
            found[name] = Counted(batches.count(2), batches.count(1))
    return found


def carried_over(took: dict[str, Timing], steps: int) -> dict[str, list[float]]:
    """Seconds of trajectories of 50 steps in each round, scaled from those of ``steps``."""
    here, there = counted(steps), counted(PAPER_STEPS)
    found: dict[str, list[float]] = {"jitkit": [], "reference": []}
    rounds = zip(*(took[name].seconds for name in here), strict=True)
    for guided, plain, theirs in rounds:
        one = plain / here["jitkit, not guided"].plain
        two = (guided - one * here["jitkit"].plain) / here["jitkit"].guided
        whole = there["jitkit"]
        found["jitkit"].append(two * whole.guided + one * whole.plain)
        found["reference"].append(
            theirs * there["reference"].evaluations / here["reference"].evaluations
        )
    return found


def measure(recipe: Recipe, steps: int, rounds: int) -> dict[str, Any]:
    """Results of a model: seconds, ratios, passes, and the difference of both results."""
    denoiser, theirs = made(recipe)
    ways = takers(denoiser, theirs, steps)
    ends = {name: ways[name]() for name in ("jitkit", "reference")}  # also the warm-up
    apart = (ends["jitkit"] - ends["reference"]).abs().max() / ends["reference"].abs().max()
    took = interleaved(ways, rounds=rounds, warmup=0)
    whole = carried_over(took, steps)
    over, scatter = middle(
        [a / b for a, b in zip(whole["jitkit"], whole["reference"], strict=True)]
    )
    return {
        "steps": steps,
        "seconds": {name: timing.median for name, timing in took.items()},
        "spread": {name: timing.spread for name, timing in took.items()},
        "seconds_of_50_steps": {name: middle(each)[0] for name, each in whole.items()},
        "passes": {name: each.passes for name, each in counted(steps).items()},
        "passes_of_50_steps": {name: each.passes for name, each in counted(PAPER_STEPS).items()},
        "ratio": over,
        "ratio_spread": scatter,
        "difference": float(apart),
    }


def run(plan: Plan) -> Result:
    """B/16 at batch 1."""
    recipe = plan.pick(pictures(1), pictures(1), pictures(1, 32, width=32, depth=2))
    found = measure(recipe, steps=plan.pick(10, 6, 6), rounds=plan.pick(7, 3, 2))
    result = Result("sample", numbers=found)
    rows = []
    for name in ("jitkit", "reference"):
        seconds, spread = found["seconds"][name], percent(found["spread"][name])
        short = [found["passes"][name], milliseconds(seconds), spread]
        whole = [found["passes_of_50_steps"][name], f"{found['seconds_of_50_steps'][name]:.3g} s"]
        rows.append([name, *short, *whole])
    steps = found["steps"]
    head = ["", f"passes, {steps} steps", "measured", "spread"]
    head += [f"passes, {PAPER_STEPS} steps", "extrapolated"]
    title = f"B/16, batch 1, guidance {GUIDANCE:g} in (0.1, 1), float32, threads: {plan.threads}"
    result.tables.append(Table(title, head, rows))
    result.notes.append(
        f"Ratio of trajectories of {PAPER_STEPS} steps: {found['ratio']:.3f} (spread "
        f"{percent(found['ratio_spread'])}), from counted evaluations (NFE) and the time of "
        f"{steps} steps. Samples differ by {found['difference']:.1e} of the largest value."
    )
    result.demands = [
        Demand("a guided trajectory, over the reference's", found["ratio"], MOST),
        Demand("difference of both samples", found["difference"], ALIKE),
    ]
    return result
