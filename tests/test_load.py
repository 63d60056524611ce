"""Trained runs: `jitkit.evaluate` scores as the command does; runs of jitkit 0.1 are opened."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result

import jitkit as api
from jitkit.recipe.renamed import DEFAULTS, RENAMED
from jitkit.runs.checkpoint import find_checkpoint


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A writable copy of the trained run."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def older_run(run: Path) -> Path:
    """The run as jitkit 0.1 wrote it: old recipe keys, and ``places`` in the model's layout."""
    older = Path(shutil.copytree(run, run.with_name("older")))
    recipe = yaml.safe_load((older / "recipe.yaml").read_text())
    for old, new in RENAMED.items():
        section, key = old.split(".")
        moved = new.startswith("domain.")
        value = DEFAULTS[key == "reference_items"] if moved else recipe[section].pop(new[7:])
        recipe[section][key] = value
    recipe["domain"].pop("fid", None)
    (older / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    for folder in (older / "checkpoints").iterdir():
        model = json.loads((folder / "model.json").read_text())
        model["layout"]["places"] = model["layout"].pop("positions")
        (folder / "model.json").write_text(json.dumps(model))
        state = json.loads((folder / "state.json").read_text())
        state["files"]["model.json"] = (folder / "model.json").stat().st_size
        (folder / "state.json").write_text(json.dumps(state))
    return older


def without_seconds(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if not key.startswith("seconds")}


def test_scores_equal_those_of_the_command_and_its_file(
    run: Path, jitkit: Callable[..., Result]
) -> None:
    overrides = {"evaluate.samples": 12, "sample.seed": 3}
    result = api.evaluate(run, overrides, ema=0.99)
    assert result == json.loads((run / "evaluation.json").read_text())
    model = result["model"]
    assert (result["samples"], model["step"], model["ema"]) == (12, 12, "0.99")
    words = [f"{key}={value}" for key, value in overrides.items()]
    answer = jitkit("evaluate", run, *words, "--ema", "0.99", "--json")
    assert answer.code == 0, answer.err
    assert without_seconds(json.loads(answer.out)) == without_seconds(result)
    again = api.evaluate(str(run), words, ema="0.99")
    assert without_seconds(again) == without_seconds(result)


def test_an_older_checkpoint_of_a_run_is_scored_with_its_parameters(run: Path) -> None:
    few = "evaluate.samples=8"
    step = api.evaluate(run / "checkpoints/step-4", few, ema="none")
    last = api.evaluate(run, few, ema="none")
    assert (step["model"]["step"], step["model"]["ema"]) == (4, "none")
    assert step["scores"] != last["scores"]


@pytest.mark.parametrize("overrides", [{"train.steps": 3}, ["domain=digits"], "model.width=8"])
def test_other_sections_of_a_trained_model_cannot_be_overridden(run: Path, overrides: Any) -> None:
    with pytest.raises(api.JitkitError, match="takes keys of domain, sample, evaluate"):
        api.evaluate(run, overrides)


IMPORT_ORDERS = """
import importlib, sys
for first in ("jitkit.training.trainer", "jitkit.evaluation.run", "jitkit"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "jitkit"]:
        del sys.modules[name]
    importlib.import_module(first)
    import jitkit, jitkit.evaluation.evaluate
    from jitkit.evaluation.evaluate import score_table
    assert jitkit.evaluate.__module__ == "jitkit.evaluation.run", first
    assert callable(jitkit.evaluate)
    from jitkit import evaluate
    assert evaluate is jitkit.evaluate
"""


def test_modules_named_evaluate_do_not_hide_the_function() -> None:
    subprocess.run([sys.executable, "-c", IMPORT_ORDERS], check=True)


# Runs of jitkit 0.1, whose recipe keys and layout have other names


def test_an_older_run_is_loaded_and_gives_the_same_samples(
    run: Path, older_run: Path, jitkit: Callable[..., Result], tmp_path: Path
) -> None:
    text = (older_run / "recipe.yaml").read_text()
    assert all(f"  {old.partition('.')[2]}:" in text for old in RENAMED)
    assert api.load(older_run).describe() == api.load(run).describe()
    samples = []
    for folder in (run, older_run):
        out = tmp_path / f"samples-{folder.name}"
        answer = jitkit("sample", folder, "sample.time_grid=cosine", "--n", 2, "--out", out)
        assert answer.code == 0, answer.err
        samples.append([file.read_bytes() for file in sorted(out.glob("*.png"))])
    assert len(samples[0]) == 3 and samples[0] == samples[1]


def test_an_older_run_is_resumed_bit_for_bit(
    tiny: dict[str, Any], run: Path, older_run: Path
) -> None:
    for folder in (run, older_run):
        api.train(tiny, {"train.steps": 14}, run=folder)
    checkpoints = [find_checkpoint(folder) for folder in (run, older_run)]
    assert [found.step for found in checkpoints] == [14, 14]
    for name in ("model", "ema-0.2", "optimizer"):
        resumed, older = (found.tensors(name) for found in checkpoints)
        assert resumed.keys() == older.keys()
        assert all(torch.equal(resumed[key], older[key]) for key in resumed), name
    assert "time_grid" in (older_run / "recipe.yaml").read_text()


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_key_in_a_recipe_is_refused_and_the_new_one_named(
    tiny: dict[str, Any], old: str, new: str
) -> None:
    section, key = old.split(".")
    tiny[section][key] = "jit"
    with pytest.raises(api.JitkitError, match=f"{re.escape(old)}: is now {re.escape(new)}"):
        api.load_recipe(tiny)
