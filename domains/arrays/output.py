"""Sample files: variables, coordinates, attributes and types, as in the source data.

`output_metadata` collects them from the data; `output_columns` are the variables of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.coordinates import in_seconds, is_time
from jitkit.domains.arrays.items import Sample
from jitkit.domains.arrays.plan import ArrayPlan
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

SUFFIXES = {"netcdf": ".nc", "hdf5": ".h5", "zarr": ".zarr", "npy": ".npy", "npz": ".npz"}

# Metadata for writing without the data


def source_kind(path: str) -> str:
    """File format of a path: a key of ``SUFFIXES``."""
    suffix = Path(path).suffix.lower()
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if "://" in path or suffix in (".zarr", ".zip") or Path(path).expanduser().is_dir():
        return "zarr"
    return "hdf5" if suffix in (".h5", ".hdf5", ".hdf", ".he5") else "netcdf"


def output_metadata(store: Readable, plan: ArrayPlan, *, window: int) -> dict[str, Any]:
    """Everything that a sample file needs from the data: JSON with numpy arrays as leaves."""
    kept = {*plan.axes, *plan.unroll}
    variables = []
    for v in plan.variables:
        info = store.variables[v.name]
        steps = {plan.along} if window > 1 else set()
        variables.append(
            {
                "name": v.name,
                "dims": [dim for dim in v.dims if dim in kept | steps],
                "unrolled": list(v.unrolled),
                "unrolled_sizes": [len(plan.entries[dim]) for dim in v.unrolled],
                "channels": list(v.channels),
                "dtype": info.dtype.name,
                "attrs": _plain(info.attrs),
            }
        )
    coords = _coords(store, plan)
    if window > 1:
        coords[plan.along] = _relative(plan, window)
    return {
        "kind": source_kind(store.path),
        "attrs": _plain(store.attrs),
        "variables": variables,
        "coords": coords,
    }


def _coords(store: Readable, plan: ArrayPlan) -> dict[str, Any]:
    """Stored coordinates that are the same for all items, by name."""
    from xarray import conventions

    fixed = {*plan.axes, *plan.unroll}
    coords: dict[str, Any] = {}
    for name, variable in store.coords.variables.items():
        if not set(variable.dims) <= fixed:
            others = {dim for dim in variable.dims if dim not in fixed}
            if any(len(plan.entries[str(dim)]) > 1 or dim in plan.sample for dim in others):
                continue
        part: Any = variable
        for dim in variable.dims:
            entries = plan.entries[str(dim)]
            part = part.isel({dim: entries if dim in fixed else int(entries[0])})
        keep = ("units", "calendar", "dtype") if is_time(np.atleast_1d(part.values)) else ()
        part = part.copy()
        part.encoding = {key: part.encoding[key] for key in keep if key in part.encoding}
        part = conventions.encode_cf_variable(part, name=name)
        values = np.asarray(part.values)
        coords[str(name)] = {
            "dims": [str(dim) for dim in part.dims],
            "values": _leaf(values),
            "attrs": _plain(part.attrs),
        }
    return coords


def _leaf(values: Array) -> Any:
    """Values for JSON and tensors: numbers as an array of at least one axis, text as a list."""
    if values.dtype.kind not in "fiub":
        return values.astype(str).tolist()
    return np.atleast_1d(values).astype(values.dtype.newbyteorder("="))


HOUR = 3600.0


def _relative(plan: ArrayPlan, window: int) -> dict[str, Any]:
    """Coordinate of a window's steps, relative to the first."""
    values = plan.values[plan.along]
    offsets = [values[i] - values[0] for i in range(window)]
    if is_time(values):
        seconds = [in_seconds(x) for x in offsets]
        if np.ptp(np.diff(seconds)) <= 1:  # months, and windows of months, differ in length
            hours = np.array(seconds) / HOUR
            text = "time since the first step of the window"
            return {
                "dims": [plan.along],
                "values": hours,
                "attrs": {"units": "hours", "long_name": text},
            }
    attrs = {"long_name": "steps since the first of the window", "units": "1"}
    return {"dims": [plan.along], "values": np.arange(window), "attrs": attrs}


LEFT_OUT = ("_FillValue", "missing_value", "bounds", "climatology", "coordinates")


def _plain(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON, without packing and references to variables that are not written."""
    plain = {str(name): _attribute(value) for name, value in attrs.items()}
    return {
        name: value
        for name, value in plain.items()
        if name not in LEFT_OUT and value == value  # JSON has no NaN
    }


def _attribute(value: Any) -> Any:
    if isinstance(value, Mapping):  # Zarr's attributes are JSON
        return _plain(value)
    if isinstance(value, list | tuple):
        return [_attribute(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic):
        return _attribute(value.tolist())
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if value is None or isinstance(value, str | int | float) else str(value)


# The variables of a file


@dataclass(frozen=True, eq=False)
class Column:
    """A variable of a sample file.

    Attributes:
        name: of the variable.
        dims: dimensions of one item's values, in the file's order.
        shape: of one item's values.
        dtype: in the file.
        attrs: attributes.
        take: returns the values of an item, in that shape.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any]
    take: Callable[[Sample], Array]


def output_columns(metadata: Mapping[str, Any], conditions: Sequence[Column] = ()) -> list[Column]:
    """The variables of a sample file, from `output_metadata`, followed by those of conditions."""
    columns, start = [], 0
    for v in metadata["variables"]:
        end = start + len(v["channels"])
        sizes = _sizes(metadata)
        columns.append(
            Column(
                v["name"],
                tuple(v["dims"]),
                tuple(sizes[dim] for dim in v["dims"]),
                v["dtype"]
                if not metadata["missing"] or v["dtype"].startswith("float")
                else "float32",
                v["attrs"],
                _VariableValues(start, end, v, metadata["axes"]),
            )
        )
        start = end
    return [*columns, *conditions]


def _sizes(metadata: Mapping[str, Any]) -> dict[str, int]:
    sizes = {axis["name"]: axis["size"] for axis in metadata["axes"]}
    for v in metadata["variables"]:
        sizes |= zip(v["unrolled"], v["unrolled_sizes"], strict=True)
    return sizes


@dataclass(frozen=True, eq=False)
class _VariableValues:
    """Takes the channels of one variable from an item, with dimensions in the file's order."""

    start: int
    end: int
    variable: Mapping[str, Any]
    axes: Sequence[Mapping[str, Any]]

    def __call__(self, item: Sample) -> Array:
        v = self.variable
        values = item.values[self.start : self.end]  # (channels, X1..Xn)
        values = values.reshape(*v["unrolled_sizes"], *values.shape[1:])
        dims = [*v["unrolled"], *(axis["name"] for axis in self.axes)]
        return values.transpose([dims.index(dim) for dim in v["dims"]])


def as_stored(values: Array, dtype: str) -> Array:
    """Values in the file's dtype; for integers rounded and clipped to its range."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.asarray(values >= 0.5)
    if kind.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(kind)
        # the largest int64 is not a float64: take the float64 below it
        top = np.nextafter(float(limits.max), 0) if kind.itemsize == 8 else float(limits.max)
        values = np.clip(np.rint(values.astype(np.float64)), float(limits.min), top)
    return np.asarray(values).astype(kind)


# Conditions


def scalar_column(name: str) -> Column:
    """Variable of a scalar condition, NaN if an item lacks it."""

    return Column(_variable(name), (), (), "float64", {"long_name": name}, _ConditionValue(name))


def category_column(name: str, classes: Sequence[int | str]) -> Column:
    """Variable of a categorical condition: the class index if classes have names (-1: none), else
    the class (NaN: none)."""
    if all(isinstance(c, str) for c in classes):
        meanings = " ".join(str(c).replace(" ", "_") for c in classes)
        flags = list(range(len(classes)))
        attrs: dict[str, Any] = {"flag_values": flags, "flag_meanings": meanings}
        indices: dict[Any, int] = {c: i for i, c in enumerate(classes)}
        return Column(_variable(name), (), (), "int32", attrs, _ConditionValue(name, indices))
    return Column(_variable(name), (), (), "float64", {"long_name": name}, _ConditionValue(name))


def _variable(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


@dataclass(frozen=True)
class _ConditionValue:
    """Takes a scalar or a class from an item."""

    name: str
    indices: Mapping[Any, int] | None = None

    def __call__(self, item: Sample) -> Array:
        value = item.cond.get(self.name)
        if self.indices is not None:
            return np.asarray(self.indices.get(value, -1))
        return np.asarray(np.nan if value is None else value, np.float64)
