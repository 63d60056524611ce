"""CSV reader for QM9 as shipped by the package qm9pack: one molecule per row, lists in cells."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.elements import number_of
from jitkit.domains.molecules.molecule import PackedMolecules
from jitkit.errors import DataError
from jitkit.utils.types import Array

ELEMENTS, POSITIONS, SMILES, NAMES = "Elements", "XYZ_Ang", "SMILES", ("XYZ_file", "name")
ROWS = 4096  # parsed per batch
_WITHOUT_BRACKETS = str.maketrans("", "", "[]'\" ")


def is_table(path: Path) -> bool:
    """Whether a CSV has the columns of a molecule table."""
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    return {ELEMENTS, POSITIONS} <= set(header)


def read_table(path: Path) -> Iterator[PackedMolecules]:
    """Molecules of a CSV with columns ``Elements`` and ``XYZ_Ang`` (angstrom), in packed parts.

    Numeric columns are properties. Powers of ten may be written as in QM9's files, ``1.2*^-6``.

    Raises:
        DataError: an inconsistent row, with its line number.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        first = 2
        while rows := list(islice(reader, ROWS)):
            bad = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
            if bad is not None:
                raise DataError(f"{path}, line {first + bad}: {len(rows[bad])} cells in a table "
                                f"of {len(header)} columns")  # fmt: skip
            columns = dict(zip(header, zip(*rows, strict=True), strict=True))
            yield _packed(path, columns, first)
            first += len(rows)


def _packed(path: Path, columns: Mapping[str, Sequence[str]], first: int) -> PackedMolecules:
    symbols = [cell.translate(_WITHOUT_BRACKETS).split(",") for cell in columns[ELEMENTS]]
    sizes = np.array([len(row) for row in symbols])
    number = {word: number_of(word) for row in symbols for word in row}
    if unknown := [word for word in number if number[word] is None]:
        raise DataError(f"{path}: {unknown[0]!r} is not an element")
    counts = np.array([cell.count(",") + 1 for cell in columns[POSITIONS]])
    if (bad := np.flatnonzero(counts != 3 * sizes)).size:
        i = int(bad[0])
        raise DataError(f"{path}, line {first + i}: {counts[i]} numbers for the positions of "
                        f"{sizes[i]} atoms")  # fmt: skip
    positions = parse_floats(",".join(columns[POSITIONS]).translate(_WITHOUT_BRACKETS))
    if positions is None or len(positions) != 3 * sizes.sum():
        raise DataError(
            f"{path}, lines {first} to {first + len(sizes) - 1}: a position is not a number"
        )
    properties = {}
    for name in columns:
        values = None if "[" in columns[name][0] else _column(columns[name])
        if values is not None:
            properties[name] = values
    names = next((columns[name] for name in NAMES if name in columns), [""] * len(sizes))
    return PackedMolecules(
        np.concatenate(([0], np.cumsum(sizes))),
        np.array([number[word] for row in symbols for word in row], np.uint8),
        positions.reshape(-1, 3).astype(np.float32),
        np.zeros(sizes.sum(), np.int8),
        properties,
        list(columns[SMILES]) if SMILES in columns else [None] * len(sizes),
        list(names),
    )


def parse_floats(text: str) -> Array | None:
    """Comma-separated numbers; None if a cell is not a number.

    >>> parse_floats("1.,-2.5*^-6")
    array([ 1.0e+00, -2.5e-06])
    """
    try:
        return np.array(text.replace("*^", "e").split(","), np.float64)
    except ValueError:
        return None


def _column(cells: Sequence[str]) -> Array | None:
    """A numeric column, NaN for empty cells; None if it has other text."""
    try:
        return np.array([float(cell.replace("*^", "e")) if cell else np.nan for cell in cells])
    except ValueError:
        return None
