"""Experiment trackers for metrics and sample images: TensorBoard, Weights & Biases, MLflow.

``metrics.jsonl`` is the record of a run; trackers get copies of it. No tracker may stop a run: one
that fails is named in a warning and gets nothing more.

```
tensorboard   RUN/tensorboard/            tensorboard --logdir RUN
wandb         RUN/wandb/, RUN/wandb.json  WANDB_PROJECT, WANDB_MODE and the like are respected
mlflow        RUN/mlflow/, RUN/mlflow.json   mlflow ui --backend-store-uri sqlite:///RUN/mlflow/runs.db,
                                          or MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME
```

The JSON files hold the id of the run in the tracker, so that a resumed run is one curve.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

from jitkit.errors import JitkitError, listed, nearest
from jitkit.utils.atomic import atomic_write
from jitkit.utils.console import warn

BACKENDS = ("tensorboard", "wandb", "mlflow")
PROJECT = "jitkit"  # what W&B calls a project and MLflow an experiment
SEND_SECONDS = 5.0  # between two requests with metrics to MLflow
BATCH = 1000  # metrics in one request: MLflow refuses more
PARAMETERS = 100  # recipe keys in one request: MLflow refuses more
CLOSE_SECONDS = 300.0  # to wait at the end for pending requests


class Backend(Protocol):
    """One tracker. After an exception it is no longer used in this run."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, path: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Trackers:
    """The backends of one run; each call goes to all that have not failed."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(backends)
        self._failed: list[Backend] = []
        self._outer = sys.exc_info()[1]  # if training runs inside an exception handler

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Log a step's metrics; those that are None are left out."""
        known = {name: float(value) for name, value in metrics.items() if value is not None}
        if known:
            self._each(lambda backend: backend.log(step, known))

    def image(self, step: int, name: str, path: Path) -> None:
        """Log an image file as the step's image of that name."""
        self._each(lambda backend: backend.image(step, name, path))

    def close(self) -> None:
        """Send pending metrics and close; a run that an exception ends is marked as failed."""
        failed = sys.exc_info()[1] is not self._outer
        self._each(lambda backend: backend.close(failed=failed))
        for backend in self._failed:
            with suppress(Exception):  # its first failure was already reported
                backend.close(failed=True)
        self._backends.clear()
        self._failed.clear()

    def _each(self, call: Callable[[Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                call(backend)
            except Exception as error:  # libraries, disks and networks raise many exception types
                _warn_failed(name, error)
                self._failed.append(self._backends.pop(name))


def open_trackers(
    requested: Literal["auto"] | Sequence[str], run: Path, recipe: Mapping[str, Any], *, step: int
) -> Trackers:
    """Open the trackers of a run, each continuing from step ``step``.

    Args:
        requested: names from ``BACKENDS``; "auto" is TensorBoard if installed, else none.
        run: the run's folder.
        recipe: the resolved recipe, as numbers, texts, lists and mappings.
        step: steps done, 0 for a new run. Later steps logged before a kill are dropped
            (TensorBoard), or kept and not sent again (the others).

    Raises:
        JitkitError: a tracker is unknown or not installed. For one that cannot be reached there is
            only a warning.
    """
    names = _installed(requested)
    run = run.resolve()
    run.mkdir(parents=True, exist_ok=True)
    opened: dict[str, Backend] = {}
    for name in names:
        try:
            opened[name] = OPEN[name](run, recipe, step)
        except Exception as error:
            _warn_failed(name, error)
    return Trackers(opened)


def _installed(requested: Literal["auto"] | Sequence[str]) -> list[str]:
    """The requested names, without importing any of them.

    Raises:
        JitkitError: one is unknown or not installed.
    """
    if requested == "auto":
        return ["tensorboard"] if _is_installed("tensorboard") else []
    names = list(dict.fromkeys([requested] if isinstance(requested, str) else requested))
    for name in names:
        if name not in BACKENDS:
            known = listed(BACKENDS)
            raise JitkitError(f"no tracker {name!r}{nearest(name, BACKENDS)}; there are {known}")
        if not _is_installed(name):
            raise JitkitError(
                f"tracker {name!r} is requested but not installed: pip install {name}"
            )
    if "mlflow" in names and not (_mlflow_server() or _is_installed("sqlalchemy", "alembic")):
        raise JitkitError(  # mlflow-skinny alone; MLflow 3 no longer writes plain files
            "tracker 'mlflow' keeps its metrics in SQLite, which this installation cannot: "
            "pip install sqlalchemy alembic, or name a server in MLFLOW_TRACKING_URI"
        )
    return names


def _is_installed(*packages: str) -> bool:
    """Whether they can be imported; a plain folder of that name, as W&B creates, is no package."""
    specs = [find_spec(package) for package in packages]
    return all(spec is not None and spec.origin is not None for spec in specs)


def _warn_failed(name: str, error: Exception) -> None:
    line = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {line}" if line else type(error).__name__
    warn(f"{name} failed and is disabled; training continues ({what})")


class _TensorBoard:
    """One event file per start of a run, written with TensorBoard's record writer.

    TensorBoard's ``EventFileWriter`` reports errors of its thread too late, and loads TensorFlow if
    it is installed. Here each record is written at once, so a kill loses nothing.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._event = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # files are read in name order
        name = f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._records = records.RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        # TensorBoard drops this step and later ones
        self._write(step=step + 1 if step else 0, session_log=start)
        self._write(step=step, summary=self._text("recipe", recipe))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        value = self._summary.Summary.Value
        values = [value(tag=name, simple_value=metric) for name, metric in metrics.items()]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def image(self, step: int, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as opened:
            width, height = opened.size
        image = self._summary.Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
        )
        value = self._summary.Summary.Value(tag=name, image=image)
        self._write(step=step, summary=self._summary.Summary(value=[value]))

    def close(self, *, failed: bool) -> None:
        self._file.close()

    def _write(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

    def _text(self, name: str, content: Mapping[str, Any]) -> Any:
        """A summary that the text page shows as code (in Markdown, indented lines)."""
        lines = json.dumps(content, indent=1, default=str).splitlines()
        value = self._summary.Summary.Value(tag=name)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = import_module("tensorboard.compat.proto.types_pb2").DT_STRING
        value.tensor.string_val.append("\n".join(f"    {line}" for line in lines).encode())
        return self._summary.Summary(value=[value])


class _Wandb:
    """A run of Weights & Biases, which sends from a separate process.

    A resumed run keeps its id. W&B takes no step twice, so steps that a killed run had logged are
    skipped; they would be identical. Without a network (``WANDB_MODE=offline``) each start leaves a
    separate part, to be sent with ``wandb sync``.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._wandb = import_module("wandb")
        saved = _read_json(run / "wandb.json") if step else {}
        run_id = saved.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        settings = {}
        known = getattr(self._wandb.Settings, "model_fields", ())
        if "finish_timeout" in known and "WANDB_FINISH_TIMEOUT" not in os.environ:
            settings["finish_timeout"] = CLOSE_SECONDS  # else W&B waits forever for the network
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=run_id,
            resume="allow" if saved else None,
            dir=os.environ.get("WANDB_DIR", str(run)),
            config=dict(recipe),
            settings=self._wandb.Settings(**settings),
        )
        _write_json(run / "wandb.json", {"id": run_id})
        self._first = self._run.starting_step  # the first step that W&B does not have
        self._images: list[tuple[int, str, Path]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(metrics) | self._reached(until=step), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        if step >= self._first:  # kept until its step's metrics are logged, which may be later
            self._images.append((step, name, path))

    def close(self, *, failed: bool) -> None:
        last = max((step for step, _, _ in self._images), default=0)
        if images := self._reached(until=last):
            self._run.log(images, step=last)
        self._run.finish(exit_code=int(failed))

    def _reached(self, *, until: int) -> dict[str, Any]:
        """Take the kept images of steps up to ``until``."""
        reached = [image for image in self._images if image[0] <= until]
        self._images = [image for image in self._images if image[0] > until]
        return {
            name: self._wandb.Image(str(path), caption=f"step {step}")
            for step, name, path in reached
        }


class _MLflow:
    """A run of MLflow, sent by a separate thread so that a slow server does not slow training.

    MLflow's own asynchronous logging would keep the process alive until every pending request has
    failed (docs/log.md); a daemon thread does not.

    A resumed run keeps its id. MLflow never drops steps, so its last step of each metric is
    requested once, and steps up to it are not sent again.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._mlflow = import_module("mlflow")
        self._json = run / "mlflow.json"
        self._local = None if _mlflow_server() else run / "mlflow"
        self._images_uri = (self._local / "artifacts").as_uri() if self._local else None
        store = f"sqlite:///{self._local / 'runs.db'}" if self._local else None
        if self._local:
            self._local.mkdir(exist_ok=True)
        self._client = self._mlflow.MlflowClient(tracking_uri=store)
        self._steps: dict[str, int] = {}  # last step that MLflow has of each metric
        self._images: dict[str, int] = {}  # and of each image
        self._moved = False
        if not (step and self._resume()):
            self._create(run.name, recipe)
        self._batch: list[Any] = []
        self._sent = time.monotonic()
        self._error: Exception | None = None
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = time.time_ns() // 10**6
        self._batch += [
            self._mlflow.entities.Metric(name, value, now, step)
            for name, value in ((_mlflow_name(name), value) for name, value in metrics.items())
            if step > self._steps.get(name, -1)
        ]
        if len(self._batch) >= BATCH or time.monotonic() - self._sent > SEND_SECONDS:
            self._send()

    def image(self, step: int, name: str, path: Path) -> None:
        if step > self._images.get(name, -1) and not self._moved:
            self._queue(partial(self._send_image, step, name, path))

    def close(self, *, failed: bool) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._send()
        self._queue(partial(self._client.set_terminated, self._id, status))
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"still sending {CLOSE_SECONDS:.0f} s after the end")
        self._raise()

    def _resume(self) -> bool:
        """Continue the run of ``mlflow.json``; False if MLflow does not have it."""
        saved = _read_json(self._json)
        if "run_id" not in saved:
            return False
        try:
            run = self._client.get_run(saved["run_id"])
        except self._mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False  # another server than before
            raise
        self._id = saved["run_id"]
        self._steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        self._images = saved.get("pictures", {})
        self._moved = bool(self._local) and not run.info.artifact_uri.startswith(self._images_uri)
        if self._moved:  # MLflow recorded the absolute path and would write there
            warn(f"mlflow gets no more images: the run was moved from {run.info.artifact_uri}")
        self._client.update_run(self._id, status="RUNNING")
        return True

    def _create(self, name: str, recipe: Mapping[str, Any]) -> None:
        given = None if self._local else os.environ.get("MLFLOW_EXPERIMENT_ID")
        experiment = given or self._experiment()
        self._id = self._client.create_run(experiment, run_name=name).info.run_id
        _write_json(self._json, {"run_id": self._id})
        param = self._mlflow.entities.Param
        params = [param(_mlflow_name(key), value) for key, value in _flat(recipe)]
        for k in range(0, len(params), PARAMETERS):
            self._client.log_batch(self._id, params=params[k : k + PARAMETERS])

    def _experiment(self) -> str:
        """The experiment's id; created if absent; another run may create it concurrently."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name, artifact_location=self._images_uri)
            except self._mlflow.MlflowException:
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        return experiment.experiment_id

    def _send(self) -> None:
        for k in range(0, len(self._batch), BATCH):
            part = self._batch[k : k + BATCH]
            self._queue(partial(self._client.log_batch, self._id, metrics=part))
        self._batch = []
        self._sent = time.monotonic()

    def _send_image(self, step: int, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._client.log_image(self._id, image, key=name, step=step, synchronous=True)
        self._images[name] = step
        _write_json(self._json, {"run_id": self._id, "pictures": self._images})

    def _queue(self, job: Callable[[], object]) -> None:
        self._raise()
        self._jobs.put(job)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while job := self._jobs.get():
                job()
        except Exception as error:
            self._error = error  # raised by the next call


OPEN: dict[str, Callable[[Path, Mapping[str, Any], int], Backend]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
}


def _mlflow_server() -> str | None:
    """The tracking URI that the user has set."""
    return os.environ.get("MLFLOW_TRACKING_URI")


def _mlflow_name(name: str) -> str:
    """A name of the characters that MLflow accepts."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's keys as on the command line, and their values.

    >>> dict(_flat({"name": "digits", "train": {"betas": [0.9, 0.95]}}))
    {'name': 'digits', 'train.betas': '[0.9, 0.95]'}
    """
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{above}{key}", text


def _read_json(path: Path) -> dict[str, Any]:
    """The object of a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(path) as partial_file:
        partial_file.write_text(json.dumps(content), encoding="utf-8")
