"""Metadata of training molecules: scales, and a table to draw sizes and conditions from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jitkit.domains.molecules.molecule import PackedMolecules
from jitkit.domains.molecules.section import MoleculesSection
from jitkit.errors import ConditionError
from jitkit.utils.types import Array

MAX_ROWS = 8192  # training molecules whose compositions and properties are kept
NEAREST = 64  # of them, among which a size is drawn for requested properties


def molecule_metadata(train: PackedMolecules, section: MoleculesSection) -> dict[str, Any]:
    """Metadata of the domain, measured on the training molecules."""
    elements = np.unique(train.numbers).astype(int).tolist()
    counts = train.counts(elements)  # (molecules, E)
    rows = np.linspace(0, len(train) - 1, min(MAX_ROWS, len(train))).round().astype(int)
    columns = {"num_atoms": train.sizes[:, None], "composition": counts}
    columns |= {name: train.properties[name][:, None] for name in section.properties}
    is_used = {"num_atoms": section.num_atoms, "composition": section.composition}
    return {
        "elements": elements,
        "charged": bool(train.charges.any()),
        "most_atoms": int(train.sizes.max()),
        "position_scale": position_scale(train),
        "told": {name: _scale(v) for name, v in columns.items() if is_used.get(name, True)},
        "rows": {
            "counts": counts[rows].astype(np.int32),
            "properties": np.stack(
                [train.properties[name][rows] for name in section.properties], axis=1
            )
            if section.properties
            else np.empty((len(rows), 0)),
        },
    }


def position_scale(molecules: PackedMolecules) -> float:
    """Root mean square of the coordinates about the mean of each molecule, angstrom."""
    starts, sizes = molecules.starts[:-1], molecules.sizes
    means = np.add.reduceat(molecules.positions.astype(np.float64), starts) / sizes[:, None]
    centred = molecules.positions - np.repeat(means, sizes, axis=0)
    return float(np.sqrt((centred**2).mean())) or 1.0


def _scale(values: Array) -> dict[str, list[float]]:
    """Mean and standard deviation of each column, without NaN."""
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


@dataclass(frozen=True)
class RequestedConditions:
    """Conditions that a user requests of a molecule, in the units of the file.

    Attributes:
        num_atoms: None if not requested.
        counts: atoms of each element, NaN if not requested, (E,).
        properties: by name.
        dropped: conditions to be replaced by the null condition.
    """

    num_atoms: int | None
    counts: Array
    properties: Mapping[str, float]
    dropped: frozenset[str]

    @classmethod
    def of(
        cls,
        cond: Mapping[str, Any],
        size: int | None,
        elements: Sequence[int],
        names: Sequence[str],
    ) -> RequestedConditions:
        """Parse the arguments of `VariableSize.template`.

        Raises:
            ConditionError: contradictory sizes, or values that are not counts.
        """
        dropped = frozenset(name for name, value in cond.items() if value is None)
        counts = np.full(len(elements), np.nan)
        if cond.get("composition") is not None:
            counts = np.asarray(cond["composition"], np.float64)
        sizes = [size] if size is not None else []
        if cond.get("num_atoms") is not None:
            sizes.append(_count(float(cond["num_atoms"][0]), "num_atoms"))
        for count in counts[np.isfinite(counts)].tolist():
            _count(count, "composition")
        if np.isfinite(counts).all() and len(counts):
            sizes.append(int(counts.sum()))
        if len(set(sizes)) > 1:
            raise ConditionError(f"{sizes[0]} and {sizes[-1]} atoms are both requested: "
                                 "size, num_atoms, sum of composition must agree")  # fmt: skip
        properties = {n: float(cond[n][0]) for n in names if cond.get(n) is not None}
        properties = {name: value for name, value in properties.items() if np.isfinite(value)}
        return cls(sizes[0] if sizes else None, counts, properties, dropped)


def _count(value: float, name: str) -> int:
    if value < 0 or value != round(value):
        raise ConditionError(f"{name}: {value:g} is not a number of atoms")
    return int(value)


@dataclass(frozen=True)
class MoleculeConditions:
    """Conditions of a sample: number of atoms, and composition and properties if known."""

    num_atoms: int
    counts: Sequence[float] | None
    properties: Mapping[str, float] = field(default_factory=dict)


def draw_molecule_conditions(
    requested: RequestedConditions, metadata: Mapping[str, Any], rng: np.random.Generator
) -> MoleculeConditions:
    """Conditions of a random training molecule that matches the request; else the request alone.

    For requested properties the molecule is drawn from the `NEAREST` ones.

    Raises:
        ConditionError: no training molecule has a partially requested composition.
    """
    counts = np.asarray(metadata["rows"]["counts"])
    values = np.asarray(metadata["rows"]["properties"])
    names = [name for name in metadata["told"] if name not in ("num_atoms", "composition")]
    matches = ((counts == requested.counts) | np.isnan(requested.counts)).all(axis=1)
    if requested.num_atoms is not None:
        matches &= counts.sum(axis=1) == requested.num_atoms
    rows = np.flatnonzero(matches)
    if len(rows):
        i = _draw_row(rows, values, names, requested.properties, metadata, rng)
        row = MoleculeConditions(
            int(counts[i].sum()), counts[i], dict(zip(names, values[i].tolist(), strict=True))
        )
    elif requested.num_atoms is not None:
        is_complete = np.isfinite(requested.counts).all()
        row = MoleculeConditions(
            requested.num_atoms, requested.counts.tolist() if is_complete else None
        )
    else:
        raise ConditionError("composition: no training molecule matches; give the atoms of every "
                             "element, or their total with --size")  # fmt: skip
    properties = {k: v for k, v in row.properties.items() if not requested.properties}
    properties = {k: v for k, v in properties.items() if k not in requested.dropped}
    composition = None if "composition" in requested.dropped else row.counts
    return MoleculeConditions(row.num_atoms, composition, {**properties, **requested.properties})


def _draw_row(
    rows: Array,
    values: Array,
    names: Sequence[str],
    requested: Mapping[str, float],
    metadata: Mapping[str, Any],
    rng: np.random.Generator,
) -> int:
    if not requested:
        return int(rng.choice(rows))
    distances = np.zeros(len(rows))
    for name, value in requested.items():
        std = float(metadata["told"][name]["std"][0])
        column = values[rows, names.index(name)]
        distances += np.nan_to_num(((column - value) / std) ** 2, nan=np.inf)
    return int(rng.choice(rows[np.argsort(distances, kind="stable")[:NEAREST]]))
