"""Section ``domain`` of a recipe for backbones of proteins."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as Limit
from pydantic import model_validator

from jitkit.errors import RecipeError
from jitkit.sections import Count, DomainSection


class ProteinsSection(DomainSection):
    """Section ``domain`` of a recipe for backbones of proteins."""

    path: str | None = None
    """PDB, mmCIF or BinaryCIF (also .gz), or a folder of these; for an ensemble one file (also
    GRO) with the atoms of the trajectory, or with many models. `package:NAME/FOLDER` lies inside an
    installed Python package."""
    task: Literal["structures", "ensemble"] = "structures"
    """Chains of many proteins, each turned anyhow; or one chain in many conformations, superposed
    on their mean."""
    trajectory: str | list[str] | None = None
    """DCD, XTC or TRR files of an ensemble; its models in `path` where not given."""
    stride: Count = 1
    """Every so many frames of a trajectory are taken."""
    chain: str | None = None
    """The chain of an ensemble, where there are several."""
    min_length: Annotated[int, Limit(ge=4)] = 30
    """Residues of the shortest chain that is taken."""
    max_length: Annotated[int, Limit(ge=4)] = 256
    """Residues of the longest sample; of a longer chain a piece is taken, at random in training.
    An ensemble is taken whole."""
    length: bool = True
    """Whether the model is told the number of residues, beside seeing it."""
    sequence: bool = False
    """Whether it is told the amino acid of each residue."""
    secondary_structure: bool = False
    """Whether it is told the shares of residues in helices and in strands."""
    drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of sequences and secondary structures hidden in training, which guidance needs."""
    rotate: bool = True
    """Turn each chain at random whenever it is read for training; never an ensemble."""
    held_out: Annotated[float, Limit(gt=0, lt=1)] = 0.1
    """Share that is held out, drawn once and for all: of an ensemble frames, else groups of files
    and chains of equal sequence."""

    @model_validator(mode="after")
    def _meant(self) -> ProteinsSection:
        if self.min_length > self.max_length:
            raise RecipeError(f"min_length {self.min_length} is above max_length {self.max_length}")
        if self.task == "ensemble" and (self.sequence or self.secondary_structure):
            raise RecipeError("an ensemble is one protein, so there is nothing to tell of it; take "
                              "out sequence and secondary_structure")  # fmt: skip
        for key in ("trajectory", "chain"):
            if self.task == "structures" and getattr(self, key) is not None:
                raise RecipeError(f"{key} belongs to task: ensemble, and the task is structures")
        return self
