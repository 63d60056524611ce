"""Figures of forecasts: maps of an ensemble, CRPS and RMSE by lead time, ranks, spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import listed
from jitkit.metrics.fields.summaries import linspace_indices
from jitkit.metrics.forecasts.verify import MODEL, Z_95, Verification
from jitkit.plots.projection import MapProjection
from jitkit.plots.sheet import printable, shorten
from jitkit.plots.views import format_unit, with_unit
from jitkit.utils.atomic import atomic_write
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 110
ROBUST = (0.5, 99.5)  # percentiles of the analysis at the ends of the colour scale
SIGNED = 0.2  # ratio of the smaller to the larger side of zero for a diverging scale
LETTER = 0.09  # inches per letter of a label
LAND = "#c9c9c9"
COLOURS = {
    MODEL: "#b5462f",
    "persistence": "#7a7a7a",
    "climatology": "#1b4965",
    "climatological_ensemble": "#62b6cb",
    "linear_regression": "#e0a030",
}
CHANNELS = 4  # shown in a figure, at most
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#404040",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, eq=False)
class ForecastMaps:
    """One forecast for a figure, fields (C, rows, columns).

    Attributes:
        title: lead time, such as ``24h``.
        analysis: the verifying analysis.
        members: the first two, or the only one.
        mean, spread: of all members; the spread of one is zero.
    """

    title: str
    analysis: Array
    members: Array
    mean: Array
    spread: Array

    @classmethod
    def of(cls, title: str, ensemble: Array, analysis: Array) -> ForecastMaps:
        """From the whole ensemble, (M, C, rows, columns)."""
        spread = ensemble.std(axis=0, ddof=1) if len(ensemble) > 1 else 0 * ensemble[0]
        return cls(title, analysis, ensemble[:2].copy(), ensemble.mean(axis=0), spread)

    def columns(self, c: int) -> dict[str, Array]:
        """The maps of a channel, by title."""
        members = {f"member {i}": field[c] for i, field in enumerate(self.members, 1)}
        return {
            "analysis": self.analysis[c],
            **members,
            "mean": self.mean[c],
            "spread": self.spread[c],
        }


def draw_maps(
    forecasts: Sequence[ForecastMaps],
    *,
    channels: Sequence[str],
    units: Mapping[str, str],
    latitude: Array,
    longitude: Array,
    title: str,
    path: Path,
    land: Array | None = None,
) -> None:
    """Analysis, two members, mean and spread at some lead times, a row per channel and lead.

    Args:
        forecasts: forecasts of one initial time, by increasing lead time.
        channels: C names.
        units: units of the channels, by name.
        latitude, longitude: degrees, (rows,) and (columns,).
        title: title of the figure, such as the initial time.
        path: path of the PNG.
        land: land fraction of each cell, (rows, columns); the coast is drawn at 0.5.
    """
    from matplotlib import rc_context

    projection = MapProjection.of(latitude, longitude)
    shown = linspace_indices(len(channels), CHANNELS if len(forecasts) < 3 else 2)
    height = 2.35 * min(1.2, projection.aspect) + 0.12
    with rc_context(STYLE):
        figure = _figure(14.0, 0.75 + len(shown) * len(forecasts) * height)
        titles = list(forecasts[0].columns(0))
        grid: Any = figure.subplots(len(shown) * len(forecasts), len(titles), squeeze=False)
        for ax, name in zip(grid[0], titles, strict=True):
            ax.set_title(name, fontsize=10)
        for number, c in enumerate(shown):
            rows = grid[number * len(forecasts) : (number + 1) * len(forecasts)]
            unit = format_unit(units.get(channels[c], ""))
            _draw_channel(figure, rows, forecasts, c, projection, land, unit)
            for row, each in zip(rows, forecasts, strict=True):
                row[0].set_ylabel(_wrapped(channels[c], int(height / LETTER)) + "\n" + each.title)
        figure.suptitle(printable(title) + _omitted(channels, shown), fontsize=11)
        _save(figure, path)


def _wrapped(name: str, letters: int) -> str:
    """A channel name on at most two lines of ``letters`` letters, broken between words.

    >>> _wrapped("sea_surface_temperature", 14)
    'sea_surface_\\ntemperature'
    """
    if len(name) <= letters:
        return printable(name)
    first = name[: name.rfind("_", 0, letters) + 1]
    return (
        printable(first) + ("\n" if first else "") + printable(shorten(name[len(first) :], letters))
    )


def _omitted(channels: Sequence[str], shown: Sequence[int]) -> str:
    """A second title line if not all channels are shown."""
    rest = [shorten(name, 24) for c, name in enumerate(channels) if c not in shown]
    note = (
        f"\n{len(shown)} of {len(channels)} channels; not shown: {printable(listed(rest, most=5))}"
    )
    return note if rest else ""


def _draw_channel(
    figure: Figure,
    rows: Any,
    forecasts: Sequence[ForecastMaps],
    c: int,
    projection: MapProjection,
    land: Array | None,
    unit: str,
) -> None:
    """Maps of a channel, one row per lead time, with one colour scale."""
    fields = [each.columns(c) for each in forecasts]
    colours = _colours(np.stack([each["analysis"] for each in fields]))
    spread = {"vmin": 0, "vmax": _upper_limit([each["spread"] for each in fields]), "cmap": "magma"}
    drawn = {}
    for row, each in zip(rows, fields, strict=True):
        for ax, (name, field) in zip(row, each.items(), strict=True):
            drawn[name] = _map(ax, projection, field, land, spread if name == "spread" else colours)
    for name, beside in (("analysis", rows[:, :-1]), ("spread", rows[:, -1:])):
        figure.colorbar(drawn[name], ax=list(beside.flat), pad=0.01, label=printable(unit))


def _map(
    ax: Axes, projection: MapProjection, field: Array, land: Array | None, style: Mapping[str, Any]
) -> Any:
    """A field on the map, with the coast."""
    values = np.ma.masked_invalid(field[:, projection.order])
    drawn = ax.pcolormesh(projection.x, projection.y, values, rasterized=True, **style)
    ax.set(xticks=[], yticks=[], aspect="equal")
    for spine in ax.spines.values():
        spine.set_visible(projection.outline is None)
    if projection.outline is not None:
        ax.plot(*projection.outline, color="#404040", lw=0.6)
        missing = np.isnan(field).any()
        if missing:
            ax.fill(*projection.outline, color=LAND, zorder=0)
    else:
        ax.set_facecolor(LAND)
    if land is not None and 0 <= np.nanmin(land) < 0.5 < np.nanmax(land):
        coast = np.nan_to_num(land[:, projection.order])
        ax.contour(
            projection.centre_x, projection.centre_y, coast, [0.5], colors="k", linewidths=0.6
        )
    return drawn


def _colours(values: Array) -> dict[str, Any]:
    """Colour scale of a channel, diverging about zero where values are signed."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, ROBUST).tolist() if known.size else (0.0, 1.0)
    smaller, larger = sorted((-low, high))
    if smaller > SIGNED * larger:
        return {"vmin": -larger, "vmax": larger, "cmap": "RdBu_r"}
    return {"vmin": low, "vmax": max(high, low + 1e-12), "cmap": "viridis"}


def _upper_limit(fields: Sequence[Array]) -> float:
    known = np.concatenate([field[np.isfinite(field)] for field in fields])
    return max(float(np.percentile(known, 99.5)) if known.size else 0.0, 1e-12)


def draw_scores(
    verification: Verification,
    *,
    units: Mapping[str, str],
    hours: Sequence[float],
    path: Path,
) -> None:
    """CRPS, RMSE, bias and spread-skill ratio by lead time, a row per channel.

    The band around the model is its 95 % interval.

    Args:
        verification: the scores.
        units: units of the channels, by name.
        hours: lead times.
        path: path of the PNG.
    """
    from matplotlib import rc_context

    channels, values = list(verification.frame.channels), verification.scores()
    shown = linspace_indices(len(channels), CHANNELS)
    scores = [s for s in ("crps", "rmse", "bias", "spread_skill") if s in values[MODEL]]
    at = np.array(hours) / (24 if max(hours) > 72 else 1)
    with rc_context(STYLE):
        figure = _figure(3.4 * len(scores), 0.6 + 2.4 * len(shown))
        grid: Any = figure.subplots(len(shown), len(scores), squeeze=False, sharex=True)
        for row, c in enumerate(shown):
            for ax, score in zip(grid[row], scores, strict=True):
                for name, scores_of in values.items():
                    if score in scores_of:
                        _line(ax, at, scores_of[score][:, c], name)
                model = values[MODEL][score][:, c]
                if len(verification.plan.starts) > 1:
                    half = Z_95 * verification.deviations.score[MODEL][score][:, c]
                    ax.fill_between(at, model - half, model + half, color=COLOURS[MODEL], alpha=0.2)
                if score in ("spread_skill", "bias"):
                    ax.axhline(score == "spread_skill", color="k", lw=0.6)
                else:
                    ax.set_ylim(bottom=0)
                unit = "" if score == "spread_skill" else format_unit(units.get(channels[c], ""))
                ax.set_ylabel(printable(with_unit(score.replace("_", "-"), unit)))
            grid[row, 0].set_title(printable(shorten(channels[c], 40)), loc="left", fontsize=10)
        for ax in grid[-1]:
            ax.set_xlabel("lead (days)" if max(hours) > 72 else "lead (hours)")
        _legend(figure, grid[0, 0])
        _save(figure, path)


def draw_ranks(verification: Verification, path: Path) -> None:
    """Rank histograms of the model, a row per channel, at some lead times."""
    from matplotlib import rc_context

    model, channels = verification.accumulators[MODEL], list(verification.frame.channels)
    shown, leads = (
        linspace_indices(len(channels), CHANNELS),
        linspace_indices(len(verification.plan.leads), 4),
    )
    shares, values, chance = model.rank_shares(), model.scores(), verification.expected_by_chance()
    with rc_context(STYLE):
        figure = _figure(3.2 * len(leads), 0.5 + 2.0 * len(shown))
        grid: Any = figure.subplots(len(shown), len(leads), squeeze=False, sharey="row")
        for row, c in enumerate(shown):
            for ax, lead in zip(grid[row], leads, strict=True):
                ax.bar(
                    np.arange(model.members + 1), shares[lead, c], color=COLOURS[MODEL], alpha=0.8
                )
                ax.axhline(1 / (model.members + 1), color="k", lw=0.8)
                error = f"rank error {values['rank_error'][lead, c]:.2g}"
                if np.isfinite(chance[lead, c]):
                    error += f" ({chance[lead, c]:.2g} by chance)"
                ax.set_title(f"{verification.plan.labels[lead]}: {error}", fontsize=8)
            grid[row, 0].set_ylabel(printable(shorten(channels[c], 24)))
        for ax in grid[-1]:
            ax.set_xlabel("rank of the analysis")
        _save(figure, path)


def draw_spectra(verification: Verification, axis: str, starts: Array, path: Path) -> None:
    """Power relative to the analysis by wavenumber, a row per channel, at some lead times.

    Panels without any power, such as with land in every row, have a note.

    Args:
        verification: the scores.
        axis: name of the axis of the spectrum.
        starts: first wavenumber of each band.
        path: path of the PNG.
    """
    from matplotlib import rc_context

    channels = list(verification.frame.channels)
    shown, leads = (
        linspace_indices(len(channels), CHANNELS),
        linspace_indices(len(verification.plan.leads), 4),
    )
    ratios = {name: sums.power_ratio(axis) for name, sums in verification.accumulators.items()}
    with rc_context(STYLE):
        figure = _figure(3.2 * len(leads), 0.9 + 2.1 * len(shown))
        grid: Any = figure.subplots(
            len(shown), len(leads), squeeze=False, sharex=True, sharey="row"
        )
        for row, c in enumerate(shown):
            for ax, lead in zip(grid[row], leads, strict=True):
                ax.axhline(1, color="k", lw=0.6)
                ax.set(xscale="log", yscale="log", xlim=_log_limits(starts), ylim=(0.02, 5))
                drawn = False
                for name, ratio in ratios.items():
                    known = np.isfinite(ratio[lead, c]) & (ratio[lead, c] > 0)
                    _line(ax, starts, np.where(known, ratio[lead, c], np.nan), name)
                    drawn |= bool(known.any())
                if not drawn:
                    ax.text(0.5, 0.4, "no complete row", transform=ax.transAxes, ha="center")
                if row == 0:
                    ax.set_title(verification.plan.labels[lead], fontsize=9)
            grid[row, 0].set_ylabel(printable(shorten(channels[c], 18)) + "\npower over analysis")
        for ax in grid[-1]:
            ax.set_xlabel(f"wavenumber along {printable(axis)}")
        _legend(figure, grid[0, 0])
        _save(figure, path)


def _log_limits(starts: Array) -> tuple[float, float]:
    """Limits of a logarithmic wavenumber axis, also without any line."""
    return 0.9 * float(starts.min()), 1.1 * float(starts.max())


def _line(ax: Axes, at: Array, values: Array, name: str) -> None:
    if len(at) == 1:
        ax.plot(at, values, "o", ms=4, color=COLOURS.get(name, "k"), label=name.replace("_", " "))
        return
    width, style = (1.8 if name == MODEL else 1.1), ("-" if name in COLOURS else "--")
    colour = COLOURS.get(name, "k")
    ax.plot(at, values, style, color=colour, lw=width, label=name.replace("_", " "))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    handles, names = ax.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9
    )


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png")
