"""Peak memory of training steps of B/16 beside the estimate of `jitkit check`.

Each in its own process, as `python -m benchmarks.memory` does it for many cases: AdamW and two
EMAs, one thread.
"""

from __future__ import annotations

from typing import Any

from benchmarks.memory import GIB, Case, measure_aside
from benchmarks.speed.results import Plan, Result, Table

B = (Case(768, 12, 2), Case(768, 12, 2, checkpointing=True))
MORE = (Case(768, 12, 8), Case(768, 12, 8, checkpointing=True))
TINY = (Case(32, 2, 1),)


def run(plan: Plan) -> Result:
    """B/16 in float32, with and without checkpointing."""
    result = Result("memory")
    rows: list[list[object]] = []
    for case in plan.pick(B + MORE, B, TINY):
        estimate, peak = measure_aside(case)
        found: dict[str, Any] = {"estimate_bytes": estimate, "peak_bytes": peak}
        again = "yes" if case.checkpointing else "no"
        result.numbers[f"batch {case.batch}, checkpointing {again}"] = found
        sizes = [f"{estimate / GIB:.2f} GiB", f"{peak / GIB:.2f} GiB"]
        rows.append([case.batch, again, *sizes, f"{estimate / peak - 1:+.0%}"])
    head = ["batch", "checkpointing", "estimate", "measured", "error"]
    result.tables.append(Table("Peak of a step of B/16, float32, two EMAs", head, rows))
    return result
