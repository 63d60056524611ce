"""Seconds from the start of a command to its output, each in its own process.

The lower limits beside them are the time of Python to start, and to load torch, which any command
that runs a network needs. The first step of training is that of the recipe `digits`, from the
start of the command, with everything before it: checks, data, and a first sample.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.speed.measure import Timing, interleaved
from benchmarks.speed.results import Demand, Plan, Result, Table, percent
from jitkit.errors import JitkitError

ROOT = Path(__file__).parents[2]
HELP, IMPORT, FIRST = "jitkit --help", "import jitkit", "first step of `jitkit train digits`"
NOTHING, TORCH = "Python, nothing", "Python, import torch"
MOST_HELP, MOST_FIRST = 0.5, 10.0  # seconds

FIRST_STEP = """
import os, sys
from jitkit.utils.cpu import configure_process
configure_process()
import jitkit.training.step
take = jitkit.training.step.Learner.train_step
def once(*given):
    take(*given)
    os._exit(0)
jitkit.training.step.Learner.train_step = once
from jitkit.cli import main
sys.argv = ["jitkit", "train", *sys.argv[1:]]
main()
"""
"""The command, which ends after the first step; it loads torch a little earlier than it would."""
LOADS_TORCH = "import sys, jitkit; print('torch' in sys.modules)"


def call(words: list[str], environment: dict[str, str]) -> str:
    """Output of a command.

    Raises:
        CalledProcessError: it fails.
    """
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def first_step(environment: dict[str, str]) -> None:
    """Run the digits recipe until its first step is done, in a temporary folder.

    Raises:
        JitkitError: it ended before.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [str(ROOT / "recipes" / "digits.yaml"), "--run", str(Path(folder) / "run")]
        python = [sys.executable, "-c", FIRST_STEP]
        done = subprocess.run(
            [*python, *words], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise JitkitError(f"the digits' run ended before its first step:\n{done.stderr}")


def takers(plan: Plan) -> dict[str, Callable[[], object]]:
    """Every command; tests leave out those that load torch."""
    environment = os.environ | {"OMP_NUM_THREADS": str(plan.threads)}

    def python(code: str) -> Callable[[], object]:
        return partial(call, [sys.executable, "-c", code], environment)

    command = Path(sys.executable).with_name("jitkit")
    words = [str(command)] if command.is_file() else [sys.executable, "-m", "jitkit"]
    found: dict[str, Callable[[], object]] = {
        NOTHING: python("pass"),
        IMPORT: python("import jitkit"),
        HELP: partial(call, [*words, "--help"], environment),
    }
    if plan.size == "tiny":
        return found
    return found | {TORCH: python("import torch"), FIRST: partial(first_step, environment)}


def run(plan: Plan) -> Result:
    """All commands, in turns."""
    took = interleaved(takers(plan), rounds=plan.pick(5, 3, 1), warmup=plan.pick(1, 1, 0))
    loads = call([sys.executable, "-c", LOADS_TORCH], dict(os.environ)).strip() == "True"
    result = Result("start", [_table(took)])
    result.numbers = {
        "seconds": {name: timing.median for name, timing in took.items()},
        "spread": {name: timing.spread for name, timing in took.items()},
        "import_loads_torch": loads,
    }
    result.notes = [f"`import jitkit` loads {'' if loads else 'no '}torch."]
    result.demands = [
        Demand("`jitkit --help`", took[HELP].median, MOST_HELP, unit="s"),
        Demand("modules named torch after `import jitkit`", float(loads), 0),
    ]
    if FIRST in took:
        result.demands.append(Demand(FIRST, took[FIRST].median, MOST_FIRST, unit="s"))
    return result


def _table(took: dict[str, Timing]) -> Table:
    rows = [[name, f"{t.median:.2f} s", percent(t.spread)] for name, t in took.items()]
    return Table("From a command to its answer (medians)", ["what", "time", "spread"], rows)
