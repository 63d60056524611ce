"""Reader of The Well's HDF5 files (Ohana et al. 2024, arXiv:2412.00568): groups t0/t1/t2_fields.

Axes of a field: sample, time, space, then one component axis for a vector and two for a tensor. An
axis along which a field is declared constant is absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jitkit.stores.hdf5files import hdf5_source
from jitkit.stores.locations import Location
from jitkit.stores.opened import Opened, as_variable

FIELDS = ("t0_fields", "t1_fields", "t2_fields")
COMPONENTS = ("component", "component_2")


def is_well(file: Any) -> bool:
    """Whether an open HDF5 file has the layout of The Well."""
    return "n_spatial_dims" in file.attrs and "dimensions" in file and "t0_fields" in file


def open_well(file: Any, location: Location) -> Opened:
    """Fields as variables, dimensions and parameters as coordinates."""
    import xarray

    space = [_text(name) for name in file["dimensions"].attrs["spatial_dims"]]
    sources, variables = {}, {}
    for order, group in enumerate(FIELDS):
        for name, field in file.get(group, {}).items():
            sources[name] = hdf5_source(location, field)
            dims = [*_leading(field), *_varying(field, space), *COMPONENTS[:order]]
            variables[name] = as_variable(dims, sources[name], {})
    coords = dict(_coordinates(file, space))
    attrs = {key: _plain(value) for key, value in file.attrs.items()}
    raw = xarray.Dataset(variables, attrs=attrs).assign_coords(coords)
    return Opened(raw, sources, location)


def _leading(field: Any) -> list[str]:
    return [dim for dim in ("sample", "time") if bool(field.attrs.get(f"{dim}_varying", False))]


def _varying(field: Any, space: list[str]) -> list[str]:
    varies = field.attrs.get("dim_varying", [True] * len(space))
    return [dim for dim, yes in zip(space, varies, strict=True) if yes]


def _coordinates(file: Any, space: list[str]) -> Iterator[tuple[str, Any]]:
    """Time, space, component names, and parameters, per sample if they vary."""
    for dim in ("time", *space):
        values = file["dimensions"][dim][()]
        per_sample = values.ndim > 1
        yield f"{dim}_of_sample" if per_sample else dim, (["sample", dim][not per_sample :], values)
    order = max(order for order, group in enumerate(FIELDS) if file.get(group) or order == 0)
    for dim in COMPONENTS[:order]:
        yield dim, (dim, np.array(space))
    for name, scalar in file.get("scalars", {}).items():
        dims = _leading(scalar)
        values = np.asarray(scalar[()])
        if values.ndim == len(dims):
            yield name, (dims, values)
        elif values.size == 1:
            yield name, ((), values.reshape(()))


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _plain(value: Any) -> Any:
    """An attribute value in plain Python types."""
    if isinstance(value, np.ndarray):
        return [_plain(v) for v in value.tolist()]
    return _text(value) if isinstance(value, bytes) else value
