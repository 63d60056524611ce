"""From a trained model to items in the files that their field uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jitkit.conditions import prepare
from jitkit.data import collate, encode, readable, spread
from jitkit.denoiser import Denoiser
from jitkit.errors import ConditionError, listed, nearest
from jitkit.fields import Batch, Category, Condition, Field, PerToken, Scalars
from jitkit.parallel import ALONE, Team
from jitkit.sampler import fitting_batch, sample
from jitkit.sections import SampleSection


@dataclass(frozen=True)
class Told:
    """What samples are told, and where they are to have data.

    Attributes:
        cond: every condition, (n, ...).
        mask: (n, C or 1, X1..Xn) bool, True where there are to be data; None means everywhere.
        coords: positions of the cells, (n, X1..Xn, axes); None means 0, 1, 2, ...
    """

    cond: Mapping[str, Tensor]
    mask: Tensor | None = None
    coords: Tensor | None = None

    def part(self, rows: slice) -> Told:
        """The same for some of the samples."""
        return Told(
            {name: value[rows] for name, value in self.cond.items()},
            None if self.mask is None else self.mask[rows],
            None if self.coords is None else self.coords[rows],
        )


def generate(
    denoiser: Denoiser,
    n: int,
    told: Told,
    section: SampleSection,
    *,
    first: int = 0,
    progress: bool = False,
    team: Team = ALONE,
) -> Iterator[Any]:
    """Items in native form, made batch by batch as they are asked for.

    Processes of a team make the batches in turn; all must ask, and rank 0 alone gets items.

    Args:
        denoiser: a model with its domain.
        n: how many.
        told: their conditions and masks, from `conditions_for`.
        section: section ``sample`` of a recipe.
        first: index of the first sample.
        progress: show a bar for each batch on a terminal.
        team: the processes that share the work.
    """
    size = section.batch_size or int(-team.highest([-fitting_batch(denoiser)])[0])
    size = min(size, -(-n // team.world))
    for turn in range(0, n, size * team.world):
        own = turn + team.rank * size
        start = min(own, n - 1)  # who has nothing to do makes one for company: all call the network
        part = told.part(slice(start, min(start + size, n)))
        x = sample(
            denoiser,
            min(size, n - start),
            part.cond,
            guidance=section.guidance,
            interval=section.interval,
            steps=section.steps,
            method=section.method,
            seed=section.seed,
            first=first + start,
            t_eps=section.t_eps,
            batch_size=size,
            mask=part.mask,
            coords=part.coords,
            progress=progress,
        ).cpu()
        made = team.collected(x if own < n else None)
        for rank, values in enumerate(each for each in made if each is not None):
            rows = slice(turn + rank * size, turn + rank * size + len(values))
            yield from _decoded(denoiser, values, told.part(rows))


def _decoded(denoiser: Denoiser, x: Tensor, told: Told) -> Iterator[Any]:
    """Samples as items."""
    for i, values in enumerate(x):
        cond = {name: value[i].cpu() for name, value in told.cond.items()}
        mask = None if told.mask is None else told.mask[i].expand_as(values)
        coords = None if told.coords is None else told.coords[i]
        yield denoiser.domain.decode(Field(values, mask, cond, coords))


def conditions_for(
    denoiser: Denoiser,
    n: int,
    asked: Mapping[str, str] | None = None,
    source: tuple[str, Sequence[int]] | None = None,
) -> Told:
    """What ``n`` samples are told, and where they are to have data.

    Args:
        denoiser: the model, with its domain.
        n: samples.
        asked: values in words, by name: ``"3"``, ``"0,1,2"`` or ``"0-9"`` for a category (each
            value in turn, in equal runs), a number for each name of scalars, or ``"none"``.
        source: split and indices of real items whose conditions are taken for what is not asked.

    What is neither asked nor taken from items is: all classes in equal runs for a category, the
    conditions of validation items (training items where there are none) for the rest. Where data
    may be missing, or items are sets of varying size, masks and positions are those of items too.

    Raises:
        ConditionError: a name that the model does not know, or a value that cannot be meant.
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
        mask, coords = (None if x is None else x[turn] for x in (batch.mask, batch.coords))
        grid = tuple(batch.x.shape[2:])
        values |= {name: batch.cond[name][turn] for name in open_names}
    cond = prepare(denoiser.conditions, values, n=n, grid=grid, device=denoiser.device)
    return Told(cond, mask, coords)


def _in_words(name: str, condition: Condition, text: str, n: int) -> Tensor | None:
    """The value of a condition for ``n`` samples, from what was typed; None for "not told"."""
    if text == "none":
        return None
    if isinstance(condition, Category):
        chosen = numbers(text)
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


def numbers(text: str) -> list[int] | None:
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
