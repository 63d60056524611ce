"""Scores of a run under many settings for samples, the best of them, and how sure that is.

Every setting is scored on samples from the same noise and on the same random halves of them, so
that the difference of two settings scatters less than either score. What was scored is kept, a file
for each setting, under the contents of all that it hangs on: a sweep that was killed goes on with
the settings that are left, and a finer one takes over what an earlier one found.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.errors import RecipeError, listed, nearest
from jitkit.evaluation import sweep_axes
from jitkit.evaluation.evaluate import (
    Evaluator,
    cells,
    open_evaluator,
    protocol_of,
    steady,
    under_protocol,
)
from jitkit.evaluation.scoring import number
from jitkit.evaluation.select import select_best
from jitkit.evaluation.sweep_plot import draw
from jitkit.recipe.load import Recipe
from jitkit.runs import defaults
from jitkit.runs.checkpoint import Checkpoint, mean_named
from jitkit.runs.defaults import Overrides
from jitkit.runs.load import folder_of, found_in, ready, settings
from jitkit.runs.run_dir import write_text
from jitkit.sampling.generate import guide_of
from jitkit.sections import EvaluateSection, SampleSection
from jitkit.utils.distributed import Team, team

SWEEP_FORMAT = 1


def sweep(
    run: str | Path,
    words: Sequence[str],
    overrides: Overrides = (),
    *,
    ema: float | str | None = None,
    samples: int | None = None,
    by: str | None = None,
    domain: Domain | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score every setting, choose the best, and make it the run's default (`best.yaml`).

    Table and picture are in the returned ``folder``, ``sweeps/NAME`` of the run (docs/evaluate.md).
    The base is the run's recipe with ``overrides``; what an earlier sweep chose does not count.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        words: swept keys with their values, as `sweep_axes.axes_of` reads them.
        overrides: keys of sample, evaluate and domain, laid over the run's recipe.
        ema: the mean of the weights, where it is not swept.
        samples: how many for each setting, in place of ``evaluate.samples``.
        by: the score that chooses; the first whose lowest value is the best where not given.
        domain: the adapter, where the model was trained with one that was given in Python.
        tell: called with a line for each setting.

    Raises:
        RecipeError: a key or value that cannot be meant, or no such score.
        JitkitError: as `trained.evaluate`.
    """
    axes = sweep_axes.axes_of(words)
    found = found_in(run, domain)
    recipes = _recipes(found, axes, overrides, ema, domain)
    with team() as ours:
        made = _Sweep(found, axes, recipes, samples, by, ours, domain)
        result = made.run(tell)
        if ours.is_main:
            kept = made.asked(overrides)
            about = {"by": result["by"], "step": found.step, "from": f"sweeps/{made.name}"}
            default = defaults.write_best(made.folder, kept | result["best"]["set"], about)
            result |= {"folder": str(made.place), "default": str(default)}
        return dict(ours.all_gather(result)[0])


def sweep_table(result: Mapping[str, Any]) -> str:
    """What `sweep` found: a line for each setting, and the best in words."""
    by, best_set = result["by"], result["best"]["set"]
    heads = [
        *(key.removeprefix("sample.") for key in result["axes"]),
        by,
        "95 % interval",
        "best in",
    ]
    rows = [heads]
    for point in result["points"]:
        score = point["scores"][by]
        value, reach, _ = cells(score)
        wins = "" if point["wins"] is None else f"{100 * point['wins']:.0f} %"
        mark = " <- best" if point["set"] == best_set else " ~" if point["tied"] else ""
        rows.append([*map(str, point["set"].values()), value, reach, wins + mark])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([f"{len(result['points'])} settings, {result['samples']} samples each:",
                      *lines, *_verdict(result)])  # fmt: skip


def _verdict(result: Mapping[str, Any]) -> list[str]:
    best = result["best"]
    lines = [f"best by {result['by']}: {sweep_axes.in_words(best['set'])}"]
    if best["tied_with"]:
        others = "; ".join(sweep_axes.in_words(each) for each in best["tied_with"][:6])
        more = len(best["tied_with"]) - 6
        lines.append(f"no worse within the noise (~): {others}" + (f"; {more} more" * (more > 0)))
    if best["at_edge"]:
        lines.append(f"the best lies at an end of {', '.join(best['at_edge'])}: sweep further")
    return lines


def _recipes(
    found: Checkpoint,
    axes: sweep_axes.SweepAxes,
    overrides: Overrides,
    ema: float | str | None,
    domain: Domain | None,
) -> list[tuple[dict[str, Any], Recipe, str]]:
    """Each setting with its recipe and its mean of the weights; all mistakes are found here."""
    if ema is not None and "ema" in axes:
        raise RecipeError("--ema and --sweep ema: give one of them")
    folder, plain = folder_of(found.path), [overrides] if isinstance(overrides, str) else overrides
    named = defaults.named(overrides)
    if twice := [key for key in axes if key in named]:
        raise RecipeError(f"{twice[0]} is swept and overridden; give one of them")
    recipes = []
    for setting in sweep_axes.points(axes):
        keys = {key: value for key, value in setting.items() if key != "ema"}
        if isinstance(plain, Mapping):
            recipe = settings(folder, {**plain, **keys}, domain)
        else:
            more = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
            recipe = settings(folder, [*plain, *more], domain)
        recipes.append((setting, recipe, mean_named(found, setting.get("ema", ema))))
    return recipes


@dataclass
class _Opened:
    """A model that is ready.

    Attributes:
        name: the mean of the weights, or where a guide is to be found.
        denoiser: the model.
        key: what tells it from all others.
    """

    name: str
    denoiser: Denoiser
    key: str


class _Sweep:
    """One sweep of a run; every process of a team goes through it, and rank 0 writes."""

    def __init__(
        self,
        found: Checkpoint,
        axes: sweep_axes.SweepAxes,
        recipes: Sequence[tuple[dict[str, Any], Recipe, str]],
        samples: int | None,
        by: str | None,
        ours: Team,
        domain: Domain | None,
    ) -> None:
        self.found, self.axes, self.recipes, self.by = found, axes, recipes, by
        self.team, self.domain, self.samples = ours, domain, samples
        self.folder = folder_of(found.path)
        short = "-".join(re.sub(r"\W+", "_", key.removeprefix("sample.")) for key in axes)
        base = recipes[0][1].model_dump(mode="json")
        asked = [base["sample"], base["evaluate"], axes, samples, recipes[0][2]]
        self.name = f"step-{found.step}-{short}-{_hash(asked)[:6]}"
        self.place = self.folder / "sweeps" / self.name
        self._opened: _Opened | None = None
        self._guiding: _Opened | None = None
        self._batch_size: int | None = None
        self._began = time.monotonic()

    def asked(self, overrides: Overrides) -> dict[str, Any]:
        """Overridden keys of section ``sample`` that change samples, with their values."""
        section = self.recipes[0][1].sample.model_dump(mode="json")
        keys = defaults.named(overrides)
        names = [key.removeprefix("sample.") for key in keys if key.startswith("sample.")]
        return {f"sample.{name}": section[name] for name in names if name not in sweep_axes.FIXED}

    def run(self, tell: Callable[[str], None]) -> dict[str, Any]:
        """Every point, from its file or scored now, and the best of them."""
        points: list[dict[str, Any]] = []
        judge: Evaluator | None = None
        self._batch_size = self._begun_with()
        for setting, recipe, mean in self.recipes:
            model = self._ready(recipe, mean)
            sampling, section = under_protocol(
                protocol_of(model.denoiser.domain), recipe.sample, recipe.evaluate, self.samples
            )
            section = section.model_copy(update={"seeds": 1})
            judge = judge or open_evaluator(model.denoiser, section, self.folder, self.team)
            sampling = self._steady(model.denoiser, sampling)
            points.append(self._point(judge, model, setting, sampling, section))
            del model  # or it would be held while the next one is loaded
            if self.team.is_main:
                self._check_by(points[-1])
                self._write(self._result(points, section))
                tell(f"{len(points)}/{len(self.recipes)} {self._line(points[-1])}")
        result = self._result(points, section)
        if self.team.is_main:
            result |= select_best(points, str(self.by), self.axes, section.samples)
            self._write(result)
            draw(result, self.place / "sweep.png")
        return result

    def _ready(self, recipe: Recipe, mean: str) -> _Opened:
        """The model with a mean of the weights; loaded once for all settings that have it."""
        if self._opened is None or self._opened.name != mean:
            domain = self.domain or (self._opened.denoiser.domain if self._opened else None)
            self._opened = None  # so that two are never held
            denoiser = ready(recipe, self.found, mean, domain)
            self._opened = _Opened(mean, denoiser, _weights(denoiser))
        return self._opened

    def _begun_with(self) -> int | None:
        """The batch size that the sweep began with, if it did before."""
        path = self.place / "sweep.json"
        began = json.loads(path.read_text()) if self.team.is_main and path.is_file() else {}
        size: int | None = self.team.all_gather(began.get("batch_size"))[0]
        return size

    def _steady(self, denoiser: Denoiser, sampling: SampleSection) -> SampleSection:
        """With one batch size for all settings, as it changes the last digits of samples."""
        if sampling.batch_size is None and self._batch_size is not None:
            return sampling.model_copy(update={"batch_size": self._batch_size})
        sampling = steady(denoiser, sampling, self.team)
        self._batch_size = sampling.batch_size
        return sampling

    def _point(
        self,
        judge: Evaluator,
        model: _Opened,
        setting: Mapping[str, Any],
        sampling: SampleSection,
        section: EvaluateSection,
    ) -> dict[str, Any]:
        guide = self._guide(model.denoiser, sampling)
        guide_key = None if guide is None else guide.key
        about = [SWEEP_FORMAT, model.key, guide_key, judge.key, sampling.model_dump(mode="json")]
        about.append(section.model_dump(mode="json", exclude={"after_training", "seeds"}))
        path = self.folder / "sweeps" / "points" / f"{_hash(about)}.json"
        known = path.is_file() if self.team.is_main else False
        if self.team.all_gather(known)[0]:
            point = json.loads(path.read_text()) if self.team.is_main else {}
        else:
            began = time.monotonic()
            judged = judge(model.denoiser, sampling, None if guide is None else guide.denoiser)
            point = {
                "scores": judged.scores,
                "resampled": {k: list(map(number, v)) for k, v in judged.resampled.items()},
                "batch_size": sampling.batch_size,
                "seconds": round(time.monotonic() - began, 1),
            }
            if self.team.is_main:
                write_text(path, json.dumps(point))
        return {"set": dict(setting)} | point

    def _guide(self, denoiser: Denoiser, sampling: SampleSection) -> _Opened | None:
        """The guide of a setting; loaded once for all settings in a row that have it."""
        if sampling.autoguidance is None:
            return None
        if self._guiding is None or self._guiding.name != sampling.autoguidance:
            self._guiding = None
            guide = guide_of(denoiser, sampling)
            assert guide is not None
            self._guiding = _Opened(sampling.autoguidance, guide, _weights(guide))
        return self._guiding

    def _check_by(self, point: Mapping[str, Any]) -> None:
        """Whether there is a score to choose by; the first distance where none is asked for."""
        names = list(point["scores"])
        distances = [name for name in names if point["scores"][name].get("best") == "low"]
        self.by = self.by or [*distances, *names][0]
        if self.by not in names:
            raise RecipeError(f"--by {self.by}: no such score; {listed(names, 20)}"
                              f"{nearest(self.by, names)}")  # fmt: skip
        score = point["scores"][self.by]
        if score.get("best", "low") == "real" and score["floor"] is None:
            raise RecipeError(
                f"--by {self.by}: its best value is that of held-out items, and none are held out; "
                "choose by another score"
            )

    def _line(self, point: Mapping[str, Any]) -> str:
        value, *_ = cells(point["scores"][self.by])
        return f"{sweep_axes.in_words(point['set'])}: {self.by} {value}"

    def _result(
        self, points: Sequence[Mapping[str, Any]], section: EvaluateSection
    ) -> dict[str, Any]:
        shown = [{k: v for k, v in point.items() if k != "resampled"} for point in points]
        return {
            "format": SWEEP_FORMAT,
            "model": {"step": self.found.step},
            "axes": self.axes,
            "samples": section.samples,
            "seed": section.seed,
            "batch_size": points[-1]["batch_size"],
            "by": self.by,
            "points": [{**point, "wins": None, "tied": False} for point in shown],
            "best": None,
            "seconds": round(time.monotonic() - self._began, 1),
        }

    def _write(self, result: Mapping[str, Any]) -> None:
        write_text(self.place / "sweep.json", json.dumps(result, indent=1))


def _weights(denoiser: Denoiser) -> str:
    """A hash of a model's weights."""
    found = hashlib.blake2b(digest_size=20)
    for name, value in sorted(denoiser.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(name.encode())
        found.update(flat.numpy())
    return found.hexdigest() + str(denoiser.autocast)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
