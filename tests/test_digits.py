"""The digits shipped with jitkit, and their metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from jitkit.domains.digits import (
    Digits,
    DigitsSection,
    frechet_pixels,
    label_agreement,
    nearest_distance,
)
from jitkit.domains.images.files import ImageItem
from jitkit.errors import DataError
from jitkit.fields import Category

DIGITS = Digits(DigitsSection(name="digits", label_drop=0.2))
TRAIN, VAL = DIGITS.items("train"), DIGITS.items("val")


def normal(rng: np.random.Generator, mean: float, std: float, num: int) -> Sequence[ImageItem]:
    """Images of two cells with normally distributed values, in levels of 0 to 255."""
    cells = np.rint(rng.normal(mean, std, (num, 1, 2, 1))).astype(np.uint8)
    return [ImageItem(c) for c in cells]


def test_the_file_has_1500_training_and_297_validation_digits() -> None:
    assert (len(TRAIN), len(VAL)) == (1500, 297)
    assert [item.label for item in TRAIN[:10]] == list(range(10))
    assert {item.name for item in TRAIN}.isdisjoint(item.name for item in VAL)
    assert DIGITS.layout.grid == (8, 8) and DIGITS.layout.patch == (2, 2)
    assert DIGITS.layout.channels == ("grey",)
    assert DIGITS.conditions == {"label": Category(10, 0.2)}


def test_pixels_are_sixteenths_of_ink_and_can_be_converted_back() -> None:
    levels = {level for item in TRAIN for level in np.unique(item.pixels).tolist()}
    assert levels == {round(ink / 16 * 255) for ink in range(17)}
    assert [round(level / 255 * 16) for level in sorted(levels)] == list(range(17))


def test_digits_equal_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    wanted = datasets.load_digits()
    ink = np.rint(np.stack([item.pixels[..., 0] for item in [*TRAIN, *VAL]]) / 255 * 16)
    np.testing.assert_array_equal(ink, wanted.images)
    np.testing.assert_array_equal([item.label for item in [*TRAIN, *VAL]], wanted.target)


def test_digits_are_never_mirrored() -> None:
    straight = DIGITS.encode(TRAIN[2]).values
    for seed in range(8):
        assert DIGITS.encode(TRAIN[2], np.random.default_rng(seed)).values.equal(straight)


def test_three_neighbours_classify_285_of_the_297_validation_digits() -> None:
    assert label_agreement(VAL, TRAIN) == 285 / 297


def test_label_agreement_is_the_share_of_samples_with_the_requested_label() -> None:
    right, wrong = TRAIN[0], ImageItem(TRAIN[0].pixels, label=7)
    assert label_agreement([right, right, wrong, right], TRAIN) == 0.75
    with pytest.raises(DataError, match="1 of 2 samples have none"):
        label_agreement([right, ImageItem(right.pixels)], TRAIN)


def test_the_nearest_distance_is_zero_for_copies_and_exact_for_a_changed_cell() -> None:
    assert nearest_distance(TRAIN[:50], TRAIN) == 0
    black, grey = (ImageItem(np.full((2, 2, 1), level, np.uint8)) for level in (0, 51))
    assert nearest_distance([grey], [black]) == pytest.approx(2 * 51 / 255)


def test_the_frechet_distance_is_zero_to_itself_and_grows_with_the_shift() -> None:
    assert frechet_pixels(TRAIN, TRAIN) == pytest.approx(0, abs=1e-9)
    moved = [ImageItem(item.pixels // 2, item.label) for item in TRAIN]
    assert frechet_pixels(VAL, TRAIN) < frechet_pixels(moved, TRAIN)


def test_the_frechet_distance_of_gaussians_matches_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = normal(rng, 100, 10, 4000), normal(rng, 140, 20, 4000)
    exact = 2 * (40**2 + (20 - 10) ** 2) / 255**2  # independent cells: (m - n)² + (s - r)² each
    assert frechet_pixels(a, b) == pytest.approx(exact, rel=0.03)
    assert frechet_pixels(a, b) == pytest.approx(frechet_pixels(b, a))


def test_metrics_are_finite_even_for_one_sample() -> None:
    for name, metric in DIGITS.scores().items():
        assert np.isfinite(metric(VAL[:1], TRAIN)), name
