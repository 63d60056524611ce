"""Guess the role of each dimension of a variable: axis, sample dimension or channels; with reasons.

time, members, runs      sample dimensions
x, y                     axes; a global longitude is a circle
levels                   channels if few or unevenly spaced, else an axis
bands, species, names    channels
unknown                  the first is a sample dimension, the others are axes; a short one, or one
                         whose neighbours are not similar, is channels
one long time series     windows along it
one single field         its levels, or windows of its rows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from jitkit.domains.arrays.inspect.dimensions import (
    DimensionKind,
    dimension_kind,
    is_evenly_spaced,
    numeric_coordinate,
    step_hours,
)
from jitkit.domains.arrays.inspect.value_scan import ValueScan
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Store, VariableInfo

FEW_LEVELS = 40  # at most so many unevenly spaced levels are channels
EVEN_LEVELS = 8  # at most so many evenly spaced levels are channels
MAX_NAMES = 512  # bands or stations that are channels
SHORT = 16  # entries of an unknown dimension that are channels if the others are much longer
SMOOTH = 0.65  # roughness below which neighbours are similar, as steps in time or space are
ROUGH = 0.8  # roughness above which the order has no meaning
MIN_RECORDS = 64  # at least so many short time series of equal length are items with axis time
MAX_RECORD_STEPS = 4096  # of such a time series
MAX_RECORD_WINDOW, MAX_FIELD_WINDOW = 256, 64  # steps of windows of a time series, rows of a field

Unsure = tuple[str, str]


@dataclass
class Roles:
    """Roles of the dimensions of one variable, without those of one entry.

    Attributes:
        sizes: of its dimensions, in order.
        kinds: of its dimensions, each with the reason.
        axes, sample, unroll, window, stride: as in a recipe.
        reasons: for the role of each dimension.
        first: sample dimensions that come before time.
        unsure: pairs of a doubt and the override that changes it.
    """

    sizes: dict[str, int]
    kinds: dict[str, tuple[DimensionKind, str]]
    axes: list[str] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    unroll: list[str] = field(default_factory=list)
    window: int = 1
    stride: int = 1
    reasons: dict[str, str] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    unsure: list[Unsure] = field(default_factory=list)

    def dims_of(self, *kinds: DimensionKind) -> list[str]:
        """Dimensions of these kinds."""
        return [dim for dim, (kind, _) in self.kinds.items() if kind in kinds]

    def assign(self, role: list[str], dims: Iterable[str], reason: str) -> None:
        """Move dimensions to ``axes``, ``sample`` or ``unroll``, in the order of the data."""
        for dim in list(dims):
            for other in (self.axes, self.sample, self.unroll):
                if dim in other:
                    other.remove(dim)
            role.append(dim)
            self.reasons[dim] = reason
        order = list(self.sizes)
        role.sort(key=order.index)

    def ordered_sample(self) -> list[str]:
        """Sample dimensions in the recipe's order; the first is split."""
        times = self.dims_of("time")
        return sorted(self.sample, key=lambda d: (d not in self.first, d not in times))


def assign_roles(store: Store, variable: VariableInfo, scan: ValueScan) -> Roles:
    """Guess which dimensions are axes, sample dimensions or channels."""
    sizes = {d: n for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1}
    roles = Roles(sizes, {dim: dimension_kind(store, dim) for dim in sizes})
    roles.assign(roles.sample, roles.dims_of("time"), "time, sample dimension")
    roles.assign(roles.sample, roles.dims_of("member"), "separate items, sample dimension")
    roles.assign(roles.axes, roles.dims_of("x", "y"), "axis")
    names = roles.dims_of("names")
    few = [d for d in names if sizes[d] <= MAX_NAMES]
    roles.assign(roles.unroll, few, "channels, one per entry")
    roles.assign(roles.sample, [d for d in names if sizes[d] > MAX_NAMES], "separate items")
    _assign_unknown(roles, scan)
    _assign_levels(store, roles)
    if not roles.axes:
        _assign_record(roles)
    if not roles.sample:
        _assign_field(roles)
    while len(roles.axes) + (roles.window > 1) > 4:
        dim = roles.axes[0]
        roles.assign(roles.sample, [dim], "sample dimension, because an item has at most 4 axes")
    _order_sample(store, roles)
    return roles


def _assign_unknown(roles: Roles, scan: ValueScan) -> None:
    """Assign unknown dimensions by their order, their size and the smoothness of the values."""
    dims = roles.dims_of("unknown")
    if len(roles.axes) == 1 and len(dims) == 1 and roles.sizes[dims[0]] > SHORT:
        roles.assign(roles.axes, dims, "axis")  # of a plane with one known axis
        return
    if roles.axes:  # the grid is known: the others are not space
        few = [dim for dim in dims if roles.sizes[dim] <= FEW_LEVELS]
        roles.assign(roles.unroll, few, "few entries besides the grid, one channel each")
        rest = [dim for dim in dims if dim not in few]
        roles.assign(roles.sample, rest, "many entries besides the grid, sample dimension")
        for dim in dims:
            roles.unsure.append(_role_doubt(roles, dim))
        return
    if _is_record(roles, dims, scan):
        roles.kinds[dims[0]] = ("time", "neighbours are similar")
        roles.assign(roles.sample, dims[:1], "one long time series: neighbours are similar")
        roles.assign(roles.unroll, dims[1:], "channels, one per entry")
        doubt = f"whether {dims[0]} is the steps of one series, or items on the axis {dims[1]}"
        roles.unsure.append((doubt, _items_override(dims)))
        return
    if _is_field(roles, dims, scan):
        roles.assign(roles.axes, dims, "axis")
        override = "domain.window=1 domain.stride=1"
        roles.unsure.append((f"whether the entries of {dims[0]} are separate items", override))
        return
    if dims and not roles.sample and (len(dims) > 1 or roles.dims_of("level", "names")):
        roles.assign(roles.sample, dims[:1], "separate items, by its order; sample dimension")
        dims = dims[1:]
    elif dims and not roles.sample:
        roles.assign(roles.sample, dims, "one time series, sample dimension")
        roles.kinds[dims[0]] = ("time", "")
        return
    channels = _channel_dims(roles, dims, scan)
    roles.assign(roles.unroll, channels, "short or unordered; channels, one per entry")
    roles.assign(roles.axes, [dim for dim in dims if dim not in channels], "axis")
    for dim in channels:
        override = f"domain.unroll=[] domain.axes.{dim}=line"
        roles.unsure.append((f"whether {dim} is channels or an axis", override))
    if not channels and len(dims) > 1:
        override = f"domain.axes.{dims[0]}=null domain.unroll=[{dims[0]}]"
        roles.unsure.append((f"whether {dims[0]} is an axis or channels", override))


def _describe(roles: Roles) -> str:
    by_role = {"items": roles.sample, "channels": roles.unroll, "axes": roles.axes}
    return ", ".join(f"{listed(dims)} {role}" for role, dims in by_role.items() if dims)


def _role_doubt(roles: Roles, dim: str) -> Unsure:
    if dim in roles.unroll:
        override = f"domain.unroll=[] domain.axes.{dim}=line"
        return f"whether {dim} is channels or an axis", override
    override = f"domain.sample=[] domain.axes.{dim}=line"
    return f"whether {dim} is a sample dimension or an axis", override


def _items_override(dims: Sequence[str]) -> str:
    axes = " ".join(f"domain.axes.{dim}=line" for dim in dims[1:])
    return f"domain.window=1 domain.stride=1 domain.unroll=[] {axes}"


def _is_record(roles: Roles, dims: Sequence[str], scan: ValueScan) -> bool:
    """Whether two unknown dimensions are the many steps and few columns of a time series."""
    if len(dims) != 2 or len(roles.sizes) != 2 or roles.sizes[dims[0]] < 4 * MIN_RECORDS:
        return False
    steps, columns = scan.roughness(dims[0]), scan.roughness(dims[1])
    if steps is None or steps > SMOOTH or roles.sizes[dims[1]] > MAX_NAMES:
        return False
    return roles.sizes[dims[1]] <= SHORT or (columns or 1.0) > SMOOTH


def _is_field(roles: Roles, dims: Sequence[str], scan: ValueScan) -> bool:
    """Whether two unknown dimensions are both smooth: one field, not separate items."""
    if len(dims) != 2 or len(roles.sizes) != 2:
        return False
    return all(_roughness_or_one(scan.roughness(dim)) < SMOOTH for dim in dims)


def _channel_dims(roles: Roles, dims: Sequence[str], scan: ValueScan) -> list[str]:
    """Channels among unknown dimensions: the first or the last one, not both."""
    for dim in (dims[0], dims[-1]) if len(dims) > 1 else ():
        size, others = roles.sizes[dim], [other for other in dims if other != dim]
        smallest = min(roles.sizes[other] for other in others)
        short = size < smallest and (size <= 4 or (size <= SHORT and 4 * size <= smallest))
        very_short = size <= SHORT and 16 * size <= smallest
        rough = scan.roughness(dim)
        smoothest = min(_roughness_or_one(scan.roughness(other)) for other in others)
        if rough is None or smoothest > SMOOTH:  # the values are noise: no information
            unordered = False
        else:
            unordered = rough > ROUGH and size <= MAX_NAMES
            short = short and (size <= 4 or very_short or rough > SMOOTH)
        if short or unordered:
            return [dim]
    return []


def _roughness_or_one(rough: float | None) -> float:
    return 1.0 if rough is None else rough + 1e-9


def _assign_levels(store: Store, roles: Roles) -> None:
    """Levels: an axis if many and evenly spaced, or if there is no other axis; else channels."""
    for dim in roles.dims_of("level"):
        size = roles.sizes[dim]
        only_axis = not roles.axes and size > EVEN_LEVELS
        even = is_evenly_spaced(numeric_coordinate(store, dim))
        many = size > FEW_LEVELS or (size > EVEN_LEVELS and even)
        if not roles.sample:
            roles.assign(roles.unroll, [dim], "")
        elif (only_axis or many) and len(roles.axes) < 4:
            roles.assign(roles.axes, [dim], "axis")
            override = f"domain.axes.{dim}=null domain.unroll=[{dim}]"
            doubt = (f"whether {dim} is an axis or channels", override)
            roles.unsure += [doubt] * (not only_axis)
        else:
            reason = "few or unevenly spaced; channels, one per entry"
            roles.assign(roles.unroll, [dim], reason)
            override = f"domain.unroll=[] domain.axes.{dim}=line"
            roles.unsure.append((f"whether {dim} is channels or an axis", override))


def _assign_record(roles: Roles) -> None:
    """No axis: time series, entire ones if they are many and short, else windows of them."""
    times = [dim for dim in roles.sample if dim in roles.dims_of("time")]
    others = [dim for dim in roles.sample if dim not in times]
    if not roles.sample:
        return
    longest = max(times or others, key=lambda dim: roles.sizes[dim])
    steps = roles.sizes[longest]
    if (
        times
        and prod(roles.sizes[dim] for dim in others) >= MIN_RECORDS
        and steps <= MAX_RECORD_STEPS
    ):
        roles.assign(roles.axes, [longest], "axis")
        sample = ",".join([*others, longest])
        override = f"domain.axes.{longest}=null domain.sample=[{sample}] domain.along={longest}"
        doubt = f"whether items are entire time series of {steps} steps, or windows of them"
        roles.unsure.append((doubt, f"{override} domain.window={max(2, steps // 4)}"))
        return
    if steps < 8:
        raise DataError(
            f"no items can be formed: {_describe(roles)}; an item needs a grid, or a window of a "
            "time series of at least 8 steps"
        )
    roles.first = [longest]
    roles.window = min(MAX_RECORD_WINDOW, _power_of_two(max(2, steps // 8)))
    roles.stride = max(1, roles.window // 4)
    reason = f"one time series; items are windows of {roles.window} steps, every {roles.stride}"
    roles.reasons[longest] = reason
    roles.unsure.append(("the length of an item", f"domain.window={roles.window}"))


def _power_of_two(limit: int) -> int:
    """The largest power of two up to a limit."""
    return 1 << (limit.bit_length() - 1)


def _assign_field(roles: Roles) -> None:
    """No sample dimension: the items are the levels of a single field, or windows of its rows."""
    levels = [dim for dim in (*roles.unroll, *roles.axes) if dim in roles.dims_of("level")]
    first = levels or (roles.axes[:1] if len(roles.axes) != 2 else []) or roles.unroll[:1]
    if first and (len(roles.axes) > 1 or first[0] not in roles.axes):
        roles.assign(roles.sample, first, "sample dimension, because no other is left")
        doubt = f"whether the entries of {first[0]} are items: there is only one field"
        roles.unsure.append((doubt, "domain.path=DATA_WITH_TIMES_OR_MEMBERS"))
    elif roles.axes:
        rows = next((dim for dim in roles.axes if dim in roles.dims_of("y")), roles.axes[0])
        roles.assign(roles.sample, [rows], "")
        roles.window = min(MAX_FIELD_WINDOW, _power_of_two(max(2, roles.sizes[rows] // 4)))
        roles.stride = max(1, roles.window // 16)
        roles.reasons[rows] = f"windows of {roles.window}, because there is only one field"
        doubt = "whether parts of a single field are items: they are very similar"
        roles.unsure.append((doubt, "domain.path=DATA_WITH_TIMES_OR_MEMBERS"))
        roles.unsure.append(("the size of an item", f"domain.window={roles.window}"))
        roles.unsure.append(("whether the last rows of the field are validation", "domain.val=0"))
    if not roles.axes and roles.window == 1:
        raise DataError(
            f"no items can be formed: the dimensions are {listed(roles.sizes)}; items need a grid "
            "and a sample dimension (times, members), or one long time series"
        )


def _order_sample(store: Store, roles: Roles) -> None:
    """Put simulations first, to split entire ones off for validation, unless times are dates."""
    times = [dim for dim in roles.sample if dim in roles.dims_of("time")]
    members = [dim for dim in roles.sample if dim not in times]
    several = prod(roles.sizes[dim] for dim in members) >= 4
    if several and roles.window == 1 and not any(step_hours(store, dim) for dim in times):
        roles.first = members
