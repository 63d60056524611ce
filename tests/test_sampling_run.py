"""`jitkit.generate` returns what `jitkit sample` writes, with the run's own settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Result

import jitkit as api
from jitkit.domains.images import ImageItem

Command = Callable[..., Result]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def written(jitkit: Command, run: Path, *words: object) -> np.ndarray[Any, Any]:
    """Pixels of the samples that the command writes."""
    out = run / "samples" / f"out-{len(list((run / 'samples').iterdir()))}"
    result = jitkit("sample", run, *words, "--out", out)
    assert result.code == 0, result.err
    with np.load(out / "samples.npz") as file:
        return file["arr_0"]


def pixels(items: list[ImageItem]) -> np.ndarray[Any, Any]:
    return np.stack([item.pixels for item in items])


def test_generate_equals_the_files_of_the_command_before_and_after_a_sweep(
    run: Path, jitkit: Command
) -> None:
    before = pixels(api.generate(run, 4))
    np.testing.assert_array_equal(before, written(jitkit, run, "--n", 4))
    sweep = ("evaluate", run, "--samples", 8, "--sweep", "sample.guidance=3,4", "sample.steps=2")
    assert jitkit(*sweep).code == 0
    after = pixels(api.generate(run, 4))
    assert (after != before).any()
    np.testing.assert_array_equal(after, written(jitkit, run, "--n", 4))


def test_arguments_are_the_options_of_the_command(run: Path, jitkit: Command) -> None:
    words: tuple[object, ...]
    items = api.generate(run, 3, {"label": "4"}, ["sample.seed=7"], ema="none", first=2)
    assert [item.label for item in items] == [4, 4, 4]
    words = ("--n", 3, "--cond", "label=4", "sample.seed=7", "--ema", "none", "--first", 2)
    np.testing.assert_array_equal(pixels(items), written(jitkit, run, *words))
    real = api.generate(run, 2, cond_from="val:3-4", overrides={"sample.steps": 2})
    words = ("--n", 2, "--cond-from", "val:3-4", "sample.steps=2")
    np.testing.assert_array_equal(pixels(real), written(jitkit, run, *words))


@pytest.mark.parametrize(
    ("cond", "labels"),
    [
        ({"label": 3}, [3] * 4),
        ({"label": [0, 1]}, [0, 0, 1, 1]),
        ({"label": np.array([3, 1, 2, 0])}, [3, 1, 2, 0]),
        ({"label": "0-3"}, [0, 1, 2, 3]),
        ({"label": None}, [None] * 4),
    ],
)
def test_classes_may_be_numbers_arrays_or_text(run: Path, cond: Any, labels: list[Any]) -> None:
    assert [item.label for item in api.generate(run, 4, cond)] == labels


@pytest.mark.parametrize(
    ("given", "words", "text"),
    [
        ({"n": 0}, ("--n", 0), "n is 0; it must be at least 1"),
        ({"first": -1}, ("--first", -1), "first is -1; it must be at least 0"),
        ({"cond": {"labl": 3}}, ("--cond", "labl=3"), "no condition 'labl'"),
        ({"cond": {"label": "x"}}, ("--cond", "label=x"), "condition label='x': expected a class"),
        ({"size": 3}, ("--size", 3), "all samples of this model have one size"),
        ({"cond_from": "val"}, ("--cond-from", "test:1"), "expected a split and indices"),
        ({"overrides": ["train.lr=1"]}, ("train.lr=1",), "a trained model takes keys of"),
        ({"ema": 0.7}, ("--ema", 0.7), "no EMA 0.7"),
    ],
)
def test_errors_are_those_of_the_command(
    run: Path, jitkit: Command, given: dict[str, Any], words: tuple[Any, ...], text: str
) -> None:
    if "cond_from" not in given:
        with pytest.raises(api.JitkitError, match=text):
            api.generate(run, **given)
    result = jitkit("sample", run, *words)
    assert result.code == 2 and text in result.err


def test_modules_are_modules_and_functions_are_functions() -> None:
    import jitkit.evaluation
    import jitkit.evaluation.evaluate
    import jitkit.sampling.generate

    assert jitkit.evaluation.__name__ == "jitkit.evaluation"
    assert jitkit.evaluation.evaluate.__name__ == "jitkit.evaluation.evaluate"
    for name in ("evaluate", "forecast", "generate", "inspect", "from_arrays", "train"):
        assert callable(getattr(jitkit, name)), name


def test_inspect_returns_a_recipe_that_runs(tmp_path: Path) -> None:
    np.save(tmp_path / "waves.npy", np.random.default_rng(0).normal(size=(60, 16)))
    proposal = api.inspect(tmp_path / "waves.npy")
    overrides = {"train.steps": 1, "model.width": 48, "train.batch_size": 4}
    run = api.train(proposal.recipe, overrides, run=tmp_path / "run")
    assert len(api.generate(run, 2, overrides={"sample.steps": 1})) == 2
    with pytest.raises(api.JitkitError, match="domain 'digits' cannot inspect data; arrays can"):
        api.inspect("x", domain="digits")
