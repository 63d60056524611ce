"""How this process uses processor and memory; what it sets, it sets before torch is loaded."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

LARGEST_IN_HEAP = 32 * 2**20  # bytes; glibc takes no more
KEEP_ALL = -1  # free bytes at the end of the heap that are not given back


def settle() -> None:
    """Let idle threads sleep soon, and keep memory between the steps of a training.

    Threads that spin while they wait starve a shared machine (docs/log.md). And glibc gives freed
    memory back to the kernel, which clears every page anew in the next step: a tenth of a step of
    JiT-B/16, which pages of 2 MiB make another tenth shorter (docs/performance.md). What the user
    has set himself stays.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"
    if Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks for large pages
    own = any(key.startswith("MALLOC_") for key in os.environ) or "GLIBC_TUNABLES" in os.environ
    if sys.platform == "linux" and not own:
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(-3, LARGEST_IN_HEAP)  # M_MMAP_THRESHOLD
            mallopt(-1, KEEP_ALL)  # M_TRIM_THRESHOLD


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def told_by_itself(key: str) -> str:
    """What Linux says of the first processor, as ``vendor_id`` or ``model name``; or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == key), "")
