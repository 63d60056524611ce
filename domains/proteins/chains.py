"""From the atoms of a file to chains: which atoms are backbone, and what follows what.

Numbers of residues are labels that files give as they like. What follows what is told by distances:
a residue is bonded to the next where C and N are near, or CA and CA where one of these is missing.
Numbers say only how many residues are missing where there is no bond.
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

PEPTIDE, NEIGHBOURS = 2.0, 4.3  # angstrom, at most, from C to N and from CA to CA over a bond
SAME_PLACE = 1.5  # angstrom between CA of two readings of one residue
USUAL = (1.35, 1.6)  # angstrom from N to CA, the median
OXYGENS = ("OT1", "OC1", "O1", "OXT")  # names of O at the end of a chain, in force fields
PLACES = {name: i for i, name in enumerate(ATOMS)} | dict.fromkeys(OXYGENS, 3)


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain in a file.

    Attributes:
        label: as the file calls it.
        atoms: N, CA, C, O among the file's atoms, (L, 4) int64, -1 where missing.
        sequence: letters.
        index: place of each residue in the chain.
    """

    label: str
    atoms: Array
    sequence: str
    index: Array

    def backbone(self, positions: Array, name: str) -> Backbone:
        """The chain with the file's atoms at these places, (atoms, 3)."""
        own = np.where(self.atoms[..., None] >= 0, positions[self.atoms], np.nan)
        return Backbone(own.astype(np.float32), self.sequence, self.index, name)


ChainKey = tuple[int, str, str]  # number, insertion code, name


@dataclass
class _Run:
    """Residues of one chain as they are met."""

    label: str
    rows: dict[ChainKey, list[int]] = field(default_factory=dict)


def chains_of(atoms: Any) -> list[Chain]:
    """The chains of a biotite ``AtomArray``, in the file's order.

    An amino acid without CA is left out, and so seen as missing. One that is hetero and bonded to
    nothing is a ligand. Of two readings of one residue the first is taken.
    """
    found = [chain for run in _runs(atoms) for chain in _split(run, atoms)]
    counts: dict[str, int] = {}
    named = []
    for chain in found:
        counts[chain.label] = count = counts.get(chain.label, 0) + 1
        label = chain.label if count == 1 else f"{chain.label}/{count}"
        named.append(Chain(label, chain.atoms, chain.sequence, chain.index))
    return named


def _runs(atoms: Any) -> Iterator[_Run]:
    """Residues with backbone atoms, by chain; where atoms come twice, another chain begins."""
    run: _Run | None = None
    last: ChainKey | None = None
    wanted = np.flatnonzero(np.isin(atoms.atom_name, list(PLACES)))
    columns = (atoms.chain_id, atoms.res_id, atoms.ins_code, atoms.res_name, atoms.atom_name)
    rows = zip(wanted.tolist(), *(c[wanted].tolist() for c in columns), strict=True)
    for i, label, number, code, name, atom in rows:
        key, place = (number, code, name), PLACES[atom]
        known = run.rows.get(key) if run is not None and run.label == label else None
        again = known is not None and known[place] >= 0 and key != last
        if run is None or run.label != label or again:
            if run is not None:
                yield run
            run, known = _Run(label), None
        if known is None:
            known = run.rows[key] = [-1, -1, -1, -1]
        if known[place] < 0:
            known[place] = i
        last = key
    if run is not None:
        yield run


def _split(run: _Run, atoms: Any) -> Iterator[Chain]:
    """The chains of a run: one, or more where numbers start again without a bond."""
    kept = [(key, row) for key, row in run.rows.items() if _is_residue(key, row)]
    kept = _one_reading(kept, atoms.coord)
    if not kept:
        return
    rows = np.array([row for _, row in kept])
    numbers = np.array([key[0] for key, _ in kept])
    bonded = _bonded(rows, atoms.coord)
    alone = ~np.append(bonded, False) & ~np.insert(bonded, 0, False)
    stays = ~(alone & atoms.hetero[rows[:, 1]])
    rows, numbers = rows[stays], numbers[stays]
    letters = np.array([letter(key[2]) or "X" for key, _ in kept])[stays]
    bonded = _bonded(rows, atoms.coord)
    steps = np.where(bonded, 1, np.maximum(2, np.diff(numbers)))
    starts = np.flatnonzero(~bonded & (np.diff(numbers) < 0)) + 1
    for own in np.split(np.arange(len(rows)), starts):
        if len(own):
            index = np.concatenate(([0], np.cumsum(steps[own[:-1]])))
            yield Chain(run.label, rows[own], "".join(letters[own]), index.astype(np.int64))


def _is_residue(key: ChainKey, row: list[int]) -> bool:
    """Whether there is a CA, in an amino acid or in what has the rest of a backbone too."""
    return row[1] >= 0 and (letter(key[2]) is not None or min(row[:3]) >= 0)


def _one_reading(
    kept: list[tuple[ChainKey, list[int]]], coord: Array
) -> list[tuple[ChainKey, list[int]]]:
    """Without second readings of a place: another amino acid at the same number and place."""
    once: list[tuple[ChainKey, list[int]]] = []
    for key, row in kept:
        if once and once[-1][0][:2] == key[:2]:
            apart = coord[row[1]] - coord[once[-1][1][1]]
            if np.sqrt((apart**2).sum()) < SAME_PLACE:
                continue
        once.append((key, row))
    return once


def _bonded(rows: Array, coord: Array) -> Array:
    """Whether each residue is bonded to the next, (L - 1,) bool."""

    def apart(a: Array, b: Array) -> Array:
        known = (a >= 0) & (b >= 0)
        return np.where(known, np.sqrt(((coord[a] - coord[b]) ** 2).sum(axis=1)), np.nan)

    peptide = apart(rows[:-1, 2], rows[1:, 0])
    alphas = apart(rows[:-1, 1], rows[1:, 1])
    return np.where(np.isnan(peptide), alphas < NEIGHBOURS, peptide < PEPTIDE)


def check_places(chain: Backbone) -> None:
    """Whether atoms are at places where a protein in angstrom has them.

    Raises:
        BadItem: they are not.
    """
    if np.isinf(chain.positions).any() or np.isnan(chain.alphas).any():
        raise BadItem(chain.name, "a position that is no finite number")
    apart = np.sqrt((np.diff(chain.alphas.astype(np.float64), axis=0) ** 2).sum(axis=1))
    if (apart < SAME_PLACE).any():
        i = int(apart.argmin())
        raise BadItem(chain.name, f"CA of residues {i + 1} and {i + 2} are {apart[i]:.2f} Å apart")
    bonds = np.sqrt(((chain.positions[:, 0] - chain.alphas) ** 2).sum(axis=1))
    if not np.isnan(bonds).all() and not USUAL[0] < np.nanmedian(bonds) < USUAL[1]:
        raise BadItem(chain.name, f"from N to CA it is {np.nanmedian(bonds):.3g}, where a protein "
                                  "in angstrom has 1.46")  # fmt: skip


def chosen(chains: list[Chain], label: str | None, file: str) -> Chain:
    """The chain of an ensemble.

    Raises:
        BadItem: there are several and none is named, or none of that name.
    """
    known = listed(f"{chain.label or repr('')} ({len(chain.sequence)})" for chain in chains)
    own = [chain for chain in chains if label in (None, chain.label)]
    if len(own) != 1:
        asked = "domain.chain names none" if label is None else f"domain.chain is {label!r}"
        raise BadItem(file, f"{asked}, and the chains (residues) are {known}")
    return own[0]
