"""A molecule, and many molecules packed into flat arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isnan
from typing import Any

import numpy as np

from jitkit.domains.molecules.elements import SYMBOLS
from jitkit.protocols import HasSizes
from jitkit.utils.types import Array


@dataclass(frozen=True, eq=False)
class Molecule:
    """Atoms in 3-D.

    Attributes:
        numbers: atomic numbers, (N,) int64.
        positions: angstrom, (N, 3) float64.
        charges: formal charges, (N,) int64.
        properties: scalar properties by name, in the units of the file; those requested for a
            sample.
        smiles: SMILES in the file; None if there is none.
        name: identifier in messages and files.
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
        """Element symbols of the atoms."""
        return [SYMBOLS[number] for number in self.numbers]

    def counts(self, elements: Sequence[int]) -> list[int]:
        """Number of atoms of each given element."""
        return [int((self.numbers == number).sum()) for number in elements]

    @cached_property
    def distances(self) -> Array:
        """Distances of all pairs of atoms, angstrom, (N, N)."""
        differences = self.positions[:, None] - self.positions[None]
        return np.sqrt((differences**2).sum(axis=2))

    @cached_property
    def cache(self) -> dict[Any, Any]:
        """Results computed for this molecule."""
        return {}


@dataclass(frozen=True, eq=False)
class PackedMolecules(HasSizes, Sequence[Molecule]):
    """Many molecules concatenated in flat arrays.

    Attributes:
        starts: first atom of each molecule, and the total, (molecules + 1,) int64.
        numbers, positions, charges: of all atoms.
        properties: by name, (molecules,) float64, NaN if missing.
        smiles, names: of each molecule.
    """

    starts: Array
    numbers: Array
    positions: Array
    charges: Array
    properties: Mapping[str, Array]
    smiles: Sequence[str | None]
    names: Sequence[str]

    @cached_property
    def sizes(self) -> Array:
        """Number of atoms of each molecule, (molecules,)."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        atoms = slice(int(self.starts[i]), int(self.starts[i + 1]))
        properties = {name: float(values[i]) for name, values in self.properties.items()}
        return Molecule(
            self.numbers[atoms].astype(np.int64),
            self.positions[atoms].astype(np.float64),
            self.charges[atoms].astype(np.int64),
            {name: value for name, value in properties.items() if not isnan(value)},
            self.smiles[i],
            self.names[i],
        )

    def take(self, indices: Array) -> PackedMolecules:
        """Molecules at these indices, in this order."""
        atoms = _concatenate([np.arange(self.starts[i], self.starts[i + 1]) for i in indices])
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
        """Number of atoms of each given element, (molecules, elements)."""
        ends = np.stack([np.concatenate(([0], np.cumsum(self.numbers == e))) for e in elements], 1)
        return ends[self.starts[1:]] - ends[self.starts[:-1]]


def pack_molecules(molecules: Iterator[Molecule] | Sequence[Molecule]) -> PackedMolecules:
    """Pack molecules into flat arrays."""
    items = list(molecules)
    names = dict.fromkeys(name for molecule in items for name in molecule.properties)
    return PackedMolecules(
        np.concatenate(([0], np.cumsum([len(m) for m in items]))).astype(np.int64),
        _concatenate([m.numbers for m in items]).astype(np.uint8),
        np.concatenate([np.empty((0, 3)), *(m.positions for m in items)]).astype(np.float32),
        _concatenate([m.charges for m in items]).astype(np.int8),
        {name: np.array([m.properties.get(name, np.nan) for m in items]) for name in names},
        [m.smiles for m in items],
        [m.name for m in items],
    )


def _concatenate(parts: Sequence[Array]) -> Array:
    return np.concatenate([np.empty(0, np.int64), *parts])


def concatenate_molecules(parts: Sequence[PackedMolecules]) -> PackedMolecules:
    """Concatenate packed molecules; a property missing in one part is NaN there."""
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
