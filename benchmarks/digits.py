"""Quality and training time of the digits recipe: trains it and scores samples.

    python -m benchmarks.digits [--seeds 3] [section.key=value ...]

100 guided samples of each class, beside the 297 held-out digits. Requirements on two cores: under 3
minutes of training; a 3-nearest-neighbour classifier of the 1,500 training digits recognises the
conditioning class of at least 98 %; the mean distance to the nearest training digit is 0.8 to 1.2
times that of held-out digits (lower means copies, higher poor samples); the Fréchet distance of
pixels is at most that of the held-out digits.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch

import jitkit  # noqa: E402
from jitkit.evaluation.evaluate import evaluate_model  # noqa: E402

MOST_SECONDS = 180
LEAST_AGREEMENT = 0.98
DISTANCE = (0.8, 1.2)


def measure(overrides: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Train and score once; ``met`` is whether all requirements are met."""
    settings = ["evaluate.samples=1000", "evaluate.after_training=false", f"train.seed={seed}"]
    recipe = jitkit.load_recipe("digits", [*settings, *overrides])
    began = time.monotonic()
    run = jitkit.train(recipe, run=folder / f"seed-{seed}")
    seconds = time.monotonic() - began  # includes building the model, previews and checkpoints
    result = evaluate_model(jitkit.load(run), recipe.sample, recipe.evaluate, run)
    scores = result["scores"]
    agreement, nearest, frechet = (
        scores[name] for name in ("label_agreement", "nearest_distance", "frechet_pixels")
    )
    ratio = nearest["value"] / nearest["floor"]
    row = {
        "seed": seed,
        "training seconds": round(seconds, 1),
        "sampling seconds": result["seconds"],
        "agreement": agreement["value"],
        "distance ratio": ratio,
        "frechet": frechet["value"],
        "held-out frechet": frechet["floor"],
    }
    row["met"] = (
        seconds < MOST_SECONDS
        and row["agreement"] >= LEAST_AGREEMENT
        and DISTANCE[0] <= ratio <= DISTANCE[1]
        and row["frechet"] <= row["held-out frechet"]
    )
    return row


def main() -> None:
    """Print a line for each seed; exit code 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(arguments.overrides, seed, Path(folder)) for seed in range(arguments.seeds)]
    for row in rows:
        print(json.dumps(row))
    raise SystemExit(not all(row["met"] for row in rows))


if __name__ == "__main__":
    main()
