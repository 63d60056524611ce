"""Shared fixtures: a recipe that trains in a second, its run, a folder of images."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

# before torch is imported, and for processes started by tests
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# examples of a property are drawn anew by every run: few in each, many over time
settings.register_profile("jitkit", max_examples=40)
settings.load_profile("jitkit")

TINY = {
    "name": "tiny",
    "domain": "digits",
    "model": {"width": 16, "depth": 2, "heads": 2, "patch": 4, "in_context_tokens": 2},
    "train": {
        "steps": 12,
        "batch_size": 8,
        "lr": 1e-2,
        "ema": [0.2, 0.99],
        "save_every_steps": 4,
        "keep": 3,
        "preview_samples": 4,
        "validate_items": 20,
        "precision": "float32",
    },
    "sample": {"steps": 2},
    "evaluate": {"samples": 20},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """A recipe of digits: 12 steps, checkpoints at 4, 8 and 12."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tiny recipe; copy it before changing it."""
    from jitkit.training.trainer import train

    return train(copy.deepcopy(TINY), run=tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of two class folders with twelve RGB images of noise each, 10 x 8 pixels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    return folder


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def jitkit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """The command line, in this process: ``jitkit("check", "digits").code``."""
    from jitkit.cli import main

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["jitkit", *map(str, words)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        output = capsys.readouterr()
        return Result(code, output.out, output.err)

    return run
