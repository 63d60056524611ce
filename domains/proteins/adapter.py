"""Backbones of proteins as a kind of data for jitkit: a line of residues with four atoms each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.proteins.backbone import Backbone, Chains, Frames
from jitkit.domains.proteins.metadata import (
    centred,
    cut,
    facts_of_ensemble,
    facts_of_structures,
    letters_of,
    numbers_of,
    row_for,
)
from jitkit.domains.proteins.residues import ATOMS, LETTERS
from jitkit.domains.proteins.secondary import KINDS, contents
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import ConditionError, DataError
from jitkit.fields import Axis, Condition, Field, Layout, PerToken, Scalars
from jitkit.sections import DomainSection
from jitkit.utils.rotations import random_rotation, superposed
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = tuple(f"{atom}.{axis}" for atom in ATOMS for axis in "xyz")
CENTRED = tuple(tuple(f"{atom}.{axis}" for atom in ATOMS) for axis in "xyz")


class Proteins:
    """N, CA, C and O of each residue, from PDB, mmCIF, BinaryCIF and trajectories.

    The mean of all positions is removed, and so is that of the noise (`Layout.centred`). Of single
    structures positions are over their root mean square; an ensemble is superposed on its mean
    conformation, and the channels are how far each atom is from there, over the root mean square
    of that. Where atoms may be missing, the layout says so.
    """

    Section: ClassVar[type[DomainSection]] = ProteinsSection

    def __init__(self, section: ProteinsSection, metadata: Mapping[str, Any] | None = None) -> None:
        self.section = section
        self.is_ensemble = section.task == "ensemble"
        self.found = self._find_facts() if metadata is None else dict(metadata)
        if self.is_ensemble:
            self._reference = np.asarray(self.found["reference"], np.float64)
            self._observed = np.asarray(self.found["observed"]).astype(bool)
        most = len(self._reference) if self.is_ensemble else int(self.found["most"])
        missing = not self._observed.all() if self.is_ensemble else bool(self.found["missing"])
        self.layout = Layout((Axis("residue", most),), CHANNELS, bool(missing), CENTRED)
        self.conditions = self._conditions()

    def _find_facts(self) -> dict[str, Any]:
        train, held_out = self._splits["train"], self._splits["val"]
        if isinstance(train, Frames):
            return facts_of_ensemble(train)
        return facts_of_structures(train, [*train, *held_out], self.section)

    def _conditions(self) -> Mapping[str, Condition]:
        section, made = self.section, dict[str, Condition]()
        if self.is_ensemble:
            return made
        if section.length:
            made["length"] = Scalars(("length",), drop=0.0)
        if section.sequence:
            made["sequence"] = PerToken(len(LETTERS), drop=section.drop)
        if section.secondary_structure:
            made["secondary_structure"] = Scalars(KINDS, drop=section.drop)
        return made

    def metadata(self) -> dict[str, Any]:
        """Scales, the reference of an ensemble, how long training chains are and what is told."""
        return self.found

    @cached_property
    def _splits(self) -> dict[str, Chains | Frames]:
        from jitkit.domains.proteins.readers import read_chains
        from jitkit.domains.proteins.trajectories import read_frames

        if self.is_ensemble:
            frames = read_frames(self.section)
            held_out = self._held_out(np.arange(len(frames)), "frames")
            return {"train": frames.take(np.flatnonzero(~held_out)),
                    "val": frames.take(np.flatnonzero(held_out))}  # fmt: skip
        chains, groups = read_chains(self.section)
        held_out = self._held_out(groups, "groups of files and equal sequences")
        longest = self.section.max_length
        train, val = ([c for c, out in zip(chains, held_out, strict=True) if bool(out) is which]
                      for which in (False, True))  # fmt: skip
        return {"train": Chains(train, longest), "val": Chains(val, longest)}

    def _held_out(self, groups: Array, what: str) -> Array:
        """Which items are held out: whole groups, so many that it is about the share asked for."""
        names = np.unique(groups)
        count = round(self.section.held_out * len(names))
        if not 0 < count < len(names):
            raise DataError(
                f"{self.section.path}: {len(names)} {what} cannot be split, with "
                f"domain.held_out={self.section.held_out}; take more, or another share"
            )
        order = np.random.default_rng(0).permutation(len(names))
        return np.isin(groups, names[order[:count]])

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_splits"}

    def items(self, split: Split) -> Chains | Frames:
        """Chains or frames of a split, drawn once and for all, in the order of the files."""
        return self._splits[split]

    def encode(self, item: Backbone, rng: np.random.Generator | None = None) -> Field:
        """Scaled positions about their mean; with ``rng`` any piece of a long chain, turned."""
        import torch

        if not self.is_ensemble:
            item = cut(item, self.section.max_length, rng)
        places = self._away(item) if self.is_ensemble else self._turned(item, rng)
        values = (places / self.found["scale"]).reshape(len(item), 12).T
        observed = torch.from_numpy(np.isfinite(values))
        return Field(
            torch.from_numpy(values.astype(np.float32)),
            observed if self.layout.missing else None,
            self._told(self._known(item)),
            torch.from_numpy((item.index - item.index[0]).astype(np.float32))[:, None],
        )

    def _turned(self, item: Backbone, rng: np.random.Generator | None) -> Array:
        places = centred(item.positions)
        return (
            places @ random_rotation(rng).T if rng is not None and self.section.rotate else places
        )

    def _away(self, item: Backbone) -> Array:
        """How far each atom of a frame is from the reference, once superposed, (L, 4, 3)."""
        if len(item) != len(self._reference):
            raise DataError(f"{item.name}: {len(item)} residues, the ensemble has "
                            f"{len(self._reference)}")  # fmt: skip
        own = self._observed
        made = np.full(self._reference.shape, np.nan)
        made[own] = superposed(item.positions[own], self._reference[own]) - self._reference[own]
        return made

    def decode(self, field: Field) -> Backbone:
        """Undo `encode` to float32; where the model was not told a sequence, letters are X."""
        values = field.values.detach().double().cpu().numpy()
        index = np.arange(values.shape[1])
        if field.coords is not None:
            index = field.coords[:, 0].cpu().numpy().round().astype(np.int64)
        seen = np.ones(values.shape, bool)
        if field.mask is not None:
            seen = np.broadcast_to(field.mask.cpu().numpy(), values.shape)
        cells = seen.any(axis=0)  # not those that only fill a batch up
        places = np.where(seen, values, np.nan)[:, cells].T.reshape(-1, 4, 3) * self.found["scale"]
        index, sequence = index[cells], "X" * int(cells.sum())
        if self.is_ensemble:
            index, sequence = np.asarray(self.found["index"]), str(self.found["sequence"])
            places = np.where(self._observed[..., None], places + self._reference, np.nan)
        elif "sequence" in field.cond:
            sequence = letters_of(field.cond["sequence"].cpu().numpy()[cells])
        return Backbone(places.astype(np.float32), sequence, index.astype(np.int64))

    def _told(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions as the model takes them, of what is known in the domain's own units."""
        import torch

        made: dict[str, Any] = {}
        for name in self.conditions:
            if name == "sequence":
                made[name] = torch.from_numpy(np.asarray(known[name], np.int64))
            else:
                mean, std = (np.array(self.found["told"][name][key]) for key in ("mean", "std"))
                value = (np.asarray(known[name], np.float64) - mean) / std
                made[name] = torch.from_numpy(value.astype(np.float32))
        return made

    def _known(self, item: Backbone) -> dict[str, Any]:
        """What there is to tell of a chain."""
        made: dict[str, Any] = {"length": [len(item)]}
        if self.section.sequence:
            made["sequence"] = numbers_of(item.sequence)
        if self.section.secondary_structure:
            made["secondary_structure"] = contents(item)
        return made

    def template(
        self, rng: np.random.Generator, told: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """A chain to be: its length and what it is told are those of a training chain that comes
        near what is asked. All frames of an ensemble are of one length."""
        import torch

        if self.is_ensemble:
            return self._frame_to_be(size)
        row = row_for(told, size, self.found, rng)
        length = int(row["length"][0])
        return Field(
            torch.zeros(12, length),
            cond=self._told(row),
            coords=torch.arange(length, dtype=torch.float32)[:, None],
        )

    def _frame_to_be(self, size: int | None) -> Field:
        import torch

        length = len(self._reference)
        if size not in (None, length):
            raise ConditionError(f"{size} residues are asked for; this ensemble has {length}")
        mask = np.repeat(self._observed.T, 3, axis=0)  # (12, L)
        index = np.asarray(self.found["index"], np.float32)
        return Field(
            torch.zeros(12, length),
            torch.from_numpy(mask.copy()) if self.layout.missing else None,
            coords=torch.from_numpy(index - index[0])[:, None],
        )

    def write(self, items: Iterable[Backbone], path: Path) -> list[Path]:
        """Write PDB and mmCIF, and ``grid.png``: a file for each structure, or one of many models
        for an ensemble."""
        from jitkit.domains.proteins.writers import write_ensemble, write_structures

        return (write_ensemble if self.is_ensemble else write_structures)(items, path)

    def preview(self, items: Sequence[Backbone]) -> Image:
        """Traces of chains, side by side, and their torsion angles."""
        from jitkit.domains.proteins.figures import grid

        return grid(items)

    def scores(self) -> Mapping[str, Metric]:
        """How samples compare with ideal geometry and with the training data."""
        from jitkit.domains.proteins.ensembles import ensemble_measures
        from jitkit.domains.proteins.scores import measures

        return measures() | (ensemble_measures(self._reference) if self.is_ensemble else {})
