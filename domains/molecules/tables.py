"""QM9 as the package qm9pack ships it: a row for each molecule, lists in its cells."""

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
ROWS = 4096  # parsed at once
_NO_LISTS = str.maketrans("", "", "[]'\" ")


def is_table(path: Path) -> bool:
    """Whether a CSV has the columns that molecules need."""
    with path.open(newline="", encoding="utf-8") as file:
        header = next(csv.reader(file), [])
    return {ELEMENTS, POSITIONS} <= set(header)


def read_table(path: Path) -> Iterator[PackedMolecules]:
    """Molecules of a CSV with columns ``Elements`` and ``XYZ_Ang`` (angstrom), packed in parts.

    Columns of numbers are properties. Powers of ten may be written as in QM9's own files,
    ``1.2*^-6``.

    Raises:
        DataError: a row that does not fit, with its number.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        first = 2
        while rows := list(islice(reader, ROWS)):
            wrong = next((i for i, row in enumerate(rows) if len(row) != len(header)), None)
            if wrong is not None:
                raise DataError(f"{path}, line {first + wrong}: {len(rows[wrong])} cells under "
                                f"{len(header)} headings")  # fmt: skip
            columns = dict(zip(header, zip(*rows, strict=True), strict=True))
            yield _packed(path, columns, first)
            first += len(rows)


def _packed(path: Path, columns: Mapping[str, Sequence[str]], first: int) -> PackedMolecules:
    symbols = [cell.translate(_NO_LISTS).split(",") for cell in columns[ELEMENTS]]
    sizes = np.array([len(own) for own in symbols])
    known = {word: number_of(word) for own in symbols for word in own}
    if unknown := [word for word, number in known.items() if number is None]:
        raise DataError(f"{path}: {unknown[0]!r} is no element")
    counts = np.array([cell.count(",") + 1 for cell in columns[POSITIONS]])
    if (wrong := np.flatnonzero(counts != 3 * sizes)).size:
        i = int(wrong[0])
        raise DataError(f"{path}, line {first + i}: {counts[i]} numbers for the positions of "
                        f"{sizes[i]} atoms")  # fmt: skip
    positions = numbers_of(",".join(columns[POSITIONS]).translate(_NO_LISTS))
    if positions is None or len(positions) != 3 * sizes.sum():
        raise DataError(
            f"{path}, lines {first} to {first + len(sizes) - 1}: a position is no number"
        )
    properties = {}
    for name in columns:
        values = None if "[" in columns[name][0] else _column(columns[name])
        if values is not None:
            properties[name] = values
    names = next((columns[name] for name in NAMES if name in columns), [""] * len(sizes))
    return PackedMolecules(
        np.concatenate(([0], np.cumsum(sizes))),
        np.array([known[word] for own in symbols for word in own], np.uint8),
        positions.reshape(-1, 3).astype(np.float32),
        np.zeros(sizes.sum(), np.int8),
        properties,
        list(columns[SMILES]) if SMILES in columns else [None] * len(sizes),
        list(names),
    )


def numbers_of(text: str) -> Array | None:
    """Numbers between commas; None where something else stands there.

    >>> numbers_of("1.,-2.5*^-6")
    array([ 1.0e+00, -2.5e-06])
    """
    try:
        return np.array(text.replace("*^", "e").split(","), np.float64)
    except ValueError:
        return None


def _column(cells: Sequence[str]) -> Array | None:
    """A column of numbers, NaN where empty; None where it holds words."""
    try:
        return np.array([float(cell.replace("*^", "e")) if cell else np.nan for cell in cells])
    except ValueError:
        return None
