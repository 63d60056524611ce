"""Running means of the weights: right after a few steps, and after many."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jitkit.ema import EMA


def set_weights(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)


def of(ema: EMA, decay: float) -> float:
    """The mean where all weights are alike."""
    values = {v.item() for mean in ema.means[decay].values() for v in mean.flatten()}
    assert len(values) == 1
    return values.pop()


WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30)


@settings(deadline=None)
@given(WEIGHTS, st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3, unique=True))
def test_means_are_those_of_a_plain_loop(weights: list[float], decays: list[float]) -> None:
    module = nn.Linear(2, 1)
    set_weights(module, weights[0])
    ema = EMA(module, decays)
    means = dict.fromkeys(decays, weights[0])
    for k, weight in enumerate(weights):
        set_weights(module, weight)
        ema.update()
        for decay, mean in means.items():
            d = min(decay, (1 + k) / (10 + k))
            means[decay] = d * mean + (1 - d) * weight
    for decay, mean in means.items():
        assert of(ema, decay) == pytest.approx(mean, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(WEIGHTS, st.integers(0, 30))
def test_a_mean_that_is_loaded_goes_on_as_if_nothing_had_happened(
    weights: list[float], stop: int
) -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 1.0)
    straight, stopped = EMA(module, [0.9, 0.99]), EMA(module, [0.9, 0.99])
    for k, weight in enumerate(weights):
        if k == stop:
            saved, stopped = stopped, EMA(module, [0.9, 0.99])
            stopped.load(saved.updates, saved.means)
        set_weights(module, weight)
        straight.update()
        stopped.update()
    assert (stopped.updates, [of(stopped, d) for d in (0.9, 0.99)]) == (
        straight.updates,
        [of(straight, d) for d in (0.9, 0.99)],
    )


def test_the_first_update_takes_nine_tenths_of_the_weights() -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 0.0)
    ema = EMA(module, [0.9999, 0.05])
    set_weights(module, 1.0)
    ema.update()
    assert of(ema, 0.9999) == pytest.approx(0.9)
    assert of(ema, 0.05) == pytest.approx(0.95)  # a decay that is less than the warm-up's


def test_after_a_few_steps_nothing_is_left_of_the_first_weights() -> None:
    """Without warm-up .9999 would hold 99.8 % of them."""
    module = nn.Linear(2, 1)
    set_weights(module, 1.0)
    ema = EMA(module, [0.9999])
    set_weights(module, 0.0)
    for _ in range(20):
        ema.update()
    left = prod((1 + k) / (10 + k) for k in range(20))
    assert of(ema, 0.9999) == pytest.approx(left, rel=1e-3) and left < 1e-6


def test_after_many_steps_the_decay_is_what_was_asked() -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 0.0)
    ema = EMA(module, [0.9])
    for _ in range(81):  # (1 + k) / (10 + k) reaches .9 at k = 80
        ema.update()
    set_weights(module, 1.0)
    ema.update()
    assert of(ema, 0.9) == pytest.approx(0.1, abs=1e-6)


def test_means_are_copies_in_float32_of_weights_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    ema = EMA(module, [0.5])
    assert list(ema.means[0.5]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert ema.updates == 0
    before = {name: value.clone() for name, value in ema.means[0.5].items()}
    set_weights(module, 7.0)
    for name, value in ema.means[0.5].items():
        assert value.dtype == torch.float32 and not value.requires_grad
        assert torch.equal(value, before[name])
