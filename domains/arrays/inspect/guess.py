"""Guess a recipe's variables, axes, sample dimensions and channels from a store."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from jitkit.domains.arrays.inspect.dimensions import (
    DimensionKind,
    dimension_kind,
    is_periodic,
    kind_from_attributes,
    numeric_coordinate,
)
from jitkit.domains.arrays.inspect.roles import Roles, Unsure, assign_roles
from jitkit.domains.arrays.inspect.value_scan import ValueScan
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Store, VariableInfo


@dataclass(frozen=True)
class Guess:
    """Guessed keys of section ``domain``, with reasons and doubts.

    Attributes:
        axes: line or circle, by dimension.
        sample, unroll, variables, window, stride: as in section ``domain``.
        roles: of every variable, as text.
        static: variables and coordinates with only the axes as dimensions.
        along: the sample dimension that is time, if there is one.
        reasons: a line for each dimension.
        unsure: pairs of a doubt and the override that changes it.
    """

    axes: Mapping[str, str]
    sample: tuple[str, ...]
    unroll: tuple[str, ...]
    variables: tuple[str, ...]
    roles: Mapping[str, str]
    static: tuple[str, ...] = ()
    along: str | None = None
    window: int = 1
    stride: int = 1
    reasons: Mapping[str, str] = field(default_factory=dict)
    unsure: tuple[Unsure, ...] = ()

    def section(self) -> dict[str, Any]:
        """Keys of section ``domain``."""
        keys: dict[str, Any] = {"variables": list(self.variables), "axes": dict(self.axes)}
        keys["sample"] = list(self.sample)
        if self.unroll:
            keys["unroll"] = list(self.unroll)
        if self.window > 1:
            keys |= {"window": self.window, "stride": self.stride}
        return keys


# Variables


def candidates(store: Store) -> dict[str, VariableInfo]:
    """Numeric variables that hold data, not indices, connectivity or positions of cells.

    Raises:
        DataError: there is none; the text lists the variables.
    """
    numeric = {n: v for n, v in store.variables.items() if v.dtype.kind in "iuf"}
    arrays = {n: v for n, v in numeric.items() if prod(v.shape) > 1}
    if not arrays:
        raise DataError(
            f"{store.path} has no numeric variable with more than one value; its variables are "
            f"{listed([f'{n} ({v.dtype})' for n, v in store.variables.items()], 12) or 'none'}"
        )
    data = {n: v for n, v in arrays.items() if not is_grid_metadata(n, v)}
    mesh = any(v.attrs.get("cf_role") == "mesh_topology" for v in store.variables.values())
    if mesh or not data:
        raise DataError(
            f"{store.path} has no variable on a grid: {listed(arrays)} "
            + (
                "belong to a mesh without rows and columns; interpolate the data to a grid first"
                if mesh
                else "describe cells and are not data"
            )  # fmt: skip
        )
    return data


def is_grid_metadata(name: str, variable: VariableInfo) -> bool:
    """Whether a variable describes cells: bounds, mesh connectivity, flags, positions."""
    attrs = variable.attrs
    return bool(
        re.search(r"_(bnds|bounds|vertices)$", name)
        or {"cf_role", "flag_meanings", "flag_values"} & set(attrs)
        or (attrs.get("standard_name") in ("latitude", "longitude"))
    )


def nontrivial_dims(variable: VariableInfo) -> tuple[str, ...]:
    """Dimensions with more than one entry."""
    return tuple(d for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1)


def guess(store: Store, scans: Mapping[str, ValueScan]) -> Guess:
    """Guess the roles of a store's dimensions and variables in a recipe.

    Args:
        store: the data.
        scans: values of its `candidates`.

    Raises:
        DataError: no items can be formed.
    """
    varying = {n: v for n, v in candidates(store).items() if not scans[n].constant}
    if not varying:
        raise DataError(
            f"nothing to train on: {listed(scans)} is the same in every cell that was read"
        )
    roles: dict[tuple[str, ...], Roles] = {}
    for name, v in varying.items():
        if nontrivial_dims(v) not in roles:
            roles[nontrivial_dims(v)] = assign_roles(store, v, scans[name])
    groups: dict[tuple[frozenset[str], ...], list[str]] = {}
    for name, v in varying.items():
        r = roles[nontrivial_dims(v)]
        groups.setdefault((frozenset(r.axes), frozenset(r.sample)), []).append(name)
    chosen = max(groups.values(), key=lambda names: sum(_num_values(varying[n]) for n in names))
    main = max((roles[nontrivial_dims(varying[n])] for n in chosen), key=lambda r: len(r.sizes))
    unroll = dict.fromkeys(d for n in chosen for d in roles[nontrivial_dims(varying[n])].unroll)
    return _build_guess(store, scans, main, chosen, tuple(unroll))


def _num_values(variable: VariableInfo) -> int:
    return prod(variable.shape)


def _build_guess(
    store: Store, scans: Mapping[str, ValueScan], main: Roles, chosen: Sequence[str], unroll: Any
) -> Guess:
    """The guess that follows from the roles of the chosen variables' dimensions."""
    axes = {dim: "circle" if _is_circle(store, main, dim) else "line" for dim in main.axes}
    kinds = dict(main.kinds) | {d: dimension_kind(store, d) for d in unroll if d not in main.kinds}
    sizes = {d: n for v in store.variables.values() for d, n in zip(v.dims, v.shape, strict=True)}
    reasons = {
        dim: f"{dim} ({sizes[dim]}): " + main.reasons.get(dim, "channels, one per entry")
        for dim in (*main.sizes, *(d for d in unroll if d not in main.sizes))
    }
    unsure = list(main.unsure)
    for dim, kind in axes.items():
        reasons[dim] = f"{dim} ({sizes[dim]}): axis, {kind}" + _axis_reason(kinds[dim], kind)
        unsure += _periodicity_doubts(store, scans[chosen[0]], dim, kind, kinds[dim][0])
    static = [
        n
        for n in (*store.variables, *map(str, store.coords.variables))
        if _is_map(store, n, main) and not (n in scans and scans[n].constant)
    ]
    along = main.ordered_sample()[0]
    stride = max(main.stride, sizes[along] // 100_000) if main.window > 1 else 1
    return Guess(
        axes=axes,
        sample=tuple(main.ordered_sample()),
        unroll=tuple(unroll),
        variables=tuple(chosen),
        roles={n: _role(store, n, scans, chosen, static, main) for n in store.variables},
        static=tuple(static),
        along=next((dim for dim in main.ordered_sample() if dim in main.dims_of("time")), None),
        window=main.window,
        stride=stride,
        reasons=reasons,
        unsure=tuple(
            (doubt, _complete_override(override, store, unroll, chosen))
            for doubt, override in dict.fromkeys(unsure)
        ),
    )


def _complete_override(
    override: str, store: Store, unroll: Sequence[str], chosen: Sequence[str]
) -> str:
    """Complete an override that moves a dimension between channels and axes: keep the other
    unrolled dimensions, and leave out variables without the new axis."""
    if (match := re.fullmatch(r"(.*)domain\.axes\.(.+)=(line|null)(.*)", override)) is None:
        return override
    _, dim, kind, _ = match.groups()
    unrolled = ",".join([d for d in unroll if d != dim] + [dim] * (kind == "null"))
    if "domain.unroll=[" in override:
        override = re.sub(r"domain\.unroll=\[.*?\]", f"domain.unroll=[{unrolled}]", override)
    names = [name for name in chosen if dim in store.variables[name].dims]
    if kind == "line" and len(names) < len(chosen):
        override += f" domain.variables=[{','.join(names)}]"
    return override


def _is_circle(store: Store, main: Roles, dim: str) -> bool:
    return main.kinds[dim][0] in ("x", "unknown") and bool(is_periodic(store, dim))


def _axis_reason(dimension: tuple[DimensionKind, str], kind: str) -> str:
    if kind == "circle":
        return ", because its steps cover 360 degrees"
    return "" if dimension[0] != "unknown" else ", by its order among the dimensions"


MAX_SEAM_RATIO = (
    1.5  # of the ends' to the neighbours' differences, for an axis that may be periodic
)


def _periodicity_doubts(
    store: Store, scan: ValueScan, dim: str, kind: str, dimension: DimensionKind
) -> list[Unsure]:
    """Doubts whether an axis without degrees is periodic, judged by its values."""
    if kind == "circle" or is_periodic(store, dim) is False or dimension in ("y", "level"):
        return []
    ratio = scan.seam_ratio(dim) if dim in scan.dims else None
    if ratio is not None and ratio < MAX_SEAM_RATIO:
        doubt = f"whether {dim} is periodic: values at its ends are as similar as neighbours"
        return [(doubt, f"domain.axes.{dim}=circle")]
    if dimension == "x" and numeric_coordinate(store, dim) is None:
        return [(f"whether {dim} is periodic", f"domain.axes.{dim}=circle")]
    return []


def _is_map(store: Store, name: str, main: Roles) -> bool:
    """Whether a variable or coordinate has only the axes as dimensions, and is not a position."""
    v = store.variables.get(name)
    if v is not None:
        dims, kind = nontrivial_dims(v), v.dtype.kind
    else:
        c = store.coords.variables[name]
        dims, kind = tuple(map(str, c.dims)), c.dtype.kind
        if len(dims) < 2 or _is_position(c.attrs):
            return False
    return len(dims) > 0 and set(dims) == set(main.axes) and kind in "iufb" and not main.window > 1


def _is_position(attrs: Mapping[str, Any]) -> bool:
    """Whether a coordinate is a position of cells, the same in every item."""
    kind = kind_from_attributes(attrs)
    return kind is not None and kind[0] in ("x", "y")


def _role(
    store: Store,
    name: str,
    scans: Mapping[str, ValueScan],
    chosen: Sequence[str],
    static: Sequence[str],
    main: Roles,
) -> str:
    """Role of a variable, and why it is left out."""
    v = store.variables[name]
    if name in chosen:
        return "predicted"
    if v.dtype.kind not in "iuf":
        return "left out: not numeric"
    if name in scans and scans[name].constant:
        return "left out: constant" if scans[name].range else "left out: all missing"
    if name in static:
        return "static map, not used"
    if is_grid_metadata(name, v):
        return "left out: flags or cell geometry"
    missing = [dim for dim in (*main.axes, *main.sample) if dim not in v.dims]
    return f"left out: no {listed(missing)}" if missing else "left out: other dimensions"
