"""What a user asks of samples: conditions typed or taken from items, sizes, masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jitkit.data import collate, encode, readable, spread
from jitkit.diffusion.denoiser import Denoiser
from jitkit.errors import ConditionError, listed, nearest
from jitkit.fields import Batch, Category, Condition, PerToken, Scalars
from jitkit.nn.conditioning import prepare
from jitkit.protocols import VariableSize
from jitkit.utils.seeding import mix


@dataclass(frozen=True)
class Conditioning:
    """What samples are told, and where they are to have data.

    Attributes:
        cond: every condition, (n, ...).
        mask: (n, C or 1, X1..Xn) bool, True where there are to be data; None means everywhere.
        coords: positions of the cells, (n, X1..Xn, axes); None means 0, 1, 2, ...
    """

    cond: Mapping[str, Tensor]
    mask: Tensor | None = None
    coords: Tensor | None = None

    def part(self, rows: slice) -> Conditioning:
        """The same for some of the samples."""
        return Conditioning(
            {name: value[rows] for name, value in self.cond.items()},
            None if self.mask is None else self.mask[rows],
            None if self.coords is None else self.coords[rows],
        )


def conditioning_for(
    denoiser: Denoiser,
    n: int,
    asked: Mapping[str, str] | None = None,
    source: tuple[str, Sequence[int]] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    first: int = 0,
) -> Conditioning:
    """What ``n`` samples are told, and where they are to have data.

    Args:
        denoiser: the model, with its domain.
        n: samples.
        asked: values in words, by name: ``"3"``, ``"0,1,2"`` or ``"0-9"`` for a category (each
            value in turn, in equal runs), a number for each name of scalars, or ``"none"``.
        source: split and indices of real items whose conditions are taken for what is not asked.
        sizes: cells of samples, for a `VariableSize` domain: sample i has size i modulo their
            number; drawn from those of the training items where not given.
        seed: of the samples; what is drawn for sample i is a function of it and i.
        first: index of the first sample.

    A `VariableSize` domain draws what is neither asked nor taken from items, sizes included. For
    others it is: all classes in equal runs for a category, the conditions of validation items (training
    items where there are none) for the rest. Where data may be missing, or items are sets of
    varying size, masks and positions are those of items too.

    Raises:
        ConditionError: a name that the model does not know, a value that cannot be meant, or sizes
            that the domain cannot make.
    """
    asked = dict(asked or {})
    for name in asked:
        if name not in denoiser.conditions:
            known = f"it knows {listed(denoiser.conditions)}" if denoiser.conditions else (
                "it takes none")  # fmt: skip
            near = nearest(name, denoiser.conditions)
            raise ConditionError(f"the model has no condition {name!r}; {known}{near}")
    values: dict[str, Any] = {
        name: _in_words(name, denoiser.conditions[name], text, n) for name, text in asked.items()
    }
    if sizes is not None:
        _check_sizes(denoiser, sizes, source)
    if asked and source is not None and isinstance(denoiser.domain, VariableSize):
        raise ConditionError("samples of this model have the size of the items that conditions are "
                             "taken from; give --cond or --cond-from, not both")  # fmt: skip
    if source is None and isinstance(denoiser.domain, VariableSize):
        return _from_templates(denoiser, n, values, sizes, seed, first)
    open_names = [name for name in denoiser.conditions if name not in values]
    if source is None:
        for name in open_names:
            condition = denoiser.conditions[name]
            if isinstance(condition, Category):
                values[name] = torch.tensor([i * condition.n // n for i in range(n)])
        open_names = [name for name in open_names if name not in values]
    layout, mask, coords, grid = denoiser.layout, None, None, denoiser.layout.grid
    varying = layout.missing or any(axis.kind == "set" for axis in layout.axes)
    if open_names or varying or source is not None:
        batch = _items(denoiser, n, source)
        turn = torch.tensor([i % len(batch.x) for i in range(n)])
        observed = _mask(denoiser, batch)
        mask, coords = (None if x is None else x[turn] for x in (observed, batch.coords))
        grid = tuple(batch.x.shape[2:])
        values |= {name: batch.cond[name][turn] for name in open_names}
    cond = prepare(denoiser.conditions, values, n=n, grid=grid, device=denoiser.device)
    return Conditioning(cond, mask, coords)


def _check_sizes(
    denoiser: Denoiser, sizes: Sequence[int], source: tuple[str, Sequence[int]] | None
) -> None:
    axis = denoiser.layout.axes[0]
    if not isinstance(denoiser.domain, VariableSize):
        raise ConditionError(f"all samples of this model have one size, {axis.size} along "
                             f"{axis.name!r}; ask for none")  # fmt: skip
    if source is not None:
        raise ConditionError("sizes are those of the items that conditions are taken from; give "
                             "one or the other")  # fmt: skip
    if wrong := [size for size in sizes if not 1 <= size <= axis.size]:
        raise ConditionError(f"size {wrong[0]} is out of range: the model was trained on sizes up "
                             f"to {axis.size} along {axis.name!r}")  # fmt: skip


def _from_templates(
    denoiser: Denoiser,
    n: int,
    values: Mapping[str, Tensor | None],
    sizes: Sequence[int] | None,
    seed: int,
    first: int,
) -> Conditioning:
    """What the domain draws for samples of varying size, each with a generator of its own."""
    domain = denoiser.domain
    assert isinstance(domain, VariableSize)
    fields = []
    for i in range(n):
        told = {
            name: int(value[i]) if value is not None and _is_category(denoiser, name) else value
            for name, value in values.items()
        }
        size = sizes[(first + i) % len(sizes)] if sizes else None
        rng = np.random.default_rng(mix(seed, "outline", first + i))
        fields.append(domain.template(rng, told, size))
    batch = collate(denoiser.layout, denoiser.conditions, fields)
    grid = tuple(batch.x.shape[2:])
    cond = prepare(denoiser.conditions, batch.cond, n=n, grid=grid, device=denoiser.device)
    return Conditioning(cond, _mask(denoiser, batch), batch.coords)


def _is_category(denoiser: Denoiser, name: str) -> bool:
    return isinstance(denoiser.conditions[name], Category)


def _mask(denoiser: Denoiser, batch: Batch) -> Tensor | None:
    """Where samples like a batch are to have data; one that is smaller than the layout says so."""
    grid = batch.x.shape[2:]
    if batch.mask is None and tuple(grid) != denoiser.layout.grid:
        return torch.ones(len(batch.x), 1, *grid, dtype=torch.bool)
    return batch.mask


def _in_words(name: str, condition: Condition, text: str, n: int) -> Tensor | None:
    """The value of a condition for ``n`` samples, from what was typed; None for "not told"."""
    if text == "none":
        return None
    if isinstance(condition, Category):
        chosen = parse_indices(text)
        if chosen is None:
            raise ConditionError(
                f"condition {name}={text!r}: expected a class (3), classes (0,1,2), a range (0-9) "
                "or none"
            )
        return torch.tensor([chosen[i * len(chosen) // n] for i in range(n)])
    if isinstance(condition, Scalars):
        try:
            given = [float(word) for word in text.split(",")]
        except ValueError:
            given = []
        if len(given) != len(condition.names):
            raise ConditionError(
                f"condition {name}={text!r}: expected a number for each of "
                f"{listed(condition.names)} (nan for unknown), or none"
            )
        return torch.tensor(given)
    kind = "a category in each cell" if isinstance(condition, PerToken) else "a grid"
    raise ConditionError(
        f"condition {name!r} is {kind}, which cannot be typed but for none; take it from real "
        "items: --cond-from val:0-15"
    )


def parse_indices(text: str) -> list[int] | None:
    """Whole numbers and ranges in words, or None where it is not that.

    >>> numbers("3,5-7")
    [3, 5, 6, 7]
    """
    found: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", word)
        if not match:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first <= 1_000_000:
            return None
        found += range(first, last + 1)
    return found


def _items(denoiser: Denoiser, n: int, source: tuple[str, Sequence[int]] | None) -> Batch:
    """At most ``n`` real items; validation items, evenly spread, where not said."""
    domain, split, indices = denoiser.domain, "train", list[int]()
    if source is not None:
        split, indices = source[0], list(source[1])
    elif len(domain.items("val")):
        split = "val"
    items = domain.items("train" if split == "train" else "val")
    if not len(items):
        raise ConditionError(f"split {split} has no items to take conditions from")
    if wrong := [index for index in indices if not 0 <= index < len(items)]:
        raise ConditionError(f"split {split} has items 0 to {len(items) - 1}, not {wrong[0]}")
    if indices:
        fields = [encode(domain, items[index]) for index in indices[:n]]
    else:
        fields = [field for _, field in readable(domain, items, spread(len(items), n))]
    if not fields:
        raise ConditionError(f"no item of split {split} can be read, to take conditions from")
    return collate(denoiser.layout, denoiser.conditions, fields)
