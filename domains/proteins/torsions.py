"""Bond lengths, bond angles and torsions (phi, psi) of a backbone."""

from __future__ import annotations

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.utils.types import Array

# Engh & Huber 2001, International Tables for Crystallography F, table 18.3.2.3, also for O
LENGTHS = {"N-CA": 1.459, "CA-C": 1.525, "C-O": 1.229, "C-N": 1.336}  # angstrom
ANGLES = {"N-CA-C": 111.0, "CA-C-O": 120.1, "CA-C-N": 117.2, "O-C-N": 122.7, "C-N-CA": 121.7}


def _atoms(chain: Backbone) -> dict[str, Array]:
    """Positions by atom, (L, 3) float64; ``+`` marks the next residue, NaN without a bond."""
    positions = chain.positions.astype(np.float64)
    following = np.full_like(positions, np.nan)
    following[:-1][chain.bonded] = positions[1:][chain.bonded]
    names = ("N", "CA", "C", "O")
    atoms = {name: positions[:, i] for i, name in enumerate(names)}
    return atoms | {f"+{name}": following[:, i] for i, name in enumerate(names)}


def bond_lengths(chain: Backbone) -> dict[str, Array]:
    """Bond lengths by the names of `LENGTHS`, angstrom, (L,); NaN where an atom is missing."""
    at = _atoms(chain)
    ends = {"N-CA": ("N", "CA"), "CA-C": ("CA", "C"), "C-O": ("C", "O"), "C-N": ("C", "+N")}
    return {name: _norm(at[a] - at[b]) for name, (a, b) in ends.items()}


def bond_angles(chain: Backbone) -> dict[str, Array]:
    """Bond angles by the names of `ANGLES`, degrees, (L,); NaN where an atom is missing."""
    at = _atoms(chain)
    triples = {
        "N-CA-C": ("N", "CA", "C"), "CA-C-O": ("CA", "C", "O"), "CA-C-N": ("CA", "C", "+N"),
        "O-C-N": ("O", "C", "+N"), "C-N-CA": ("C", "+N", "+CA"),
    }  # fmt: skip
    return {name: _angle(*(at[atom] for atom in atoms)) for name, atoms in triples.items()}


def ramachandran(chain: Backbone) -> tuple[Array, Array]:
    """Torsions phi and psi, degrees, (L,) each; NaN at ends and where an atom is missing."""
    at = _atoms(chain)
    psi = dihedral(at["N"], at["CA"], at["C"], at["+N"])
    next_phi = dihedral(at["C"], at["+N"], at["+CA"], at["+C"])  # of the next residue
    return np.concatenate(([np.nan], next_phi[:-1])), psi


def dihedral(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Dihedral angle a-b-c-d, degrees from -180 to 180 (IUPAC sign convention), (N,).

    >>> a, b, c, d = np.eye(3)[[0]], np.zeros((1, 3)), np.eye(3)[[2]], np.array([[0.0, 1, 1]])
    >>> float(dihedral(a, b, c, d)[0])
    90.0
    """
    before, axis, after = b - a, c - b, d - c
    left, right = np.cross(before, axis), np.cross(axis, after)
    sine = _norm(axis) * (before * right).sum(axis=1)
    return np.degrees(np.arctan2(sine, (left * right).sum(axis=1)))


def _norm(vectors: Array) -> Array:
    return np.sqrt((vectors**2).sum(axis=-1))


def _angle(a: Array, b: Array, c: Array) -> Array:
    u, v = a - b, c - b
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (u * v).sum(axis=1) / (_norm(u) * _norm(v))
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
