"""Samples against real items: each of the domain's measures with its interval and its floor."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jitkit.denoiser import Denoiser
from jitkit.domain import Measure
from jitkit.errors import JitkitError
from jitkit.generate import conditions_for, generate
from jitkit.progress import say
from jitkit.run import write_text
from jitkit.sections import EvaluateSection, SampleSection

RESAMPLES = 40
REFERENCE = 10_000  # real items that samples are compared with, at most


def evaluate(
    denoiser: Denoiser, sampling: SampleSection, section: EvaluateSection, folder: Path
) -> dict[str, Any]:
    """Draw samples, score them, print a table and write ``evaluation.json`` into the run.

    Each score stands beside the same measure of held-out real items, which is its floor, and with
    an interval that holds 95 % of its values over bootstrap resamples of the samples.

    Raises:
        JitkitError: the domain has no measures.
    """
    domain = denoiser.domain
    measures = domain.scores()
    if not measures:
        raise JitkitError(f"domain {type(domain).__name__} has no measures to score samples with")
    began = time.monotonic()
    n = section.samples
    settings = sampling.model_copy(update={"seed": section.seed})
    samples = list(generate(denoiser, n, conditions_for(denoiser, n), settings, progress=True))
    seconds = time.monotonic() - began
    train, held_out = domain.items("train"), domain.items("val")
    reference = [train[i] for i in range(min(len(train), REFERENCE))]
    floor = [held_out[i] for i in range(min(len(held_out), REFERENCE))]
    table = {name: _score(m, samples, reference, floor) for name, m in measures.items()}
    result = {
        "scores": table,
        "samples": n,
        "held_out": len(floor),
        "seconds": round(seconds, 1),
        "sample": settings.model_dump(mode="json"),
    }
    write_text(folder / "evaluation.json", json.dumps(result, indent=1))
    say(f"{n} samples in {seconds:.0f} s, beside {len(floor)} held-out items:")
    for name, row in table.items():
        low, high = row["interval"]
        say(f"  {name}: {row['value']:.4f} ({low:.4f} to {high:.4f}); held out {row['floor']:.4f}")
    return result


def _score(
    measure: Measure, samples: Sequence[Any], reference: Sequence[Any], floor: Sequence[Any]
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    n = len(samples)
    again = [
        measure([samples[i] for i in rng.integers(n, size=n)], reference) for _ in range(RESAMPLES)
    ]
    return {
        "value": measure(samples, reference),
        "interval": [float(q) for q in np.quantile(again, [0.025, 0.975])],
        "floor": measure(floor, reference) if floor else None,
    }
