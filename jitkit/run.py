"""A run's folder: what was asked, where it ran, what happened.

```
runs/digits/
  recipe.yaml        every key with its value
  environment.json   versions, machine, commit
  metrics.jsonl      one object a step
  checkpoints/       step-N/, newest kept
  samples/           pictures of samples while training; what `jitkit sample` writes
```
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jitkit.errors import RecipeError

LIBRARIES = ("torch", "numpy", "safetensors", "pydantic", "pillow")


def choose_folder(name: str, run: Path | None, *, new: bool) -> Path:
    """The folder of a run: the one that is asked for, else ``runs/<name>``; with ``new``, one
    beside it that does not exist yet.

    Raises:
        RecipeError: the folder holds something that is not a run.
    """
    first = run or Path("runs") / name
    folder, number = first, 2
    while new and folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    if folder.is_dir() and not (folder / "recipe.yaml").is_file() and any(folder.iterdir()):
        raise RecipeError(f"{folder} holds files but no run; choose another folder with --run DIR")
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"{folder} is a file; choose a folder with --run DIR")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a small file aside and rename it, so that it is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def environment() -> dict[str, Any]:
    """Versions, machine and the commit of the code, for the record."""
    found = {}
    for library in ("jitkit", *LIBRARIES):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | found,
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
        },
        "commit": _commit(),
    }


def append_metrics(run: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add lines to ``metrics.jsonl``, each whole."""
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def cut_metrics(run: Path, step: int) -> None:
    """Forget what was logged after a step, so that a run that goes on from it logs it once."""
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


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
