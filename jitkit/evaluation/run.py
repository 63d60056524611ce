"""Evaluate a trained run: `jitkit.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jitkit.domain import Domain, check_instance
from jitkit.evaluation.evaluate import evaluate as score
from jitkit.runs.checkpoint import mean_named
from jitkit.runs.defaults import Overrides
from jitkit.runs.load import asked, ready
from jitkit.utils.distributed import team


def evaluate(
    run: str | Path,
    overrides: Overrides = (),
    *,
    ema: float | str | None = None,
    samples: int | None = None,
    domain: Domain | None = None,
) -> dict[str, Any]:
    """Draw samples of a trained model, score them with its domain's measures, and return the
    scores, which are also in the run's ``evaluation.json``.

    Started by torchrun, all processes draw the samples together, and all get the scores.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        overrides: ``{"evaluate.samples": 500}`` or ``["sample.guidance=2"]``, laid over the run's
            recipe and the best setting that a sweep of it found: keys of sample, evaluate and
            domain.
        ema: the running mean of the weights, as in `checkpoint.load`.
        samples: how many, in place of ``evaluate.samples`` and its protocol's.
        domain: the adapter, where the model was trained with one that was given in Python.

    Raises:
        CheckpointError: there is no whole checkpoint or no such mean, or ``domain`` does not fit.
        RecipeError: an override of something else, or one that cannot be meant.
        DataError: the real items to compare with are missing.
        JitkitError: the domain has no measures.
    """
    check_instance(domain)
    found, folder, recipe, ema = asked(run, overrides, ema, domain)
    mean = mean_named(found, None) if ema is None else str(ema)
    model = {"step": found.step, "ema": mean, "means": found.means}
    with team() as ours:
        denoiser = ready(recipe, found, ema, domain)
        sections = (recipe.sample, recipe.evaluate)
        return score(denoiser, *sections, folder, model=model, samples=samples, team=ours)
