"""Section ``domain`` of a recipe for the domain `molecules`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as Limit

from jitkit.sections import DomainSection, Positive


class MoleculesSection(DomainSection):
    """Section ``domain`` of a recipe: molecules in 3-D."""

    path: str | None = None
    """SDF, XYZ (also multi-molecule and extended), .npz, HDF5, QM9's CSV, or a folder of these;
    `package:NAME/FOLDER` is inside an installed Python package."""
    units: Literal["angstrom", "bohr", "nanometer"] | None = None
    """Unit of the positions; angstrom by default, after a check of nearest-neighbour distances."""
    hydrogens: Literal["explicit", "drop"] = "explicit"
    """Whether hydrogens are modelled as atoms, or dropped so that only heavy atoms remain."""
    num_atoms: bool = True
    """Condition on the number of atoms, in addition to the number of tokens."""
    composition: bool = False
    """Condition on the number of atoms of each element."""
    properties: list[str] = []
    """Properties to condition on, by their names in the file."""
    drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of compositions and properties dropped in training, as classifier-free guidance (CFG)
    needs."""
    rotate: bool = True
    """Augment training with random rotations."""
    element_scale: Positive = 0.25
    """Scale of the one-hot element channels relative to positions of unit variance."""
    held_out: Annotated[float, Limit(gt=0, lt=1)] = 0.1
    """Share of the molecules held out for validation, chosen with a fixed seed."""
