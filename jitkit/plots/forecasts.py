"""Pictures of forecasts: maps of one ensemble, scores against lead, ranks and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import listed
from jitkit.metrics.fields.summaries import spaced
from jitkit.metrics.forecasts.verify import MODEL, REACH, Verification
from jitkit.plots.projection import Map
from jitkit.plots.sheet import plain, short
from jitkit.plots.views import labelled, pretty
from jitkit.utils.atomic import written_aside
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


DPI = 110
ROBUST = (0.5, 99.5)  # per cent of the truth's values that colours run over
SIGNED = 0.2  # the smaller side of zero over the larger one, from which colours are about zero
LETTER = 0.09  # inches of a letter of a label
LAND = "#c9c9c9"
COLOURS = {
    MODEL: "#b5462f",
    "persistence": "#7a7a7a",
    "climatology": "#1b4965",
    "climatological_ensemble": "#62b6cb",
    "linear_regression": "#e0a030",
}
CHANNELS = 4  # that a picture shows
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "#404040",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True, eq=False)
class Shown:
    """One forecast for a picture, fields (C, rows, columns).

    Attributes:
        title: of the lead, such as ``24h``.
        truth: what came.
        members: the first two, or the only one.
        mean, spread: of all members; the spread of one is zero.
    """

    title: str
    truth: Array
    members: Array
    mean: Array
    spread: Array

    @classmethod
    def of(cls, title: str, ensemble: Array, truth: Array) -> Shown:
        """From the whole ensemble, (M, C, rows, columns), which is not kept."""
        spread = ensemble.std(axis=0, ddof=1) if len(ensemble) > 1 else 0 * ensemble[0]
        return cls(title, truth, ensemble[:2].copy(), ensemble.mean(axis=0), spread)

    def columns(self, c: int) -> dict[str, Array]:
        """The maps of a channel, by what stands above them."""
        members = {f"member {i}": field[c] for i, field in enumerate(self.members, 1)}
        return {"truth": self.truth[c], **members, "mean": self.mean[c], "spread": self.spread[c]}


def draw_maps(
    forecasts: Sequence[Shown],
    *,
    channels: Sequence[str],
    units: Mapping[str, str],
    latitude: Array,
    longitude: Array,
    title: str,
    path: Path,
    land: Array | None = None,
) -> None:
    """Truth, two members, mean and spread at some leads, a row for each channel and lead.

    Args:
        forecasts: of one initial time, at rising leads.
        channels: C names.
        units: of channels, by name.
        latitude, longitude: degrees, (rows,) and (columns,).
        title: above all, such as the initial time.
        path: of the PNG.
        land: share of land of each cell, (rows, columns), whose half is drawn as coast.
    """
    from matplotlib import rc_context

    place = Map.of(latitude, longitude)
    shown = spaced(len(channels), CHANNELS if len(forecasts) < 3 else 2)
    height = 2.35 * min(1.2, place.aspect) + 0.12
    with rc_context(STYLE):
        figure = _figure(14.0, 0.75 + len(shown) * len(forecasts) * height)
        titles = list(forecasts[0].columns(0))
        grid: Any = figure.subplots(len(shown) * len(forecasts), len(titles), squeeze=False)
        for ax, name in zip(grid[0], titles, strict=True):
            ax.set_title(name, fontsize=10)
        for number, c in enumerate(shown):
            mine = grid[number * len(forecasts) : (number + 1) * len(forecasts)]
            unit = pretty(units.get(channels[c], ""))
            _draw_channel(figure, mine, forecasts, c, place, land, unit)
            for row, each in zip(mine, forecasts, strict=True):
                row[0].set_ylabel(_wrapped(channels[c], int(height / LETTER)) + "\n" + each.title)
        figure.suptitle(plain(title) + _left_out(channels, shown), fontsize=11)
        _save(figure, path)


def _wrapped(name: str, letters: int) -> str:
    """A channel's name in at most two lines of so many letters, broken where its words are.

    >>> _wrapped("sea_surface_temperature", 14)
    'sea_surface_\\ntemperature'
    """
    if len(name) <= letters:
        return plain(name)
    first = name[: name.rfind("_", 0, letters) + 1]
    return plain(first) + ("\n" if first else "") + plain(short(name[len(first) :], letters))


def _left_out(channels: Sequence[str], shown: Sequence[int]) -> str:
    """A second line under a title, where not all channels are drawn."""
    rest = [short(name, 24) for c, name in enumerate(channels) if c not in shown]
    told = f"\n{len(shown)} of {len(channels)} channels; not shown: {plain(listed(rest, most=5))}"
    return told if rest else ""


def _draw_channel(
    figure: Figure,
    rows: Any,
    forecasts: Sequence[Shown],
    c: int,
    place: Map,
    land: Array | None,
    unit: str,
) -> None:
    """A channel's rows of maps, one for each lead, in one range of colours."""
    fields = [each.columns(c) for each in forecasts]
    colours = _colours(np.stack([each["truth"] for each in fields]))
    spread = {"vmin": 0, "vmax": _most([each["spread"] for each in fields]), "cmap": "magma"}
    drawn = {}
    for row, each in zip(rows, fields, strict=True):
        for ax, (name, field) in zip(row, each.items(), strict=True):
            drawn[name] = _map(ax, place, field, land, spread if name == "spread" else colours)
    for name, beside in (("truth", rows[:, :-1]), ("spread", rows[:, -1:])):
        figure.colorbar(drawn[name], ax=list(beside.flat), pad=0.01, label=plain(unit))


def _map(ax: Axes, place: Map, field: Array, land: Array | None, how: Mapping[str, Any]) -> Any:
    """A field on its place, the coast over it."""
    values = np.ma.masked_invalid(field[:, place.order])
    drawn = ax.pcolormesh(place.x, place.y, values, rasterized=True, **how)
    ax.set(xticks=[], yticks=[], aspect="equal")
    for spine in ax.spines.values():
        spine.set_visible(place.outline is None)
    if place.outline is not None:
        ax.plot(*place.outline, color="#404040", lw=0.6)
        missing = np.isnan(field).any()
        if missing:
            ax.fill(*place.outline, color=LAND, zorder=0)
    else:
        ax.set_facecolor(LAND)
    if land is not None and 0 <= np.nanmin(land) < 0.5 < np.nanmax(land):
        coast = np.nan_to_num(land[:, place.order])
        ax.contour(place.middle_x, place.middle_y, coast, [0.5], colors="k", linewidths=0.6)
    return drawn


def _colours(values: Array) -> dict[str, Any]:
    """One range of colours for a channel, about zero where values are signed."""
    known = values[np.isfinite(values)]
    low, high = np.percentile(known, ROBUST).tolist() if known.size else (0.0, 1.0)
    smaller, larger = sorted((-low, high))
    if smaller > SIGNED * larger:
        return {"vmin": -larger, "vmax": larger, "cmap": "RdBu_r"}
    return {"vmin": low, "vmax": max(high, low + 1e-12), "cmap": "viridis"}


def _most(fields: Sequence[Array]) -> float:
    known = np.concatenate([field[np.isfinite(field)] for field in fields])
    return max(float(np.percentile(known, 99.5)) if known.size else 0.0, 1e-12)


def draw_scores(
    found: Verification,
    *,
    units: Mapping[str, str],
    hours: Sequence[float],
    path: Path,
) -> None:
    """CRPS, RMSE, bias and spread over RMSE against lead, a row for each channel.

    The band about the model is its 95 % interval.

    Args:
        found: a verification.
        units: of channels, by name.
        hours: of the leads.
        path: of the PNG.
    """
    from matplotlib import rc_context

    channels, values = list(found.frame.channels), found.scores()
    shown = spaced(len(channels), CHANNELS)
    scores = [s for s in ("crps", "rmse", "bias", "spread_skill") if s in values[MODEL]]
    at = np.array(hours) / (24 if max(hours) > 72 else 1)
    with rc_context(STYLE):
        figure = _figure(3.4 * len(scores), 0.6 + 2.4 * len(shown))
        grid: Any = figure.subplots(len(shown), len(scores), squeeze=False, sharex=True)
        for row, c in enumerate(shown):
            for ax, score in zip(grid[row], scores, strict=True):
                for name, numbers in values.items():
                    if score in numbers:
                        _line(ax, at, numbers[score][:, c], name)
                own = values[MODEL][score][:, c]
                if len(found.plan.starts) > 1:
                    reach = REACH * found.deviations.own[MODEL][score][:, c]
                    ax.fill_between(at, own - reach, own + reach, color=COLOURS[MODEL], alpha=0.2)
                if score in ("spread_skill", "bias"):
                    ax.axhline(score == "spread_skill", color="k", lw=0.6)
                else:
                    ax.set_ylim(bottom=0)
                unit = "" if score == "spread_skill" else pretty(units.get(channels[c], ""))
                ax.set_ylabel(plain(labelled(score.replace("_", "-"), unit)))
            grid[row, 0].set_title(plain(short(channels[c], 40)), loc="left", fontsize=10)
        for ax in grid[-1]:
            ax.set_xlabel("lead (days)" if max(hours) > 72 else "lead (hours)")
        _legend(figure, grid[0, 0])
        _save(figure, path)


def draw_ranks(found: Verification, path: Path) -> None:
    """Rank histograms of the model, a row for each channel, at some leads."""
    from matplotlib import rc_context

    own, channels = found.tallies[MODEL], list(found.frame.channels)
    shown, leads = spaced(len(channels), CHANNELS), spaced(len(found.plan.leads), 4)
    shares, values, chance = own.shares(), own.scores(), found.by_chance()
    with rc_context(STYLE):
        figure = _figure(3.2 * len(leads), 0.5 + 2.0 * len(shown))
        grid: Any = figure.subplots(len(shown), len(leads), squeeze=False, sharey="row")
        for row, c in enumerate(shown):
            for ax, lead in zip(grid[row], leads, strict=True):
                ax.bar(np.arange(own.members + 1), shares[lead, c], color=COLOURS[MODEL], alpha=0.8)
                ax.axhline(1 / (own.members + 1), color="k", lw=0.8)
                error = f"uneven {values['rank_error'][lead, c]:.2g}"
                if np.isfinite(chance[lead, c]):
                    error += f" ({chance[lead, c]:.2g} by chance)"
                ax.set_title(f"{found.plan.labels[lead]}: {error}", fontsize=8)
            grid[row, 0].set_ylabel(plain(short(channels[c], 24)))
        for ax in grid[-1]:
            ax.set_xlabel("rank of the truth")
        _save(figure, path)


def draw_spectra(found: Verification, axis: str, starts: Array, path: Path) -> None:
    """Power over the truth's by wavenumber, a row for each channel, at some leads.

    A panel without any power to show, such as where land is in every row, says so.

    Args:
        found: a verification.
        axis: name of the axis that waves go along.
        starts: first wavenumber of each band.
        path: of the PNG.
    """
    from matplotlib import rc_context

    channels = list(found.frame.channels)
    shown, leads = spaced(len(channels), CHANNELS), spaced(len(found.plan.leads), 4)
    ratios = {name: tally.power_ratio(axis) for name, tally in found.tallies.items()}
    with rc_context(STYLE):
        figure = _figure(3.2 * len(leads), 0.9 + 2.1 * len(shown))
        grid: Any = figure.subplots(
            len(shown), len(leads), squeeze=False, sharex=True, sharey="row"
        )
        for row, c in enumerate(shown):
            for ax, lead in zip(grid[row], leads, strict=True):
                ax.axhline(1, color="k", lw=0.6)
                ax.set(xscale="log", yscale="log", xlim=_around(starts), ylim=(0.02, 5))
                drawn = False
                for name, ratio in ratios.items():
                    known = np.isfinite(ratio[lead, c]) & (ratio[lead, c] > 0)
                    _line(ax, starts, np.where(known, ratio[lead, c], np.nan), name)
                    drawn |= bool(known.any())
                if not drawn:
                    ax.text(0.5, 0.4, "no whole row", transform=ax.transAxes, ha="center")
                if row == 0:
                    ax.set_title(found.plan.labels[lead], fontsize=9)
            grid[row, 0].set_ylabel(plain(short(channels[c], 18)) + "\npower over truth's")
        for ax in grid[-1]:
            ax.set_xlabel(f"wavenumber along {plain(axis)}")
        _legend(figure, grid[0, 0])
        _save(figure, path)


def _around(starts: Array) -> tuple[float, float]:
    """Limits of a logarithmic axis about wavenumbers, also where no line makes it."""
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
    with written_aside(path) as aside:
        figure.savefig(aside, format="png")
