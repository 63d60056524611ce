"""Conformations of one chain, from a trajectory or from the models of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jitkit.domains.proteins.backbone import Frames
from jitkit.domains.proteins.chains import Chain, chains_of, check_places, chosen
from jitkit.domains.proteins.readers import all_atoms, check_biotite, files_of, read_atoms
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar
from jitkit.utils.paths import located
from jitkit.utils.types import Array

KINDS = (".dcd", ".xtc", ".trr")
FARTHEST = 5.0  # angstrom between CA of neighbours, in a chain that is whole


def read_frames(section: ProteinsSection) -> Frames:
    """The conformations that a recipe names, each chain whole, as it lies in its file.

    Raises:
        DataError: files are missing, do not go together or cannot be read; there are several
            chains and none is named; or a chain is torn.
    """
    check_biotite()
    files = files_of(section)
    if len(files) != 1:
        raise DataError(f"{section.path} has {len(files)} files; an ensemble wants one, with the "
                        "atoms of its trajectory or with many models")  # fmt: skip
    if section.trajectory is None:
        return _models(files[0], section)
    atoms = all_atoms(files[0])
    chain = chosen(chains_of(atoms), section.chain, str(files[0]))
    check_places(chain.backbone(atoms.coord, files[0].name))
    listed = [section.trajectory] if isinstance(section.trajectory, str) else section.trajectory
    parts, names = [], []
    with bar("reading trajectories", len(listed), unit="files") as show:
        for done, path in enumerate(map(located, listed), start=1):
            part = _frames(path, len(atoms), chain, section.stride)
            parts.append(part)
            names += [f"{path.name}:{i * section.stride}" for i in range(len(part))]
            show(done)
    return _checked(Frames(chain.backbone(atoms.coord, ""), np.concatenate(parts), names))


def _models(file: Path, section: ProteinsSection) -> Frames:
    stack = read_atoms(file, model=None)
    if len(stack) < 2:
        raise DataError(f"{file} has one model; give domain.trajectory, or a file of many models")
    chain = chosen(chains_of(stack[0]), section.chain, str(file))
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
    own = np.unique(chain.atoms[chain.atoms >= 0])
    try:
        reader = _reader(path)
        whole = reader.read(str(path), start=0, stop=1).get_coord()
        if whole.shape[1] != num_atoms:
            raise BadItem(str(path), f"{whole.shape[1]} atoms a frame, and the structure of "
                                     f"domain.path has {num_atoms}; they must be the same, in the "
                                     "same order")  # fmt: skip
        file = reader.read(str(path), step=stride, atom_i=own)
        coord, box = file.get_coord(), file.get_box()
    except BadItem:
        raise
    except Exception as error:  # a torn file fails in the reader's own ways
        raise BadItem(str(path), f"cannot be read: {error}") from error
    slots = np.searchsorted(own, chain.atoms)
    missing = chain.atoms < 0
    frames = coord[:, np.where(missing, 0, slots)]
    frames[:, missing] = np.nan
    return whole_chains(frames, box)


def _reader(path: Path) -> Any:
    from biotite.structure.io.dcd import DCDFile
    from biotite.structure.io.trr import TRRFile
    from biotite.structure.io.xtc import XTCFile

    return {".dcd": DCDFile, ".xtc": XTCFile, ".trr": TRRFile}[path.suffix.lower()]


def whole_chains(frames: Array, boxes: Array | None) -> Array:
    """Chains that a periodic box had torn, put together: each atom in the image that is nearest to
    the CA of its residue, each CA in the one nearest to the CA before.

    Args:
        frames: (frames, L, 4, 3).
        boxes: rows are the box's edges, (frames, 3, 3); None or no volume: as they are.
    """
    if boxes is None:
        return frames
    made = frames.astype(np.float64)
    for frame, box in zip(made, np.asarray(boxes, np.float64), strict=True):
        if not np.isfinite(box).all() or abs(np.linalg.det(box)) < 1e-6:
            continue
        inverse = np.linalg.inv(box)
        steps = np.diff(frame[:, 1], axis=0)
        shifts = np.cumsum(np.rint(steps @ inverse), axis=0)
        apart = frame - frame[:, 1:2]
        apart -= np.rint(np.nan_to_num(apart) @ inverse) @ box
        frame[1:, 1] -= shifts @ box
        frame[:] = frame[:, 1:2] + apart
    return made.astype(np.float32)


def _checked(frames: Frames) -> Frames:
    """Frames whose chain is in one piece.

    Raises:
        BadItem: one is not, or a position is no number, or atoms are others than their names say.
    """
    check_places(frames[0])
    alphas = frames.positions[:, :, 1]
    apart = np.sqrt((np.diff(alphas, axis=1) ** 2).sum(axis=2))[:, frames.chain.bonded]
    wrong = np.flatnonzero(~(apart.max(axis=1, initial=0) < FARTHEST))
    if len(wrong):
        i = int(wrong[0])
        raise BadItem(frames.names[i], f"neighbours in the chain are {apart[i].max():.3g} Å apart "
                      f"(CA to CA), in {len(wrong)} of {len(frames)} frames; is the order of atoms "
                      "that of domain.path, and is the molecule whole?")  # fmt: skip
    return frames
