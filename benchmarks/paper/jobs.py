"""Trainings that are done once: several side by side, each kept in a folder when it is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from jitkit.runs.run_dir import environment, write_text
from jitkit.utils.console import bar, quiet, say

Record = Mapping[str, Any]
"""What a job found, ``found``, and ``seconds``, ``environment``; plain data for JSON."""


class Job(Protocol):
    """One training."""

    @property
    def label(self) -> str:
        """What a page calls it; the same for all of its seeds, and perhaps shared by pages."""

    @property
    def folder(self) -> str:
        """Name of its folder, which must differ wherever anything that matters differs."""

    def do(self, place: Path) -> dict[str, Any]:
        """Train in the folder, or resume there; returns results as plain data for JSON."""


def finished(jobs: Iterable[Job], work: Path, at_once: int) -> dict[str, list[Record]]:
    """The records of jobs by label, seed by seed; those that are not done are done now.

    Args:
        jobs: what is asked for; two with one folder are done once.
        work: where their folders are.
        at_once: jobs side by side, each in a process of one thread.
    """
    requested = list(jobs)
    todo = list({job.folder: job for job in requested if not _file(work, job).is_file()}.values())
    with bar("trainings", len(todo), unit="trainings") as show:
        for number, line in enumerate(_done(todo, work, at_once), start=1):
            say(line)
            show(number)
    found: dict[str, list[Record]] = {}
    for job in requested:
        record = json.loads(_file(work, job).read_text(encoding="utf-8"))
        found.setdefault(job.label, []).append(record)
    return found


def _file(work: Path, job: Job) -> Path:
    return work / job.folder / "result.json"


def _done(todo: Sequence[Job], work: Path, at_once: int) -> Iterator[str]:
    """Do the jobs; a line for each as it ends."""
    if not todo:
        return
    context = get_context("spawn")  # a fork would inherit torch's threads, but not what they hold
    with ProcessPoolExecutor(at_once, mp_context=context, initializer=_alone) as pool:
        running = [pool.submit(_do, job, work) for job in todo]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure, start no other


def _alone() -> None:
    """One thread and no word from a process whose siblings share the machine."""
    import torch

    torch.set_num_threads(1)
    quiet()


def _do(job: Job, work: Path) -> str:
    place = work / job.folder
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    found = job.do(place)
    seconds = time.monotonic() - began
    record = {"label": job.label, "found": found, "seconds": seconds, "environment": environment()}
    write_text(place / "result.json", json.dumps(record, indent=1))
    return f"{job.label}: {seconds:.0f} s ({place})"
