"""Metrics of chains: bond geometry, clashes, Ramachandran divergence, secondary structure, size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domain import Metric, lower_is_better
from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.secondary import secondary_shares
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
OVERLAP, HYDROGEN_BOND = 0.4, 0.8  # angstrom, allowed overlap of two atoms, and of N and O
MIN_SEPARATION = 3  # residues along the chain between clashing atoms
BIN = 20  # bin width of torsions, degrees


def protein_metrics() -> dict[str, Metric]:
    """Metrics of chains by name."""
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


def _cached(chain: Backbone, name: str, compute: Callable[[Backbone], Any]) -> Any:
    """A cached result of a chain, because bootstrap intervals evaluate metrics again."""
    if name not in chain.cache:
        chain.cache[name] = compute(chain)
    return chain.cache[name]


def _squared_errors(values: Mapping[str, Array], ideal: Mapping[str, float]) -> Array:
    """Sum of squared differences from the ideal, and their number, (2,)."""
    errors = np.concatenate([values[name] - ideal[name] for name in ideal])
    errors = errors[np.isfinite(errors)]
    return np.array([(errors**2).sum(), len(errors)])


def _root_mean(sums: Sequence[Array]) -> float:
    squares, count = np.sum(sums, axis=0)
    return float(np.sqrt(squares / count)) if count else float("nan")


def bond_length_error(samples: ChainSet, train: ChainSet) -> float:
    """Root mean square difference of bond lengths from `torsions.LENGTHS`, angstrom."""

    def errors(chain: Backbone) -> Array:
        return _squared_errors(bond_lengths(chain), LENGTHS)

    return _root_mean([_cached(chain, "lengths", errors) for chain in samples])


def bond_angle_error(samples: ChainSet, train: ChainSet) -> float:
    """Root mean square difference of bond angles from `torsions.ANGLES`, degrees."""

    def errors(chain: Backbone) -> Array:
        return _squared_errors(bond_angles(chain), ANGLES)

    return _root_mean([_cached(chain, "angles", errors) for chain in samples])


def neighbour_distances(chain: Backbone) -> Array:
    """CA-CA distances of bonded residues, angstrom."""
    steps = np.diff(chain.alphas.astype(np.float64), axis=0)[chain.bonded]
    return np.sqrt((steps**2).sum(axis=1))


def ca_distance(samples: ChainSet, train: ChainSet) -> float:
    """Share of bonded residues with a CA-CA distance of 3.7 to 3.9 angstrom, as in a trans peptide
    bond."""
    distances = np.concatenate([_cached(c, "neighbours", neighbour_distances) for c in samples])
    is_trans = (distances >= TRANS[0]) & (distances <= TRANS[1])
    return float(is_trans.mean()) if len(distances) else np.nan


def clashes(samples: ChainSet, train: ChainSet) -> float:
    """Overlapping pairs of atoms per thousand atoms.

    Pairs are from residues at least three positions apart in the chain, and overlap if closer than
    the sum of their radii minus 0.4 angstrom (MolProbity's limit), or 0.8 for N and O, which may
    form hydrogen bonds.
    """
    pairs, atoms = np.sum([_cached(c, "clashes", _clashing) for c in samples], axis=0)
    return float(1000 * pairs / atoms)


def _clashing(chain: Backbone) -> Array:
    from scipy.spatial import cKDTree

    present = np.isfinite(chain.positions).all(axis=2)
    residues, kinds = np.nonzero(present)
    positions = chain.positions[present].astype(np.float64)
    pairs = cKDTree(positions).query_pairs(2 * RADII.max() - OVERLAP, output_type="ndarray")
    i, j = pairs[:, 0], pairs[:, 1]
    distances = np.sqrt(((positions[i] - positions[j]) ** 2).sum(axis=1))
    may_bond = kinds[i] + kinds[j] == 3  # N is 0, O is 3
    may_bond &= (kinds[i] == 0) | (kinds[j] == 0)
    limit = RADII[kinds[i]] + RADII[kinds[j]] - np.where(may_bond, HYDROGEN_BOND, OVERLAP)
    is_separate = np.abs(chain.index[residues[i]] - chain.index[residues[j]]) >= MIN_SEPARATION
    return np.array([((distances < limit) & is_separate).sum(), len(positions)])


class RamachandranDivergence:
    """Jensen-Shannon divergence of (phi, psi) from training chains, in bits; bins of 20 degrees.

    It is positive for finite samples; compare with an equal number of held-out residues.
    """

    def __init__(self) -> None:
        self._last: tuple[ChainSet, Array] | None = None

    def __call__(self, samples: ChainSet, train: ChainSet) -> float:
        """The divergence; NaN if samples or training chains have no torsions."""
        if self._last is None or self._last[0] is not train:
            self._last = (train, _total_histogram(train))
        return jensen_shannon(_total_histogram(samples), self._last[1])


def _total_histogram(chains: ChainSet) -> Array:
    return np.sum([_cached(chain, "ramachandran", _histogram) for chain in chains], axis=0)


def _histogram(chain: Backbone) -> Array:
    """Number of residues in each bin of (phi, psi), ((360 / BIN)²,)."""
    angles = np.stack(ramachandran(chain))
    angles = angles[:, np.isfinite(angles).all(axis=0)]
    num_bins = 360 // BIN
    bins = ((angles + 180) // BIN).astype(int) % num_bins
    return np.bincount(bins[0] * num_bins + bins[1], minlength=num_bins**2)


def helix(samples: ChainSet, train: ChainSet) -> float:
    """Mean share of residues in helices (P-SEA)."""
    return float(np.mean([_cached(c, "secondary shares", secondary_shares)[0] for c in samples]))


def strand(samples: ChainSet, train: ChainSet) -> float:
    """Mean share of residues in strands (P-SEA)."""
    return float(np.mean([_cached(c, "secondary shares", secondary_shares)[1] for c in samples]))


def gyration(chain: Backbone) -> float:
    """Radius of gyration of the CA atoms, angstrom."""
    centred = chain.alphas - chain.alphas.mean(axis=0, dtype=np.float64)
    return float(np.sqrt((centred**2).sum(axis=1).mean()))


def radius_of_gyration(samples: ChainSet, train: ChainSet) -> float:
    """Mean of radius of gyration divided by 2.2 N^0.38 angstrom, that of a globular protein of N
    residues (Skolnick et al. 1997, J. Mol. Biol. 265:217)."""
    radii = [_cached(chain, "gyration", gyration) for chain in samples]
    globular = [2.2 * len(chain) ** 0.38 for chain in samples]
    return float(np.mean([r / g for r, g in zip(radii, globular, strict=True)]))
