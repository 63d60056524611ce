"""Molecules as a kind of data for jitkit: sets of atoms, each a place, an element and a charge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.molecules.elements import SYMBOLS
from jitkit.domains.molecules.metadata import RequestedConditions, find_facts, row_for
from jitkit.domains.molecules.molecule import Molecule, PackedMolecules
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.errors import ConditionError, DataError, listed, nearest
from jitkit.fields import Axis, Condition, Field, Layout, Scalars
from jitkit.sections import DomainSection
from jitkit.utils.rotations import random_rotation

if TYPE_CHECKING:
    from PIL.Image import Image

SPACE = ("x", "y", "z")


class Molecules:
    """Molecules in space: SDF, XYZ, NumPy, HDF5 and QM9's CSV; atoms as a set.

    Channels are x, y, z, over the root mean square of the training positions; a one-hot of
    the element, ``element_scale`` high; and the formal charge, equally scaled, where the data have
    any. Positions have their mean removed, and so has the noise (`Layout.centred`), and attention
    turns by them (`Layout.positions`).
    """

    Section: ClassVar[type[DomainSection]] = MoleculesSection

    def __init__(
        self, section: MoleculesSection, metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.section = section
        self.found = find_facts(self._train, section) if metadata is None else dict(metadata)
        self.elements = [int(number) for number in self.found["elements"]]
        names = [SYMBOLS[number] for number in self.elements]
        charge = ("charge",) if self.found["charged"] else ()
        axis = Axis("atom", int(self.found["most_atoms"]), kind="set")
        channels, centred = (*SPACE, *names, *charge), tuple((c,) for c in SPACE)
        self.layout = Layout((axis,), channels, centred=centred, positions=SPACE)
        self.conditions = self._conditions(names)

    def _conditions(self, names: Sequence[str]) -> Mapping[str, Condition]:
        section = self.section
        made: dict[str, Condition] = {}
        if section.num_atoms:
            made["num_atoms"] = Scalars(("num_atoms",), drop=0.0)
        if section.composition:
            made["composition"] = Scalars(tuple(names), drop=section.drop)
        return made | {name: Scalars((name,), drop=section.drop) for name in section.properties}

    def metadata(self) -> dict[str, Any]:
        """Elements, scales, and how large and of what properties training molecules are."""
        return self.found

    @cached_property
    def _splits(self) -> dict[str, PackedMolecules]:
        from jitkit.domains.molecules.readers import read

        whole = read(self.section)
        order = np.random.default_rng(0).permutation(len(whole))
        check_properties(self.section.properties, whole.properties, self.section.path)
        held_out = round(self.section.held_out * len(whole))
        if not 0 < held_out < len(whole):
            raise DataError(
                f"{self.section.path}: {len(whole)} molecules cannot be split, with "
                f"domain.held_out={self.section.held_out}; take more, or another share"
            )
        return {
            "train": whole.take(np.sort(order[held_out:])),
            "val": whole.take(np.sort(order[:held_out])),
        }

    @property
    def _train(self) -> PackedMolecules:
        return self._splits["train"]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_splits"}

    def items(self, split: Split) -> PackedMolecules:
        """Molecules of a split, drawn once and for all, in the order of the files."""
        return self._splits[split]

    def encode(self, item: Molecule, rng: np.random.Generator | None = None) -> Field:
        """Scaled positions about their mean, turned at random with ``rng``; elements; charges."""
        import torch

        positions = item.positions - item.positions.mean(axis=0)
        if rng is not None and self.section.rotate:
            positions = positions @ random_rotation(rng).T
        height = self.section.element_scale
        kinds = (item.numbers[None] == np.array(self.elements)[:, None]) * height  # (E, N)
        charge = item.charges[None] * height if self.found["charged"] else np.empty((0, len(item)))
        values = np.concatenate((positions.T / self.found["position_scale"], kinds, charge))
        counts = item.counts(self.elements) if self.section.composition else None
        cond = self._told(len(item), counts, item.properties)
        return Field(torch.from_numpy(values.astype(np.float32)), cond=cond)

    def decode(self, field: Field) -> Molecule:
        """Undo `encode` to float32: the likeliest element, the nearest charge; no place, no name.

        Properties of a sample are those that were asked for.
        """
        values = field.values.detach().double().cpu().numpy()
        if field.mask is not None:
            seen = field.mask.reshape(-1, values.shape[1])[0].cpu().numpy()
            values = values[:, seen]
        kinds = values[3 : 3 + len(self.elements)]
        charge = np.zeros(values.shape[1], np.int64)
        if self.found["charged"]:
            charge = np.rint(values[-1] / self.section.element_scale).astype(np.int64)
        return Molecule(
            np.array(self.elements)[kinds.argmax(axis=0)],
            values[:3].T * self.found["position_scale"],
            charge,
            self._asked_properties(field.cond),
        )

    def _told(
        self, num_atoms: int, counts: Sequence[float] | None, properties: Mapping[str, float]
    ) -> dict[str, Any]:
        """Conditions as the model takes them; NaN for what is not known."""
        import torch

        unknown = [np.nan] * len(self.elements)
        numbers = {
            "num_atoms": [num_atoms],
            "composition": unknown if counts is None else counts,
        } | {name: [properties.get(name, np.nan)] for name in self.section.properties}
        told = {}
        for name in self.conditions:
            mean, std = (np.asarray(self.found["told"][name][key]) for key in ("mean", "std"))
            value = (np.asarray(numbers[name], np.float64) - mean) / std
            told[name] = torch.from_numpy(value.astype(np.float32))
        return told

    def _asked_properties(self, cond: Mapping[str, Any]) -> dict[str, float]:
        asked = {}
        for name in self.section.properties:
            if name in cond:
                scale = self.found["told"][name]
                asked[name] = float(cond[name][0]) * float(scale["std"][0]) + float(
                    scale["mean"][0]
                )
        return {name: value for name, value in asked.items() if np.isfinite(value)}

    def template(
        self, rng: np.random.Generator, told: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """A molecule to be: its size, composition and properties are those of a training molecule
        that has what is asked, or comes nearest to it."""
        import torch

        asked = RequestedConditions.of(told, size, self.elements, self.section.properties)
        row = row_for(asked, self.found, rng)
        num_atoms = row.num_atoms
        if not 1 <= num_atoms <= self.found["most_atoms"]:
            raise ConditionError(f"{num_atoms} atoms are out of range: the model was trained on up "
                                 f"to {self.found['most_atoms']}")  # fmt: skip
        values = torch.zeros(len(self.layout.channels), num_atoms)
        return Field(values, cond=self._told(num_atoms, row.counts, row.properties))

    def write(self, items: Iterable[Molecule], path: Path) -> list[Path]:
        """Write ``samples.sdf`` with bonds, ``samples.xyz`` and ``grid.png``.

        A molecule whose bonds cannot be told stands in the SDF without any, marked so.
        """
        from jitkit.domains.molecules.writers import write

        return write(items, path)

    def preview(self, items: Sequence[Molecule]) -> Image:
        """Molecules in space, side by side, and their drawings where RDKit is installed."""
        from jitkit.domains.molecules.figures import grid

        return grid(items)

    def scores(self) -> Mapping[str, Metric]:
        """How samples compare with the training molecules."""
        from jitkit.domains.molecules.scores import Catalogue, measures

        catalogue = cache(lambda: Catalogue(self._train, self.elements))
        return measures(self.section.properties, lambda molecule: catalogue().has(molecule))


def check_properties(asked: Sequence[str], found: Iterable[str], path: object) -> None:
    """Whether the file has the properties that a recipe names.

    Raises:
        DataError: it lacks one.
    """
    names = list(found)
    for name in asked:
        if name not in names:
            known = listed(names, most=30) or "none"
            raise DataError(f"{path} has no property {name!r}; it has {known}"
                            f"{nearest(name, names)}")  # fmt: skip
