"""The questions that every adapter must answer, for our tests and for third parties.

`check_domain` asks them all and tells everything that is wrong at once:

    section = Weather.Section(name="weather", path="small.zarr")
    check_domain(Weather(section), section)

A domain that was made from other things than a section is asked alone: ``check_domain(domain)``.
What needs a second one like it is left out then: that it reads the same, and decodes on metadata.

Each question is also a function of its own, which raises AssertionError with what was found.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domain import Domain, Split, check_instance, section_of
from jitkit.errors import BadItem, listed
from jitkit.fields import Category, Condition, Field, Grid, PerToken, Scalars
from jitkit.protocols import VariableSize
from jitkit.sections import DomainSection
from jitkit.utils.json_arrays import unequal, with_arrays, without_arrays

if TYPE_CHECKING:
    from torch import Tensor


def check_domain(
    domain: Domain,
    section: DomainSection | None = None,
    *,
    split: Split = "train",
    num_items: int = 8,
    tolerance: float = 1e-4,
) -> None:
    """Ask every question of a domain.

    Args:
        domain: the adapter, with its data present.
        section: what it was made from, so that it can be made again; ``domain.section`` where not
            given. Without either, no second one is made and compared.
        split: the items to ask with.
        num_items: how many of them, spread over the split.
        tolerance: how far encoded values may be off after decode and encode.

    Raises:
        AssertionError: some answers were wrong; the text lists them all.
        RecipeError: ``domain`` is a class.
    """
    check_instance(domain)
    section = section or section_of(domain)
    items = spread(domain, split, num_items)
    questions: dict[str, Callable[[], None]] = {
        "layout": lambda: layout_fits_what_is_encoded(domain, items),
        "values": lambda: values_are_finite_and_of_unit_variance(domain, items),
        "conditions": lambda: conditions_are_as_declared(domain, items),
        "constraint": lambda: the_constraint_holds(domain, items),
        "outlines": lambda: outlines_are_samples_to_be(domain),
        "round trip": lambda: decode_undoes_encode(domain, items, tolerance=tolerance),
        "missing cells": lambda: missing_cells_survive(domain, items),
        "order": lambda: reading_order_is_repeatable(domain, section, split=split),
        "randomness": lambda: encode_depends_on_its_rng_alone(domain, items),
        "pickling": lambda: pickled_domain_still_reads(domain, split=split),
        "metadata": lambda: facts_are_enough_to_decode(domain, section, items, tolerance=tolerance),
        "write": lambda: write_makes_files(domain, items),
        "preview": lambda: preview_is_a_picture(domain, items),
    }
    wrong = []
    for name, ask in questions.items():
        try:
            ask()
        except AssertionError as error:
            wrong.append(f"{name}: {error}")
        except Exception as error:  # an adapter may break in any way; the other questions go on
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    if wrong:
        raise AssertionError(
            f"{type(domain).__name__}: {len(wrong)} of {len(questions)} questions\n  "
            + "\n  ".join(wrong)
        )


def spread(domain: Domain, split: Split, num_items: int = 8) -> list[Any]:
    """Items from all over a split, those that cannot be read left out; at least one is needed."""
    sequence = domain.items(split)
    _demand(len(sequence) > 0, f"items({split!r}) is empty")
    items = []
    for i in np.unique(np.linspace(0, len(sequence) - 1, num_items).astype(int)).tolist():
        try:
            items.append(sequence[i])
        except BadItem:
            continue
    _demand(bool(items), f"none of {num_items} items of {split!r} can be read")
    return items


def layout_fits_what_is_encoded(domain: Domain, items: Sequence[Any]) -> None:
    """Values are float32 (C, X1..Xn) with the layout's channels and axes.

    Axes may fall short of the layout's size, which is the largest, but for a circle, which closes.
    """
    layout = domain.layout
    for i, field in _encoded(domain, items):
        shape = tuple(field.values.shape)
        wanted = (len(layout.channels), *layout.grid)
        fits = len(shape) == len(wanted) and shape[0] == wanted[0]
        for cells, axis in zip(shape[1:], layout.axes, strict=False):
            fits &= cells == axis.size if axis.kind == "circle" else 1 <= cells <= axis.size
        _demand(fits, f"item {i}: values are {shape}, the layout says {wanted}")
        _demand(
            str(field.values.dtype) == "torch.float32",
            f"item {i}: values are {field.values.dtype}, not torch.float32",
        )
        if field.mask is not None:
            _demand(
                str(field.mask.dtype) == "torch.bool" and field.mask.shape in (shape, shape[1:]),
                f"item {i}: mask is {field.mask.dtype} {tuple(field.mask.shape)}, "
                f"not torch.bool {shape[1:]} or {shape}",
            )
        if field.coords is not None:
            _demand(
                tuple(field.coords.shape) == (*shape[1:], len(layout.axes)),
                f"item {i}: coords are {tuple(field.coords.shape)}, "
                f"not {(*shape[1:], len(layout.axes))}",
            )


def values_are_finite_and_of_unit_variance(domain: Domain, items: Sequence[Any]) -> None:
    """Observed values are finite; their mean square is between 0.01 and 10, and none of a
    channel's is above, over all items."""
    squares = np.zeros(len(domain.layout.channels))
    counts = np.zeros(len(domain.layout.channels))
    for i, field in _encoded(domain, items):
        values, mask = field.values.double().numpy(), _observed(field).numpy()
        _demand(
            bool(np.isfinite(values[mask]).all()),
            f"item {i}: values are not finite where the mask says there are data",
        )
        axes = tuple(range(1, values.ndim))
        squares += (np.where(mask, values, 0) ** 2).sum(axis=axes)
        counts += mask.sum(axis=axes)
    overall = squares.sum() / max(1, counts.sum())
    _demand(
        0.01 <= overall <= 10,
        f"the mean square of values is {overall:.3g}; encode to about 1 (0.01 to 10 is let pass)",
    )
    for name, square in zip(domain.layout.channels, squares / counts.clip(1), strict=True):
        _demand(
            square <= 10,
            f"the mean square of channel {name!r} is {square:.3g}; encode to about 1",
        )


def conditions_are_as_declared(domain: Domain, items: Sequence[Any]) -> None:
    """Every field says exactly the declared conditions, in their shapes and ranges."""
    declared = domain.conditions
    for i, field in _encoded(domain, items):
        _demand(
            set(field.cond) == set(declared),
            f"item {i}: cond has {sorted(field.cond)}, conditions declare {sorted(declared)}",
        )
        for name, condition in declared.items():
            wrong = _misfit(condition, field.cond[name], tuple(field.values.shape[1:]))
            _demand(not wrong, f"item {i}: cond {name!r} {wrong}")


def the_constraint_holds(domain: Domain, items: Sequence[Any]) -> None:
    """The observed cells of each group in ``layout.centred`` have mean zero, with ``rng`` too."""
    layout = domain.layout
    for i, item in enumerate(items):
        for field in (domain.encode(item), domain.encode(item, np.random.default_rng(0))):
            values, mask = field.values.double().numpy(), _observed(field).numpy()
            for group in layout.centred:
                own = [layout.channels.index(name) for name in group]
                mean = float(values[own][mask[own]].mean()) if mask[own].any() else 0.0
                _demand(
                    abs(mean) < 1e-4,
                    f"item {i}: {listed(group)} have mean {mean:.3g}, and layout.centred says 0",
                )


def outlines_are_samples_to_be(domain: Domain) -> None:
    """A template of a `VariableSize` domain is a function of its generator, fits the layout, has the
    requested size and every condition."""
    if not isinstance(domain, VariableSize):
        return
    layout = domain.layout
    most = layout.axes[0].size
    for size in (None, most):
        field, again = (domain.template(np.random.default_rng(3), {}, size) for _ in range(2))
        _same(field, again, "outlined twice with equal rngs:")
        shape = tuple(field.values.shape)
        _demand(
            len(shape) == 1 + len(layout.axes)
            and 1 <= shape[1] <= most
            and size in (None, shape[1]),
            f"an outline of size {size} has shape {shape}; the layout's grid is {layout.grid}",
        )
        _demand(
            set(field.cond) == set(domain.conditions),
            f"an outline says {sorted(field.cond)}, conditions declare {sorted(domain.conditions)}",
        )


def decode_undoes_encode(domain: Domain, items: Sequence[Any], *, tolerance: float = 1e-4) -> None:
    """An item that was encoded and decoded encodes to the same field, up to ``tolerance``.

    What it was conditioned on is not compared: an item need not hold it.
    """
    for i, field in _encoded(domain, items):
        again = domain.encode(domain.decode(field))
        _same(field, again, f"item {i}: after decode and encode,", tolerance, cond=False)


def missing_cells_survive(domain: Domain, items: Sequence[Any]) -> None:
    """Cells without data are declared by the layout, and are the same ones after a round trip."""
    for i, field in _encoded(domain, items):
        observed = _observed(field)
        missing = int((~observed).sum())
        _demand(
            domain.layout.missing or not missing,
            f"item {i} lacks {missing} cells, but layout.missing is False",
        )
        again = _observed(domain.encode(domain.decode(field)))
        _demand(
            again.shape == observed.shape and bool((again == observed).all()),
            f"item {i} lacks {missing} cells, and after decode and encode "
            f"{int((~again).sum())}, or others",
        )


def reading_order_is_repeatable(
    domain: Domain,
    section: DomainSection | None = None,
    *,
    split: Split = "train",
    num_items: int = 4,
) -> None:
    """A split has the same items in the same order when read again, backwards, and by a twin that
    is made from ``section``, where there is one."""
    once = domain.items(split)
    others = {"asked again": domain.items(split)}
    if section is not None:
        others["of a new domain"] = _made(domain, section).items(split)
    for who, again in others.items():
        _demand(
            len(once) == len(again), f"items {who}: {len(again)}, at first there were {len(once)}"
        )
        for i in range(min(num_items, len(once)) - 1, -1, -1):
            _same_item(domain, once, again, i, f"item {i} {who}:")


def encode_depends_on_its_rng_alone(domain: Domain, items: Sequence[Any]) -> None:
    """Encoding is repeatable without ``rng``, a function of ``rng`` with it, and alters nothing."""
    for i, item in enumerate(items):
        field = domain.encode(item)
        _same(field, domain.encode(item), f"item {i}: encoded twice without rng,")
        for seed in range(4):
            first, second = (domain.encode(item, np.random.default_rng(seed)) for _ in range(2))
            _same(first, second, f"item {i}: encoded twice with equal rngs,")
        _same(field, domain.encode(item), f"item {i}: after it was encoded with an rng,")


def pickled_domain_still_reads(
    domain: Domain, *, split: Split = "train", num_items: int = 4
) -> None:
    """A domain goes to a worker and reads the same items there."""
    twin = pickle.loads(pickle.dumps(domain))
    once, again = domain.items(split), twin.items(split)
    _demand(len(once) == len(again), f"{len(again)} items after pickling, not {len(once)}")
    for i in range(min(num_items, len(once))):
        _same_item(domain, once, again, i, f"item {i} after pickling:")


def facts_are_enough_to_decode(
    domain: Domain, section: DomainSection | None, items: Sequence[Any], *, tolerance: float = 1e-4
) -> None:
    """Facts are plain JSON with arrays, and a domain made from ``section``, where there is one, and
    them has the same layout and conditions and decodes alike."""
    metadata = domain.metadata()
    plain, arrays = without_arrays(metadata)
    stored = json.loads(json.dumps(plain))
    _demand(
        stored == plain,
        "metadata change on their way through JSON; use lists, str keys, numbers and numpy arrays",
    )
    if section is None:
        return
    stored = with_arrays(stored, arrays)
    twin = _made(domain, section, stored)
    _demand(twin.layout == domain.layout, f"layout from metadata is {twin.layout}")
    _demand(
        dict(twin.conditions) == dict(domain.conditions),
        f"conditions from metadata are {dict(twin.conditions)}, not {dict(domain.conditions)}",
    )
    unlike = [place for place, _, _ in unequal(twin.metadata(), metadata)]
    _demand(not unlike, f"a domain made from metadata gives other metadata: {listed(unlike)}")
    for i, field in _encoded(domain, items):
        mine, other = domain.encode(domain.decode(field)), domain.encode(twin.decode(field))
        _same(mine, other, f"item {i}: decoded by a domain made from metadata,", tolerance)


def write_makes_files(domain: Domain, items: Sequence[Any]) -> None:
    """Decoded items are written into a folder that is made for them, and the files are named."""
    decoded = [domain.decode(field) for _, field in _encoded(domain, items)]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "not" / "yet"
        files = domain.write(decoded, folder)
        _demand(bool(files), "write returns no files")
        for file in files:
            _demand(file.exists(), f"write returns {file.name}, which does not exist")
            _demand(file.is_relative_to(folder), f"write leaves its folder: {file}")


def preview_is_a_picture(domain: Domain, items: Sequence[Any]) -> None:
    """Decoded items make a PIL image, and one alone does too."""
    from PIL.Image import Image

    decoded = [domain.decode(field) for _, field in _encoded(domain, items)]
    for some in (decoded, decoded[:1]):
        picture = domain.preview(some)
        _demand(isinstance(picture, Image), f"preview gives a {type(picture).__name__}")


def _made(domain: Domain, section: DomainSection, *metadata: Any) -> Domain:
    """Another domain of the same class."""
    cls: Any = type(domain)
    made: Domain = cls(section, *metadata)
    return made


def _demand(true: bool, otherwise: str) -> None:
    if not true:  # not `assert`, which python -O leaves out
        raise AssertionError(otherwise)


def _encoded(domain: Domain, items: Sequence[Any]) -> list[tuple[int, Field]]:
    return [(i, domain.encode(item)) for i, item in enumerate(items)]


def _observed(field: Field) -> Tensor:
    """Where there are data, (C, X1..Xn) bool."""
    import torch

    mask = torch.tensor(True) if field.mask is None else field.mask
    return mask.expand(field.values.shape)


def _misfit(condition: Condition, value: Any, grid: tuple[int, ...]) -> str:
    """What is wrong with a condition's value for a sample of that grid; empty if nothing is."""
    import torch

    tensor = torch.as_tensor(value)
    match condition:
        case Category():
            shape: tuple[int, ...] = ()
        case Scalars(names):
            shape = (len(names),)
        case Grid(channels):
            shape = (len(channels), *grid)
        case PerToken():
            shape = grid
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)}, not {shape}"
    if isinstance(condition, Category | PerToken):
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            return f"is {tensor.dtype}, not of integers"
        if tensor.min() < 0 or tensor.max() >= condition.n:
            return (
                f"reaches from {tensor.min()} to {tensor.max()}, not within 0 to {condition.n - 1}"
            )
        return ""
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, not of floats"
    return "is infinite" if tensor.isinf().any() else ""


def _same_item(
    domain: Domain, once: Sequence[Any], again: Sequence[Any], i: int, when: str
) -> None:
    """Item i of two sequences encodes alike, or cannot be read in either."""
    fields: list[Field | None] = []
    for sequence in (once, again):
        try:
            fields.append(domain.encode(sequence[i]))
        except BadItem:
            fields.append(None)
    first, second = fields
    _demand((first is None) == (second is None), f"{when} unreadable only once")
    if first is not None and second is not None:
        _same(first, second, when)


def _same(
    first: Field, second: Field, when: str, tolerance: float = 0.0, *, cond: bool = True
) -> None:
    """Demand equal fields, NaN at the same places."""
    pairs = {"values": (first.values, second.values), "coords": (first.coords, second.coords)}
    pairs["mask"] = (_observed(first), _observed(second))
    if cond:
        _demand(set(first.cond) == set(second.cond), f"{when} other conditions are said")
        pairs |= {f"cond {name!r}": (first.cond[name], second.cond[name]) for name in first.cond}
    for name, (a, b) in pairs.items():
        difference = _difference(a, b)
        _demand(
            difference <= tolerance, f"{when} {name} differ by {difference:.3g} (> {tolerance:g})"
        )


def _difference(a: Any, b: Any) -> float:
    """The largest difference; infinite where shapes or missing numbers differ."""
    if a is None or b is None:
        return 0.0 if a is b else np.inf
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    equal = (a == b) | np.isnan(a)  # infinities too
    return float(np.abs(np.where(equal, 0, a) - np.where(equal, 0, b)).max(initial=0))
