"""Figure of `benchmarks.fields`: true and sampled fields, spectra, jumps at the periodic edge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gaussian import CHANNELS, MEANS, STDS, UNITS, Estimate, GaussianFields, standardized
from jitkit.utils.atomic import atomic_write
from jitkit.utils.types import Array

SHOWN = 2  # fields of each kind
TITLES = ("true", "sampled", "exact, same noise")
COLORS = ("tab:red", "tab:blue")


def draw_picture(
    fields: GaussianFields, true: Array, exact: Array, sampled: Array, path: Path
) -> None:
    """Write the figure as PNG.

    Args:
        fields: the distribution.
        true, exact, sampled: fields in K and Pa, (N, 2, rows, columns); the exact sampler's are
            from the same noise as the samples.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(2, 1, height_ratios=[0.85, 1])
    above, below = parts
    _draw_fields(above, fields, (true, sampled, exact))
    circle, line, seam = below.subplots(1, 3)
    k = np.arange(fields.columns // 2 + 1)
    found = fields.circle_power_of(standardized(sampled))
    _draw_spectrum(circle, k, fields.circle_power, found, "circle (longitude)")
    k = np.arange(fields.rows // 2 + 1)
    found = fields.line_power_of(standardized(sampled))
    _draw_spectrum(line, k, np.stack([fields.line_power] * 2), found, "line (latitude), Hann taper")
    _draw_jumps(seam, fields, sampled)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png", dpi=80)


def _draw_fields(figure: Any, fields: GaussianFields, kinds: Sequence[Array]) -> None:
    """Rows are channels; some fields of each kind, rolled so that the seam is in the middle."""
    axes = figure.subplots(2, len(kinds) * SHOWN, sharex=True, sharey=True)
    half = fields.columns // 2
    for c, (channel, unit) in enumerate(zip(CHANNELS, UNITS, strict=True)):
        low, high = MEANS[c] - 2.5 * STDS[c], MEANS[c] + 2.5 * STDS[c]
        shown = None
        for i, item in enumerate(item for kind in kinds for item in kind[:SHOWN]):
            ax = axes[c, i]
            ax.set_facecolor("0.7")
            turned = np.roll(item[c], half, axis=1)
            shown = ax.imshow(turned, vmin=low, vmax=high, cmap="RdBu_r", origin="upper")
            ax.axvline(half - 0.5, color="k", lw=0.6, ls=":")
            ax.set(xticks=[], yticks=[])
            if c == 0:
                ax.set_title(TITLES[i // SHOWN], fontsize=10)
        figure.colorbar(shown, ax=axes[c], label=f"{channel} ({unit})", pad=0.01)
    figure.suptitle("The dotted line is the seam of the circle; grey: no data", fontsize=10)


def _draw_spectrum(ax: Any, k: Array, known: Array, found: Estimate, axis: str) -> None:
    """Exact power as lines, power of samples as dots with two standard errors."""
    for c, (channel, color) in enumerate(zip(CHANNELS, COLORS, strict=True)):
        ax.plot(k, known[c], color=color, lw=1, label=f"{channel}, known")
        error = 2 * found.error[c]
        ax.errorbar(k, found.value[c], error, fmt="o", ms=3, color=color, label="sampled")
    ax.set(yscale="log", xlabel="wavenumber", title=f"Power along the {axis}")
    ax.legend(fontsize=8)


def _draw_jumps(ax: Any, fields: GaussianFields, sampled: Array) -> None:
    """Distribution functions of jumps across the seam and on the opposite side of the circle."""
    seam, opposite = fields.jumps(standardized(sampled))
    share = (np.arange(len(seam)) + 0.5) / len(seam)
    for c, (channel, color) in enumerate(zip(CHANNELS, COLORS, strict=True)):
        ax.plot(np.sort(seam[:, c]), share, color=color, lw=1, label=f"{channel}, across the seam")
        ax.plot(np.sort(opposite[:, c]), share, color=color, lw=1, ls="--", label="other side")
    ax.set(xlabel="jump (standard deviations)", title="Jumps between neighbours, share below")
    ax.legend(fontsize=8)
