"""CPU settings of this process: threads, malloc and huge pages, set before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

LARGEST_IN_HEAP = 32 * 2**20  # bytes; the maximum that glibc accepts
KEEP_ALL = -1  # never return free memory at the end of the heap to the kernel


def configure_process() -> None:
    """Let idle threads sleep soon, and keep freed memory between training steps.

    Threads that spin while they wait starve a shared machine (docs/log.md). By default glibc
    returns freed memory to the kernel, which clears every page again in the next step. This costs
    a tenth of a step of JiT-B/16; huge pages of 2 MiB save another tenth (docs/performance.md).
    Environment variables set by the user take precedence.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch requests huge pages
    user_set = "GLIBC_TUNABLES" in os.environ or any(k.startswith("MALLOC_") for k in os.environ)
    if sys.platform == "linux" and not user_set:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(-3, LARGEST_IN_HEAP)  # M_MMAP_THRESHOLD
            mallopt(-1, KEEP_ALL)  # M_TRIM_THRESHOLD


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpuinfo(key: str) -> str:
    """A value of /proc/cpuinfo for the first CPU, such as ``model name``; "" if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    entries = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in entries if name.strip() == key), "")
