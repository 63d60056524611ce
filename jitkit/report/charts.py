"""Charts for a page: where lines, bands, dots and ticks lie, as text that a template draws.

A chart is an SVG of 1000 x 1000 that is stretched to the width it is given, with strokes that keep
their own width; its words are text of the page beside it. So it is readable on a phone and on paper
alike, without a script. The script of the page adds the values under the pointer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, isfinite, log10
from typing import Any

SIDE = 1000  # of the drawing
LOGARITHMIC = 8  # times the least value, from which the largest asks for a logarithmic axis
ROWS = 8  # of the table below a chart


@dataclass(frozen=True)
class Line:
    """One series of a chart; every sequence (N,)."""

    name: str
    colour: str
    """A class of the page's style."""
    x: Sequence[float]
    y: Sequence[float]
    faint: Sequence[float] = ()
    """The same before it was smoothed."""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """A band around it."""
    dots: bool = False
    """Whether its points are drawn: few, each of them measured."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: how far along, in percent, and what it says."""

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
    """What the axes hold, how values were smoothed: a sentence below the title."""
    x_label: str
    summary: str
    """What a reader without eyes is told in place of the drawing."""
    lines: list[DrawnChart]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    values: dict[str, Any]
    """For the script: ``x`` distinct axes, ``lines`` with name, colour, index of the axis, y."""
    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class ChartAxis:
    """From values to percent of an axis."""

    low: float
    high: float
    log: bool = False
    ticks: list[float] = field(default_factory=list)

    def place(self, value: float) -> float:
        """Share of the axis below a value, in 0 to 1 where it lies on it."""
        if self.log:
            least = self.low * 1e-6  # what is not positive lies far below
            return log10(max(value, least) / self.low) / log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self) -> list[Tick]:
        """Where ticks stand, in hundredths of the axis, each with figures enough to differ."""
        for figures in range(3, 16):
            texts = [short(tick, figures=figures) for tick in self.ticks]
            if len(set(texts)) == len(texts):
                break
        places = [round(100 * self.place(tick), 2) for tick in self.ticks]
        return [Tick(place, text) for place, text in zip(places, texts, strict=True)]


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    about: str,
    x_label: str = "step",
    log: bool | None = None,
) -> Chart | None:
    """A chart of the lines that have points; None where none has.

    Args:
        log: whether the values get a logarithmic axis; by their spread where not given. Values
            that are not positive never do.
    """
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return None
    x_axis = linear([x for line in lines for x in (line.x[0], line.x[-1])], tight=True)
    values = [y for line in lines for y in (*line.y, *line.faint) if isfinite(y)]
    positive = min(values) > 0
    if log is None:
        log = max(values) > LOGARITHMIC * min(values)
    y_axis = logarithmic(values) if log and positive else linear(values)
    scale = "; logarithmic axis" if y_axis.log else ""
    header, rows = table(lines, x_label)
    return Chart(
        title,
        f"{about}{scale}.",
        x_label,
        "; ".join(summary(line, x_label) for line in lines) + ".",
        [drawn(line, x_axis, y_axis) for line in lines],
        x_axis.marks(),
        y_axis.marks(),
        hovered(lines) | {"low": x_axis.low, "high": x_axis.high},
        header,
        rows,
    )


def linear(values: Sequence[float], *, tight: bool = False) -> ChartAxis:
    """An axis with up to six ticks at 1, 2 or 5 times a power of ten.

    With ``tight`` it ends where the values end, and ticks lie inside.

    >>> linear([0, 1200], tight=True).ticks
    [0.0, 500.0, 1000.0]
    >>> linear([0.13, 0.87]).ticks
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


def logarithmic(values: Sequence[float]) -> ChartAxis:
    """A logarithmic axis: ticks at powers of ten, and at 2 and 5 times these where there are few.

    >>> logarithmic([0.3, 4]).ticks
    [0.2, 0.5, 1.0, 2.0, 5.0]
    >>> logarithmic([1e-7, 1]).ticks
    [1e-08, 1e-06, 0.0001, 0.01, 1.0]
    """
    low, high = min(values), max(values)
    first, last = floor(log10(low) + 1e-9), ceil(log10(high) - 1e-9)
    last = max(last, first + 1)
    decades = last - first
    factors = (1, 2, 5) if decades <= 2 else (1,)
    every = ceil(decades / 5)
    first -= -(last - first) % every  # the last decade is a multiple of so many from the first
    marks = [float(f"{f}e{p}") for p in range(first, last + 1, every) for f in factors]
    start = max(mark for mark in marks if mark <= low * 1.0001)
    end = min(mark for mark in marks if mark >= high * 0.9999 and mark > start)
    return ChartAxis(start, end, log=True, ticks=[mark for mark in marks if start <= mark <= end])


def drawn(line: Line, x_axis: ChartAxis, y_axis: ChartAxis) -> DrawnChart:
    """A line as paths; its band ends at the edges of the chart."""

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        return [
            (round(SIDE * x_axis.place(x), 1), _inside(SIDE * (1 - y_axis.place(y))))
            for x, y in zip(line.x, values, strict=True)
        ]

    centre = points(line.y)
    band = _path(points(line.high) + points(line.low)[::-1]) + "Z" if len(line.low) else ""
    dots = "".join(f"M{x:g} {y:g}h0" for x, y in centre) if line.dots else ""
    faint = _path(points(line.faint)) if len(line.faint) else ""
    return DrawnChart(line.name, line.colour, _path(centre), faint, band, dots)


def hovered(lines: Sequence[Line]) -> dict[str, Any]:
    """What the script shows under the pointer."""
    axes = list(dict.fromkeys(tuple(_figures(x, 9) for x in line.x) for line in lines))
    told = [
        {
            "name": line.name,
            "colour": line.colour,
            "axis": axes.index(tuple(_figures(x, 9) for x in line.x)),
            "y": [_figures(y) for y in line.y],
        }
        for line in lines
    ]
    return {"x": axes, "lines": told}


def table(lines: Sequence[Line], x_label: str) -> tuple[list[str], list[list[str]]]:
    """A few values of each line: titles, and rows of text."""
    low, high = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    longest = max(lines, key=lambda line: len(line.x))
    count = min(ROWS, len(longest.x))
    marks = [low + (high - low) * k / max(1, count - 1) for k in range(count)]
    marks = list(dict.fromkeys(min(longest.x, key=lambda x: abs(x - mark)) for mark in marks))
    rows = [
        [short(mark, exact=True), *(_near(line, mark, (high - low) / count) for line in lines)]
        for mark in marks
    ]
    return [x_label, *(line.name for line in lines)], rows


def summary(line: Line, x_label: str) -> str:
    """``held out: 1.2 at step 100, 0.91 at step 1,200, lowest 0.9 at step 1,100``"""
    least = min(range(len(line.y)), key=lambda k: line.y[k])
    ends = [f"{short(line.y[k])} at {x_label} {short(line.x[k], exact=True)}" for k in (0, -1)]
    lowest = f"lowest {short(line.y[least])} at {x_label} {short(line.x[least], exact=True)}"
    return f"{line.name}: {', '.join(dict.fromkeys(ends))}, {lowest}"


def short(number: float, *, exact: bool = False, figures: int = 3) -> str:
    """A number in few characters; with ``exact`` a whole one keeps all its digits.

    >>> [short(number) for number in (0.08131, 1234567, 4e5, 2000, 5e-4, 1e-5, 0)]
    ['0.0813', '1.23M', '400k', '2,000', '0.0005', '1e-5', '0']
    >>> short(750600, exact=True)
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
    """So many figures without an exponent, and without zeros at the end."""
    decimals = max(0, figures - 1 - floor(log10(abs(number)))) if number else 0
    text = f"{number:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _near(line: Line, mark: float, most: float) -> str:
    place = min(range(len(line.x)), key=lambda k: abs(line.x[k] - mark))
    return short(line.y[place]) if abs(line.x[place] - mark) <= most else ""


def _inside(y: float) -> float:
    return round(min(max(y, 0.0), float(SIDE)), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(_words(points))


def _words(points: Sequence[tuple[float, float]]) -> Iterator[str]:
    return (f"{x:g} {y:g}" for x, y in points)


def _figures(number: float, most: int = 4) -> float:
    """The number as JSON holds it shortly."""
    rounded = float(f"{number:.{most}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded
