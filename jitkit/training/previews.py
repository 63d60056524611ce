"""Pictures of samples while a model trains, and the whole path to files before it does."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jitkit.domain import Domain
from jitkit.errors import JitkitError
from jitkit.recipe.load import Recipe
from jitkit.sampling.generate import generate
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection
from jitkit.training.step import Learner
from jitkit.utils.atomic import written_aside
from jitkit.utils.console import warn
from jitkit.utils.distributed import Team


@dataclass(frozen=True)
class Previews:
    """Samples of a run's first running mean, at ``samples/step-N.png``; rank 0 alone writes."""

    recipe: Recipe
    domain: Domain
    learner: Learner
    folder: Path
    team: Team

    def draw(self) -> Path | None:
        """A picture of this step; where it is, or None where this process has written none."""
        items = self._items(self.recipe.train.preview_samples, self.recipe.sample, progress=True)
        if not self.team.is_main:
            return None
        path = self.folder / "samples" / f"step-{self.learner.step}.png"
        try:
            _save_picture(self.domain.preview(items), path)
        except OSError as error:
            warn(f"{path} cannot be written: {error}")
            return None
        return path

    def try_whole_path(self) -> None:
        """A few samples of the untrained model through the whole path to files, before step 1.

        Raises:
            JitkitError: something on it does not work, in this process or another.
        """
        n = min(4, self.recipe.train.preview_samples)
        quick = self.recipe.sample.model_copy(update={"steps": 2, "method": "euler"})
        failed: Exception | None = None
        try:
            items = self._items(n, quick)
            if self.team.is_main:
                with tempfile.TemporaryDirectory(prefix="first-", dir=self.folder) as out:
                    self.domain.write(items, Path(out))
                _save_picture(self.domain.preview(items), self.folder / "samples" / "step-0.png")
        except (JitkitError, OSError) as error:
            failed = error
        self.team.raise_together(failed)

    def _items(self, n: int, section: SampleSection, *, progress: bool = False) -> list[Any]:
        """Samples in native form; none but in rank 0."""
        denoiser = self.learner.denoiser
        with self.learner.means():
            cond = conditioning_for(denoiser, n)
            made = generate(denoiser, n, cond, section, progress=progress, team=self.team)
            return list(made)


def _save_picture(picture: Any, path: Path) -> None:
    with written_aside(path) as aside:
        picture.save(aside, format="PNG")
