"""One chain as the adapter hands it about, and many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitkit.utils.types import Array


@dataclass(frozen=True, eq=False)
class Backbone:
    """N, CA, C and O of the residues of one chain.

    Attributes:
        positions: angstrom, (L, 4, 3) float32; NaN where an atom is missing. CA never is.
        sequence: L letters, X for an amino acid without one or that is not known.
        index: place of each residue in the chain, (L,) int64; it jumps where residues are missing.
        name: what it is called.
        piece_of: the chain that it is a piece of, and which residues.
    """

    positions: Array
    sequence: str
    index: Array
    name: str = ""
    piece_of: tuple[Backbone, slice] | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def alphas(self) -> Array:
        """Positions of CA, (L, 3)."""
        return self.positions[:, 1]

    @cached_property
    def bonded(self) -> Array:
        """Whether a residue is followed by its neighbour in the chain, (L - 1,) bool."""
        return np.diff(self.index) == 1

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What was found out about it and is asked for again."""
        return {}

    def piece(self, start: int, length: int) -> Backbone:
        """Some residues in a row."""
        own = slice(start, start + length)
        parts = self.positions[own], self.sequence[own], self.index[own]
        return Backbone(*parts, self.name, piece_of=(self, own))


@dataclass(frozen=True, eq=False)
class Chains(Sequence[Backbone]):
    """Chains of which a sample holds at most ``longest`` residues."""

    chains: Sequence[Backbone]
    longest: int

    @property
    def sizes(self) -> Array:
        """Residues of a sample of each, (chains,)."""
        return np.array([min(len(chain), self.longest) for chain in self.chains], np.int64)

    def __len__(self) -> int:
        return len(self.chains)

    def __getitem__(self, index: Any) -> Any:
        return self.chains[index]


@dataclass(frozen=True, eq=False)
class Frames(Sequence[Backbone]):
    """Conformations of one chain.

    Attributes:
        chain: the chain; its positions count for nothing.
        positions: angstrom, (frames, L, 4, 3) float32.
        names: of the frames.
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
        """Some of them."""
        return Frames(self.chain, self.positions[indices], [self.names[i] for i in indices])
