"""Conditioning: null conditions, condition dropout, and checks of a user's conditions."""

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


def conditions_for(n: int) -> dict[str, Tensor]:
    """A value of every kind of condition for each of n samples; none is null."""
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
    """Which samples have the null condition, (n,)."""
    condition = KINDS[name]
    if isinstance(condition, Category | PerToken):
        return (value == condition.n).flatten(1).all(1) if value.ndim > 1 else value == condition.n
    return value.isnan().flatten(1).all(1)


# Condition dropout


def draws(conditions: Mapping[str, Condition], n: int, seed: int) -> dict[str, Tensor]:
    """Uniform numbers on [0, 1) for each condition, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(n, generator=generator) for name in conditions}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.lists(st.sampled_from([0.0, 0.1, 0.5]), min_size=4, max_size=4))
def test_a_condition_is_kept_or_dropped_as_a_whole(seed: int, probabilities: list[float]) -> None:
    conditions: dict[str, Condition] = {
        "label": Category(10, probabilities[0]),
        "weather": Scalars(("wind", "rain"), probabilities[1]),
        "orography": Grid(("height",), probabilities[2]),
        "element": PerToken(5, probabilities[3]),
    }
    before = conditions_for(12)
    after = drop(conditions, before, draws(conditions, 12, seed))
    for name, condition in conditions.items():
        dropped = is_null(name, after[name])
        assert torch.equal(after[name][~dropped], before[name][~dropped])
        assert condition.drop > 0 or not dropped.any()


def test_each_condition_is_dropped_with_its_own_probability() -> None:
    n = 20_000
    conditions: dict[str, Condition] = {
        "label": Category(10, 0.1),
        "weather": Scalars(("wind", "rain"), 0.5),
        "never": Category(10, 0.0),
        "element": PerToken(5, 0.25),
    }
    cond = {name: conditions_for(n)[name] for name in ("label", "weather", "element")}
    after = drop(conditions, cond | {"never": cond["label"]}, draws(conditions, n, 0))
    dropped = {name: is_null(name, after[name]).double() for name in cond}
    for name, where in dropped.items():
        p = conditions[name].drop
        assert where.mean().item() == pytest.approx(p, abs=4 * sqrt(p * (1 - p) / n))
    both = (dropped["label"] * dropped["weather"]).mean().item()
    assert both == pytest.approx(0.05, abs=0.006)  # independent
    assert torch.equal(after["never"], cond["label"])


def test_dropout_depends_on_the_draws_only() -> None:
    conditions: dict[str, Condition] = {"label": Category(10, 0.5)}

    def dropped(seed: int, value: Tensor) -> Tensor:
        cond = drop(conditions, {"label": value}, draws(conditions, 64, seed))
        return is_null("label", cond["label"])

    ones, twos = torch.ones(64, dtype=torch.long), torch.full((64,), 2)
    assert torch.equal(dropped(0, ones), dropped(0, twos))
    assert not torch.equal(dropped(0, ones), dropped(1, ones))


def test_the_null_condition_is_class_n_or_nan() -> None:
    cond = conditions_for(2)
    null = {name: null_condition(condition, cond[name]) for name, condition in KINDS.items()}
    assert null["label"].tolist() == [10, 10]
    assert (null["element"] == 5).all()
    assert null["weather"].isnan().all() and null["orography"].isnan().all()
    for name, value in null.items():
        assert (value.shape, value.dtype) == (cond[name].shape, cond[name].dtype)


def test_missing_values_become_zero_and_a_mask() -> None:
    assert with_mask(torch.tensor([[1.5, nan, -2.0]])).tolist() == [[1.5, 0, -2, 1, 0, 1]]


# A user's conditions


def test_complete_conditions_are_unchanged() -> None:
    for name, value in ready(conditions_for(2)).items():
        assert torch.equal(value, conditions_for(2)[name])


def test_one_value_is_used_for_all_samples() -> None:
    cond = {name: value[1] for name, value in conditions_for(2).items()}
    for name, value in ready(cond, n=3).items():
        assert torch.equal(value, torch.stack([cond[name]] * 3))
    assert ready({"label": 7}, n=3)["label"].tolist() == [7, 7, 7]


def test_an_omitted_condition_is_null() -> None:
    for cond in (None, {}, dict.fromkeys(KINDS)):
        for name, value in ready(cond).items():
            assert value.shape == (2, *SHAPES[name]) and is_null(name, value).all()


def test_lists_and_whole_numbers_are_converted() -> None:
    value = ready({"label": [3, 10], "weather": [[1, 2], [3, 4]]})
    assert value["label"].dtype == torch.long and value["label"].tolist() == [3, 10]
    assert value["weather"].dtype == torch.float32


# Errors


def test_an_unknown_condition_is_refused_with_the_nearest_name() -> None:
    assert refusal({"lable": 3}) == (
        "the model has no condition 'lable'; it knows label, weather, orography, element; "
        "did you mean 'label'?"
    )
    assert refusal({"label": 3}, {}) == "the model has no condition 'label'; it takes none"


def test_a_condition_without_dropout_is_required() -> None:
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
        ("label", "cat", "condition 'label' is not numeric: 'cat'"),
    ],
)
def test_an_invalid_value_is_refused(name: str, value: Any, text: str) -> None:
    assert re.search(re.escape(text), refusal({name: value}))
