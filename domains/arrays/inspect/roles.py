"""Which part each dimension of a variable probably has in a recipe, and why.

time, members, runs      drawn from
x, y                     axes; a longitude all round the globe is a circle
levels                   channels where few or uneven, else an axis
bands, species, names    channels
nothing is known         the first is drawn from, the others are axes; a short one, and one whose
                         neighbours are not alike, is channels
one long record          windows along it
one single field         its levels, or windows of its rows
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from jitkit.domains.arrays.inspect.dimensions import Part, even, hours_of_step, numbers, part_of
from jitkit.domains.arrays.inspect.value_scan import Look
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Described, Store

FEW_LEVELS = 40  # are channels where they are uneven
EVEN_LEVELS = 8  # are channels though they are even
MOST_NAMES = 512  # entries of a list of bands or stations that are channels
SHORT = 16  # entries of an unknown dimension that are channels where the others are much longer
ORDERED = 0.65  # roughness below which neighbours are alike, as steps in time or space are
ROUGH = 0.8  # roughness above which their order means nothing
MANY = 64  # short records of one length are items, and time is their axis
LONGEST = 4096  # steps of such a record
RECORD, ROWS = 256, 64  # most steps of an item that is cut from a record, from a field

Unsure = tuple[str, str]


@dataclass
class Roles:
    """Parts of the dimensions of one variable, those of one entry left out.

    Attributes:
        sizes: its dimensions, in order.
        parts: what each is, and by what it is known.
        axes, sample, unroll, window, stride: as in a recipe.
        why: a reason for each.
        first: sample dimensions that come before times.
        unsure: (what may be otherwise, the override that makes it so).
    """

    sizes: dict[str, int]
    parts: dict[str, tuple[Part, str]]
    axes: list[str] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)
    unroll: list[str] = field(default_factory=list)
    window: int = 1
    stride: int = 1
    why: dict[str, str] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    unsure: list[Unsure] = field(default_factory=list)

    def of(self, *parts: Part) -> list[str]:
        """Dimensions that are one of these."""
        return [dim for dim, (part, _) in self.parts.items() if part in parts]

    def put(self, where: list[str], dims: Iterable[str], why: str) -> None:
        """Give dimensions a part, in place of what they had; in the order of the data."""
        for dim in list(dims):
            for other in (self.axes, self.sample, self.unroll):
                if dim in other:
                    other.remove(dim)
            where.append(dim)
            self.why[dim] = why
        order = list(self.sizes)
        where.sort(key=order.index)

    def drawn(self) -> list[str]:
        """Sample dimensions in the recipe's order; the first is the one that is split."""
        return sorted(self.sample, key=lambda d: (d not in self.first, d not in self.of("time")))


def roles_of(store: Store, variable: Described, look: Look) -> Roles:
    """Which dimensions are axes, drawn from, or channels."""
    sizes = {d: n for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1}
    found = Roles(sizes, {dim: part_of(store, dim) for dim in sizes})
    found.put(found.sample, found.of("time"), "time, drawn from")
    found.put(found.sample, found.of("member"), "separate items, drawn from")
    found.put(found.axes, found.of("x", "y"), "axis")
    names = found.of("names")
    found.put(found.unroll, [d for d in names if sizes[d] <= MOST_NAMES], "each entry a channel")
    found.put(found.sample, [d for d in names if sizes[d] > MOST_NAMES], "separate items")
    _unknown(found, look)
    _levels(store, found)
    if not found.axes:
        _record(found)
    if not found.sample:
        _field(found)
    while len(found.axes) + (found.window > 1) > 4:
        dim = found.axes[0]
        found.put(found.sample, [dim], "drawn from, since an item has at most 4 axes")
    _order(store, found)
    return found


def _unknown(found: Roles, look: Look) -> None:
    """Dimensions of which nothing is known: by their place, their size and how values vary."""
    dims = found.of("unknown")
    if len(found.axes) == 1 and len(dims) == 1 and found.sizes[dims[0]] > SHORT:
        found.put(found.axes, dims, "axis")  # of a plane of which one side is known
        return
    if found.axes:  # a grid is known: the rest is not space
        few = [dim for dim in dims if found.sizes[dim] <= FEW_LEVELS]
        found.put(found.unroll, few, "few entries beside a grid, each a channel")
        rest = [dim for dim in dims if dim not in few]
        found.put(found.sample, rest, "many entries beside a grid, drawn from")
        for dim in dims:
            found.unsure.append(_moved(found, dim))
        return
    if _is_record(found, dims, look):
        found.parts[dims[0]] = ("time", "neighbours are alike")
        found.put(found.sample, dims[:1], "one long record, since neighbours are alike")
        found.put(found.unroll, dims[1:], "each entry a channel")
        what = f"whether {dims[0]} is steps of one record, or items on the axis {dims[1]}"
        found.unsure.append((what, _as_items(dims)))
        return
    if _is_field(found, dims, look):
        found.put(found.axes, dims, "axis")
        override = "domain.window=1 domain.stride=1"
        found.unsure.append((f"whether the entries of {dims[0]} are items by themselves", override))
        return
    if dims and not found.sample and (len(dims) > 1 or found.of("level", "names")):
        found.put(found.sample, dims[:1], "separate items by its place, drawn from")
        dims = dims[1:]
    elif dims and not found.sample:
        found.put(found.sample, dims, "one record, drawn from")
        found.parts[dims[0]] = ("time", "")
        return
    channels = _channels(found, dims, look)
    found.put(found.unroll, channels, "short or without order, each entry a channel")
    found.put(found.axes, [dim for dim in dims if dim not in channels], "axis")
    for dim in channels:
        override = f"domain.unroll=[] domain.axes.{dim}=line"
        found.unsure.append((f"whether {dim} is channels, or an axis", override))
    if not channels and len(dims) > 1:
        override = f"domain.axes.{dims[0]}=null domain.unroll=[{dims[0]}]"
        found.unsure.append((f"whether {dims[0]} is an axis, or channels", override))


def _said(found: Roles) -> str:
    parts = {"items": found.sample, "channels": found.unroll, "axes": found.axes}
    return ", ".join(f"{listed(dims)} {what}" for what, dims in parts.items() if dims)


def _moved(found: Roles, dim: str) -> Unsure:
    if dim in found.unroll:
        override = f"domain.unroll=[] domain.axes.{dim}=line"
        return f"whether the entries of {dim} are channels, not an axis", override
    override = f"domain.sample=[] domain.axes.{dim}=line"
    return f"whether {dim} is drawn from, not an axis", override


def _as_items(dims: Sequence[str]) -> str:
    axes = " ".join(f"domain.axes.{dim}=line" for dim in dims[1:])
    return f"domain.window=1 domain.stride=1 domain.unroll=[] {axes}"


def _is_record(found: Roles, dims: Sequence[str], look: Look) -> bool:
    """Two dimensions of nothing known: many steps that follow each other, of a few columns."""
    if len(dims) != 2 or len(found.sizes) != 2 or found.sizes[dims[0]] < 4 * MANY:
        return False
    steps, columns = look.roughness(dims[0]), look.roughness(dims[1])
    if steps is None or steps > ORDERED or found.sizes[dims[1]] > MOST_NAMES:
        return False
    return found.sizes[dims[1]] <= SHORT or (columns or 1.0) > ORDERED


def _is_field(found: Roles, dims: Sequence[str], look: Look) -> bool:
    """Two dimensions of nothing known, both smooth: one field, and no separate items."""
    if len(dims) != 2 or len(found.sizes) != 2:
        return False
    return all(_or_one(look.roughness(dim)) < ORDERED for dim in dims)


def _channels(found: Roles, dims: Sequence[str], look: Look) -> list[str]:
    """Of dimensions of nothing known, the first or the last may be channels, not both."""
    for dim in (dims[0], dims[-1]) if len(dims) > 1 else ():
        size, others = found.sizes[dim], [other for other in dims if other != dim]
        least = min(found.sizes[other] for other in others)
        short = size < least and (size <= 4 or (size <= SHORT and 4 * size <= least))
        shorter = size <= SHORT and 16 * size <= least
        rough = look.roughness(dim)
        told = min(r for other in others if (r := _or_one(look.roughness(other))))
        if rough is None or told > ORDERED:  # the values are noise, and tell nothing
            unordered = False
        else:
            unordered = rough > ROUGH and size <= MOST_NAMES
            short = short and (size <= 4 or shorter or rough > ORDERED)
        if short or unordered:
            return [dim]
    return []


def _or_one(rough: float | None) -> float:
    return 1.0 if rough is None else rough + 1e-9


def _levels(store: Store, found: Roles) -> None:
    """Levels: an axis where many and even, or where there is no other; else channels."""
    for dim in found.of("level"):
        size = found.sizes[dim]
        alone = not found.axes and size > EVEN_LEVELS
        many = size > FEW_LEVELS or (size > EVEN_LEVELS and even(numbers(store, dim)))
        if not found.sample:
            found.put(found.unroll, [dim], "")
        elif (alone or many) and len(found.axes) < 4:
            found.put(found.axes, [dim], "axis")
            override = f"domain.axes.{dim}=null domain.unroll=[{dim}]"
            found.unsure += [(f"whether {dim} is an axis, or channels", override)] * (not alone)
        else:
            found.put(found.unroll, [dim], "few or uneven, each entry a channel")
            override = f"domain.unroll=[] domain.axes.{dim}=line"
            found.unsure.append((f"whether {dim} is channels, or an axis", override))


def _record(found: Roles) -> None:
    """No axis: records in time, whole where they are many and short, else in windows."""
    times = [dim for dim in found.sample if dim in found.of("time")]
    others = [dim for dim in found.sample if dim not in times]
    if not found.sample:
        return
    long = max(times or others, key=lambda dim: found.sizes[dim])
    steps = found.sizes[long]
    if times and prod(found.sizes[dim] for dim in others) >= MANY and steps <= LONGEST:
        found.put(found.axes, [long], "axis")
        sample = ",".join([*others, long])
        override = f"domain.axes.{long}=null domain.sample=[{sample}] domain.along={long}"
        what = f"whether items are whole records of {steps} steps, or stretches of them"
        found.unsure.append((what, f"{override} domain.window={max(2, steps // 4)}"))
        return
    if steps < 8:
        raise DataError(
            f"nothing to make items of: {_said(found)}; an item needs a grid, or a record of at "
            "least 8 steps to be cut from"
        )
    found.first = [long]
    found.window = min(RECORD, _power_of_two(max(2, steps // 8)))
    found.stride = max(1, found.window // 4)
    told = f"one record, cut into items of {found.window} steps, each {found.stride} on"
    found.why[long] = told
    found.unsure.append(("the length of an item", f"domain.window={found.window}"))


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def _field(found: Roles) -> None:
    """Nothing to draw from: items of one field are its levels, or windows of its rows."""
    levels = [dim for dim in (*found.unroll, *found.axes) if dim in found.of("level")]
    first = levels or (found.axes[:1] if len(found.axes) != 2 else []) or found.unroll[:1]
    if first and (len(found.axes) > 1 or first[0] not in found.axes):
        found.put(found.sample, first, "drawn from after all, since nothing else is left")
        what = f"whether the entries of {first[0]} are items: there is one field alone"
        found.unsure.append((what, "domain.path=DATA_WITH_TIMES_OR_MEMBERS"))
    elif found.axes:
        rows = next((dim for dim in found.axes if dim in found.of("y")), found.axes[0])
        found.put(found.sample, [rows], "")
        found.window = min(ROWS, _power_of_two(max(2, found.sizes[rows] // 4)))
        found.stride = max(1, found.window // 16)
        found.why[rows] = f"cut into windows of {found.window}, since there is one field alone"
        what = "whether parts of a single field are items: they are much alike"
        found.unsure.append((what, "domain.path=DATA_WITH_TIMES_OR_MEMBERS"))
        found.unsure.append(("the size of an item", f"domain.window={found.window}"))
        found.unsure.append(("whether to hold out the last rows of the field", "domain.val=0"))
    if not found.axes and found.window == 1:
        raise DataError(
            f"nothing to make items of: the dimensions are {listed(found.sizes)}; an item needs a "
            "grid and there must be many items (times, members), or one long record in time"
        )


def _order(store: Store, found: Roles) -> None:
    """Separate simulations come first, to be held out whole, where times are no calendar's."""
    times = [dim for dim in found.sample if dim in found.of("time")]
    members = [dim for dim in found.sample if dim not in times]
    several = prod(found.sizes[dim] for dim in members) >= 4
    if several and found.window == 1 and not any(hours_of_step(store, dim) for dim in times):
        found.first = members
