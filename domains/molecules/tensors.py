"""Molecules as arrays in .npz and HDF5 files: padded to one size, or one after the other."""

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
"""What an array may be called."""


def read_tensors(path: Path) -> PackedMolecules:
    """Molecules of a file, in its own unit.

    ``positions`` is (molecules, atoms, 3) with ``numbers`` (molecules, atoms), 0 where a molecule
    has no more atoms, or (atoms,) for all alike; or (all atoms, 3) with ``numbers`` (all atoms,)
    and ``num_atoms`` (molecules,). Other arrays of numbers (molecules,) are properties.

    Raises:
        DataError: arrays that are missing or do not fit.
    """
    arrays = _arrays(path)
    found = {}
    for what, names in NAMES.items():
        name = next((name for name in names if name in arrays), None)
        if name is None and what in ("positions", "numbers"):
            raise DataError(f"{path} has no {what}: an array called {listed(names)}; it has "
                            f"{listed(arrays) or 'none'}")  # fmt: skip
        if name is not None:
            found[what] = arrays.pop(name)
    positions, numbers = found["positions"], found["numbers"]
    charges = found.get("charges", np.zeros(numbers.shape, np.int8))
    if positions.ndim == 3:
        numbers, charges = (np.broadcast_to(x, positions.shape[:2]) for x in (numbers, charges))
        there = numbers > 0
        sizes = there.sum(axis=1)
        positions, numbers, charges = positions[there], numbers[there], charges[there]
    else:
        sizes = found.get("sizes", np.array([len(numbers)])).astype(np.int64)
    if positions.shape != (len(numbers), 3) or sizes.sum() != len(numbers):
        raise DataError(f"{path}: positions {positions.shape}, numbers {numbers.shape} and "
                        f"{sizes.sum()} atoms in all do not fit")  # fmt: skip
    if len(numbers) and not (0 < numbers.min() and numbers.max() < len(SYMBOLS)):
        raise DataError(f"{path}: {numbers.min()} to {numbers.max()} are no atomic numbers")
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
    """Arrays of numbers by name."""
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
    found = {}
    for name, data in file.items():
        if getattr(getattr(data, "dtype", None), "kind", "") in "fiu" and hasattr(data, "shape"):
            found[name] = np.asarray(data)
    return found
