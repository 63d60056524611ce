"""Cost of `jitkit report` for runs of increasing length: CPU seconds, memory, size of the page.

    python -m benchmarks.report [--steps 1000 100000 1000000]

The runs are synthetic: the recipe `digits`, and a line of metrics for each step. Requirements: a
few seconds for 100,000 steps, memory that does not grow with the steps, pages far below 5 MB.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from jitkit.recipe.load import dump_recipe, load_recipe


def make_run(folder: Path, steps: int) -> None:
    """A run whose loss falls like 1 / sqrt(step), with noise."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(dump_recipe(load_recipe("digits")))
    rng = random.Random(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            loss = rng.lognormvariate(0, 0.1) / step**0.5
            record = {"step": step, "lr": 1e-3, "loss": loss, "gradient": 2 * loss}
            bins = [loss * (0.1 + rng.random()) for _ in range(10)]
            file.write(json.dumps(record | {"loss_bins": bins}) + "\n")


def measure(run: Path) -> tuple[float, float, float]:
    """CPU seconds and MiB of one report in its own process, and MB of its page."""
    code = (
        "import resource, sys; from pathlib import Path; "
        "from jitkit.report.page import write_report; "
        "write_report([Path(sys.argv[1])]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [sys.executable, "-c", code, str(run)], check=True, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, float(result.stdout), (run / "report.html").stat().st_size / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 100_000, 1_000_000])
    print("| steps | CPU time | memory | page |\n|---|---|---|---|")
    for steps in parser.parse_args().steps:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            make_run(run, steps)
            seconds, memory, size = measure(run)
        print(f"| {steps:,} | {seconds:.1f} s | {memory:.0f} MiB | {size:.2f} MB |", flush=True)


if __name__ == "__main__":
    main()
