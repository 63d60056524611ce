"""What stored numbers mean: scale, offset, fill values and sign, by the CF conventions.

As xarray decodes them (``mask_and_scale``): ``_FillValue`` and ``missing_value`` become NaN,
``_Unsigned`` says how to read integers, ``valid_range`` and its kin change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitkit.utils.types import Array

PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")


@dataclass(frozen=True)
class Decoding:
    """How a variable's stored numbers become physical ones.

    Attributes:
        stored: dtype of the numbers, its sign as ``_Unsigned`` says, in native byte order.
        scale: factor; None is 1.
        offset: what is added afterwards; None is 0.
        fills: stored values that mean "missing", beside NaN.
        blanks: physical values that do, by the user's word.
    """

    stored: np.dtype[Any]
    scale: float | None = None
    offset: float | None = None
    fills: tuple[Any, ...] = ()
    blanks: tuple[np.float32, ...] = ()

    @property
    def plain(self) -> bool:
        """The stored numbers are the physical ones."""
        return self.scale is None and self.offset is None and not self.fills

    @property
    def reads_as(self) -> np.dtype[Any]:
        """The dtype in which `__call__` takes its numbers."""
        return np.dtype(np.float32) if self.plain else self.stored

    def signed(self, chunk: Array) -> Array:
        """Stored numbers, of any byte order, with the sign that ``_Unsigned`` gives them."""
        if chunk.dtype.kind == self.stored.kind:
            return chunk
        order, kind = chunk.dtype.byteorder, self.stored.kind
        return chunk.view(np.dtype(f"{kind}{chunk.dtype.itemsize}").newbyteorder(order))

    def __call__(self, raw: Array) -> Array:
        """Physical values, float32, NaN where missing; ``raw`` is of ``reads_as`` and used up."""
        values = raw if self.plain else self._unpacked(raw)
        for blank in self.blanks:
            values[values == blank] = np.nan
        return values

    def _unpacked(self, raw: Array) -> Array:
        missing = [raw == fill for fill in self.fills]
        if self.scale is not None or self.offset is not None:
            values = raw.astype(np.float64)  # five digits of an offset would be lost in float32
            values *= 1.0 if self.scale is None else self.scale
            values += 0.0 if self.offset is None else self.offset
            raw = values
        values = raw.astype(np.float32, copy=False)
        for cells in missing:
            values[cells] = np.nan
        return values


def decoding(dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> Decoding:
    """The decoding that a variable's stored dtype and attributes ask for."""
    stored = dtype.newbyteorder("=")
    unsigned = attrs.get("_Unsigned")
    if stored.kind == "i" and unsigned == "true":
        stored = np.dtype(f"u{stored.itemsize}")
    elif stored.kind == "u" and unsigned == "false":
        stored = np.dtype(f"i{stored.itemsize}")
    return Decoding(
        stored, _number(attrs, "scale_factor"), _number(attrs, "add_offset"), _fills(stored, attrs)
    )


def _number(attrs: Mapping[str, Any], name: str) -> float | None:
    return float(np.asarray(attrs[name]).item()) if name in attrs else None


def _fills(stored: np.dtype[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Fill values as the stored dtype has them.

    xarray compares a double ``missing_value`` with float32 cells unrounded, which never agree; here
    it is rounded as the cells were.
    """
    found = []
    for name in ("_FillValue", "missing_value"):
        for value in np.ravel(attrs.get(name, [])):
            with suppress(OverflowError, ValueError):  # what the dtype cannot hold never occurs
                found.append(_as_stored(value, stored, "_Unsigned" in attrs))
    return tuple(dict.fromkeys(fill for fill in found if fill is not None and fill == fill))


def _as_stored(value: Any, stored: np.dtype[Any], resigned: bool) -> Any:
    """A fill value in the stored dtype; None where no stored number equals it."""
    if stored.kind == "f":
        return stored.type(value)
    if float(value) != int(value):
        return None
    if resigned:  # the file has it with the other sign, as it has the numbers
        return np.array(int(value) % 2 ** (8 * stored.itemsize), f"u{stored.itemsize}").view(
            stored
        )[()]
    return stored.type(int(value)) if stored.kind != "b" else None
