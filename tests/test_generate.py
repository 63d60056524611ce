"""Samples in native form; their conditioning from text, by default, and from real items."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_model

import jitkit
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import BadItem, ConditionError
from jitkit.fields import Category, Condition, Conditioning, Field, Grid, PerToken, Scalars
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for, parse_indices
from jitkit.sections import SampleSection

EVERY: dict[str, Condition] = {
    "label": Category(10),
    "energy": Scalars(("kinetic", "potential")),
    "past": Grid(("before",)),
    "element": PerToken(5),
}


class ConditionalDigits(Digits):
    """Digits with a condition of every kind; items in ``bad`` cannot be read."""

    def __init__(self, *names: str, bad: Sequence[str] = ()) -> None:
        super().__init__(DigitsSection(name="digits"))
        self.conditions = {name: EVERY[name] for name in names}
        self.bad = bad

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        if item.name in self.bad:
            raise BadItem(item.name, "torn")
        field = super().encode(item, rng)
        number = float(item.name)
        cond: dict[str, Any] = {
            "label": item.label,
            "energy": torch.tensor([number, nan]),
            "past": field.values + number,
            "element": torch.full((8, 8), int(number) % 5),
        }
        return Field(field.values, cond={name: cond[name] for name in self.conditions})


def model(*names: str, bad: Sequence[str] = ()) -> Denoiser:
    domain = ConditionalDigits(*names, bad=bad)
    denoiser = random_model(domain.layout.with_patch(4), domain.conditions)
    denoiser.domain = domain
    return denoiser


DIGITS = model("label")


def labels(n: int, text: str | None = None) -> list[int]:
    requested = {} if text is None else {"label": text}
    return conditioning_for(DIGITS, n, requested).cond["label"].tolist()


# Conditions as text


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("3", 4, [3, 3, 3, 3]),
        ("0-9", 10, list(range(10))),
        ("0-4", 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        ("0,1,2", 3, [0, 1, 2]),
        ("7,1", 4, [7, 7, 1, 1]),
        ("9,2-4", 4, [9, 2, 3, 4]),
        (" 3 , 5 - 6 ", 3, [3, 5, 6]),
        ("0-9", 3, [0, 3, 6]),
        ("10", 1, [10]),  # the null class
        ("none", 2, [10, 10]),
    ],
)
def test_classes_are_numbers_lists_or_ranges(text: str, n: int, expected: list[int]) -> None:
    assert labels(n, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("99", "condition 'label': 99 is not a class; classes are 0 to 9, and 10 for none"),
        ("cat", r"condition label='cat': expected a class \(3\), classes \(0,1,2\), a range"),
        ("3-1", "condition label='3-1': expected a class"),
        ("-1", "condition label='-1': expected a class"),
        ("1,,2", "condition label='1,,2': expected a class"),
        ("1.5", "condition label='1.5': expected a class"),
    ],
)
def test_an_invalid_class_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        labels(4, text)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6))
def test_indices_are_parsed_from_lists_and_ranges(expected: list[int]) -> None:
    assert parse_indices(",".join(map(str, expected))) == expected
    low, high = min(expected), max(expected)
    assert parse_indices(f"{low}-{high}") == list(range(low, high + 1))


def test_scalars_are_a_number_for_each_name() -> None:
    energy = conditioning_for(model("energy"), 2, {"energy": "0.5,-1e3"}).cond["energy"]
    assert energy.tolist() == [[0.5, -1000], [0.5, -1000]]
    unknown = conditioning_for(model("energy"), 1, {"energy": "nan,2"}).cond["energy"]
    assert unknown.isnan().tolist() == [[True, False]]
    for text in ("1", "1,2,3", "1,b"):
        with pytest.raises(
            ConditionError,
            match=f"energy='{text}': expected a number for each of kinetic, potential",
        ):
            conditioning_for(model("energy"), 2, {"energy": text})


def test_none_is_the_null_condition_of_every_kind() -> None:
    cond = conditioning_for(model(*EVERY), 3, dict.fromkeys(EVERY, "none")).cond
    assert cond["label"].tolist() == [10] * 3
    assert cond["energy"].shape == (3, 2) and bool(cond["energy"].isnan().all())
    assert cond["past"].shape == (3, 1, 8, 8) and bool(cond["past"].isnan().all())
    assert cond["element"].shape == (3, 8, 8) and bool((cond["element"] == 5).all())


def test_none_is_refused_if_the_model_was_trained_without_condition_dropout() -> None:
    domain = ConditionalDigits("label")
    domain.conditions = {"label": Category(10, drop=0)}
    always = random_model(domain.layout, domain.conditions)
    always.domain = domain
    with pytest.raises(ConditionError, match="'label' is missing, and the model was never trained"):
        conditioning_for(always, 2, {"label": "none"})


@pytest.mark.parametrize(
    ("name", "kind"), [("past", "a grid"), ("element", "a category in each cell")]
)
def test_arrays_cannot_be_given_as_text(name: str, kind: str) -> None:
    with pytest.raises(
        ConditionError,
        match=f"condition '{name}' is {kind}, which cannot be given as text .* val:0-15",
    ):
        conditioning_for(model(name), 2, {name: "3"})


def test_an_unknown_condition_is_refused_and_the_nearest_name_suggested() -> None:
    with pytest.raises(
        ConditionError, match="no condition 'lable'; it knows label; did you mean 'label'"
    ):
        conditioning_for(DIGITS, 2, {"lable": "3"})
    with pytest.raises(ConditionError, match="no condition 'label'; it takes none$"):
        conditioning_for(model(), 2, {"label": "3"})


# Default conditions


def test_all_classes_come_in_equal_runs_by_default() -> None:
    assert labels(20) == [i // 2 for i in range(20)]
    assert labels(3) == [0, 3, 6]


def test_items_provide_the_conditions_not_requested() -> None:
    val = Digits(DigitsSection(name="digits")).items("val")
    cond = conditioning_for(model(*EVERY), 5, {"label": "3"}, ("val", [4, 7])).cond
    assert cond["label"].tolist() == [3] * 5
    names = [float(val[i].name) for i in (4, 7, 4, 7, 4)]
    assert cond["energy"][:, 0].tolist() == names and bool(cond["energy"][:, 1].isnan().all())
    assert cond["element"][:, 2, 3].tolist() == [int(name) % 5 for name in names]
    pixels = torch.from_numpy(val[7].pixels[..., 0].astype(np.float32)) / 255 * 2 - 1
    torch.testing.assert_close(cond["past"][1, 0], pixels + names[1])


def test_labels_come_from_the_given_items() -> None:
    items = Digits(DigitsSection(name="digits")).items("train")
    cond = conditioning_for(DIGITS, 3, source=("train", [8, 9, 2])).cond
    assert cond["label"].tolist() == [items[i].label for i in (8, 9, 2)]


def test_evenly_spaced_validation_items_provide_other_conditions() -> None:
    cond = conditioning_for(model("label", "energy"), 3).cond
    assert cond["label"].tolist() == [0, 3, 6]
    assert cond["energy"][:, 0].tolist() == [1500, 1599, 1698]
    without = conditioning_for(model("energy", bad=["1599"]), 3).cond
    assert without["energy"][:, 0].tolist() == [1500, 1698, 1500]


def test_missing_or_unreadable_items_are_refused() -> None:
    with pytest.raises(ConditionError, match="split val has items 0 to 296, not 297"):
        conditioning_for(DIGITS, 2, source=("val", [0, 297]))
    with pytest.raises(BadItem, match="1501: torn"):
        conditioning_for(model("energy", bad=["1501"]), 2, source=("val", [0, 1]))
    every = [str(i) for i in range(1500, 1797)]
    with pytest.raises(ConditionError, match="no item of split val can be read"):
        conditioning_for(model("energy", bad=every), 2)


def test_a_split_without_items_gives_no_conditions() -> None:
    class Empty(ConditionalDigits):
        def items(self, split: Any) -> Sequence[ImageItem]:
            return []

    denoiser = model("label")
    denoiser.domain = Empty("label")
    with pytest.raises(ConditionError, match="split val has no items to take conditions from"):
        conditioning_for(denoiser, 2, source=("val", []))
    assert conditioning_for(denoiser, 2).cond["label"].tolist() == [0, 5]


# Samples

QUICK = SampleSection(steps=2, seed=3)


def drawn(n: int, *, first: int = 0, **keys: Any) -> list[ImageItem]:
    section = QUICK.model_copy(update=keys)
    cond = conditioning_for(DIGITS, n, {"label": "3"})
    return list(sample_items(DIGITS, n, cond, section, first=first))


def close(a: Sequence[ImageItem], b: Sequence[ImageItem]) -> bool:
    """Equal up to the last of 256 levels, which the order of sums may move."""
    pairs = zip(a, b, strict=True)
    return all(np.abs(one.pixels.astype(int) - other.pixels).max() <= 1 for one, other in pairs)


def test_a_sample_does_not_depend_on_batch_size_or_other_samples() -> None:
    eight = drawn(8)
    assert [item.label for item in eight] == [3] * 8
    assert close(eight, drawn(8, batch_size=3))
    assert close(eight[:2], drawn(2))
    assert close(eight[5:], drawn(3, first=5))
    assert close(eight[5:], drawn(3, first=5, batch_size=2))
    assert not close(eight[:4], eight[4:])
    assert not close(eight, drawn(8, seed=4))


def test_samples_are_generated_lazily() -> None:
    items = sample_items(
        DIGITS,
        10**6,
        Conditioning({"label": torch.zeros(10**6, dtype=torch.long)}),
        QUICK.model_copy(update={"batch_size": 2}),
    )
    assert close([next(items), next(items), next(items)], list(
        sample_items(DIGITS, 3, Conditioning({"label": torch.zeros(3, dtype=torch.long)}), QUICK)
    ))  # fmt: skip


def test_settings_reach_the_sampler() -> None:
    plain = drawn(4)
    changes: list[dict[str, Any]] = [
        {"method": "euler"},
        {"steps": 3},
        {"time_grid": "cosine", "steps": 3},
        {"guidance": 3.0, "guidance_interval": (0.0, 1.0)},
        {"t_eps": 0.9},
    ]
    for changed in changes:
        assert not close(plain, drawn(4, **changed)), changed
    assert close(
        plain, drawn(4, guidance=3.0, guidance_interval=(0.6, 0.9))
    )  # the network is evaluated at 0 and 1/2 only


def test_samples_depend_on_their_condition() -> None:
    def of(text: str) -> list[ImageItem]:
        return list(sample_items(DIGITS, 2, conditioning_for(DIGITS, 2, {"label": text}), QUICK))

    assert not close(of("3"), of("4"))
    assert [item.label for item in of("none")] == [None, None]


def test_samples_of_a_trained_run_are_written_as_files_of_its_domain(
    trained: Path, tmp_path: Path
) -> None:
    denoiser = jitkit.load(trained)
    items = sample_items(denoiser, 2, conditioning_for(denoiser, 2), QUICK)
    files = denoiser.domain.write(items, tmp_path / "out")
    assert [file.name for file in files] == ["00000.png", "00001.png", "grid.png", "samples.npz"]
    assert all(file.stat().st_size > 0 for file in files)
