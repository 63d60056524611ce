"""Plot of a sweep: a line with intervals for one key, a heat map for two or more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jitkit.evaluation.scoring import cost
from jitkit.utils.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BEST = "#1f4e79", "#d1495b"
LONGEST = 14  # characters of a tick label


def draw_sweep(result: Mapping[str, Any], path: Path) -> None:
    """Plot the result of `sweep` as PNG.

    With more than two keys, the map shows the first two that have several values; a cell shows the
    best of all settings that share it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = result["axes"]
    several = [key for key in axes if len(axes[key]) > 1]
    keys = several[:2] or list(axes)[:1]
    keys = sorted(keys, key=lambda key: -len(axes[key]))  # the longer axis is horizontal
    sizes = [len(axes[key]) for key in keys]
    high = 3.6 if len(keys) == 1 else max(2.4, 1.6 + 0.5 * sizes[1])
    figure = Figure(figsize=(max(5.0, 1.8 + 0.75 * sizes[0]), high), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.add_subplot()
    (_line if len(keys) == 1 else _map)(panel, result, keys)
    panel.set_title(_title(result, keys), fontsize=10, loc="left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _title(result: Mapping[str, Any], keys: Sequence[str]) -> str:
    others = [key for key in result["axes"] if key not in keys]
    over = f", best over {', '.join(map(_name, others))}" if others else ""
    marks = "framed: the best; ~ no worse within the noise" if len(keys) > 1 else "red: the best"
    return f"{result['by']} of {result['samples']:,} samples{over}\n{marks}"


def _name(key: str) -> str:
    return key.removeprefix("sample.")


def _tick(value: Any) -> str:
    """A value shortened to a tick label; the end is kept, where paths differ."""
    text = str(value)
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _line(panel: Axes, result: Mapping[str, Any], keys: Sequence[str]) -> None:
    key, by = keys[0], result["by"]
    values = result["axes"][key]
    cells = _cells(result, keys)
    numeric = all(isinstance(value, int | float) for value in values)
    positions = values if numeric else list(range(len(values)))
    for position, value in zip(positions, values, strict=True):
        score = cells[str([value])]["scores"][by]
        if score["value"] is None:
            continue
        low, high = score["interval"]
        if low is not None:
            panel.plot([position, position], [low, high], color=INK, lw=1.2, alpha=0.6)
        is_best = result["best"]["set"][key] == value
        panel.plot(
            position, score["value"], "o", color=BEST if is_best else INK, ms=8 if is_best else 5
        )
    shown = [cells[str([value])]["scores"][by]["value"] for value in values]
    defined = [(p, v) for p, v in zip(positions, shown, strict=True) if v is not None]
    panel.plot(*zip(*defined, strict=True), color=INK, lw=1, zorder=0)
    floor = next(iter(cells.values()))["scores"][by].get("floor")
    if floor is not None:
        panel.axhline(floor, color="#666666", lw=1, ls="--", zorder=0)
        panel.annotate("held out", (1, floor), xycoords=("axes fraction", "data"), ha="right",
                       va="bottom", fontsize=8, color="#666666")  # fmt: skip
    if not numeric:
        panel.set_xticks(positions, list(map(_tick, values)))
    panel.set_xlabel(_name(key))
    panel.set_ylabel(by)
    panel.grid(alpha=0.25)


def _map(panel: Axes, result: Mapping[str, Any], keys: Sequence[str]) -> None:
    import numpy as np

    across, down = (result["axes"][key] for key in keys)
    cells, by = _cells(result, keys), result["by"]
    values = np.full((len(down), len(across)), np.nan)
    for j, y in enumerate(down):
        for i, x in enumerate(across):
            value = cells[str([x, y])]["scores"][by]["value"]
            values[j, i] = np.nan if value is None else value
    best = cells[str([result["best"]["set"][key] for key in keys])]["scores"][by].get("best", "low")
    colours = "viridis" if best == "high" else "viridis_r"
    image = panel.imshow(values, cmap=colours, aspect="auto", origin="lower")
    assert panel.figure is not None
    panel.figure.colorbar(image, ax=panel, label=by)
    for j, y in enumerate(down):
        for i, x in enumerate(across):
            _annotate(panel, image, values[j, i], (i, j), cells[str([x, y])], result)
    panel.set_xticks(range(len(across)), list(map(_tick, across)))
    panel.set_yticks(range(len(down)), list(map(_tick, down)))
    panel.set_xlabel(_name(keys[0]))
    panel.set_ylabel(_name(keys[1]))


def _annotate(
    panel: Axes,
    image: Any,
    value: float,
    position: tuple[int, int],
    point: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    """Write a cell's value, frame the best cell, and mark those tied with it by a ~."""
    from matplotlib.patches import Rectangle

    if value != value:
        return
    red, green, blue, _ = image.cmap(image.norm(value))
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
    text = f"{value:.3g}" + (" ~" if point["tied"] else "")
    panel.text(*position, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    if point["set"] == result["best"]["set"]:
        corner = (position[0] - 0.5, position[1] - 0.5)
        frame = Rectangle(corner, 1, 1, fill=False, edgecolor=BEST, lw=3, clip_on=False)
        panel.add_patch(frame)


def _cells(result: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The best point of each cell."""
    cells: dict[str, Mapping[str, Any]] = {}
    for point in sorted(result["points"], key=lambda point: _order(point, result)):
        cells.setdefault(str([point["set"][key] for key in keys]), point)
    return cells


def _order(point: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[bool, float]:
    """Sort key: the best point first, then by cost."""
    score = point["scores"][result["by"]]
    return point["set"] != result["best"]["set"], cost(score, score["value"])
