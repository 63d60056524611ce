"""EMA: exponential with warm-up and power-function, on the CPU beside a GPU, under FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from jitkit.errors import JitkitError
from jitkit.optim.ema import EMA, MAX_SIGMA_REL, _Offloader, decay_name, gamma_of, sigma_name


def set_weights(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)


def value_of(ema: EMA, name: str | float) -> float:
    """The value of an EMA whose weights are all equal."""
    values = {v.item() for average in ema.averages[str(name)].values() for v in average.flatten()}
    assert len(values) == 1
    return values.pop()


WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30)
SIGMAS = st.floats(0.01, MAX_SIGMA_REL)


@settings(deadline=None)
@given(WEIGHTS, st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3, unique=True))
def test_exponential_emas_equal_an_explicit_loop(weights: list[float], decays: list[float]) -> None:
    module = nn.Linear(2, 1)
    set_weights(module, weights[0])
    ema = EMA(module, decays)
    expected = dict.fromkeys(decays, weights[0])
    for k, weight in enumerate(weights):
        set_weights(module, weight)
        ema.update()
        for decay, average in expected.items():
            d = min(decay, (1 + k) / (10 + k))
            expected[decay] = d * average + (1 - d) * weight
    for decay, average in expected.items():
        assert value_of(ema, decay) == pytest.approx(average, abs=1e-4)


@settings(deadline=None)
@given(WEIGHTS, SIGMAS)
def test_a_power_function_ema_is_the_sum_of_all_weights_by_its_profile(
    weights: list[float], sigma_rel: float
) -> None:
    """The weight of update j is the profile's integral from (j - 1) / k to j / k."""
    module = nn.Linear(2, 1)
    set_weights(module, 7.0)
    ema = EMA(module, sigma_rels=[sigma_rel])
    for weight in weights:
        set_weights(module, weight)
        ema.update()
    times = np.arange(len(weights) + 1, dtype=np.float64) / len(weights)
    profile = np.diff(times ** (gamma_of(sigma_rel) + 1))
    assert profile.sum() == pytest.approx(1)
    expected = float(profile @ np.array(weights, np.float64))
    assert value_of(ema, sigma_name(sigma_rel)) == pytest.approx(expected, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(WEIGHTS, st.integers(0, 30))
def test_a_resumed_ema_equals_an_uninterrupted_one(weights: list[float], stop: int) -> None:
    def fresh() -> EMA:
        return EMA(module, [0.9, 0.99], [0.05, 0.2])

    module = nn.Linear(2, 1)
    set_weights(module, 1.0)
    uninterrupted, resumed = fresh(), fresh()
    for k, weight in enumerate(weights):
        if k == stop:
            saved, resumed = resumed, fresh()
            resumed.load(saved.updates, saved.averages)
        set_weights(module, weight)
        uninterrupted.update()
        resumed.update()
    assert resumed.updates == uninterrupted.updates
    assert [value_of(resumed, name) for name in resumed.averages] == [
        value_of(uninterrupted, name) for name in uninterrupted.averages
    ]


def test_with_warm_up_the_first_update_moves_nine_tenths_towards_the_weights() -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 0.0)
    ema = EMA(module, [0.9999, 0.05])
    set_weights(module, 1.0)
    ema.update()
    assert value_of(ema, 0.9999) == pytest.approx(0.9)
    assert value_of(ema, 0.05) == pytest.approx(0.95)  # a decay below that of the warm-up


def test_the_first_power_function_ema_is_bit_identical_to_the_weights() -> None:
    module = nn.Linear(30, 30)
    ema = EMA(module, sigma_rels=[0.01, 0.1, MAX_SIGMA_REL])
    nn.init.normal_(module.weight)
    ema.update()
    for average in ema.averages.values():
        assert torch.equal(average["weight"], module.weight.detach())


def test_the_ema_of_constant_weights_is_bit_identical_to_them() -> None:
    module = nn.Linear(30, 30)
    ema = EMA(module, [0.9], [0.01, 0.1, MAX_SIGMA_REL])
    for _ in range(50):
        ema.update()
    for average in ema.averages.values():
        assert torch.equal(average["weight"], module.weight.detach())


def test_with_warm_up_the_initial_weights_are_forgotten_after_a_few_steps() -> None:
    """Without warm-up, decay .9999 would keep 99.8 % of them."""
    module = nn.Linear(2, 1)
    set_weights(module, 1.0)
    ema = EMA(module, [0.9999])
    set_weights(module, 0.0)
    for _ in range(20):
        ema.update()
    remaining = prod((1 + k) / (10 + k) for k in range(20))
    assert value_of(ema, 0.9999) == pytest.approx(remaining, rel=1e-3) and remaining < 1e-6


def test_after_the_warm_up_the_decay_is_the_requested_one() -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 0.0)
    ema = EMA(module, [0.9])
    for _ in range(81):  # (1 + k) / (10 + k) reaches .9 at k = 80
        ema.update()
    set_weights(module, 1.0)
    ema.update()
    assert value_of(ema, 0.9) == pytest.approx(0.1, abs=1e-6)


def test_the_widest_power_function_ema_is_the_uniform_mean() -> None:
    module = nn.Linear(2, 1)
    ema = EMA(module, sigma_rels=[MAX_SIGMA_REL])
    for value in (1.0, 5.0, 3.0, 7.0):
        set_weights(module, value)
        ema.update()
    assert value_of(ema, sigma_name(MAX_SIGMA_REL)) == pytest.approx(4.0)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("updates", [300, 2000])
def test_a_relative_width_is_a_fraction_of_a_run_of_any_length(
    sigma_rel: float, updates: int
) -> None:
    """The mean of t and of t² give the standard deviation of the profile."""
    module = nn.Linear(2, 1, bias=False)
    ema = EMA(module, sigma_rels=[sigma_rel])
    for k in range(1, updates + 1):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[k / updates, (k / updates) ** 2]]))
        ema.update()
    mean, square = ema.averages[sigma_name(sigma_rel)]["weight"][0].tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=0.01)


@settings(deadline=None)
@given(st.floats(1e-4, MAX_SIGMA_REL))
def test_gamma_solves_the_equation_of_the_relative_width(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    assert gamma >= 0
    width = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
    assert width == pytest.approx(sigma_rel, rel=1e-9)


def test_gamma_equals_the_papers() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(MAX_SIGMA_REL) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, 1.0, float("nan"), float("inf")])
def test_a_relative_width_out_of_range_is_refused(sigma_rel: float) -> None:
    with pytest.raises(
        JitkitError, match=r"\(sigma_rel\) .* is out of range: .* up to 0\.2887 \(the uniform mean"
    ):
        EMA(nn.Linear(2, 1), sigma_rels=[sigma_rel])


def test_emas_have_typeable_names_in_the_requested_order() -> None:
    ema = EMA(nn.Linear(2, 1), [0.9999, 0.5], [0.1, 0.05])
    assert list(ema.averages) == ["0.9999", "0.5", "sigma-0.1", "sigma-0.05"]
    assert (decay_name(0.99990), sigma_name(0.10)) == ("0.9999", "sigma-0.1")


def test_emas_are_float32_copies_of_parameters_only() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).bfloat16()
    ema = EMA(module, [0.5], [0.1])
    set_weights(module, 7.0)
    for average in ema.averages.values():
        assert list(average) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        for value in average.values():
            assert value.dtype == torch.float32 and not value.requires_grad
            assert not (value == 7).any()
    assert ema.updates == 0
    ema.update()  # from bfloat16
    assert value_of(ema, "sigma-0.1") == 7


def test_emas_are_the_same_without_the_private_function_of_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> EMA:
        torch.manual_seed(0)
        module = nn.Linear(20, 20)
        ema = EMA(module, [0.9], [0.1])
        for _ in range(10):
            nn.init.normal_(module.weight)
            ema.update()
        return ema

    with_foreach = run()
    monkeypatch.delattr(torch, "_foreach_lerp_")
    without = run()
    for name, average in with_foreach.averages.items():
        assert torch.allclose(average["weight"], without.averages[name]["weight"], atol=1e-6)


def test_offloaded_emas_equal_those_on_the_device() -> None:
    """With a GPU the weights are copied to the CPU; here the copy is within the CPU's memory."""
    module = nn.Linear(20, 20)

    def fresh(*, offload: bool) -> EMA:
        ema = EMA(module, [0.9], [0.1], device=torch.device("cpu"))
        assert ema._offloader is None  # same device
        if offload:
            ema._offloader = _Offloader(ema._weights())
        return ema

    on_device, offloaded = fresh(offload=False), fresh(offload=True)
    for step in range(20):
        torch.manual_seed(step)
        nn.init.normal_(module.weight)
        on_device.update()
        offloaded.update()
        if step == 10:  # save and load while an update is pending
            saved = {
                name: {key: value.clone() for key, value in average.items()}
                for name, average in offloaded.averages.items()
            }
            offloaded.load(offloaded.updates, saved)
    for name, average in on_device.averages.items():
        for key, value in average.items():
            assert torch.equal(value, offloaded.averages[name][key])


def test_an_error_of_an_offloaded_update_is_raised_at_the_next_access() -> None:
    ema = EMA(nn.Linear(2, 1), [0.9])
    ema._offloader = _Offloader(ema._weights())
    ema._averages["0.9"]["weight"] = torch.zeros(3, 5)
    ema.update()
    with pytest.raises(RuntimeError, match="size"):
        ema.averages  # noqa: B018
    assert ema.averages  # and only once


@pytest.mark.gpu
def test_emas_offloaded_to_the_cpu_equal_those_on_the_gpu() -> None:
    module = nn.Linear(500, 500).cuda()
    on_gpu = EMA(module, [0.9], [0.1])
    on_cpu = EMA(module, [0.9], [0.1], device=torch.device("cpu"))
    for step in range(20):
        torch.manual_seed(step)
        nn.init.normal_(module.weight)
        on_gpu.update()
        on_cpu.update()
    for name, average in on_cpu.averages.items():
        for key, value in average.items():
            assert value.device.type == "cpu"
            expected = on_gpu.averages[name][key].cpu()
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


SHARDED = """
import json, os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from jitkit.optim.ema import EMA

rank, world = int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=world)


def weights(step):
    torch.manual_seed(step)
    return {"0.weight": torch.randn(5, 3), "0.bias": torch.randn(5),
            "1.weight": torch.randn(1, 5), "1.bias": torch.randn(1)}


def put(module, step):
    for name, p in module.named_parameters():
        value = weights(step)[name]
        if isinstance(p, DTensor):
            own = value.chunk(world)[rank:rank + 1]  # none with fewer rows than ranks
            value = own[0] if own else value[:0]
            p.to_local().detach().copy_(value)
        else:
            p.detach().copy_(value)


def fresh(shard):
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1))
    if shard:
        mesh = init_device_mesh("cpu", (world,))
        for layer in module:
            fully_shard(layer, mesh=mesh)
        fully_shard(module, mesh=mesh)
    put(module, 0)
    return module, EMA(module, [0.9], [0.1], device=torch.device("cpu"))


def main():
    (module, full), (sharded_module, sharded) = fresh(False), fresh(True)
    for step in range(1, 9):
        put(module, step), put(sharded_module, step)
        full.update(), sharded.update()
        if step == 4:  # save and load
            updates, sharded = sharded.updates, EMA(sharded_module, [0.9], [0.1])
            sharded.load(updates, full.averages)
    equal = all(
        isinstance(value, DTensor)
        and value.placements == dict(sharded_module.named_parameters())[key].placements
        and torch.equal(value.full_tensor(), full.averages[name][key])
        for name, average in sharded.averages.items() for key, value in average.items()
    )
    if rank == 0:
        sharded.update()  # without the other ranks: communication would block
        print(json.dumps({"equal": equal, "updates": sharded.updates}))
    dist.barrier()


main()
sys.stdout.flush()
os._exit(0)  # gloo's threads sometimes abort a process at exit
"""


@pytest.mark.parametrize("world", [1, 2])
def test_emas_of_sharded_parameters_equal_those_of_full_ones(tmp_path: Path, world: int) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, tmp_path / "meet", str(rank), str(world)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(world)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * world, answers[0][1]
    assert json.loads(answers[0][0]) == {"equal": True, "updates": 9}
