"""AdamW and Muon parameter groups, weight decay, learning-rate schedule with warm-up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import layout, random_model
from test_trainer import assert_same
from torch import nn

from jitkit.fields import Category
from jitkit.optim.optimizers import MuonAdamW, adamw, learning_rate, optimizer_state
from jitkit.training.trainer import train


def learning_rates(
    num: int, *, warmup_steps: int, steps: int, schedule: Literal["constant", "cosine"]
) -> list[float]:
    return [
        learning_rate(k, peak=2.0, warmup_steps=warmup_steps, steps=steps, schedule=schedule)
        for k in range(num)
    ]


# Groups


def test_weight_decay_applies_to_matrices_only() -> None:
    network = random_model(layout((6, 2)), {"label": Category(3)}).network
    optimizer = adamw(network, betas=(0.9, 0.95), weight_decay=0.1)
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim == 1 for p in vectors["params"])
    grouped = [id(p) for group in (matrices, vectors) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.95), 1e-8, 0)


def test_with_zero_gradients_only_matrices_shrink() -> None:
    module = nn.Linear(2, 3)
    optimizer = adamw(module, betas=(0.9, 0.95), weight_decay=0.5)
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), weight * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias, bias)


def test_frozen_parameters_are_left_out() -> None:
    module = nn.Linear(2, 3)
    module.bias.requires_grad_(False)
    optimizer = adamw(module, betas=(0.9, 0.95), weight_decay=0.0)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


# The learning rate


def test_the_warm_up_rises_from_exactly_zero_to_the_peak() -> None:
    rates = learning_rates(7, warmup_steps=4, steps=100, schedule="constant")
    assert rates == [0, 0.5, 1, 1.5, 2, 2, 2]


def test_without_warm_up_the_learning_rate_starts_at_its_peak() -> None:
    assert learning_rates(3, warmup_steps=0, steps=3, schedule="constant") == [2, 2, 2]
    assert learning_rates(1, warmup_steps=0, steps=3, schedule="cosine") == [2]


def test_a_cosine_schedule_falls_to_zero_at_the_end() -> None:
    rates = learning_rates(13, warmup_steps=2, steps=10, schedule="cosine")
    assert rates[:3] == [0, 1, 2]
    assert rates[6] == pytest.approx(1)  # half way between 2 and 10
    assert rates[10:] == pytest.approx([0, 0, 0])  # and stays there


def test_a_run_that_is_all_warm_up_has_learning_rates() -> None:
    rates = learning_rates(4, warmup_steps=4, steps=4, schedule="cosine")
    assert rates == [0, 0.5, 1, 1.5]
    assert learning_rates(5, warmup_steps=4, steps=4, schedule="cosine")[4] == 2


@given(st.integers(0, 20), st.integers(1, 60), st.sampled_from(["constant", "cosine"]))
def test_the_learning_rate_never_rises_after_the_warm_up(
    warmup_steps: int, steps: int, schedule: Literal["constant", "cosine"]
) -> None:
    rates = learning_rates(steps + 5, warmup_steps=warmup_steps, steps=steps, schedule=schedule)
    rise, rest = rates[: warmup_steps + 1], rates[warmup_steps:]
    assert rise == sorted(rise) and rest == sorted(rest, reverse=True)
    assert min(rates) >= 0 and max(rates) <= 2


def test_muon_optimizes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    network = random_model(layout((8, 2), channels=1), {"label": Category(3)}).network
    optimizer = MuonAdamW(network, betas=(0.9, 0.95), weight_decay=0.1)
    ids = {id(p): name for name, p in network.named_parameters()}
    by_muon = {ids[id(p)] for p in optimizer.muon.param_groups[0]["params"]}
    assert by_muon == {
        f"blocks.{i}.{part}.weight"
        for i in range(3)
        for part in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3")
    }
    others = [p for group in optimizer.adamw.param_groups for p in group["params"]]
    assert {ids[id(p)] for p in others} == set(ids.values()) - by_muon
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    for name, p in network.named_parameters():
        assert not torch.equal(p, before[name])
        state, keys = optimizer_state(optimizer, p)
        assert sorted(state) == sorted(keys) and ("momentum_buffer" in keys) == (name in by_muon)
    name = "blocks.0.mlp.w3.weight"
    step = (dict(network.named_parameters())[name] - before[name] * (1 - 0.01 * 0.1)) / 0.01
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)  # the size of AdamW's


def test_a_resumed_run_with_muon_is_bit_identical(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["train"] |= {"optimizer": "muon"}
    uninterrupted = train(tiny, run=tmp_path / "uninterrupted")
    stopped = train(tiny, {"train.steps": 4}, run=tmp_path / "stopped")
    assert_same(uninterrupted, train(tiny, run=stopped))
