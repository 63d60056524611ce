"""Forecasts of a model against what came: `jitkit evaluate` for ``task: forecast``.

held-out starts ─ roll out ─▶ ensembles ─ verification ─▶ scores, baselines, pictures, scores.nc
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.weather.section import VerifySection
from jitkit.domains.weather.sphere import cell_areas
from jitkit.domains.weather.timedelta import duration, in_words
from jitkit.errors import DataError
from jitkit.fields import Layout
from jitkit.metrics.fields.spectra import bands
from jitkit.metrics.fields.summaries import spaced
from jitkit.metrics.forecasts.baselines import System, baselines
from jitkit.metrics.forecasts.ensemble_scores import ScoreFrame
from jitkit.metrics.forecasts.forecast_files import ForecastFile
from jitkit.metrics.forecasts.tables import dataset, table, write_dataset
from jitkit.metrics.forecasts.verify import MODEL, Verification, VerificationPlan
from jitkit.metrics.forecasts.verify import verify as verified
from jitkit.plots import forecasts
from jitkit.plots.forecasts import Shown
from jitkit.protocols import RollOutFunction
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.domains.weather.states import States


FOLDER = "verification"  # in the run's
SHOWN = 3  # leads on maps
MASKS = ("land_sea_mask", "lsm", "sftlf", "land_binary_mask")


class RolledOut:
    """The model as a system of forecasts: rolled out from a start as its leads are asked for."""

    name = MODEL

    def __init__(
        self, states: States, roll_out: RollOutFunction, members: int, longest: int
    ) -> None:
        """Prepare.

        Args:
            states: which names starts.
            roll_out: from a start, of some members, so many steps.
            members: of each ensemble.
            longest: steps that are rolled out.
        """
        self.members, self._longest = members, longest
        self._states, self._roll_out = states, roll_out
        self._start: int | None = None
        self._done = 0
        self._ahead: Iterator[Sequence[Any]] = iter(())

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, rows, columns); leads of a start are asked for in rising order."""
        if start != self._start:
            name = self._states.name(start)
            self._ahead = iter(self._roll_out(name, range(self.members), self._longest))
            self._start, self._done = start, 0
        assert self._done < steps, "leads of a start are asked for in rising order"
        for _ in range(steps - self._done):
            found = next(self._ahead)
        self._done = steps
        return np.stack([item.values for item in found])


class Watched:
    """A system whose forecasts from the first start that was asked for are kept for maps.

    Attributes:
        shown: those that came by.
    """

    def __init__(self, system: System, states: States, kept: Mapping[int, str]) -> None:
        """Prepare.

        Args:
            system: which forecasts.
            states: the truth.
            kept: labels of the leads that are kept, by steps.
        """
        self.name, self.members = system.name, system.members
        self._system, self._states, self._kept = system, states, kept
        self._first: int | None = None
        self.shown: list[Shown] = []

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, rows, columns), as `System`."""
        ensemble = self._system.forecast(start, steps)
        self._first = start if self._first is None else self._first
        position = self._states.after(start, steps)
        if start == self._first and steps in self._kept and position is not None:
            truth = self._states.read(position)
            self.shown.append(Shown.of(self._kept[steps], ensemble, truth))
        return ensemble


def verify(
    states: States,
    section: VerifySection,
    roll_out: RollOutFunction,
    folder: Path,
    *,
    layout: Layout,
    weights: Array | None,
    metadata: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Roll out ensembles over held-out times and score them, as `jitkit.abilities.Verifies` says.

    Args:
        states: of the data.
        section: how many, how far.
        roll_out: the model.
        folder: of the run.
        layout: of the domain.
        weights: areas of the cells, (rows, columns), where the model was trained with them.
        metadata: the domain's metadata.
        seed: of ties, draws of the climatological ensemble and resamples.

    Raises:
        DataError: the data are not at hand, or the held-out split is too short.
    """
    notes = list[str]()
    if section.forecasts is None:
        longest = duration(section.lead, "domain.verify.lead").in_steps(
            states.step_seconds, "domain.verify.lead"
        )
        starts, leads = held_out(states, longest, section.inits), list(range(1, longest + 1))
        model: System = RolledOut(states, roll_out, section.members, longest)
    else:
        file = ForecastFile(Path(section.forecasts), states, MODEL, grid_of(layout, metadata))
        starts, leads, model = kept_out(states, file), file.leads, file
        if len(starts) < len(file.starts):
            left = len(file.starts) - len(starts)
            told = f"{left} of {len(file.starts)} initial times in {section.forecasts} are left out"
            notes.append(f"{told}: they or what came after are not held out")
    labels = [in_words(k * states.step_seconds) for k in leads]
    plan = VerificationPlan(starts, leads, labels, seed)
    axes = [(axis.name, axis.kind) for axis in layout.axes]
    frame = ScoreFrame(states.channels, axes, areas_of(layout, weights, states))
    against, lacking = baselines(
        states,
        kinds=[kind for _, kind in axes],
        members=model.members,
        longest=leads[-1],
        most=section.learn_from,
        seed=seed,
    )
    watched = Watched(model, states, {leads[i]: labels[i] for i in spaced(len(leads), SHOWN)})
    found = verified([watched, *against], states, frame, plan)
    units = dict(states.units)
    rows = found.rows(units)
    data = dataset(found, states.step_seconds)
    write_dataset(data, folder / FOLDER / "scores.nc")
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
        "table": table(rows, found, units),
        "notes": notes + lacking,
        "pictures": draw(found, watched.shown, states, land_of(metadata), folder),
    }


def held_out(states: States, longest: int, inits: int) -> list[int]:
    """Starts, evenly spread, whose whole forecast lies in the held-out split.

    Raises:
        DataError: there is none.
    """
    members = set(states.val.tolist())
    found = [
        int(p)
        for p in states.starts("val")
        if all(states.after(int(p), k) in members for k in (1, longest))
    ]
    if not found:
        far = in_words(longest * states.step_seconds)
        raise DataError(
            f"no forecast of {far} lies in the held-out split of {len(members)} states; lower "
            "domain.verify.lead, or hold out more by domain.val"
        )
    return [found[i] for i in spaced(len(found), inits)]


def kept_out(states: States, file: ForecastFile) -> list[int]:
    """Starts of a file that are held out, with all states that their forecasts are scored by.

    Raises:
        DataError: there is none.
    """
    members = set(states.val.tolist())
    reached = {p: [states.after(p, k) for k in (0, *file.leads)] for p in file.starts}
    found = [p for p, ahead in reached.items() if {at for at in ahead if at is not None} <= members]
    if not found:
        raise DataError(
            f"none of the {len(reached)} initial times of the forecasts "
            f"({states.name(file.starts[0])} to {states.name(file.starts[-1])}) is held out "
            f"with what came after; the held-out split is {states.name(int(states.val[0]))} to "
            f"{states.name(int(states.val[-1]))} (domain.val or domain.splits)"
        )
    return found


def areas_of(layout: Layout, weights: Array | None, states: States) -> Array:
    """Weights of the cells, (rows, columns): their areas where latitudes are known, also if the
    model was trained without ``area_weights``."""
    if weights is not None:
        return np.asarray(weights, np.float64)
    if states.latitude is None or states.longitude is None:
        return np.ones(layout.grid)
    return cell_areas(states.latitude, states.longitude)


def grid_of(layout: Layout, metadata: Mapping[str, Any]) -> dict[str, Array | None]:
    """The grid's dimensions by name, with their coordinates where the data have some."""
    known = metadata["arrays"]["output"]["coords"]
    found: dict[str, Array | None] = {}
    for axis in layout.axes:
        values = np.asarray(known[axis.name]["values"]) if axis.name in known else np.zeros(0, str)
        found[axis.name] = values.astype(float) if values.dtype.kind in "fiu" else None
    return found


def draw(
    found: Verification,
    shown: Sequence[Shown],
    states: States,
    land: Array | None,
    folder: Path,
) -> list[str]:
    """All pictures; their paths in ``folder``."""
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


def land_of(metadata: Mapping[str, Any]) -> Array | None:
    """Share of land of each cell where the data's static maps have it, (rows, columns)."""
    static = metadata["arrays"]["static"]
    if static is None:
        return None
    names = list(static["statistics"]["channels"])
    which = next((names.index(name) for name in MASKS if name in names), None)
    return None if which is None else np.asarray(static["values"])[which]
