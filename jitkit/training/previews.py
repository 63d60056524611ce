"""Sample previews during training, and a smoke test of sampling and writing before step 1."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jitkit.domain import Domain
from jitkit.errors import JitkitError
from jitkit.recipe.load import Recipe
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection
from jitkit.training.step import Learner
from jitkit.utils.atomic import atomic_write
from jitkit.utils.console import warn
from jitkit.utils.distributed import Team


@dataclass(frozen=True)
class Previews:
    """Samples of a run's first EMA, as ``samples/step-N.png``; only rank 0 writes."""

    recipe: Recipe
    domain: Domain
    learner: Learner
    folder: Path
    team: Team

    def draw(self) -> Path | None:
        """Draw this step's preview and return its path; None if this rank wrote none."""
        items = self._items(self.recipe.train.preview_samples, self.recipe.sample, progress=True)
        if not self.team.is_main:
            return None
        path = self.folder / "samples" / f"step-{self.learner.step}.png"
        try:
            _save_png(self.domain.preview(items), path)
        except OSError as error:
            warn(f"{path} cannot be written: {error}")
            return None
        return path

    def smoke_test(self) -> None:
        """Sample from the untrained model, decode and write the samples, before step 1.

        Raises:
            JitkitError: a part of this fails, on any rank.
        """
        n = min(4, self.recipe.train.preview_samples)
        section = self.recipe.sample.model_copy(update={"steps": 2, "method": "euler"})
        failed: Exception | None = None
        try:
            items = self._items(n, section)
            if self.team.is_main:
                with tempfile.TemporaryDirectory(prefix="first-", dir=self.folder) as out:
                    self.domain.write(items, Path(out))
                _save_png(self.domain.preview(items), self.folder / "samples" / "step-0.png")
        except (JitkitError, OSError) as error:
            failed = error
        self.team.raise_together(failed)

    def _items(self, n: int, section: SampleSection, *, progress: bool = False) -> list[Any]:
        """Samples in native form; empty on ranks other than 0."""
        denoiser = self.learner.denoiser
        with self.learner.ema_weights():
            cond = conditioning_for(denoiser, n)
            samples = sample_items(denoiser, n, cond, section, progress=progress, team=self.team)
            return list(samples)


def _save_png(image: Any, path: Path) -> None:
    with atomic_write(path) as partial:
        image.save(partial, format="PNG")
