"""The evaluation protocol of the paper (Li & He 2025, appendix A, and the official code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jitkit.fields import Category, Condition
from jitkit.metrics.fid.extractors import INCEPTION
from jitkit.protocols import EvaluationProtocol

SAMPLES = 50_000
SAMPLING = {"method": "heun", "steps": 50, "time_grid": "uniform", "t_eps": None}


def jit_protocol() -> EvaluationProtocol:
    """FID-50k with 50 steps of Heun and balanced classes.

    Classifier-free guidance and its interval stay as they are, as the paper chooses them for each
    model. Pixels are rounded to 8 bits and classes taken in equal runs whatever is asked.
    """
    return EvaluationProtocol("jit", SAMPLES, SAMPLING, _departures)


def _departures(result: Mapping[str, Any], conditions: Mapping[str, Condition]) -> list[str]:
    """Where an evaluation differs from the protocol after all."""
    model, reference = result["model"], result["reference"]
    n, first = result["samples"], [*model.get("means", []), None][0]
    uneven = [
        name
        for name, condition in conditions.items()
        if isinstance(condition, Category) and n % condition.n
    ]
    found = {
        f"{n:,} samples, not {SAMPLES:,}": n != SAMPLES,
        f"{n:,} samples are not equally many of each {', '.join(uneven)}": bool(uneven),
        f"EMA {model.get('ema')}, not the first, {first}": first and model.get("ema") != first,
        "guided by another model": result["sample"]["autoguidance"] is not None,
        f"features of {reference.get('extractor')}, not Inception's": reference.get("extractor")
        != INCEPTION,
        f"compared with {reference.get('items')} images, not with the statistics of the whole "
        "training set": not reference.get("whole"),
    }
    return [text for text, is_so in found.items() if is_so]
