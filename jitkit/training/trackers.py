"""Where else a run tells its numbers and pictures: TensorBoard, Weights & Biases, MLflow.

``metrics.jsonl`` is the record of a run; these are copies of it for people to look at. None of
them may stop a run: one that fails is named in a warning and gets nothing more.

```
tensorboard   RUN/tensorboard/            tensorboard --logdir RUN
wandb         RUN/wandb/, RUN/wandb.json  WANDB_PROJECT, WANDB_MODE and the like are heard
mlflow        RUN/mlflow/, RUN/mlflow.json   mlflow ui --backend-store-uri sqlite:///RUN/mlflow/runs.db,
                                          or MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME
```

The JSON files hold the name under which a run is known there, so that it goes on as one curve.
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
from jitkit.utils.atomic import written_aside
from jitkit.utils.console import warn

BACKENDS = ("tensorboard", "wandb", "mlflow")
PROJECT = "jitkit"  # what W&B calls a project and MLflow an experiment
SEND_SECONDS = 5.0  # between two batches of numbers for MLflow
BATCH = 1000  # numbers in one of them: more are refused
PARAMETERS = 100  # of a recipe in one of them: more are refused
CLOSE_SECONDS = 300.0  # to wait at the end for what is still on its way


class Backend(Protocol):
    """One place that a run is told to. Anything that it raises costs it the rest of the run."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, path: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Trackers:
    """The backends of one run; each call goes to all that have not failed."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self._backends = dict(backends)
        self._failed: list[Backend] = []
        self._outer = sys.exc_info()[1]  # of somebody who trains while handling it

    def log(self, step: int, numbers: Mapping[str, float | None]) -> None:
        """Tell a step's numbers; those that are None are left out."""
        told = {name: float(value) for name, value in numbers.items() if value is not None}
        if told:
            self._each(lambda backend: backend.log(step, told))

    def picture(self, step: int, name: str, path: Path) -> None:
        """Show a picture file as the step's picture of that name."""
        self._each(lambda backend: backend.picture(step, name, path))

    def close(self) -> None:
        """Send what is still waiting and end; a run that an exception ends is marked as failed."""
        failed = sys.exc_info()[1] is not self._outer
        self._each(lambda backend: backend.close(failed=failed))
        for backend in self._failed:
            with suppress(Exception):  # it was named when it failed
                backend.close(failed=True)
        self._backends.clear()
        self._failed.clear()

    def _each(self, do: Callable[[Backend], None]) -> None:
        for name, backend in list(self._backends.items()):
            try:
                do(backend)
            except Exception as error:  # whatever a library, a disk or a network may raise
                _warn_of(name, error)
                self._failed.append(self._backends.pop(name))


def open_trackers(
    asked: Literal["auto"] | Sequence[str], run: Path, recipe: Mapping[str, Any], *, step: int
) -> Trackers:
    """The backends that a run is told to, each going on from where the run stands.

    Args:
        asked: names from ``BACKENDS``; "auto" is TensorBoard where it is installed, else none.
        run: the run's folder.
        recipe: the resolved recipe, as numbers, texts, lists and mappings.
        step: steps that are done, 0 for a new run. What was told of later ones by a run that was
            killed is forgotten (TensorBoard) or kept and not told again (the others).

    Raises:
        JitkitError: a backend is unknown or not installed. One that cannot be reached is only
            warned of.
    """
    names = _installed(asked)
    run = run.resolve()
    run.mkdir(parents=True, exist_ok=True)
    opened: dict[str, Backend] = {}
    for name in names:
        try:
            opened[name] = OPEN[name](run, recipe, step)
        except Exception as error:
            _warn_of(name, error)
    return Trackers(opened)


def _installed(asked: Literal["auto"] | Sequence[str]) -> list[str]:
    """The names asked for, none of them loaded yet.

    Raises:
        JitkitError: one is unknown or not installed.
    """
    if asked == "auto":
        return ["tensorboard"] if _is_installed("tensorboard") else []
    names = list(dict.fromkeys([asked] if isinstance(asked, str) else asked))
    for name in names:
        if name not in BACKENDS:
            known = listed(BACKENDS)
            raise JitkitError(f"no tracker {name!r}{nearest(name, BACKENDS)}; there are {known}")
        if not _is_installed(name):
            raise JitkitError(
                f"tracker {name!r} was asked for and is not installed: pip install {name}"
            )
    if "mlflow" in names and not (_mlflow_server() or _is_installed("sqlalchemy", "alembic")):
        raise JitkitError(  # mlflow-skinny alone; MLflow 3 no longer writes plain files
            "tracker 'mlflow' keeps its numbers in SQLite, which this installation cannot: "
            "pip install sqlalchemy alembic, or name a server in MLFLOW_TRACKING_URI"
        )
    return names


def _is_installed(*packages: str) -> bool:
    """Whether they could be imported; a mere folder of that name, as W&B leaves, has no origin."""
    specs = [find_spec(package) for package in packages]
    return all(spec is not None and spec.origin is not None for spec in specs)


def _warn_of(name: str, error: Exception) -> None:
    first = str(error).strip().partition("\n")[0]
    what = f"{type(error).__name__}: {first}" if first else type(error).__name__
    warn(f"{name} failed and gets no more of this run, which goes on ({what})")


class _TensorBoard:
    """An event file for each process of a run, written with TensorBoard's own record writer.

    Its ``EventFileWriter`` has a thread whose errors reach nobody in time, and loads TensorFlow
    where that is installed. A record goes to the system at once: a kill loses nothing.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._event = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)  # files are read in the order of their names
        name = f"events.out.tfevents.{seconds:010}.{rest:09}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb", buffering=0)
        self._records = records.RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._write(step=step + 1 if step else 0, session_log=start)  # forget this step and later
        self._write(step=step, summary=self._text("recipe", recipe))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        value = self._summary.Summary.Value
        values = [value(tag=name, simple_value=number) for name, number in numbers.items()]
        self._write(step=step, summary=self._summary.Summary(value=values))

    def picture(self, step: int, name: str, path: Path) -> None:
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

    def _write(self, **what: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **what)
        self._records.write(event.SerializeToString())

    def _text(self, name: str, shown: Mapping[str, Any]) -> Any:
        """A summary that the text page shows as code: Markdown does so with indented lines."""
        lines = json.dumps(shown, indent=1, default=str).splitlines()
        value = self._summary.Summary.Value(tag=name)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = import_module("tensorboard.compat.proto.types_pb2").DT_STRING
        value.tensor.string_val.append("\n".join(f"    {line}" for line in lines).encode())
        return self._summary.Summary(value=[value])


class _Wandb:
    """A run of Weights & Biases, whose own process does the sending.

    A run that goes on keeps its id. W&B takes no step twice, so the steps that a killed run had
    told are passed over until the run is past them; being the same, they need not be told again.
    Without a network (``WANDB_MODE=offline``) each process leaves its own part beside the others,
    to be sent with ``wandb sync``.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._wandb = import_module("wandb")
        noted = _noted(run / "wandb.json") if step else {}
        name = noted.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
        patience = {}  # without it, W&B waits for a lost network for ever
        known = getattr(self._wandb.Settings, "model_fields", ())
        if "finish_timeout" in known and "WANDB_FINISH_TIMEOUT" not in os.environ:
            patience["finish_timeout"] = CLOSE_SECONDS
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", run.name),
            id=name,
            resume="allow" if noted else None,
            dir=os.environ.get("WANDB_DIR", str(run)),
            config=dict(recipe),
            settings=self._wandb.Settings(**patience),
        )
        _note(run / "wandb.json", {"id": name})
        self._first = self._run.starting_step  # the first that W&B does not have
        self._pictures: list[tuple[int, str, Path]] = []

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(numbers) | self._shown(until=step), step=step)

    def picture(self, step: int, name: str, path: Path) -> None:
        if step >= self._first:  # kept until its step's numbers are there: they may come later
            self._pictures.append((step, name, path))

    def close(self, *, failed: bool) -> None:
        last = max((step for step, _, _ in self._pictures), default=0)
        if shown := self._shown(until=last):
            self._run.log(shown, step=last)
        self._run.finish(exit_code=int(failed))

    def _shown(self, *, until: int) -> dict[str, Any]:
        """The pictures that wait for a step which is reached."""
        reached = [picture for picture in self._pictures if picture[0] <= until]
        self._pictures = [picture for picture in self._pictures if picture[0] > until]
        return {
            name: self._wandb.Image(str(path), caption=f"step {step}")
            for step, name, path in reached
        }


class _MLflow:
    """A run of MLflow, told by a thread of its own: a slow server must not slow the training.

    A run that goes on keeps its id. MLflow forgets nothing, so what it has of each name is asked
    once, and steps that it knows are not told again.
    """

    def __init__(self, run: Path, recipe: Mapping[str, Any], step: int) -> None:
        self._mlflow = import_module("mlflow")
        self._note = run / "mlflow.json"
        self._own = None if _mlflow_server() else run / "mlflow"
        self._pictures_uri = (self._own / "artifacts").as_uri() if self._own else None
        store = f"sqlite:///{self._own / 'runs.db'}" if self._own else None
        if self._own:
            self._own.mkdir(exist_ok=True)
        self._client = self._mlflow.MlflowClient(tracking_uri=store)
        self._steps: dict[str, int] = {}  # last one that MLflow has of each number
        self._pictures: dict[str, int] = {}  # and of each picture
        self._moved = False
        if not (step and self._find()):
            self._create(run.name, recipe)
        self._batch: list[Any] = []
        self._sent = time.monotonic()
        self._error: Exception | None = None
        self._jobs: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        now = time.time_ns() // 10**6
        self._batch += [
            self._mlflow.entities.Metric(name, number, now, step)
            for name, number in ((_plain(name), number) for name, number in numbers.items())
            if step > self._steps.get(name, -1)
        ]
        if len(self._batch) >= BATCH or time.monotonic() - self._sent > SEND_SECONDS:
            self._send()

    def picture(self, step: int, name: str, path: Path) -> None:
        if step > self._pictures.get(name, -1) and not self._moved:
            self._do(partial(self._show, step, name, path))

    def close(self, *, failed: bool) -> None:
        status = "FAILED" if failed else "FINISHED"
        self._send()
        self._do(partial(self._client.set_terminated, self._id, status))
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise TimeoutError(f"still sending {CLOSE_SECONDS:.0f} s after the end")
        self._raise()

    def _find(self) -> bool:
        """Whether the run is known here; then it goes on."""
        noted = _noted(self._note)
        if "run_id" not in noted:
            return False
        try:
            found = self._client.get_run(noted["run_id"])
        except self._mlflow.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False  # another server than before
            raise
        self._id = noted["run_id"]
        self._steps = {metric.key: metric.step for metric in found.to_proto().data.metrics}
        self._pictures = noted.get("pictures", {})
        self._moved = bool(self._own) and not found.info.artifact_uri.startswith(self._pictures_uri)
        if self._moved:  # MLflow holds the place in full and would write there
            warn(f"mlflow gets no more pictures: the run was moved from {found.info.artifact_uri}")
        self._client.update_run(self._id, status="RUNNING")
        return True

    def _create(self, name: str, recipe: Mapping[str, Any]) -> None:
        asked = None if self._own else os.environ.get("MLFLOW_EXPERIMENT_ID")
        known = asked or self._experiment()
        self._id = self._client.create_run(known, run_name=name).info.run_id
        _note(self._note, {"run_id": self._id})
        told = [self._mlflow.entities.Param(_plain(key), value) for key, value in _flat(recipe)]
        for k in range(0, len(told), PARAMETERS):
            self._client.log_batch(self._id, params=told[k : k + PARAMETERS])

    def _experiment(self) -> str:
        """The experiment's id; it is made where there is none, by whichever run comes first."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=self._pictures_uri)
            except self._mlflow.MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return found.experiment_id

    def _send(self) -> None:
        for k in range(0, len(self._batch), BATCH):
            part = self._batch[k : k + BATCH]
            self._do(partial(self._client.log_batch, self._id, metrics=part))
        self._batch = []
        self._sent = time.monotonic()

    def _show(self, step: int, name: str, path: Path) -> None:
        from PIL import Image

        with Image.open(path) as image:
            self._client.log_image(self._id, image, key=name, step=step, synchronous=True)
        self._pictures[name] = step
        _note(self._note, {"run_id": self._id, "pictures": self._pictures})

    def _do(self, job: Callable[[], object]) -> None:
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
    """The store that the user has named."""
    return os.environ.get("MLFLOW_TRACKING_URI")


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """A recipe's keys as they are written on the command line, and their values.

    >>> dict(_flat({"name": "digits", "train": {"betas": [0.9, 0.95]}}))
    {'name': 'digits', 'train.betas': '[0.9, 0.95]'}
    """
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{above}{key}", text


def _noted(path: Path) -> dict[str, Any]:
    """What ``_note`` wrote; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _note(path: Path, facts: Mapping[str, Any]) -> None:
    with written_aside(path) as aside:
        aside.write_text(json.dumps(facts), encoding="utf-8")
