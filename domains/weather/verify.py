"""Verification of a forecast model (CRPS, RMSE, spread-skill): `jitkit evaluate` for forecasts.

held-out initial times ─▶ ensembles ─ verification ─▶ scores, baselines, figures, scores.nc
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.weather.section import VerifySection
from jitkit.domains.weather.sphere import cell_areas
from jitkit.domains.weather.timedelta import duration, format_duration
from jitkit.errors import DataError
from jitkit.fields import Layout
from jitkit.metrics.fields.spectra import bands
from jitkit.metrics.fields.summaries import linspace_indices
from jitkit.metrics.forecasts.baselines import ForecastSystem, baselines
from jitkit.metrics.forecasts.ensemble_scores import ScoreFrame
from jitkit.metrics.forecasts.forecast_files import ForecastFile
from jitkit.metrics.forecasts.tables import verification_dataset, verification_table, write_netcdf
from jitkit.metrics.forecasts.verify import MODEL, Verification, VerificationPlan
from jitkit.metrics.forecasts.verify import verify as verified
from jitkit.plots import forecasts
from jitkit.plots.forecasts import ForecastMaps
from jitkit.protocols import RolloutFunction
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.domains.weather.states import States


FOLDER = "verification"  # inside the run
SHOWN = 3  # lead times on maps
MASKS = ("land_sea_mask", "lsm", "sftlf", "land_binary_mask")


class ModelForecasts:
    """The model as a forecast system; each forecast is extended as its lead times are requested."""

    name = MODEL

    def __init__(
        self, states: States, roll_out: RolloutFunction, members: int, longest: int
    ) -> None:
        """Prepare.

        Args:
            states: names initial times.
            roll_out: autoregressive forecasts of the model.
            members: ensemble members.
            longest: steps of each forecast.
        """
        self.members, self._longest = members, longest
        self._states, self._roll_out = states, roll_out
        self._start: int | None = None
        self._done = 0
        self._ahead: Iterator[Sequence[Any]] = iter(())

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, rows, columns); lead times of one start must be requested in order."""
        if start != self._start:
            name = self._states.name(start)
            self._ahead = iter(self._roll_out(name, range(self.members), self._longest))
            self._start, self._done = start, 0
        assert self._done < steps, "lead times of one start must be requested in order"
        for _ in range(steps - self._done):
            found = next(self._ahead)
        self._done = steps
        return np.stack([item.values for item in found])


class RecordingSystem:
    """Wraps a forecast system and keeps forecasts from the first initial time for maps.

    Attributes:
        shown: the kept forecasts.
    """

    def __init__(self, system: ForecastSystem, states: States, kept: Mapping[int, str]) -> None:
        """Prepare.

        Args:
            system: the forecast system.
            states: the verifying analyses.
            kept: labels of the lead times to keep, by steps.
        """
        self.name, self.members = system.name, system.members
        self._system, self._states, self._kept = system, states, kept
        self._first: int | None = None
        self.shown: list[ForecastMaps] = []

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, rows, columns), as `ForecastSystem`."""
        ensemble = self._system.forecast(start, steps)
        self._first = start if self._first is None else self._first
        position = self._states.after(start, steps)
        if start == self._first and steps in self._kept and position is not None:
            analysis = self._states.read(position)
            self.shown.append(ForecastMaps.of(self._kept[steps], ensemble, analysis))
        return ensemble


def verify_model(
    states: States,
    section: VerifySection,
    roll_out: RolloutFunction,
    folder: Path,
    *,
    layout: Layout,
    weights: Array | None,
    metadata: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Forecast ensembles from held-out initial times and score them, see `VerifiesForecasts`.

    Args:
        states: of the data.
        section: number and length of forecasts.
        roll_out: autoregressive forecasts of the model.
        folder: of the run.
        layout: of the domain.
        weights: areas of the cells, (rows, columns), where the model was trained with them.
        metadata: the domain's metadata.
        seed: of tie-breaking, the climatological ensemble and resampling.

    Raises:
        DataError: the data are missing, or the held-out split is too short.
    """
    notes = list[str]()
    if section.forecasts is None:
        longest = duration(section.lead, "domain.verify.lead").in_steps(
            states.step_seconds, "domain.verify.lead"
        )
        starts, leads = held_out_starts(states, longest, section.inits), list(range(1, longest + 1))
        model: ForecastSystem = ModelForecasts(states, roll_out, section.members, longest)
    else:
        file = ForecastFile(
            Path(section.forecasts), states, MODEL, grid_coordinates(layout, metadata)
        )
        starts, leads, model = held_out_starts_of(states, file), file.leads, file
        if len(starts) < len(file.starts):
            left = len(file.starts) - len(starts)
            skipped = f"{left} of {len(file.starts)} initial times in {section.forecasts}"
            notes.append(f"{skipped} are left out: they or their verifying states are not held out")
    labels = [format_duration(k * states.step_seconds) for k in leads]
    plan = VerificationPlan(starts, leads, labels, seed)
    axes = [(axis.name, axis.kind) for axis in layout.axes]
    frame = ScoreFrame(states.channels, axes, cell_weights(layout, weights, states))
    against, unavailable = baselines(
        states,
        kinds=[kind for _, kind in axes],
        members=model.members,
        max_steps=leads[-1],
        max_states=section.learn_from,
        seed=seed,
    )
    recording = RecordingSystem(
        model, states, {leads[i]: labels[i] for i in linspace_indices(len(leads), SHOWN)}
    )
    found = verified([recording, *against], states, frame, plan)
    units = dict(states.units)
    rows = found.rows(units)
    data = verification_dataset(found, states.step_seconds)
    write_netcdf(data, folder / FOLDER / "scores.nc")
    return {
        "scores": rows,
        "samples": len(starts) * model.members,
        "held_out": len(starts),
        "settings": section.model_dump()
        | {
            "starts": [states.name(start) for start in starts],
            "leads": labels,
            "members": model.members,
            "block": found.block,
        },
        "table": verification_table(rows, found, units),
        "notes": notes + unavailable,
        "pictures": draw_figures(found, recording.shown, states, land_fraction(metadata), folder),
    }


def held_out_starts(states: States, longest: int, inits: int) -> list[int]:
    """Evenly spread initial times whose whole forecast is in the held-out split.

    Raises:
        DataError: there are none.
    """
    members = set(states.val.tolist())
    found = [
        int(p)
        for p in states.starts("val")
        if all(states.after(int(p), k) in members for k in (1, longest))
    ]
    if not found:
        far = format_duration(longest * states.step_seconds)
        raise DataError(
            f"no forecast of {far} fits into the held-out split of {len(members)} states; lower "
            "domain.verify.lead, or hold out more with domain.val"
        )
    return [found[i] for i in linspace_indices(len(found), inits)]


def held_out_starts_of(states: States, file: ForecastFile) -> list[int]:
    """Initial times of a file that are held out, with all their verifying states.

    Raises:
        DataError: there are none.
    """
    members = set(states.val.tolist())
    reached = {p: [states.after(p, k) for k in (0, *file.leads)] for p in file.starts}
    found = [p for p, ahead in reached.items() if {at for at in ahead if at is not None} <= members]
    if not found:
        raise DataError(
            f"none of the {len(reached)} initial times of the forecasts "
            f"({states.name(file.starts[0])} to {states.name(file.starts[-1])}) is held out "
            f"with its verifying states; the held-out split is "
            f"{states.name(int(states.val[0]))} to {states.name(int(states.val[-1]))} "
            "(domain.val or domain.splits)"
        )
    return found


def cell_weights(layout: Layout, weights: Array | None, states: States) -> Array:
    """Area weights of the cells, (rows, columns), where latitudes are known, also if the model was
    trained without ``area_weights``."""
    if weights is not None:
        return np.asarray(weights, np.float64)
    if states.latitude is None or states.longitude is None:
        return np.ones(layout.grid)
    return cell_areas(states.latitude, states.longitude)


def grid_coordinates(layout: Layout, metadata: Mapping[str, Any]) -> dict[str, Array | None]:
    """Dimensions of the grid by name, with their coordinates where the data have them."""
    known = metadata["arrays"]["output"]["coords"]
    found: dict[str, Array | None] = {}
    for axis in layout.axes:
        values = np.asarray(known[axis.name]["values"]) if axis.name in known else np.zeros(0, str)
        found[axis.name] = values.astype(float) if values.dtype.kind in "fiu" else None
    return found


def draw_figures(
    found: Verification,
    shown: Sequence[ForecastMaps],
    states: States,
    land: Array | None,
    folder: Path,
) -> list[str]:
    """Draw all figures; returns their paths in ``folder``."""
    frame = found.frame
    units = dict(states.units)
    hours = [k * states.step_seconds / 3600 for k in found.plan.leads]
    names = [f"{FOLDER}/scores.png", f"{FOLDER}/ranks.png"]
    forecasts.draw_scores(found, units=units, hours=hours, path=folder / names[0])
    forecasts.draw_ranks(found, folder / names[1])
    for i in frame.spectral:
        axis = frame.axes[i][0]
        names.append(f"{FOLDER}/spectrum_{axis}.png")
        starts, _ = bands(frame.grid[i])
        forecasts.draw_spectra(found, axis, starts, folder / names[-1])
    if states.latitude is not None and states.longitude is not None and shown:
        names.append(f"{FOLDER}/maps.png")
        forecasts.draw_maps(
            shown,
            channels=frame.channels,
            units=units,
            latitude=states.latitude,
            longitude=states.longitude,
            title=f"forecast from {states.name(found.plan.starts[0])}",
            path=folder / names[-1],
            land=land,
        )
    return names


def land_fraction(metadata: Mapping[str, Any]) -> Array | None:
    """Land fraction of each cell from the static maps, (rows, columns); None without one."""
    static = metadata["arrays"]["static"]
    if static is None:
        return None
    names = list(static["statistics"]["channels"])
    which = next((names.index(name) for name in MASKS if name in names), None)
    return None if which is None else np.asarray(static["values"])[which]
