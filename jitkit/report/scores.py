"""Scores and sweeps as a page shows them: values beside their intervals, the best one marked.

`jitkit evaluate` writes both; a file of an older version holds less, and a domain's own evaluator
may hold more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from jitkit.report.charts import Chart, Line, chart, short
from jitkit.report.curves import finite, mapping, sequence
from jitkit.report.pictures import Picture, address, encoded

BETTER = {
    "low": "lower is better",
    "high": "higher is better",
    "real": "best near that of real items",
}
TOP = 12  # points of a sweep of three axes or more
TIES = 6  # settings beside the best that are named
EXTRA = 8  # pictures of an evaluation


@dataclass(frozen=True)
class Mark:
    """One value of a score, with its place on the common axis in percent."""

    label: str
    colour: str
    text: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    kind: str = "run"
    """``run``; ``baseline``; or ``floor``, which real items have."""


@dataclass(frozen=True)
class ScoreRow:
    """A score of one run or several, on one axis."""

    name: str
    better: str
    marks: list[Mark]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found: a chart (one axis), a heat map (two) or a list of its best points."""

    title: str
    state: str
    best: str
    chart: Chart | None
    header: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Cell:
    """A cell of a sweep's table; ``shade`` is its rank in percent, None for what is no score."""

    text: str
    note: str = ""
    shade: float | None = None
    best: bool = False


def score_groups(runs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Scores side by side, and how each run's were taken.

    Args:
        runs: label, colour and ``evaluation.json`` of each.
    """
    names = dict.fromkeys(name for _, _, found in runs for name in mapping(found, "scores"))
    scores = [_score(name, runs) for name in names]
    return {
        "scores": [score for score in scores if score.marks],
        "taken": [(label, _taken(found)) for label, _, found in runs if found],
        "notes": [(label, note) for label, _, found in runs for note in _texts(found.get("notes"))],
    }


def _score(name: str, runs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> ScoreRow:
    rows = [
        (label, colour, mapping(mapping(found, "scores"), name)) for label, colour, found in runs
    ]
    found = [mark for label, colour, row in rows for mark in _values(label, colour, row)]
    floors = {mark: ends for mark, ends in found if mark.kind == "floor"}  # runs may share data
    found = [pair for pair in found if pair[0].kind != "floor"] + list(floors.items())
    ends = [value for _, values in found for value in values if value is not None]
    start, end = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.06 * (end - start) or abs(end) / 2 or 1.0

    def place(value: float | None) -> float | None:
        if value is None:
            return None
        return round(100 * (value - start + margin) / (end - start + 2 * margin), 2)

    marks = [
        replace(mark, at=place(value), low=place(low), high=place(high))
        for mark, (value, low, high) in found
    ]
    first = next((row for _, _, row in rows if row), {})
    told = [BETTER.get(str(first.get("best")), ""), str(first.get("unit") or "")]
    return ScoreRow(name.replace("_", " "), ", ".join(filter(None, told)), marks)


IntervalEnds = tuple[float | None, float | None, float | None]


def _values(label: str, colour: str, row: Mapping[str, Any]) -> Iterator[tuple[Mark, IntervalEnds]]:
    """A run's value, those of its baselines, and that of real items."""
    if not row:
        return
    yield _marked(label, colour, row, "run")
    for name, other in mapping(row, "baselines").items():
        if isinstance(other, dict):
            yield _marked(str(name), colour, other, "baseline")
    floor = finite(row.get("floor"))
    if floor is not None:
        yield Mark("real items", "", short(floor), kind="floor"), (floor, None, None)


def _marked(
    label: str, colour: str, row: Mapping[str, Any], kind: str
) -> tuple[Mark, IntervalEnds]:
    value, (low, high) = finite(row.get("value")), interval(row)
    text = "says nothing here" if value is None else short(value)
    if low is not None and high is not None:
        text += f" ({short(low)} to {short(high)})"
    seeds = row.get("by_seed")
    if isinstance(seeds, list) and len(seeds) > 1:
        text += f", {len(seeds)} seeds"
    return Mark(label, colour, text, kind=kind), (value, low, high)


def interval(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The wider of a row's intervals: from resamples, and over seeds where there are several."""
    found = [row.get(key) for key in ("interval", "interval_over_seeds")]
    ends = [
        (low, high)
        for pair in found
        if isinstance(pair, list) and len(pair) == 2
        if (low := finite(pair[0])) is not None and (high := finite(pair[1])) is not None
    ]
    return max(ends, key=lambda pair: pair[1] - pair[0], default=(None, None))


def _taken(found: Mapping[str, Any]) -> str:
    """How the scores of a run were taken."""
    model, sample = mapping(found, "model"), mapping(found, "sample")
    parts = []
    if isinstance(found.get("samples"), int):
        parts.append(f"{found['samples']:,} samples")
    if "step" in model:
        parts.append(f"of step {model['step']:,}" if isinstance(model["step"], int) else "")
    if "ema" in model:
        parts.append(f"with running mean {model['ema']}")
    if "method" in sample:
        times = sample.get("time_grid", "uniform")
        lie = "" if times == "uniform" else f" ({times})"
        parts.append(f"by {sample['method']}, {sample.get('steps')} steps{lie}")
    if "guidance" in sample:
        parts.append(f"guidance {sample['guidance']}")
    if (seconds := finite(found.get("seconds"))) is not None:
        parts.append(f"in {short(seconds)} s")
    if found.get("held_out"):
        parts.append(f"beside {found['held_out']} held-out items")
    protocol = mapping(found, "protocol")
    if protocol:
        departures = _texts(protocol.get("departures"))
        told = f" but for: {'; '.join(departures)}" if departures else ""
        parts.append(f"protocol {protocol.get('name')}{told}")
    return ", ".join(filter(None, parts))


def attached(
    run: Path, evaluation: Mapping[str, Any], budget: int
) -> tuple[list[tuple[str, Picture]], list[str]]:
    """The pictures that an evaluation names, and what of them cannot be read.

    Only files inside the run's folder are opened.

    Args:
        budget: bytes that they may take in all.
    """
    names = _texts(evaluation.get("pictures"))[:EXTRA]
    step = mapping(evaluation, "model").get("step")
    found, notes = [], []
    for name in names:
        path = (run / name).resolve()
        if not path.is_relative_to(run.resolve()):
            notes.append(f"{name} of evaluation.json lies outside the run")
            continue
        try:
            data, size = encoded(path, budget // len(names))
        except (OSError, ValueError, SyntaxError) as error:
            notes.append(f"{name} cannot be read ({error})")
            continue
        title = re.sub(r"[-_]+", " ", path.stem)
        found.append((title, Picture(step if isinstance(step, int) else 0, *size, address(data))))
    return found, notes


# Sweeps


def sweep_views(sweeps: Sequence[Mapping[str, Any]]) -> list[Sweep]:
    """Each sweep with the values of the score it went by; one without points is left out."""
    return [view for sweep in sweeps if (view := _sweep(sweep)) is not None]


def _sweep(sweep: Mapping[str, Any]) -> Sweep | None:
    axes = {str(k): v for k, v in mapping(sweep, "axes").items() if isinstance(v, list) and v}
    by, points = str(sweep.get("by", "")), list(_points(sweep))
    scored = [
        (place, value, row)
        for place, row in points
        if (value := finite(row.get("value"))) is not None
    ]
    if not axes or not scored:
        return None
    order = sorted(scored, key=lambda point: _cost(point[1], point[2]))
    best = mapping(sweep, "best")
    chosen = mapping(best, "set") or order[0][0]
    total = len(list(product(*axes.values())))
    cells = {
        _key(place, axes): Cell(
            short(value),
            _reach(row),
            100 * (1 - k / max(1, len(order) - 1)),
            _key(place, axes) == _key(chosen, axes),
        )
        for k, (place, value, row) in enumerate(order)
    }
    header, rows = _grid(axes, cells) if len(axes) == 2 else _list(axes, order, cells)
    return Sweep(
        f"{by.replace('_', ' ')} over {' and '.join(axes)}",
        _progress(sweep, len(points), total),
        _best_text(best, chosen, by) if best else "",
        _curve(axes, scored, by) if len(axes) == 1 else None,
        header,
        rows,
    )


def _cost(value: float, row: Mapping[str, Any]) -> float:
    """What is least for the best value of a row."""
    floor = finite(row.get("floor"))
    if row.get("best") == "real" and floor is not None:
        return abs(value - floor)
    return -value if row.get("best") == "high" else value


def _points(sweep: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Setting of each point, and its row of the score that the sweep goes by."""
    by = str(sweep.get("by", ""))
    for point in sequence(sweep, "points"):
        if isinstance(point, dict) and isinstance(point.get("set"), dict):
            yield point["set"], mapping(mapping(point, "scores"), by)


def _key(place: Mapping[str, Any], axes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_said(place.get(axis)) for axis in axes)


def _grid(
    axes: Mapping[str, Sequence[Any]], cells: Mapping[tuple[str, ...], Cell]
) -> tuple[list[str], list[list[Cell]]]:
    """A row for each value of the longer axis, so that it is narrow."""
    (first, columns), (second, values) = axes.items()
    turned = len(columns) > len(values)
    if turned:
        first, columns, second, values = second, values, first, columns
    header = [f"{second} \\ {first}", *map(_said, columns)]
    rows = []
    for value in map(_said, values):
        keys = [(value, _said(c)) if turned else (_said(c), value) for c in columns]
        rows.append([Cell(value), *(cells.get(key, Cell("")) for key in keys)])
    return header, rows


def _list(
    axes: Mapping[str, Sequence[Any]],
    order: Sequence[tuple[Mapping[str, Any], float, Mapping[str, Any]]],
    cells: Mapping[tuple[str, ...], Cell],
) -> tuple[list[str], list[list[Cell]]]:
    """The best points, the best one first."""
    keys = [_key(place, axes) for place, _, _ in order[:TOP]]
    return [*axes, "score"], [[*map(Cell, key), cells[key]] for key in keys]


def _curve(
    axes: Mapping[str, Sequence[Any]],
    scored: Sequence[tuple[Mapping[str, Any], float, Mapping[str, Any]]],
    by: str,
) -> Chart | None:
    """Score over the one axis, where that holds numbers."""
    (axis,) = axes
    points = []
    for place, value, row in scored:
        x, (low, high) = _number(place.get(axis)), interval(row)
        if x is None:
            return None
        points.append((x, value, value if low is None else low, value if high is None else high))
    x_values, y, low_ends, high_ends = (list(each) for each in zip(*sorted(points), strict=True))
    line = Line(by, "c0", x_values, y, low=low_ends, high=high_ends, dots=True)
    about = "Each point one setting, on the same noise; the band holds the intervals"
    return chart(by.replace("_", " "), [line], about=about, x_label=axis, log=False)


def _progress(sweep: Mapping[str, Any], done: int, total: int) -> str:
    samples = sweep.get("samples")
    drawn = f", {samples:,} samples each" if isinstance(samples, int) else ""
    points = f"{done} points" if done >= total else f"{done} of {total} points so far"
    return f"{points}{drawn}"


def _best_text(best: Mapping[str, Any], chosen: Mapping[str, Any], by: str) -> str:
    """The best setting, how sure that is, and which others it cannot be told from."""
    mark, _ = _marked("", "", best, "run")
    told = f"Best: {_setting(chosen)}, {by.replace('_', ' ')} {mark.text}"
    if (wins := finite(best.get("wins"))) is not None:
        told += f"; the best in {100 * wins:.0f} % of resamples"
    ties = [_setting(tie) for tie in sequence(best, "tied_with") if isinstance(tie, dict)]
    if ties:
        more = f" and {len(ties) - TIES} more" * (len(ties) > TIES)
        told += f"; no worse within the noise: {'; '.join(ties[:TIES])}{more}"
    if edges := _texts(best.get("at_edge")):
        told += f". It lies at an end of {', '.join(edges)}, so a better one may lie beyond"
    return told + "."


def _setting(place: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_said(value)}" for key, value in place.items())


def _reach(row: Mapping[str, Any]) -> str:
    low, high = interval(row)
    return "" if low is None or high is None else f"{short(low)} to {short(high)}"


def _said(value: Any) -> str:
    number = finite(value)
    return str(value) if number is None else f"{number:g}"


def _number(value: Any) -> float | None:
    try:
        return finite(float(value))
    except (TypeError, ValueError):
        return None


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
