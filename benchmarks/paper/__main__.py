"""Train the models of the paper's tables, in small; write a page, a figure and JSON for each table.

    python -m benchmarks.paper toy|pairs|noise|bottleneck|parts|cost|precondition|all
        [--seeds N] [--pictures DIR] [--jobs 2] [--work runs/paper] [--out docs/results]
        [section.key=value ...]

A trained model is kept in the work folder and not trained again, so an interrupted command resumes,
and pages share models. Remove the folder to start again. Overrides are applied to the recipes of
`recipes/paper/`. Exit code 1 if a requirement of the toy or of the pairs is not met.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch
os.environ["OMP_NUM_THREADS"] = "1"  # per training; several run in parallel

import numpy as np  # noqa: E402

from benchmarks.paper import (  # noqa: E402
    bottleneck,
    cost,
    noise,
    pairs,
    parts,
    precondition,
    toypage,
)
from benchmarks.paper.jobs import Job, finished  # noqa: E402
from benchmarks.paper.pages import Page, Shown, write  # noqa: E402
from benchmarks.paper.pictures import PictureSet  # noqa: E402
from benchmarks.paper.trainings import Setup  # noqa: E402
from jitkit.errors import JitkitError  # noqa: E402
from jitkit.utils.console import say  # noqa: E402

TABLES: dict[str, ModuleType] = {
    "toy": toypage,
    "pairs": pairs,
    "noise": noise,
    "bottleneck": bottleneck,
    "parts": parts,
    "cost": cost,
    "precondition": precondition,
}
SEEDS = {"toy": 5}
OTHERS = 1
STOPPED = 75  # temporary failure: run again, as `jitkit train`


def made(name: str, setup: Setup, work: Path, at_once: int, out: Path, command: str) -> Page:
    """Train the models of a table, and write its page."""
    table = TABLES[name]
    jobs: Sequence[Job] = table.jobs(setup)
    records = finished(jobs, work, at_once)
    shown = {job.label: _shown(work / job.folder) for job in reversed(jobs)}  # the first seed's
    page: Page = table.page(records, shown)
    write(page, records, command, out, "" if name == "toy" else setup.pictures.about)
    return page


def _shown(place: Path) -> Shown:
    with np.load(place / "shown.npz") as arrays:
        return Shown(arrays["samples"], arrays["real"])


def _arguments() -> Any:
    parser = argparse.ArgumentParser("python -m benchmarks.paper", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("table", choices=[*TABLES, "all"])
    parser.add_argument("--seeds", type=int, help="models of each kind; toy 5, others 1 or 3")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; OpenMoji if not given")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, a thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args()


def main() -> int:
    """Exit code: 1 if a requirement is not met, 2 on a user error, 75 if stopped."""
    arguments = _arguments()
    command = shlex.join(["python", "-m", "benchmarks.paper", *sys.argv[1:]])
    pictures = PictureSet(arguments.pictures, arguments.work)
    met = True
    for name in TABLES if arguments.table == "all" else [arguments.table]:
        seeds = arguments.seeds or SEEDS.get(name, OTHERS)
        setup = Setup(pictures, seeds, tuple(arguments.overrides))
        try:
            page = made(name, setup, arguments.work, arguments.jobs, arguments.out, command)
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            return STOPPED
        except JitkitError as error:
            print(error, file=sys.stderr)
            return 2
        say(f"\n{page.title} ({arguments.out / name}.md)\n{page.table}\n")
        say("\n".join(map(str, page.claims)))
        met &= all(claim.holds for claim in page.claims if claim.demanded)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
