"""Fill values (domain.fill) for missing data that a file does not declare, such as -999 or 1e20."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.variables import Piece, Variable, VariableInfo

Fill = float | Mapping[str, float]
"""One physical value for all variables, or one per variable name."""


def fills_by_name(fill: Fill, variables: Mapping[str, Variable], where: str) -> dict[str, float]:
    """The fill value of each variable whose dtype can hold it.

    Raises:
        DataError: no such variable, or it is not numeric; ``where`` names the store.
    """
    if not isinstance(fill, Mapping):
        return {name: fill for name, v in variables.items() if _may_hold(v.info, fill)}
    for name in fill:
        if name not in variables:
            raise DataError(
                f"{where}: no variable {name!r} for domain.fill; it has {listed(variables, 20)}"
                f"{nearest(name, variables)}"
            )
        if not variables[name].info.numeric:
            dtype = variables[name].info.dtype
            raise DataError(f"{where}: domain.fill: {name!r} is not numeric but {dtype}")
    return {n: value for n, value in fill.items() if _may_hold(variables[n].info, value)}


def _may_hold(info: VariableInfo, value: float) -> bool:
    """Whether the variable's dtype can represent the value."""
    if info.dtype.kind in "iu":
        limits = np.iinfo(info.dtype)
        return limits.min <= value <= limits.max and float(value).is_integer()
    return info.dtype.kind == "f" and abs(value) <= float(np.finfo(np.float32).max)


def with_fill(variable: Variable, value: float) -> Variable:
    """The variable with cells of this value read as missing, as if the file declared it.

    Integers therefore become floats."""
    dtype = variable.info.dtype
    if dtype.kind in "iu":  # as xarray decodes them
        dtype = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    info = replace(variable.info, dtype=dtype, missing=True)
    pieces = tuple(_with_user_fill(piece, np.float32(value)) for piece in variable.pieces)
    return replace(variable, info=info, pieces=pieces)


def _with_user_fill(piece: Piece, value: np.float32) -> Piece:
    if piece.decode is None:
        return piece
    return replace(piece, decode=replace(piece.decode, user_fills=(value,)))
