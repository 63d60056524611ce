"""The page of `benchmarks.solvers`: error and score tables, step counts, figure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.solverpage import (  # noqa: E402
    MARKS,
    draw,
    error_table,
    filled,
    findings,
    report_text,
    score_table,
)
from benchmarks.solvers import COUNTS, PAPER, QUARTER, settings, steps_within  # noqa: E402
from jitkit.diffusion.solvers import SOLVERS, TIME_GRIDS, Method, nfe  # noqa: E402


def records() -> dict[str, Any]:
    """An error of 1 / evaluations for every setting, and scores that are their steps."""
    every = [PAPER, *(one for count in COUNTS for one in settings(count))]
    found: dict[str, Any] = {f"digits | error of 4 | {s.key}": 1 / s.evaluations for s in every}
    for one in (PAPER, *settings(QUARTER)):
        score = {"value": float(one.steps), "interval": [one.steps - 1.0, one.steps + 1.0]}
        found[f"digits | scores of 8 | {one.key}"] = {"label_agreement": score}
    return found


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("most", [1, 2, 10, 25, 99])
def test_steps_within_a_number_are_the_most_that_need_no_more(method: Method, most: int) -> None:
    steps = steps_within(method, most)
    assert nfe(method, steps) <= most < nfe(method, steps + 1)


def test_errors_stand_under_their_evaluations() -> None:
    own = [one for one in findings(records()) if one.kind == "error of 4"]
    table = error_table(own)
    assert table[0] == "| solver | time grid | 10 | 15 | 20 | 25 | 50 |"
    heun = "| heun | uniform | 0.1111 | 0.0667 | 0.0526 | 0.0400 | 0.0204 |"
    assert heun in table and len(table) == 2 + len(SOLVERS) * len(TIME_GRIDS) + 2
    assert table[-1] == "50 steps of Heun, NFE 99: 0.0101."


def test_scores_begin_with_the_papers_setting() -> None:
    own = [one for one in findings(records()) if one.kind == "scores of 8"]
    table = score_table(own)
    assert table[0] == "| solver | time grid | NFE | label agreement |"
    assert table[2] == "| heun | uniform | 99 | 50 ± 1 |"
    assert "| ab3 | cosine | 25 | 25 ± 1 |" in table


def test_a_page_is_filled_between_its_marks_and_may_be_again() -> None:
    page = f"head\n{MARKS[0]}\nold\n{MARKS[1]}\ntail\n"
    once = filled(page, report_text(findings(records())))
    assert once.startswith("head\n") and once.endswith("\ntail\n") and "old" not in once
    assert filled(once, "new") == f"head\n{MARKS[0]}\nnew\n\n{MARKS[1]}\ntail\n"
    document = Path(__file__).parents[1] / "docs" / "solvers.md"
    assert all(mark in document.read_text(encoding="utf-8") for mark in MARKS)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    own = [one for one in findings(records()) if one.kind == "error of 4"]
    draw(own, tmp_path / "solvers.png")
    assert (tmp_path / "solvers.png").stat().st_size > 10_000
