"""The evaluation protocol of the paper (Li & He 2025, appendix A, and the official code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitkit.fields import Category, Condition
from jitkit.metrics.fid.extractors import INCEPTION
from jitkit.metrics.metric import EvaluationProtocol

SAMPLES = 50_000
SAMPLING = {"method": "heun", "steps": 50, "time_grid": "uniform", "t_eps": None}


def jit_protocol() -> EvaluationProtocol:
    """FID-50k with 50 steps of Heun and balanced classes.

    Classifier-free guidance (CFG) and its interval are not changed, because the paper sets them
    for each model. Pixels are always rounded to 8 bits, and classes are always balanced.
    """
    return EvaluationProtocol("jit", SAMPLES, SAMPLING, _departures)


def _departures(result: Mapping[str, Any], conditions: Mapping[str, Condition]) -> list[str]:
    """Differences of an evaluation from the protocol."""
    model, reference = result["model"], result["reference"]
    n, first = result["samples"], [*model.get("means", []), None][0]
    uneven = [
        name
        for name, condition in conditions.items()
        if isinstance(condition, Category) and n % condition.n
    ]
    differences = {
        f"{n:,} samples, not {SAMPLES:,}": n != SAMPLES,
        f"{n:,} samples are not balanced over {', '.join(uneven)}": bool(uneven),
        f"EMA {model.get('ema')}, not the first, {first}": first and model.get("ema") != first,
        "guided by another model": result["sample"]["autoguidance"] is not None,
        f"features of {reference.get('extractor')}, not Inception's": reference.get("extractor")
        != INCEPTION,
        f"compared with {reference.get('items')} images, not with the statistics of the whole "
        "training set": not reference.get("whole"),
    }
    return [text for text, applies in differences.items() if applies]
