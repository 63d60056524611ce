"""What a model may be told: not telling it, forgetting in training, and what a user may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import nan, sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.errors import ConditionError
from jitkit.fields import Category, Condition, Grid, PerToken, Scalars
from jitkit.nn.conditioning import drop, null_condition, prepare, with_mask

KINDS: dict[str, Condition] = {
    "label": Category(10),
    "weather": Scalars(("wind", "rain")),
    "orography": Grid(("height",)),
    "element": PerToken(5),
}
GRID = (3, 4)
SHAPES: dict[str, tuple[int, ...]] = {
    "label": (),
    "weather": (2,),
    "orography": (1, 3, 4),
    "element": (3, 4),
}


def told(n: int) -> dict[str, Tensor]:
    """A value of every kind for each of n samples; none is what stands for "not told"."""
    return {
        "label": torch.arange(n) % 10,
        "weather": torch.randn(n, 2, generator=torch.Generator().manual_seed(0)),
        "orography": torch.ones(n, 1, *GRID),
        "element": torch.full((n, *GRID), 3),
    }


def ready(
    cond: Mapping[str, Any] | None,
    conditions: Mapping[str, Condition] = KINDS,
    n: int = 2,
) -> dict[str, Tensor]:
    return prepare(conditions, cond, n=n, grid=GRID, device=torch.device("cpu"))


def refusal(
    cond: Mapping[str, Any] | None, conditions: Mapping[str, Condition] = KINDS, n: int = 2
) -> str:
    with pytest.raises(ConditionError) as caught:
        ready(cond, conditions, n)
    return str(caught.value)


def is_null(name: str, value: Tensor) -> Tensor:
    """Which samples are not told, (n,)."""
    condition = KINDS[name]
    if isinstance(condition, Category | PerToken):
        return (value == condition.n).flatten(1).all(1) if value.ndim > 1 else value == condition.n
    return value.isnan().flatten(1).all(1)


# Forgetting


def draws(conditions: Mapping[str, Condition], n: int, seed: int) -> dict[str, Tensor]:
    """Numbers even over [0, 1) for each condition, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n, generator=generator) for name in conditions}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.lists(st.sampled_from([0.0, 0.1, 0.5]), min_size=4, max_size=4))
def test_a_sample_keeps_a_condition_whole_or_loses_it_whole(
    seed: int, probabilities: list[float]
) -> None:
    conditions: dict[str, Condition] = {
        "label": Category(10, probabilities[0]),
        "weather": Scalars(("wind", "rain"), probabilities[1]),
        "orography": Grid(("height",), probabilities[2]),
        "element": PerToken(5, probabilities[3]),
    }
    before = told(12)
    after = drop(conditions, before, draws(conditions, 12, seed))
    for name, condition in conditions.items():
        lost = is_null(name, after[name])
        assert torch.equal(after[name][~lost], before[name][~lost])
        assert condition.drop > 0 or not lost.any()


def test_each_condition_is_forgotten_with_its_own_probability() -> None:
    n = 20_000
    conditions: dict[str, Condition] = {
        "label": Category(10, 0.1),
        "weather": Scalars(("wind", "rain"), 0.5),
        "never": Category(10, 0.0),
        "element": PerToken(5, 0.25),
    }
    cond = {name: told(n)[name] for name in ("label", "weather", "element")}
    after = drop(conditions, cond | {"never": cond["label"]}, draws(conditions, n, 0))
    lost = {name: is_null(name, after[name]).double() for name in cond}
    for name, where in lost.items():
        p = conditions[name].drop
        assert where.mean().item() == pytest.approx(p, abs=4 * sqrt(p * (1 - p) / n))
    together = (lost["label"] * lost["weather"]).mean().item()
    assert together == pytest.approx(0.05, abs=0.006)  # independent of one another
    assert torch.equal(after["never"], cond["label"])


def test_what_is_forgotten_follows_from_the_draws_alone() -> None:
    conditions: dict[str, Condition] = {"label": Category(10, 0.5)}

    def lost(seed: int, value: Tensor) -> Tensor:
        told = drop(conditions, {"label": value}, draws(conditions, 64, seed))
        return is_null("label", told["label"])

    ones, twos = torch.ones(64, dtype=torch.long), torch.full((64,), 2)
    assert torch.equal(lost(0, ones), lost(0, twos))
    assert not torch.equal(lost(0, ones), lost(1, ones))


def test_not_told_is_class_n_or_nan() -> None:
    cond = told(2)
    nothing = {name: null_condition(condition, cond[name]) for name, condition in KINDS.items()}
    assert nothing["label"].tolist() == [10, 10]
    assert (nothing["element"] == 5).all()
    assert nothing["weather"].isnan().all() and nothing["orography"].isnan().all()
    for name, value in nothing.items():
        assert (value.shape, value.dtype) == (cond[name].shape, cond[name].dtype)


def test_missing_numbers_are_zero_beside_a_mask() -> None:
    assert with_mask(torch.tensor([[1.5, nan, -2.0]])).tolist() == [[1.5, 0, -2, 1, 0, 1]]


# What a user may say


def test_a_complete_answer_is_taken_as_it_is() -> None:
    for name, value in ready(told(2)).items():
        assert torch.equal(value, told(2)[name])


def test_one_value_stands_for_all_samples() -> None:
    cond = {name: value[1] for name, value in told(2).items()}
    for name, value in ready(cond, n=3).items():
        assert torch.equal(value, torch.stack([cond[name]] * 3))
    assert ready({"label": 7}, n=3)["label"].tolist() == [7, 7, 7]


def test_what_is_left_out_is_not_told() -> None:
    for cond in (None, {}, dict.fromkeys(KINDS)):
        for name, value in ready(cond).items():
            assert value.shape == (2, *SHAPES[name]) and is_null(name, value).all()


def test_lists_and_whole_numbers_are_converted() -> None:
    value = ready({"label": [3, 10], "weather": [[1, 2], [3, 4]]})
    assert value["label"].dtype == torch.long and value["label"].tolist() == [3, 10]
    assert value["weather"].dtype == torch.float32


# Mistakes


def test_an_unknown_condition_is_refused_with_the_nearest_name() -> None:
    assert refusal({"lable": 3}) == (
        "the model has no condition 'lable'; it knows label, weather, orography, element; "
        "did you mean 'label'?"
    )
    assert refusal({"label": 3}, {}) == "the model has no condition 'label'; it takes none"


def test_a_condition_that_was_never_forgotten_must_be_told() -> None:
    conditions = {"past": Grid(("height",), drop=0)}
    text = "condition 'past' is missing, and the model was never trained without it"
    assert refusal({}, conditions) == text
    assert refusal({"past": None}, conditions) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("label", 11, "'label': 11 is not a class; classes are 0 to 9, and 10 for none"),
        ("label", [0, -1], "'label': -1 is not a class"),
        ("element", torch.full((2, 3, 4), 6), "'element': 6 is not a class; classes are 0 to 4"),
        ("label", 3.0, "'label' is a category: whole numbers, not torch.float32"),
        ("label", True, "'label' is a category: whole numbers, not torch.bool"),
        ("element", torch.zeros(3, 4), "'element' is a category: whole numbers, not torch.float32"),
        ("label", [1, 2, 3], "'label' has shape (3,); expected (2,), or () for all samples alike"),
        ("weather", [1.0, 2.0, 3.0], "'weather' has shape (3,); expected (2, 2), or (2,) for all"),
        ("orography", torch.zeros(2, 1, 3, 5), "has shape (2, 1, 3, 5); expected (2, 1, 3, 4), or"),
        ("element", torch.zeros(4, 3).long(), "'element' has shape (4, 3); expected (2, 3, 4), or"),
        ("label", "cat", "condition 'label' is not numbers: 'cat'"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(name: str, value: Any, text: str) -> None:
    assert re.search(re.escape(text), refusal({name: value}))
