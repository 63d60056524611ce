"""Verification results (CRPS, RMSE, spread-skill, spectra) as a text table and as NetCDF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import listed
from jitkit.metrics.fields.summaries import linspace_indices
from jitkit.metrics.forecasts.verify import MAX_LISTED, MODEL, Verification
from jitkit.utils.atomic import atomic_write

if TYPE_CHECKING:
    import xarray


CHANNELS = 8  # in a table
SHOWN = ("crps", "rmse", "spread_skill")
TITLES = {
    "crps": "CRPS, fair (mean absolute error for a single forecast)",
    "rmse": "RMSE of the ensemble mean",
    "spread_skill": "spread over RMSE (1 is ideal)",
}


def verification_table(
    rows: Mapping[str, Mapping[str, Any]], verification: Verification, units: Mapping[str, str]
) -> str:
    """Scores of the model and the baselines by channel and lead, as text.

    Args:
        rows: from `Verification.rows`.
        verification: their source.
        units: units of the channels, by name.
    """
    plan, channels = verification.plan, list(verification.frame.channels)
    shown = [channels[i] for i in linspace_indices(len(channels), CHANNELS)]
    labels = [plan.labels[i] for i in linspace_indices(len(plan.leads), MAX_LISTED)]
    members = verification.accumulators[MODEL].members
    lines = [
        f"{len(plan.starts)} initial times x {members} members, leads to {plan.labels[-1]}; "
        "in brackets 95 % intervals"
    ]
    if len(shown) < len(channels):
        lines.append(f"{len(shown)} of {len(channels)} channels; scores.nc has all")
    missing = verification.accumulators[MODEL].missing
    if missing > 0:
        lines.append(f"{missing:.2%} of the analysis's cells are missing in the forecasts")
    spectra = [name for name in verification.scores()[MODEL] if name.startswith("spectrum.")]
    titles = TITLES | {
        name: f"spectrum along {name.partition('.')[2]}: mean |log| of power over the analysis's"
        for name in spectra
    }
    for score in (*SHOWN, *spectra):
        pairs = [(channel, label) for channel in shown for label in labels]
        keys = [key for key in pairs if ".".join((score, *key)) in rows]
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
    """Lines of one score, one for each channel and lead."""
    baselines = list(rows[f"{score}.{keys[0][0]}.{keys[0][1]}"]["baselines"])
    lines = [["", "", MODEL, *(name.replace("_", " ") for name in baselines)]]
    for channel, label in keys:
        row = rows[f"{score}.{channel}.{label}"]
        unit = f" ({units[channel]})" if units.get(channel) else ""
        low, high = row["interval"]
        interval = "" if low is None else f" ({_text(low)} to {_text(high)})"
        others = [_text(row["baselines"][name]["value"]) for name in baselines]
        lines.append([channel + unit, label, _text(row["value"]) + interval, *others])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  " + "  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def verification_dataset(verification: Verification, step_seconds: float) -> xarray.Dataset:
    """All scores of all systems, leads and channels as a dataset.

    Variables: the scores (system, lead, channel), and for the model ``rank_share`` (lead, channel,
    rank) and ``power_ratio_AXIS`` (lead, channel, band).
    """
    import xarray

    plan, frame, values = verification.plan, verification.frame, verification.scores()
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
        each = [scores.get(score, empty) for scores in values.values()]
        data[score.replace(".", "_")] = (dims, np.stack(each))
    model = verification.accumulators[MODEL]
    data["rank_share"] = (("lead", "channel", "rank"), model.rank_shares())
    for axis in model.power:
        band = f"band_{axis}"
        data[f"power_ratio_{axis}"] = (("lead", "channel", band), model.power_ratio(axis))
    data.attrs["title"] = f"scores of {listed(values)}"
    return data


def write_netcdf(data: xarray.Dataset, path: Path) -> None:
    """Write NetCDF atomically."""
    with atomic_write(path) as aside:
        data.to_netcdf(aside, engine="h5netcdf")
