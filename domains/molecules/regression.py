"""A property from where the atoms are: ridge regression on simple descriptors, in closed form.

Extensive properties follow the counts of elements and of bonds; gaps and the like also which atoms
are close. The descriptors are counts of elements, of bonded pairs by order, of pairs in shells of
distance, and the same over the number of atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jitkit.domains.molecules.bonds import bond_orders
from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import DataError
from jitkit.utils.types import Array

SHELLS = np.array([0.0, 1.05, 1.15, 1.25, 1.35, 1.45, 1.6, 2.0, 2.4, 2.8, 3.4, 4.2, np.inf])
RIDGE = 1e-3  # of the mean square of a scaled descriptor


def regressor(molecules: Sequence[Molecule], name: str) -> Callable[[Molecule], float]:
    """What the property of a molecule is, as molecules that have it teach.

    Raises:
        DataError: none of them has it.
    """
    taught = [m for m in molecules if name in m.properties]
    if not taught:
        raise DataError(f"no training molecule has the property {name!r}")
    known = np.unique(np.concatenate([m.numbers for m in taught])).tolist()
    x = np.stack([descriptors(m, known) for m in taught])
    y = np.array([m.properties[name] for m in taught])
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std == 0] = 1.0
    scaled = (x - mean) / std
    square = scaled.T @ scaled / len(x) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(square, scaled.T @ (y - y.mean()) / len(x))

    def predict(molecule: Molecule) -> float:
        if predict not in molecule.kept:
            value = (descriptors(molecule, known) - mean) / std @ weights + y.mean()
            molecule.kept[predict] = float(value)
        return float(molecule.kept[predict])

    return predict


def descriptors(molecule: Molecule, known: Sequence[int]) -> Array:
    """Counts of elements, bonds and pairs in shells of distance, and the same for each atom."""
    kinds = (molecule.numbers[None] == np.array(known)[:, None]).astype(float)  # (E, N)
    orders = bond_orders(molecule)
    parts = [kinds.sum(axis=1)]
    first, second = np.triu_indices(len(known))
    for order in (1, 2, 3):
        table = kinds @ (orders == order) @ kinds.T  # (E, E)
        parts.append(table[first, second])
    apart = molecule.distances
    for low, high in zip(SHELLS[:-1], SHELLS[1:], strict=True):
        shell = (apart > low) & (apart <= high)
        np.fill_diagonal(shell, False)
        parts.append((kinds @ shell @ kinds.T)[first, second])
    counts = np.concatenate(parts)
    return np.concatenate((counts, counts / len(molecule)))
