"""How samples compare with molecules of the training set.

Shares of stable atoms and molecules are by the bond table of `bonds`; what is valid, unique and new
is by RDKit; distributions are compared by the Jensen-Shannon divergence in bits, 0 for equal ones
and 1 for those that have nothing in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domain import Metric, lower_is_better
from jitkit.domains.molecules.bonds import bond_orders, stable_atoms
from jitkit.domains.molecules.chemistry import check_rdkit, has_rdkit, smiles, written_smiles
from jitkit.domains.molecules.molecule import Molecule, PackedMolecules
from jitkit.domains.molecules.regression import regressor
from jitkit.metrics.frechet import jensen_shannon
from jitkit.utils.types import Array

MoleculeSet = Sequence[Molecule]
KnownMolecules = Callable[[Molecule], bool]

LENGTH, ANGLE = 0.02, 3.0  # angstrom and degrees of a bin


def measures(properties: Sequence[str], is_known: KnownMolecules) -> Mapping[str, Metric]:
    """The measures, by name; those that need RDKit only where it is installed.

    Args:
        properties: what the model is told, each of which gets an error.
        is_known: whether a molecule is one of the training split.
    """
    made: dict[str, Metric] = {"atom_stability": atom_stability}
    made["molecule_stability"] = molecule_stability
    if has_rdkit():
        made |= {"validity": validity, "valid_and_unique": valid_and_unique}
        made["novelty"] = lambda samples, train: novelty(samples, is_known)
    for name, places in HISTOGRAMS.items():
        made[f"{name}_divergence"] = lower_is_better(Divergence(places))
    for name in properties:
        made[f"{name}_error"] = lower_is_better(PropertyError(name))
    return made


def atom_stability(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of atoms whose number of bonds suits their element (arXiv:2203.17003)."""
    return float(np.concatenate([stable_atoms(m) for m in samples]).mean())


def molecule_stability(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of molecules all of whose atoms are stable."""
    return float(np.mean([stable_atoms(m).all() for m in samples]))


def validity(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of molecules to which RDKit gives bonds that hold them together in one piece."""
    check_rdkit("validity")
    return float(np.mean([smiles(m) is not None for m in samples]))


def valid_and_unique(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Different valid molecules (by SMILES without stereochemistry) over all samples.

    It falls as samples grow more, since equal ones meet; compare at equal numbers.
    """
    return len({smiles(m) for m in samples} - {None}) / len(samples)


def novelty(samples: MoleculeSet, is_known: KnownMolecules) -> float:
    """Share of the different valid molecules that are not in the training split."""
    different = {smiles(m): m for m in samples if smiles(m) is not None}
    if not different:
        return float("nan")
    return float(np.mean([not is_known(m) for m in different.values()]))


class Catalogue:
    """The molecules of the training split, by composition; SMILES are made as they are needed.

    A sample is compared with the molecules of its own composition alone, so that most of a large
    training set is never looked at by RDKit.
    """

    def __init__(self, molecules: PackedMolecules, elements: Sequence[int]) -> None:
        self._molecules, self._elements = molecules, elements
        self._of: dict[bytes, list[int]] = {}
        for i, row in enumerate(np.ascontiguousarray(molecules.counts(elements), np.int32)):
            self._of.setdefault(row.tobytes(), []).append(i)
        self._names: dict[bytes, set[str | None]] = {}

    def has(self, molecule: Molecule) -> bool:
        """Whether a valid molecule is one of them."""
        key = np.array(molecule.counts(self._elements), np.int32).tobytes()
        if key not in self._names:
            own = (self._molecules[i] for i in self._of.get(key, ()))
            self._names[key] = {written_smiles(m) for m in own}
        return smiles(molecule) in self._names[key]


# Each gives places in a histogram as words, since no two sets of elements have the same places.
def lengths(molecule: Molecule) -> list[Any]:
    """Bonded pairs of elements and their distance, in bins of 0.02 angstrom."""
    orders = bond_orders(molecule)
    i, j = np.nonzero(np.triu(orders))
    bins = (molecule.distances[i, j] / LENGTH).astype(int)
    pairs = np.sort(np.stack((molecule.numbers[i], molecule.numbers[j])), axis=0)
    return list(zip(*pairs.tolist(), bins.tolist(), strict=True))


def angles(molecule: Molecule) -> list[Any]:
    """The element in the middle of two bonds and their angle, in bins of 3 degrees."""
    bonded = bond_orders(molecule) > 0
    found = []
    for centre in range(len(molecule)):
        ends = np.flatnonzero(bonded[centre])
        arms = molecule.positions[ends] - molecule.positions[centre]
        arms = arms / np.sqrt((arms**2).sum(axis=1, keepdims=True))
        cosines = (arms @ arms.T)[np.triu_indices(len(ends), 1)]
        bins = (np.degrees(np.arccos(cosines.clip(-1, 1))) / ANGLE).astype(int)
        found += [(int(molecule.numbers[centre]), b) for b in bins.tolist()]
    return found


def elements(molecule: Molecule) -> list[Any]:
    """Its elements."""
    return molecule.numbers.tolist()


def size(molecule: Molecule) -> list[Any]:
    """How many atoms it has."""
    return [len(molecule)]


HISTOGRAMS: dict[str, Callable[[Molecule], list[Any]]] = {
    "bond_length": lengths,
    "angle": angles,
    "element": elements,
    "size": size,
}


class Divergence:
    """Jensen-Shannon divergence of a histogram of samples and of training molecules, in bits."""

    def __init__(self, places: Callable[[Molecule], list[Any]]) -> None:
        self._places = places
        self._numbers: dict[Any, int] = {}
        self._last: tuple[MoleculeSet, Array] | None = None

    def __call__(self, samples: MoleculeSet, train: MoleculeSet) -> float:
        """The divergence; NaN where one side has nothing to count."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, self._counted(train))
        counted = [self._counted(samples), self._last[1]]
        length = max(len(each) for each in counted)
        p, q = (np.pad(each, (0, length - len(each))) for each in counted)
        return jensen_shannon(p, q)

    def _counted(self, molecules: MoleculeSet) -> Array:
        numbers = [self._numbered(molecule) for molecule in molecules]
        return np.bincount(np.concatenate([np.empty(0, np.int64), *numbers]))

    def _numbered(self, molecule: Molecule) -> Array:
        """Its places as numbers, which are given out as places are first met."""
        if self not in molecule.kept:
            found = self._places(molecule)
            numbers = [self._numbers.setdefault(p, len(self._numbers)) for p in found]
            molecule.kept[self] = np.array(numbers, np.int64)
        return molecule.kept[self]


class PropertyError:
    """Mean distance of a property from what was asked for, in its unit, as a regressor sees it.

    The regressor learned it on training molecules (`regression`); the score of held-out molecules,
    whose own values are known, is the regressor's own error, below which no model can be seen.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[MoleculeSet, Callable[[Molecule], float]] | None = None

    def __call__(self, samples: MoleculeSet, train: MoleculeSet) -> float:
        """The error; NaN where no sample was told the property."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, regressor(train, self._name))
        asked = [m for m in samples if self._name in m.properties]
        if not asked:
            return float("nan")
        off = [abs(self._last[1](m) - m.properties[self._name]) for m in asked]
        return float(np.mean(off))
