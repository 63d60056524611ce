"""How fast a run goes: known answers by a clock that the tests move."""

from __future__ import annotations

import math
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from jitkit.nn.memory import GIB
from jitkit.training.throughput import LINE, Meter, _resident_bytes, peak_flops

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def metered(clock: Clock, *, flops: float = 2e9, peak: float | None = 4e11) -> Meter:
    return Meter(flops_per_sample=flops, peak_flops=peak, device=CPU, clock=clock)


def train(meter: Meter, clock: Clock, steps: int, *, wait: float, work: float, n: int) -> None:
    for _ in range(steps):
        with meter.waiting():
            clock.pass_(wait)
        clock.pass_(work)
        meter.step(n)


# Speed


def test_speed_is_that_of_the_window_since_the_last_reading() -> None:
    clock = Clock()
    meter = metered(clock)
    train(meter, clock, 10, wait=0.0, work=5.0, n=1)
    meter.read()
    train(meter, clock, 10, wait=0.1, work=0.3, n=40)  # 400 samples in 4 s
    found = meter.read()
    assert found["samples_per_second"] == pytest.approx(100)
    assert found["tflops"] == pytest.approx(0.2)
    assert found["peak_share"] == pytest.approx(0.5)
    assert found["waiting_share"] == pytest.approx(0.25)


def test_a_window_in_which_nothing_happened_has_no_speed() -> None:
    clock = Clock()
    meter = metered(clock)
    for seconds in (0.0, 3.0):
        clock.pass_(seconds)
        found = meter.read()
        assert found["samples_per_second"] == found["waiting_share"] == found["tflops"] == 0


def test_what_is_no_training_counts_nowhere() -> None:
    clock = Clock()
    meter = metered(clock)
    train(meter, clock, 5, wait=0.5, work=0.5, n=10)
    with meter.paused():
        clock.pass_(1000.0)
    train(meter, clock, 5, wait=0.5, work=0.5, n=10)
    found = meter.read()
    assert found["samples_per_second"] == pytest.approx(10)
    assert found["waiting_share"] == pytest.approx(0.5)


def test_a_wait_that_ends_in_an_error_is_counted() -> None:
    clock = Clock()
    meter = metered(clock)
    with pytest.raises(StopIteration), meter.waiting():
        clock.pass_(1.0)
        raise StopIteration
    clock.pass_(1.0)
    assert meter.read()["waiting_share"] == pytest.approx(0.5)


def test_without_a_peak_there_is_no_share_until_it_is_given() -> None:
    clock = Clock()
    meter = metered(clock, peak=None)
    train(meter, clock, 1, wait=0.0, work=1.0, n=100)
    assert meter.read()["peak_share"] is None
    meter.peak_flops = 1e12
    train(meter, clock, 1, wait=0.0, work=1.0, n=100)
    assert meter.read()["peak_share"] == pytest.approx(0.2)


# Loss


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_the_smoothed_loss_is_the_weighted_mean_of_all_losses(losses: list[float]) -> None:
    meter = metered(Clock())
    smoothed = [meter.smooth(loss) for loss in losses][-1]
    weights = [0.98 ** (len(losses) - 1 - k) for k in range(len(losses))]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert smoothed == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_a_constant_loss_stays_itself_and_a_step_is_followed_in_about_50() -> None:
    meter = metered(Clock())
    assert [meter.smooth(3.0) for _ in range(1000)] == pytest.approx([3.0] * 1000)
    after = [meter.smooth(1.0) for _ in range(50)][-1]
    assert after == pytest.approx(1 + 2 * math.exp(-1), abs=0.02)


# The line


def test_the_line_tells_loss_speed_waiting_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jitkit.training.throughput._memory_gib", lambda device: 1.2)
    clock = Clock()
    meter = metered(clock, flops=3.155e9, peak=2.063e12)
    assert meter.line() == ""
    meter.smooth(0.0812)
    assert meter.line() == "loss 0.0812"
    train(meter, clock, 10, wait=0.01, work=0.24, n=103)
    told = "412 samples/s  1.30 TFLOP/s (63 % of peak)  waiting 4 %  1.20 GiB"
    assert meter.line() == f"loss 0.0812  {told}"
    train(meter, clock, 1, wait=0.5, work=0.5, n=103)  # too short a while to say something new
    assert meter.line() == f"loss 0.0812  {told}"
    train(meter, clock, 1, wait=0.5, work=0.5, n=103)
    assert "103 samples/s" in meter.line() and "waiting 50 %" in meter.line()


def test_the_line_does_not_disturb_what_is_read() -> None:
    clock = Clock()
    meter = metered(clock)
    for _ in range(10):
        train(meter, clock, 1, wait=0.0, work=1.5, n=30)
        meter.line()
    assert meter.read()["samples_per_second"] == pytest.approx(20)


@given(
    loss=st.floats(1e-12, 1e12),
    samples=st.integers(1, 10**7),
    work=st.floats(2, 1e5),
    flops=st.floats(1, 1e15),
    peak=st.none() | st.floats(1e9, 1e16),
)
def test_the_line_is_shorter_than_80_characters(
    loss: float, samples: int, work: float, flops: float, peak: float | None
) -> None:
    clock = Clock()
    meter = metered(clock, flops=flops, peak=peak)
    meter.smooth(loss)
    train(meter, clock, 1, wait=1.0, work=work, n=samples)
    assert meter.line().startswith("loss ") and "samples/s" in meter.line()
    assert len(meter.line()) <= LINE < 80


# Memory


def test_memory_grows_by_what_is_held() -> None:
    meter = metered(Clock())
    before = meter.read()["memory_gib"]
    held = np.ones(2**25)  # a quarter of a GiB
    after = meter.read()["memory_gib"]
    assert before is not None and after is not None and held.nbytes == GIB // 4
    assert 0.2 < after - before < 0.3


def test_memory_is_known_without_linux_and_is_the_most_that_was_held(tmp_path: Path) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = _resident_bytes(tmp_path / "nothing")
    assert found is not None and found >= most


# The peak


@pytest.mark.parametrize("speed", [1e9, 3e10, 2e11])
def test_a_machine_of_known_speed_is_measured_so(speed: float) -> None:
    with FlopCounterMode(display=False) as counter:

        def clock() -> float:
            return counter.get_total_flops() / speed

        assert peak_flops(CPU, torch.float32, clock=clock) == pytest.approx(speed)
        assert 0.3 <= clock() < 1.0  # its own seconds, warming up included


def test_the_best_of_an_uneven_machine_counts() -> None:
    with FlopCounterMode(display=False) as counter:
        asked = [0]

        def clock() -> float:
            """Seconds on a machine that loses 5 ms in every second timing."""
            asked[0] += 1
            return counter.get_total_flops() / 1e10 + 0.005 * (asked[0] // 4)

        assert peak_flops(CPU, torch.float32, clock=clock) == pytest.approx(1e10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_the_peak_draws_no_random_number_of_the_run(dtype: torch.dtype) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert peak_flops(CPU, dtype) > 1e6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


@pytest.mark.gpu
def test_a_gpu_tells_its_own_memory_and_keeps_it_after_the_peak_is_measured() -> None:
    gpu = torch.device("cuda")
    held = torch.ones(2**20, device=gpu)
    state = torch.cuda.get_rng_state()
    assert peak_flops(gpu, torch.bfloat16) > 1e12
    assert torch.equal(torch.cuda.get_rng_state(), state)
    meter = Meter(flops_per_sample=1.0, peak_flops=None, device=gpu)
    found = meter.read()["memory_gib"]
    assert found == pytest.approx(torch.cuda.max_memory_allocated() / GIB)
    assert found is not None and held.nbytes / GIB <= found < 0.1
