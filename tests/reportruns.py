"""Runs for the tests of reports: folders as `jitkit train` writes them, with known metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jitkit.recipe.load import dump_recipe, load_recipe

GUIDANCE = [1.0, 1.5, 2.0, 2.5]
SCORES: dict[str, Any] = {
    "model": {"step": 400, "ema": "0.99"},
    "scores": {
        "frechet_pixels": {
            "value": 0.25,
            "interval": [0.2, 0.3],
            "floor": 0.34,
            "best": "low",
            "unit": "ink²",
            "by_seed": [0.24, 0.26],
            "interval_over_seeds": [0.15, 0.35],
            "baselines": {"climatology": {"value": 0.5, "interval": [0.45, 0.55]}},
        },
        "label_agreement": {"value": None, "interval": [None, None], "floor": None},
    },
    "samples": 1000,
    "held_out": 297,
    "seconds": 12.5,
    "sample": {"method": "heun", "steps": 20, "guidance": 1.5},
    "protocol": {"name": "jit", "departures": ["1000 samples, not 50000"]},
    "notes": ["FID was not computed: it needs weights."],
}


def make_run(
    folder: Path, overrides: Mapping[str, Any] | None = None, *, steps: int = 400, seed: int = 0
) -> Path:
    """A run of the recipe `digits`: losses that fall like 1 / step, and noise as images."""
    rng = np.random.default_rng(seed)
    (folder / "samples").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("digits", overrides or {})))
    versions, machine = {"python": "3.11.7", "torch": "2.9.0"}, {"processor": "a CPU", "cores": 2}
    started = {"started": "2026-01-02T03:04:05+00:00", "commit": "abc1234"}
    write_json(folder / "environment.json", {**started, "versions": versions, "machine": machine})
    write_json(folder / "status.json", {"state": "done", "step": steps, "steps": steps})
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = (1 + 10 / step) * rng.lognormal(sigma=0.1)
            line: dict[str, Any] = {
                "step": step,
                "lr": 1e-3 * min(1, step / 50),
                "loss": loss,
                "gradient": 2 * loss,
            }
            line["loss_bins"] = [loss * (k + 1) if rng.random() > 0.3 else None for k in range(10)]
            if step % 50 == 0:
                line["val_loss"] = 1 + abs(step - 300) / 100
                line["val_loss_bins"] = [line["val_loss"] * 1.5**k for k in range(10)]
            file.write(json.dumps(line) + "\n")
    speeds = {"samples_per_second": 500.0, "peak_share": None, "waiting_share": 0.02}
    lines = [json.dumps({"step": step} | speeds) + "\n" for step in range(20, steps, 20)]
    (folder / "speed.jsonl").write_text("".join(lines))
    for step in range(0, steps + 1, 100):
        pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((360, 240), 0).save(folder / "samples" / f"step-{step}.png")
    return folder


def write_scores(run: Path) -> None:
    """An evaluation with everything that it may contain, and a figure."""
    shutil.copy(run / "samples" / "step-0.png", run / "spectra-of-ink.png")
    write_json(run / "evaluation.json", SCORES | {"pictures": ["spectra-of-ink.png"]})


def write_sweep(run: Path, name: str, axes: Mapping[str, Sequence[Any]], done: int = 1000) -> None:
    """A sweep whose score is least at guidance 2, and the first of every other axis."""
    points = []
    for values in product(*axes.values()):
        setting = dict(zip(axes, values, strict=True))
        others = sum(values.index(setting[axis]) for axis, values in list(axes.items())[1:])
        score = 3 + (setting["sample.guidance"] - 2) ** 2 + others
        row = {"value": score, "interval": [score - 0.1, score + 0.1], "best": "low"}
        points.append({"set": setting, "scores": {"fid": row}})
    sweep: dict[str, Any] = {"axes": dict(axes), "samples": 800, "by": "fid"}
    sweep["points"] = points[:done]
    if done >= len(points):
        best = min(points, key=lambda point: point["scores"]["fid"]["value"])
        ties = [points[0]["set"]]
        row = best["scores"]["fid"]
        sweep["best"] = {"set": best["set"], **row, "wins": 0.8, "tied_with": ties}
        sweep["best"]["at_edge"] = ["ema"]
    (run / "sweeps" / name).mkdir(parents=True)
    write_json(run / "sweeps" / name / "sweep.json", sweep)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
