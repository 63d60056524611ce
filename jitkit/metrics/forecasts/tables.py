"""What a verification found, as text and as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import listed
from jitkit.metrics.fields.summaries import spaced
from jitkit.metrics.forecasts.verify import LISTED, MODEL, Verification
from jitkit.utils.atomic import written_aside

if TYPE_CHECKING:
    import xarray


CHANNELS = 8  # that a table shows
SHOWN = ("crps", "rmse", "spread_skill")
TITLES = {
    "crps": "CRPS, fair (of a single forecast its mean absolute error)",
    "rmse": "RMSE of the ensemble mean",
    "spread_skill": "spread over RMSE (1 is right)",
}


def table(
    rows: Mapping[str, Mapping[str, Any]], found: Verification, units: Mapping[str, str]
) -> str:
    """Scores of the model by channel and lead, baselines side by side.

    Args:
        rows: from `Verification.rows`.
        found: what they are of.
        units: of channels, by name.
    """
    plan, channels = found.plan, list(found.frame.channels)
    shown = [channels[i] for i in spaced(len(channels), CHANNELS)]
    labels = [plan.labels[i] for i in spaced(len(plan.leads), LISTED)]
    members = found.tallies[MODEL].members
    lines = [
        f"{len(plan.starts)} initial times x {members} members, leads to {plan.labels[-1]}; "
        "in brackets 95 % intervals"
    ]
    if len(shown) < len(channels):
        lines.append(f"{len(shown)} of {len(channels)} channels; scores.nc has all")
    lacking = found.tallies[MODEL].lacking
    if lacking > 0:
        lines.append(f"the forecasts lack {lacking:.2%} of the cells that have a truth")
    spectra = [name for name in found.scores()[MODEL] if name.startswith("spectrum.")]
    titles = TITLES | {
        name: f"spectrum along {name.partition('.')[2]}: mean |log| of power over the truth's"
        for name in spectra
    }
    for score in (*SHOWN, *spectra):
        every = [(channel, label) for channel in shown for label in labels]
        keys = [key for key in every if ".".join((score, *key)) in rows]
        if keys:
            unit = units if score in ("crps", "rmse") else {}
            lines += ["", titles[score], *_block(score, keys, rows, unit)]
    return "\n".join(lines)


def _block(
    score: str,
    keys: Sequence[tuple[str, str]],
    rows: Mapping[str, Mapping[str, Any]],
    units: Mapping[str, str],
) -> list[str]:
    """One score: a line for each channel and lead."""
    against = list(rows[f"{score}.{keys[0][0]}.{keys[0][1]}"]["baselines"])
    lines = [["", "", MODEL, *(name.replace("_", " ") for name in against)]]
    for channel, label in keys:
        row = rows[f"{score}.{channel}.{label}"]
        unit = f" ({units[channel]})" if units.get(channel) else ""
        low, high = row["interval"]
        reach = "" if low is None else f" ({_text(low)} to {_text(high)})"
        others = [_text(row["baselines"][name]["value"]) for name in against]
        lines.append([channel + unit, label, _text(row["value"]) + reach, *others])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def dataset(found: Verification, step_seconds: float) -> xarray.Dataset:
    """All scores of all systems, leads and channels, for a file.

    Variables are the scores (system, lead, channel), and of the model ``rank_share`` (lead,
    channel, rank) and ``power_ratio_AXIS`` (lead, channel, band).
    """
    import xarray

    plan, frame, values = found.plan, found.frame, found.scores()
    dims = ("system", "lead", "channel")
    empty = np.full((len(plan.leads), len(frame.channels)), np.nan)
    hours = np.array(plan.leads) * step_seconds / 3600
    attrs = {"units": "hours", "long_name": "time since the initial time"}
    data = xarray.Dataset(
        coords={
            "system": list(values),
            "lead": ("lead", hours, attrs),
            "channel": list(frame.channels),
        }
    )
    for score in values[MODEL]:
        each = [numbers.get(score, empty) for numbers in values.values()]
        data[score.replace(".", "_")] = (dims, np.stack(each))
    own = found.tallies[MODEL]
    data["rank_share"] = (("lead", "channel", "rank"), own.shares())
    for axis in own.power:
        band = f"band_{axis}"
        data[f"power_ratio_{axis}"] = (("lead", "channel", band), own.power_ratio(axis))
    data.attrs["title"] = f"scores of {listed(values)}"
    return data


def write_dataset(data: xarray.Dataset, path: Path) -> None:
    """As NetCDF, aside and renamed."""
    with written_aside(path) as aside:
        data.to_netcdf(aside, engine="h5netcdf")
