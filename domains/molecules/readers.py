"""Molecules from files: which reader a file wants, which unit, and what is passed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from jitkit.domains.molecules.molecule import Molecule, PackedMolecules, joined, pack
from jitkit.domains.molecules.sdf import read_sdf
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.domains.molecules.tables import is_table, read_table
from jitkit.domains.molecules.tensors import read_tensors
from jitkit.domains.molecules.xyz import read_xyz
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar, warn
from jitkit.utils.paths import located
from jitkit.utils.types import Array

ANGSTROM = {"angstrom": 1.0, "bohr": 0.529177210903, "nanometer": 10.0}
USUAL = (0.6, 1.75)  # angstrom from an atom to its nearest, the median over any organic data
NEAREST = 0.3  # angstrom between two atoms, at least
SAME_PLACE = 0.005  # the same before the unit is known
LOOKED_AT = 500  # molecules whose distances tell the unit
PAIRS = 2_000_000  # of atoms whose distances are held at once

MoleculeReader = Callable[[Path, MoleculesSection], Iterator[PackedMolecules | BadItem]]


def _each(molecules: Iterator[Molecule | BadItem]) -> Iterator[PackedMolecules | BadItem]:
    good: list[Molecule] = []
    for molecule in molecules:
        if isinstance(molecule, BadItem):
            yield molecule
        else:
            good.append(molecule)
    if good:
        yield pack(good)


def _sdf(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield from _each(read_sdf(path, hydrogens=section.hydrogens == "explicit"))


def _xyz(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield from _each(read_xyz(path))


def _table(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    if is_table(path):
        yield from read_table(path)


def _tensors(path: Path, section: MoleculesSection) -> Iterator[PackedMolecules | BadItem]:
    yield read_tensors(path)


READERS: dict[str, MoleculeReader] = {
    ".sdf": _sdf, ".sd": _sdf, ".mol": _sdf, ".xyz": _xyz, ".extxyz": _xyz, ".csv": _table,
    ".npz": _tensors, ".h5": _tensors, ".hdf5": _tensors,
}  # fmt: skip


def read(section: MoleculesSection) -> PackedMolecules:
    """All molecules that a recipe names, in angstrom, those that cannot be read left out.

    Raises:
        DataError: there are no files or no molecules, or their unit is in doubt.
    """
    if section.path is None:
        raise DataError("domain.path is missing: SDF, XYZ, .npz, HDF5, QM9's CSV, or a folder of "
                        "these; domain.path=package:qm9pack/data is QM9")  # fmt: skip
    files = _files(located(section.path))
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
    molecules = _sound(joined(parts), SAME_PLACE, bad)
    molecules = _in_angstrom(molecules, section)
    if section.hydrogens == "drop":
        molecules = _without_hydrogens(molecules)
    molecules = _sound(molecules, NEAREST, bad)
    if not len(molecules):
        why = f"; the first: {bad[0]}" if bad else " in it"
        raise DataError(f"{section.path}: no molecules{why}")
    if bad:
        warn(f"{len(bad)} of {len(bad) + len(molecules)} molecules are passed over; the first: "
             f"{bad[0]}")  # fmt: skip
    return molecules


def _files(path: Path) -> list[Path]:
    """The files that are read: one, or those of a folder that have a reader, in order."""
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS)
        if not files:
            raise DataError(f"{path} holds no files of molecules ({known})")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; domain.path=PATH points elsewhere")
    if path.suffix.lower() not in READERS:
        raise DataError(f"{path}: molecules are read from {known}, not {path.suffix!r}")
    return [path]


def _in_angstrom(molecules: PackedMolecules, section: MoleculesSection) -> PackedMolecules:
    """Positions in angstrom; where no unit is given, the nearest distances must look like it."""
    if section.units is None and len(molecules):
        some = np.linspace(0, len(molecules) - 1, min(LOOKED_AT, len(molecules))).astype(int)
        apart = [_nearest(molecules[i]) for i in some if len(molecules[i]) > 1]
        usual = float(np.nanmedian(np.concatenate(apart))) if apart else 1.0
        if not USUAL[0] <= usual <= USUAL[1]:
            likely = min(ANGSTROM, key=lambda unit: abs(np.log(usual * ANGSTROM[unit] / 1.09)))
            raise DataError(
                f"{section.path}: from an atom to its nearest it is {usual:.3g}, which angstrom do "
                f"not give; say domain.units={likely} (or angstrom, if it is right so)"
            )
    return replace(molecules, positions=molecules.positions * ANGSTROM[section.units or "angstrom"])


def _nearest(molecule: Molecule) -> Array:
    """Distance of each atom to its nearest."""
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


def _sound(molecules: PackedMolecules, nearest: float, bad: list[BadItem]) -> PackedMolecules:
    """Molecules whose atoms lie at finite places, apart from one another; ``bad`` gets the rest."""
    least = _closest(molecules)
    sizes = molecules.sizes
    wrong = np.flatnonzero(~(least >= nearest) | (sizes == 0))
    for i in wrong.tolist():
        why = f"two of its atoms are {least[i]:.2g} apart"
        if not sizes[i]:
            why = "no atoms"
        elif np.isnan(least[i]):
            why = "a position that is no finite number"
        bad.append(BadItem(molecules.names[i], why))
    kept = np.setdiff1d(np.arange(len(molecules)), wrong)
    return molecules.take(kept) if len(wrong) else molecules


def _closest(molecules: PackedMolecules) -> Array:
    """The least distance of two atoms of each molecule; NaN where a position is not finite."""
    least = np.full(len(molecules), np.inf)
    sizes = molecules.sizes
    for size in np.unique(sizes[sizes > 0]).tolist():
        own = np.flatnonzero(sizes == size)
        for some in np.array_split(own, 1 + len(own) * size**2 // PAIRS):
            atoms = molecules.starts[some][:, None] + np.arange(size)
            places = molecules.positions[atoms]  # (molecules, size, 3)
            with np.errstate(invalid="ignore"):
                squares = ((places[:, :, None] - places[:, None]) ** 2).sum(axis=3)
            squares[:, range(size), range(size)] += np.inf
            least[some] = np.sqrt(squares.min(axis=(1, 2)))
            least[some[~np.isfinite(places).all(axis=(1, 2))]] = np.nan
    return least
