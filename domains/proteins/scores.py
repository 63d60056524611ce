"""How chains compare with ideal geometry and with training chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domain import Metric, lower_is_better
from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.secondary import contents
from jitkit.domains.proteins.torsions import (
    ANGLES,
    LENGTHS,
    bond_angles,
    bond_lengths,
    ramachandran,
)
from jitkit.metrics.frechet import jensen_shannon
from jitkit.utils.types import Array

ChainSet = Sequence[Backbone]

TRANS = (3.7, 3.9)  # angstrom between CA of neighbours
RADII = np.array([1.55, 1.70, 1.70, 1.52])  # angstrom, N, CA, C, O (Bondi 1964)
OVERLAP, HYDROGEN_BOND = 0.4, 0.8  # angstrom that two atoms may overlap, and an N and an O
APART = 3  # places in the chain from which on residues can clash
BIN = 20  # degrees of a bin of torsions


def measures() -> dict[str, Metric]:
    """The measures of chains, by name."""
    return {
        "bond_length_error": lower_is_better(bond_length_error),
        "bond_angle_error": lower_is_better(bond_angle_error),
        "ca_distance": ca_distance,
        "clashes": lower_is_better(clashes),
        "ramachandran_divergence": lower_is_better(RamachandranDivergence()),
        "helix": helix,
        "strand": strand,
        "radius_of_gyration": radius_of_gyration,
    }


def _kept(chain: Backbone, name: str, found: Callable[[Backbone], Any]) -> Any:
    """What was found of a chain, once; scores are asked for again and again for intervals."""
    if name not in chain.kept:
        chain.kept[name] = found(chain)
    return chain.kept[name]


def _off(found: Mapping[str, Array], ideal: Mapping[str, float]) -> Array:
    """Sum of squares of differences from the ideal, and their number, (2,)."""
    off = np.concatenate([found[name] - ideal[name] for name in ideal])
    off = off[np.isfinite(off)]
    return np.array([(off**2).sum(), len(off)])


def _root(sums: Sequence[Array]) -> float:
    squares, count = np.sum(sums, axis=0)
    return float(np.sqrt(squares / count)) if count else float("nan")


def bond_length_error(samples: ChainSet, train: ChainSet) -> float:
    """Root mean square difference of bond lengths from `torsions.LENGTHS`, angstrom."""
    return _root([_kept(c, "lengths", lambda c: _off(bond_lengths(c), LENGTHS)) for c in samples])


def bond_angle_error(samples: ChainSet, train: ChainSet) -> float:
    """Root mean square difference of bond angles from `torsions.ANGLES`, degrees."""
    return _root([_kept(c, "angles", lambda c: _off(bond_angles(c), ANGLES)) for c in samples])


def neighbour_distances(chain: Backbone) -> Array:
    """Distances of CA of neighbours in the chain, angstrom."""
    apart = np.diff(chain.alphas.astype(np.float64), axis=0)[chain.bonded]
    return np.sqrt((apart**2).sum(axis=1))


def ca_distance(samples: ChainSet, train: ChainSet) -> float:
    """Share of neighbours whose CA are 3.7 to 3.9 angstrom apart, as over a trans peptide bond."""
    apart = np.concatenate([_kept(c, "neighbours", neighbour_distances) for c in samples])
    return float(((apart >= TRANS[0]) & (apart <= TRANS[1])).mean()) if len(apart) else np.nan


def clashes(samples: ChainSet, train: ChainSet) -> float:
    """Pairs of atoms that overlap, for each thousand atoms.

    Atoms of residues three or more places apart in the chain, nearer than the sum of their radii
    by more than 0.4 angstrom (MolProbity's limit), N and O, which may be bonded, by more than 0.8.
    """
    pairs, atoms = np.sum([_kept(c, "clashes", _clashing) for c in samples], axis=0)
    return float(1000 * pairs / atoms)


def _clashing(chain: Backbone) -> Array:
    from scipy.spatial import cKDTree

    there = np.isfinite(chain.positions).all(axis=2)
    residues, kinds = np.nonzero(there)
    places = chain.positions[there].astype(np.float64)
    pairs = cKDTree(places).query_pairs(2 * RADII.max() - OVERLAP, output_type="ndarray")
    i, j = pairs[:, 0], pairs[:, 1]
    apart = np.sqrt(((places[i] - places[j]) ** 2).sum(axis=1))
    may_bond = kinds[i] + kinds[j] == 3  # N is 0, O is 3
    may_bond &= (kinds[i] == 0) | (kinds[j] == 0)
    least = RADII[kinds[i]] + RADII[kinds[j]] - np.where(may_bond, HYDROGEN_BOND, OVERLAP)
    far = np.abs(chain.index[residues[i]] - chain.index[residues[j]]) >= APART
    return np.array([((apart < least) & far).sum(), len(places)])


class RamachandranDivergence:
    """Jensen-Shannon divergence of phi and psi from training chains, in bits; bins of 20 degrees.

    It is above zero for finite samples; compare it with that of as many held-out residues.
    """

    def __init__(self) -> None:
        self._last: tuple[ChainSet, Array] | None = None

    def __call__(self, samples: ChainSet, train: ChainSet) -> float:
        """The divergence; NaN where one side has no torsions."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, _counted(train))
        return jensen_shannon(_counted(samples), self._last[1])


def _counted(chains: ChainSet) -> Array:
    return np.sum([_kept(chain, "ramachandran", _histogram) for chain in chains], axis=0)


def _histogram(chain: Backbone) -> Array:
    """Residues in each bin of phi and psi, ((360 / BIN)²,)."""
    angles = np.stack(ramachandran(chain))
    angles = angles[:, np.isfinite(angles).all(axis=0)]
    across = 360 // BIN
    bins = ((angles + 180) // BIN).astype(int) % across
    return np.bincount(bins[0] * across + bins[1], minlength=across**2)


def helix(samples: ChainSet, train: ChainSet) -> float:
    """Mean share of residues in helices (P-SEA)."""
    return float(np.mean([_kept(c, "contents", contents)[0] for c in samples]))


def strand(samples: ChainSet, train: ChainSet) -> float:
    """Mean share of residues in strands (P-SEA)."""
    return float(np.mean([_kept(c, "contents", contents)[1] for c in samples]))


def gyration(chain: Backbone) -> float:
    """Root mean square distance of CA from their mean, angstrom."""
    about = chain.alphas - chain.alphas.mean(axis=0, dtype=np.float64)
    return float(np.sqrt((about**2).sum(axis=1).mean()))


def radius_of_gyration(samples: ChainSet, train: ChainSet) -> float:
    """Mean radius of gyration over 2.2 N^0.38 angstrom, that of a globular protein of N residues
    (Skolnick et al. 1997, J. Mol. Biol. 265:217)."""
    radii = [_kept(chain, "gyration", gyration) for chain in samples]
    globular = [2.2 * len(chain) ** 0.38 for chain in samples]
    return float(np.mean([r / g for r, g in zip(radii, globular, strict=True)]))
