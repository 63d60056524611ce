"""CF decoding of stored values: scale_factor, add_offset, fill values and signedness.

Same as xarray's ``mask_and_scale``: ``_FillValue`` and ``missing_value`` become NaN, ``_Unsigned``
sets the signedness of integers, ``valid_range`` and similar attributes are ignored.
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
    """Conversion of a variable's stored values to physical values.

    Attributes:
        stored: dtype of the stored values, signed as ``_Unsigned`` sets it, in native byte order.
        scale: factor; None is 1.
        offset: added after scaling; None is 0.
        fills: stored values that mean "missing", besides NaN.
        user_fills: physical values that mean "missing" by the recipe (domain.fill).
    """

    stored: np.dtype[Any]
    scale: float | None = None
    offset: float | None = None
    fills: tuple[Any, ...] = ()
    user_fills: tuple[np.float32, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether stored values are physical values already."""
        return self.scale is None and self.offset is None and not self.fills

    @property
    def reads_as(self) -> np.dtype[Any]:
        """The dtype that `__call__` takes."""
        return np.dtype(np.float32) if self.plain else self.stored

    def signed(self, chunk: Array) -> Array:
        """Stored values, in any byte order, viewed with the signedness of ``_Unsigned``."""
        if chunk.dtype.kind == self.stored.kind:
            return chunk
        order, kind = chunk.dtype.byteorder, self.stored.kind
        return chunk.view(np.dtype(f"{kind}{chunk.dtype.itemsize}").newbyteorder(order))

    def __call__(self, raw: Array) -> Array:
        """Physical values, float32, NaN if missing; overwrites ``raw``, of dtype ``reads_as``."""
        values = raw if self.plain else self._unpacked(raw)
        for value in self.user_fills:
            values[values == value] = np.nan
        return values

    def _unpacked(self, raw: Array) -> Array:
        missing = [raw == fill for fill in self.fills]
        if self.scale is not None or self.offset is not None:
            values = raw.astype(np.float64)  # float32 would lose digits to a large offset
            values *= 1.0 if self.scale is None else self.scale
            values += 0.0 if self.offset is None else self.offset
            raw = values
        values = raw.astype(np.float32, copy=False)
        for cells in missing:
            values[cells] = np.nan
        return values


def decoding(dtype: np.dtype[Any], attrs: Mapping[str, Any]) -> Decoding:
    """The decoding of a variable by its stored dtype and CF attributes."""
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
    """Fill values in the stored dtype.

    xarray compares a double ``missing_value`` with float32 cells unrounded, so they never match;
    here it is rounded to the dtype of the cells.
    """
    fills = []
    for name in ("_FillValue", "missing_value"):
        for value in np.ravel(attrs.get(name, [])):
            with suppress(OverflowError, ValueError):  # values outside the dtype cannot occur
                fills.append(_as_stored(value, stored, "_Unsigned" in attrs))
    return tuple(dict.fromkeys(fill for fill in fills if fill is not None and fill == fill))


def _as_stored(value: Any, stored: np.dtype[Any], resigned: bool) -> Any:
    """A fill value in the stored dtype; None where no stored value can equal it."""
    if stored.kind == "f":
        return stored.type(value)
    if float(value) != int(value):
        return None
    if resigned:  # the file stores it with the other signedness, like the values
        return np.array(int(value) % 2 ** (8 * stored.itemsize), f"u{stored.itemsize}").view(
            stored
        )[()]
    return stored.type(int(value)) if stored.kind != "b" else None
