"""Scores and sweeps of a report: values with intervals on a common axis, best settings marked.

`jitkit evaluate` writes both. Files of older versions hold less, those of a domain's evaluator may
hold more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from jitkit.report.charts import Chart, Line, chart, compact_number
from jitkit.report.curves import finite_number, get_list, get_mapping
from jitkit.report.images import EmbeddedImage, data_uri, encode_webp

BETTER = {
    "low": "lower is better",
    "high": "higher is better",
    "real": "best close to that of real items",
}
TOP = 12  # settings shown of a sweep of three axes or more
TIES = 6  # settings as good as the best that are named
EXTRA = 8  # figures of an evaluation


@dataclass(frozen=True)
class ScoreMark:
    """One value of a score, with its position on the common axis in percent."""

    label: str
    colour: str
    text: str
    at: float | None = None
    low: float | None = None
    high: float | None = None
    kind: str = "run"
    """``run``; ``baseline``; or ``floor``, the score of real items."""


@dataclass(frozen=True)
class ScoreRow:
    """A score of one run or several, on one axis."""

    name: str
    better: str
    marks: list[ScoreMark]


@dataclass(frozen=True)
class SweepView:
    """Result of a sweep: a chart (one axis), a heat map (two) or a list of the best settings."""

    title: str
    state: str
    best: str
    chart: Chart | None
    header: list[str]
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Cell:
    """A cell of a sweep's table; ``shade`` is its rank in percent, None for header cells."""

    text: str
    note: str = ""
    shade: float | None = None
    best: bool = False


def score_groups(runs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Scores side by side, and how each run was evaluated.

    Args:
        runs: label, colour and ``evaluation.json`` of each.
    """
    names = dict.fromkeys(name for _, _, result in runs for name in get_mapping(result, "scores"))
    scores = [_score(name, runs) for name in names]
    return {
        "scores": [score for score in scores if score.marks],
        "methods": [(label, _evaluation_text(result)) for label, _, result in runs if result],
        "notes": [
            (label, note) for label, _, result in runs for note in _texts(result.get("notes"))
        ],
    }


def _score(name: str, runs: Sequence[tuple[str, str, Mapping[str, Any]]]) -> ScoreRow:
    rows = [
        (label, colour, get_mapping(get_mapping(result, "scores"), name))
        for label, colour, result in runs
    ]
    pairs = [pair for label, colour, row in rows for pair in _values(label, colour, row)]
    floors = {mark: ends for mark, ends in pairs if mark.kind == "floor"}  # runs may share data
    pairs = [pair for pair in pairs if pair[0].kind != "floor"] + list(floors.items())
    ends = [value for _, values in pairs for value in values if value is not None]
    start, end = (min(ends), max(ends)) if ends else (0.0, 1.0)
    margin = 0.06 * (end - start) or abs(end) / 2 or 1.0

    def percent(value: float | None) -> float | None:
        if value is None:
            return None
        return round(100 * (value - start + margin) / (end - start + 2 * margin), 2)

    marks = [
        replace(mark, at=percent(value), low=percent(low), high=percent(high))
        for mark, (value, low, high) in pairs
    ]
    first = next((row for _, _, row in rows if row), {})
    parts = [BETTER.get(str(first.get("best")), ""), str(first.get("unit") or "")]
    return ScoreRow(name.replace("_", " "), ", ".join(filter(None, parts)), marks)


IntervalEnds = tuple[float | None, float | None, float | None]


def _values(
    label: str, colour: str, row: Mapping[str, Any]
) -> Iterator[tuple[ScoreMark, IntervalEnds]]:
    """The value of a run, of its baselines, and of real items."""
    if not row:
        return
    yield _marked(label, colour, row, "run")
    for name, other in get_mapping(row, "baselines").items():
        if isinstance(other, dict):
            yield _marked(str(name), colour, other, "baseline")
    floor = finite_number(row.get("floor"))
    if floor is not None:
        yield ScoreMark("real items", "", compact_number(floor), kind="floor"), (floor, None, None)


def _marked(
    label: str, colour: str, row: Mapping[str, Any], kind: str
) -> tuple[ScoreMark, IntervalEnds]:
    value, (low, high) = finite_number(row.get("value")), widest_interval(row)
    text = "not defined here" if value is None else compact_number(value)
    if low is not None and high is not None:
        text += f" ({compact_number(low)} to {compact_number(high)})"
    seeds = row.get("by_seed")
    if isinstance(seeds, list) and len(seeds) > 1:
        text += f", {len(seeds)} seeds"
    return ScoreMark(label, colour, text, kind=kind), (value, low, high)


def widest_interval(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The wider of a row's intervals: from resamples, and over seeds if there are several."""
    intervals = [row.get(key) for key in ("interval", "interval_over_seeds")]
    ends = [
        (low, high)
        for pair in intervals
        if isinstance(pair, list) and len(pair) == 2
        if (low := finite_number(pair[0])) is not None
        and (high := finite_number(pair[1])) is not None
    ]
    return max(ends, key=lambda pair: pair[1] - pair[0], default=(None, None))


def _evaluation_text(result: Mapping[str, Any]) -> str:
    """How a run was evaluated: samples, checkpoint, EMA, solver, CFG scale, protocol."""
    model, sample = get_mapping(result, "model"), get_mapping(result, "sample")
    parts = []
    if isinstance(result.get("samples"), int):
        parts.append(f"{result['samples']:,} samples")
    if "step" in model:
        parts.append(f"of step {model['step']:,}" if isinstance(model["step"], int) else "")
    if "ema" in model:
        parts.append(f"EMA {model['ema']}")
    if "method" in sample:
        grid = sample.get("time_grid", "uniform")
        suffix = "" if grid == "uniform" else f" ({grid})"
        parts.append(f"by {sample['method']}, {sample.get('steps')} steps{suffix}")
    if "guidance" in sample:
        parts.append(f"guidance {sample['guidance']}")
    if (seconds := finite_number(result.get("seconds"))) is not None:
        parts.append(f"in {compact_number(seconds)} s")
    if result.get("held_out"):
        parts.append(f"beside {result['held_out']} held-out items")
    protocol = get_mapping(result, "protocol")
    if protocol:
        departures = _texts(protocol.get("departures"))
        except_for = f" except: {'; '.join(departures)}" if departures else ""
        parts.append(f"protocol {protocol.get('name')}{except_for}")
    return ", ".join(filter(None, parts))


def embed_figures(
    run: Path, evaluation: Mapping[str, Any], budget: int
) -> tuple[list[tuple[str, EmbeddedImage]], list[str]]:
    """The figures of an evaluation, each with a title, and notes of those that cannot be read.

    Only files inside the run's folder are opened.

    Args:
        budget: bytes of all figures together.
    """
    names = _texts(evaluation.get("pictures"))[:EXTRA]
    step = get_mapping(evaluation, "model").get("step")
    images, notes = [], []
    for name in names:
        path = (run / name).resolve()
        if not path.is_relative_to(run.resolve()):
            notes.append(f"{name} of evaluation.json is outside the run")
            continue
        try:
            data, size = encode_webp(path, budget // len(names))
        except (OSError, ValueError, SyntaxError) as error:
            notes.append(f"{name} cannot be read ({error})")
            continue
        title = re.sub(r"[-_]+", " ", path.stem)
        at_step = step if isinstance(step, int) else 0
        images.append((title, EmbeddedImage(at_step, *size, data_uri(data))))
    return images, notes


# Sweeps


def sweep_views(sweeps: Sequence[Mapping[str, Any]]) -> list[SweepView]:
    """Each sweep with the values of its selecting score; sweeps without points are left out."""
    return [view for sweep in sweeps if (view := _sweep(sweep)) is not None]


def _sweep(sweep: Mapping[str, Any]) -> SweepView | None:
    axes = {str(k): v for k, v in get_mapping(sweep, "axes").items() if isinstance(v, list) and v}
    by, points = str(sweep.get("by", "")), list(_points(sweep))
    scored = [
        (setting, value, row)
        for setting, row in points
        if (value := finite_number(row.get("value"))) is not None
    ]
    if not axes or not scored:
        return None
    order = sorted(scored, key=lambda point: _rank_key(point[1], point[2]))
    best = get_mapping(sweep, "best")
    chosen = get_mapping(best, "set") or order[0][0]
    total = len(list(product(*axes.values())))
    cells = {
        _key(setting, axes): Cell(
            compact_number(value),
            _interval_text(row),
            100 * (1 - k / max(1, len(order) - 1)),
            _key(setting, axes) == _key(chosen, axes),
        )
        for k, (setting, value, row) in enumerate(order)
    }
    header, rows = _heat_map(axes, cells) if len(axes) == 2 else _best_settings(axes, order, cells)
    return SweepView(
        f"{by.replace('_', ' ')} over {' and '.join(axes)}",
        _progress(sweep, len(points), total),
        _best_text(best, chosen, by) if best else "",
        _curve(axes, scored, by) if len(axes) == 1 else None,
        header,
        rows,
    )


def _rank_key(value: float, row: Mapping[str, Any]) -> float:
    """A number that is lowest for the best value."""
    floor = finite_number(row.get("floor"))
    if row.get("best") == "real" and floor is not None:
        return abs(value - floor)
    return -value if row.get("best") == "high" else value


def _points(sweep: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Setting of each point, and its row of the selecting score."""
    by = str(sweep.get("by", ""))
    for point in get_list(sweep, "points"):
        if isinstance(point, dict) and isinstance(point.get("set"), dict):
            yield point["set"], get_mapping(get_mapping(point, "scores"), by)


def _key(setting: Mapping[str, Any], axes: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_value_text(setting.get(axis)) for axis in axes)


def _heat_map(
    axes: Mapping[str, Sequence[Any]], cells: Mapping[tuple[str, ...], Cell]
) -> tuple[list[str], list[list[Cell]]]:
    """A table with a row for each value of the longer axis, so that it is narrow."""
    (first, columns), (second, values) = axes.items()
    transposed = len(columns) > len(values)
    if transposed:
        first, columns, second, values = second, values, first, columns
    header = [f"{second} \\ {first}", *map(_value_text, columns)]
    rows = []
    for value in map(_value_text, values):
        names = map(_value_text, columns)
        keys = [(value, name) if transposed else (name, value) for name in names]
        rows.append([Cell(value), *(cells.get(key, Cell("")) for key in keys)])
    return header, rows


def _best_settings(
    axes: Mapping[str, Sequence[Any]],
    order: Sequence[tuple[Mapping[str, Any], float, Mapping[str, Any]]],
    cells: Mapping[tuple[str, ...], Cell],
) -> tuple[list[str], list[list[Cell]]]:
    """A table of the best settings, best first."""
    keys = [_key(setting, axes) for setting, _, _ in order[:TOP]]
    return [*axes, "score"], [[*map(Cell, key), cells[key]] for key in keys]


def _curve(
    axes: Mapping[str, Sequence[Any]],
    scored: Sequence[tuple[Mapping[str, Any], float, Mapping[str, Any]]],
    by: str,
) -> Chart | None:
    """Score over the only axis, if its values are numbers."""
    (axis,) = axes
    points = []
    for setting, value, row in scored:
        x, (low, high) = _number(setting.get(axis)), widest_interval(row)
        if x is None:
            return None
        points.append((x, value, value if low is None else low, value if high is None else high))
    x_values, y, low_ends, high_ends = (list(each) for each in zip(*sorted(points), strict=True))
    line = Line(by, "c0", x_values, y, low=low_ends, high=high_ends, dots=True)
    about = "Each point is one setting, on the same noise; the band shows the intervals"
    return chart(by.replace("_", " "), [line], about=about, x_label=axis, log=False)


def _progress(sweep: Mapping[str, Any], done: int, total: int) -> str:
    samples = sweep.get("samples")
    suffix = f", {samples:,} samples each" if isinstance(samples, int) else ""
    points = f"{done} points" if done >= total else f"{done} of {total} points so far"
    return f"{points}{suffix}"


def _best_text(best: Mapping[str, Any], chosen: Mapping[str, Any], by: str) -> str:
    """The best setting, its confidence, and settings that are not significantly worse."""
    mark, _ = _marked("", "", best, "run")
    text = f"Best: {_setting_text(chosen)}, {by.replace('_', ' ')} {mark.text}"
    if (wins := finite_number(best.get("wins"))) is not None:
        text += f"; the best in {100 * wins:.0f} % of resamples"
    ties = [_setting_text(tie) for tie in get_list(best, "tied_with") if isinstance(tie, dict)]
    if ties:
        more = f" and {len(ties) - TIES} more" * (len(ties) > TIES)
        text += f"; no worse within the noise: {'; '.join(ties[:TIES])}{more}"
    if edges := _texts(best.get("at_edge")):
        text += f". It is at an end of {', '.join(edges)}, so a better one may be beyond"
    return text + "."


def _setting_text(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_value_text(value)}" for key, value in setting.items())


def _interval_text(row: Mapping[str, Any]) -> str:
    low, high = widest_interval(row)
    return "" if low is None or high is None else f"{compact_number(low)} to {compact_number(high)}"


def _value_text(value: Any) -> str:
    number = finite_number(value)
    return str(value) if number is None else f"{number:g}"


def _number(value: Any) -> float | None:
    try:
        return finite_number(float(value))
    except (TypeError, ValueError):
        return None


def _texts(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
