"""Bond orders from distances, and stability of atoms: whether their valence is allowed.

Table and margins of the E(3) diffusion paper (Hoogeboom et al. 2022, arXiv:2203.17003, appendix E),
in picometres, from wiredchemist.com, so that stability is comparable. It is a heuristic: 99 % of
QM9's atoms and 95 % of its molecules are stable.
"""

from __future__ import annotations

import numpy as np

from jitkit.domains.molecules.elements import NUMBERS, SYMBOLS
from jitkit.domains.molecules.molecule import Molecule
from jitkit.utils.types import Array

_LENGTHS = (
    # single bonds
    "H-H 74 H-C 109 H-N 101 H-O 96 H-F 92 H-B 119 H-Si 148 H-P 144 H-As 152 H-S 134 H-Cl 127 "
    "H-Br 141 H-I 161 C-C 154 C-N 147 C-O 143 C-F 135 C-Si 185 C-P 184 C-S 182 C-Cl 177 C-Br 194 "
    "C-I 214 N-N 145 N-O 140 N-F 136 N-Cl 175 N-Br 214 N-S 168 N-I 222 N-P 177 O-O 148 O-F 142 "
    "O-Br 172 O-S 151 O-P 163 O-Si 163 O-Cl 164 O-I 194 F-F 142 F-S 158 F-Si 160 F-Cl 166 F-Br 178 "
    "F-P 156 F-I 187 B-Cl 175 Si-Si 233 Si-S 200 Si-Cl 202 Si-Br 215 Si-I 243 Cl-Cl 199 Cl-P 203 "
    "Cl-S 207 Cl-Br 214 S-S 204 S-Br 225 S-P 210 S-I 234 Br-Br 228 Br-P 222 P-P 221 I-I 266",
    # double
    "C-C 134 C-N 129 C-O 120 C-S 160 N-N 125 N-O 121 O-O 121 O-P 150 P-S 186",
    # triple
    "C-C 120 C-N 116 C-O 113 N-N 110",
)
_MARGINS = (10, 5, 3)

VALENCES: dict[int, tuple[int, ...]] = {
    NUMBERS[symbol]: valences
    for symbol, valences in {
        "H": (1,), "B": (3,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "Al": (3,), "Si": (4,),
        "P": (3, 5), "S": (4,), "Cl": (1,), "As": (3,), "Br": (1,), "I": (1,), "Hg": (1, 2),
        "Bi": (3, 5),
    }.items()
}  # fmt: skip
"""Allowed valences of a neutral atom, by atomic number, as in the paper."""


def _limits() -> Array:
    """Maximal lengths of single, double and triple bonds of two elements, (3, Z, Z) angstrom."""
    limits = np.full((3, len(SYMBOLS), len(SYMBOLS)), -np.inf)
    for k, (text, margin) in enumerate(zip(_LENGTHS, _MARGINS, strict=True)):
        words = text.split()
        for pair, length in zip(words[::2], words[1::2], strict=True):
            i, j = (NUMBERS[symbol] for symbol in pair.split("-"))
            limits[k, i, j] = limits[k, j, i] = (int(length) + margin) / 100
    return limits


_LIMITS = _limits()


def bond_orders(molecule: Molecule) -> Array:
    """Bond order of each pair of atoms, 0 for none, (N, N) int64."""
    pairs = _LIMITS[:, molecule.numbers[:, None], molecule.numbers[None]]
    short = molecule.distances < pairs  # (3, N, N)
    order: Array = (short[0] * (1 + short[1] * (1 + short[2]))).astype(np.int64)
    np.fill_diagonal(order, 0)
    return order


def stable_atoms(molecule: Molecule) -> Array:
    """Whether the valence of each atom is allowed for its element and charge, (N,) bool."""
    if "stable" not in molecule.cache:
        bonds = bond_orders(molecule).sum(axis=1).tolist()
        atoms = zip(molecule.numbers.tolist(), molecule.charges.tolist(), bonds, strict=True)
        molecule.cache["stable"] = np.array([n in _allowed(z, q) for z, q, n in atoms], bool)
    return molecule.cache["stable"]


def _allowed(number: int, charge: int) -> tuple[int, ...]:
    """Valences of a charged atom: reduced by each charge for H, C and Si, which have no lone pair;
    shifted by the signed charge for other elements."""
    valences = VALENCES.get(number, ())
    if not charge:
        return valences
    no_lone_pair = number in (1, 6, 14)
    return tuple(v - abs(charge) if no_lone_pair else v + charge for v in valences)
