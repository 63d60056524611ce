"""Conformations of one chain from a trajectory (DCD, XTC, TRR) or the models of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jitkit.domains.proteins.backbone import Frames
from jitkit.domains.proteins.chains import Chain, chains_of, check_positions, select_chain
from jitkit.domains.proteins.readers import all_atoms, check_biotite, files_of, read_atoms
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar
from jitkit.utils.paths import resolve_path
from jitkit.utils.types import Array

KINDS = (".dcd", ".xtc", ".trr")
MAX_CA_CA = 5.0  # angstrom between bonded residues of an unwrapped chain


def read_frames(section: ProteinsSection) -> Frames:
    """Conformations of a recipe, unwrapped from a periodic box, otherwise as in the file.

    Raises:
        DataError: files are missing, inconsistent or unreadable; there are several chains and none
            is chosen; or a chain is broken.
    """
    check_biotite()
    files = files_of(section)
    if len(files) != 1:
        raise DataError(f"{section.path} has {len(files)} files; an ensemble needs one, with the "
                        "atoms of its trajectory or with many models")  # fmt: skip
    if section.trajectory is None:
        return _models(files[0], section)
    atoms = all_atoms(files[0])
    chain = select_chain(chains_of(atoms), section.chain, str(files[0]))
    check_positions(chain.backbone(atoms.coord, files[0].name))
    paths = [section.trajectory] if isinstance(section.trajectory, str) else section.trajectory
    parts, names = [], []
    with bar("reading trajectories", len(paths), unit="files") as show:
        for done, path in enumerate(map(resolve_path, paths), start=1):
            part = _frames(path, len(atoms), chain, section.stride)
            parts.append(part)
            names += [f"{path.name}:{i * section.stride}" for i in range(len(part))]
            show(done)
    return _checked(Frames(chain.backbone(atoms.coord, ""), np.concatenate(parts), names))


def _models(file: Path, section: ProteinsSection) -> Frames:
    stack = read_atoms(file, model=None)
    if len(stack) < 2:
        raise DataError(f"{file} has one model; give domain.trajectory, or a file of many models")
    chain = select_chain(chains_of(stack[0]), section.chain, str(file))
    positions = np.stack([chain.backbone(coord, "").positions for coord in stack.coord])
    names = [f"{file.name}:{i}" for i in range(0, len(stack), section.stride)]
    frame = chain.backbone(stack.coord[0], "")
    return _checked(Frames(frame, positions[:: section.stride], names))


def _frames(path: Path, num_atoms: int, chain: Chain, stride: int) -> Array:
    """Backbones of a trajectory's frames, (frames, L, 4, 3) float32 angstrom."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; domain.trajectory=PATH points elsewhere")
    if path.suffix.lower() not in KINDS:
        raise DataError(f"{path}: trajectories are read from {', '.join(KINDS)}")
    atoms = np.unique(chain.atoms[chain.atoms >= 0])
    try:
        reader = _reader(path)
        first = reader.read(str(path), start=0, stop=1).get_coord()
        if first.shape[1] != num_atoms:
            raise BadItem(str(path), f"{first.shape[1]} atoms per frame, and the structure of "
                                     f"domain.path has {num_atoms}; they must be the same, in the "
                                     "same order")  # fmt: skip
        file = reader.read(str(path), step=stride, atom_i=atoms)
        coord, box = file.get_coord(), file.get_box()
    except BadItem:
        raise
    except Exception as error:  # readers may raise anything on a corrupt file
        raise BadItem(str(path), f"cannot be read: {error}") from error
    columns = np.searchsorted(atoms, chain.atoms)
    missing = chain.atoms < 0
    frames = coord[:, np.where(missing, 0, columns)]
    frames[:, missing] = np.nan
    return unwrap_chains(frames, box)


def _reader(path: Path) -> Any:
    from biotite.structure.io.dcd import DCDFile
    from biotite.structure.io.trr import TRRFile
    from biotite.structure.io.xtc import XTCFile

    return {".dcd": DCDFile, ".xtc": XTCFile, ".trr": TRRFile}[path.suffix.lower()]


def unwrap_chains(frames: Array, boxes: Array | None) -> Array:
    """Unwrap chains that are split by a periodic box: each atom is moved to the image nearest to
    the CA of its residue, each CA to the image nearest to the previous CA.

    Args:
        frames: (frames, L, 4, 3).
        boxes: rows are the box vectors, (frames, 3, 3); frames are unchanged for None or zero
            volume.
    """
    if boxes is None:
        return frames
    unwrapped = frames.astype(np.float64)
    for frame, box in zip(unwrapped, np.asarray(boxes, np.float64), strict=True):
        if not np.isfinite(box).all() or abs(np.linalg.det(box)) < 1e-6:
            continue
        inverse = np.linalg.inv(box)
        steps = np.diff(frame[:, 1], axis=0)
        shifts = np.cumsum(np.rint(steps @ inverse), axis=0)
        from_ca = frame - frame[:, 1:2]
        from_ca -= np.rint(np.nan_to_num(from_ca) @ inverse) @ box
        frame[1:, 1] -= shifts @ box
        frame[:] = frame[:, 1:2] + from_ca
    return unwrapped.astype(np.float32)


def _checked(frames: Frames) -> Frames:
    """Frames after a check that the chain is connected in each.

    Raises:
        BadItem: it is not, a position is not finite, or atoms do not match their names.
    """
    check_positions(frames[0])
    alphas = frames.positions[:, :, 1]
    ca_ca = np.sqrt((np.diff(alphas, axis=1) ** 2).sum(axis=2))[:, frames.chain.bonded]
    broken = np.flatnonzero(~(ca_ca.max(axis=1, initial=0) < MAX_CA_CA))
    if len(broken):
        i = int(broken[0])
        raise BadItem(frames.names[i], f"bonded residues are {ca_ca[i].max():.3g} Å apart (CA to "
                      f"CA) in {len(broken)} of {len(frames)} frames; is the order of atoms that "
                      "of domain.path, and is the molecule unwrapped?")  # fmt: skip
    return frames
