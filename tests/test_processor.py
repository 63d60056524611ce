"""Settings of a process: made where the user has made none, and felt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

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


def said(script: str, **environment: str) -> str:
    """What a script prints in a process of its own, with only these settings."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("OMP_", "GOMP_", "MALLOC_", "GLIBC_", "THP_"))
    }
    command = [sys.executable, "-c", f"from jitkit.utils.cpu import settle; settle()\n{script}"]
    return subprocess.check_output(command, text=True, env=kept | environment).strip()


def test_idle_threads_sleep_soon_unless_the_user_has_said_otherwise() -> None:
    assert said(SPINS) == "1000"
    assert said(SPINS, GOMP_SPINCOUNT="7") == "7"
    assert said(SPINS, OMP_WAIT_POLICY="PASSIVE") == "None"


@pytest.mark.skipif(not LARGE_PAGES.exists(), reason="a kernel without large pages")
def test_large_pages_are_asked_for_unless_the_user_has_said_otherwise() -> None:
    assert said(PAGES) == "1"
    assert said(PAGES, THP_MEM_ALLOC_ENABLE="0") == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_memory_of_one_step_is_that_of_the_next() -> None:
    pages = 160 * 2**23 // 4096
    assert int(said(FAULTS)) < pages / 10
    assert int(said(FAULTS, MALLOC_TRIM_THRESHOLD_="65536")) > pages / 10
