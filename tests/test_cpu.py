"""CPU settings of a process: user settings take precedence, and each has an effect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

SPINS = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
PAGES = "import os; print(os.environ.get('THP_MEM_ALLOC_ENABLE'))"
FAULTS = """
import numpy as np, resource
def step():
    held = [np.ones(2**20) for _ in range(160)]  # 8 MiB each
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def output(script: str, **environment: str) -> str:
    """Output of a script in a new process, with only these settings."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMP_", "GOMP_", "MALLOC_", "GLIBC_", "THP_"))
    }
    setup = "from jitkit.utils.cpu import configure_process\nconfigure_process()\n"
    command = [sys.executable, "-c", setup + script]
    return subprocess.check_output(command, text=True, env=kept | environment).strip()


def test_idle_threads_sleep_soon_unless_the_user_sets_otherwise() -> None:
    assert output(SPINS) == "1000"
    assert output(SPINS, GOMP_SPINCOUNT="7") == "7"
    assert output(SPINS, OMP_WAIT_POLICY="PASSIVE") == "None"


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="a kernel without huge pages")
def test_huge_pages_are_requested_unless_the_user_sets_otherwise() -> None:
    assert output(PAGES) == "1"
    assert output(PAGES, THP_MEM_ALLOC_ENABLE="0") == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_of_one_step_is_reused_by_the_next() -> None:
    pages = 160 * 2**23 // 4096
    assert int(output(FAULTS)) < pages / 10
    assert int(output(FAULTS, MALLOC_TRIM_THRESHOLD_="65536")) > pages / 10
