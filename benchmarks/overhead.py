"""Overhead of the trainer: a step of a run against a bare step of the same model on the same data.

    python -m benchmarks.overhead [--size digits|B] [--rounds 20] [--cpu-time]

``--cpu-time`` measures CPU time with one thread, which depends less on machine load.

The bare step reads a batch and does forward, backward and AdamW. The trainer's step also draws
noise that does not depend on how the batch is split, computes the norm of the gradient and checks
that it is finite, updates two EMAs, logs metrics to files and TensorBoard, and checks for signals.
Both alternate in one process, so that other load on the machine affects both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch

import torch  # noqa: E402

from jitkit.data import BatchPlan, batches  # noqa: E402
from jitkit.diffusion.flow import logit_normal_t  # noqa: E402
from jitkit.nn.conditioning import drop  # noqa: E402
from jitkit.optim.optimizers import adamw  # noqa: E402
from jitkit.recipe.load import Recipe, load_recipe  # noqa: E402
from jitkit.registry import open_domain  # noqa: E402
from jitkit.runs.run_dir import environment, locked  # noqa: E402
from jitkit.training.step import Learner  # noqa: E402
from jitkit.training.trainer import Trainer  # noqa: E402
from jitkit.utils.distributed import ALONE  # noqa: E402
from jitkit.utils.signals import Stop  # noqa: E402

QUIET = {"save_every_steps": 10**9, "preview_every_steps": 10**9, "validate_every_steps": 10**9}
SIZES: dict[str, dict[str, Any]] = {
    "digits": {},
    "B": {"model.size": "B", "model.patch": 1, "train.batch_size": 32},
}
CHUNK = {"digits": 40, "B": 1}  # consecutive steps per timing


def chosen(size: str) -> Recipe:
    """Digits in the recipe's model, or in JiT-B: 32 of 64 tokens, as many as 8 images of B/16."""
    overrides = {f"train.{key}": value for key, value in QUIET.items()} | SIZES[size]
    if size == "B":
        overrides |= {"model.width": None, "model.depth": None, "model.heads": None}
    return load_recipe("digits", overrides | {"train.steps": 10**8})


def bare(recipe: Recipe) -> Callable[[], None]:
    """A bare training step."""
    domain = open_domain(recipe.domain)
    learner = Learner(recipe, domain, ALONE)  # only its model is used
    denoiser = learner.denoiser.train()
    section = recipe.train
    optimizer = adamw(denoiser.network, betas=section.betas, weight_decay=section.weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    items = domain.items("train")
    plan = BatchPlan(len(items), section.batch_size, section.seed, 0, 10**8)
    read = batches(domain, items, plan)

    def step() -> None:
        batch = next(read)
        n = len(batch.x)
        t = logit_normal_t(n, P_mean=-0.8, P_std=0.8)
        cond = drop(denoiser.conditions, batch.cond, {k: torch.rand(n) for k in batch.cond})
        losses = denoiser.losses(
            batch.x, torch.randn_like(batch.x), t, replace(batch.conditioning, cond=cond)
        )
        torch.autograd.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()

    return step


def engine(recipe: Recipe, folder: Path) -> Callable[[], object]:
    """A step of a run, as in the trainer's loop."""
    trainer = Trainer(recipe, open_domain(recipe.domain), folder)
    trainer.start(None)
    steps = trainer.steps(Stop())
    return lambda: next(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="digits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.cpu_time:
        torch.set_num_threads(1)
    recipe = chosen(options.size)
    with tempfile.TemporaryDirectory() as place, locked(Path(place) / "run"):
        takers: dict[str, Callable[[], object]] = {
            "bare": bare(recipe),
            "engine": engine(recipe, Path(place) / "run"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in takers}
        for turn in range(options.rounds + 1):
            for name, step in takers.items():
                began = clock()
                for _ in range(CHUNK[options.size]):
                    step()
                if turn:  # the first is a warm-up
                    seconds[name].append((clock() - began) / CHUNK[options.size])
    a, b = (statistics.median(seconds[name]) for name in ("bare", "engine"))
    ratios = [two / one for one, two in zip(seconds["bare"], seconds["engine"], strict=True)]
    where = environment()
    print(f"{where['machine']['processor']}, {torch.get_num_threads()} threads, {where['commit']}")
    print(f"{options.size}: bare {1e3 * a:.2f} ms, engine {1e3 * b:.2f} ms a step (medians)")
    print(f"overhead {100 * (statistics.median(ratios) - 1):.1f} % (median of paired turns)")


if __name__ == "__main__":
    main()
