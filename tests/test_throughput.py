"""Throughput: known answers with a simulated clock."""

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
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_meter(clock: Clock, *, flops: float = 2e9, peak: float | None = 4e11) -> Meter:
    return Meter(flops_per_sample=flops, peak_flops=peak, device=CPU, clock=clock)


def train(meter: Meter, clock: Clock, steps: int, *, wait: float, work: float, n: int) -> None:
    for _ in range(steps):
        with meter.waiting():
            clock.advance(wait)
        clock.advance(work)
        meter.step(n)


# Speed


def test_throughput_is_measured_since_the_last_reading() -> None:
    clock = Clock()
    meter = make_meter(clock)
    train(meter, clock, 10, wait=0.0, work=5.0, n=1)
    meter.read()
    train(meter, clock, 10, wait=0.1, work=0.3, n=40)  # 400 samples in 4 s
    speed = meter.read()
    assert speed["samples_per_second"] == pytest.approx(100)
    assert speed["tflops"] == pytest.approx(0.2)
    assert speed["peak_share"] == pytest.approx(0.5)
    assert speed["waiting_share"] == pytest.approx(0.25)


def test_a_window_without_steps_has_zero_throughput() -> None:
    clock = Clock()
    meter = make_meter(clock)
    for seconds in (0.0, 3.0):
        clock.advance(seconds)
        speed = meter.read()
        assert speed["samples_per_second"] == speed["waiting_share"] == speed["tflops"] == 0


def test_paused_time_is_not_counted() -> None:
    clock = Clock()
    meter = make_meter(clock)
    train(meter, clock, 5, wait=0.5, work=0.5, n=10)
    with meter.paused():
        clock.advance(1000.0)
    train(meter, clock, 5, wait=0.5, work=0.5, n=10)
    speed = meter.read()
    assert speed["samples_per_second"] == pytest.approx(10)
    assert speed["waiting_share"] == pytest.approx(0.5)


def test_a_wait_that_ends_in_an_error_is_counted() -> None:
    clock = Clock()
    meter = make_meter(clock)
    with pytest.raises(StopIteration), meter.waiting():
        clock.advance(1.0)
        raise StopIteration
    clock.advance(1.0)
    assert meter.read()["waiting_share"] == pytest.approx(0.5)


def test_mfu_is_none_until_the_peak_is_known() -> None:
    clock = Clock()
    meter = make_meter(clock, peak=None)
    train(meter, clock, 1, wait=0.0, work=1.0, n=100)
    assert meter.read()["peak_share"] is None
    meter.peak_flops = 1e12
    train(meter, clock, 1, wait=0.0, work=1.0, n=100)
    assert meter.read()["peak_share"] == pytest.approx(0.2)


# Loss


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_the_smoothed_loss_is_a_bias_corrected_exponential_moving_average(
    losses: list[float],
) -> None:
    meter = make_meter(Clock())
    smoothed = [meter.smooth(loss) for loss in losses][-1]
    weights = [0.98 ** (len(losses) - 1 - k) for k in range(len(losses))]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert smoothed == pytest.approx(mean, rel=1e-9, abs=1e-9)


def test_a_constant_loss_is_unchanged_and_a_jump_is_followed_in_about_50_steps() -> None:
    meter = make_meter(Clock())
    assert [meter.smooth(3.0) for _ in range(1000)] == pytest.approx([3.0] * 1000)
    after = [meter.smooth(1.0) for _ in range(50)][-1]
    assert after == pytest.approx(1 + 2 * math.exp(-1), abs=0.02)


# The progress line


def test_the_line_shows_loss_throughput_mfu_waiting_and_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jitkit.training.throughput._memory_gib", lambda device: 1.2)
    clock = Clock()
    meter = make_meter(clock, flops=3.155e9, peak=2.063e12)
    assert meter.line() == ""
    meter.smooth(0.0812)
    assert meter.line() == "loss 0.0812"
    train(meter, clock, 10, wait=0.01, work=0.24, n=103)
    shown = "412 samples/s  1.30 TFLOP/s (63 % MFU)  waiting 4 %  1.20 GiB"
    assert meter.line() == f"loss 0.0812  {shown}"
    train(meter, clock, 1, wait=0.5, work=0.5, n=103)  # too short a window for new values
    assert meter.line() == f"loss 0.0812  {shown}"
    train(meter, clock, 1, wait=0.5, work=0.5, n=103)
    assert "103 samples/s" in meter.line() and "waiting 50 %" in meter.line()


def test_the_line_does_not_change_what_is_read() -> None:
    clock = Clock()
    meter = make_meter(clock)
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
    meter = make_meter(clock, flops=flops, peak=peak)
    meter.smooth(loss)
    train(meter, clock, 1, wait=1.0, work=work, n=samples)
    assert meter.line().startswith("loss ") and "samples/s" in meter.line()
    assert len(meter.line()) <= LINE < 80


# Memory


def test_memory_grows_by_what_is_allocated() -> None:
    meter = make_meter(Clock())
    before = meter.read()["memory_gib"]
    allocated = np.ones(2**25)  # a quarter of a GiB
    after = meter.read()["memory_gib"]
    assert before is not None and after is not None and allocated.nbytes == GIB // 4
    assert 0.2 < after - before < 0.3


def test_without_proc_memory_is_the_peak_of_the_process(tmp_path: Path) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    resident = _resident_bytes(tmp_path / "nothing")
    assert resident is not None and resident >= peak


# Peak FLOP/s


@pytest.mark.parametrize("speed", [1e9, 3e10, 2e11])
def test_the_peak_of_a_machine_of_known_speed_is_found(speed: float) -> None:
    with FlopCounterMode(display=False) as counter:

        def clock() -> float:
            return counter.get_total_flops() / speed

        assert peak_flops(CPU, torch.float32, clock=clock) == pytest.approx(speed)
        assert 0.3 <= clock() < 1.0  # simulated seconds, warm-up included


def test_the_peak_of_an_uneven_machine_is_its_best_timing() -> None:
    with FlopCounterMode(display=False) as counter:
        calls = [0]

        def clock() -> float:
            """Seconds on a machine that loses 5 ms in every second timing."""
            calls[0] += 1
            return counter.get_total_flops() / 1e10 + 0.005 * (calls[0] // 4)

        assert peak_flops(CPU, torch.float32, clock=clock) == pytest.approx(1e10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring_the_peak_does_not_change_the_random_state_of_the_run(dtype: torch.dtype) -> None:
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    assert peak_flops(CPU, dtype) > 1e6
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


@pytest.mark.gpu
def test_gpu_memory_is_its_peak_and_measuring_peak_flops_does_not_raise_it() -> None:
    gpu = torch.device("cuda")
    allocated = torch.ones(2**20, device=gpu)
    state = torch.cuda.get_rng_state()
    assert peak_flops(gpu, torch.bfloat16) > 1e12
    assert torch.equal(torch.cuda.get_rng_state(), state)
    meter = Meter(flops_per_sample=1.0, peak_flops=None, device=gpu)
    memory = meter.read()["memory_gib"]
    assert memory == pytest.approx(torch.cuda.max_memory_allocated() / GIB)
    assert memory is not None and allocated.nbytes / GIB <= memory < 0.1
