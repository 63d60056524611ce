"""Section ``domain`` of a recipe for molecules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as Limit

from jitkit.sections import DomainSection, Positive


class MoleculesSection(DomainSection):
    """Section ``domain`` of a recipe for molecules in space."""

    path: str | None = None
    """SDF, XYZ (also several in one, also extended), .npz, HDF5, QM9's CSV, or a folder of these;
    `package:NAME/FOLDER` lies inside an installed Python package."""
    units: Literal["angstrom", "bohr", "nanometer"] | None = None
    """Unit of the positions; angstrom where not given, after a look at the nearest distances."""
    hydrogens: Literal["explicit", "drop"] = "explicit"
    """Whether hydrogens are atoms of a molecule; dropped, only heavy atoms are modelled."""
    num_atoms: bool = True
    """Whether the model is told the number of atoms, beside seeing it."""
    composition: bool = False
    """Whether it is told how many atoms there are of each element."""
    properties: list[str] = []
    """Numbers of the file that it is told, by their names there."""
    drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of compositions and properties hidden in training, which guidance needs."""
    rotate: bool = True
    """Turn each molecule at random whenever it is read for training."""
    element_scale: Positive = 0.25
    """What an atom's element counts for beside its position: the height of its one-hot channels."""
    held_out: Annotated[float, Limit(gt=0, lt=1)] = 0.1
    """Share of the molecules that is held out, drawn once and for all."""
