"""Domain `proteins`: backbones as a line of residues with four atoms each (N, CA, C, O)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.proteins.backbone import Backbone, Chains, Frames
from jitkit.domains.proteins.metadata import (
    centre_positions,
    crop_chain,
    decode_sequence,
    draw_chain_conditions,
    encode_sequence,
    ensemble_metadata,
    structures_metadata,
)
from jitkit.domains.proteins.residues import ATOMS, LETTERS
from jitkit.domains.proteins.secondary import KINDS, secondary_shares
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import ConditionError, DataError
from jitkit.fields import Axis, Condition, Field, Layout, PerToken, Scalars
from jitkit.protocols import VariableSize
from jitkit.sections import DomainSection
from jitkit.utils.rotations import random_rotation, superpose
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = tuple(f"{atom}.{axis}" for atom in ATOMS for axis in "xyz")
CENTRED = tuple(tuple(f"{atom}.{axis}" for atom in ATOMS) for axis in "xyz")


class Proteins(VariableSize):
    """N, CA, C and O of each residue, from PDB, mmCIF, BinaryCIF and trajectories.

    Positions and their noise have zero mean (`Layout.centred`). In task ``structures`` positions
    are divided by their root mean square. In task ``ensemble`` frames are superposed on the mean
    conformation; channels are displacements from it, divided by their root mean square. The layout
    is masked if atoms may be missing.
    """

    Section: ClassVar[type[DomainSection]] = ProteinsSection

    section: ProteinsSection

    @property
    def is_ensemble(self) -> bool:
        """Whether items are frames of one chain."""
        return self.section.task == "ensemble"

    def measure(self) -> dict[str, Any]:
        """Scales, reference of an ensemble, and lengths and conditions of training chains."""
        train, held_out = self._splits["train"], self._splits["val"]
        if isinstance(train, Frames):
            return ensemble_metadata(train)
        return structures_metadata(train, [*train, *held_out], self.section)

    @cached_property
    def _reference(self) -> Array:
        """Mean conformation of an ensemble, (L, 4, 3), angstrom."""
        return np.asarray(self.metadata()["reference"], np.float64)

    @cached_property
    def _observed(self) -> Array:
        """Atoms that an ensemble has, (L, 4)."""
        return np.asarray(self.metadata()["observed"]).astype(bool)

    @cached_property
    def layout(self) -> Layout:
        """A line of residues with positions of four atoms; masked if atoms may be missing."""
        if self.is_ensemble:
            most, missing = len(self._reference), not self._observed.all()
        else:
            most, missing = int(self.metadata()["most"]), bool(self.metadata()["missing"])
        return Layout((Axis("residue", most),), CHANNELS, bool(missing), CENTRED)

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """length, sequence, secondary_structure; none for an ensemble."""
        section, conditions = self.section, dict[str, Condition]()
        if self.is_ensemble:
            return conditions
        if section.length:
            conditions["length"] = Scalars(("length",), drop=0.0)
        if section.sequence:
            conditions["sequence"] = PerToken(len(LETTERS), drop=section.drop)
        if section.secondary_structure:
            conditions["secondary_structure"] = Scalars(KINDS, drop=section.drop)
        return conditions

    @cached_property
    def _splits(self) -> dict[str, Chains | Frames]:
        from jitkit.domains.proteins.readers import read_chains
        from jitkit.domains.proteins.trajectories import read_frames

        if self.is_ensemble:
            frames = read_frames(self.section)
            held_out = self._is_held_out(np.arange(len(frames)), "frames")
            return {"train": frames.take(np.flatnonzero(~held_out)),
                    "val": frames.take(np.flatnonzero(held_out))}  # fmt: skip
        chains, groups = read_chains(self.section)
        held_out = self._is_held_out(groups, "groups of files and equal sequences")
        longest = self.section.max_length
        train, val = ([c for c, out in zip(chains, held_out, strict=True) if bool(out) is which]
                      for which in (False, True))  # fmt: skip
        return {"train": Chains(train, longest), "val": Chains(val, longest)}

    def _is_held_out(self, groups: Array, what: str) -> Array:
        """Mask of the validation items: whole groups, about `held_out` of all groups."""
        names = np.unique(groups)
        count = round(self.section.held_out * len(names))
        if not 0 < count < len(names):
            raise DataError(
                f"{self.section.path}: {len(names)} {what} cannot be split with "
                f"domain.held_out={self.section.held_out}; use more data or another share"
            )
        order = np.random.default_rng(0).permutation(len(names))
        return np.isin(groups, names[order[:count]])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_splits"}

    def items(self, split: Split) -> Chains | Frames:
        """Chains or frames of a split, which is random with a fixed seed, in file order."""
        return self._splits[split]

    def encode(self, item: Backbone, rng: np.random.Generator | None = None) -> Field:
        """Centred and scaled positions; with ``rng`` randomly cropped and rotated."""
        import torch

        if not self.is_ensemble:
            item = crop_chain(item, self.section.max_length, rng)
        displacements = self._displacement(item) if self.is_ensemble else self._rotated(item, rng)
        values = (displacements / self.metadata()["scale"]).reshape(len(item), 12).T
        observed = torch.from_numpy(np.isfinite(values))
        return Field(
            torch.from_numpy(values.astype(np.float32)),
            observed if self.layout.missing else None,
            self._encode_cond(self._cond_of(item)),
            torch.from_numpy((item.index - item.index[0]).astype(np.float32))[:, None],
        )

    def _rotated(self, item: Backbone, rng: np.random.Generator | None) -> Array:
        positions = centre_positions(item.positions)
        if rng is None or not self.section.rotate:
            return positions
        return positions @ random_rotation(rng).T

    def _displacement(self, item: Backbone) -> Array:
        """Displacement of a superposed frame from the reference, (L, 4, 3)."""
        if len(item) != len(self._reference):
            raise DataError(f"{item.name}: {len(item)} residues, the ensemble has "
                            f"{len(self._reference)}")  # fmt: skip
        observed = self._observed
        reference = self._reference[observed]
        displacement = np.full(self._reference.shape, np.nan)
        displacement[observed] = superpose(item.positions[observed], reference) - reference
        return displacement

    def decode(self, field: Field) -> Backbone:
        """Undo `encode` to float32; without a conditioning sequence all letters are X."""
        values = field.values.detach().double().cpu().numpy()
        index = np.arange(values.shape[1])
        if field.coords is not None:
            index = field.coords[:, 0].cpu().numpy().round().astype(np.int64)
        mask = np.ones(values.shape, bool)
        if field.mask is not None:
            mask = np.broadcast_to(field.mask.cpu().numpy(), values.shape)
        cells = mask.any(axis=0)  # without batch padding
        positions = np.where(mask, values, np.nan)[:, cells].T.reshape(-1, 4, 3)
        positions = positions * self.metadata()["scale"]
        index, sequence = index[cells], "X" * int(cells.sum())
        if self.is_ensemble:
            index, sequence = np.asarray(self.metadata()["index"]), str(self.metadata()["sequence"])
            positions = np.where(self._observed[..., None], positions + self._reference, np.nan)
        elif "sequence" in field.cond:
            sequence = decode_sequence(field.cond["sequence"].cpu().numpy()[cells])
        return Backbone(positions.astype(np.float32), sequence, index.astype(np.int64))

    def _encode_cond(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Standardized conditions for the model, from values in the domain's units."""
        import torch

        cond: dict[str, Any] = {}
        for name in self.conditions:
            if name == "sequence":
                cond[name] = torch.from_numpy(np.asarray(raw[name], np.int64))
            else:
                mean, std = (
                    np.array(self.metadata()["told"][name][key]) for key in ("mean", "std")
                )
                value = (np.asarray(raw[name], np.float64) - mean) / std
                cond[name] = torch.from_numpy(value.astype(np.float32))
        return cond

    def _cond_of(self, item: Backbone) -> dict[str, Any]:
        """Conditions of a chain in the domain's units."""
        cond: dict[str, Any] = {"length": [len(item)]}
        if self.section.sequence:
            cond["sequence"] = encode_sequence(item.sequence)
        if self.section.secondary_structure:
            cond["secondary_structure"] = secondary_shares(item)
        return cond

    def template(
        self, rng: np.random.Generator, cond: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """An empty chain to sample: length and conditions are those of a random training chain near
        the requested values. All frames of an ensemble have the same length."""
        import torch

        if self.is_ensemble:
            return self._frame_template(size)
        drawn = draw_chain_conditions(cond, size, self.metadata(), rng)
        length = int(drawn["length"][0])
        return Field(
            torch.zeros(12, length),
            cond=self._encode_cond(drawn),
            coords=torch.arange(length, dtype=torch.float32)[:, None],
        )

    def _frame_template(self, size: int | None) -> Field:
        import torch

        length = len(self._reference)
        if size not in (None, length):
            raise ConditionError(f"{size} residues are requested; this ensemble has {length}")
        mask = np.repeat(self._observed.T, 3, axis=0)  # (12, L)
        index = np.asarray(self.metadata()["index"], np.float32)
        return Field(
            torch.zeros(12, length),
            torch.from_numpy(mask.copy()) if self.layout.missing else None,
            coords=torch.from_numpy(index - index[0])[:, None],
        )

    def write(self, items: Iterable[Backbone], path: Path) -> list[Path]:
        """Write PDB and mmCIF, and ``grid.png``: one file per structure, or one file with many
        models for an ensemble."""
        from jitkit.domains.proteins.writers import write_ensemble, write_structures

        return (write_ensemble if self.is_ensemble else write_structures)(items, path)

    def preview(self, items: Sequence[Backbone]) -> Image:
        """Grid of backbone traces, and a Ramachandran plot."""
        from jitkit.domains.proteins.figures import protein_grid

        return protein_grid(items)

    def scores(self) -> Mapping[str, Metric]:
        """Metrics of samples against ideal geometry and the training data."""
        from jitkit.domains.proteins.ensembles import ensemble_metrics
        from jitkit.domains.proteins.scores import protein_metrics

        return protein_metrics() | (ensemble_metrics(self._reference) if self.is_ensemble else {})
