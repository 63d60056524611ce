"""What a model keeps of its training data: scales, references, and what to draw sizes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domains.proteins.backbone import Backbone, Chains, Frames
from jitkit.domains.proteins.residues import LETTERS
from jitkit.domains.proteins.secondary import all_contents
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import ConditionError
from jitkit.utils.rotations import superposed
from jitkit.utils.types import Array

ROWS = 4096  # training chains whose lengths, contents and sequences are kept, at most
ROUNDS = 10  # of superposing frames on their mean, which settles in a few


def centred(positions: Array) -> Array:
    """Positions about the mean of all atoms that are there, (..., L, 4, 3) float64."""
    positions = np.asarray(positions, np.float64)
    return positions - np.nanmean(positions, axis=(-3, -2), keepdims=True)


def cut(chain: Backbone, longest: int, rng: np.random.Generator | None = None) -> Backbone:
    """A piece of a chain that is too long: any one with ``rng``, else the middle."""
    spare = len(chain) - longest
    if spare <= 0:
        return chain
    return chain.piece(spare // 2 if rng is None else int(rng.integers(spare + 1)), longest)


def facts_of_structures(
    train: Chains, every: Sequence[Backbone], section: ProteinsSection
) -> dict[str, Any]:
    """The metadata of chains.

    Args:
        train: those of the training split.
        every: those of both splits; whether atoms may be missing is asked of all.
        section: of the recipe.
    """
    pieces = [cut(chain, section.max_length) for chain in train]
    squares = [np.nanmean(centred(piece.positions) ** 2) for piece in pieces]
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    kept = np.linspace(0, len(pieces) - 1, min(ROWS, len(pieces))).round().astype(int)
    most = int(max(min(len(chain), section.max_length) for chain in every))
    rows: dict[str, Array] = {"length": lengths[kept]}
    told = {"length": _scale(lengths[:, None].astype(np.float64))}
    if section.secondary_structure:
        contents = all_contents(pieces)
        rows["secondary_structure"] = contents[kept]
        told["secondary_structure"] = _scale(contents)
    if section.sequence:
        rows["sequence"] = np.full((len(kept), most), len(LETTERS), np.uint8)
        for row, i in zip(rows["sequence"], kept.tolist(), strict=True):
            row[: len(pieces[i])] = numbers_of(pieces[i].sequence)
    return {
        "most": most,
        "missing": any(bool(np.isnan(chain.positions).any()) for chain in every),
        "scale": float(np.sqrt(np.average(squares, weights=lengths))),
        "told": told,
        "rows": rows,
    }


def facts_of_ensemble(train: Frames) -> dict[str, Any]:
    """The metadata of an ensemble: its mean conformation, and how far frames are from it."""
    observed = ~np.isnan(train.positions).any(axis=(0, 3))  # (L, 4)
    points = train.positions[:, observed].astype(np.float64)
    mean = points[0]
    for _ in range(ROUNDS):
        mean = superposed(points, mean).mean(axis=0)
    mean = mean - mean.mean(axis=0)
    reference = np.zeros((*observed.shape, 3))
    reference[observed] = mean
    away = superposed(points, mean) - mean
    return {
        "reference": reference,
        "observed": observed.astype(np.int64),
        "index": train.chain.index,
        "sequence": train.chain.sequence,
        "scale": float(np.sqrt((away**2).mean())) or 1.0,
    }


def _scale(values: Array) -> dict[str, list[float]]:
    mean, std = values.mean(axis=0), values.std(axis=0)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


def numbers_of(sequence: str) -> Array:
    """Letters as places in `residues.LETTERS`."""
    return np.array([LETTERS.index(letter) for letter in sequence], np.int64)


def letters_of(numbers: Array) -> str:
    """The way back; what is no letter's place (not told) is X."""
    return "".join((LETTERS + "X")[number] for number in numbers.tolist())


def row_for(
    told: Mapping[str, Any], size: int | None, metadata: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """What a chain to be is told: that of a training chain that comes near what is asked.

    Of chains as long as is asked, or else of longer ones, the one that is drawn gives its sequence
    and contents. Contents that are asked are met by drawing among the nearest sixteenth.

    Returns:
        ``length`` (1,); where there are such conditions ``secondary_structure`` (2,) and
        ``sequence`` (length,), numbers with `residues.LETTERS`' length for what is not told.

    Raises:
        ConditionError: lengths that contradict one another, or that are out of range.
    """
    length = _asked_length(told, size, int(metadata["most"]))
    rows = {name: np.asarray(values) for name, values in metadata["rows"].items()}
    fits = np.arange(len(rows["length"]))
    if length is not None:
        equal, longer = rows["length"] == length, rows["length"] > length
        if equal.any() or longer.any():
            fits = np.flatnonzero(equal if equal.any() else longer)
    contents = told.get("secondary_structure")
    asked = np.full(2, np.nan) if contents is None else np.asarray(contents, np.float64)
    if np.isfinite(asked).any():
        apart = np.nansum((rows["secondary_structure"][fits] - asked) ** 2, axis=1)
        fits = fits[np.argsort(apart, kind="stable")[: max(1, len(fits) // 16)]]
    i = int(rng.choice(fits))
    length = int(rows["length"][i]) if length is None else length
    made: dict[str, Any] = {"length": [length]}
    if "secondary_structure" in rows:
        own = asked if np.isfinite(asked).any() else rows["secondary_structure"][i]
        hidden = _is_hidden(told, "secondary_structure")
        made["secondary_structure"] = np.full(2, np.nan) if hidden else own
    if "sequence" in rows:
        letters = np.full(length, len(LETTERS), np.int64)
        own = rows["sequence"][i][:length]
        letters[: len(own)] = own
        hidden = _is_hidden(told, "sequence")
        made["sequence"] = np.full(length, len(LETTERS)) if hidden else letters
    return made


def _is_hidden(told: Mapping[str, Any], name: str) -> bool:
    return name in told and told[name] is None


def _asked_length(told: Mapping[str, Any], size: int | None, most: int) -> int | None:
    asked = told.get("length")
    number = None if asked is None else float(asked[0])
    if number is not None and number != round(number):
        raise ConditionError(f"length: {number:g} is no number of residues")
    if number is not None and size is not None and size != number:
        raise ConditionError(f"{size} and {number:g} residues are asked for at once; size and "
                             "length must agree")  # fmt: skip
    length = size if number is None else int(number)
    if length is not None and not 1 <= length <= most:
        raise ConditionError(f"{length} residues are out of range: the model was trained on up to "
                             f"{most}")  # fmt: skip
    return length
