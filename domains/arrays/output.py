"""What a file of samples holds: the source's variables, coordinates, attributes and types.

`describe` finds it in the data, as metadata; `columns` makes the variables of a file from them.
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

# What must be known without the data


def source_kind(path: str) -> str:
    """Which kind of file a path names: a key of ``SUFFIXES``."""
    suffix = Path(path).suffix.lower()
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if "://" in path or suffix in (".zarr", ".zip") or Path(path).expanduser().is_dir():
        return "zarr"
    return "hdf5" if suffix in (".h5", ".hdf5", ".hdf", ".he5") else "netcdf"


def describe(store: Readable, plan: ArrayPlan, *, window: int) -> dict[str, Any]:
    """All that a file of samples needs from the data: plain JSON, and numpy arrays as leaves."""
    kept = {*plan.axes, *plan.unroll}
    variables = []
    for v in plan.variables:
        found = store.variables[v.name]
        steps = {plan.along} if window > 1 else set()
        variables.append(
            {
                "name": v.name,
                "dims": [dim for dim in v.dims if dim in kept | steps],
                "unrolled": list(v.unrolled),
                "unrolled_sizes": [len(plan.entries[dim]) for dim in v.unrolled],
                "channels": list(v.channels),
                "dtype": found.dtype.name,
                "attrs": _plain(found.attrs),
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
    """Coordinates that no item moves along, as they are stored, by name."""
    from xarray import conventions

    fixed = {*plan.axes, *plan.unroll}
    found: dict[str, Any] = {}
    for name, variable in store.coords.variables.items():
        if not set(variable.dims) <= fixed:
            single = {dim for dim in variable.dims if dim not in fixed}
            if any(len(plan.entries[str(dim)]) > 1 or dim in plan.sample for dim in single):
                continue
        cut: Any = variable
        for dim in variable.dims:
            entries = plan.entries[str(dim)]
            cut = cut.isel({dim: entries if dim in fixed else int(entries[0])})
        keep = ("units", "calendar", "dtype") if is_time(np.atleast_1d(cut.values)) else ()
        cut = cut.copy()
        cut.encoding = {key: cut.encoding[key] for key in keep if key in cut.encoding}
        cut = conventions.encode_cf_variable(cut, name=name)
        values = np.asarray(cut.values)
        found[str(name)] = {
            "dims": [str(dim) for dim in cut.dims],
            "values": _leaf(values),
            "attrs": _plain(cut.attrs),
        }
    return found


def _leaf(values: Array) -> Any:
    """Values that JSON and tensors can hold: numbers as an array of at least one axis, or text."""
    if values.dtype.kind not in "fiub":
        return values.astype(str).tolist()
    return np.atleast_1d(values).astype(values.dtype.newbyteorder("="))


HOUR = 3600.0


def _relative(plan: ArrayPlan, window: int) -> dict[str, Any]:
    """Coordinate of a window's steps, counted from its first."""
    values = plan.values[plan.along]
    offsets = [values[i] - values[0] for i in range(window)]
    if is_time(values):
        seconds = [in_seconds(x) for x in offsets]
        if np.ptp(np.diff(seconds)) <= 1:  # months differ in length, and so do windows of them
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
    """Attributes as plain JSON, without those of packing and of variables that are not written."""
    found = {str(name): _attribute(value) for name, value in attrs.items()}
    return {
        name: value
        for name, value in found.items()
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
    """A variable of the file.

    Attributes:
        name: its name.
        dims: dimensions of one item's part, in the file's order.
        shape: of that part.
        dtype: of the file.
        attrs: attributes.
        take: an item's part, of that shape.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: Mapping[str, Any]
    take: Callable[[Sample], Array]


def columns(metadata: Mapping[str, Any], told: Sequence[Column] = ()) -> list[Column]:
    """The variables of a file, from what `describe` found and what items are told."""
    found, start = [], 0
    for v in metadata["variables"]:
        end = start + len(v["channels"])
        sizes = _sizes(metadata)
        found.append(
            Column(
                v["name"],
                tuple(v["dims"]),
                tuple(sizes[dim] for dim in v["dims"]),
                v["dtype"]
                if not metadata["missing"] or v["dtype"].startswith("float")
                else "float32",
                v["attrs"],
                _Part(start, end, v, metadata["axes"]),
            )
        )
        start = end
    return [*found, *told]


def _sizes(metadata: Mapping[str, Any]) -> dict[str, int]:
    sizes = {axis["name"]: axis["size"] for axis in metadata["axes"]}
    for v in metadata["variables"]:
        sizes |= zip(v["unrolled"], v["unrolled_sizes"], strict=True)
    return sizes


@dataclass(frozen=True, eq=False)
class _Part:
    """The channels of one variable, its dimensions in the file's order."""

    start: int
    end: int
    variable: Mapping[str, Any]
    axes: Sequence[Mapping[str, Any]]

    def __call__(self, item: Sample) -> Array:
        v = self.variable
        values = item.values[self.start : self.end]  # (channels, X1..Xn)
        values = values.reshape(*v["unrolled_sizes"], *values.shape[1:])
        here = [*v["unrolled"], *(axis["name"] for axis in self.axes)]
        return values.transpose([here.index(dim) for dim in v["dims"]])


def as_stored(values: Array, dtype: str) -> Array:
    """Numbers in the file's type: whole ones rounded, and clipped to what it holds."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.asarray(values >= 0.5)
    if kind.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(kind)
        # the greatest int64 is no float64: one below it is
        top = np.nextafter(float(limits.max), 0) if kind.itemsize == 8 else float(limits.max)
        values = np.clip(np.rint(values.astype(np.float64)), float(limits.min), top)
    return np.asarray(values).astype(kind)


# What samples were told


def number_column(name: str) -> Column:
    """A number that items were told, NaN where they were not."""

    return Column(_variable(name), (), (), "float64", {"long_name": name}, _Told(name))


def class_column(name: str, classes: Sequence[int | str]) -> Column:
    """A class that items were told: its number where classes have names, -1 for none."""
    if all(isinstance(c, str) for c in classes):
        words = " ".join(str(c).replace(" ", "_") for c in classes)
        attrs: dict[str, Any] = {"flag_values": list(range(len(classes))), "flag_meanings": words}
        numbers: dict[Any, int] = {c: i for i, c in enumerate(classes)}
        return Column(_variable(name), (), (), "int32", attrs, _Told(name, numbers))
    return Column(_variable(name), (), (), "float64", {"long_name": name}, _Told(name))


def _variable(name: str) -> str:
    return name.replace(".", "_").replace("/", "_")


@dataclass(frozen=True)
class _Told:
    """A number or a class of an item."""

    name: str
    numbers: Mapping[Any, int] | None = None

    def __call__(self, item: Sample) -> Array:
        value = item.cond.get(self.name)
        if self.numbers is not None:
            return np.asarray(self.numbers.get(value, -1))
        return np.asarray(np.nan if value is None else value, np.float64)
