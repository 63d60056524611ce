"""From a trained model to items in the files that their field uses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jitkit.conditions import prepare
from jitkit.data import collate, encode, readable, spread
from jitkit.denoiser import Denoiser
from jitkit.errors import ConditionError, listed, nearest
from jitkit.fields import Category, Condition, Field, PerToken, Scalars
from jitkit.sampler import fitting_batch, sample
from jitkit.sections import SampleSection


def generate(
    denoiser: Denoiser,
    n: int,
    cond: Mapping[str, Tensor],
    section: SampleSection,
    *,
    first: int = 0,
    progress: bool = False,
) -> Iterator[Any]:
    """Items in native form, made batch by batch as they are asked for.

    Args:
        denoiser: a model with its domain.
        n: how many.
        cond: every condition, (n, ...), from `conditions_for`.
        section: section ``sample`` of a recipe.
        first: index of the first sample.
        progress: show a bar for each batch on a terminal.
    """
    size = section.batch_size or fitting_batch(denoiser)
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        told = {name: value[part] for name, value in cond.items()}
        x = sample(
            denoiser,
            part.stop - part.start,
            told,
            guidance=section.guidance,
            interval=section.interval,
            steps=section.steps,
            method=section.method,
            seed=section.seed,
            first=first + start,
            t_eps=section.t_eps,
            batch_size=size,
            progress=progress,
        ).cpu()
        for i, values in enumerate(x):
            own = {name: value[i].cpu() for name, value in told.items()}
            yield denoiser.domain.decode(Field(values, cond=own))


def conditions_for(
    denoiser: Denoiser,
    n: int,
    asked: Mapping[str, str] | None = None,
    source: tuple[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Every condition of ``n`` samples.

    Args:
        denoiser: the model, with its domain.
        n: samples.
        asked: values in words, by name: ``"3"``, ``"0,1,2"`` or ``"0-9"`` for a category (each
            value in turn, in equal runs), a number for each name of scalars, or ``"none"``.
        source: split and indices of real items whose conditions are taken for what is not asked.

    What is neither asked nor taken from items is: all classes in equal runs for a category, the
    conditions of validation items for the rest.

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
    if open_names:
        values |= _from_items(denoiser, n, open_names, source)
    return prepare(
        denoiser.conditions, values, n=n, grid=denoiser.layout.grid, device=denoiser.device
    )


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
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", word)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            return None
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return found


def _from_items(
    denoiser: Denoiser, n: int, names: Sequence[str], source: tuple[str, Sequence[int]] | None
) -> dict[str, Tensor]:
    """Conditions of real items, in turn; of validation items, evenly spread, where not said."""
    domain = denoiser.domain
    split, indices = source or ("val", [])
    items = domain.items("train" if split == "train" else "val")
    if not len(items):
        raise ConditionError(f"split {split} has no items to take {listed(names)} from")
    if wrong := [index for index in indices if not 0 <= index < len(items)]:
        raise ConditionError(f"split {split} has items 0 to {len(items) - 1}, not {wrong[0]}")
    if indices:
        fields = [encode(domain, items[index]) for index in indices]
    else:
        fields = [field for _, field in readable(domain, items, spread(len(items), n))]
    if not fields:
        raise ConditionError(f"no item of split {split} can be read, to take {listed(names)} from")
    batch = collate(denoiser.layout, denoiser.conditions, fields)
    turn = torch.tensor([i % len(fields) for i in range(n)])
    return {name: batch.cond[name][turn] for name in names}
