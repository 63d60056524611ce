"""A run that is stopped by a signal or a full disk loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_trainer import assert_same, metrics

from jitkit.errors import CheckpointError, Stopped
from jitkit.recipe.load import dump_recipe, load_recipe
from jitkit.runs import checkpoint
from jitkit.training.trainer import train

LONG = {"steps": 200_000, "save_every_steps": 100_000, "log": []}


@pytest.fixture
def recipe(tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A recipe that would train for an hour."""
    tiny["train"] |= LONG
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(load_recipe(tiny)))
    return path


class Running:
    """A training run in a separate process, past its first step."""

    def __init__(self, recipe: Path, run: Path, *overrides: str) -> None:
        self.run = run
        command = [sys.executable, "-m", "jitkit", "train", str(recipe), *overrides]
        self.process = subprocess.Popen(
            [*command, "--run", str(run)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.wait_for(lambda: self.steps() > 0)

    def steps(self) -> int:
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.is_file() else 0

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until and self.process.poll() is None, self.ended()
            time.sleep(0.05)

    def ended(self) -> tuple[int, str]:
        """Its exit code and its standard error."""
        if self.process.poll() is None:
            time.sleep(0.1)
        try:
            err = self.process.communicate(timeout=60)[1]
        finally:
            self.process.kill()
        return self.process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_the_run_and_exits_with_the_code_to_resume(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    running = Running(recipe, tmp_path / "run")
    running.process.send_signal(getattr(signal, name))
    code, err = running.ended()
    assert code == 75, err
    saved = checkpoint.find_checkpoint(tmp_path / "run")
    assert f"{name}: saved at step {saved.step} of 200000; the same command resumes" in err
    assert len(metrics(tmp_path / "run")) == saved.step
    status = tmp_path / "run/status.json"
    assert json.loads(status.read_text())["state"] == "stopped"
    status.unlink()
    uninterrupted = train(recipe, {"train.steps": saved.step}, run=tmp_path / "uninterrupted")
    (uninterrupted / "status.json").unlink()
    assert_same(uninterrupted, tmp_path / "run")


@pytest.mark.slow
def test_a_second_interrupt_stops_at_once(recipe: Path, tmp_path: Path) -> None:
    """The first one waits for the checkpoint, which cannot be written here."""
    run = tmp_path / "run"
    running = Running(recipe, run)
    (run / "checkpoints").write_text("a file")  # prevents a folder of that name
    running.process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert running.process.poll() is None
    running.process.send_signal(signal.SIGINT)
    code, err = running.ended()
    assert code == 130 and "nothing is lost, retrying" in err and "interrupted" in err


def test_a_run_in_python_stops_at_the_end_of_a_step(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def interrupt() -> None:
        while not (run / "metrics.jsonl").is_file() or not metrics(run):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match="SIGINT: saved at step"):
        train(recipe, run=run)
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.find_checkpoint(run).step == len(metrics(run)) > 0


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_run_waits_without_loss(
    tiny: dict[str, Any], tmp_path: Path, small_disk: Path
) -> None:
    tiny["train"] |= {"steps": 400, "save_every_steps": 20, "log": []}
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(load_recipe(tiny)))
    uninterrupted = train(path, run=tmp_path / "uninterrupted")
    running = Running(path, small_disk / "run")
    running.wait_for(lambda: (small_disk / "run/checkpoints/step-20").is_dir())
    ballast = small_disk / "ballast"
    fill(ballast)
    time.sleep(8)  # the run has finished its steps and waits
    assert running.process.poll() is None
    saved = checkpoint.find_checkpoint(small_disk / "run").step
    assert 20 <= saved < 400
    assert not list(small_disk.rglob("*.part"))
    ballast.unlink()
    code, err = running.ended()
    assert code == 0, err
    assert "nothing is lost, retrying every 60 s" in err
    assert len(metrics(small_disk / "run")) == 400
    assert json.loads((small_disk / "run/status.json").read_text())["state"] == "done"
    last = "checkpoints/step-400"
    for file in (uninterrupted / last).iterdir():
        assert (small_disk / "run" / last / file.name).read_bytes() == file.read_bytes(), file


def fill(path: Path) -> None:
    """Fill a disk, including the space that the run's clean-up frees."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue


def test_an_unreadable_folder_of_checkpoints_is_refused(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text((trained / "recipe.yaml").read_text())
    (run / "checkpoints").mkdir()
    (run / "checkpoints/step-3").write_text(json.dumps("a file"))
    with pytest.raises(CheckpointError, match="none of 1 checkpoints is whole"):
        checkpoint.find_checkpoint(run)
