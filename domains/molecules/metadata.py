"""What a model keeps of its training molecules: scales, and what to draw sizes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jitkit.domains.molecules.molecule import PackedMolecules
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.errors import ConditionError
from jitkit.utils.types import Array

ROWS = 8192  # training molecules whose sizes and properties are kept, at most
NEAREST = 64  # of them, among which a size is drawn for a property that is asked


def find_facts(train: PackedMolecules, section: MoleculesSection) -> dict[str, Any]:
    """The metadata of a domain from its training molecules."""
    elements = np.unique(train.numbers).astype(int).tolist()
    counts = train.counts(elements)  # (molecules, E)
    kept = np.linspace(0, len(train) - 1, min(ROWS, len(train))).round().astype(int)
    columns = {"num_atoms": train.sizes[:, None], "composition": counts}
    columns |= {name: train.properties[name][:, None] for name in section.properties}
    used = {"num_atoms": section.num_atoms, "composition": section.composition}
    return {
        "elements": elements,
        "charged": bool(train.charges.any()),
        "most_atoms": int(train.sizes.max()),
        "position_scale": position_scale(train),
        "told": {name: _scale(v) for name, v in columns.items() if used.get(name, True)},
        "rows": {
            "counts": counts[kept].astype(np.int32),
            "properties": np.stack(
                [train.properties[name][kept] for name in section.properties], axis=1
            )
            if section.properties
            else np.empty((len(kept), 0)),
        },
    }


def position_scale(molecules: PackedMolecules) -> float:
    """Root mean square of a coordinate about the mean of its molecule, angstrom."""
    starts, sizes = molecules.starts[:-1], molecules.sizes
    means = np.add.reduceat(molecules.positions.astype(np.float64), starts) / sizes[:, None]
    apart = molecules.positions - np.repeat(means, sizes, axis=0)
    return float(np.sqrt((apart**2).mean())) or 1.0


def _scale(values: Array) -> dict[str, list[float]]:
    """Mean and deviation of each column, of what is known."""
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


@dataclass(frozen=True)
class RequestedConditions:
    """What a user asked a molecule to be, in the file's own units.

    Attributes:
        num_atoms: None where it was not asked.
        counts: atoms of each element, NaN where not asked, (E,).
        properties: by name.
        untold: conditions that are not to be told.
    """

    num_atoms: int | None
    counts: Array
    properties: Mapping[str, float]
    untold: frozenset[str]

    @classmethod
    def of(
        cls,
        told: Mapping[str, Any],
        size: int | None,
        elements: Sequence[int],
        names: Sequence[str],
    ) -> RequestedConditions:
        """What `Varying.outline` is given.

        Raises:
            ConditionError: two sizes are asked for, or something that is no count.
        """
        untold = frozenset(name for name, value in told.items() if value is None)
        counts = np.full(len(elements), np.nan)
        if told.get("composition") is not None:
            counts = np.asarray(told["composition"], np.float64)
        sizes = [size] if size is not None else []
        if told.get("num_atoms") is not None:
            sizes.append(_count(float(told["num_atoms"][0]), "num_atoms"))
        for count in counts[np.isfinite(counts)].tolist():
            _count(count, "composition")
        if np.isfinite(counts).all() and len(counts):
            sizes.append(int(counts.sum()))
        if len(set(sizes)) > 1:
            raise ConditionError(f"{sizes[0]} and {sizes[-1]} atoms are asked for at once: "
                                 "size, num_atoms, sum of composition must agree")  # fmt: skip
        asked = {n: float(told[n][0]) for n in names if told.get(n) is not None}
        asked = {name: value for name, value in asked.items() if np.isfinite(value)}
        return cls(sizes[0] if sizes else None, counts, asked, untold)


def _count(value: float, name: str) -> int:
    if value < 0 or value != round(value):
        raise ConditionError(f"{name}: {value:g} is no number of atoms")
    return int(value)


@dataclass(frozen=True)
class MetadataRow:
    """What a sample is told: its size, and composition and properties where they are known."""

    num_atoms: int
    counts: Sequence[float] | None
    properties: Mapping[str, float] = field(default_factory=dict)


def row_for(
    asked: RequestedConditions, metadata: Mapping[str, Any], rng: np.random.Generator
) -> MetadataRow:
    """A training molecule that has what is asked; what is asked alone, where none has.

    Properties that are asked are met by drawing among the `NEAREST` molecules.

    Raises:
        ConditionError: part of a composition is asked that no training molecule has.
    """
    counts = np.asarray(metadata["rows"]["counts"])
    values = np.asarray(metadata["rows"]["properties"])
    names = [name for name in metadata["told"] if name not in ("num_atoms", "composition")]
    fits = ((counts == asked.counts) | np.isnan(asked.counts)).all(axis=1)
    if asked.num_atoms is not None:
        fits &= counts.sum(axis=1) == asked.num_atoms
    found = np.flatnonzero(fits)
    whole = asked.counts.tolist() if np.isfinite(asked.counts).all() else None
    if len(found):
        i = _drawn(found, values, names, asked.properties, metadata, rng)
        row = MetadataRow(
            int(counts[i].sum()), counts[i], dict(zip(names, values[i].tolist(), strict=True))
        )
    elif asked.num_atoms is not None:
        row = MetadataRow(asked.num_atoms, whole)
    else:
        raise ConditionError("composition: none of the training molecules has it; give the atoms "
                             "of every element, or their number with --size")  # fmt: skip
    properties = {k: v for k, v in row.properties.items() if not asked.properties}
    properties = {k: v for k, v in properties.items() if k not in asked.untold}
    told = None if "composition" in asked.untold else row.counts
    return MetadataRow(row.num_atoms, told, {**properties, **asked.properties})


def _drawn(
    found: Array,
    values: Array,
    names: Sequence[str],
    asked: Mapping[str, float],
    metadata: Mapping[str, Any],
    rng: np.random.Generator,
) -> int:
    if not asked:
        return int(rng.choice(found))
    apart = np.zeros(len(found))
    for name, value in asked.items():
        std = float(metadata["told"][name]["std"][0])
        column = values[found, names.index(name)]
        apart += np.nan_to_num(((column - value) / std) ** 2, nan=np.inf)
    return int(rng.choice(found[np.argsort(apart, kind="stable")[:NEAREST]]))
