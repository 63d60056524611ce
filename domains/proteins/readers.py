"""Read protein chains from PDB, mmCIF, BinaryCIF and GRO; invalid files are skipped."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.chains import chains_of, check_positions
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar, warn
from jitkit.utils.paths import resolve_path
from jitkit.utils.types import Array

ChainReader = Callable[[IO[Any], int | None, list[str]], Any]


def _pdb(file: IO[Any], model: int | None, fields: list[str]) -> Any:
    from biotite.structure.io.pdb import PDBFile

    return PDBFile.read(file).get_structure(model=model, altloc="all", extra_fields=fields)


def _cif(file: IO[Any], model: int | None, fields: list[str]) -> Any:
    from biotite.structure.io.pdbx import CIFFile, get_structure

    return get_structure(CIFFile.read(file), model=model, altloc="all", extra_fields=fields)


def _bcif(file: IO[Any], model: int | None, fields: list[str]) -> Any:
    from biotite.structure.io.pdbx import BinaryCIFFile, get_structure

    return get_structure(BinaryCIFFile.read(file), model=model, altloc="all", extra_fields=fields)


def _gro(file: IO[Any], model: int | None, fields: list[str]) -> Any:
    from biotite.structure.io.gro import GROFile

    return GROFile.read(file).get_structure(model=model)


READERS: dict[str, ChainReader] = {
    ".pdb": _pdb, ".ent": _pdb, ".cif": _cif, ".mmcif": _cif, ".bcif": _bcif, ".gro": _gro,
}  # fmt: skip


NO_ALTLOC = (".", "?", " ", "")


def kind_of(path: Path) -> str:
    """Lower-case suffix of a file name, without ``.gz``."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def check_biotite() -> None:
    """Check that biotite is installed.

    Raises:
        DataError: it is not installed.
    """
    if find_spec("biotite") is None:
        raise DataError("proteins are read with biotite, which is not installed: pip install "
                        "'jitkit[proteins]'")  # fmt: skip


def read_atoms(path: Path, model: int | None = 1) -> Any:
    """Atoms of a file as biotite's ``AtomArray``; a stack of all models for ``model=None``.

    Of alternate locations, each residue has those with the highest occupancy.

    Raises:
        BadItem: the file cannot be read in the format of its suffix.
    """
    atoms = all_atoms(path, model)
    if "altloc_id" not in atoms.get_annotation_categories():
        return atoms
    no_altloc = np.isin(atoms.altloc_id, NO_ALTLOC)
    if not no_altloc.all():
        atoms = all_atoms(path, model, ["occupancy"])  # missing in some files, rarely needed
        atoms = atoms[..., no_altloc | _has_highest_occupancy(atoms)]
    return atoms


def all_atoms(path: Path, model: int | None = 1, fields: list[str] | None = None) -> Any:
    """As `read_atoms`, with all alternate locations in file order."""
    check_biotite()
    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about guessed elements
        try:
            return READERS[kind_of(path)](file, model, fields or [])
        except Exception as error:  # readers may raise anything on a corrupt file
            raise BadItem(str(path), f"cannot be read: {_text_of(error)}") from error


def _has_highest_occupancy(atoms: Any) -> Array:
    """Whether each atom belongs to the alternate location of highest occupancy of its residue."""
    keys = (atoms.chain_id.tolist(), atoms.res_id.tolist(), atoms.ins_code.tolist())
    residues = list(zip(*keys, strict=True))
    best: dict[tuple[str, int, str], tuple[float, str]] = {}
    for key, label, occupancy in zip(residues, atoms.altloc_id, atoms.occupancy, strict=True):
        if label not in NO_ALTLOC and (key not in best or occupancy > best[key][0]):
            best[key] = (float(occupancy), label)
    labels = [best.get(key, (0.0, ""))[1] for key in residues]
    return atoms.altloc_id == np.array(labels)


def _text_of(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


@contextmanager
def _opened(path: Path) -> Any:
    binary = kind_of(path) == ".bcif"
    open_function: Any = gzip.open if path.name.lower().endswith(".gz") else open
    mode, options = ("rb", {}) if binary else ("rt", {"encoding": "utf-8", "errors": "replace"})
    with open_function(path, mode, **options) as file:
        yield file


def read_chains(section: ProteinsSection) -> tuple[list[Backbone], Array]:
    """All chains of the files of a recipe, and the group of each; groups are held out as a whole.

    Raises:
        DataError: no files or no chains.
    """
    check_biotite()
    files = files_of(section)
    chains: list[Backbone] = []
    sources: list[int] = []
    bad: list[BadItem] = []
    with bar("reading structures", len(files), unit="files") as show:
        for done, file in enumerate(files, start=1):
            try:
                in_file = chains_in(file, section.min_length)
            except BadItem as error:
                bad.append(error)
            else:
                chains += in_file
                sources += [done] * len(in_file)
            show(done)
    if not chains:
        why = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{section.path}: no protein chains{why}")
    if bad:
        warn(f"{len(bad)} of {len(files)} files are skipped; the first: {bad[0]}")
    return chains, groups_of(sources, [chain.sequence for chain in chains])


def chains_in(file: Path, min_length: int) -> list[Backbone]:
    """Chains of at least ``min_length`` residues in the first model of a file.

    Raises:
        BadItem: there are none, the file cannot be read, or positions are implausible.
    """
    atoms = read_atoms(file)
    all_chains = chains_of(atoms)
    long = [chain for chain in all_chains if len(chain.sequence) >= min_length]
    if not long:
        longest = max((len(chain.sequence) for chain in all_chains), default=0)
        raise BadItem(str(file), f"no chain of at least {min_length} amino acids; the longest has "
                                 f"{longest}")  # fmt: skip
    chains = [chain.backbone(atoms.coord, f"{file.name}:{chain.label}") for chain in long]
    for chain in chains:
        check_positions(chain)
    return chains


def files_of(section: ProteinsSection) -> list[Path]:
    """One file, or all files of a folder that have a reader, sorted.

    Raises:
        DataError: there are none.
    """
    if section.path is None:
        raise DataError("domain.path is missing: PDB, mmCIF or BinaryCIF, or a folder of these")
    path = resolve_path(section.path)
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) in READERS)
        if not files:
            raise DataError(f"{path} has no structure files ({known}, also .gz)")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; domain.path=PATH points elsewhere")
    if kind_of(path) not in READERS:
        raise DataError(f"{path}: structures are read from {known}, not {path.suffix!r}")
    return [path]


def groups_of(sources: list[int], sequences: list[str]) -> Array:
    """Group index of each chain, (chains,): connected components of chains that share a file or a
    sequence."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, files = np.unique(sources, return_inverse=True)
    _, unique = np.unique(sequences, return_inverse=True)
    num_files = int(files.max()) + 1
    size = num_files + int(unique.max()) + 1
    edges = coo_array((np.ones(len(files)), (files, num_files + unique)), shape=(size, size))
    return connected_components(edges, directed=False)[1][files]
