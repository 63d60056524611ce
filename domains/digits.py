"""Domain `digits`: 1,797 handwritten digits, grey images of 8 x 8 cells (`digits.md`).

Real data shipped with jitkit, small enough to train on in minutes, with metrics that need no
other network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limit

from jitkit.domain import Metric, Split, lower_is_better
from jitkit.domains.images import ImageDomain, ImageItem
from jitkit.errors import DataError
from jitkit.metrics.fid.section import FidSection
from jitkit.metrics.frechet import frechet_distance
from jitkit.sections import DomainSection
from jitkit.utils.types import Array

FILE = Path(__file__).with_name("digits.npz")
NUM_TRAIN = 1500


class DigitsSection(DomainSection):
    """Section ``domain`` of a recipe: the digits shipped with jitkit."""

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "fid")

    label_drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of labels dropped in training, as classifier-free guidance (CFG) needs."""
    fid: FidSection = FidSection()
    """How FID and related metrics are computed, if requested."""


class Digits(ImageDomain):
    """Digits 0 to 9, 8 x 8 cells of ink, never mirrored.

    The first 1,500 items are the training split, the last 297 the validation split, unshuffled:
    neighbours in the file tend to share a writer, so most validation writers are new. 3 nearest
    neighbours classify 96 % of the validation digits, and 99 % after a shuffle.
    """

    Section: ClassVar[type[DomainSection]] = DigitsSection
    num_classes = 10

    def __init__(self, section: DigitsSection) -> None:
        super().__init__(section, 8, 1, label_drop=section.label_drop, fid=section.fid)

    def items(self, split: Split) -> Sequence[ImageItem]:
        """1,500 or 297 digits; pixels (8, 8, 1) are sixteenths of ink scaled to 0 to 255."""
        with np.load(FILE) as file:
            ink, labels = file["ink"], file["labels"]  # (1797, 8, 8) 0 to 16, (1797,) uint8
        pixels = np.rint(ink / 16 * 255).astype(np.uint8)[..., None]
        indices = range(len(labels))
        indices = indices[:NUM_TRAIN] if split == "train" else indices[NUM_TRAIN:]
        return [ImageItem(pixels[i], int(labels[i]), f"{i:04}") for i in indices]

    def scores(self) -> Mapping[str, Metric]:
        """Metrics of samples against the training digits; pixels are scaled to 0 to 1."""
        return {
            "label_agreement": label_agreement,
            "nearest_distance": nearest_distance,
            "frechet_pixels": frechet_pixels,
        }


def label_agreement(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Share of samples that a 3-nearest-neighbour classifier gives the requested label.

    The validation digits score 0.96. If all three neighbours differ the lowest digit is taken, as
    in scikit-learn.

    Raises:
        DataError: a sample has no label.
    """
    requested = [sample.label for sample in samples]
    if None in requested:
        raise DataError(
            f"label_agreement needs labels, and {requested.count(None)} of {len(requested)} "
            f"samples have none; sample with labels"
        )
    nearest = np.argsort(_distances(samples, train), axis=1, kind="stable")[:, :3]
    labels = np.array([item.label for item in train])[nearest]  # (N, 3)
    votes = (labels[..., None] == np.arange(10)).sum(axis=1)  # (N, 10)
    return float(np.mean(votes.argmax(axis=1) == np.array(requested)))


def nearest_distance(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Mean Euclidean distance to the nearest training item; zero for copies of training items."""
    return float(_distances(samples, train).min(axis=1).mean())


@lower_is_better
def frechet_pixels(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Fréchet distance between Gaussians fitted to the pixels, scaled to 0 to 1."""
    return frechet_distance(_flat(samples) / 255, _flat(train) / 255)


def _flat(items: Sequence[ImageItem]) -> Array:
    """Flattened pixels of every item, 0 to 255, (N, D) float64."""
    return np.stack([item.pixels.ravel() for item in items]).astype(np.float64)


def _distances(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> Array:
    """Euclidean distance between every sample and every training item, (N, M)."""
    a, b = _flat(samples), _flat(train)  # integers, so equal images have distance 0
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(squares) / 255
