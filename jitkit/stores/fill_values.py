"""Values that mean "missing" though nothing in a file declares them: -999, 1e20 and their kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.variables import Described, Piece, Variable

Fill = float | Mapping[str, float]
"""One physical value for all variables, or one for each by name."""


def fills_by_name(fill: Fill, variables: Mapping[str, Variable], where: str) -> dict[str, float]:
    """The value of each variable that may hold it.

    Raises:
        DataError: there is no such variable, or it holds no numbers; ``where`` names the store.
    """
    if not isinstance(fill, Mapping):
        return {name: fill for name, v in variables.items() if _may_hold(v.described, fill)}
    for name in fill:
        if name not in variables:
            raise DataError(
                f"{where}: no variable {name!r} for domain.fill; it has {listed(variables, 20)}"
                f"{nearest(name, variables)}"
            )
        if not variables[name].described.numeric:
            dtype = variables[name].described.dtype
            raise DataError(f"{where}: domain.fill: {name!r} holds no numbers but {dtype}")
    return {n: value for n, value in fill.items() if _may_hold(variables[n].described, value)}


def _may_hold(described: Described, value: float) -> bool:
    """Whether some number of a variable's type is the value."""
    if described.dtype.kind in "iu":
        ends = np.iinfo(described.dtype)
        return ends.min <= value <= ends.max and float(value).is_integer()
    return described.dtype.kind == "f" and abs(value) <= float(np.finfo(np.float32).max)


def with_fill(variable: Variable, value: float) -> Variable:
    """The same variable, whose cells of this value are missing: described as one that declares it,
    so that integers are floats."""
    dtype = variable.described.dtype
    if dtype.kind in "iu":  # as xarray has it
        dtype = np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)
    described = replace(variable.described, dtype=dtype, missing=True)
    pieces = tuple(_blanked(piece, np.float32(value)) for piece in variable.pieces)
    return replace(variable, described=described, pieces=pieces)


def _blanked(piece: Piece, blank: np.float32) -> Piece:
    if piece.decode is None:
        return piece
    return replace(piece, decode=replace(piece.decode, blanks=(blank,)))
