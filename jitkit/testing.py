"""Checks of a domain adapter, for our tests and those of third parties.

`check_domain` runs all of them and reports all failures together:

    section = Weather.Section(name="weather", path="small.zarr")
    check_domain(Weather(section), section)

A domain without a section is checked with ``check_domain(domain)``. The comparisons with a second
instance (same order of items, decoding from metadata) are then omitted.

Each check is also a separate function, which raises AssertionError.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domain import Domain, Split
from jitkit.errors import BadItem, listed
from jitkit.fields import Category, Condition, Field, Grid, PerToken, Scalars
from jitkit.protocols import VariableSize
from jitkit.registry import check_instance, item_errors, member_errors
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
    """Run all checks on a domain.

    Args:
        domain: the adapter, with its data present.
        section: the section it was created from, to create a second instance for comparison;
            ``domain.section`` by default. Without either, there is no comparison.
        split: the split whose items are used.
        num_items: number of items, spread over the split.
        tolerance: maximum error of encoded values after decode and encode.

    Raises:
        AssertionError: some checks failed; the text lists all of them.
        RecipeError: ``domain`` is a class.
    """
    if not isinstance(domain, Domain):
        check_instance(domain)
    section = section or domain.section
    items = spread_items(domain, split, num_items)
    checks: dict[str, Callable[[], None]] = {
        "members": lambda: no_member_is_ignored(domain, split=split),
        "layout": lambda: encoded_fields_fit_the_layout(domain, items),
        "values": lambda: values_are_finite_and_of_unit_variance(domain, items),
        "conditions": lambda: conditions_are_as_declared(domain, items),
        "centred channels": lambda: centred_channels_have_mean_zero(domain, items),
        "templates": lambda: templates_fit_the_layout(domain),
        "round trip": lambda: decode_undoes_encode(domain, items, tolerance=tolerance),
        "missing cells": lambda: missing_cells_survive_a_round_trip(domain, items),
        "order": lambda: reading_order_is_repeatable(domain, section, split=split),
        "randomness": lambda: encode_depends_on_its_rng_alone(domain, items),
        "pickling": lambda: pickled_domain_still_reads(domain, split=split),
        "metadata": lambda: metadata_suffices_to_decode(
            domain, section, items, tolerance=tolerance
        ),
        "write": lambda: write_makes_files(domain, items),
        "preview": lambda: preview_is_an_image(domain, items),
    }
    failures = []
    for name, check in checks.items():
        try:
            check()
        except AssertionError as error:
            failures.append(f"{name}: {error}")
        except Exception as error:  # an adapter may fail in any way; the other checks still run
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError(
            f"{type(domain).__name__}: {len(failures)} of {len(checks)} checks failed\n  "
            + "\n  ".join(failures)
        )


def spread_items(domain: Domain, split: Split, num_items: int = 8) -> list[Any]:
    """Readable items spread over a split; at least one is required."""
    sequence = domain.items(split)
    _require(len(sequence) > 0, f"items({split!r}) is empty")
    items = []
    for i in np.unique(np.linspace(0, len(sequence) - 1, num_items).astype(int)).tolist():
        try:
            items.append(sequence[i])
        except BadItem:
            continue
    _require(bool(items), f"none of {num_items} items of {split!r} can be read")
    return items


def no_member_is_ignored(domain: Domain, *, split: Split = "train") -> None:
    """No member of the domain or its items resembles one of a protocol that it does not derive
    from, such as ``weight`` for `Weighted.weights`."""
    errors = member_errors(domain) + item_errors(domain, domain.items(split))
    _require(not errors, "; ".join(errors))


def encoded_fields_fit_the_layout(domain: Domain, items: Sequence[Any]) -> None:
    """Values are float32 (C, X1..Xn) with the layout's channels and axes.

    Axes may be shorter than the layout's size, except circles.
    """
    layout = domain.layout
    for i, field in _encoded(domain, items):
        shape = tuple(field.values.shape)
        expected = (len(layout.channels), *layout.grid)
        fits = len(shape) == len(expected) and shape[0] == expected[0]
        for cells, axis in zip(shape[1:], layout.axes, strict=False):
            fits &= cells == axis.size if axis.kind == "circle" else 1 <= cells <= axis.size
        _require(fits, f"item {i}: values are {shape}, the layout is {expected}")
        _require(
            str(field.values.dtype) == "torch.float32",
            f"item {i}: values are {field.values.dtype}, not torch.float32",
        )
        if field.mask is not None:
            _require(
                str(field.mask.dtype) == "torch.bool" and field.mask.shape in (shape, shape[1:]),
                f"item {i}: mask is {field.mask.dtype} {tuple(field.mask.shape)}, "
                f"not torch.bool {shape[1:]} or {shape}",
            )
        if field.coords is not None:
            _require(
                tuple(field.coords.shape) == (*shape[1:], len(layout.axes)),
                f"item {i}: coords are {tuple(field.coords.shape)}, "
                f"not {(*shape[1:], len(layout.axes))}",
            )


def values_are_finite_and_of_unit_variance(domain: Domain, items: Sequence[Any]) -> None:
    """Observed values are finite; their mean square over all items is between 0.01 and 10, and that
    of each channel at most 10."""
    squares = np.zeros(len(domain.layout.channels))
    counts = np.zeros(len(domain.layout.channels))
    for i, field in _encoded(domain, items):
        values, mask = field.values.double().numpy(), _observed(field).numpy()
        _require(
            bool(np.isfinite(values[mask]).all()),
            f"item {i}: values are not finite where the mask is True",
        )
        axes = tuple(range(1, values.ndim))
        squares += (np.where(mask, values, 0) ** 2).sum(axis=axes)
        counts += mask.sum(axis=axes)
    overall = squares.sum() / max(1, counts.sum())
    _require(
        0.01 <= overall <= 10,
        f"the mean square of values is {overall:.3g}; encode to about 1 (0.01 to 10 is accepted)",
    )
    for name, square in zip(domain.layout.channels, squares / counts.clip(1), strict=True):
        _require(
            square <= 10,
            f"the mean square of channel {name!r} is {square:.3g}; encode to about 1",
        )


def conditions_are_as_declared(domain: Domain, items: Sequence[Any]) -> None:
    """Every field has exactly the declared conditions, in their shapes and ranges."""
    declared = domain.conditions
    for i, field in _encoded(domain, items):
        _require(
            set(field.cond) == set(declared),
            f"item {i}: cond has {sorted(field.cond)}, conditions declare {sorted(declared)}",
        )
        for name, condition in declared.items():
            error = _condition_error(condition, field.cond[name], tuple(field.values.shape[1:]))
            _require(not error, f"item {i}: cond {name!r} {error}")


def centred_channels_have_mean_zero(domain: Domain, items: Sequence[Any]) -> None:
    """The observed cells of each group in ``layout.centred`` have mean zero, also with ``rng``."""
    layout = domain.layout
    for i, item in enumerate(items):
        for field in (domain.encode(item), domain.encode(item, np.random.default_rng(0))):
            values, mask = field.values.double().numpy(), _observed(field).numpy()
            for group in layout.centred:
                rows = [layout.channels.index(name) for name in group]
                mean = float(values[rows][mask[rows]].mean()) if mask[rows].any() else 0.0
                _require(
                    abs(mean) < 1e-4,
                    f"item {i}: {listed(group)} have mean {mean:.3g}, but layout.centred demands 0",
                )


def templates_fit_the_layout(domain: Domain) -> None:
    """A template of a `VariableSize` domain depends on its generator only, fits the layout, and has
    the requested size and every condition."""
    if not isinstance(domain, VariableSize):
        return
    layout = domain.layout
    largest = layout.axes[0].size
    for size in (None, largest):
        field, again = (domain.template(np.random.default_rng(3), {}, size) for _ in range(2))
        _require_equal(field, again, "two templates with equal rngs:")
        shape = tuple(field.values.shape)
        _require(
            len(shape) == 1 + len(layout.axes)
            and 1 <= shape[1] <= largest
            and size in (None, shape[1]),
            f"a template of size {size} has shape {shape}; the layout's grid is {layout.grid}",
        )
        _require(
            set(field.cond) == set(domain.conditions),
            f"a template has {sorted(field.cond)}, conditions declare {sorted(domain.conditions)}",
        )


def decode_undoes_encode(domain: Domain, items: Sequence[Any], *, tolerance: float = 1e-4) -> None:
    """A decoded item encodes to the same field, up to ``tolerance``.

    Conditions are not compared, because an item need not contain them.
    """
    for i, field in _encoded(domain, items):
        again = domain.encode(domain.decode(field))
        _require_equal(field, again, f"item {i}: after decode and encode,", tolerance, cond=False)


def missing_cells_survive_a_round_trip(domain: Domain, items: Sequence[Any]) -> None:
    """Missing cells are declared by the layout, and are the same after a round trip."""
    for i, field in _encoded(domain, items):
        observed = _observed(field)
        missing = int((~observed).sum())
        _require(
            domain.layout.missing or not missing,
            f"item {i} has {missing} missing cells, but layout.missing is False",
        )
        again = _observed(domain.encode(domain.decode(field)))
        _require(
            again.shape == observed.shape and bool((again == observed).all()),
            f"item {i} has {missing} missing cells, and after decode and encode "
            f"{int((~again).sum())}, or different ones",
        )


def reading_order_is_repeatable(
    domain: Domain,
    section: DomainSection | None = None,
    *,
    split: Split = "train",
    num_items: int = 4,
) -> None:
    """A split has the same items in the same order when read again, backwards, and by a second
    instance created from ``section``, if given."""
    once = domain.items(split)
    others = {"read again": domain.items(split)}
    if section is not None and not domain.in_memory:
        cls: Any = type(domain)
        others["of a new domain"] = cls(section).items(split)
    for source, again in others.items():
        _require(
            len(once) == len(again), f"items {source}: {len(again)}, before there were {len(once)}"
        )
        for i in range(min(num_items, len(once)) - 1, -1, -1):
            _require_equal_item(domain, once, again, i, f"item {i} {source}:")


def encode_depends_on_its_rng_alone(domain: Domain, items: Sequence[Any]) -> None:
    """Encoding is deterministic without ``rng``, given ``rng`` with it, and changes no item."""
    for i, item in enumerate(items):
        field = domain.encode(item)
        _require_equal(field, domain.encode(item), f"item {i}: encoded twice without rng,")
        for seed in range(4):
            first, second = (domain.encode(item, np.random.default_rng(seed)) for _ in range(2))
            _require_equal(first, second, f"item {i}: encoded twice with equal rngs,")
        _require_equal(field, domain.encode(item), f"item {i}: after it was encoded with an rng,")


def pickled_domain_still_reads(
    domain: Domain, *, split: Split = "train", num_items: int = 4
) -> None:
    """A pickled domain, as sent to a worker, reads the same items."""
    copy = pickle.loads(pickle.dumps(domain))
    once, again = domain.items(split), copy.items(split)
    _require(len(once) == len(again), f"{len(again)} items after pickling, not {len(once)}")
    for i in range(min(num_items, len(once))):
        _require_equal_item(domain, once, again, i, f"item {i} after pickling:")


def metadata_suffices_to_decode(
    domain: Domain, section: DomainSection | None, items: Sequence[Any], *, tolerance: float = 1e-4
) -> None:
    """Metadata are JSON-compatible with arrays; a domain created from them and ``section``, if
    given, has the same layout and conditions and decodes equally."""
    metadata = domain.metadata()
    plain, arrays = without_arrays(metadata)
    stored = json.loads(json.dumps(plain))
    _require(
        stored == plain,
        "metadata change when stored as JSON; use lists, str keys, numbers and numpy arrays",
    )
    if section is None:
        return
    stored = with_arrays(stored, arrays)
    second = type(domain).from_metadata(section, stored)
    _require(second.layout == domain.layout, f"layout from metadata is {second.layout}")
    _require(
        dict(second.conditions) == dict(domain.conditions),
        f"conditions from metadata are {dict(second.conditions)}, not {dict(domain.conditions)}",
    )
    differing = [path for path, _, _ in unequal(second.metadata(), metadata)]
    _require(not differing, f"a domain made from metadata has other metadata: {listed(differing)}")
    for i, field in _encoded(domain, items):
        mine, other = domain.encode(domain.decode(field)), domain.encode(second.decode(field))
        _require_equal(mine, other, f"item {i}: decoded by a domain made from metadata,", tolerance)


def write_makes_files(domain: Domain, items: Sequence[Any]) -> None:
    """Decoded items are written into a new folder, and the files are returned."""
    decoded = [domain.decode(field) for _, field in _encoded(domain, items)]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "not" / "yet"
        files = domain.write(decoded, folder)
        _require(bool(files), "write returns no files")
        for file in files:
            _require(file.exists(), f"write returns {file.name}, which does not exist")
            _require(file.is_relative_to(folder), f"write leaves its folder: {file}")


def preview_is_an_image(domain: Domain, items: Sequence[Any]) -> None:
    """The preview of several decoded items, and of one, is a PIL image."""
    from PIL.Image import Image

    decoded = [domain.decode(field) for _, field in _encoded(domain, items)]
    for some in (decoded, decoded[:1]):
        image = domain.preview(some)
        _require(isinstance(image, Image), f"preview returns a {type(image).__name__}")


def _require(condition: bool, message: str) -> None:
    if not condition:  # not `assert`, which python -O removes
        raise AssertionError(message)


def _encoded(domain: Domain, items: Sequence[Any]) -> list[tuple[int, Field]]:
    return [(i, domain.encode(item)) for i, item in enumerate(items)]


def _observed(field: Field) -> Tensor:
    """Mask of cells with data, (C, X1..Xn) bool."""
    import torch

    mask = torch.tensor(True) if field.mask is None else field.mask
    return mask.expand(field.values.shape)


def _condition_error(condition: Condition, value: Any, grid: tuple[int, ...]) -> str:
    """Error text for a condition's value in a sample of that grid; "" if it is valid."""
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
            return f"is {tensor.dtype}, not an integer type"
        if tensor.min() < 0 or tensor.max() >= condition.n:
            return (
                f"ranges from {tensor.min()} to {tensor.max()}, not within 0 to {condition.n - 1}"
            )
        return ""
    if not tensor.is_floating_point():
        return f"is {tensor.dtype}, not a float type"
    return "is infinite" if tensor.isinf().any() else ""


def _require_equal_item(
    domain: Domain, once: Sequence[Any], again: Sequence[Any], i: int, when: str
) -> None:
    """Item i of two sequences encodes equally, or is unreadable in both."""
    fields: list[Field | None] = []
    for sequence in (once, again):
        try:
            fields.append(domain.encode(sequence[i]))
        except BadItem:
            fields.append(None)
    first, second = fields
    _require((first is None) == (second is None), f"{when} unreadable in one of two reads")
    if first is not None and second is not None:
        _require_equal(first, second, when)


def _require_equal(
    first: Field, second: Field, when: str, tolerance: float = 0.0, *, cond: bool = True
) -> None:
    """Require equal fields, with NaN at the same positions."""
    pairs = {"values": (first.values, second.values), "coords": (first.coords, second.coords)}
    pairs["mask"] = (_observed(first), _observed(second))
    if cond:
        _require(set(first.cond) == set(second.cond), f"{when} conditions differ")
        pairs |= {f"cond {name!r}": (first.cond[name], second.cond[name]) for name in first.cond}
    for name, (a, b) in pairs.items():
        difference = _difference(a, b)
        _require(
            difference <= tolerance, f"{when} {name} differ by {difference:.3g} (> {tolerance:g})"
        )


def _difference(a: Any, b: Any) -> float:
    """The largest difference; infinite if shapes or NaN positions differ."""
    if a is None or b is None:
        return 0.0 if a is b else np.inf
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return np.inf
    equal = (a == b) | np.isnan(a)  # infinities too
    return float(np.abs(np.where(equal, 0, a) - np.where(equal, 0, b)).max(initial=0))
