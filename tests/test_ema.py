"""Running means of the weights: right after a few steps, and after many."""

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
from jitkit.optim.ema import EMA, WIDEST, _Ferry, gamma_of, mean_name, sigma_name


def set_weights(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)


def of(ema: EMA, name: str | float) -> float:
    """The mean where all weights are alike."""
    values = {v.item() for mean in ema.means[str(name)].values() for v in mean.flatten()}
    assert len(values) == 1
    return values.pop()


WEIGHTS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30)
SIGMAS = st.floats(0.01, WIDEST)


@settings(deadline=None)
@given(WEIGHTS, st.lists(st.floats(0.01, 0.9999), min_size=1, max_size=3, unique=True))
def test_exponential_means_are_those_of_a_plain_loop(
    weights: list[float], decays: list[float]
) -> None:
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


@settings(deadline=None)
@given(WEIGHTS, SIGMAS)
def test_a_power_function_mean_is_the_sum_of_all_weights_by_its_profile(
    weights: list[float], sigma_rel: float
) -> None:
    """Update j counts the profile's integral from (j - 1) / k to j / k."""
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
    assert of(ema, sigma_name(sigma_rel)) == pytest.approx(expected, abs=1e-4)


@settings(deadline=None, max_examples=20)
@given(WEIGHTS, st.integers(0, 30))
def test_a_mean_that_is_loaded_goes_on_as_if_nothing_had_happened(
    weights: list[float], stop: int
) -> None:
    def fresh() -> EMA:
        return EMA(module, [0.9, 0.99], [0.05, 0.2])

    module = nn.Linear(2, 1)
    set_weights(module, 1.0)
    straight, stopped = fresh(), fresh()
    for k, weight in enumerate(weights):
        if k == stop:
            saved, stopped = stopped, fresh()
            stopped.load(saved.updates, saved.means)
        set_weights(module, weight)
        straight.update()
        stopped.update()
    assert stopped.updates == straight.updates
    assert [of(stopped, name) for name in stopped.means] == [
        of(straight, name) for name in straight.means
    ]


def test_the_first_update_takes_nine_tenths_of_the_weights() -> None:
    module = nn.Linear(2, 1)
    set_weights(module, 0.0)
    ema = EMA(module, [0.9999, 0.05])
    set_weights(module, 1.0)
    ema.update()
    assert of(ema, 0.9999) == pytest.approx(0.9)
    assert of(ema, 0.05) == pytest.approx(0.95)  # a decay that is less than the warm-up's


def test_the_first_power_function_mean_is_the_weights_to_the_bit() -> None:
    module = nn.Linear(30, 30)
    ema = EMA(module, sigma_rels=[0.01, 0.1, WIDEST])
    nn.init.normal_(module.weight)
    ema.update()
    for mean in ema.means.values():
        assert torch.equal(mean["weight"], module.weight.detach())


def test_the_mean_of_weights_that_stay_is_these_weights_to_the_bit() -> None:
    module = nn.Linear(30, 30)
    ema = EMA(module, [0.9], [0.01, 0.1, WIDEST])
    for _ in range(50):
        ema.update()
    for mean in ema.means.values():
        assert torch.equal(mean["weight"], module.weight.detach())


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


def test_the_widest_mean_is_the_plain_mean() -> None:
    module = nn.Linear(2, 1)
    ema = EMA(module, sigma_rels=[WIDEST])
    for value in (1.0, 5.0, 3.0, 7.0):
        set_weights(module, value)
        ema.update()
    assert of(ema, sigma_name(WIDEST)) == pytest.approx(4.0)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("updates", [300, 2000])
def test_a_relative_width_is_a_share_of_the_run_however_long_it_is(
    sigma_rel: float, updates: int
) -> None:
    """The mean of t and of t² give the standard deviation of the profile."""
    module = nn.Linear(2, 1, bias=False)
    ema = EMA(module, sigma_rels=[sigma_rel])
    for k in range(1, updates + 1):
        with torch.no_grad():
            module.weight.copy_(torch.tensor([[k / updates, (k / updates) ** 2]]))
        ema.update()
    mean, square = ema.means[sigma_name(sigma_rel)]["weight"][0].tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=0.01)


@settings(deadline=None)
@given(st.floats(1e-4, WIDEST))
def test_gamma_solves_the_equation_of_its_width(sigma_rel: float) -> None:
    gamma = gamma_of(sigma_rel)
    assert gamma >= 0
    width = (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
    assert width == pytest.approx(sigma_rel, rel=1e-9)


def test_gamma_is_that_of_the_paper() -> None:
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, 1.0, float("nan"), float("inf")])
def test_a_width_that_no_power_function_has_is_refused(sigma_rel: float) -> None:
    with pytest.raises(JitkitError, match=r"\(sigma_rel\) of .* reach 0\.2887 \(the plain mean"):
        EMA(nn.Linear(2, 1), sigma_rels=[sigma_rel])


def test_means_stand_in_the_order_that_was_asked_under_names_that_can_be_typed() -> None:
    ema = EMA(nn.Linear(2, 1), [0.9999, 0.5], [0.1, 0.05])
    assert list(ema.means) == ["0.9999", "0.5", "sigma-0.1", "sigma-0.05"]
    assert (mean_name(0.99990), sigma_name(0.10)) == ("0.9999", "sigma-0.1")


def test_means_are_copies_in_float32_of_weights_alone() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)).bfloat16()
    ema = EMA(module, [0.5], [0.1])
    set_weights(module, 7.0)
    for mean in ema.means.values():
        assert list(mean) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        for value in mean.values():
            assert value.dtype == torch.float32 and not value.requires_grad
            assert not (value == 7).any()
    assert ema.updates == 0
    ema.update()  # from bfloat16
    assert of(ema, "sigma-0.1") == 7


def test_without_the_private_function_of_torch_the_means_are_the_same(
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

    together = run()
    monkeypatch.delattr(torch, "_foreach_lerp_")
    apart = run()
    for name, mean in together.means.items():
        assert torch.allclose(mean["weight"], apart.means[name]["weight"], atol=1e-6)


def test_means_beside_a_device_are_those_on_it() -> None:
    """On a GPU the weights travel; here they are carried within the processor's memory."""
    module = nn.Linear(20, 20)

    def fresh(*, far: bool) -> EMA:
        found = EMA(module, [0.9], [0.1], device=torch.device("cpu"))
        assert found._ferry is None  # nothing to carry
        if far:
            found._ferry = _Ferry(found._weights())
        return found

    near, far = fresh(far=False), fresh(far=True)
    for step in range(20):
        torch.manual_seed(step)
        nn.init.normal_(module.weight)
        near.update()
        far.update()
        if step == 10:  # as if saved and read again, while an update is on its way
            far.load(
                far.updates, {n: {k: v.clone() for k, v in m.items()} for n, m in far.means.items()}
            )
    for name, mean in near.means.items():
        for key, value in mean.items():
            assert torch.equal(value, far.means[name][key])


def test_what_goes_wrong_beside_the_device_is_raised_to_who_asks() -> None:
    ema = EMA(nn.Linear(2, 1), [0.9])
    ema._ferry = _Ferry(ema._weights())
    ema._means["0.9"]["weight"] = torch.zeros(3, 5)
    ema.update()
    with pytest.raises(RuntimeError, match="size"):
        ema.means  # noqa: B018
    assert ema.means  # and once only


@pytest.mark.gpu
def test_means_of_a_gpu_s_weights_kept_on_the_processor_are_those_on_the_gpu() -> None:
    module = nn.Linear(500, 500).cuda()
    near = EMA(module, [0.9], [0.1])
    far = EMA(module, [0.9], [0.1], device=torch.device("cpu"))
    for step in range(20):
        torch.manual_seed(step)
        nn.init.normal_(module.weight)
        near.update()
        far.update()
    for name, mean in far.means.items():
        for key, value in mean.items():
            assert value.device.type == "cpu"
            torch.testing.assert_close(value, near.means[name][key].cpu(), rtol=1e-6, atol=1e-6)


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
            mine = value.chunk(world)[rank:rank + 1]  # none for what has fewer rows than ranks
            value = mine[0] if mine else value[:0]
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
    (whole, plain), (parts, spread) = fresh(False), fresh(True)
    for step in range(1, 9):
        put(whole, step), put(parts, step)
        plain.update(), spread.update()
        if step == 4:  # as if it had been saved and read again
            saved, spread = spread.updates, EMA(parts, [0.9], [0.1])
            spread.load(saved, plain.means)
    alike = all(
        isinstance(value, DTensor)
        and value.placements == dict(parts.named_parameters())[key].placements
        and torch.equal(value.full_tensor(), plain.means[name][key])
        for name, mean in spread.means.items() for key, value in mean.items()
    )
    if rank == 0:
        spread.update()  # the others do not take part: it would wait for them if it sent anything
        print(json.dumps({"alike": alike, "updates": spread.updates}))
    dist.barrier()


main()
sys.stdout.flush()
os._exit(0)  # gloo's threads abort a process that takes itself apart, now and then
"""


@pytest.mark.parametrize("world", [1, 2])
def test_means_of_weights_spread_over_processes_are_those_of_whole_ones(
    tmp_path: Path, world: int
) -> None:
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
    assert json.loads(answers[0][0]) == {"alike": True, "updates": 9}
