"""A protein backbone, and sequences of chains or conformations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitkit.protocols import HasSizes
from jitkit.utils.types import Array


@dataclass(frozen=True, eq=False)
class Backbone:
    """N, CA, C and O of the residues of one chain.

    Attributes:
        positions: angstrom, (L, 4, 3) float32; NaN where an atom is missing. CA never is.
        sequence: L one-letter codes, X for non-standard or unknown amino acids.
        index: position of each residue in the chain, (L,) int64; jumps where residues are missing.
        name: identifier in messages and files.
        segment_of: the chain that it is a segment of, and which residues.
    """

    positions: Array
    sequence: str
    index: Array
    name: str = ""
    segment_of: tuple[Backbone, slice] | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def alphas(self) -> Array:
        """Positions of CA, (L, 3)."""
        return self.positions[:, 1]

    @cached_property
    def bonded(self) -> Array:
        """Whether each residue is bonded to the next one in the array, (L - 1,) bool."""
        return np.diff(self.index) == 1

    @cached_property
    def cache(self) -> dict[Any, Any]:
        """Results computed for this chain."""
        return {}

    def segment(self, start: int, length: int) -> Backbone:
        """Consecutive residues."""
        residues = slice(start, start + length)
        parts = self.positions[residues], self.sequence[residues], self.index[residues]
        return Backbone(*parts, self.name, segment_of=(self, residues))


@dataclass(frozen=True, eq=False)
class Chains(HasSizes, Sequence[Backbone]):
    """Chains; a sample is cropped to at most ``max_length`` residues."""

    chains: Sequence[Backbone]
    max_length: int

    @cached_property
    def sizes(self) -> Array:
        """Residues of a sample of each chain, (chains,)."""
        return np.array([min(len(chain), self.max_length) for chain in self.chains], np.int64)

    def __len__(self) -> int:
        return len(self.chains)

    def __getitem__(self, index: Any) -> Any:
        return self.chains[index]


@dataclass(frozen=True, eq=False)
class Frames(Sequence[Backbone]):
    """Conformations of one chain.

    Attributes:
        chain: sequence and index; its positions are not used.
        positions: angstrom, (frames, L, 4, 3) float32.
        names: identifiers of the frames.
    """

    chain: Backbone
    positions: Array
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        return Backbone(self.positions[i], self.chain.sequence, self.chain.index, self.names[i])

    def take(self, indices: Array) -> Frames:
        """Frames at these indices."""
        return Frames(self.chain, self.positions[indices], [self.names[i] for i in indices])
