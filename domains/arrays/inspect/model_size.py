"""Sizes and lengths that a proposed recipe starts with: by the number of items, for a processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from jitkit.domains.arrays.plan import make_axes

if TYPE_CHECKING:
    from jitkit.domains.arrays.data import Data

SIZES = ((300, 96, 4), (3_000, 128, 4), (30_000, 192, 6), (300_000, 384, 8), (None, 768, 12))
"""Training items below which: width and depth. The last is the paper's B."""
MOST_FLOPS = 3e11  # of a step: a few seconds on two cores
BATCHES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Settings:
    """The other sections of a proposed recipe, and why they are so."""

    sections: Mapping[str, Any]
    reasons: tuple[str, ...]
    patch: tuple[int, ...]


def settings(data: Data, items: Mapping[str, int]) -> Settings:
    """Model, training and sampling for opened data, and how many items each split has."""
    channels = sum(len(v.channels) for v in data.plan.variables)
    axes = make_axes(data.plan.axes, data.plan.grid, (data.plan.along, data.section.window))
    tokens, patch = prod(axis.tokens for axis in axes), tuple(axis.patch for axis in axes)
    wanted = next(n for n, size in enumerate(SIZES) if size[0] is None or items["train"] < size[0])
    number = wanted
    while number and flops(SIZES[number], tokens, channels * prod(patch)) * 8 > MOST_FLOPS:
        number -= 1
    _, width, depth = SIZES[number]
    cost = flops(SIZES[number], tokens, channels * prod(patch))
    batch = _batch(items["train"], cost)
    steps = 1_000 if items["train"] < 100 else 2_000
    few = "as a processor trains it" if number < wanted else "for so many items"
    return Settings(
        {
            "model": {"width": width, "depth": depth, "heads": max(1, width // 32)},
            "train": _train(steps, batch, width),
            "sample": {"steps": 25},
            "evaluate": {"samples": max(8, min(200, items["train"]))},
        },
        (
            f"{channels} channel{'s' * (channels > 1)} on "
            f"{' x '.join(str(axis.size) for axis in axes)} cells; patches of "
            f"{' x '.join(map(str, patch))}, {tokens} tokens",
            f"a model of width {width} and depth {depth}, {few}; with a GPU and many items "
            "take model.width=768 model.depth=12 model.heads=12",
        ),
        patch,
    )


def flops(size: tuple[int | None, int, int], tokens: int, features: int) -> float:
    """Of a training step on one item: three passes, two for each multiply-add."""
    _, width, depth = size
    blocks = depth * (12 * width * width + 2 * tokens * width)
    ends = features * (128 + width) + 128 * width
    return 6.0 * tokens * (blocks + ends)


def _batch(items: int, cost: float) -> int:
    """The largest that a step has time for, and half of the items at most."""
    return next(n for n in BATCHES if n == 1 or (2 * n <= items and n * cost <= MOST_FLOPS))


def _train(steps: int, batch: int, width: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": batch,
        "lr": 1e-3 if width < 384 else 3e-4,
        "warmup_steps": 100,
        "schedule": "cosine",
        "clip_gradient": 1.0,
        "ema": [1 - 20 / steps, 1 - 10 / steps],  # of 5 % and 10 % of the steps
        "save_every_steps": 200,
        "preview_every_steps": 200,
        "preview_samples": 4,
        "validate_every_steps": 200,
        "validate_items": 64,
    }
