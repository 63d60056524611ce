"""Property prediction from atom positions: ridge regression on simple descriptors, closed form.

Descriptors are counts of elements, of bonded pairs by order and of pairs by distance shell, and all
of them divided by the number of atoms. Extensive properties depend on elements and bonds; HOMO-LUMO
gaps also on which atoms are close.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jitkit.domains.molecules.bonds import bond_orders
from jitkit.domains.molecules.molecule import Molecule
from jitkit.errors import DataError
from jitkit.utils.types import Array

SHELLS = np.array([0.0, 1.05, 1.15, 1.25, 1.35, 1.45, 1.6, 2.0, 2.4, 2.8, 3.4, 4.2, np.inf])
RIDGE = 1e-3  # relative to the mean square of a standardized descriptor


def fit_regressor(molecules: Sequence[Molecule], name: str) -> Callable[[Molecule], float]:
    """Fit a predictor of a property on the molecules that have it.

    Raises:
        DataError: no molecule has it.
    """
    train = [m for m in molecules if name in m.properties]
    if not train:
        raise DataError(f"no training molecule has the property {name!r}")
    elements = np.unique(np.concatenate([m.numbers for m in train])).tolist()
    x = np.stack([molecular_descriptors(m, elements) for m in train])
    y = np.array([m.properties[name] for m in train])
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std == 0] = 1.0
    scaled = (x - mean) / std
    square = scaled.T @ scaled / len(x) + RIDGE * np.eye(x.shape[1])
    weights = np.linalg.solve(square, scaled.T @ (y - y.mean()) / len(x))

    def predict(molecule: Molecule) -> float:
        if predict not in molecule.cache:
            value = (molecular_descriptors(molecule, elements) - mean) / std @ weights + y.mean()
            molecule.cache[predict] = float(value)
        return float(molecule.cache[predict])

    return predict


def molecular_descriptors(molecule: Molecule, elements: Sequence[int]) -> Array:
    """Counts of elements, bonds and pairs by distance shell, and the same per atom."""
    one_hot = (molecule.numbers[None] == np.array(elements)[:, None]).astype(float)  # (E, N)
    orders = bond_orders(molecule)
    parts = [one_hot.sum(axis=1)]
    first, second = np.triu_indices(len(elements))
    for order in (1, 2, 3):
        table = one_hot @ (orders == order) @ one_hot.T  # (E, E)
        parts.append(table[first, second])
    distances = molecule.distances
    for low, high in zip(SHELLS[:-1], SHELLS[1:], strict=True):
        shell = (distances > low) & (distances <= high)
        np.fill_diagonal(shell, False)
        parts.append((one_hot @ shell @ one_hot.T)[first, second])
    counts = np.concatenate(parts)
    return np.concatenate((counts, counts / len(molecule)))
