"""Charts of a report: axes, ticks, and lines, bands and dots as SVG paths for the template.

A chart is an SVG of 1000 x 1000, stretched to the available width with strokes of constant width;
its labels are text of the page. So it is readable on a phone and on paper without a script. The
page's script adds the values under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from typing import Any

SIDE = 1000  # of the SVG
LOGARITHMIC = 8  # ratio of largest to smallest value above which an axis is logarithmic
ROWS = 8  # of the table below a chart


@dataclass(frozen=True)
class Line:
    """One series of a chart; every sequence (N,)."""

    name: str
    colour: str
    """A CSS class."""
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] = ()
    """The values before smoothing."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """A band around it."""
    dots: bool = False
    """Whether points are drawn, for few measured values."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: position in percent, and label."""

    at: float
    text: str


@dataclass(frozen=True)
class DrawnChart:
    """A line of a chart as SVG paths."""

    name: str
    colour: str
    line: str
    faint: str
    band: str
    dots: str


@dataclass(frozen=True)
class Chart:
    """What the template needs to draw a chart."""

    title: str
    about: str
    """Axes and smoothing: a sentence below the title."""
    x_label: str
    summary: str
    """Text for screen readers."""
    lines: list[DrawnChart]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    values: dict[str, Any]
    """For the script: ``x`` distinct axes, ``lines`` with name, colour, index of the axis, y."""
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ChartAxis:
    """Range, scale and ticks of an axis."""

    low: float
    high: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def fraction(self, value: float) -> float:
        """Position of a value as a fraction of the axis, 0 to 1 within its range."""
        if self.log:
            floor = self.low * 1e-6  # values that are not positive are far below the axis
            return log10(max(value, floor) / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def labelled_ticks(self) -> list[Tick]:
        """Ticks with position in percent, and with enough digits that all labels differ."""
        for figures in range(3, 16):
            texts = [compact_number(tick, figures=figures) for tick in self.ticks]
            if len(set(texts)) == len(texts):
                break
        positions = [round(100 * self.fraction(tick), 2) for tick in self.ticks]
        return [Tick(position, text) for position, text in zip(positions, texts, strict=True)]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    about: str,
    x_label: str = "step",
    log: bool | None = None,
) -> Chart | None:
    """A chart of the lines that have points; None if none has.

    Args:
        log: whether the axis of the values is logarithmic; by default it depends on their spread.
            Values that are not positive always get a linear axis.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return None
    x_axis = linear_axis([x for line in lines for x in (line.x[0], line.x[-1])], tight=True)
    values = [y for line in lines for y in (*line.y, *line.faint) if isfinite(y)]
    positive = min(values) > 0
    if log is None:
        log = max(values) > LOGARITHMIC * min(values)
    y_axis = log_axis(values) if log and positive else linear_axis(values)
    scale = "; logarithmic axis" if y_axis.log else ""
    header, rows = value_table(lines, x_label)
    return Chart(
        title,
        f"{about}{scale}.",
        x_label,
        "; ".join(line_summary(line, x_label) for line in lines) + ".",
        [draw_line(line, x_axis, y_axis) for line in lines],
        x_axis.labelled_ticks(),
        y_axis.labelled_ticks(),
        hover_data(lines) | {"low": x_axis.low, "high": x_axis.high},
        header,
        rows,
    )


def linear_axis(values: Sequence[float], *, tight: bool = False) -> ChartAxis:
    """A linear axis with up to six ticks at 1, 2 or 5 times a power of ten.

    With ``tight`` the axis ends at the extreme values, and ticks are inside.

    >>> linear_axis([0, 1200], tight=True).ticks
    [0.0, 500.0, 1000.0]
    >>> linear_axis([0.13, 0.87]).ticks
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    if tight:
        first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    digits = max(0, -floor(log10(step)))
    ticks = [round(step * k, digits) for k in range(first, last + 1)]
    return (
        ChartAxis(low, high, ticks=ticks) if tight else ChartAxis(ticks[0], ticks[-1], ticks=ticks)
    )


def log_axis(values: Sequence[float]) -> ChartAxis:
    """A logarithmic axis: ticks at powers of ten; over one or two decades also at 2 and 5 times.

    >>> log_axis([0.3, 4]).ticks
    [0.2, 0.5, 1.0, 2.0, 5.0]
    >>> log_axis([1e-7, 1]).ticks
    [1e-08, 1e-06, 0.0001, 0.01, 1.0]
    """
    low, high = min(values), max(values)
    first, last = floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9)
    last = max(last, first + 1)
    decades = last - first
    factors = (1, 2, 5) if decades <= 2 else (1,)
    every = ceil(decades / 5)
    first -= -(last - first) % every  # the last decade is a multiple of ``every`` from the first
    ticks = [float(f"{f}e{p}") for p in range(first, last + 1, every) for f in factors]
    start = max(tick for tick in ticks if tick <= low * 1.0001)
    end = min(tick for tick in ticks if tick >= high * 0.9999 and tick > start)
    return ChartAxis(start, end, log=True, ticks=[tick for tick in ticks if start <= tick <= end])


def draw_line(line: Line, x_axis: ChartAxis, y_axis: ChartAxis) -> DrawnChart:
    """A line as SVG paths, clipped to the chart."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (round(SIDE * x_axis.fraction(x), 1), _clip(SIDE * (1 - y_axis.fraction(y))))
            for x, y in zip(line.x, values, strict=True)
        ]

    main = points(line.y)
    band = _path(points(line.high) + points(line.low)[::-1]) + "Z" if len(line.low) else ""
    dots = "".join(f"M{x:g} {y:g}h0" for x, y in main) if line.dots else ""
    faint = _path(points(line.faint)) if len(line.faint) else ""
    return DrawnChart(line.name, line.colour, _path(main), faint, band, dots)


def hover_data(lines: Sequence[Line]) -> dict[str, Any]:
    """Values that the script shows under the pointer."""
    axes = list(dict.fromkeys(tuple(_rounded(x, 9) for x in line.x) for line in lines))
    series = [
        {
            "name": line.name,
            "colour": line.colour,
            "axis": axes.index(tuple(_rounded(x, 9) for x in line.x)),
            "y": [_rounded(y) for y in line.y],
        }
        for line in lines
    ]
    return {"x": axes, "lines": series}


def value_table(lines: Sequence[Line], x_label: str) -> tuple[list[str], list[list[str]]]:
    """A few values of each line: header, and rows of text."""
    low, high = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    longest = max(lines, key=lambda line: len(line.x))
    count = min(ROWS, len(longest.x))
    even = [low + (high - low) * k / max(1, count - 1) for k in range(count)]
    chosen = dict.fromkeys(min(longest.x, key=lambda x: abs(x - each)) for each in even)
    gap = (high - low) / count
    rows = [
        [compact_number(x, exact=True), *(_value_near(line, x, gap) for line in lines)]
        for x in chosen
    ]
    return [x_label, *(line.name for line in lines)], rows


def line_summary(line: Line, x_label: str) -> str:
    """``loss: 1.2 at step 100, 0.91 at step 1,200, lowest 0.9 at step 1,100``"""

    def point(k: int) -> str:
        return f"{compact_number(line.y[k])} at {x_label} {compact_number(line.x[k], exact=True)}"

    ends = dict.fromkeys(point(k) for k in (0, -1))
    lowest = point(min(range(len(line.y)), key=lambda k: line.y[k]))
    return f"{line.name}: {', '.join(ends)}, lowest {lowest}"


def compact_number(number: float, *, exact: bool = False, figures: int = 3) -> str:
    """A number in few characters; with ``exact`` an integer keeps all its digits.

    >>> [compact_number(number) for number in (0.08131, 1234567, 4e5, 2000, 5e-4, 1e-5, 0)]
    ['0.0813', '1.23M', '400k', '2,000', '0.0005', '1e-5', '0']
    >>> compact_number(750600, exact=True)
    '750,600'
    """
    size = abs(number)
    if exact and number == round(number) and size < 1e15:
        return f"{number:,.0f}"
    if size >= 1e15 or 0 < size < 1e-4:
        digits, _, power = f"{number:.{figures - 1}e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    for unit, text in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit * 0.9995:
            return f"{_plain(number / (1e3 if text == 'k' else unit), figures)}{text}"
    return f"{number:,.{max(0, figures - 4)}f}" if size >= 1000 else _plain(number, figures)


def _plain(number: float, figures: int) -> str:
    """``figures`` significant digits, without exponent and trailing zeros."""
    decimals = max(0, figures - 1 - floor(log10(abs(number)))) if number else 0
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _value_near(line: Line, x: float, gap: float) -> str:
    nearest = min(range(len(line.x)), key=lambda k: abs(line.x[k] - x))
    return compact_number(line.y[nearest]) if abs(line.x[nearest] - x) <= gap else ""


def _clip(y: float) -> float:
    return round(min(max(y, 0.0), float(SIDE)), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(_pairs(points))


def _pairs(points: Sequence[tuple[float, float]]) -> Iterator[str]:
    return (f"{x:g} {y:g}" for x, y in points)


def _rounded(number: float, digits: int = 4) -> float:
    """The number with few digits, for short JSON."""
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
