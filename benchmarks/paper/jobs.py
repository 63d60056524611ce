"""Trainings that are done once: several in parallel, each kept in a folder when it is finished."""

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
"""Result of a job, ``found``, with ``seconds`` and ``environment``; plain data for JSON."""


class Job(Protocol):
    """One training."""

    @property
    def label(self) -> str:
        """Label on pages; the same for all of its seeds, and possibly shared by pages."""

    @property
    def folder(self) -> str:
        """Name of its folder, unique for each setting that affects the result."""

    def do(self, place: Path) -> dict[str, Any]:
        """Train in the folder, or resume there; returns results as plain data for JSON."""


def finished(jobs: Iterable[Job], work: Path, at_once: int) -> dict[str, list[Record]]:
    """The records of jobs by label, one per seed; unfinished jobs are run now.

    Args:
        jobs: the requested jobs; two with one folder are run once.
        work: parent of their folders.
        at_once: number of parallel jobs, each in a process of one thread.
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
    """Run the jobs; print a line when each ends."""
    if not todo:
        return
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(at_once, mp_context=context, initializer=_alone) as pool:
        running = [pool.submit(_do, job, work) for job in todo]
        try:
            for future in as_completed(running):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure, start no other


def _alone() -> None:
    """Use one thread and print nothing, because other processes share the machine."""
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
