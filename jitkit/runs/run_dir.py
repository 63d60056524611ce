"""A run's folder: recipe, environment, logs, checkpoints, scores and samples.

```
runs/digits/
  recipe.yaml        every key with its value
  environment.json   versions, machine, commit
  status.json        running, stopped (by a signal, saved), failed or done
  metrics.jsonl      one object a step: loss and other metrics
  speed.jsonl        throughput and waiting times
  tensorboard/       the same metrics and figures for TensorBoard, if it is installed
  checkpoints/       step-N/, the newest are kept
  evaluation.json    scores of samples
  sweeps/            scores under many settings; best.yaml has the best
  samples/           previews of samples while training; output of `jitkit sample`
  ema/               snapshots of power-function EMAs, and the EMAs that `jitkit ema` makes
```
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

from jitkit.errors import JitkitError, RecipeError
from jitkit.utils.atomic import atomic_write
from jitkit.utils.cpu import cores, cpuinfo

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
LIBRARIES = ("torch", "numpy", "safetensors", "pydantic", "pillow")


def choose_folder(name: str, run: Path | None, *, new: bool) -> Path:
    """The folder of a run: ``run``, else ``runs/<name>``; with ``new``, an unused name beside it.

    Raises:
        RecipeError: the folder holds files but no run.
    """
    first = run or Path("runs") / name
    folder, number = first, 2
    while new and folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    others = [entry for entry in folder.iterdir() if entry.name != LOCK] if folder.is_dir() else []
    if others and not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} holds files but no run; choose another folder with --run DIR")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder} is a file; choose a folder with --run DIR")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically (`atomic_write`)."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions, machine and the commit of the code."""
    versions = {}
    for library in ("jitkit", *LIBRARIES):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | versions,
        "machine": {
            "system": platform.platform(),
            "processor": cpuinfo("model name") or platform.processor(),
            "cores": cores(),
        },
        "commit": _commit(),
    }


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append lines of JSON to a file: all of them or, on a full disk, none.

    Raises:
        OSError: they cannot be written; the file is unchanged.
    """
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


def skipped_at_end(run: Path) -> int:
    """How many of the last steps in ``metrics.jsonl`` were skipped, in a row."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    skipped = takewhile(lambda line: "skipped" in json.loads(line), reversed(lines))
    return len(list(skipped))


@contextmanager
def locked(
    run: Path,
    writes: bool = True,
    *,
    busy: str = "trains in {}; wait for it, or choose a folder with --run DIR",
) -> Iterator[None]:
    """Lock a run's folder against other writing processes while the block runs.

    Args:
        run: the folder; made if it does not exist.
        writes: whether this process is the one of its team that writes.
        busy: for the error message, what another process does there.

    Raises:
        JitkitError: another process holds the lock.
    """
    if not writes or fcntl is None:
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    lock = run / LOCK
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JitkitError(f"another process {busy.format(run)}") from None
        except OSError:
            pass  # a file system without locks
        try:
            yield
        finally:
            if [entry.name for entry in run.iterdir()] == [LOCK]:  # nothing was written
                lock.unlink()
                run.rmdir()


def cut_metrics(run: Path, step: int) -> None:
    """Remove metrics logged after a step, so that a run resumed from it logs each step once."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # torn by a kill
    write_text(path, "".join(kept))


def _commit() -> str | None:
    try:
        described = subprocess.run(
            ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None
