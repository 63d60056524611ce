"""Metrics of molecules: stability, validity, uniqueness, novelty, divergences, property errors.

Stability uses the bond table of `bonds`; validity, uniqueness and novelty use RDKit; distributions
are compared with training molecules by the Jensen-Shannon divergence in bits, from 0 (equal) to 1
(disjoint).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domain import Metric, lower_is_better
from jitkit.domains.molecules.bonds import bond_orders, stable_atoms
from jitkit.domains.molecules.chemistry import (
    canonical_smiles,
    check_rdkit,
    has_rdkit,
    smiles_from_file,
)
from jitkit.domains.molecules.molecule import Molecule, PackedMolecules
from jitkit.domains.molecules.regression import fit_regressor
from jitkit.metrics.frechet import jensen_shannon
from jitkit.utils.types import Array

MoleculeSet = Sequence[Molecule]
KnownMolecules = Callable[[Molecule], bool]

LENGTH, ANGLE = 0.02, 3.0  # bin widths, angstrom and degrees


def molecule_metrics(properties: Sequence[str], is_known: KnownMolecules) -> Mapping[str, Metric]:
    """Metrics by name; those that need RDKit only if it is installed.

    Args:
        properties: properties that the model is conditioned on; each gets an error.
        is_known: whether a molecule is in the training split.
    """
    metrics: dict[str, Metric] = {"atom_stability": atom_stability}
    metrics["molecule_stability"] = molecule_stability
    if has_rdkit():
        metrics |= {"validity": validity, "valid_and_unique": valid_and_unique}
        metrics["novelty"] = lambda samples, train: novelty(samples, is_known)
    for name, bins_of in HISTOGRAMS.items():
        metrics[f"{name}_divergence"] = lower_is_better(Divergence(bins_of))
    for name in properties:
        metrics[f"{name}_error"] = lower_is_better(PropertyError(name))
    return metrics


def atom_stability(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of atoms with an allowed valence (arXiv:2203.17003)."""
    return float(np.concatenate([stable_atoms(m) for m in samples]).mean())


def molecule_stability(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of molecules in which all atoms are stable."""
    return float(np.mean([stable_atoms(m).all() for m in samples]))


def validity(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Share of molecules for which RDKit finds bonds that connect all atoms."""
    check_rdkit("validity")
    return float(np.mean([canonical_smiles(m) is not None for m in samples]))


def valid_and_unique(samples: MoleculeSet, train: MoleculeSet) -> float:
    """Distinct valid molecules (by SMILES without stereochemistry) divided by all samples.

    It decreases with the number of samples as duplicates appear; compare at equal numbers.
    """
    return len({canonical_smiles(m) for m in samples} - {None}) / len(samples)


def novelty(samples: MoleculeSet, is_known: KnownMolecules) -> float:
    """Share of the distinct valid molecules that are not in the training split."""
    distinct = {canonical_smiles(m): m for m in samples if canonical_smiles(m) is not None}
    if not distinct:
        return float("nan")
    return float(np.mean([not is_known(m) for m in distinct.values()]))


class Catalogue:
    """Lookup of training molecules by SMILES, which are computed when needed.

    A sample is compared only with molecules of the same composition, so RDKit processes a small
    part of a large training set.
    """

    def __init__(self, molecules: PackedMolecules, elements: Sequence[int]) -> None:
        self._molecules, self._elements = molecules, elements
        self._by_composition: dict[bytes, list[int]] = {}
        for i, row in enumerate(np.ascontiguousarray(molecules.counts(elements), np.int32)):
            self._by_composition.setdefault(row.tobytes(), []).append(i)
        self._smiles: dict[bytes, set[str | None]] = {}

    def has(self, molecule: Molecule) -> bool:
        """Whether a valid molecule is in the training split."""
        key = np.array(molecule.counts(self._elements), np.int32).tobytes()
        if key not in self._smiles:
            molecules = (self._molecules[i] for i in self._by_composition.get(key, ()))
            self._smiles[key] = {smiles_from_file(m) for m in molecules}
        return canonical_smiles(molecule) in self._smiles[key]


# Bins are hashable labels, not indices, because the bins depend on the elements in the data.
def bond_length_bins(molecule: Molecule) -> list[Any]:
    """Pair of elements and length of each bond, in bins of 0.02 angstrom."""
    orders = bond_orders(molecule)
    i, j = np.nonzero(np.triu(orders))
    bins = (molecule.distances[i, j] / LENGTH).astype(int)
    pairs = np.sort(np.stack((molecule.numbers[i], molecule.numbers[j])), axis=0)
    return list(zip(*pairs.tolist(), bins.tolist(), strict=True))


def angle_bins(molecule: Molecule) -> list[Any]:
    """Central element and angle of each pair of bonds, in bins of 3 degrees."""
    bonded = bond_orders(molecule) > 0
    angles = []
    for centre in range(len(molecule)):
        ends = np.flatnonzero(bonded[centre])
        arms = molecule.positions[ends] - molecule.positions[centre]
        arms = arms / np.sqrt((arms**2).sum(axis=1, keepdims=True))
        cosines = (arms @ arms.T)[np.triu_indices(len(ends), 1)]
        bins = (np.degrees(np.arccos(cosines.clip(-1, 1))) / ANGLE).astype(int)
        angles += [(int(molecule.numbers[centre]), b) for b in bins.tolist()]
    return angles


def element_bins(molecule: Molecule) -> list[Any]:
    """Element of each atom."""
    return molecule.numbers.tolist()


def size_bins(molecule: Molecule) -> list[Any]:
    """Number of atoms."""
    return [len(molecule)]


HISTOGRAMS: dict[str, Callable[[Molecule], list[Any]]] = {
    "bond_length": bond_length_bins,
    "angle": angle_bins,
    "element": element_bins,
    "size": size_bins,
}


class Divergence:
    """Jensen-Shannon divergence between histograms of samples and training molecules, in bits."""

    def __init__(self, bins_of: Callable[[Molecule], list[Any]]) -> None:
        self._bins_of = bins_of
        self._index: dict[Any, int] = {}
        self._last: tuple[MoleculeSet, Array] | None = None

    def __call__(self, samples: MoleculeSet, train: MoleculeSet) -> float:
        """The divergence; NaN if one histogram is empty."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, self._histogram(train))
        histograms = [self._histogram(samples), self._last[1]]
        length = max(len(each) for each in histograms)
        p, q = (np.pad(each, (0, length - len(each))) for each in histograms)
        return jensen_shannon(p, q)

    def _histogram(self, molecules: MoleculeSet) -> Array:
        indices = [self._bin_indices(molecule) for molecule in molecules]
        return np.bincount(np.concatenate([np.empty(0, np.int64), *indices]))

    def _bin_indices(self, molecule: Molecule) -> Array:
        """Indices of its bins, numbered in the order of first occurrence."""
        if self not in molecule.cache:
            bins = self._bins_of(molecule)
            indices = [self._index.setdefault(b, len(self._index)) for b in bins]
            molecule.cache[self] = np.array(indices, np.int64)
        return molecule.cache[self]


class PropertyError:
    """Mean absolute difference of predicted and requested property, in its unit.

    The predictor is fitted on training molecules (`regression`). The score of held-out molecules,
    whose true values are known, is the error of the predictor, a lower bound for models.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[MoleculeSet, Callable[[Molecule], float]] | None = None

    def __call__(self, samples: MoleculeSet, train: MoleculeSet) -> float:
        """The error; NaN if no sample was conditioned on the property."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, fit_regressor(train, self._name))
        conditioned = [m for m in samples if self._name in m.properties]
        if not conditioned:
            return float("nan")
        errors = [abs(self._last[1](m) - m.properties[self._name]) for m in conditioned]
        return float(np.mean(errors))
