"""Data types shared by adapters and core: Axis, Layout, conditions, Field (a sample), Batch.

Nothing here computes, and importing it does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil, prod
from typing import TYPE_CHECKING, Any, Literal, get_args

from jitkit.errors import JitkitError, listed

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["line", "circle", "set"]


@dataclass(frozen=True)
class Axis:
    """One axis of a grid.

    Attributes:
        name: such as ``"latitude"``.
        size: cells along it; the largest size if samples differ in size.
        patch: cells of a token along it.
        kind: ``"line"`` has two ends, ``"circle"`` is periodic (longitude, angle), ``"set"`` has no
            order.
    """

    name: str
    size: int
    patch: int = 1
    kind: Kind = "line"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise JitkitError(f"axis {self.name!r}: kind {self.kind!r} is not line, circle or set")
        if self.size < 1 or self.patch < 1:
            raise JitkitError(
                f"axis {self.name!r}: size {self.size} and patch {self.patch} must be at least 1"
            )
        if self.patch > self.size:
            raise JitkitError(
                f"axis {self.name!r}: patch {self.patch} is larger than its {self.size} cells; "
                f"use a patch of at most {self.size}"
            )
        if self.kind == "set" and self.patch != 1:
            raise JitkitError(
                f"axis {self.name!r} is a set, whose cells have no neighbours to form a patch: "
                f"patch {self.patch} must be 1"
            )

    @property
    def tokens(self) -> int:
        """Patches needed to cover the axis; the last may extend past its end."""
        return ceil(self.size / self.patch)


@dataclass(frozen=True)
class Layout:
    """Layout of a domain's arrays: one to four axes, named channels.

    ``missing``: cells may be absent (NaN) inside a sample. The network then has a learned fill
    value for each channel and takes a mask besides the values.

    ``centred`` is a linear constraint: in every sample the observed cells of each of these groups
    of channels, taken together, have mean zero. The domain provides centred data; noise,
    predictions and so every step of the sampler are projected (`jitkit.diffusion.zero_mean`).

    ``positions`` names the channels that are positions in space, such as x, y and z of a point in a
    set. Attention then also depends on the relative positions of tokens, taken from the noisy data
    (`jitkit.nn.rope.position_frequencies`).
    """

    axes: tuple[Axis, ...]
    channels: tuple[str, ...]
    missing: bool = False
    centred: tuple[tuple[str, ...], ...] = ()
    positions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "centred", tuple(tuple(group) for group in self.centred))
        object.__setattr__(self, "positions", tuple(self.positions))
        if not 1 <= len(self.axes) <= 4:
            raise JitkitError(f"a layout has 1 to 4 axes, not {len(self.axes)}")
        for what, names in (("axes", [a.name for a in self.axes]), ("channels", self.channels)):
            if len(set(names)) != len(names) or not names:
                raise JitkitError(f"{what} need distinct names, and at least one: {listed(names)}")
        grouped = [name for group in self.centred for name in group]
        for what, names in (("centred", grouped), ("positions", self.positions)):
            if unknown := [name for name in names if name not in self.channels]:
                raise JitkitError(f"{what} {unknown[0]!r} is not a channel; channels are "
                                  f"{listed(self.channels)}")  # fmt: skip
        if len(set(grouped)) != len(grouped) or not all(self.centred):
            raise JitkitError("a channel can be in one centred group, and no group may be empty")
        if len(set(self.positions)) != len(self.positions):
            raise JitkitError(f"positions name a channel twice: {listed(self.positions)}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis, (X1, ..., Xn)."""
        return tuple(axis.size for axis in self.axes)

    @property
    def patch(self) -> tuple[int, ...]:
        """Cells of a token along each axis, (P1, ..., Pn)."""
        return tuple(axis.patch for axis in self.axes)

    @property
    def num_tokens(self) -> int:
        """Tokens of a full grid, L."""
        return prod(axis.tokens for axis in self.axes)

    @property
    def patch_features(self) -> int:
        """Features of a patch, D = C P1 ... Pn."""
        return len(self.channels) * prod(self.patch)

    def with_patch(self, patch: int | tuple[int, ...] | None) -> Layout:
        """The same layout with another patch: one size for all ordered axes, or one per axis."""
        if patch is None:
            return self
        if isinstance(patch, int):
            patch = tuple(1 if axis.kind == "set" else patch for axis in self.axes)
        if len(patch) != len(self.axes):
            names = listed(axis.name for axis in self.axes)
            raise JitkitError(
                f"patch {list(patch)} has {len(patch)} numbers for {len(self.axes)} axes ({names})"
            )
        axes = tuple(replace(axis, patch=p) for axis, p in zip(self.axes, patch, strict=True))
        return replace(self, axes=axes)

    @property
    def of_samples(self) -> Layout:
        """The layout without patch and positions, which depend on the model: two models with equal
        ``of_samples`` have the same kind of samples."""
        return replace(self.with_patch(1), positions=())


def _check_drop(drop: float) -> None:
    if not 0 <= drop < 1:
        raise JitkitError(f"drop {drop} is not a probability below 1")


def _check_classes(n: int) -> None:
    if n < 1:
        raise JitkitError(f"a category needs at least 1 class, not {n}")


@dataclass(frozen=True)
class Category:
    """One of ``n`` classes, values int (B,); class ``n`` is the null class of classifier-free
    guidance (CFG)."""

    n: int
    drop: float = 0.1

    def __post_init__(self) -> None:
        _check_classes(self.n)
        _check_drop(self.drop)


@dataclass(frozen=True)
class Scalars:
    """Scalars of about unit variance, values float (B, len(names)); NaN means unknown."""

    names: tuple[str, ...]
    drop: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        _check_drop(self.drop)


@dataclass(frozen=True)
class Grid:
    """Arrays on the grid of the sample, values float (B, len(channels), X1..Xn); NaN is missing."""

    channels: tuple[str, ...]
    drop: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        _check_drop(self.drop)


@dataclass(frozen=True)
class PerToken:
    """A category in every cell of the grid, values int (B, X1..Xn); ``n`` is the null category."""

    n: int
    drop: float = 0.1

    def __post_init__(self) -> None:
        _check_classes(self.n)
        _check_drop(self.drop)


Condition = Category | Scalars | Grid | PerToken
CONDITIONS: dict[str, type[Condition]] = {
    "category": Category,
    "scalars": Scalars,
    "grid": Grid,
    "per_token": PerToken,
}


@dataclass(frozen=True)
class Field:
    """One encoded sample: values on a grid.

    Attributes:
        values: (C, X1..Xn) float32, about zero mean and unit variance; NaN where unknown.
        mask: bool, (X1..Xn) or (C, X1..Xn), True where there are data; None means everywhere.
        cond: conditions by name, shapes as in the condition's class without B.
        coords: (X1..Xn, n) float32, position of each cell in units of cells; None: 0, 1, 2, ...
    """

    values: Tensor
    mask: Tensor | None = None
    cond: Mapping[str, Any] = field(default_factory=dict)
    coords: Tensor | None = None


@dataclass(frozen=True)
class Conditioning:
    """Everything besides noisy data and time that determines a prediction, for B samples.

    Attributes:
        cond: every condition of the model by name, (B, ...); checked by `nn.conditioning.prepare`.
        mask: (B, C or 1, X1..Xn) bool, True where samples have data; None means everywhere.
        coords: coordinates of the cells, (B, X1..Xn, n), in cells; None means 0, 1, 2, ...
    """

    cond: Mapping[str, Any] = field(default_factory=dict)
    mask: Tensor | None = None
    coords: Tensor | None = None

    def map(self, change: Callable[[Any], Any]) -> Conditioning:
        """The result of a function of each tensor."""
        return Conditioning(
            {name: change(value) for name, value in self.cond.items()},
            None if self.mask is None else change(self.mask),
            None if self.coords is None else change(self.coords),
        )

    def part(self, rows: slice) -> Conditioning:
        """The conditioning of some of the samples."""
        return self.map(lambda value: value[rows])


@dataclass(frozen=True)
class Batch:
    """Fields stacked along a batch axis, padded to one grid.

    Attributes:
        x: (B, C, X1..Xn) float32, zero where there are no data.
        mask: (B, C or 1, X1..Xn) bool, or None where everything is observed.
        cond: tensors by name, (B, ...).
        coords: (B, X1..Xn, n) float32 or None.
        notes: items skipped while reading, as (name, reason).
    """

    x: Tensor
    mask: Tensor | None = None
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    coords: Tensor | None = None
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def conditioning(self) -> Conditioning:
        """Conditions, mask and coordinates as one object."""
        return Conditioning(self.cond, self.mask, self.coords)

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed = vars(self.conditioning.map(change))
        return replace(self, x=change(self.x), **changed)


def describe(layout: Layout, conditions: Mapping[str, Condition]) -> dict[str, Any]:
    """Layout and conditions as JSON-compatible data; `described` is the inverse."""
    kinds = {cls: kind for kind, cls in CONDITIONS.items()}
    return {
        "layout": asdict(layout),
        "conditions": {
            name: {"kind": kinds[type(c)]} | asdict(c) for name, c in conditions.items()
        },
    }


def described(data: Mapping[str, Any]) -> tuple[Layout, dict[str, Condition]]:
    """Invert `describe`."""
    layout = dict(data["layout"])
    if "places" in layout:  # the name in jitkit 0.1
        layout["positions"] = layout.pop("places")
    layout["axes"] = tuple(Axis(**axis) for axis in layout["axes"])
    conditions = {
        name: CONDITIONS[c["kind"]](**{key: value for key, value in c.items() if key != "kind"})
        for name, c in data["conditions"].items()
    }
    return Layout(**layout), conditions
