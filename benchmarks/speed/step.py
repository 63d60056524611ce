"""A training step of jitkit against the plain JiT reference: forward, backward, AdamW, two EMAs.

jitkit's is `Learner.train_step`, a whole step of a run except reading data and logging: with
noise that does not depend on how the batch is split, the norm of the gradient and its check. Both
have the same weights and alternate. Model FLOPs are 3 x 2 x multiply-accumulates of a forward pass
(those of matrix products in attention and of linear layers) x samples. The compute limit is the
best product of float32 matrices of a few shapes by `torch.mm`, in the same rounds, and also by the
library that jitkit uses for large products. The memory limit is reported too: the bytes that a step
moves for each parameter, for any batch size, at the rate of a memory copy.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import reference
from benchmarks.speed.counted import bytes_a_weight
from benchmarks.speed.limits import FEW, MIB, SHAPES, best_flops, copy_rate, products
from benchmarks.speed.measure import interleaved, ratio
from benchmarks.speed.results import Demand, Plan, Result, Table, milliseconds, percent
from jitkit.errors import JitkitError
from jitkit.fields import Batch, Category
from jitkit.nn.flops import macs
from jitkit.recipe.load import Recipe, load_recipe
from jitkit.registry import domain_class, open_domain
from jitkit.training.step import Learner
from jitkit.utils.distributed import ALONE

Step = Callable[[], object]
LR = 1e-4


@dataclass(frozen=True)
class Case:
    """A model, a batch, and its requirements.

    Attributes:
        most: maximal ratio of jitkit's time to the reference's.
        least: minimal ratio of model FLOP/s to those of the best product.
        rounds: timed rounds for the sizes full, quick and tiny; 0 skips the case.
        repeats: consecutive steps per timing.
    """

    name: str
    recipe: Recipe
    most: float
    least: float | None = None
    rounds: tuple[int, int, int] = (7, 3, 0)
    repeats: int = 1


def pictures(batch_size: int, side: int = 256, **model: Any) -> Recipe:
    """Recipe of colour images of 1,000 classes in patches of 16; by default the paper's B.

    It needs no folder, as the number of classes is given.
    """
    return load_recipe(
        {
            "name": "speed",
            "domain": {"name": "images", "size": side, "classes": 1000},
            "model": {"patch": 16} | (model or {"size": "B"}),
            "train": {"batch_size": batch_size, "lr": LR, "precision": "float32"},
        }
    )


def cases() -> list[Case]:
    """All of them, whatever the size."""
    tiny = pictures(2, 32, width=32, depth=2)
    return [
        Case("B/16, batch 2", pictures(2), 0.85, 0.86, rounds=(9, 3, 0)),
        Case("B/16, batch 8", pictures(8), 0.85, 0.86, rounds=(5, 0, 0)),
        Case("digits, batch 64", load_recipe("digits"), 0.6, rounds=(15, 5, 0), repeats=20),
        Case("tiny, batch 2", tiny, 0.85, 0.86, rounds=(0, 0, 2), repeats=2),
    ]


def both(recipe: Recipe) -> tuple[Learner, Step, Step]:
    """A step of jitkit's learner, and one of the reference from the same weights."""
    has_path = recipe.domain.name != "images"
    domain = open_domain(recipe.domain) if has_path else domain_class("images")(recipe.domain)
    learner = Learner(recipe, domain, ALONE)
    denoiser = learner.denoiser
    reference.randomise(denoiser.network)
    x, label = made(learner)
    training = reference.Training(reference.like(denoiser), lr=LR, decays=recipe.train.ema)
    batch = Batch(x, cond={"label": label})
    denoiser.train()

    def ours() -> None:
        if why := learner.train_step(iter([batch]), lambda part: 0).skip_reason:
            raise JitkitError(f"a step was skipped ({why}), so its time is meaningless")

    return learner, ours, lambda: training.step(x, label)


def made(learner: Learner) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise, (B, C, X1, X2), and labels, (B,)."""
    layout, n = learner.denoiser.layout, learner.recipe.train.batch_size
    label = learner.denoiser.conditions["label"]
    assert isinstance(label, Category)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, len(layout.channels), *layout.grid, generator=rng)
    return x, torch.randint(label.n, (n,), generator=rng)


def measure(case: Case, plan: Plan) -> dict[str, Any]:
    """Results of one case: seconds, ratios, FLOP/s."""
    shapes = plan.pick(SHAPES, SHAPES, FEW)
    learner, ours, theirs = both(case.recipe)
    took = interleaved(
        {"jitkit": ours, "reference": theirs} | products(shapes),
        rounds=plan.pick(*case.rounds),
        repeats={"jitkit": case.repeats, "reference": case.repeats},
    )
    over, scatter = ratio(took["jitkit"], took["reference"])
    flops = 3 * 2 * macs(learner.denoiser.network) * case.recipe.train.batch_size
    best, other = best_flops(took, shapes), best_flops(took, shapes, "kernels.linear")
    moved = bytes_a_weight() * sum(p.numel() for p in learner.denoiser.network.parameters())
    return {
        "bytes_of_weights": moved,
        "seconds": {name: timing.median for name, timing in took.items()},
        "spread": {name: timing.spread for name, timing in took.items()},
        "ratio": over,
        "ratio_spread": scatter,
        "flops": flops,
        "flops_per_second": flops / took["jitkit"].median,
        "reference_flops_per_second": flops / took["reference"].median,
        "best_product_flops_per_second": best,
        "other_product_flops_per_second": other,
        "utilisation": flops / took["jitkit"].median / best,
        "utilisation_of_other": flops / took["jitkit"].median / other,
        "reference_utilisation": flops / took["reference"].median / best,
    }


def run(plan: Plan) -> Result:
    """All cases of the plan's size."""
    result = Result("step")
    rows: list[list[object]] = []
    for case in cases():
        if not plan.pick(*case.rounds):
            continue
        found = result.numbers[case.name] = measure(case, plan)
        gc.collect()  # frees gigabytes of the last model
        rows.append(_row(case.name, found))
        result.demands.append(Demand(f"{case.name}, over the reference", found["ratio"], case.most))
        if case.least is not None:
            what = f"{case.name}, MFU against the best torch.mm"
            result.demands.append(Demand(what, found["utilisation"], case.least, "at least"))
    head = ["case", "jitkit", "spread", "reference", "spread", "ratio", "spread"]
    head += ["model GFLOP/s", "best torch.mm GFLOP/s", "MFU", "reference's MFU"]
    head += ["best cpu_kernels GFLOP/s", "MFU against it"]
    title = f"A training step, float32, threads of torch: {plan.threads} (medians)"
    result.tables.append(Table(title, head, rows))
    copy = result.numbers["copy_bytes_per_second"] = copy_rate(plan.pick(512, 512, 1) * MIB)
    for name, found in result.numbers.items():
        if isinstance(found, dict):
            moved = found["bytes_of_weights"]
            result.notes.append(
                f"{name}: {moved / 1e9:.3g} GB of memory traffic for the weights alone, "
                f"{milliseconds(moved / copy)} at a copy's {copy / 1e9:.3g} GB/s."
            )
    return result


def _row(name: str, found: dict[str, Any]) -> list[object]:
    row: list[object] = [name]
    for who in ("jitkit", "reference"):
        row += [milliseconds(found["seconds"][who]), percent(found["spread"][who])]
    row += [f"{found['ratio']:.3f}", percent(found["ratio_spread"])]
    rates = (found["flops_per_second"], found["best_product_flops_per_second"])
    row += [f"{rate / 1e9:.1f}" for rate in rates]
    row += [percent(found["utilisation"]), percent(found["reference_utilisation"])]
    other, share = found["other_product_flops_per_second"], found["utilisation_of_other"]
    return [*row, f"{other / 1e9:.1f}", percent(share)]
