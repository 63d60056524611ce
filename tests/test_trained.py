"""A trained run in Python: scored as the command scores it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Answer

import jitkit as face


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to write into."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if not key.startswith("seconds")}


def test_scores_are_those_of_the_command_and_of_its_file(
    run: Path, jitkit: Callable[..., Answer]
) -> None:
    overrides = {"evaluate.samples": 12, "sample.seed": 3}
    result = face.evaluate(run, overrides, ema=0.99)
    assert result == json.loads((run / "evaluation.json").read_text())
    model = result["model"]
    assert (result["samples"], model["step"], model["ema"]) == (12, 12, "0.99")
    words = [f"{key}={value}" for key, value in overrides.items()]
    answer = jitkit("evaluate", run, *words, "--ema", "0.99", "--json")
    assert answer.code == 0, answer.err
    assert without_seconds(json.loads(answer.out)) == without_seconds(result)
    again = face.evaluate(str(run), words, ema="0.99")
    assert without_seconds(again) == without_seconds(result)


def test_a_step_of_a_run_is_scored_with_its_own_weights(run: Path) -> None:
    few = "evaluate.samples=8"
    step = face.evaluate(run / "checkpoints/step-4", few, ema="none")
    last = face.evaluate(run, few, ema="none")
    assert (step["model"]["step"], step["model"]["ema"]) == (4, "none")
    assert step["scores"] != last["scores"]


@pytest.mark.parametrize("overrides", [{"train.steps": 3}, ["domain=digits"], "model.width=8"])
def test_other_sections_of_a_trained_model_are_left_alone(run: Path, overrides: Any) -> None:
    with pytest.raises(face.JitkitError, match="takes keys of domain, sample, evaluate"):
        face.evaluate(run, overrides)


@pytest.mark.parametrize("first", ["jitkit.training.trainer", "jitkit.evaluate", "jitkit"])
def test_the_module_of_that_name_does_not_hide_the_function(first: str) -> None:
    code = (
        f"import {first}, jitkit, jitkit.evaluate\nfrom jitkit.evaluation.evaluate import table\n"
        "assert jitkit.evaluate.__module__ == 'jitkit.runs.load' and callable(jitkit.evaluate)\n"
        "from jitkit import evaluate; assert evaluate is jitkit.evaluate"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
