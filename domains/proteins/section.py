"""Section ``domain`` of a recipe for the domain `proteins`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field as Limit
from pydantic import model_validator

from jitkit.errors import RecipeError
from jitkit.sections import Count, DomainSection


class ProteinsSection(DomainSection):
    """Section ``domain`` of a recipe: protein backbones."""

    path: str | None = None
    """PDB, mmCIF or BinaryCIF (also .gz), or a folder of these; for an ensemble one file (also
    GRO) with the atoms of the trajectory, or with many models. `package:NAME/FOLDER` is inside an
    installed Python package."""
    task: Literal["structures", "ensemble"] = "structures"
    """Chains of many proteins in arbitrary orientation; or one chain in many conformations,
    superposed on their mean."""
    trajectory: str | list[str] | None = None
    """DCD, XTC or TRR files of an ensemble; by default the models in `path` are used."""
    stride: Count = 1
    """Use every n-th frame of a trajectory."""
    chain: str | None = None
    """Label of the chain of an ensemble, if the file has several."""
    min_length: Annotated[int, Limit(ge=4)] = 30
    """Minimal number of residues; shorter chains are skipped."""
    max_length: Annotated[int, Limit(ge=4)] = 256
    """Maximal number of residues; longer chains are cropped, at random in training. Not used for
    an ensemble."""
    length: bool = True
    """Condition on the number of residues, in addition to the number of tokens."""
    sequence: bool = False
    """Condition on the amino acid of each residue."""
    secondary_structure: bool = False
    """Condition on the shares of residues in helices and in strands."""
    drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of sequences and secondary structures dropped in training, as classifier-free guidance
    (CFG) needs."""
    rotate: bool = True
    """Augment training with random rotations; not used for an ensemble."""
    held_out: Annotated[float, Limit(gt=0, lt=1)] = 0.1
    """Share held out for validation, chosen with a fixed seed: frames of an ensemble, else groups
    of chains that share a file or a sequence."""

    @model_validator(mode="after")
    def _check(self) -> ProteinsSection:
        if self.min_length > self.max_length:
            raise RecipeError(f"min_length {self.min_length} is above max_length {self.max_length}")
        if self.task == "ensemble" and (self.sequence or self.secondary_structure):
            raise RecipeError("an ensemble is one protein, so there is nothing to condition on; "
                              "remove sequence and secondary_structure")  # fmt: skip
        for key in ("trajectory", "chain"):
            if self.task == "structures" and getattr(self, key) is not None:
                raise RecipeError(f"{key} belongs to task: ensemble, and the task is structures")
        return self
