"""Chains from files: which reader a file wants, and what is passed over."""

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
from jitkit.domains.proteins.chains import chains_of, check_places
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar, warn
from jitkit.utils.paths import located
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


BLANK = (".", "?", " ", "")  # no alternate location


def kind_of(path: Path) -> str:
    """What a file's name says it is, ``.gz`` aside."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def check_biotite() -> None:
    """Whether biotite is there to read structures with.

    Raises:
        DataError: it is not installed.
    """
    if find_spec("biotite") is None:
        raise DataError("proteins are read with biotite, which is not installed: pip install "
                        "'jitkit[proteins]'")  # fmt: skip


def read_atoms(path: Path, model: int | None = 1) -> Any:
    """A file's atoms as biotite's ``AtomArray``, or a stack of all models for None.

    Of alternate locations a residue has those of the highest occupancy.

    Raises:
        BadItem: the file cannot be read as what its name says it is.
    """
    atoms = all_atoms(path, model)
    if "altloc_id" not in atoms.get_annotation_categories():
        return atoms
    blank = np.isin(atoms.altloc_id, BLANK)
    if not blank.all():
        atoms = all_atoms(path, model, ["occupancy"])  # which few files need, and some lack
        atoms = atoms[..., blank | _likeliest(atoms)]
    return atoms


def all_atoms(path: Path, model: int | None = 1, fields: list[str] | None = None) -> Any:
    """The same with all alternate locations, as they stand in the file."""
    check_biotite()
    with _opened(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of elements that had to be guessed
        try:
            return READERS[kind_of(path)](file, model, fields or [])
        except Exception as error:  # a reader may fail in any way on a torn file
            raise BadItem(str(path), f"cannot be read: {_words(error)}") from error


def _likeliest(atoms: Any) -> Array:
    """Whether an atom is of the alternate of its residue that has the highest occupancy."""
    keys = (atoms.chain_id.tolist(), atoms.res_id.tolist(), atoms.ins_code.tolist())
    residues = list(zip(*keys, strict=True))
    best: dict[tuple[str, int, str], tuple[float, str]] = {}
    for key, label, share in zip(residues, atoms.altloc_id, atoms.occupancy, strict=True):
        if label not in BLANK and (key not in best or share > best[key][0]):
            best[key] = (float(share), label)
    chosen = [best.get(key, (0.0, ""))[1] for key in residues]
    return atoms.altloc_id == np.array(chosen)


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{text} ({type(error).__name__})" if text else type(error).__name__


@contextmanager
def _opened(path: Path) -> Any:
    binary = kind_of(path) == ".bcif"
    opens: Any = gzip.open if path.name.lower().endswith(".gz") else open
    mode, words = ("rb", {}) if binary else ("rt", {"encoding": "utf-8", "errors": "replace"})
    with opens(path, mode, **words) as file:
        yield file


def read_chains(section: ProteinsSection) -> tuple[list[Backbone], Array]:
    """All chains that a recipe names, and the group of each, which is held out as a whole.

    Raises:
        DataError: there are no files or no chains.
    """
    check_biotite()
    files = files_of(section)
    chains: list[Backbone] = []
    sources: list[int] = []
    bad: list[BadItem] = []
    with bar("reading structures", len(files), unit="files") as show:
        for done, file in enumerate(files, start=1):
            try:
                found = chains_in(file, section.min_length)
            except BadItem as error:
                bad.append(error)
            else:
                chains += found
                sources += [done] * len(found)
            show(done)
    if not chains:
        why = f"; the first: {bad[0]}" if bad else ""
        raise DataError(f"{section.path}: no chains of proteins{why}")
    if bad:
        warn(f"{len(bad)} of {len(files)} files are passed over; the first: {bad[0]}")
    return chains, groups_of(sources, [chain.sequence for chain in chains])


def chains_in(file: Path, min_length: int) -> list[Backbone]:
    """The chains of a file's first model that are long enough.

    Raises:
        BadItem: there are none, or the file cannot be read, or atoms lie where none can.
    """
    atoms = read_atoms(file)
    found = chains_of(atoms)
    long = [chain for chain in found if len(chain.sequence) >= min_length]
    if not long:
        most = max((len(chain.sequence) for chain in found), default=0)
        raise BadItem(str(file), f"no chain of at least {min_length} amino acids; the longest has "
                                 f"{most}")  # fmt: skip
    chains = [chain.backbone(atoms.coord, f"{file.name}:{chain.label}") for chain in long]
    for chain in chains:
        check_places(chain)
    return chains


def files_of(section: ProteinsSection) -> list[Path]:
    """The files that are read: one, or those of a folder that have a reader, in order.

    Raises:
        DataError: there are none.
    """
    if section.path is None:
        raise DataError("domain.path is missing: PDB, mmCIF or BinaryCIF, or a folder of these")
    path = located(section.path)
    known = ", ".join(READERS)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) in READERS)
        if not files:
            raise DataError(f"{path} holds no files of structures ({known}, also .gz)")
        return files
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; domain.path=PATH points elsewhere")
    if kind_of(path) not in READERS:
        raise DataError(f"{path}: structures are read from {known}, not {path.suffix!r}")
    return [path]


def groups_of(sources: list[int], sequences: list[str]) -> Array:
    """A number for each chain, equal for those that share a file or a sequence with one another,
    directly or through others, (chains,)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, files = np.unique(sources, return_inverse=True)
    _, own = np.unique(sequences, return_inverse=True)
    count = int(files.max()) + 1
    size = count + int(own.max()) + 1
    links = coo_array((np.ones(len(files)), (files, count + own)), shape=(size, size))
    return connected_components(links, directed=False)[1][files]
