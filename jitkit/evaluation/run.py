"""Evaluate a trained run: `jitkit.evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jitkit.domain import Domain
from jitkit.evaluation.evaluate import evaluate_model
from jitkit.registry import check_instance
from jitkit.runs.checkpoint import ema_name
from jitkit.runs.defaults import Overrides
from jitkit.runs.load import load_for_sampling, resolve_run
from jitkit.utils.distributed import team


def evaluate(
    run: str | Path,
    overrides: Overrides = (),
    *,
    ema: float | str | None = None,
    samples: int | None = None,
    domain: Domain | None = None,
) -> dict[str, Any]:
    """Draw samples of a trained model, score them with its domain's metrics, and return the
    scores, which are also written to the run's ``evaluation.json``.

    Under torchrun all ranks draw samples, and all get the scores.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        overrides: ``{"evaluate.samples": 500}`` or ``["sample.guidance=2"]``, keys of sample,
            evaluate and domain; they replace those of the run's recipe and of `best.yaml`.
        ema: the EMA of the parameters, as in `checkpoint.load`.
        samples: replaces ``evaluate.samples`` and the protocol's number.
        domain: the adapter, if the model was trained with an adapter given in Python.

    Raises:
        CheckpointError: there is no whole checkpoint or no such EMA, or ``domain`` does not fit.
        RecipeError: an override of another section, or an invalid one.
        DataError: the real items to compare with are missing.
        JitkitError: the domain has no metrics.
    """
    check_instance(domain)
    checkpoint, folder, recipe, ema = resolve_run(run, overrides, ema, domain)
    used = ema_name(checkpoint, None) if ema is None else str(ema)
    model = {"step": checkpoint.step, "ema": used, "means": checkpoint.ema_names}
    with team() as ours:
        denoiser = load_for_sampling(recipe, checkpoint, ema, domain)
        sections = (recipe.sample, recipe.evaluate)
        return evaluate_model(denoiser, *sections, folder, model=model, samples=samples, team=ours)
