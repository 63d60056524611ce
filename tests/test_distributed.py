"""Distributed training: the same loss curve as one process, and errors reported by all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import jitkit
from jitkit.data import BatchPlan
from jitkit.errors import RecipeError
from jitkit.recipe.load import dump_recipe, load_recipe
from jitkit.runs import checkpoint
from jitkit.training.step import Learner, LossScale
from jitkit.training.trainer import train
from jitkit.utils.distributed import ALONE


def start(*words: object, processes: int = 2, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A command in several processes on this machine, as torchrun starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
    )


def run_together(*words: object, processes: int = 2, cwd: Path | None = None) -> str:
    """Output of such a command, which must succeed."""
    process = start(*words, processes=processes, cwd=cwd)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def write_recipe(recipe: dict[str, Any], path: Path, **train: Any) -> Path:
    recipe["train"] |= train
    path.write_text(dump_recipe(load_recipe(recipe)))
    return path


def losses(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


# Parts of a batch


@pytest.mark.parametrize(("accumulate", "world"), [(1, 1), (3, 1), (1, 2), (2, 3), (6, 2)])
def test_the_parts_of_all_processes_are_the_batch(accumulate: int, world: int) -> None:
    whole = BatchPlan(40, 24, 0, 3, 8)
    parts = [
        list(BatchPlan(40, 24, 0, 3, 8, accumulate=accumulate, rank=rank, world=world))
        for rank in range(world)
    ]
    for number, batch in enumerate(whole):
        keys = [
            key
            for part in range(accumulate)
            for rank in range(world)
            for key in parts[rank][number * accumulate + part]
        ]
        assert keys == batch == whole.keys(3 + number)


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(RecipeError, match="size 8 cannot be split .* 3 processes x .* 2; .* 6"):
        BatchPlan(40, 8, 0, 0, 1, accumulate=2, world=3)


def test_noise_depends_on_the_position_in_the_batch(tiny: dict[str, Any]) -> None:
    recipe = load_recipe(tiny, {"train.batch_size": 40})
    from jitkit.registry import open_domain

    learner = Learner(recipe, open_domain(recipe.domain), ALONE)
    full = learner._noise((48, 1, 8, 8), 0)
    for position, n in ((0, 40), (0, 7), (7, 20), (16, 16), (33, 7)):
        assert torch.equal(learner._noise((n, 1, 8, 8), position), full[position : position + n])
    assert torch.equal(learner._noise((9, 1, 5, 3), 20), full[20:29, :, :5, :3])
    assert full.std().item() == pytest.approx(1, abs=0.05)
    assert len({tuple(row.flatten().tolist()) for row in full}) == 48


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_step_in_parts_equals_a_whole_step(
    tiny: dict[str, Any], tmp_path: Path, accumulate: int
) -> None:
    whole = train(tiny, run=tmp_path / "whole")
    parts = train(tiny, {"train.accumulate": accumulate}, run=tmp_path / "parts")
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)
    one, other = (jitkit.load(run).state_dict() for run in (whole, parts))
    for name in one:
        assert torch.allclose(one[name], other[name], atol=1e-4), name


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_many_good_steps() -> None:
    scale = LossScale(8.0)
    scale.update(overflow=True)
    assert (scale.value, scale.good) == (4.0, 0)
    for _ in range(2_000):
        scale.update(overflow=False)
    assert (scale.value, scale.good) == (8.0, 0)
    for _ in range(10):
        scale.update(overflow=True)
    assert scale.value == 1.0


# Two processes

LONG: dict[str, Any] = {"steps": 50, "batch_size": 16, "save_every_steps": 25}
LONG |= {
    "validate_every_steps": 25,
    "keep": 9,
    "ema_sigma_rel": [0.1],
    "log": [],
    "lr": 2e-3,
    "warmup_steps": 10,
}


@pytest.mark.slow
def test_two_processes_train_as_one_and_each_resumes_the_other(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    recipe = write_recipe(tiny, tmp_path / "tiny.yaml", **LONG)
    alone = train(recipe, run=tmp_path / "alone")
    runs = {"alone": alone}
    for how in ("ddp", "fsdp"):
        runs[how] = tmp_path / how
        output = run_together(
            "-m", "jitkit", "--", "train", recipe, f"train.parallel={how}", "--run", runs[how]
        )
        assert f"2 processes ({how}), 8 samples each at a time" in output
        assert losses(runs[how]) == pytest.approx(losses(alone), rel=1e-4)
    assert (runs["fsdp"] / "checkpoints/step-50/model").is_dir()  # shards
    for how, run in runs.items():
        one, other = jitkit.load(alone).state_dict(), jitkit.load(run).state_dict()
        for name in one:
            assert torch.allclose(one[name], other[name], atol=1e-3), (how, name)
    for first, then in (("alone", "fsdp"), ("fsdp", "ddp"), ("ddp", "fsdp"), ("fsdp", "alone")):
        run = tmp_path / f"{first}-{then}"
        subprocess.run(["cp", "-r", runs[first], run], check=True)
        subprocess.run(["rm", "-r", run / "checkpoints/step-50"], check=True)
        if then == "alone":
            train(recipe, run=run)
        else:
            words = ("train", recipe, f"train.parallel={then}", "--run", run)
            assert "resuming from step 25 of 50" in run_together("-m", "jitkit", "--", *words)
        assert losses(run) == pytest.approx(losses(alone), rel=1e-4), (first, then)


@pytest.mark.slow
def test_samples_and_scores_of_two_processes_equal_those_of_one(
    trained: Path, tmp_path: Path
) -> None:
    words = ("sample", trained, "--n", 5, "sample.batch_size=2")
    run_together("-m", "jitkit", "--", *words, "--out", tmp_path / "two")
    subprocess.run(
        [sys.executable, "-m", "jitkit", *map(str, words), "--out", tmp_path / "one"], check=True
    )
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir()) and len(names) >= 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    result = json.loads(run_together("-m", "jitkit", "--", "evaluate", trained, "--json"))
    assert result["samples"] == 20


BROKEN = """
import os, sys, jitkit
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.errors import DataError

class Broken(Digits):
    def encode(self, item, rng=None):
        if os.environ["RANK"] == "1" and rng is not None:
            raise DataError("the store is gone")
        return super().encode(item, rng)

try:
    jitkit.train(sys.argv[1], run=sys.argv[2], domain=Broken(DigitsSection(name="digits")))
except jitkit.JitkitError as error:
    sys.exit(f"raised: {error}")
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_message(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    recipe = write_recipe(tiny, tmp_path / "tiny.yaml", log=[])
    (tmp_path / "broken.py").write_text(BROKEN)
    process = start(tmp_path / "broken.py", recipe, tmp_path / "run")
    began = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "raised: rank 1 of 2: DataError: the store is gone" in err
    assert time.monotonic() - began < 100


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_signal_to_one_process_stops_all_at_the_same_step(
    tiny: dict[str, Any], tmp_path: Path, how: str
) -> None:
    recipe = write_recipe(tiny, tmp_path / "tiny.yaml", steps=100_000, parallel=how, log=[])
    run = tmp_path / "run"
    process = start("-m", "jitkit", "--", "train", recipe, "--run", run)
    metrics = run / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and process.poll() is None:
        time.sleep(0.1)
    ranks = children(process.pid)
    os.kill(ranks[-1], signal.SIGUSR1)
    _, err = process.communicate(timeout=120)
    assert "saved at step" in err and "exitcode  : 75" in err
    step = checkpoint.find_checkpoint(run).step
    assert len(losses(run)) == step


def children(parent: int) -> list[int]:
    """Child processes, oldest first."""
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
