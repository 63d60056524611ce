"""Domain `molecules`: sets of atoms, each with a position, an element and a formal charge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.molecules.elements import SYMBOLS
from jitkit.domains.molecules.metadata import (
    RequestedConditions,
    draw_molecule_conditions,
    molecule_metadata,
)
from jitkit.domains.molecules.molecule import Molecule, PackedMolecules
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.errors import ConditionError, DataError, listed, nearest
from jitkit.fields import Axis, Condition, Field, Layout, Scalars
from jitkit.protocols import VariableSize
from jitkit.sections import DomainSection
from jitkit.utils.rotations import random_rotation

if TYPE_CHECKING:
    from PIL.Image import Image

SPACE = ("x", "y", "z")


class Molecules(VariableSize):
    """Molecules in 3-D from SDF, XYZ, NumPy, HDF5 and QM9's CSV; atoms as a set.

    Channels are x, y, z divided by the root mean square of the training positions; the one-hot
    element times ``element_scale``; and, if the data have charges, the formal charge with the same
    scale. Positions and their noise have zero mean (`Layout.centred`), and attention uses rotary
    embeddings of the positions (`Layout.positions`).
    """

    Section: ClassVar[type[DomainSection]] = MoleculesSection

    section: MoleculesSection

    def measure(self) -> dict[str, Any]:
        """Elements, scales, and sizes, compositions and properties of training molecules."""
        return molecule_metadata(self._train, self.section)

    @cached_property
    def elements(self) -> list[int]:
        """Atomic numbers of the element channels."""
        return [int(number) for number in self.metadata()["elements"]]

    @cached_property
    def layout(self) -> Layout:
        """A set of atoms: positions, one-hot elements, and the charge if the data have any."""
        charge = ("charge",) if self.metadata()["charged"] else ()
        axis = Axis("atom", int(self.metadata()["most_atoms"]), kind="set")
        channels = (*SPACE, *(SYMBOLS[number] for number in self.elements), *charge)
        centred = tuple((name,) for name in SPACE)
        return Layout((axis,), channels, centred=centred, positions=SPACE)

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """num_atoms; composition: atoms of each element; properties by name."""
        section = self.section
        conditions: dict[str, Condition] = {}
        if section.num_atoms:
            conditions["num_atoms"] = Scalars(("num_atoms",), drop=0.0)
        if section.composition:
            names = tuple(SYMBOLS[number] for number in self.elements)
            conditions["composition"] = Scalars(names, drop=section.drop)
        return conditions | {
            name: Scalars((name,), drop=section.drop) for name in section.properties
        }

    @cached_property
    def _splits(self) -> dict[str, PackedMolecules]:
        from jitkit.domains.molecules.readers import read_molecules

        molecules = read_molecules(self.section)
        order = np.random.default_rng(0).permutation(len(molecules))
        check_properties(self.section.properties, molecules.properties, self.section.path)
        num_val = round(self.section.held_out * len(molecules))
        if not 0 < num_val < len(molecules):
            raise DataError(
                f"{self.section.path}: {len(molecules)} molecules cannot be split with "
                f"domain.held_out={self.section.held_out}; use more data or another share"
            )
        return {
            "train": molecules.take(np.sort(order[num_val:])),
            "val": molecules.take(np.sort(order[:num_val])),
        }

    @property
    def _train(self) -> PackedMolecules:
        return self._splits["train"]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_splits"}

    def items(self, split: Split) -> PackedMolecules:
        """Molecules of a split, which is random with a fixed seed, in file order."""
        return self._splits[split]

    def encode(self, item: Molecule, rng: np.random.Generator | None = None) -> Field:
        """Centred and scaled positions, randomly rotated with ``rng``; elements; charges."""
        import torch

        positions = item.positions - item.positions.mean(axis=0)
        if rng is not None and self.section.rotate:
            positions = positions @ random_rotation(rng).T
        height = self.section.element_scale
        one_hot = (item.numbers[None] == np.array(self.elements)[:, None]) * height  # (E, N)
        charge = (
            item.charges[None] * height if self.metadata()["charged"] else np.empty((0, len(item)))
        )
        values = np.concatenate((positions.T / self.metadata()["position_scale"], one_hot, charge))
        counts = item.counts(self.elements) if self.section.composition else None
        cond = self._encode_cond(len(item), counts, item.properties)
        return Field(torch.from_numpy(values.astype(np.float32)), cond=cond)

    def decode(self, field: Field) -> Molecule:
        """Undo `encode` to float32: the most likely element, the nearest charge.

        The original position, rotation and name are lost. A sample has the requested properties.
        """
        values = field.values.detach().double().cpu().numpy()
        if field.mask is not None:
            present = field.mask.reshape(-1, values.shape[1])[0].cpu().numpy()
            values = values[:, present]
        one_hot = values[3 : 3 + len(self.elements)]
        charge = np.zeros(values.shape[1], np.int64)
        if self.metadata()["charged"]:
            charge = np.rint(values[-1] / self.section.element_scale).astype(np.int64)
        return Molecule(
            np.array(self.elements)[one_hot.argmax(axis=0)],
            values[:3].T * self.metadata()["position_scale"],
            charge,
            self._decode_properties(field.cond),
        )

    def _encode_cond(
        self, num_atoms: int, counts: Sequence[float] | None, properties: Mapping[str, float]
    ) -> dict[str, Any]:
        """Standardized conditions for the model; NaN for unknown values."""
        import torch

        unknown = [np.nan] * len(self.elements)
        values = {
            "num_atoms": [num_atoms],
            "composition": unknown if counts is None else counts,
        } | {name: [properties.get(name, np.nan)] for name in self.section.properties}
        cond = {}
        for name in self.conditions:
            mean, std = (np.asarray(self.metadata()["told"][name][key]) for key in ("mean", "std"))
            value = (np.asarray(values[name], np.float64) - mean) / std
            cond[name] = torch.from_numpy(value.astype(np.float32))
        return cond

    def _decode_properties(self, cond: Mapping[str, Any]) -> dict[str, float]:
        properties = {}
        for name in self.section.properties:
            if name in cond:
                scale = self.metadata()["told"][name]
                std, mean = float(scale["std"][0]), float(scale["mean"][0])
                properties[name] = float(cond[name][0]) * std + mean
        return {name: value for name, value in properties.items() if np.isfinite(value)}

    def template(
        self, rng: np.random.Generator, cond: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """An empty molecule to sample: size, composition and properties are those of a random
        training molecule that matches the requested values, or is among the nearest."""
        import torch

        requested = RequestedConditions.of(cond, size, self.elements, self.section.properties)
        drawn = draw_molecule_conditions(requested, self.metadata(), rng)
        num_atoms = drawn.num_atoms
        if not 1 <= num_atoms <= self.metadata()["most_atoms"]:
            raise ConditionError(f"{num_atoms} atoms are out of range: the model was trained on up "
                                 f"to {self.metadata()['most_atoms']}")  # fmt: skip
        values = torch.zeros(len(self.layout.channels), num_atoms)
        return Field(values, cond=self._encode_cond(num_atoms, drawn.counts, drawn.properties))

    def write(self, items: Iterable[Molecule], path: Path) -> list[Path]:
        """Write ``samples.sdf`` with bonds, ``samples.xyz`` and ``grid.png``.

        A molecule whose bonds cannot be determined is written to the SDF without bonds and marked.
        """
        from jitkit.domains.molecules.writers import write_molecules

        return write_molecules(items, path)

    def preview(self, items: Sequence[Molecule]) -> Image:
        """Grid of 3-D views, with structure drawings if RDKit is installed."""
        from jitkit.domains.molecules.figures import molecule_grid

        return molecule_grid(items)

    def scores(self) -> Mapping[str, Metric]:
        """Metrics of samples against the training molecules."""
        from jitkit.domains.molecules.scores import Catalogue, molecule_metrics

        catalogue = cache(lambda: Catalogue(self._train, self.elements))
        return molecule_metrics(self.section.properties, lambda molecule: catalogue().has(molecule))


def check_properties(requested: Sequence[str], available: Iterable[str], path: object) -> None:
    """Check that the file has the properties that a recipe names.

    Raises:
        DataError: one is missing.
    """
    names = list(available)
    for name in requested:
        if name not in names:
            raise DataError(f"{path} has no property {name!r}; it has "
                            f"{listed(names, most=30) or 'none'}"
                            f"{nearest(name, names)}")  # fmt: skip
