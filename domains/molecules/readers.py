"""Read molecules from files: choice of reader, unit check, and skipping of invalid molecules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.molecule import (
    Molecule,
    PackedMolecules,
    concatenate_molecules,
    pack_molecules,
)
from jitkit.domains.molecules.sdf import read_sdf
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.domains.molecules.tables import is_table, read_table
from jitkit.domains.molecules.tensors import read_arrays
from jitkit.domains.molecules.xyz import read_xyz
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar, warn
from jitkit.utils.paths import resolve_path
from jitkit.utils.types import Array

ANGSTROM = {"angstrom": 1.0, "bohr": 0.529177210903, "nanometer": 10.0}
PLAUSIBLE = (0.6, 1.75)  # angstrom, median nearest-neighbour distance of any organic data
MIN_DISTANCE = 0.3  # angstrom between two atoms
MIN_DISTANCE_ANY_UNIT = 0.005  # before the unit is known
UNIT_SAMPLE = 500  # molecules whose distances are used to check the unit
MAX_PAIRS = 2_000_000  # pairs of atoms whose distances are in memory at once

MoleculeReader = Callable[[Path, MoleculesSection], Iterator[PackedMolecules | BadItem]]


def _pack_valid(molecules: Iterator[Molecule | BadItem]) -> Iterator[PackedMolecules | BadItem]:
    valid: list[Molecule] = []
    for molecule in molecules:
        if isinstance(molecule, BadItem):
            yield molecule
        else:
            valid.append(molecule)
    if valid:
        yield pack_molecules(valid)


def _sdf(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield from _pack_valid(read_sdf(path, hydrogens=section.hydrogens == "explicit"))


def _xyz(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield from _pack_valid(read_xyz(path))


def _table(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    if is_table(path):
        yield from read_table(path)


def _tensors(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield read_arrays(path)


READERS: dict[str, MoleculeReader] = {
    ".sdf": _sdf, ".sd": _sdf, ".mol": _sdf, ".xyz": _xyz, ".extxyz": _xyz, ".csv": _table,
    ".npz": _tensors, ".h5": _tensors, ".hdf5": _tensors,
}  # fmt: skip


def read_molecules(section: MoleculesSection) -> PackedMolecules:
    """All valid molecules of the files of a recipe, in angstrom.

    Raises:
        DataError: no files, no molecules, or a doubtful unit.
    """
    if section.path is None:
        raise DataError("domain.path is missing: SDF, XYZ, .npz, HDF5, QM9's CSV, or a folder of "
                        "these; domain.path=package:qm9pack/data is QM9")  # fmt: skip
    files = _files(resolve_path(section.path))
    parts: list[PackedMolecules] = []
    bad: list[BadItem] = []
    with bar("reading molecules", len(files), unit="files") as show:
        for done, file in enumerate(files, start=1):
            for part in READERS[file.suffix.lower()](file, section):
                if isinstance(part, BadItem):
                    bad.append(part)
                else:
                    parts.append(part)
            show(done)
    molecules = _drop_invalid(concatenate_molecules(parts), MIN_DISTANCE_ANY_UNIT, bad)
    molecules = _in_angstrom(molecules, section)
    if section.hydrogens == "drop":
        molecules = _without_hydrogens(molecules)
    molecules = _drop_invalid(molecules, MIN_DISTANCE, bad)
    if not len(molecules):
        why = f"; the first: {bad[0]}" if bad else " in it"
        raise DataError(f"{section.path}: no molecules{why}")
    if bad:
        warn(f"{len(bad)} of {len(bad) + len(molecules)} molecules are skipped; the first: "
             f"{bad[0]}")  # fmt: skip
    return molecules


def _files(path: Path) -> list[Path]:
    """One file, or all files of a folder that have a reader, sorted."""
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS)
        if not files:
            raise DataError(f"{path} has no molecule files ({known})")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; domain.path=PATH points elsewhere")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: molecules are read from {known}, not {path.suffix!r}")
    return [path]


def _in_angstrom(molecules: PackedMolecules, section: MoleculesSection) -> PackedMolecules:
    """Convert to angstrom; without a given unit, nearest-neighbour distances are checked."""
    if section.units is None and len(molecules):
        sample = np.linspace(0, len(molecules) - 1, min(UNIT_SAMPLE, len(molecules))).astype(int)
        distances = [_nearest(molecules[i]) for i in sample if len(molecules[i]) > 1]
        median = float(np.nanmedian(np.concatenate(distances))) if distances else 1.0
        if not PLAUSIBLE[0] <= median <= PLAUSIBLE[1]:
            likely = min(ANGSTROM, key=lambda unit: abs(np.log(median * ANGSTROM[unit] / 1.09)))
            raise DataError(
                f"{section.path}: the median distance from an atom to its nearest neighbour is "
                f"{median:.3g}, which is implausible in angstrom; set domain.units={likely} (or "
                f"angstrom, if this is correct)"
            )
    return replace(molecules, positions=molecules.positions * ANGSTROM[section.units or "angstrom"])


def _nearest(molecule: Molecule) -> Array:
    """Distance of each atom to its nearest neighbour."""
    return (molecule.distances + np.diag([np.inf] * len(molecule))).min(axis=1)


def _without_hydrogens(molecules: PackedMolecules) -> PackedMolecules:
    heavy = molecules.numbers != 1
    sizes = np.add.reduceat(heavy, molecules.starts[:-1]) if len(molecules) else molecules.sizes
    return replace(
        molecules,
        starts=np.concatenate(([0], np.cumsum(np.where(molecules.sizes > 0, sizes, 0)))),
        numbers=molecules.numbers[heavy],
        positions=molecules.positions[heavy],
        charges=molecules.charges[heavy],
    )


def _drop_invalid(
    molecules: PackedMolecules, min_distance: float, bad: list[BadItem]
) -> PackedMolecules:
    """Molecules with atoms at finite, distinct positions; the others are appended to ``bad``."""
    closest = _closest(molecules)
    sizes = molecules.sizes
    invalid = np.flatnonzero(~(closest >= min_distance) | (sizes == 0))
    for i in invalid.tolist():
        why = f"two of its atoms are {closest[i]:.2g} apart"
        if not sizes[i]:
            why = "no atoms"
        elif np.isnan(closest[i]):
            why = "a position that is not finite"
        bad.append(BadItem(molecules.names[i], why))
    valid = np.setdiff1d(np.arange(len(molecules)), invalid)
    return molecules.take(valid) if len(invalid) else molecules


def _closest(molecules: PackedMolecules) -> Array:
    """Minimal distance between two atoms of each molecule; NaN if a position is not finite."""
    closest = np.full(len(molecules), np.inf)
    sizes = molecules.sizes
    for size in np.unique(sizes[sizes > 0]).tolist():
        same_size = np.flatnonzero(sizes == size)
        for part in np.array_split(same_size, 1 + len(same_size) * size**2 // MAX_PAIRS):
            atoms = molecules.starts[part][:, None] + np.arange(size)
            positions = molecules.positions[atoms]  # (molecules, size, 3)
            with np.errstate(invalid="ignore"):
                squares = ((positions[:, :, None] - positions[:, None]) ** 2).sum(axis=3)
            squares[:, range(size), range(size)] += np.inf
            closest[part] = np.sqrt(squares.min(axis=(1, 2)))
            closest[part[~np.isfinite(positions).all(axis=(1, 2))]] = np.nan
    return closest
