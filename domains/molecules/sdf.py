"""SDF and MOL reader, V2000 and V3000: atoms, charges, and numeric data fields."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.elements import number_of
from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import BadItem

_CHARGE_CODES = {1: 3, 2: 2, 3: 1, 5: -1, 6: -2, 7: -3}  # in an atom line; 4 is a radical
_BOND_ORDERS = {1: 1.0, 2: 2.0, 3: 3.0, 4: 1.5}  # bond order by type; 4 is aromatic
_FIELD = re.compile(r"<([^>]*)>")


@dataclass
class _Table:
    """A parsed connection table."""

    symbols: list[str] = field(default_factory=list)
    positions: list[list[float]] = field(default_factory=list)
    charges: dict[int, int] = field(default_factory=dict)
    radicals: set[int] = field(default_factory=set)
    bonds: list[tuple[int, int, float]] = field(default_factory=list)


def read_sdf(path: Path, *, hydrogens: bool = True) -> Iterator[Molecule | BadItem]:
    """Molecules of a file in its unit, and an error for each unreadable one.

    Args:
        path: .sdf, .sd or .mol.
        hydrogens: whether all hydrogens must be present as atoms.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    blocks = re.split(r"^\$\$\$\$.*$", text, flags=re.MULTILINE)
    blocks = [block.removeprefix("\n") if i else block for i, block in enumerate(blocks)]
    blocks = [block for block in blocks if block.strip()]
    for i, block in enumerate(blocks):
        lines = block.splitlines()
        name = lines[0].strip() or (path.stem if len(blocks) == 1 else f"{path.stem}:{i}")
        try:
            yield _molecule(lines, name, hydrogens)
        except BadItem as bad:
            yield bad
        except (ValueError, IndexError):
            yield BadItem(name, "its connection table is corrupt")


def _molecule(lines: Sequence[str], name: str, hydrogens: bool) -> Molecule:
    counts = lines[3] if len(lines) > 3 else ""
    if "V3000" in counts:
        table = _v3000_table(lines[4:], name)
    elif "V2000" in counts or re.match(r"[ \d]{6}", counts):
        table = _v2000_table(lines[3:], name)
    else:
        raise BadItem(name, "no counts of atoms and bonds in its fourth line")
    numbers = [number_of(symbol) for symbol in table.symbols]
    if None in numbers:
        raise BadItem(name, f"{table.symbols[numbers.index(None)]!r} is not an element")
    positions = np.array(table.positions, float).reshape(-1, 3)
    _check_is_3d(positions, lines[1][20:22].upper(), name)
    if hydrogens:
        _check_hydrogens(table, numbers, name)
    charges = [table.charges.get(i, 0) for i in range(len(numbers))]
    fields = _fields(lines)
    smiles = next((value for key, value in fields.items() if key.lower() == "smiles"), None)
    properties = {key: float(v) for key, v in fields.items() if _is_number(v)}
    return Molecule(np.array(numbers), positions, np.array(charges), properties, smiles, name)


def _v2000_table(lines: Sequence[str], name: str) -> _Table:
    """V2000: fixed columns."""
    num_atoms, num_bonds = int(lines[0][:3]), int(lines[0][3:6] or 0)
    table, rest = _Table(), lines[1 + num_atoms :]
    for i, line in enumerate(lines[1 : 1 + num_atoms]):
        symbol = line[31:34].strip()
        if not symbol:
            raise BadItem(name, f"{num_atoms} atoms declared, {i} found")
        table.symbols.append(symbol)
        table.positions.append([float(line[k : k + 10]) for k in (0, 10, 20)])
        code = int(line[36:39].strip() or 0)
        if code in _CHARGE_CODES:
            table.charges[i] = _CHARGE_CODES[code]
        elif code == 4:
            table.radicals.add(i)
    if len(table.symbols) < num_atoms:
        raise BadItem(name, f"{num_atoms} atoms declared, {len(table.symbols)} found")
    for line in rest[:num_bonds]:
        a, b, kind = (int(line[k : k + 3]) for k in (0, 3, 6))
        table.bonds.append((a - 1, b - 1, _BOND_ORDERS.get(kind, 1.0)))
    has_charge_lines = False
    for line in rest[num_bonds:]:
        if line.startswith("M  END"):
            break
        if line.startswith(("M  CHG", "M  RAD")):
            words = [int(word) for word in line[9:].split()]
            pairs = [(i - 1, value) for i, value in zip(words[::2], words[1::2], strict=True)]
            if line.startswith("M  RAD"):
                table.radicals.update(i for i, _ in pairs)
            else:  # these replace the charges in the atom lines
                table.charges = (table.charges if has_charge_lines else {}) | dict(pairs)
                has_charge_lines = True
    return table


def _v3000_table(lines: Sequence[str], name: str) -> _Table:
    """V3000: words; a hyphen at the end continues the line."""
    text = "\n".join(line[7:] for line in lines if line.startswith("M  V30 "))
    table, block, declared = _Table(), "", 0
    for line in text.replace("-\n", "").splitlines():
        words = line.split()
        if words[:1] == ["COUNTS"]:
            declared = int(words[1])
        elif words[:1] in (["BEGIN"], ["END"]):
            block = words[1] if words[0] == "BEGIN" else ""
        elif block == "ATOM":
            i = len(table.symbols)
            table.symbols.append(words[1])
            table.positions.append([float(word) for word in words[2:5]])
            options = dict(word.split("=", 1) for word in words[6:] if "=" in word)
            if "CHG" in options:
                table.charges[i] = int(options["CHG"])
            if int(options.get("RAD", 0)):
                table.radicals.add(i)
        elif block == "BOND":
            kind, a, b = (int(word) for word in words[1:4])
            table.bonds.append((a - 1, b - 1, _BOND_ORDERS.get(kind, 1.0)))
    if len(table.symbols) != declared:
        raise BadItem(name, f"{declared} atoms declared, {len(table.symbols)} found")
    return table


def _check_is_3d(positions: np.ndarray, dimension: str, name: str) -> None:
    """Refuse flat drawings, in which lengths are not distances."""
    if dimension == "2D" or (
        dimension != "3D" and len(positions) > 1 and not positions[:, 2].any()
    ):
        raise BadItem(name, "coordinates of a drawing (2-D), not positions in space")
    if len(positions) > 1 and not positions.any():
        raise BadItem(name, "all its atoms are at 0, 0, 0: it has no positions")


def _check_hydrogens(table: _Table, numbers: Sequence[int | None], name: str) -> None:
    """Check that carbons have four bonds, if the file has bonds."""
    if not table.bonds:
        return
    orders = np.zeros(len(numbers))
    for a, b, order in table.bonds:
        orders[[a, b]] += order
    open_bonds = sum(
        max(0, int(4 - orders[i]))
        for i, number in enumerate(numbers)
        if number == 6 and i not in table.radicals and not table.charges.get(i)
    )
    if open_bonds:
        raise BadItem(
            name,
            f"{open_bonds} hydrogens are missing as atoms; add them (RDKit: "
            "Chem.AddHs(molecule, addCoords=True)), or model heavy atoms: domain.hydrogens=drop",
        )


def _fields(lines: Sequence[str]) -> dict[str, str]:
    """Data fields: name in the header line, value in the first line below."""
    fields = {}
    for i, line in enumerate(lines[:-1]):
        if line.startswith(">") and (match := _FIELD.search(line)):
            fields[match[1]] = lines[i + 1].strip()
    return fields


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
