"""Chains from the atoms of a file: backbone atoms, peptide bonds, gaps.

Residue numbers are arbitrary labels. The connectivity is determined from distances: a residue is
bonded to the next if C and N are close, or CA and CA if one of these is missing. Residue numbers
only give the length of gaps between residues without a bond.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.residues import ATOMS, letter
from jitkit.errors import BadItem, listed
from jitkit.utils.types import Array

MAX_C_N, MAX_CA_CA = 2.0, 4.3  # angstrom over a peptide bond
SAME_RESIDUE = 1.5  # angstrom, maximal CA distance of two variants of one residue
PLAUSIBLE_N_CA = (1.35, 1.6)  # angstrom, median
OXYGENS = ("OT1", "OC1", "O1", "OXT")  # names of the terminal O in force fields
COLUMN = {name: i for i, name in enumerate(ATOMS)} | dict.fromkeys(OXYGENS, 3)


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain in a file.

    Attributes:
        label: chain identifier in the file.
        atoms: indices of N, CA, C, O in the file, (L, 4) int64, -1 if missing.
        sequence: one-letter codes.
        index: position of each residue in the chain.
    """

    label: str
    atoms: Array
    sequence: str
    index: Array

    def backbone(self, positions: Array, name: str) -> Backbone:
        """The chain for these positions of all atoms of the file, (atoms, 3)."""
        backbone = np.where(self.atoms[..., None] >= 0, positions[self.atoms], np.nan)
        return Backbone(backbone.astype(np.float32), self.sequence, self.index, name)


ResidueKey = tuple[int, str, str]  # residue number, insertion code, residue name


@dataclass
class _Run:
    """Residues of one chain in file order."""

    label: str
    rows: dict[ResidueKey, list[int]] = field(default_factory=dict)


def chains_of(atoms: Any) -> list[Chain]:
    """The chains of a biotite ``AtomArray``, in the file's order.

    An amino acid without CA counts as missing. An isolated hetero residue is a ligand. Of two
    variants of one residue the first is used.
    """
    counts: dict[str, int] = {}
    named = []
    for chain in (chain for run in _runs(atoms) for chain in _split(run, atoms)):
        counts[chain.label] = count = counts.get(chain.label, 0) + 1
        label = chain.label if count == 1 else f"{chain.label}/{count}"
        named.append(Chain(label, chain.atoms, chain.sequence, chain.index))
    return named


def _runs(atoms: Any) -> Iterator[_Run]:
    """Residues with backbone atoms, by chain; a repeated atom starts another chain."""
    run: _Run | None = None
    last: ResidueKey | None = None
    indices = np.flatnonzero(np.isin(atoms.atom_name, list(COLUMN)))
    columns = (atoms.chain_id, atoms.res_id, atoms.ins_code, atoms.res_name, atoms.atom_name)
    rows = zip(indices.tolist(), *(c[indices].tolist() for c in columns), strict=True)
    for i, label, number, code, name, atom in rows:
        key, column = (number, code, name), COLUMN[atom]
        known = run.rows.get(key) if run is not None and run.label == label else None
        is_repeated = known is not None and known[column] >= 0 and key != last
        if run is None or run.label != label or is_repeated:
            if run is not None:
                yield run
            run, known = _Run(label), None
        if known is None:
            known = run.rows[key] = [-1, -1, -1, -1]
        if known[column] < 0:
            known[column] = i
        last = key
    if run is not None:
        yield run


def _split(run: _Run, atoms: Any) -> Iterator[Chain]:
    """Chains of a run: split where residue numbers restart without a bond."""
    residues = [(key, row) for key, row in run.rows.items() if _is_residue(key, row)]
    residues = _without_variants(residues, atoms.coord)
    if not residues:
        return
    rows = np.array([row for _, row in residues])
    numbers = np.array([key[0] for key, _ in residues])
    bonded = _bonded(rows, atoms.coord)
    isolated = ~np.append(bonded, False) & ~np.insert(bonded, 0, False)
    keep = ~(isolated & atoms.hetero[rows[:, 1]])
    rows, numbers = rows[keep], numbers[keep]
    letters = np.array([letter(key[2]) or "X" for key, _ in residues])[keep]
    bonded = _bonded(rows, atoms.coord)
    steps = np.where(bonded, 1, np.maximum(2, np.diff(numbers)))
    starts = np.flatnonzero(~bonded & (np.diff(numbers) < 0)) + 1
    for part in np.split(np.arange(len(rows)), starts):
        if len(part):
            index = np.concatenate(([0], np.cumsum(steps[part[:-1]])))
            yield Chain(run.label, rows[part], "".join(letters[part]), index.astype(np.int64))


def _is_residue(key: ResidueKey, row: list[int]) -> bool:
    """Whether there is a CA, and the name is an amino acid or N and C are present too."""
    return row[1] >= 0 and (letter(key[2]) is not None or min(row[:3]) >= 0)


def _without_variants(
    residues: list[tuple[ResidueKey, list[int]]], coord: Array
) -> list[tuple[ResidueKey, list[int]]]:
    """Drop later variants of a residue: another amino acid of the same number and position."""
    unique: list[tuple[ResidueKey, list[int]]] = []
    for key, row in residues:
        if unique and unique[-1][0][:2] == key[:2]:
            difference = coord[row[1]] - coord[unique[-1][1][1]]
            if np.sqrt((difference**2).sum()) < SAME_RESIDUE:
                continue
        unique.append((key, row))
    return unique


def _bonded(rows: Array, coord: Array) -> Array:
    """Whether each residue is bonded to the next, (L - 1,) bool."""

    def distance(a: Array, b: Array) -> Array:
        known = (a >= 0) & (b >= 0)
        return np.where(known, np.sqrt(((coord[a] - coord[b]) ** 2).sum(axis=1)), np.nan)

    c_n = distance(rows[:-1, 2], rows[1:, 0])
    ca_ca = distance(rows[:-1, 1], rows[1:, 1])
    return np.where(np.isnan(c_n), ca_ca < MAX_CA_CA, c_n < MAX_C_N)


def check_positions(chain: Backbone) -> None:
    """Check that positions are plausible for a protein in angstrom.

    Raises:
        BadItem: they are not.
    """
    if np.isinf(chain.positions).any() or np.isnan(chain.alphas).any():
        raise BadItem(chain.name, "a position that is not finite")
    ca_ca = np.sqrt((np.diff(chain.alphas.astype(np.float64), axis=0) ** 2).sum(axis=1))
    if (ca_ca < SAME_RESIDUE).any():
        i = int(ca_ca.argmin())
        raise BadItem(chain.name, f"CA of residues {i + 1} and {i + 2} are {ca_ca[i]:.2f} Å apart")
    n_ca = np.sqrt(((chain.positions[:, 0] - chain.alphas) ** 2).sum(axis=1))
    low, high = PLAUSIBLE_N_CA
    if not np.isnan(n_ca).all() and not low < np.nanmedian(n_ca) < high:
        raise BadItem(chain.name, f"the median N-CA bond is {np.nanmedian(n_ca):.3g} long; in "
                                  "proteins it is 1.46 in angstrom")  # fmt: skip


def select_chain(chains: list[Chain], label: str | None, file: str) -> Chain:
    """The chain of an ensemble: the only one, or the one with this label.

    Raises:
        BadItem: there are several and no label is given, or none has it.
    """
    known = listed(f"{chain.label or repr('')} ({len(chain.sequence)})" for chain in chains)
    matches = [chain for chain in chains if label in (None, chain.label)]
    if len(matches) != 1:
        setting = "domain.chain is not set" if label is None else f"domain.chain is {label!r}"
        raise BadItem(file, f"{setting}; the chains (residues) are {known}")
    return matches[0]
