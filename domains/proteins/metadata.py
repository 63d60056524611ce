"""Metadata of training data: scales, mean conformation, and a table to draw conditions from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.domains.proteins.backbone import Backbone, Chains, Frames
from jitkit.domains.proteins.residues import LETTERS
from jitkit.domains.proteins.secondary import all_secondary_shares
from jitkit.domains.proteins.section import ProteinsSection
from jitkit.errors import ConditionError
from jitkit.utils.rotations import superpose
from jitkit.utils.types import Array

MAX_ROWS = 4096  # training chains whose lengths, secondary structures and sequences are kept
ITERATIONS = 10  # of superposition on the mean, which converges in a few


def centre_positions(positions: Array) -> Array:
    """Positions relative to the mean of all present atoms, (..., L, 4, 3) float64."""
    positions = np.asarray(positions, np.float64)
    return positions - np.nanmean(positions, axis=(-3, -2), keepdims=True)


def crop_chain(
    chain: Backbone, max_length: int, rng: np.random.Generator | None = None
) -> Backbone:
    """Crop a chain that is too long: at random with ``rng``, else to the middle."""
    excess = len(chain) - max_length
    if excess <= 0:
        return chain
    start = excess // 2 if rng is None else int(rng.integers(excess + 1))
    return chain.segment(start, max_length)


def structures_metadata(
    train: Chains, all_chains: Sequence[Backbone], section: ProteinsSection
) -> dict[str, Any]:
    """Metadata of the task ``structures``.

    Args:
        train: chains of the training split.
        all_chains: chains of both splits, which decide whether atoms may be missing.
        section: of the recipe.
    """
    cropped = [crop_chain(chain, section.max_length) for chain in train]
    squares = [np.nanmean(centre_positions(chain.positions) ** 2) for chain in cropped]
    lengths = np.array([len(chain) for chain in cropped], np.int64)
    selected = np.linspace(0, len(cropped) - 1, min(MAX_ROWS, len(cropped))).round().astype(int)
    longest = int(max(min(len(chain), section.max_length) for chain in all_chains))
    rows: dict[str, Array] = {"length": lengths[selected]}
    scales = {"length": _scale(lengths[:, None].astype(np.float64))}
    if section.secondary_structure:
        shares = all_secondary_shares(cropped)
        rows["secondary_structure"] = shares[selected]
        scales["secondary_structure"] = _scale(shares)
    if section.sequence:
        rows["sequence"] = np.full((len(selected), longest), len(LETTERS), np.uint8)
        for row, i in zip(rows["sequence"], selected.tolist(), strict=True):
            row[: len(cropped[i])] = encode_sequence(cropped[i].sequence)
    return {
        "most": longest,
        "missing": any(bool(np.isnan(chain.positions).any()) for chain in all_chains),
        "scale": float(np.sqrt(np.average(squares, weights=lengths))),
        "told": scales,
        "rows": rows,
    }


def ensemble_metadata(train: Frames) -> dict[str, Any]:
    """Metadata of the task ``ensemble``: mean conformation, and scale of displacements from it."""
    observed = ~np.isnan(train.positions).any(axis=(0, 3))  # (L, 4)
    points = train.positions[:, observed].astype(np.float64)
    mean = points[0]
    for _ in range(ITERATIONS):
        mean = superpose(points, mean).mean(axis=0)
    mean = mean - mean.mean(axis=0)
    reference = np.zeros((*observed.shape, 3))
    reference[observed] = mean
    displacement = superpose(points, mean) - mean
    return {
        "reference": reference,
        "observed": observed.astype(np.int64),
        "index": train.chain.index,
        "sequence": train.chain.sequence,
        "scale": float(np.sqrt((displacement**2).mean())) or 1.0,
    }


def _scale(values: Array) -> dict[str, list[float]]:
    mean, std = values.mean(axis=0), values.std(axis=0)
    return {"mean": mean.tolist(), "std": np.where(std > 0, std, 1.0).tolist()}


def encode_sequence(sequence: str) -> Array:
    """Indices of one-letter codes in `residues.LETTERS`."""
    return np.array([LETTERS.index(letter) for letter in sequence], np.int64)


def decode_sequence(indices: Array) -> str:
    """Undo `encode_sequence`; the null index (no condition) becomes X."""
    return "".join((LETTERS + "X")[index] for index in indices.tolist())


def draw_chain_conditions(
    cond: Mapping[str, Any], size: int | None, metadata: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Conditions of a random training chain near the requested values.

    Sequence and secondary structure come from a chain of the requested length, else a longer one.
    For a requested secondary structure the chain is drawn from the nearest sixteenth.

    Returns:
        ``length`` (1,), and if the model has these conditions ``secondary_structure`` (2,) and
        ``sequence`` (length,), with index ``len(LETTERS)`` for the null condition.

    Raises:
        ConditionError: lengths that are contradictory or out of range.
    """
    length = _requested_length(cond, size, int(metadata["most"]))
    rows = {name: np.asarray(values) for name, values in metadata["rows"].items()}
    fits = np.arange(len(rows["length"]))
    if length is not None:
        equal, longer = rows["length"] == length, rows["length"] > length
        if equal.any() or longer.any():
            fits = np.flatnonzero(equal if equal.any() else longer)
    shares = cond.get("secondary_structure")
    requested = np.full(2, np.nan) if shares is None else np.asarray(shares, np.float64)
    if np.isfinite(requested).any():
        distances = np.nansum((rows["secondary_structure"][fits] - requested) ** 2, axis=1)
        fits = fits[np.argsort(distances, kind="stable")[: max(1, len(fits) // 16)]]
    i = int(rng.choice(fits))
    length = int(rows["length"][i]) if length is None else length
    drawn: dict[str, Any] = {"length": [length]}
    if "secondary_structure" in rows:
        values = requested if np.isfinite(requested).any() else rows["secondary_structure"][i]
        is_null = _is_null(cond, "secondary_structure")
        drawn["secondary_structure"] = np.full(2, np.nan) if is_null else values
    if "sequence" in rows:
        letters = np.full(length, len(LETTERS), np.int64)
        known = rows["sequence"][i][:length]
        letters[: len(known)] = known
        is_null = _is_null(cond, "sequence")
        drawn["sequence"] = np.full(length, len(LETTERS)) if is_null else letters
    return drawn


def _is_null(cond: Mapping[str, Any], name: str) -> bool:
    return name in cond and cond[name] is None


def _requested_length(cond: Mapping[str, Any], size: int | None, longest: int) -> int | None:
    value = cond.get("length")
    number = None if value is None else float(value[0])
    if number is not None and number != round(number):
        raise ConditionError(f"length: {number:g} is not a number of residues")
    if number is not None and size is not None and size != number:
        raise ConditionError(f"{size} and {number:g} residues are both requested; size and "
                             "length must agree")  # fmt: skip
    length = size if number is None else int(number)
    if length is not None and not 1 <= length <= longest:
        raise ConditionError(f"{length} residues are out of range: the model was trained on up to "
                             f"{longest}")  # fmt: skip
    return length
