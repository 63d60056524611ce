"""Whether opened data are of the grid and the units that a model was trained on.

A model knows cells by their place in an array and numbers without their units: on rows that run
the other way, or in degrees Celsius for kelvins, it would give wrong fields without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jitkit.domains.arrays.data import Data, units_of
from jitkit.domains.arrays.output import describe
from jitkit.errors import DataError
from jitkit.utils.types import Array

CLOSE = 1e-4  # of a cell


def check_agreement(data: Data, metadata: Mapping[str, Any]) -> None:
    """Whether coordinates of the grid and units of channels and maps are those of training.

    What one of the two does not tell is not compared.

    Args:
        data: opened, with the axes and channels of the model.
        metadata: of the model, as `data.measure` makes them.

    Raises:
        DataError: they are others; the text says which, and what to do.
    """
    found, path = describe(data.store, data.plan, window=1), data.store.path
    theirs, ours = _coordinates(metadata["output"], data), _coordinates(found, data)
    for name in theirs.keys() & ours.keys():
        if not _close(ours[name], theirs[name]):
            raise DataError(
                f"{path}: {name} {_run(ours[name])}, and where the model was trained it "
                f"{_run(theirs[name])}{_apart(ours[name], theirs[name])}. "
                f"{_mend(name, ours[name], theirs[name])}"
            )
    known = _units(found) | units_of(data.store, data.grids)
    for channel, unit in (_units(metadata["output"]) | metadata.get("grid_units", {})).items():
        other = known.get(channel, unit)
        if _spelled(other) != _spelled(unit):
            raise DataError(
                f"{path}: {channel} is in {other!r}, and the model was trained in {unit!r}; "
                f"convert the data (where both mean the same, write units {unit!r} in its "
                "attributes)"
            )


def _coordinates(described: Mapping[str, Any], data: Data) -> dict[str, Array]:
    """Numbers along an axis of the grid, and degrees on its last two."""
    names, found = list(data.plan.axes), {}
    for name, c in described["coords"].items():
        values, dims = np.asarray(c["values"]), list(c["dims"])
        in_degrees = str(c["attrs"].get("units", "")).startswith("degree")
        if values.dtype.kind in "fiu" and (
            (dims == [name] and name in names) or (dims == names[-2:] and in_degrees)
        ):
            found[name] = values.astype(np.float64)
    return found


def _close(values: Array, others: Array) -> bool:
    """Equal within a small part of a cell, and the rounding of float32."""
    if values.shape != others.shape:
        return False
    steps = [np.abs(np.diff(others, axis=i)).ravel() for i in range(others.ndim)]
    cell = float(np.median(np.concatenate(steps))) if others.size > 1 else 1.0
    rounding = float(np.spacing(np.float32(np.abs(others).max())))
    return bool(np.abs(values - others).max() <= CLOSE * cell + rounding)


def _run(values: Array) -> str:
    """In words, where coordinates begin and end.

    >>> _run(np.array([90.0, 0.0, -90.0]))
    'runs from 90 to -90'
    """
    flat = values.ravel()
    return f"runs from {flat[0]:.6g} to {flat[-1]:.6g}"


def _apart(values: Array, others: Array) -> str:
    if values.shape != others.shape:
        return ""
    return f" (up to {np.abs(values - others).max():.3g} apart)"


def _mend(name: str, values: Array, others: Array) -> str:
    """What makes the one of the other."""
    if values.shape == others.shape:
        if _close(values[::-1], others):
            return f"Turn the data round, as xarray's isel({name}=slice(None, None, -1)) does"
        if values.ndim == 1 and _close(np.sort(values % 360), np.sort(others % 360)):
            return (
                f"They are the same places in another order: bring {name} to the model's numbers "
                f"and order, as xarray's assign_coords and sortby do"
            )
    return "Choose the same part by domain.select, or put the data on the model's grid"


def _units(described: Mapping[str, Any]) -> dict[str, str]:
    """By channel."""
    return {
        channel: str(v["attrs"]["units"])
        for v in described["variables"]
        for channel in v["channels"]
        if v["attrs"].get("units")
    }


def _spelled(unit: str) -> str:
    """Units without what spellings of powers and spaces differ in.

    >>> _spelled("m s**-1") == _spelled("m s^-1") == _spelled("m  s-1")
    True
    """
    return " ".join(unit.replace("**", "").replace("^", "").split())
