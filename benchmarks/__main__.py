"""Speed of jitkit against a plain reference and the limits of the machine, in one run.

    python -m benchmarks [step] [sample] [loader] [start] [memory] [scaling] [--quick] [--threads N]

Prints tables, writes results as JSON, and reports which requirements are met. Exit codes: 0 all
are met, 1 one is not, 2 a name is unknown. Names:

    step     a training step against the reference, and its share of the best matrix product
    sample   a guided trajectory against the reference's
    loader   arrays and images, against raw reads and plain decoding
    start    time to the answer of a command, and to the first step
    memory   peak memory of a training step beside the estimate
    scaling  cost against axes, tokens, width, depth, and resolution with patch

All if none is given.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch

from benchmarks.speed.results import Plan, Result, Size  # noqa: E402

NAMES = ("step", "sample", "loader", "start", "memory", "scaling")


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 on an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="which of them; all where none is given")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less data")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for tests
    parser.add_argument(
        "--threads", type=int, default=None, help="of torch; its own where not given"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks.json"), metavar="FILE")
    found = parser.parse_args(words)
    unknown = [name for name in found.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if found.threads is not None and found.threads < 1:
        parser.error(f"--threads {found.threads} must be at least 1")
    return found


def run(name: str, plan: Plan) -> Result:
    """Run one benchmark; its module is imported here, as some take seconds to import."""
    result: Result = importlib.import_module(f"benchmarks.speed.{name}").run(plan)
    return result


def where(plan: Plan) -> dict[str, Any]:
    """Machine, threads, versions and commit."""
    from jitkit.runs.run_dir import environment

    return environment() | {"threads": plan.threads, "size": plan.size}


def write(path: Path, machine: dict[str, Any], results: Sequence[Result]) -> None:
    """Write all results of a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"environment": machine, "results": {each.name: each.plain() for each in results}}
    path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """Run the requested benchmarks; returns the exit code."""
    given = parse_arguments(words)
    import torch

    if given.threads:
        torch.set_num_threads(given.threads)
    size: Size = "tiny" if given.tiny else "quick" if given.quick else "full"
    plan = Plan(size, torch.get_num_threads())
    about = where(plan)
    machine, versions = about["machine"], about["versions"]
    print(
        f"{machine['processor']}, {machine['cores']} cores, threads of torch: {plan.threads}, "
        f"torch {versions['torch']}, commit {about['commit']}\n"
    )
    results = []
    for name in given.names or NAMES:
        results.append(run(name, plan))
        print(results[-1].markdown(), flush=True)
        write(
            given.json, about, results
        )  # after each one, so that an interrupted run leaves results
    print(f"results: {given.json}")
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
