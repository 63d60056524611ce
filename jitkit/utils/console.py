"""What a long command tells people: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """Called with how many units are done in all, and what to show beside them."""

    def __call__(self, done: int, shown: str = "") -> None: ...


_speaks = True  # one process of several does


def quiet() -> None:
    """Say and show nothing more in this process: another one speaks for all."""
    global _speaks
    _speaks = False


def say(text: str) -> None:
    """A line for the user, at once; above the bar where there is one."""
    if _speaks:
        print(text, flush=True)


def remark(text: str) -> None:
    """A line on standard error, beside an answer that a program may read."""
    if _speaks:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line that the user should not miss, on standard error."""
    if _speaks:
        print(f"warning: {text}", file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, total: int, *, unit: str, start: int = 0, shown: bool = True) -> Iterator[Bar]:
    """A progress bar with rate and time left; silent where standard error is no terminal.

    >>> with bar("counting", 3, unit="sheep") as done:
    ...     done(3, "all black")
    """
    if not (shown and _speaks and sys.stderr.isatty()):
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
