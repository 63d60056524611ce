"""Console output: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """Called with the total number of units done and a text to show beside it."""

    def __call__(self, done: int, shown: str = "") -> None: ...


_enabled = True  # in distributed runs, on rank 0 alone


def quiet() -> None:
    """Print nothing more in this process, because another rank prints for all."""
    global _enabled
    _enabled = False


def say(text: str) -> None:
    """Print a line at once; it appears above a progress bar."""
    if _enabled:
        print(text, flush=True)


def remark(text: str) -> None:
    """Print a line on standard error, so that standard output stays machine-readable."""
    if _enabled:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    if _enabled:
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int, *, unit: str, start: int = 0, shown: bool = True) -> Iterator[Bar]:
    """A progress bar with speed and time left; silent if standard error is not a terminal.

    >>> with bar("counting", 3, unit="sheep") as done:
    ...     done(3, "all black")
    """
    if not (shown and _enabled and sys.stderr.isatty()):
        yield lambda done, shown="": None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[shown]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        task = progress.add_task(label, total=total, completed=start, rate="", shown="")

        def update(done: int, shown: str = "") -> None:
            speed = progress.tasks[task].speed
            rate = f"{speed:.1f} {unit}/s" if speed else ""
            progress.update(task, completed=done, rate=rate, shown=shown)

        yield update
