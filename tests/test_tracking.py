"""What a run tells others: read back with the readers that people use."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jitkit.errors import JitkitError
from jitkit.training.trackers import BACKENDS, Trackers, _is_installed, open_trackers

ROOT = Path(__file__).parents[1]
RECIPE = {"name": "digits", "train": {"steps": 20, "betas": [0.9, 0.95]}, "sample": {"seed": 0}}


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if not _is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_tensorboard = needs("tensorboard")
needs_wandb = needs("wandb")


def needs_mlflow(test: Callable[..., None]) -> Callable[..., None]:
    """For a test of MLflow, one of whose warnings is its own (3.17 on SQLAlchemy 2.1)."""
    own = pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")
    return needs("mlflow", "sqlalchemy", "alembic")(own(test))


@pytest.fixture(autouse=True)
def _nothing_leaves_the_test(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no setting of whoever runs this, and every file below tmp_path."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-own"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder whose name is not kind to addresses."""
    (tmp_path / "my run 50%").mkdir()
    return tmp_path / "my run 50%"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "step-5.png")
    return tmp_path / "step-5.png"


def loss(step: int) -> float:
    return 1 / (1 + step)


def tell(trackers: Trackers, steps: range) -> None:
    for step in steps:
        trackers.log(step, {"loss": loss(step), "val_loss": loss(step) if step % 5 == 0 else None})


# What can be asked for


def test_nothing_is_asked_of_a_run_without_trackers(run: Path, picture: Path) -> None:
    trackers = open_trackers([], run, RECIPE, step=0)
    tell(trackers, range(1, 4))
    trackers.picture(3, "samples", picture)
    trackers.close()
    assert not list(run.iterdir())


def test_an_unknown_tracker_is_refused_with_the_nearest_name(run: Path) -> None:
    with pytest.raises(JitkitError, match=r"'wanbd'; did you mean 'wandb'\?; there are tensorb"):
        open_trackers(["wanbd"], run, RECIPE, step=0)


def without_packages(code: str) -> str:
    """What a program says that finds jitkit's own folder and no installed package."""
    command = [
        sys.executable,
        "-S",
        "-c",
        f"from jitkit.training.trackers import open_trackers\n{code}",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return done.stdout + done.stderr


def test_auto_is_nothing_where_tensorboard_is_not_installed(run: Path) -> None:
    opening = f"open_trackers('auto', __import__('pathlib').Path({str(run)!r}), {{}}, step=0)"
    assert without_packages(f"print({opening}._backends)") == "{}\n"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    name: str, run: Path
) -> None:
    opening = f"open_trackers([{name!r}], __import__('pathlib').Path({str(run)!r}), {{}}, step=0)"
    said = without_packages(opening)
    assert f"tracker '{name}' was asked for and is not installed: pip install {name}" in said


def test_a_folder_that_a_library_leaves_is_not_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_by_a_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("left_by_a_library") is not None
    assert not _is_installed("left_by_a_library")


def test_no_tracker_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, jitkit.training.trackers; "
        "print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*BACKENDS, "torch", "numpy", "PIL"}


# TensorBoard


def events(run: Path) -> Any:
    """The run as TensorBoard reads it."""
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    return read.Reload()


def scalars(run: Path, name: str = "loss") -> dict[int, float]:
    """Value by step; a step that is there twice fails."""
    found = events(run).Scalars(name)
    assert len({event.step for event in found}) == len(found)
    return {event.step: event.value for event in found}


@needs_tensorboard
def test_tensorboard_reads_numbers_pictures_and_the_recipe(run: Path, picture: Path) -> None:
    trackers = open_trackers("auto", run, RECIPE, step=0)
    tell(trackers, range(1, 11))
    trackers.picture(5, "samples", picture)
    trackers.close()
    assert scalars(run) == pytest.approx({step: loss(step) for step in range(1, 11)})
    assert list(scalars(run, "val_loss")) == [5, 10]
    (shown,) = events(run).Images("samples")
    assert (shown.step, shown.width, shown.height) == (5, 10, 6)
    assert shown.encoded_image_string == picture.read_bytes()
    (text,) = events(run).Tensors("recipe")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert json.loads("\n".join(line.removeprefix("    ") for line in lines)) == RECIPE


@needs_tensorboard
def test_a_run_that_goes_on_forgets_what_tensorboard_was_told_of_later_steps(
    run: Path, picture: Path
) -> None:
    before = open_trackers(["tensorboard"], run, RECIPE, step=0)
    tell(before, range(1, 11))
    before.picture(5, "samples", picture)
    before.picture(10, "samples", picture)
    after = open_trackers(["tensorboard"], run, RECIPE, step=6)  # the other one never ended
    after.log(7, {"loss": -1.0})
    before.close()
    after.close()
    assert scalars(run) == pytest.approx({step: loss(step) for step in range(1, 7)} | {7: -1.0})
    assert [image.step for image in events(run).Images("samples")] == [5]


@needs_tensorboard
def test_a_run_that_begins_again_forgets_all_of_its_first_attempt(run: Path, picture: Path) -> None:
    for _ in range(2):
        trackers = open_trackers(["tensorboard"], run, RECIPE, step=0)
        trackers.picture(0, "samples", picture)
        tell(trackers, range(1, 4))
        trackers.close()
    assert list(scalars(run)) == [1, 2, 3]
    assert [image.step for image in events(run).Images("samples")] == [0]


@needs_tensorboard
def test_tensorboard_has_every_step_of_a_killed_run_and_of_what_follows(run: Path) -> None:
    code = f"""
import os, pathlib, signal
from jitkit.training.trackers import open_trackers
trackers = open_trackers("auto", pathlib.Path({str(run)!r}), {{}}, step=0)
for step in range(1, 51):
    trackers.log(step, {{"loss": 1 / (1 + step)}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(scalars(run)) == list(range(1, 51))
    (file,) = (run / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # torn, as by a machine that lost its power
    trackers = open_trackers("auto", run, RECIPE, step=40)
    tell(trackers, range(41, 61))
    trackers.close()
    assert list(scalars(run)) == list(range(1, 61))


# Weights & Biases


def parts(run: Path) -> list[Any]:
    """The records of each process of an offline run: a log like LevelDB's, of protobufs."""
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    import_module("wandb").teardown()  # its own process may still be writing
    found = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        data, at, record, records = path.read_bytes(), 7, b"", []
        while at + 7 <= len(data):
            if (left := 32768 - at % 32768) < 7:  # a block's end
                at += left
                continue
            _, size, kind = struct.unpack("<IHB", data[at : at + 7])
            record += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last piece
                records.append(record_type.FromString(record))
                record = b""
        found.append(records)
    return found


def history(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Numbers by step, as W&B will be sent them."""
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return {
        row.step.num: {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item
        }
        for row in rows
    }


@needs_wandb
def test_wandb_keeps_numbers_pictures_and_the_recipe_without_a_network(
    run: Path, picture: Path
) -> None:
    trackers = open_trackers(["wandb"], run, RECIPE, step=0)
    tell(trackers, range(1, 4))
    trackers.picture(5, "samples", picture)  # before the numbers of its step and of the one before
    tell(trackers, range(4, 7))
    trackers.picture(6, "samples", picture)  # after them, and nothing follows
    trackers.close()
    (records,) = parts(run)
    rows = history(records)
    assert {step: row["loss"] for step, row in rows.items()} == pytest.approx(
        {step: loss(step) for step in range(1, 7)}
    )
    assert [step for step, row in rows.items() if "samples/path" in row] == [5, 6]
    assert rows[5]["samples/caption"] == "step 5"
    (copy,) = (run / "wandb").glob(f"offline-run-*/files/{rows[5]['samples/path']}")
    assert copy.read_bytes() == picture.read_bytes()
    (told,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert config["train"] == RECIPE["train"]
    assert (told.project, told.display_name) == ("jitkit", run.name)


@needs_wandb
def test_wandb_knows_a_run_that_goes_on_by_its_first_name(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "another")
    names = []
    for step in (0, 3, 0):  # begun, gone on, begun again
        trackers = open_trackers(["wandb"], run, RECIPE, step=step)
        trackers.log(step + 1, {"loss": 1.0})
        trackers.close()
        names.append(json.loads((run / "wandb.json").read_text())["id"])
    told = [
        record.run
        for records in parts(run)
        for record in records
        if record.WhichOneof("record_type") == "run"
    ]
    assert sorted(each.run_id for each in told) == sorted(names)
    assert names[0] == names[1] != names[2]
    assert {each.project for each in told} == {"another"}


# MLflow


def client(run: Path) -> Any:
    return import_module("mlflow").MlflowClient(
        tracking_uri=f"sqlite:///{run.resolve() / 'mlflow' / 'runs.db'}"
    )


def run_id(run: Path) -> str:
    found = json.loads((run / "mlflow.json").read_text())["run_id"]
    assert isinstance(found, str)
    return found


def steps_known(run: Path, name: str = "loss") -> list[int]:
    return [metric.step for metric in client(run).get_metric_history(run_id(run), name)]


@needs_mlflow
def test_mlflow_reads_numbers_pictures_and_the_recipe(run: Path, picture: Path) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    tell(trackers, range(1, 1201))  # more than one request may hold
    trackers.picture(5, "samples", picture)
    trackers.close()
    told = client(run).get_metric_history(run_id(run), "loss")
    assert {metric.step: metric.value for metric in told} == {k: loss(k) for k in range(1, 1201)}
    found = client(run).get_run(run_id(run))
    assert found.data.params == {
        "name": "digits",
        "train.steps": "20",
        "train.betas": "[0.9, 0.95]",
        "sample.seed": "0",
    }
    assert (found.info.run_name, found.info.status) == (run.name, "FINISHED")
    (shown,) = (run / "mlflow" / "artifacts").rglob("samples*step*5*.png")
    with Image.open(shown) as ours, Image.open(picture) as theirs:
        assert ours.tobytes() == theirs.tobytes()


@needs_mlflow
def test_mlflow_is_told_no_step_twice_by_a_run_that_goes_on(run: Path, picture: Path) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    tell(trackers, range(1, 11))
    trackers.picture(10, "samples", picture)
    trackers.close()
    first = run_id(run)
    trackers = open_trackers(["mlflow"], run, RECIPE | {"name": "changed"}, step=6)
    assert client(run).get_run(first).info.status == "RUNNING"
    tell(trackers, range(7, 16))
    trackers.picture(10, "samples", picture)
    trackers.picture(15, "samples", picture)
    trackers.close()
    assert run_id(run) == first
    assert steps_known(run) == list(range(1, 16))
    assert steps_known(run, "val_loss") == [5, 10, 15]
    assert len(list((run / "mlflow" / "artifacts").rglob("samples*.png"))) == 2
    open_trackers(["mlflow"], run, RECIPE, step=0).close()
    assert run_id(run) != first


@needs_mlflow
def test_a_run_that_was_moved_writes_nothing_where_it_was(
    run: Path, tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    tell(trackers, range(1, 6))
    trackers.close()
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    trackers = open_trackers(["mlflow"], moved, RECIPE, step=5)
    tell(trackers, range(6, 9))
    trackers.picture(8, "samples", picture)
    trackers.close()
    assert steps_known(moved) == list(range(1, 9))
    assert "mlflow gets no more pictures: the run was moved" in capsys.readouterr().err
    assert not run.exists()


@needs_mlflow
def test_a_run_that_fails_is_marked_so(run: Path) -> None:
    def fail() -> None:
        trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
        try:
            raise FloatingPointError
        finally:
            trackers.close()

    with pytest.raises(FloatingPointError):
        fail()
    assert client(run).get_run(run_id(run)).info.status == "FAILED"
    try:
        raise FloatingPointError
    except FloatingPointError:  # somebody who trains while handling something else
        open_trackers(["mlflow"], run, RECIPE, step=5).close()
    assert client(run).get_run(run_id(run)).info.status == "FINISHED"


# What fails


class Told:
    """A backend that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.pictures: list[int] = []
        self.closed = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.steps.append(step)

    def picture(self, step: int, name: str, path: Path) -> None:
        self.pictures.append(step)

    def close(self, *, failed: bool) -> None:
        self.closed = True


class Broken(Told):
    """One whose every call fails."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        raise OSError("no space left\non the device")

    def close(self, *, failed: bool) -> None:
        super().close(failed=failed)
        raise OSError("no space left")


def test_a_backend_that_fails_is_named_once_and_the_others_go_on(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = Broken(), Told()
    trackers = Trackers({"broken": broken, "whole": whole})
    tell(trackers, range(1, 4))
    trackers.picture(3, "samples", picture)
    trackers.close()
    assert capsys.readouterr().err == (
        "warning: broken failed and gets no more of this run, which goes on "
        "(OSError: no space left)\n"
    )
    assert (whole.steps, whole.pictures, whole.closed) == ([1, 2, 3], [3], True)
    assert broken.pictures == [] and broken.closed


@needs_tensorboard
def test_a_full_disk_ends_tensorboard_and_not_the_run(run: Path) -> None:
    code = f"""
import pathlib, resource
from jitkit.training.trackers import open_trackers
trackers = open_trackers("auto", pathlib.Path({str(run)!r}), {{}}, step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for step in range(1, 201):
    trackers.log(step, {{"loss": 1.0}})
trackers.close()
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"
    assert done.stderr.startswith("warning: tensorboard failed and gets no more of this run")
    assert done.stderr.count("\n") == 1
    steps = list(scalars(run))
    assert 20 < len(steps) < 200 and steps == list(range(1, len(steps) + 1))


@needs_tensorboard
@needs_mlflow
def test_a_store_that_breaks_ends_mlflow_and_not_tensorboard(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jitkit.training.trackers.SEND_SECONDS", 0.0)
    trackers = open_trackers(["mlflow", "tensorboard"], run, RECIPE, step=0)
    for file in (run / "mlflow").glob("runs.db*"):
        file.write_bytes(b"no database" * 1000)
    tell(trackers, range(1, 21))
    trackers.close()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(told) == 1 and "mlflow failed and gets no more of this run" in told[0]
    assert list(scalars(run)) == list(range(1, 21))


@needs_tensorboard
@needs_mlflow
def test_a_server_that_does_not_answer_is_named_and_the_run_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # bound and not listening: refuses whoever comes
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        trackers = open_trackers(["mlflow", "tensorboard"], run, RECIPE, step=0)
        tell(trackers, range(1, 4))
        trackers.close()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(told) == 1 and "mlflow failed and gets no more of this run" in told[0]
    assert list(scalars(run)) == [1, 2, 3]
    assert not (run / "mlflow").exists()


@needs_tensorboard
@needs_wandb
@needs_mlflow
def test_telling_others_draws_no_random_number_of_the_run(run: Path, picture: Path) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    trackers = open_trackers(BACKENDS, run, RECIPE, step=0)
    tell(trackers, range(1, 4))
    trackers.picture(3, "samples", picture)
    trackers.close()
    assert states() == before
    assert parts(run)  # which ends W&B's process
