"""Sweeps: score a run under many sampling settings and select the best, with its uncertainty.

All settings are scored on samples from the same noise and on the same random halves of them, so
that differences vary less than scores. Each scored setting is cached in a file named by a hash of
its model, data and settings: a killed sweep resumes, and a finer one reuses earlier results.
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
    formatted_score,
    open_evaluator,
    protocol_of,
    under_protocol,
    with_fixed_batch_size,
)
from jitkit.evaluation.scoring import finite_or_none
from jitkit.evaluation.select import select_best
from jitkit.evaluation.sweep_plot import draw_sweep
from jitkit.recipe.load import Recipe
from jitkit.runs import defaults
from jitkit.runs.checkpoint import Checkpoint, ema_name
from jitkit.runs.defaults import Overrides
from jitkit.runs.load import checkpoint_with_domain, load_for_sampling, run_folder, run_recipe
from jitkit.runs.run_dir import write_text
from jitkit.sampling.generate import load_guide
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
    show: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score every setting, select the best, and make it the run's default (`best.yaml`).

    Results and plot are in the returned ``folder``, ``sweeps/NAME`` of the run (docs/evaluate.md).
    Other settings are those of the run's recipe with ``overrides``, without an earlier `best.yaml`.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        words: swept keys with their values, as `sweep_axes.axes_of` parses them.
        overrides: changes to the run's recipe, keys of sample, evaluate and domain.
        ema: the EMA of the parameters, if it is not swept.
        samples: for each setting, instead of ``evaluate.samples``.
        by: the score to select by; by default the first whose lowest value is best.
        domain: the adapter, if the model was trained with an adapter given in Python.
        show: called with a line for each setting.

    Raises:
        RecipeError: an invalid key or value, or no such score.
        JitkitError: as `evaluation.run.evaluate`.
    """
    axes = sweep_axes.axes_of(words)
    checkpoint = checkpoint_with_domain(run, domain)
    recipes = _recipes(checkpoint, axes, overrides, ema, domain)
    with team() as ours:
        job = _Sweep(checkpoint, axes, recipes, samples, by, ours, domain)
        result = job.run(show)
        if ours.is_main:
            overridden = job.overridden(overrides)
            about = {"by": result["by"], "step": checkpoint.step, "from": f"sweeps/{job.name}"}
            default = defaults.write_best(job.run_dir, overridden | result["best"]["set"], about)
            result |= {"folder": str(job.folder), "default": str(default)}
        return dict(ours.all_gather(result)[0])


def sweep_table(result: Mapping[str, Any]) -> str:
    """The result of `sweep` as text: a line for each setting, and the best one."""
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
        value, interval, _ = formatted_score(score)
        wins = "" if point["wins"] is None else f"{100 * point['wins']:.0f} %"
        mark = " <- best" if point["set"] == best_set else " ~" if point["tied"] else ""
        rows.append([*map(str, point["set"].values()), value, interval, wins + mark])
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    lines = ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([f"{len(result['points'])} settings, {result['samples']} samples each:",
                      *lines, *_verdict(result)])  # fmt: skip


def _verdict(result: Mapping[str, Any]) -> list[str]:
    best = result["best"]
    lines = [f"best by {result['by']}: {sweep_axes.format_setting(best['set'])}"]
    if best["tied_with"]:
        others = "; ".join(sweep_axes.format_setting(each) for each in best["tied_with"][:6])
        more = len(best["tied_with"]) - 6
        lines.append(f"no worse within the noise (~): {others}" + (f"; {more} more" * (more > 0)))
    if best["at_edge"]:
        lines.append(f"the best is at an end of {', '.join(best['at_edge'])}: sweep further")
    return lines


def _recipes(
    checkpoint: Checkpoint,
    axes: sweep_axes.SweepAxes,
    overrides: Overrides,
    ema: float | str | None,
    domain: Domain | None,
) -> list[tuple[dict[str, Any], Recipe, str]]:
    """Each setting with its recipe and EMA; all errors in settings are raised here."""
    if ema is not None and "ema" in axes:
        raise RecipeError("--ema and --sweep ema: give one of them")
    folder = run_folder(checkpoint.path)
    base = [overrides] if isinstance(overrides, str) else overrides
    overridden = defaults.override_keys(overrides)
    if twice := [key for key in axes if key in overridden]:
        raise RecipeError(f"{twice[0]} is swept and overridden; give one of them")
    recipes = []
    for setting in sweep_axes.points(axes):
        keys = {key: value for key, value in setting.items() if key != "ema"}
        if isinstance(base, Mapping):
            recipe = run_recipe(folder, {**base, **keys}, domain)
        else:
            more = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
            recipe = run_recipe(folder, [*base, *more], domain)
        recipes.append((setting, recipe, ema_name(checkpoint, setting.get("ema", ema))))
    return recipes


@dataclass
class _LoadedModel:
    """A loaded model.

    Attributes:
        name: name of the EMA, or path of a guide.
        denoiser: the model.
        key: a hash of its parameters.
    """

    name: str
    denoiser: Denoiser
    key: str


class _Sweep:
    """One sweep of a run, executed by all ranks; rank 0 writes."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        axes: sweep_axes.SweepAxes,
        recipes: Sequence[tuple[dict[str, Any], Recipe, str]],
        samples: int | None,
        by: str | None,
        ours: Team,
        domain: Domain | None,
    ) -> None:
        self.checkpoint, self.axes, self.recipes, self.by = checkpoint, axes, recipes, by
        self.team, self.domain, self.samples = ours, domain, samples
        self.run_dir = run_folder(checkpoint.path)
        short = "-".join(re.sub(r"\W+", "_", key.removeprefix("sample.")) for key in axes)
        base = recipes[0][1].model_dump(mode="json")
        settings = [base["sample"], base["evaluate"], axes, samples, recipes[0][2]]
        self.name = f"step-{checkpoint.step}-{short}-{_hash(settings)[:6]}"
        self.folder = self.run_dir / "sweeps" / self.name
        self._loaded: _LoadedModel | None = None
        self._loaded_guide: _LoadedModel | None = None
        self._batch_size: int | None = None
        self._began = time.monotonic()

    def overridden(self, overrides: Overrides) -> dict[str, Any]:
        """Overridden keys of section ``sample`` that change samples, with their values."""
        section = self.recipes[0][1].sample.model_dump(mode="json")
        keys = defaults.override_keys(overrides)
        names = [key.removeprefix("sample.") for key in keys if key.startswith("sample.")]
        return {f"sample.{name}": section[name] for name in names if name not in sweep_axes.FIXED}

    def run(self, show: Callable[[str], None]) -> dict[str, Any]:
        """All points, cached or scored now, and the best of them."""
        points: list[dict[str, Any]] = []
        evaluator: Evaluator | None = None
        self._batch_size = self._recorded_batch_size()
        for setting, recipe, ema in self.recipes:
            model = self._load(recipe, ema)
            sampling, section = under_protocol(
                protocol_of(model.denoiser.domain), recipe.sample, recipe.evaluate, self.samples
            )
            section = section.model_copy(update={"seeds": 1})
            if evaluator is None:
                evaluator = open_evaluator(model.denoiser, section, self.run_dir, self.team)
            sampling = self._with_batch_size(model.denoiser, sampling)
            points.append(self._point(evaluator, model, setting, sampling, section))
            del model  # frees its memory before the next one is loaded
            if self.team.is_main:
                self._check_by(points[-1])
                self._write(self._result(points, section))
                show(f"{len(points)}/{len(self.recipes)} {self._line(points[-1])}")
        result = self._result(points, section)
        if self.team.is_main:
            result |= select_best(points, str(self.by), self.axes, section.samples)
            self._write(result)
            draw_sweep(result, self.folder / "sweep.png")
        return result

    def _load(self, recipe: Recipe, ema: str) -> _LoadedModel:
        """The model with an EMA, loaded once for consecutive settings with that EMA."""
        if self._loaded is None or self._loaded.name != ema:
            domain = self.domain or (self._loaded.denoiser.domain if self._loaded else None)
            self._loaded = None  # so that memory never holds two models
            denoiser = load_for_sampling(recipe, self.checkpoint, ema, domain)
            self._loaded = _LoadedModel(ema, denoiser, _parameter_hash(denoiser))
        return self._loaded

    def _recorded_batch_size(self) -> int | None:
        """The batch size of an earlier, unfinished run of this sweep."""
        path = self.folder / "sweep.json"
        record = json.loads(path.read_text()) if self.team.is_main and path.is_file() else {}
        size: int | None = self.team.all_gather(record.get("batch_size"))[0]
        return size

    def _with_batch_size(self, denoiser: Denoiser, sampling: SampleSection) -> SampleSection:
        """One batch size for all settings, since it changes the last digits of samples."""
        if sampling.batch_size is None and self._batch_size is not None:
            return sampling.model_copy(update={"batch_size": self._batch_size})
        sampling = with_fixed_batch_size(denoiser, sampling, self.team)
        self._batch_size = sampling.batch_size
        return sampling

    def _point(
        self,
        evaluator: Evaluator,
        model: _LoadedModel,
        setting: Mapping[str, Any],
        sampling: SampleSection,
        section: EvaluateSection,
    ) -> dict[str, Any]:
        guide = self._guide(model.denoiser, sampling)
        guide_key = None if guide is None else guide.key
        sample = sampling.model_dump(mode="json")
        identity = [SWEEP_FORMAT, model.key, guide_key, evaluator.key, sample]
        identity.append(section.model_dump(mode="json", exclude={"after_training", "seeds"}))
        path = self.run_dir / "sweeps" / "points" / f"{_hash(identity)}.json"
        cached = path.is_file() if self.team.is_main else False
        if self.team.all_gather(cached)[0]:
            point = json.loads(path.read_text()) if self.team.is_main else {}
        else:
            began = time.monotonic()
            guide_model = None if guide is None else guide.denoiser
            result = evaluator(model.denoiser, sampling, guide_model)
            point = {
                "scores": result.scores,
                "resampled": {k: list(map(finite_or_none, v)) for k, v in result.resampled.items()},
                "batch_size": sampling.batch_size,
                "seconds": round(time.monotonic() - began, 1),
            }
            if self.team.is_main:
                write_text(path, json.dumps(point))
        return {"set": dict(setting)} | point

    def _guide(self, denoiser: Denoiser, sampling: SampleSection) -> _LoadedModel | None:
        """The autoguidance model of a setting, loaded once for consecutive settings with it."""
        name = sampling.autoguidance
        if name is None:
            return None
        if self._loaded_guide is None or self._loaded_guide.name != name:
            self._loaded_guide = None
            guide = load_guide(denoiser, sampling)
            assert guide is not None
            self._loaded_guide = _LoadedModel(name, guide, _parameter_hash(guide))
        return self._loaded_guide

    def _check_by(self, point: Mapping[str, Any]) -> None:
        """Check the score to select by; by default it is the first distance."""
        names = list(point["scores"])
        distances = [name for name in names if point["scores"][name].get("best") == "low"]
        self.by = self.by or [*distances, *names][0]
        if self.by not in names:
            raise RecipeError(f"--by {self.by}: no such score; {listed(names, 20)}"
                              f"{nearest(self.by, names)}")  # fmt: skip
        score = point["scores"][self.by]
        if score.get("best", "low") == "real" and score["floor"] is None:
            raise RecipeError(
                f"--by {self.by}: its best value is that of held-out items, and there are none; "
                "select by another score"
            )

    def _line(self, point: Mapping[str, Any]) -> str:
        value, *_ = formatted_score(point["scores"][self.by])
        return f"{sweep_axes.format_setting(point['set'])}: {self.by} {value}"

    def _result(
        self, points: Sequence[Mapping[str, Any]], section: EvaluateSection
    ) -> dict[str, Any]:
        shown = [{k: v for k, v in point.items() if k != "resampled"} for point in points]
        return {
            "format": SWEEP_FORMAT,
            "model": {"step": self.checkpoint.step},
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
        write_text(self.folder / "sweep.json", json.dumps(result, indent=1))


def _parameter_hash(denoiser: Denoiser) -> str:
    """A hash of a model's parameters and precision."""
    digest = hashlib.blake2b(digest_size=20)
    for name, value in sorted(denoiser.state_dict().items()):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode())
        digest.update(flat.numpy())
    return digest.hexdigest() + str(denoiser.network.autocast)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
