"""Samples against real items: each of the domain's measures with its interval and its floor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from jitkit.denoiser import Denoiser
from jitkit.domain import Domain, Measure, Split
from jitkit.errors import BadItem, JitkitError
from jitkit.generate import conditions_for, generate
from jitkit.parallel import ALONE, Team
from jitkit.run import write_text
from jitkit.sections import EvaluateSection, SampleSection

RESAMPLES = 40
REFERENCE = 10_000  # real items that samples are compared with, at most


def evaluate(
    denoiser: Denoiser,
    sampling: SampleSection,
    section: EvaluateSection,
    folder: Path,
    *,
    model: Mapping[str, Any] | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Draw samples, score them and write ``evaluation.json`` into the run.

    Each score stands beside the same measure of held-out real items, which is its floor, and with
    an interval of 1.96 standard deviations to each side, those of the measure over bootstrap
    resamples of the samples. (Quantiles of the resamples would not do: a Fréchet distance of
    resamples, in which samples repeat, is always larger.)

    ``model`` says which step and which mean of the weights is scored, for the record. Processes of
    a team draw the samples together; rank 0 scores them, and all get the result.

    Raises:
        JitkitError: the domain has no measures.
    """
    domain = denoiser.domain
    measures = domain.scores()
    if not measures:
        raise JitkitError(f"domain {type(domain).__name__} has no measures to score samples with")
    reference, floor = _real(domain, "train"), _real(domain, "val")  # or fail before sampling
    began = time.monotonic()
    n = section.samples
    settings = sampling.model_copy(update={"seed": section.seed})
    told = conditions_for(denoiser, n)
    samples = list(generate(denoiser, n, told, settings, progress=True, team=team))
    seconds = time.monotonic() - began
    result: dict[str, Any] = {}
    if team.leads:
        result = {
            "model": dict(model or {}),
            "scores": {name: _score(m, samples, reference, floor) for name, m in measures.items()},
            "samples": n,
            "held_out": len(floor),
            "seconds": round(seconds, 1),
            "sample": settings.model_dump(mode="json"),
        }
        write_text(folder / "evaluation.json", json.dumps(result, indent=1))
    return dict(team.gathered(result)[0])


def table(result: Mapping[str, Any]) -> str:
    """What `evaluate` found, a line for each score."""
    held_out = f", beside {result['held_out']} held-out items" if result["held_out"] else ""
    lines = [f"{result['samples']} samples in {result['seconds']:.0f} s{held_out}:"]
    for name, row in result["scores"].items():
        low, high = row["interval"]
        floor = "" if row["floor"] is None else f"; held out {row['floor']:.4f}"
        reach = "" if low is None else f" ({low:.4f} to {high:.4f})"
        value = "says nothing here" if row["value"] is None else f"{row['value']:.4f}"
        lines.append(f"  {name}: {value}{reach}{floor}")
    return "\n".join(lines)


def _real(domain: Domain, split: Split) -> list[Any]:
    """Items of a split that samples are compared with, those that cannot be read left out."""
    items = domain.items(split)
    found = []
    for i in range(min(len(items), REFERENCE)):
        with suppress(BadItem):
            found.append(items[i])
    return found


def _score(
    measure: Measure, samples: Sequence[Any], reference: Sequence[Any], floor: Sequence[Any]
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = len(samples)
    again = [
        measure([samples[i] for i in rng.integers(n, size=n)], reference) for _ in range(RESAMPLES)
    ]
    value, reach = measure(samples, reference), 1.96 * float(np.std(again, ddof=1))
    return {
        "value": _number(value),
        "interval": [_number(value - reach), _number(value + reach)],
        "floor": _number(measure(floor, reference)) if floor else None,
    }


def _number(value: float) -> float | None:
    """A number as JSON knows it; None where the measure says nothing."""
    return value if isfinite(value) else None
