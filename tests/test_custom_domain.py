"""The example of docs/custom-domain.md: in Python, and as a package of its own."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Answer

import jitkit as package
from jitkit.fields import Field
from jitkit.testing import check_domain
from jitkit.trainer import train

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "custom-domain"
LEAST = {"model": {"width": 16, "depth": 1, "heads": 2}, "train": {"steps": 3, "batch_size": 8}}


@pytest.fixture
def eeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the example, and recordings beside the test."""
    monkeypatch.syspath_prepend(FOLDER)
    simulated = importlib.import_module("simulated_eeg")
    np.savez(tmp_path / "recordings.npz", **simulated.simulate(per_subject=40))
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("jitkit_eeg")


def test_the_document_shows_the_code_that_is_there() -> None:
    text = (ROOT / "docs" / "custom-domain.md").read_text(encoding="utf-8")
    code = (FOLDER / "jitkit_eeg.py").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(class EEGSection.*?)```", text, flags=re.DOTALL)
    assert shown is not None and shown[1].strip() in code


def test_the_example_answers_all_questions(eeg: Any) -> None:
    section = eeg.EEGSection(name="eeg", path="recordings.npz")
    check_domain(eeg.EEG(section), section)


def test_recordings_that_are_not_there_are_told(eeg: Any) -> None:
    with pytest.raises(package.DataError, match="none.npz: no such file; say where it lies"):
        eeg.EEG(eeg.EEGSection(name="eeg", path="none.npz"))


def test_the_scores_tell_recordings_from_noise_and_others_from_themselves(eeg: Any) -> None:
    domain = eeg.EEG(eeg.EEGSection(name="eeg"))
    real, held_out = domain.items("train"), domain.items("val")
    rng = np.random.default_rng(0)
    noise = [
        eeg.Epoch(rng.normal(0, 10, item.microvolts.shape).astype(np.float32), item.subject)
        for item in real
    ]
    for name, measure in domain.scores().items():
        assert measure(held_out, real) < 0.2 * measure(noise, real), name


def test_a_domain_in_python_trains_goes_on_and_samples(
    eeg: Any, tmp_path: Path, jitkit: Callable[..., Answer]
) -> None:
    domain = eeg.EEG(eeg.EEGSection(name="eeg"))
    run = train(LEAST, domain=domain, run=tmp_path / "run")
    train(LEAST, {"train.steps": 5}, domain=domain, run=run)
    denoiser = package.load(run, domain=domain)
    x = package.sample(denoiser, n=4, cond={"subject": [0, 1, 2, 3]}, steps=2)
    items = [
        denoiser.domain.decode(Field(values, cond={"subject": i})) for i, values in enumerate(x)
    ]
    (file,) = denoiser.domain.write(items, tmp_path / "out")
    assert np.load(file)["eeg"].shape == (4, 4, 128)
    refused = jitkit("sample", run)
    assert refused.code == 2 and "jitkit.load(" in refused.err and "domain=..." in refused.err


@pytest.mark.slow
def test_the_package_is_built_installed_found_trained_and_scored(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", FOLDER, source], check=True)
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "running.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # torch and jitkit
    (file,) = tmp_path.glob("jitkit_eeg-*.whl")
    subprocess.run([*pip, "install", "--target", str(site), "--no-deps", str(file)], check=True)
    where = tmp_path / "work"
    where.mkdir()

    def run(*words: object) -> str:
        done = subprocess.run(
            [place / "bin" / "python", "-m", *map(str, words)],
            cwd=where,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("simulated_eeg", "recordings.npz")
    assert "eeg          EEG of several subjects" in run("jitkit", "domains")
    short = ("train.steps=30", "model.width=32", "evaluate.samples=40", "sample.steps=4")
    run("jitkit", "train", source / "eeg.yaml", *short)
    run("jitkit", "sample", "runs/eeg", "--n", 8, "--cond", "subject=0-3", "--out", "epochs")
    found = np.load(where / "epochs" / "samples.npz")
    assert found["eeg"].shape == (8, 4, 128) and found["subject"].tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    scores = json.loads(run("jitkit", "evaluate", "runs/eeg", "--json"))["scores"]
    assert scores["frequency_distance_hz"]["floor"] < 0.3 < scores["frequency_distance_hz"]["value"]
