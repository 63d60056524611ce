"""The command line: output of commands; an error is one message, code 2, and changes no file."""

from __future__ import annotations

import json
import pickle
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jitkit.recipe.load import bundled, dump_recipe, load_recipe

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "data" / "jit_tiny.npz"

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no path to ImageNet in the environment."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("IMAGENET", raising=False)
    return folder


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(load_recipe(tiny)))
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refusal(result: Any) -> str:
    """The single error message of a refused command."""
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("jitkit: ") and result.err.endswith("\n")
    assert "Traceback" not in result.err and result.err.count("jitkit: ") == 1
    return str(result.err.removeprefix("jitkit: ").removesuffix("\n"))


# Information


def test_domains_lists_installed_domains_with_their_first_docstring_line(jitkit: Run) -> None:
    result = jitkit("domains")
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert lines["digits"].startswith("Digits 0 to 9, 8 x 8 cells of ink")
    assert lines["images"].startswith(
        "Images in a folder, conditioned on their class folder or unconditional."
    )
    assert lines["images"].endswith("(jitkit.domains.images.adapter:Images)")


def test_recipes_lists_every_bundled_recipe_with_a_title(jitkit: Run) -> None:
    result = jitkit("recipes")
    assert (result.code, result.err) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert all(lines.values()) and set(lines) > set(bundled())
    assert lines["digits"].startswith("Handwritten digits, 8 x 8 cells")
    paper = {path.stem for path in (ROOT / "recipes/paper").glob("*.yaml")}
    assert {Path(name).stem for name in set(lines) - set(bundled())} == paper
    shown = result.out.splitlines()[: len(bundled())]
    assert len({line.index(lines[line.split()[0]]) for line in shown}) == 1  # aligned


def test_recipes_as_json_are_names_that_load_with_their_titles(jitkit: Run) -> None:
    titles = json.loads(jitkit("recipes", "--json").out)
    assert set(titles) > set(bundled())
    for name, title in titles.items():
        text = Path(name).read_text(encoding="utf-8") if name.endswith(".yaml") else None
        assert load_recipe(name).name == Path(name).stem
        assert title and (text is None or text.startswith(f"# {title}\n"))


def test_help_and_version_are_printed(jitkit: Run) -> None:
    result = jitkit("--help")
    assert result.code == 0
    for command in ("train", "sample", "evaluate", "check", "domains", "recipes", "import"):
        assert re.search(rf"│ {command} +[A-Z]", result.out), command
    assert jitkit("--version").out.strip() == "0.1.0"
    assert "--cond-from" in jitkit("sample", "--help").out


# Errors

RECIPE, RUN = "RECIPE", "RUN"

REFUSED = {
    ("tarin", "digits"): 'Unknown command "tarin". Did you mean "train"?',
    ("train", "digits", "--nwe"): "Unknown option: --nwe. Did you mean --new?",
    ("sample", RUN, "--n", "many"): 'Invalid value for --n: unable to convert "many" into int.',
    ("train",): 'Command "train" parameter --recipe requires an argument.',
    ("train", "nowhere.yaml"): "no recipe 'nowhere.yaml': there is no such file; bundled: digits",
    ("train", "digist"): "; did you mean 'digits'?",
    ("train", RECIPE, "train.step=5"): ("override train.step: unknown; did you mean train.steps?"),
    ("train", RECIPE, "train.steps"): "override train.steps: no value; write section.key=value",
    ("train", RECIPE, "train.lr=fast"): "override train.lr: 'fast' is not a number",
    ("train", RECIPE, "train.lr=0", "train.sed=1"): (
        "tiny.yaml: 2 errors\n  override train.lr: 0 is not above 0\n"
        "  override train.sed: unknown; did you mean train.seed?"
    ),
    ("train", RECIPE, "domain=digitz"): ("override domain.name: no domain 'digitz'; installed: "),
    ("train", RECIPE, "model.patch=9"): "patch 9 is larger than its 8 cells",
    ("train", RECIPE, "model.in_context_start=2"): "the network has blocks 0 to 1",
    ("train", "imagenet256"): "domain.path data/imagenet: no such folder. For ImageNet download",
    ("check", "imagenet256", "domain.path=elsewhere", "domain.classes="): (
        "domain.path elsewhere: no such folder. For ImageNet download"
    ),
    ("check", RECIPE, "sample.stepz=1"): "override sample.stepz: unknown",
    ("sample", "nowhere"): "nowhere: no such folder",
    ("sample", RUN + "s"): "runs: no such folder; did you mean 'run'?",
    ("sample", "."): ".: no checkpoint in it; expected a run's folder with checkpoints/step-N",
    ("sample", RUN, "--n", "0"): "n is 0; it must be at least 1",
    ("sample", RUN, "--first", "-1"): "first is -1; it must be at least 0",
    ("sample", RUN, "--cond", "label=99"): "condition 'label': 99 is not a class; classes are 0 to",
    ("sample", RUN, "--cond", "lable=3"): (
        "the model has no condition 'lable'; it knows label; did you mean 'label'?"
    ),
    ("sample", RUN, "--cond", "label"): "--cond 'label': expected name=value, such as label=3",
    ("sample", RUN, "--cond", "label=x"): "condition label='x': expected a class (3), classes",
    ("sample", RUN, "--cond-from", "test:0-3"): (
        "--cond-from 'test:0-3': expected a split and indices, such as val:0-15"
    ),
    ("sample", RUN, "--cond-from", "val:three"): "--cond-from 'val:three': expected a split",
    ("sample", RUN, "--cond-from", "val:297"): "split val has items 0 to 296, not 297",
    ("sample", RUN, "--ema", "0.5"): "no EMA 0.5; it has 0.2, 0.99, and none for the",
    ("sample", RUN, "train.steps=3"): (
        "override 'train.steps=3': a trained model takes keys of domain, sample, evaluate"
    ),
    ("sample", RUN, "sample.steps=0"): "override sample.steps: 0 is less than 1",
    (
        "sample",
        RUN,
        "sample.guidance_interval=[0.5, 0.1]",
    ): "guidance_interval [0.5, 0.1] ends before it starts",
    ("evaluate", "nowhere"): "nowhere: no such folder",
    ("evaluate", RUN, "evaluate.samples=0"): "override evaluate.samples: 0 is less than 1",
    ("import", "nowhere.pth"): "nowhere.pth: no such file",
    ("import", RECIPE): "tiny.yaml: not a checkpoint, or torn: ",
}


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_an_error_is_one_message_and_changes_no_file(
    jitkit: Run, recipe: Path, run: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    before = contents(tmp_path)
    path = {RECIPE: recipe, RUN: run, RUN + "s": f"{run}s"}
    result = jitkit(*(path.get(word, word) for word in words))
    if words[0] == "check":  # prints what it can before the error
        result = type(result)(result.code, "", result.err)
    text = refusal(result)
    assert REFUSED[words].replace("tiny.yaml", str(recipe)) in text
    assert contents(tmp_path) == before


def test_a_run_with_another_recipe_is_refused_with_one_message(
    jitkit: Run, recipe: Path, run: Path
) -> None:
    before = contents(run)
    text = refusal(jitkit("train", recipe, "train.lr=1e-3", "--run", run))
    assert text == (
        f"{run} holds a run with another recipe:\n  train.lr: 0.01 -> 0.001\n"
        "start another with --new or --run DIR, or undo these changes to resume"
    )
    assert contents(run) == before


def test_a_folder_of_other_files_is_refused_and_unchanged(
    jitkit: Run, recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    text = refusal(jitkit("train", recipe, "--run", tmp_path / "own"))
    assert "own holds files but no run; choose another folder with --run DIR" in text
    assert contents(tmp_path / "own") == {"notes.txt": b"mine"}


def test_a_checkpoint_with_a_missing_weight_is_refused_with_its_name(
    jitkit: Run, run: Path
) -> None:
    folder = run / "checkpoints" / "step-12"
    tensors = load_file(folder / "ema-0.2.safetensors")
    del tensors["final.norm.weight"]
    save_file(tensors, folder / "ema-0.2.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["files"]["ema-0.2.safetensors"] = (folder / "ema-0.2.safetensors").stat().st_size
    (folder / "state.json").write_text(json.dumps(state))
    text = refusal(jitkit("sample", run))
    assert text == (
        f"{folder}/ema-0.2.safetensors does not fit the model; missing: final.norm.weight"
    )
    assert jitkit("sample", run, "--n", 1, "--ema", "none").code == 0


def test_an_output_path_that_is_a_file_is_refused_with_one_message(
    jitkit: Run, run: Path, here: Path
) -> None:
    (here / "file").write_text("mine")
    text = refusal(jitkit("sample", run, "--n", 1, "--out", "file"))
    assert text == "--out file is not an empty folder; choose a new folder"
    assert contents(here) == {"file": b"mine"}


def test_a_keyboard_interrupt_prints_no_traceback(
    jitkit: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **keys: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jitkit.training.trainer.Trainer.loop", stopped)
    result = jitkit("train", recipe)
    assert (result.code, result.err) == (130, "jitkit: interrupted\n")


# Training


def test_a_recipe_is_trained_and_resumed(jitkit: Run, recipe: Path, here: Path) -> None:
    result = jitkit("train", recipe, "train.steps=4")
    assert (result.code, result.err) == (0, "")
    first = "tiny: 1 channels on 8 x 8 cells, 4 tokens of 16 features, conditions: label"
    assert result.out.splitlines()[0] == first
    assert result.out.endswith("the run is in runs/tiny\n")
    again = jitkit("train", recipe, "train.steps=6")
    assert "resuming from step 4 of 6 (runs/tiny/checkpoints/step-4)" in again.out
    assert "step 6 of 6 is done" in jitkit("train", recipe, "train.steps=6").out
    assert jitkit("train", recipe, "train.steps=1", "--new").code == 0
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["tiny", "tiny-2"]
    assert len((here / "runs/tiny/metrics.jsonl").read_text().splitlines()) == 6


def test_missing_data_are_reported_quickly_without_torch(here: Path) -> None:
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(*sorted({'torch'} & set(sys.modules)), 'end'))\n"
        "sys.argv = ['jitkit', 'train', 'imagenet256']\n"
        "runpy.run_module('jitkit', run_name='__main__')\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout.strip()) == (2, "end")
    assert done.stderr.startswith("jitkit: domain.path data/imagenet: no such folder. For ImageNet")
    assert "Set domain.path=FOLDER" in done.stderr
    assert done.stderr.count("\n") == 1
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 2  # CPU time, independent of machine load
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_the_reference_recipe_trains_on_any_folder_of_class_folders(
    image_folder: Path, here: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "jitkit",
        "train",
        "imagenet256",
        f"domain.path={image_folder}",
    ]
    overrides = ["train.steps=3", "train.batch_size=2"]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "model: 131,123,712 parameters" in done.stdout
    run = here / "runs" / "imagenet256"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-3"]
    with Image.open(run / "samples" / "step-0.png") as image:
        assert image.width >= 512


# Sampling


def test_samples_are_written_into_the_run_or_to_out(jitkit: Run, run: Path, here: Path) -> None:
    result = jitkit("sample", run, "--n", 3, "--cond", "label=7", "sample.seed=5")
    folder = run / "samples" / "step-12-seed-5"
    assert (result.code, result.err) == (0, "")
    assert result.out == f"3 samples of step 12: 5 files in {folder}\n"
    names = ["00000.png", "00001.png", "00002.png", "grid.png", "samples.npz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    with np.load(folder / "samples.npz") as archive:
        assert archive["arr_0"].shape == (3, 8, 8, 1) and archive["arr_1"].tolist() == [7, 7, 7]
    words = ["--n", 2, "--cond", "label=7", "sample.seed=5"]
    jitkit("sample", run, *words, "--first", 1, "--out", "o")
    with np.load(folder / "samples.npz") as all_three, np.load(here / "o/samples.npz") as last_two:
        assert np.abs(all_three["arr_0"][1:].astype(int) - last_two["arr_0"]).max() <= 1


def test_an_older_checkpoint_and_other_emas_can_be_sampled(
    jitkit: Run, run: Path, here: Path
) -> None:
    older = run / "checkpoints" / "step-4"
    for number, words in enumerate(([], ["--ema", "none"], ["--ema", "0.99"])):
        result = jitkit("sample", older, "--n", 2, "--out", str(number), *words)
        assert result.out == f"2 samples of step 4: 4 files in {number}\n"
    arrays = [np.load(here / f"{number}/samples.npz")["arr_0"].tobytes() for number in range(3)]
    assert len(set(arrays)) == 3


def test_conditions_can_be_taken_from_real_items(jitkit: Run, run: Path, here: Path) -> None:
    assert jitkit("sample", run, "--n", 5, "--cond-from", "val:0-3", "--out", "o").code == 0
    with np.load(here / "o" / "samples.npz") as archive:
        assert archive["arr_1"].tolist() == [1, 7, 4, 6, 1]  # the first validation digits, in turn


# Importing


def official(path: Path) -> Path:
    """A checkpoint in the format of the official code, with four blocks."""
    with np.load(GOLDEN) as golden:
        state = {
            name.removeprefix("state."): torch.from_numpy(golden[name])
            for name in golden.files
            if name.startswith("state.")
        }
    torch.save({"model": state, "model_ema1": state, "epoch": 3}, path)
    return path


def test_an_official_checkpoint_is_imported_and_sampled(
    jitkit: Run, here: Path, tmp_path: Path
) -> None:
    path = official(tmp_path / "theirs.pth")
    result = jitkit("import", path, "--in-context-start", 1)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("imported into runs/theirs; generate images with: jitkit sample")
    result = jitkit("sample", "runs/theirs", "--n", 2, "--cond", "label=0-9", "sample.steps=2")
    assert result.out == "2 samples of step 0: 4 files in runs/theirs/samples/step-0-seed-0\n"
    with Image.open(here / "runs/theirs/samples/step-0-seed-0/00001.png") as image:
        assert (image.size, image.mode) == ((32, 32), "RGB")
    again = refusal(jitkit("import", path, "--in-context-start", 1))
    assert again == ("runs/theirs is not empty; choose another folder with --run DIR")


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_checkpoint_that_contains_code_is_refused_and_runs_none(
    jitkit: Run, here: Path, tmp_path: Path, write: Any
) -> None:
    with (tmp_path / "theirs.pth").open("wb") as file:
        write({"model": Bomb(tmp_path / "went off")}, file)
    text = refusal(jitkit("import", tmp_path / "theirs.pth"))
    assert text.startswith(f"{tmp_path}/theirs.pth: ")
    assert not (tmp_path / "went off").exists() and list(here.iterdir()) == []
