"""Reader for arrays of molecules in .npz and HDF5: padded to one size, or concatenated."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.elements import SYMBOLS
from jitkit.domains.molecules.molecule import PackedMolecules
from jitkit.errors import DataError, listed
from jitkit.utils.types import Array

NAMES = {
    "positions": ("positions", "pos", "coordinates", "coords", "xyz", "R"),
    "numbers": ("numbers", "atomic_numbers", "species", "Z", "z"),
    "sizes": ("num_atoms", "n_atoms", "natoms", "N"),
    "charges": ("formal_charges", "formal_charge"),
}
"""Accepted names of each array."""


def read_arrays(path: Path) -> PackedMolecules:
    """Molecules of a file, in its unit.

    ``positions`` is (molecules, atoms, 3) with ``numbers`` (molecules, atoms), 0 for padding, or
    (atoms,) if all are alike; or (all atoms, 3) with ``numbers`` (all atoms,) and ``num_atoms``
    (molecules,). Other numeric arrays (molecules,) are properties.

    Raises:
        DataError: missing arrays or inconsistent shapes.
    """
    arrays = _arrays(path)
    known = {}
    for key, names in NAMES.items():
        name = next((name for name in names if name in arrays), None)
        if name is None and key in ("positions", "numbers"):
            raise DataError(f"{path} has no {key}: an array called {listed(names)}; it has "
                            f"{listed(arrays) or 'none'}")  # fmt: skip
        if name is not None:
            known[key] = arrays.pop(name)
    positions, numbers = known["positions"], known["numbers"]
    charges = known.get("charges", np.zeros(numbers.shape, np.int8))
    if positions.ndim == 3:
        numbers, charges = (np.broadcast_to(x, positions.shape[:2]) for x in (numbers, charges))
        present = numbers > 0
        sizes = present.sum(axis=1)
        positions, numbers, charges = positions[present], numbers[present], charges[present]
    else:
        sizes = known.get("sizes", np.array([len(numbers)])).astype(np.int64)
    if positions.shape != (len(numbers), 3) or sizes.sum() != len(numbers):
        raise DataError(f"{path}: positions {positions.shape}, numbers {numbers.shape} and "
                        f"{sizes.sum()} atoms in total do not match")  # fmt: skip
    if len(numbers) and not (0 < numbers.min() and numbers.max() < len(SYMBOLS)):
        raise DataError(f"{path}: {numbers.min()} to {numbers.max()} are not atomic numbers")
    properties = {k: v.astype(np.float64) for k, v in arrays.items() if v.shape == sizes.shape}
    return PackedMolecules(
        np.concatenate(([0], np.cumsum(sizes))),
        numbers.astype(np.uint8),
        positions.astype(np.float32),
        charges.astype(np.int8),
        properties,
        [None] * len(sizes),
        [f"{path.stem}:{i}" for i in range(len(sizes))],
    )


def _arrays(path: Path) -> dict[str, Array]:
    """Numeric arrays by name."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if file[name].dtype.kind in "fiu"}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} cannot be read as .npz: {error}") from None
    import h5py

    try:
        with h5py.File(path) as file:
            return _numeric(file)
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5: {error}") from None


def _numeric(file: Mapping[str, object]) -> dict[str, Array]:
    arrays = {}
    for name, data in file.items():
        if getattr(getattr(data, "dtype", None), "kind", "") in "fiu" and hasattr(data, "shape"):
            arrays[name] = np.asarray(data)
    return arrays
