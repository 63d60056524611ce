"""Mixed precision: bfloat16 and float16 losses follow float32, and losses stay finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jitkit.diffusion.build import choose_precision
from jitkit.training.step import LossScale
from jitkit.training.trainer import train

STEPS = 200


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def smoothed(values: list[float], window: int = 20) -> np.ndarray[Any, Any]:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Loss curves of float32 by distribution of t, filled on demand."""
    return {}


TIMES: dict[str, dict[str, Any]] = {
    "paper": {},
    "P_mean 0": {"diffusion.P_mean": 0.0},
    "uniform": {"diffusion.t_distribution": "uniform"},
}


@pytest.mark.slow
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_half_precision_loss_follows_float32(
    tiny: dict[str, Any],
    tmp_path: Path,
    float32: dict[str, list[float]],
    precision: str,
    times: str,
) -> None:
    tiny["train"] |= {"steps": STEPS, "batch_size": 16, "lr": 3e-3, "log": []}
    if times not in float32:
        float32[times] = losses(train(tiny, TIMES[times], run=tmp_path / "float32"))
    half = losses(
        train(tiny, TIMES[times] | {"train.precision": precision}, run=tmp_path / precision)
    )
    assert None not in half and None not in float32[times] and len(half) == STEPS
    # float16 skips a few of the first steps until its loss scale fits
    first = 100 if precision == "float16" else 0
    a, b = smoothed(half[first:]), smoothed(float32[times][first:])
    assert float(np.abs(a / b - 1).max()) < 0.05
    assert half[-1] < 0.7 * half[0]
    assert not np.array_equal(half, float32[times])  # the arithmetic was different


def test_a_float16_overflow_lowers_the_loss_scale_and_training_continues(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale.__init__, "__defaults__", (2.0**40,))
    settings = {"train.precision": "float16", "train.max_bad_steps": 1, "train.steps": 40}
    run = train(tiny, settings | {"train.save_every_steps": 20}, run=tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    skipped = ["overflow" in json.loads(line) for line in lines]
    assert 20 < sum(skipped) < 40 and all(skipped[:20]) and not skipped[-1]
    state = json.loads((run / "checkpoints/step-40/state.json").read_text())
    assert state["scale"][0] == 2.0 ** (40 - sum(skipped))


def test_the_requested_precision_is_used_and_reported() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float16", cpu) == (torch.float16, "float16, as requested")
    assert choose_precision("bfloat16", cpu)[0] == torch.bfloat16
    assert choose_precision("float32", cpu)[0] is None
