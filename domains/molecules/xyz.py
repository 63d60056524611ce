"""XYZ reader: one or many molecules per file; plain, extended, or in QM9's format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.elements import number_of
from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import BadItem

QM9 = ("A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv")
"""Properties in the second line of QM9's files (Ramakrishnan et al. 2014, table 3)."""

_PAIR = re.compile(r"([A-Za-z_][\w.\-]*)=(?:\"([^\"]*)\"|'([^']*)'|(\S+))")
_CHARGES = ("formal_charge", "formal_charges")  # columns of an extended file


def read_xyz(path: Path) -> Iterator[Molecule | BadItem]:
    """Molecules of a file in its unit, and an error for each unreadable one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    at, count = _next_count(lines, 0), 0
    while at < len(lines):
        name = path.stem if _next_count(lines, at + 1) == len(lines) and not count else (
            f"{path.stem}:{count}")  # fmt: skip
        after = at + 2 + int(lines[at])
        try:
            molecule = _molecule(lines, at, name)
            at = _after(lines, after, name, lines[at + 1])
            yield molecule
        except BadItem as bad:
            yield bad
            at = _next_count(lines, at + 1)
        count += 1


def _next_count(lines: Sequence[str], at: int) -> int:
    """Next line from ``at`` on with a number of atoms; the end if there is none."""
    while at < len(lines) and not lines[at].strip().isdecimal():
        at += 1
    return at


def _after(lines: Sequence[str], at: int, name: str, comment: str) -> int:
    """Start of the next molecule; lines after the atoms are an error except in QM9's files."""
    following = _next_count(lines, at)
    if not comment.startswith("gdb"):
        extra = [line for line in lines[at:following] if line.strip()]
        if extra:
            raise BadItem(name, f"more lines than atoms: {extra[0].strip()[:40]!r} follows them")
    return following


def _molecule(lines: Sequence[str], at: int, name: str) -> Molecule:
    count = int(lines[at])
    comment = lines[at + 1].strip() if at + 1 < len(lines) else ""
    rows = [line.split() for line in lines[at + 2 : at + 2 + count]]
    present = list(takewhile(lambda row: len(row) > 1, rows))
    if len(present) < count:
        raise BadItem(name, f"{count} atoms declared, {len(present)} found")
    pairs = {key: a or b or c for key, a, b, c in _PAIR.findall(comment)}
    if "Lattice" in pairs and pairs.get("pbc", "T T T").replace(" ", "").strip("F0"):
        raise BadItem(name, "a periodic cell (Lattice), not a molecule")
    columns = _columns(pairs.get("Properties", "species:S:1:pos:R:3"), name)
    numbers = [_number(row, columns["species"], name) for row in rows]
    positions = [[_float(row, columns["pos"] + k, name) for k in range(3)] for row in rows]
    charge = next((columns[key] for key in _CHARGES if key in columns), None)
    charges = [0 if charge is None else round(_float(row, charge, name)) for row in rows]
    smiles, properties = None, _scalars(pairs)
    if comment.startswith("gdb"):
        values = comment.split()[2:]
        properties = dict(zip(QM9, (float(v.replace("*^", "e")) for v in values), strict=False))
        words = lines[at + 3 + count].split() if at + 3 + count < len(lines) else []
        smiles = words[0] if words else None
    return Molecule(
        np.array(numbers, np.int64),
        np.array(positions, np.float64).reshape(-1, 3),
        np.array(charges, np.int64),
        properties,
        smiles,
        name,
    )


def _columns(text: str, name: str) -> dict[str, int]:
    """First column of each property in an extended file: ``species:S:1:pos:R:3``."""
    words, columns, at = text.split(":"), dict[str, int](), 0
    for key, size in zip(words[::3], words[2::3], strict=False):
        columns[key] = at
        at += int(size) if size.isdecimal() else 0
    if not {"species", "pos"} <= set(columns):
        raise BadItem(name, f"Properties={text} has no species or pos")
    return columns


def _number(row: Sequence[str], column: int, name: str) -> int:
    number = number_of(row[column]) if column < len(row) else None
    if number is None:
        raise BadItem(name, f"{' '.join(row)[:40]!r} does not begin with an element")
    return number


def _float(row: Sequence[str], column: int, name: str) -> float:
    try:
        return float(row[column].replace("*^", "e"))
    except (IndexError, ValueError):
        raise BadItem(
            name, f"{' '.join(row)[:40]!r} has no number in column {column + 1}"
        ) from None


def _scalars(pairs: dict[str, str]) -> dict[str, float]:
    scalars = {}
    for key, value in pairs.items():
        try:
            scalars[key] = float(value)
        except ValueError:
            continue
    return scalars
