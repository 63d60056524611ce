"""Image models: trained from a recipe by jitkit, sampled and scored."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import jitkit
from benchmarks.paper.changes import CHANGES
from benchmarks.paper.features import features, frechet_with_deviation
from benchmarks.paper.pictures import PictureSet
from jitkit.data import evenly_spaced
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Split
from jitkit.domains.images.files import ImageItem
from jitkit.metrics.frechet import frechet_distance
from jitkit.nn.flops import macs
from jitkit.recipe.load import Recipe, dump_recipe, load_recipe
from jitkit.registry import open_domain
from jitkit.runs import checkpoint
from jitkit.runs.run_dir import locked
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.training.trainer import Trainer
from jitkit.utils.signals import catch_signals

RECIPES = Path(__file__).parents[2] / "recipes" / "paper"
SMALL = "patch3"  # the recipe of small patches, which takes photographs
SHOWN = 16  # samples that are kept for pictures
SPLITS: tuple[Split, Split] = ("train", "val")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True)
class Training:
    """One image model.

    Attributes:
        label: on pages, the same for all seeds.
        recipe: name of a file in ``recipes/paper/``.
        overrides: applied to it.
        change: key of `CHANGES`; None for jitkit's own model.
    """

    label: str
    recipe: str
    overrides: tuple[str, ...] = ()
    change: str | None = None

    @cached_property
    def resolved(self) -> Recipe:
        """The recipe with every key."""
        return load_recipe(RECIPES / f"{self.recipe}.yaml", self.overrides)

    @property
    def folder(self) -> str:
        """Name of its folder, unique for each recipe and change."""
        text = f"{dump_recipe(self.resolved)}{self.change}"
        return f"{self.recipe}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def do(self, place: Path) -> dict[str, Any]:
        """Train, sample and score; ``shown.npz`` has some samples and some real images."""
        before = checkpoint.newest(place / "run")
        steps = self.resolved.train.steps - (before.step if before else 0)
        began = time.monotonic()
        run = self._train(place / "run")
        milliseconds = (time.monotonic() - began) / max(steps, 1) * 1e3
        denoiser = jitkit.load(run)
        if self.change:
            CHANGES[self.change](denoiser)
        train, val = (_pixels(denoiser.domain.items(split)) for split in SPLITS)
        samples = self._samples(denoiser)
        np.savez(place / "shown.npz", samples=_some(samples), real=_some(train))
        reference = features(train)
        distance, deviation = frechet_with_deviation(features(samples), reference)
        found = {
            "frechet": distance,
            "frechet_deviation": deviation,
            "floor": frechet_distance(features(val), reference),
            "step_milliseconds": milliseconds,
            "steps": self.resolved.train.steps,
            "parameters": sum(p.numel() for p in denoiser.network.parameters()),
            "gmacs": macs(denoiser.network) / 1e9,
        }
        shutil.rmtree(run / "checkpoints")  # tens of megabytes of each of a hundred models
        return found

    def _train(self, run: Path) -> Path:
        if self.change is None:
            return jitkit.train(self.resolved, run=run)
        with locked(run):
            trainer = Trainer(self.resolved, open_domain(self.resolved.domain), run)
            CHANGES[self.change](trainer.denoiser)
            trainer.start(checkpoint.newest(run))
            with catch_signals() as stop:
                trainer.loop(stop)
        return run

    def _samples(self, denoiser: Denoiser) -> Pixels:
        """Samples with the conditions of real images, (N, H, W, 3) uint8."""
        n, section = self.resolved.evaluate.samples, self.resolved.sample
        items = denoiser.domain.items("train")
        conditioning = conditioning_for(denoiser, n, source=("train", evenly_spaced(len(items), n)))
        return np.stack([item.pixels for item in sample_items(denoiser, n, conditioning, section)])


def _pixels(items: Sequence[ImageItem]) -> Pixels:
    """All images of a split, (N, H, W, 3)."""
    return np.stack([items[i].pixels for i in range(len(items))])


def _some(pictures: Pixels) -> Pixels:
    return pictures[evenly_spaced(len(pictures), SHOWN)]


@dataclass(frozen=True)
class Setup:
    """Settings shared by all trainings of a command.

    Attributes:
        pictures: the training images.
        seeds: models of each kind.
        overrides: applied to every recipe.
    """

    pictures: PictureSet
    seeds: int
    overrides: tuple[str, ...] = ()

    def trainings(
        self, label: str, recipe: str, overrides: Sequence[str] = (), change: str | None = None
    ) -> list[Training]:
        """One model for each seed."""
        asked = (*overrides, *self.overrides)
        size = load_recipe(RECIPES / f"{recipe}.yaml", asked).domain.model_dump()["size"]
        folder = self.pictures.sized(size, photographs=recipe == SMALL)
        path = f"domain.path={json.dumps(str(folder))}"
        return [
            Training(label, recipe, (*asked, path, f"train.seed={seed}"), change)
            for seed in range(self.seeds)
        ]
