"""Figures of the pages: mosaics of samples, and lines over a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.measures import Mean
from jitkit.utils.types import Array

COLORS = {"x": "tab:blue", "eps": "tab:red", "v": "tab:orange"}


def mosaic(pictures: Array, side: int = 4) -> Array:
    """The first ``side``² images as one, (side (H + 1) - 1, side (W + 1) - 1, 3)."""
    n, height, width, channels = pictures[: side * side].shape
    canvas = np.full((side * (height + 1) - 1, side * (width + 1) - 1, channels), 255, np.uint8)
    for i in range(n):
        y, x = i // side * (height + 1), i % side * (width + 1)
        canvas[y : y + height, x : x + width] = pictures[i]
    return canvas


def draw_mosaics(path: Path, rows: Sequence[Sequence[tuple[str, Array]]], side: int = 4) -> None:
    """A titled mosaic in each panel."""
    figure, axes = _figure(len(rows), max(map(len, rows)), 2.3, 2.5)
    for ax in axes.flat:
        ax.set_axis_off()
    for line, row in zip(axes, rows, strict=True):
        for ax, (title, pictures) in zip(line, row, strict=False):
            ax.imshow(mosaic(pictures, side), interpolation="nearest")
            ax.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)


def draw_points(path: Path, rows: Sequence[Sequence[tuple[str, Array]]]) -> None:
    """A titled scatter plot in each panel, (N, 2), all on one scale."""
    figure, axes = _figure(len(rows), max(map(len, rows)), 2.2, 2.3)
    for line, row in zip(axes, rows, strict=True):
        for ax, (title, points) in zip(line, row, strict=True):
            ax.scatter(*points.T, s=0.5, linewidths=0)
            ax.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), xticks=[], yticks=[], aspect="equal")
            ax.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)


def draw_lines(
    path: Path,
    lines: Mapping[str, Sequence[tuple[float, Mean]]],
    *,
    setting: str,
    logarithmic: bool = False,
) -> None:
    """Fréchet distance over a setting, a line for each name, with the interval over seeds."""
    figure, axes = _figure(1, 1, 6, 4)
    ax = axes[0, 0]
    for name, points in lines.items():
        at, means = zip(*points, strict=True)
        color = COLORS.get(name)
        ax.plot(at, [each.value for each in means], "o-", label=name, color=color)
        low = [each.value if each.low is None else each.low for each in means]
        high = [each.value if each.high is None else each.high for each in means]
        ax.fill_between(at, low, high, alpha=0.2, color=color, linewidth=0)
    ax.set(xlabel=setting, ylabel="Fréchet distance, random features", yscale="log")
    if logarithmic:
        ax.set_xscale("log", base=2)
    ax.legend()
    figure.savefig(path, dpi=100)


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure that needs no display, and its axes, (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)
