"""The page of `benchmarks.solvers`: tables of errors and scores, and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jitkit.diffusion.solvers import SOLVERS, nfe
from jitkit.runs.run_dir import environment, write_text
from jitkit.utils.atomic import atomic_write

MARKS = ("<!-- python -m benchmarks.solvers --write -->", "<!-- end of measurements -->")
COLORS: dict[str, str] = dict(
    zip(SOLVERS, ("0.55", "black", "tab:blue", "tab:red", "tab:green"), strict=True)
)
PAPER = "heun uniform 50"


class Found(NamedTuple):
    """A measured value and its setting."""

    case: str
    kind: str
    method: str
    times: str
    steps: int
    value: Any

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) per sample."""
        return nfe(self.method, self.steps)  # type: ignore[arg-type]

    @property
    def is_paper(self) -> bool:
        """Whether it is the paper's setting, 50 steps of Heun."""
        return f"{self.method} {self.times} {self.steps}" == PAPER


def findings(records: Mapping[str, Any]) -> list[Found]:
    """Records, whose keys are ``"case | kind of n | method times steps"``."""
    found = []
    for key, value in records.items():
        case, kind, setting = key.split(" | ")
        method, times, steps = setting.split(" ")
        found.append(Found(case, kind, method, times, int(steps), value))
    return found


def error_table(found: Sequence[Found]) -> list[str]:
    """Errors of one case: a row for each solver and time grid, a column for each NFE."""
    counts = sorted({one.steps for one in found if one.method == "euler"})
    lines = [
        f"| solver | time grid | {' | '.join(map(str, counts))} |",
        "|---|---|" + "--:|" * len(counts),
    ]
    for method in SOLVERS:
        for times in dict.fromkeys(one.times for one in found):
            own = {
                min((n for n in counts if n >= one.evaluations), default=0): one.value
                for one in found
                if (one.method, one.times) == (method, times) and not one.is_paper
            }
            cells = [f"{own[n]:.4f}" if n in own else "" for n in counts]
            lines.append(f"| {method} | {times} | {' | '.join(cells)} |")
    paper = [one.value for one in found if one.is_paper]
    return [*lines, "", *(f"50 steps of Heun, NFE 99: {value:.4f}." for value in paper)]


def score_table(found: Sequence[Found]) -> list[str]:
    """Scores of one case, a row for each setting, the paper's first."""
    names = list(found[0].value) if found else []
    head = ["solver", "time grid", "NFE", *(name.replace("_", " ") for name in names)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for one in sorted(found, key=lambda one: not one.is_paper):
        cells = [one.method, one.times, str(one.evaluations)]
        cells += [_cell(one.value[name]) for name in names]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(score: Mapping[str, Any]) -> str:
    reach = score["interval"][1] - score["value"]
    return f"{score['value']:.4g} ± {reach:.2g}"


def draw(found: Sequence[Found], path: Path) -> None:
    """Error against NFE, a panel for each case; dashed for the uniform time grid."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(one.case for one in found))
    figure = Figure(figsize=(4.3 * len(cases), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=True):
        own = [one for one in found if one.case == case]
        for method, times in dict.fromkeys((one.method, one.times) for one in own):
            line = sorted((one.evaluations, one.value) for one in own
                          if (one.method, one.times) == (method, times))  # fmt: skip
            style = "--" if times == "uniform" else "-"
            label = method if times != "uniform" else None
            axes.plot(*zip(*line, strict=True), "o" + style, ms=3, lw=1.2, color=COLORS[method],
                      label=label)  # fmt: skip
        for paper in (one.value for one in own if one.is_paper):
            axes.axhline(paper, color="black", lw=0.7, ls=":")
        axes.set(xscale="log", yscale="log", xlabel="NFE", title=case)
        axes.set_xticks([10, 15, 20, 25, 50, 99], ["10", "15", "20", "25", "50", "99"])
        axes.minorticks_off()
    panels[0].set_ylabel("error to 400 steps of Heun")
    panels[-1].legend(fontsize=8, frameon=False, title="solid: cosine; dashed: uniform",
                      title_fontsize=8)  # fmt: skip
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=90)


def report_text(found: Sequence[Found]) -> str:
    """Both kinds of table for each case, with machine and commit."""
    where = environment()
    machine = where["machine"]
    lines = [
        f"`python -m benchmarks.solvers --write`: {machine['processor']}, {machine['cores']} "
        f"cores, torch {where['versions']['torch']}, commit {where['commit']}.",
        "",
        "![Error against NFE](solvers.png)",
    ]
    for case in dict.fromkeys(one.case for one in found):
        for kind in dict.fromkeys(one.kind for one in found if one.case == case):
            own = [one for one in found if (one.case, one.kind) == (case, kind)]
            table = error_table(own) if kind.startswith("error") else score_table(own)
            lines += ["", f"### {case}: {kind} samples", "", *table]
    return "\n".join(lines)


def filled(text: str, measured: str) -> str:
    """A document with the text between our marks replaced."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{measured}\n\n{MARKS[1]}{after}"


def write_page(records: Mapping[str, Any], place: Path, docs: Path | None) -> None:
    """Print the tables and draw the figure; write both into docs if requested."""
    found = findings(records)
    measured = report_text(found)
    print(measured)
    draw([one for one in found if one.kind.startswith("error")], (docs or place) / "solvers.png")
    if docs:
        page = docs / "solvers.md"
        write_text(page, filled(page.read_text(encoding="utf-8"), measured))
