"""Conditioning of samples: conditions parsed from text or taken from items, sizes and masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jitkit.data import collate, encode, evenly_spaced, readable
from jitkit.diffusion.denoiser import Denoiser
from jitkit.errors import ConditionError, listed, nearest
from jitkit.fields import Batch, Category, Condition, Conditioning, PerToken, Scalars
from jitkit.nn.conditioning import prepare
from jitkit.protocols import VariableSize
from jitkit.utils.seeding import mix


def conditioning_for(
    denoiser: Denoiser,
    n: int,
    requested: Mapping[str, Any] | None = None,
    source: tuple[str, Sequence[int]] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    seed: int = 0,
    first: int = 0,
) -> Conditioning:
    """Conditions and masks for ``n`` samples.

    Args:
        denoiser: the model, with its domain.
        n: number of samples.
        requested: by name of a condition, text or values: ``"3"``, ``"0,1,2"``, ``"0-9"`` or
            ``[0, 1, 2]`` for a category (classes in order, in equal runs), a number for each name
            of scalars, an array of maps, or ``"none"``; in the units of the domain.
        source: split and indices of real items that provide the conditions not requested.
        sizes: cells of samples, for a `VariableSize` domain: sample i has size i modulo their
            number; by default drawn from the sizes of the training items.
        seed: of the samples; values drawn for sample i are a function of it and i.
        first: index of the first sample.

    A `VariableSize` domain draws everything that is neither requested nor taken from items, sizes
    included. In other domains categories default to all classes in equal runs, and other conditions
    to those of validation items (training items if there are none). If data may be missing or items
    are sets of varying size, masks and coordinates are those of items too.

    Raises:
        ConditionError: an unknown condition, an invalid value, or sizes the domain cannot make.
    """
    requested = dict(requested or {})
    for name in requested:
        if name not in denoiser.conditions:
            names = denoiser.conditions
            known = f"it knows {listed(names)}" if names else "it takes none"
            near = nearest(name, names)
            raise ConditionError(f"the model has no condition {name!r}; {known}{near}")
    values: dict[str, Any] = {
        name: _requested(denoiser, name, value, n) for name, value in requested.items()
    }
    if sizes is not None:
        _check_sizes(denoiser, sizes, source)
    if requested and source is not None and isinstance(denoiser.domain, VariableSize):
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
        index = torch.tensor([i % len(batch.x) for i in range(n)])
        observed = _mask(denoiser, batch)
        mask, coords = (None if x is None else x[index] for x in (observed, batch.coords))
        grid = tuple(batch.x.shape[2:])
        values |= {name: batch.cond[name][index] for name in open_names}
    cond = prepare(denoiser.conditions, values, n=n, grid=grid, device=denoiser.device)
    return Conditioning(cond, mask, coords)


def _check_sizes(
    denoiser: Denoiser, sizes: Sequence[int], source: tuple[str, Sequence[int]] | None
) -> None:
    axis = denoiser.layout.axes[0]
    if not isinstance(denoiser.domain, VariableSize):
        raise ConditionError(f"all samples of this model have one size, {axis.size} along "
                             f"{axis.name!r}; request none")  # fmt: skip
    if source is not None:
        raise ConditionError("sizes are those of the items that conditions are taken from; give "
                             "either sizes or items")  # fmt: skip
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
    """Conditioning drawn by the domain for samples of varying size, with one generator each."""
    domain = denoiser.domain
    assert isinstance(domain, VariableSize)
    fields = []
    for i in range(n):
        given = {name: _of_sample(value, i) for name, value in values.items()}
        size = sizes[(first + i) % len(sizes)] if sizes else None
        rng = np.random.default_rng(mix(seed, "outline", first + i))
        fields.append(domain.template(rng, given, size))
    batch = collate(denoiser.layout, denoiser.conditions, fields)
    grid = tuple(batch.x.shape[2:])
    cond = prepare(denoiser.conditions, batch.cond, n=n, grid=grid, device=denoiser.device)
    return Conditioning(cond, _mask(denoiser, batch), batch.coords)


def _of_sample(value: Tensor | None, i: int) -> Any:
    """A requested condition of one sample: the class, or scalars (K,)."""
    if value is None or value.is_floating_point():
        return value if value is None or value.ndim < 2 else value[i]
    return int(value[i])


def _mask(denoiser: Denoiser, batch: Batch) -> Tensor | None:
    """Mask of samples like those of a batch; all True if the batch is smaller than the layout."""
    grid = batch.x.shape[2:]
    if batch.mask is None and tuple(grid) != denoiser.layout.grid:
        return torch.ones(len(batch.x), 1, *grid, dtype=torch.bool)
    return batch.mask


def _requested(denoiser: Denoiser, name: str, value: Any, n: int) -> Tensor | None:
    """A requested condition as the network gets it, for ``n`` samples; None: the null condition."""
    condition, domain = denoiser.conditions[name], denoiser.domain
    given, value = value, _parsed(name, condition, value) if isinstance(value, str) else value
    if value is None:
        return None
    if isinstance(condition, Category):
        classes = [domain.encode_condition(name, each) for each in np.ravel(value).tolist()]
        if not classes or not all(isinstance(each, int) for each in classes):
            raise ConditionError(
                f"condition {name}={given!r}: expected a class (3), classes (0,1,2), a range (0-9) "
                "or none"
            )
        return torch.tensor([classes[i * len(classes) // n] for i in range(n)])
    try:
        array = np.asarray(value)
        if isinstance(condition, Scalars) and len(condition.names) == 1 and array.shape == (n,):
            array = array[:, None]  # one number per sample
        return torch.as_tensor(np.asarray(domain.encode_condition(name, array)))
    except (TypeError, ValueError):
        raise ConditionError(f"condition {name!r} is not numeric: {given!r}") from None


def _parsed(name: str, condition: Condition, text: str) -> Any:
    """The value of a condition from text: classes, numbers, or None for the null condition."""
    if text == "none":
        return None
    if isinstance(condition, Category):
        return parse_indices(text) or [word.strip() for word in text.split(",")]
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
        return given
    kind = "a category in each cell" if isinstance(condition, PerToken) else "a grid"
    raise ConditionError(
        f"condition {name!r} is {kind}, which cannot be given as text except none; take it from "
        "real items: --cond-from val:0-15"
    )


def parse_source(text: str | None) -> tuple[str, list[int]] | None:
    """``val:0-15`` as (split, indices).

    Raises:
        ConditionError: any other text.
    """
    if text is None:
        return None
    split, _, words = text.partition(":")
    indices = parse_indices(words) if words else []
    if split not in ("train", "val") or indices is None:
        raise ConditionError(
            f"--cond-from {text!r}: expected a split and indices, such as val:0-15"
        )
    return split, indices


def parse_sizes(given: str | int | Sequence[int] | None) -> list[int] | None:
    """``9-20``, a number or several as a list of sizes.

    Raises:
        ConditionError: any other text.
    """
    if given is None or not isinstance(given, str):
        return None if given is None else [given] if isinstance(given, int) else list(given)
    sizes = parse_indices(given)
    if sizes is None:
        raise ConditionError(f"--size {given!r}: expected numbers of cells, such as 12 or 9-20")
    return sizes


def parse_indices(text: str) -> list[int] | None:
    """Indices parsed from integers and ranges; None for any other text.

    >>> parse_indices("3,5-7")
    [3, 5, 6, 7]
    """
    indices: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", word)
        if not match:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not 0 <= last - first <= 1_000_000:
            return None
        indices += range(first, last + 1)
    return indices


def _items(denoiser: Denoiser, n: int, source: tuple[str, Sequence[int]] | None) -> Batch:
    """At most ``n`` real items; by default evenly spaced validation items."""
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
        fields = [field for _, field in readable(domain, items, evenly_spaced(len(items), n))]
    if not fields:
        raise ConditionError(f"no item of split {split} can be read, to take conditions from")
    return collate(denoiser.layout, denoiser.conditions, fields)
