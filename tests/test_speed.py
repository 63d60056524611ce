"""`python -m benchmarks`: timing, counts, targets, and a tiny run of every benchmark.

Sizes are so small that the results mean nothing, except in one slow test.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks import __main__ as command  # noqa: E402
from benchmarks.scaling import pictures as counted_model  # noqa: E402
from benchmarks.speed import counted, jpegs, limits, sample, scaling, step  # noqa: E402
from benchmarks.speed.measure import Timing, interleaved, ratio, spread  # noqa: E402
from benchmarks.speed.results import Demand, Plan, Result, Table  # noqa: E402

TINY = Plan("tiny")


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taker(self, *seconds: float) -> Callable[[], None]:
        """A function that takes the given seconds at each call; the last value repeats."""
        left = list(seconds)

        def take() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return take


# Measuring


def test_warm_up_is_not_timed_and_the_median_is_of_the_other_rounds() -> None:
    clock = Clock()
    takers = {"a": clock.taker(100, 1, 2, 9), "b": clock.taker(5)}
    timings = interleaved(takers, rounds=3, clock=clock)
    assert timings["a"].seconds == (1, 2, 9) and timings["a"].median == 2
    assert timings["b"].seconds == (5, 5, 5)


def test_functions_are_called_in_alternating_order() -> None:
    called: list[str] = []
    takers = {name: (lambda name=name: called.append(name)) for name in "abc"}
    interleaved(takers, rounds=3, warmup=0)
    assert "".join(called) == "abccbaabc"


def test_a_timing_of_several_calls_is_their_mean() -> None:
    clock = Clock()
    takers = {"a": clock.taker(1, 2, 3, 2), "b": clock.taker(7)}
    timings = interleaved(takers, rounds=1, warmup=0, repeats={"a": 3}, clock=clock)
    assert timings["a"].seconds == (2,) and timings["b"].seconds == (7,)


def test_a_ratio_is_unaffected_by_what_slows_both_down() -> None:
    ours, theirs = Timing((1.0, 10.0, 2.0)), Timing((2.0, 20.0, 4.0))
    assert ratio(ours, theirs) == (0.5, 0.0)
    assert ours.median / theirs.median == 0.5 and ours.spread > 0


def test_the_spread_is_the_relative_interquartile_range() -> None:
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(2 / 3)
    assert spread([3.0]) == 0


def test_the_best_product_is_the_one_with_the_highest_flops() -> None:
    shapes = ((10, 20, 30), (100, 20, 30))
    timings = {limits.name_of(shapes[0]): Timing((1.0, 2.0, 3.0))}
    timings[limits.name_of(shapes[1])] = Timing((30.0, 30.0))
    assert limits.best_flops(timings, shapes) == 2 * 10 * 20 * 30 / 2.0
    timings = {limits.name_of(shapes[0], "kernels.linear"): Timing((1.0,))}
    assert limits.best_flops(timings, shapes[:1], "kernels.linear") == 2 * 10 * 20 * 30


def test_products_have_their_named_shape_and_agree_between_both_kernels() -> None:
    one, other = (made() for made in limits.products([(300, 500, 700)]).values())
    assert isinstance(one, torch.Tensor) and one.shape == (300, 700)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_bandwidths_of_the_machine_are_positive(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    assert 0 < limits.copy_rate(limits.MIB) < math.inf
    assert 0 < limits.read_rate(tmp_path / "file") < math.inf


# Demands, and what is written


@pytest.mark.parametrize(
    ("value", "kind", "met"),
    [(1.0, "at most", True), (1.1, "at most", False), (math.nan, "at most", False)]
    + [(1.0, "at least", True), (0.9, "at least", False), (math.nan, "at least", False)],
)
def test_a_target_is_met_at_its_bound_and_not_beyond(value: float, kind: str, met: bool) -> None:
    demand = Demand("speed", value, 1.0, kind)  # type: ignore[arg-type]
    assert demand.met is met
    assert str(demand).startswith("met: speed" if met else "NOT MET: speed")


def fake(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Every benchmark returns these values; the target is at most 1."""

    def run(name: str, plan: Plan) -> Result:
        demands = [Demand("number", each, 1.0) for each in values]
        return Result(name, [Table("Numbers", ["n"], [[1]])], {"of": name}, demands, ["a note"])

    monkeypatch.setattr(command, "run", run)


@pytest.mark.parametrize(("values", "code"), [((0.5, 1.0), 0), ((0.5, 1.5), 1)])
def test_the_exit_code_is_0_only_if_all_targets_are_met(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    values: tuple[float, ...],
    code: int,
) -> None:
    fake(monkeypatch, *values)
    path = tmp_path / "new" / "numbers.json"
    assert command.main(["start", "memory", "--quick", "--json", str(path)]) == code
    written = json.loads(path.read_text())
    assert list(written["results"]) == ["start", "memory"]
    assert [each["met"] for each in written["results"]["start"]["demands"]] == [True, not code]
    assert written["results"]["memory"]["numbers"] == {"of": "memory"}
    machine = written["environment"]
    assert machine["threads"] == torch.get_num_threads() and machine["size"] == "quick"
    assert machine["versions"]["torch"] and machine["machine"]["processor"]
    assert "commit" in machine
    shown = capsys.readouterr().out
    assert "## memory" in shown and "| n |" in shown and "a note" in shown


def test_all_benchmarks_run_if_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(monkeypatch)
    path = tmp_path / "numbers.json"
    assert command.main(["--json", str(path)]) == 0
    assert tuple(json.loads(path.read_text())["results"]) == command.NAMES


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["step", "stpe"], "no benchmark stpe; there are step, sample"),
        (["--threads", "0"], "least"),
    ],
)
def test_invalid_arguments_exit_with_2(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


# What is counted


def test_fifty_steps_with_cfg_are_187_passes_of_jitkit_and_198_of_the_reference() -> None:
    counts = sample.counted(50)
    assert counts["jitkit"].passes == counted.PASSES == 187
    assert counts["reference"].passes == counted.TEXTBOOK_PASSES == 198
    assert counts["jitkit"].evaluations == counts["reference"].evaluations == 99
    assert counts["jitkit, not guided"] == sample.Counted(0, 99)


def test_a_short_trajectory_is_extrapolated_by_its_network_evaluations() -> None:
    here, two, one, theirs = sample.counted(10), 5.0, 3.0, 7.0
    took = {
        "jitkit": two * here["jitkit"].guided + one * here["jitkit"].plain,
        "jitkit, not guided": one * here["jitkit, not guided"].plain,
        "reference": theirs * here["reference"].evaluations,
    }
    whole = sample.carried_over({name: Timing((each,)) for name, each in took.items()}, 10)
    assert whole["jitkit"] == [pytest.approx(two * 88 + one * 11)]
    assert whole["reference"] == [pytest.approx(theirs * 99)]


def test_bytes_per_parameter_are_those_counted_by_hand() -> None:
    # read by forward, backward, norm, AdamW (w, g, m, v) and two means (w and m each); written:
    # gradient, AdamW (w, m, v) and two means
    assert counted.bytes_a_weight() == 4 * ((1 + 1 + 1 + 4 + 4) + (1 + 3 + 2))
    assert counted.bytes_a_weight(least=True) == 4 * ((1 + 1 + 4 + 2) + (1 + 3 + 2))


def test_documented_flops_are_those_of_the_paper() -> None:
    rows = [line.split(" | ") for line in counted.operations().splitlines()[2:]]
    assert [row[0].strip("| ") for row in rows] == ["B/16", "L/16", "H/16", "G/16"]
    assert rows[0][2] == "25.2"  # GMAC
    assert float(rows[0][4]) == pytest.approx(187 * 2 * 25.22e-3, rel=1e-2)
    assert counted_model("B").network.sizes.depth == 12


def test_documented_tables_are_up_to_date() -> None:
    text = counted.DOCUMENT.read_text(encoding="utf-8")
    for name in counted.TABLES:
        assert f"<!-- table: {name} -->" in text
    assert text == counted.filled(text), "run: python -m benchmarks.speed.counted --write"


# The parts


def test_four_grids_with_the_same_number_of_tokens_are_the_same_work() -> None:
    models = [scaling.Case("", grid, width=32, depth=1).made() for grid in scaling.GRIDS]
    assert [model.layout.num_tokens for model in models] == [256] * 4
    assert [model.layout.patch_features for model in models] == [16] * 4
    assert [len(model.layout.axes) for model in models] == [1, 2, 3, 4]


def test_scaling_cases_have_the_same_number_of_tokens_per_batch() -> None:
    for case in scaling.grown(Plan("full"))["tokens"]:
        assert case.batch * math.prod(n // p for n, p in case.axes) == 2048


def test_time_in_the_blocks_is_less_than_the_total() -> None:
    denoiser = scaling.Case("", width=32, depth=2).made()
    watch = scaling.Watch(denoiser.network)
    took = interleaved({"it": scaling.taker(denoiser.network, 2)}, rounds=3)["it"].seconds
    assert len(watch.seconds) == 4  # one warms up
    assert all(0 < inside < whole for inside, whole in zip(watch.seconds[1:], took, strict=True))


def test_synthetic_images_are_valid_files_with_the_spectrum_of_photographs(tmp_path: Path) -> None:
    first, second = jpegs.write(tmp_path, 2, high=48, wide=64)
    with Image.open(first) as image:
        assert (image.format, image.size, image.mode) == ("JPEG", (64, 48), "RGB")
    assert first.read_bytes() != second.read_bytes()
    grey = jpegs.texture(np.random.default_rng(1), 128, 128).mean(axis=-1)
    power = np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None]) * 128
    bands = [power[(frequency >= k) & (frequency < 2 * k)].mean() for k in (2, 4, 8, 16)]
    for low, high in pairwise(bands):  # double frequency, a quarter of the power
        assert 2 < low / high < 8


@pytest.mark.parametrize("name", ["step", "sample", "scaling", "loader", "start"])
def test_every_benchmark_runs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.json"
    assert command.main([name, "--tiny", "--json", str(path)]) in (0, 1)
    result = json.loads(path.read_text())["results"][name]
    assert result["numbers"]
    if name == "sample":
        assert result["numbers"]["difference"] < 1e-4
    if name == "start":
        assert result["numbers"]["import_loads_torch"] is False


@pytest.mark.slow
def test_the_memory_of_a_step_is_measured() -> None:
    result = command.run("memory", TINY)
    (memory,) = result.numbers.values()
    assert memory["estimate_bytes"] > 0 and memory["peak_bytes"] > 0


@pytest.mark.slow
def test_the_first_step_of_a_run_is_detected() -> None:
    from benchmarks.speed.start import first_step

    first_step(dict(os.environ))


@pytest.mark.slow
def test_a_digits_step_is_not_much_slower_than_the_reference() -> None:
    """Guards against regressions of more than 50 %; the actual target is much stricter."""
    (case,) = (case for case in step.cases() if case.name.startswith("digits"))
    short = replace(case, rounds=(5, 5, 5), repeats=10)
    assert step.measure(short, TINY)["ratio"] < 1.5
