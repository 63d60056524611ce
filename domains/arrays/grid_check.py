"""Check that opened data have the coordinates and units of a model's training data.

A model sees array positions and values without units: with flipped rows, or degrees Celsius in
place of kelvins, it would predict wrong fields without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jitkit.domains.arrays.data import Data, units_of
from jitkit.domains.arrays.output import output_metadata
from jitkit.errors import DataError
from jitkit.utils.types import Array

TOLERANCE = 1e-4  # of a cell


def check_grid_and_units(data: Data, metadata: Mapping[str, Any]) -> None:
    """Compare the grid's coordinates and the units of channels and maps with the training data.

    Coordinates and units that only one of the two has are not compared.

    Args:
        data: opened, with the axes and channels of the model.
        metadata: of the model, as returned by `data.measure_metadata`.

    Raises:
        DataError: they differ; the text names the coordinate or channel and what to do.
    """
    opened, path = output_metadata(data.store, data.plan, window=1), data.store.path
    trained, given = _coordinates(metadata["output"], data), _coordinates(opened, data)
    for name in trained.keys() & given.keys():
        if not _close(given[name], trained[name]):
            raise DataError(
                f"{path}: {name} {_range_text(given[name])}, but in the model's training data it "
                f"{_range_text(trained[name])}{_difference_text(given[name], trained[name])}. "
                f"{_remedy(name, given[name], trained[name])}"
            )
    units = _units(opened) | units_of(data.store, data.grids)
    for channel, unit in (_units(metadata["output"]) | metadata.get("grid_units", {})).items():
        other = units.get(channel, unit)
        if _normalized_unit(other) != _normalized_unit(unit):
            raise DataError(
                f"{path}: {channel} is in {other!r}, but the model was trained in {unit!r}; "
                f"convert the data (if both mean the same, write units {unit!r} into the "
                "attributes)"
            )


def _coordinates(output: Mapping[str, Any], data: Data) -> dict[str, Array]:
    """Numeric coordinates of the axes, and two-dimensional ones in degrees on the last two."""
    names, found = list(data.plan.axes), {}
    for name, c in output["coords"].items():
        values, dims = np.asarray(c["values"]), list(c["dims"])
        in_degrees = str(c["attrs"].get("units", "")).startswith("degree")
        if values.dtype.kind in "fiu" and (
            (dims == [name] and name in names) or (dims == names[-2:] and in_degrees)
        ):
            found[name] = values.astype(np.float64)
    return found


def _close(values: Array, others: Array) -> bool:
    """Whether values are equal up to 1e-4 of a cell and the rounding of float32."""
    if values.shape != others.shape:
        return False
    steps = [np.abs(np.diff(others, axis=i)).ravel() for i in range(others.ndim)]
    cell = float(np.median(np.concatenate(steps))) if others.size > 1 else 1.0
    rounding = float(np.spacing(np.float32(np.abs(others).max())))
    return bool(np.abs(values - others).max() <= TOLERANCE * cell + rounding)


def _range_text(values: Array) -> str:
    """First and last value of a coordinate, as text.

    >>> _range_text(np.array([90.0, 0.0, -90.0]))
    'runs from 90 to -90'
    """
    flat = values.ravel()
    return f"runs from {flat[0]:.6g} to {flat[-1]:.6g}"


def _difference_text(values: Array, others: Array) -> str:
    if values.shape != others.shape:
        return ""
    return f" (up to {np.abs(values - others).max():.3g} apart)"


def _remedy(name: str, values: Array, others: Array) -> str:
    """How to convert the data to the model's grid."""
    if values.shape == others.shape:
        if _close(values[::-1], others):
            return f"Flip the data, as xarray's isel({name}=slice(None, None, -1)) does"
        if values.ndim == 1 and _close(np.sort(values % 360), np.sort(others % 360)):
            return (
                f"These are the same positions in another order: convert {name} to the model's "
                f"values and order, as xarray's assign_coords and sortby do"
            )
    return "Select the same part with domain.select, or regrid the data to the model's grid"


def _units(output: Mapping[str, Any]) -> dict[str, str]:
    """Units by channel."""
    return {
        channel: str(v["attrs"]["units"])
        for v in output["variables"]
        for channel in v["channels"]
        if v["attrs"].get("units")
    }


def _normalized_unit(unit: str) -> str:
    """A unit without the differences in the spelling of powers and spaces.

    >>> _normalized_unit("m s**-1") == _normalized_unit("m s^-1") == _normalized_unit("m  s-1")
    True
    """
    return " ".join(unit.replace("**", "").replace("^", "").split())
