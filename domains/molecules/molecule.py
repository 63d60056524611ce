"""One molecule as the adapter hands it about, and many of them packed in arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np

from jitkit.domains.molecules.elements import SYMBOLS
from jitkit.utils.types import Array


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms in space.

    Attributes:
        numbers: atomic numbers, (N,) int64.
        positions: angstrom, (N, 3) float64.
        charges: formal charges, (N,) int64.
        properties: numbers that belong to the molecule, by name, in the file's own units; of a
            sample, those that were asked for.
        smiles: as the file has it; None where it has none.
        name: what it is called.
    """

    numbers: Array
    positions: Array
    charges: Array
    properties: Mapping[str, float] = field(default_factory=dict)
    smiles: str | None = None
    name: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def symbols(self) -> list[str]:
        """Symbols of the elements."""
        return [SYMBOLS[number] for number in self.numbers]

    def counts(self, elements: Sequence[int]) -> list[int]:
        """Atoms of each of some elements."""
        return [int((self.numbers == number).sum()) for number in elements]

    @cached_property
    def distances(self) -> Array:
        """Distances of all pairs of atoms, angstrom, (N, N)."""
        apart = self.positions[:, None] - self.positions[None]
        return np.sqrt((apart**2).sum(axis=2))

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What was found out about it and is asked for again."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedMolecules(Sequence[Molecule]):
    """Many molecules, one after the other in arrays.

    Attributes:
        starts: the first atom of each, and the end, (molecules + 1,) int64.
        numbers, positions, charges: of all atoms.
        properties: by name, (molecules,) float64, NaN where a molecule has none.
        smiles, names: of each molecule.
    """

    starts: Array
    numbers: Array
    positions: Array
    charges: Array
    properties: Mapping[str, Array]
    smiles: Sequence[str | None]
    names: Sequence[str]

    @property
    def sizes(self) -> Array:
        """Atoms of each, (molecules,)."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        own = slice(int(self.starts[i]), int(self.starts[i + 1]))
        properties = {name: float(values[i]) for name, values in self.properties.items()}
        return Molecule(
            self.numbers[own].astype(np.int64),
            self.positions[own].astype(np.float64),
            self.charges[own].astype(np.int64),
            {name: value for name, value in properties.items() if not isnan(value)},
            self.smiles[i],
            self.names[i],
        )

    def take(self, indices: Array) -> PackedMolecules:
        """Some of them, in an order of choice."""
        atoms = _joined([np.arange(self.starts[i], self.starts[i + 1]) for i in indices])
        sizes = self.sizes[indices]
        return PackedMolecules(
            np.concatenate(([0], np.cumsum(sizes))),
            self.numbers[atoms],
            self.positions[atoms],
            self.charges[atoms],
            {name: values[indices] for name, values in self.properties.items()},
            [self.smiles[i] for i in indices],
            [self.names[i] for i in indices],
        )

    def counts(self, elements: Sequence[int]) -> Array:
        """Atoms of each of some elements in every molecule, (molecules, elements)."""
        ends = np.stack([np.concatenate(([0], np.cumsum(self.numbers == e))) for e in elements], 1)
        return ends[self.starts[1:]] - ends[self.starts[:-1]]


def pack(molecules: Iterator[Molecule] | Sequence[Molecule]) -> PackedMolecules:
    """Molecules packed into arrays."""
    found = list(molecules)
    names = dict.fromkeys(name for molecule in found for name in molecule.properties)
    return PackedMolecules(
        np.concatenate(([0], np.cumsum([len(m) for m in found]))).astype(np.int64),
        _joined([m.numbers for m in found]).astype(np.uint8),
        np.concatenate([np.empty((0, 3)), *(m.positions for m in found)]).astype(np.float32),
        _joined([m.charges for m in found]).astype(np.int8),
        {name: np.array([m.properties.get(name, np.nan) for m in found]) for name in names},
        [m.smiles for m in found],
        [m.name for m in found],
    )


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *parts])


def joined(parts: Sequence[PackedMolecules]) -> PackedMolecules:
    """Molecules of several parts, one after the other; a property that one lacks is NaN there."""
    names = dict.fromkeys(name for part in parts for name in part.properties)
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    missing = {id(part): np.full(len(part), np.nan) for part in parts}
    return PackedMolecules(
        np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        np.concatenate([np.empty(0, np.uint8), *(part.numbers for part in parts)]),
        np.concatenate([np.empty((0, 3), np.float32), *(part.positions for part in parts)]),
        np.concatenate([np.empty(0, np.int8), *(part.charges for part in parts)]),
        {
            name: np.concatenate([p.properties.get(name, missing[id(p)]) for p in parts])
            for name in names
        },
        [smiles for part in parts for smiles in part.smiles],
        [name for part in parts for name in part.names],
    )
