"""Which variables of a store are predicted together, and what its dimensions are in a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from jitkit.domains.arrays.inspect.dimensions import (
    Part,
    by_attributes,
    closes,
    numbers,
    part_of,
)
from jitkit.domains.arrays.inspect.roles import Roles, Unsure, roles_of
from jitkit.domains.arrays.inspect.value_scan import Look
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Described, Store


@dataclass(frozen=True)
class Guess:
    """What a recipe says of a store's dimensions and variables.

    Attributes:
        axes: dimension to line or circle.
        sample, unroll, variables, window, stride: as in section ``domain``.
        roles: of every variable, in words.
        static: variables and coordinates on the axes alone.
        along: the sample dimension of times, where there is one.
        reasons: a line for each dimension.
        unsure: (what may be otherwise, the override that makes it so).
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


def candidates(store: Store) -> dict[str, Described]:
    """Numeric variables that hold data, not how cells are numbered, joined or placed.

    Raises:
        DataError: there is none; the text says what there is.
    """
    numeric = {n: v for n, v in store.variables.items() if v.dtype.kind in "iuf"}
    several = {n: v for n, v in numeric.items() if prod(v.shape) > 1}
    if not several:
        raise DataError(
            f"{store.path} has no numeric variable with more than one value; its variables are "
            f"{listed([f'{n} ({v.dtype})' for n, v in store.variables.items()], 12) or 'none'}"
        )
    found = {n: v for n, v in several.items() if not about_cells(n, v)}
    mesh = any(v.attrs.get("cf_role") == "mesh_topology" for v in store.variables.values())
    if mesh or not found:
        raise DataError(
            f"{store.path} has no variable on a grid: {listed(several)} "
            + (
                "belong to a mesh without rows and columns; interpolate the data to a grid first"
                if mesh
                else "tell of cells, and hold no data"
            )  # fmt: skip
        )
    return found


def about_cells(name: str, variable: Described) -> bool:
    """Whether a variable tells of cells: bounds, links of a mesh, codes with meanings."""
    attrs = variable.attrs
    return bool(
        re.search(r"_(bnds|bounds|vertices)$", name)
        or {"cf_role", "flag_meanings", "flag_values"} & set(attrs)
        or (attrs.get("standard_name") in ("latitude", "longitude"))
    )


def long_dims(variable: Described) -> tuple[str, ...]:
    """Dimensions of more than one entry."""
    return tuple(d for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1)


def guess(store: Store, looks: Mapping[str, Look]) -> Guess:
    """Guess what a store's dimensions and variables are.

    Args:
        store: the data.
        looks: values of its `candidates`.

    Raises:
        DataError: there is nothing to make items of.
    """
    varying = {n: v for n, v in candidates(store).items() if not looks[n].flat}
    if not varying:
        raise DataError(
            f"nothing to train on: {listed(looks)} is the same in every cell that was looked at"
        )
    roles: dict[tuple[str, ...], Roles] = {}
    for name, v in varying.items():
        if long_dims(v) not in roles:
            roles[long_dims(v)] = roles_of(store, v, looks[name])
    groups: dict[tuple[frozenset[str], ...], list[str]] = {}
    for name, v in varying.items():
        r = roles[long_dims(v)]
        groups.setdefault((frozenset(r.axes), frozenset(r.sample)), []).append(name)
    chosen = max(groups.values(), key=lambda names: sum(_numbers(varying[n]) for n in names))
    main = max((roles[long_dims(varying[n])] for n in chosen), key=lambda r: len(r.sizes))
    unroll = dict.fromkeys(d for n in chosen for d in roles[long_dims(varying[n])].unroll)
    return _guessed(store, looks, main, chosen, tuple(unroll))


def _numbers(variable: Described) -> int:
    return prod(variable.shape)


def _guessed(
    store: Store, looks: Mapping[str, Look], main: Roles, chosen: Sequence[str], unroll: Any
) -> Guess:
    """The guess that the roles of the chosen variables come to."""
    axes = {dim: "circle" if _closes(store, main, dim) else "line" for dim in main.axes}
    told = dict(main.parts) | {d: part_of(store, d) for d in unroll if d not in main.parts}
    sizes = {d: n for v in store.variables.values() for d, n in zip(v.dims, v.shape, strict=True)}
    reasons = {
        dim: f"{dim} ({sizes[dim]}): " + main.why.get(dim, "each entry a channel")
        for dim in (*main.sizes, *(d for d in unroll if d not in main.sizes))
    }
    unsure = list(main.unsure)
    for dim, kind in axes.items():
        reasons[dim] = f"{dim} ({sizes[dim]}): axis, {kind}" + _why_axis(told[dim], kind)
        unsure += _ends(store, looks[chosen[0]], dim, kind, told[dim][0])
    static = [
        n
        for n in (*store.variables, *map(str, store.coords.variables))
        if _is_map(store, n, main) and not (n in looks and looks[n].flat)
    ]
    along = main.drawn()[0]
    stride = max(main.stride, sizes[along] // 100_000) if main.window > 1 else 1
    return Guess(
        axes=axes,
        sample=tuple(main.drawn()),
        unroll=tuple(unroll),
        variables=tuple(chosen),
        roles={n: _role(store, n, looks, chosen, static, main) for n in store.variables},
        static=tuple(static),
        along=next((dim for dim in main.drawn() if dim in main.of("time")), None),
        window=main.window,
        stride=stride,
        reasons=reasons,
        unsure=tuple(
            (what, _among(override, store, unroll, chosen))
            for what, override in dict.fromkeys(unsure)
        ),
    )


def _among(override: str, store: Store, unroll: Sequence[str], chosen: Sequence[str]) -> str:
    """An override that moves a dimension from the channels to the axes, or back, with the other
    unrolled dimensions left as they are, and variables that lack the axis left out."""
    if (match := re.fullmatch(r"(.*)domain\.axes\.(.+)=(line|null)(.*)", override)) is None:
        return override
    _, dim, kind, _ = match.groups()
    kept = [other for other in unroll if other != dim] + [dim] * (kind == "null")
    if "domain.unroll=[" in override:
        override = re.sub(r"domain\.unroll=\[.*?\]", f"domain.unroll=[{','.join(kept)}]", override)
    having = [name for name in chosen if dim in store.variables[name].dims]
    if kind == "line" and len(having) < len(chosen):
        override += f" domain.variables=[{','.join(having)}]"
    return override


def _closes(store: Store, main: Roles, dim: str) -> bool:
    return main.parts[dim][0] in ("x", "unknown") and bool(closes(store, dim))


def _why_axis(part: tuple[Part, str], kind: str) -> str:
    if kind == "circle":
        return ", since its steps make 360 degrees"
    return "" if part[0] != "unknown" else ", by its place among the dimensions"


SEAM = 1.5  # of both ends against neighbours, below which a dimension seems to close


def _ends(store: Store, look: Look, dim: str, kind: str, part: Part) -> list[Unsure]:
    """Whether an axis without degrees closes on itself, where its values say so."""
    if kind == "circle" or closes(store, dim) is False or part in ("y", "level"):
        return []
    seam = look.seam(dim) if dim in look.dims else None
    if seam is not None and seam < SEAM:
        what = f"whether {dim} closes on itself: values at its ends are as alike as neighbours"
        return [(what, f"domain.axes.{dim}=circle")]
    if part == "x" and numbers(store, dim) is None:
        return [(f"whether {dim} closes on itself", f"domain.axes.{dim}=circle")]
    return []


def _is_map(store: Store, name: str, main: Roles) -> bool:
    """Whether a variable or coordinate lies on the axes alone."""
    v = store.variables.get(name)
    if v is not None:
        dims, kind = long_dims(v), v.dtype.kind
    else:
        c = store.coords.variables[name]
        dims, kind = tuple(map(str, c.dims)), c.dtype.kind
        if len(dims) < 2 or _places(c.attrs):
            return False
    return len(dims) > 0 and set(dims) == set(main.axes) and kind in "iufb" and not main.window > 1


def _places(attrs: Mapping[str, Any]) -> bool:
    """Whether a coordinate says where cells lie, the same in every item."""
    found = by_attributes(attrs)
    return found is not None and found[0] in ("x", "y")


def _role(
    store: Store,
    name: str,
    looks: Mapping[str, Look],
    chosen: Sequence[str],
    static: Sequence[str],
    main: Roles,
) -> str:
    """What becomes of a variable, and why."""
    v = store.variables[name]
    if name in chosen:
        return "predicted"
    if v.dtype.kind not in "iuf":
        return "left out: no numbers"
    if name in looks and looks[name].flat:
        return "left out: constant" if looks[name].range else "left out: all missing"
    if name in static:
        return "static, not used"
    if about_cells(name, v):
        return "left out: codes or cells"
    lacking = [dim for dim in (*main.axes, *main.sample) if dim not in v.dims]
    return f"left out: no {listed(lacking)}" if lacking else "left out: other dimensions"
