"""Experiment trackers, read back with the readers that people use."""

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
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


def requires(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if not _is_installed(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_tensorboard = requires("tensorboard")
needs_wandb = requires("wandb")


def needs_mlflow(test: Callable[..., None]) -> Callable[..., None]:
    """For a test of MLflow; ignores a warning of MLflow 3.17 on SQLAlchemy 2.1."""
    ignore = pytest.mark.filterwarnings("ignore:.*noload:DeprecationWarning")
    return requires("mlflow", "sqlalchemy", "alembic")(ignore(test))


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network, no settings of the user, and every file below tmp_path."""
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
    """A run's folder whose name needs escaping in URLs."""
    (tmp_path / "my run 50%").mkdir()
    return tmp_path / "my run 50%"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "step-5.png")
    return tmp_path / "step-5.png"


def loss(step: int) -> float:
    return 1 / (1 + step)


def log_steps(trackers: Trackers, steps: range) -> None:
    for step in steps:
        trackers.log(step, {"loss": loss(step), "val_loss": loss(step) if step % 5 == 0 else None})


# Requested trackers


def test_a_run_without_trackers_writes_no_tracker_files(run: Path, image: Path) -> None:
    trackers = open_trackers([], run, RECIPE, step=0)
    log_steps(trackers, range(1, 4))
    trackers.image(3, "samples", image)
    trackers.close()
    assert not list(run.iterdir())


def test_an_unknown_tracker_is_refused_with_the_nearest_name(run: Path) -> None:
    with pytest.raises(JitkitError, match=r"'wanbd'; did you mean 'wandb'\?; there are tensorb"):
        open_trackers(["wanbd"], run, RECIPE, step=0)


def without_packages(code: str) -> str:
    """Output of a program that sees jitkit's folder and no installed package."""
    command = [
        sys.executable,
        "-S",
        "-c",
        f"from jitkit.training.trackers import open_trackers\n{code}",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    return done.stdout + done.stderr


def test_auto_opens_no_tracker_if_tensorboard_is_not_installed(run: Path) -> None:
    opening = f"open_trackers('auto', __import__('pathlib').Path({str(run)!r}), {{}}, step=0)"
    assert without_packages(f"print({opening}._backends)") == "{}\n"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_tracker_that_is_not_installed_is_refused_with_the_install_command(
    name: str, run: Path
) -> None:
    opening = f"open_trackers([{name!r}], __import__('pathlib').Path({str(run)!r}), {{}}, step=0)"
    output = without_packages(opening)
    assert f"tracker '{name}' is requested but not installed: pip install {name}" in output


def test_a_folder_with_the_name_of_a_library_is_not_taken_for_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_by_a_library").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("left_by_a_library") is not None
    assert not _is_installed("left_by_a_library")


def test_no_tracker_is_imported_before_it_is_requested() -> None:
    code = (
        "import sys, jitkit.training.trackers; "
        "print(*sorted({n.split('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*BACKENDS, "torch", "numpy", "PIL"}


# TensorBoard


def events(run: Path) -> Any:
    """The run as TensorBoard reads it."""
    module = import_module("tensorboard.backend.event_processing.event_accumulator")
    reader = module.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0}
    )
    return reader.Reload()


def scalars(run: Path, name: str = "loss") -> dict[int, float]:
    """Value by step; fails if a step occurs twice."""
    logged = events(run).Scalars(name)
    assert len({event.step for event in logged}) == len(logged)
    return {event.step: event.value for event in logged}


@needs_tensorboard
def test_tensorboard_reads_metrics_images_and_the_recipe(run: Path, image: Path) -> None:
    trackers = open_trackers("auto", run, RECIPE, step=0)
    log_steps(trackers, range(1, 11))
    trackers.image(5, "samples", image)
    trackers.close()
    assert scalars(run) == pytest.approx({step: loss(step) for step in range(1, 11)})
    assert list(scalars(run, "val_loss")) == [5, 10]
    (logged,) = events(run).Images("samples")
    assert (logged.step, logged.width, logged.height) == (5, 10, 6)
    assert logged.encoded_image_string == image.read_bytes()
    (text,) = events(run).Tensors("recipe")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert json.loads("\n".join(line.removeprefix("    ") for line in lines)) == RECIPE


@needs_tensorboard
def test_a_resumed_run_drops_later_steps_from_tensorboard(run: Path, image: Path) -> None:
    before = open_trackers(["tensorboard"], run, RECIPE, step=0)
    log_steps(before, range(1, 11))
    before.image(5, "samples", image)
    before.image(10, "samples", image)
    after = open_trackers(["tensorboard"], run, RECIPE, step=6)  # the first is still open
    after.log(7, {"loss": -1.0})
    before.close()
    after.close()
    assert scalars(run) == pytest.approx({step: loss(step) for step in range(1, 7)} | {7: -1.0})
    assert [logged.step for logged in events(run).Images("samples")] == [5]


@needs_tensorboard
def test_a_restarted_run_drops_its_first_attempt_from_tensorboard(run: Path, image: Path) -> None:
    for _ in range(2):
        trackers = open_trackers(["tensorboard"], run, RECIPE, step=0)
        trackers.image(0, "samples", image)
        log_steps(trackers, range(1, 4))
        trackers.close()
    assert list(scalars(run)) == [1, 2, 3]
    assert [logged.step for logged in events(run).Images("samples")] == [0]


@needs_tensorboard
def test_tensorboard_has_every_step_of_a_killed_and_resumed_run(run: Path) -> None:
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
    file.write_bytes(file.read_bytes()[:-5])  # torn, as after a power failure
    trackers = open_trackers("auto", run, RECIPE, step=40)
    log_steps(trackers, range(41, 61))
    trackers.close()
    assert list(scalars(run)) == list(range(1, 61))


# Weights & Biases


def parts(run: Path) -> list[Any]:
    """The records of each part of an offline run: a log in LevelDB's format, of protobufs."""
    record_type = import_module("wandb.proto.wandb_internal_pb2").Record
    import_module("wandb").teardown()  # its process may still be writing
    runs = []
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        data, offset, record, records = path.read_bytes(), 7, b"", []
        while offset + 7 <= len(data):
            if (left := 32768 - offset % 32768) < 7:  # a block's end
                offset += left
                continue
            _, size, kind = struct.unpack("<IHB", data[offset : offset + 7])
            record += data[offset + 7 : offset + 7 + size]
            offset += 7 + size
            if kind in (1, 4):  # whole, or the last piece
                records.append(record_type.FromString(record))
                record = b""
        runs.append(records)
    return runs


def history(records: list[Any]) -> dict[int, dict[str, Any]]:
    """Metrics by step, as they will be sent to W&B."""
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return {
        row.step.num: {
            item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row.item
        }
        for row in rows
    }


@needs_wandb
def test_wandb_keeps_metrics_images_and_the_recipe_without_a_network(
    run: Path, image: Path
) -> None:
    trackers = open_trackers(["wandb"], run, RECIPE, step=0)
    log_steps(trackers, range(1, 4))
    trackers.image(5, "samples", image)  # before the metrics of its step and of the one before
    log_steps(trackers, range(4, 7))
    trackers.image(6, "samples", image)  # after its metrics, and last
    trackers.close()
    (records,) = parts(run)
    rows = history(records)
    assert {step: row["loss"] for step, row in rows.items()} == pytest.approx(
        {step: loss(step) for step in range(1, 7)}
    )
    assert [step for step, row in rows.items() if "samples/path" in row] == [5, 6]
    assert rows[5]["samples/caption"] == "step 5"
    (copy,) = (run / "wandb").glob(f"offline-run-*/files/{rows[5]['samples/path']}")
    assert copy.read_bytes() == image.read_bytes()
    (logged,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in logged.config.update}
    assert config["train"] == RECIPE["train"]
    assert (logged.project, logged.display_name) == ("jitkit", run.name)


@needs_wandb
def test_a_resumed_run_keeps_its_wandb_id(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "another")
    names = []
    for step in (0, 3, 0):  # started, resumed, restarted
        trackers = open_trackers(["wandb"], run, RECIPE, step=step)
        trackers.log(step + 1, {"loss": 1.0})
        trackers.close()
        names.append(json.loads((run / "wandb.json").read_text())["id"])
    logged = [
        record.run
        for records in parts(run)
        for record in records
        if record.WhichOneof("record_type") == "run"
    ]
    assert sorted(each.run_id for each in logged) == sorted(names)
    assert names[0] == names[1] != names[2]
    assert {each.project for each in logged} == {"another"}


# MLflow


def client(run: Path) -> Any:
    return import_module("mlflow").MlflowClient(
        tracking_uri=f"sqlite:///{run.resolve() / 'mlflow' / 'runs.db'}"
    )


def run_id(run: Path) -> str:
    saved = json.loads((run / "mlflow.json").read_text())["run_id"]
    assert isinstance(saved, str)
    return saved


def logged_steps(run: Path, name: str = "loss") -> list[int]:
    return [metric.step for metric in client(run).get_metric_history(run_id(run), name)]


@needs_mlflow
def test_mlflow_reads_metrics_images_and_the_recipe(run: Path, image: Path) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    log_steps(trackers, range(1, 1201))  # more than one request may hold
    trackers.image(5, "samples", image)
    trackers.close()
    logged = client(run).get_metric_history(run_id(run), "loss")
    assert {metric.step: metric.value for metric in logged} == {k: loss(k) for k in range(1, 1201)}
    stored = client(run).get_run(run_id(run))
    assert stored.data.params == {
        "name": "digits",
        "train.steps": "20",
        "train.betas": "[0.9, 0.95]",
        "sample.seed": "0",
    }
    assert (stored.info.run_name, stored.info.status) == (run.name, "FINISHED")
    (path,) = (run / "mlflow" / "artifacts").rglob("samples*step*5*.png")
    with Image.open(path) as logged_image, Image.open(image) as original:
        assert logged_image.tobytes() == original.tobytes()


@needs_mlflow
def test_a_resumed_run_sends_no_step_to_mlflow_twice(run: Path, image: Path) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    log_steps(trackers, range(1, 11))
    trackers.image(10, "samples", image)
    trackers.close()
    first = run_id(run)
    trackers = open_trackers(["mlflow"], run, RECIPE | {"name": "changed"}, step=6)
    assert client(run).get_run(first).info.status == "RUNNING"
    log_steps(trackers, range(7, 16))
    trackers.image(10, "samples", image)
    trackers.image(15, "samples", image)
    trackers.close()
    assert run_id(run) == first
    assert logged_steps(run) == list(range(1, 16))
    assert logged_steps(run, "val_loss") == [5, 10, 15]
    assert len(list((run / "mlflow" / "artifacts").rglob("samples*.png"))) == 2
    open_trackers(["mlflow"], run, RECIPE, step=0).close()
    assert run_id(run) != first


@needs_mlflow
def test_a_moved_run_writes_nothing_to_its_old_folder(
    run: Path, tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = open_trackers(["mlflow"], run, RECIPE, step=0)
    log_steps(trackers, range(1, 6))
    trackers.close()
    moved = Path(shutil.move(run, tmp_path / "elsewhere"))
    trackers = open_trackers(["mlflow"], moved, RECIPE, step=5)
    log_steps(trackers, range(6, 9))
    trackers.image(8, "samples", image)
    trackers.close()
    assert logged_steps(moved) == list(range(1, 9))
    assert "mlflow gets no more images: the run was moved" in capsys.readouterr().err
    assert not run.exists()


@needs_mlflow
def test_a_failed_run_is_marked_as_failed(run: Path) -> None:
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
    except FloatingPointError:  # training inside an exception handler has not failed
        open_trackers(["mlflow"], run, RECIPE, step=5).close()
    assert client(run).get_run(run_id(run)).info.status == "FINISHED"


# Failing backends


class Recording:
    """A backend that records its calls."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.images: list[int] = []
        self.closed = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append(step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.images.append(step)

    def close(self, *, failed: bool) -> None:
        self.closed = True


class Broken(Recording):
    """A backend whose calls fail."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise OSError("no space left\non the device")

    def close(self, *, failed: bool) -> None:
        super().close(failed=failed)
        raise OSError("no space left")


def test_a_failing_backend_is_named_once_and_the_others_continue(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, working = Broken(), Recording()
    trackers = Trackers({"broken": broken, "working": working})
    log_steps(trackers, range(1, 4))
    trackers.image(3, "samples", image)
    trackers.close()
    assert capsys.readouterr().err == (
        "warning: broken failed and is disabled; training continues (OSError: no space left)\n"
    )
    assert (working.steps, working.images, working.closed) == ([1, 2, 3], [3], True)
    assert broken.images == [] and broken.closed


@needs_tensorboard
def test_a_full_disk_ends_tensorboard_but_not_the_run(run: Path) -> None:
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
    assert done.stderr.startswith("warning: tensorboard failed and is disabled; training continues")
    assert done.stderr.count("\n") == 1
    steps = list(scalars(run))
    assert 20 < len(steps) < 200 and steps == list(range(1, len(steps) + 1))


@needs_tensorboard
@needs_mlflow
def test_a_broken_store_ends_mlflow_but_not_tensorboard(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jitkit.training.trackers.SEND_SECONDS", 0.0)
    trackers = open_trackers(["mlflow", "tensorboard"], run, RECIPE, step=0)
    for file in (run / "mlflow").glob("runs.db*"):
        file.write_bytes(b"no database" * 1000)
    log_steps(trackers, range(1, 21))
    trackers.close()
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")
    ]
    assert len(warnings) == 1 and "mlflow failed and is disabled; training continues" in warnings[0]
    assert list(scalars(run)) == list(range(1, 21))


@needs_tensorboard
@needs_mlflow
def test_a_server_that_does_not_answer_is_named_and_the_run_continues(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as bound:  # bound and not listening: refuses connections
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{bound.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        trackers = open_trackers(["mlflow", "tensorboard"], run, RECIPE, step=0)
        log_steps(trackers, range(1, 4))
        trackers.close()
    warnings = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")
    ]
    assert len(warnings) == 1 and "mlflow failed and is disabled; training continues" in warnings[0]
    assert list(scalars(run)) == [1, 2, 3]
    assert not (run / "mlflow").exists()


class StuckServer(BaseHTTPRequestHandler):
    """An MLflow server that opens a run and does not answer any later request."""

    released = threading.Event()

    def do_GET(self) -> None:
        self.reply({"experiment": {"experiment_id": "0"}})

    def do_POST(self) -> None:
        if not self.path.endswith("/runs/create"):
            self.released.wait()
        self.reply({"run": {"info": {"run_id": "1"}}})

    def reply(self, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@needs_mlflow
def test_a_server_that_stops_answering_delays_the_end_of_the_process_by_a_bounded_time(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import pathlib, time
from jitkit.training import trackers
trackers.SEND_SECONDS, trackers.CLOSE_SECONDS = 0.0, 1.0
opened = trackers.open_trackers(["mlflow"], pathlib.Path({str(run)!r}), {{}}, step=0)
began = time.monotonic()
for step in range(1, 101):
    opened.log(step, {{"loss": 1.0}})
logged = time.monotonic() - began
opened.close()
print(logged, time.monotonic() - began)
"""
    with ThreadingHTTPServer(("127.0.0.1", 0), StuckServer) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        command = [sys.executable, "-c", code]
        done = subprocess.run(  # one request of MLflow waits for 120 s, then tries again
            command, capture_output=True, text=True, check=True, timeout=100
        )
        StuckServer.released.set()
        server.shutdown()
    logged, closed = (float(seconds) for seconds in done.stdout.split())
    assert logged < 10 and 1 <= closed < 30
    assert done.stderr.count("\n") == 1
    assert "warning: mlflow failed and is disabled; training continues (TimeoutE" in done.stderr


@needs_tensorboard
@needs_wandb
@needs_mlflow
def test_tracking_does_not_change_the_random_state_of_the_run(run: Path, image: Path) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    trackers = open_trackers(BACKENDS, run, RECIPE, step=0)
    log_steps(trackers, range(1, 4))
    trackers.image(3, "samples", image)
    trackers.close()
    assert states() == before
    assert parts(run)  # ends W&B's process
