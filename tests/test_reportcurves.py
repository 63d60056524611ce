"""Training curves downsampled for charts with bounded memory; axes, lines and images."""

from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jitkit.report.charts import SIDE, Line, chart, linear_axis, log_axis
from jitkit.report.curves import BINS, BUCKETS, LOSSES, Buckets, Curve, read_curves, smooth
from jitkit.report.images import embed_previews, encode_webp, select_steps
from jitkit.training import validation

floats = st.floats(-1e6, 1e6)


def write_lines(path: Path, records: Sequence[dict[str, Any]], tail: bytes = b"") -> Path:
    path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records) + tail)
    return path


@given(st.lists(st.tuples(st.integers(0, 10_000), floats), min_size=1, max_size=60))
def test_buckets_keep_count_mean_and_extremes_at_any_width(
    pairs: list[tuple[int, float]],
) -> None:
    buckets = Buckets(["loss"])
    steps, values = (np.array(each) for each in zip(*pairs, strict=True))
    for i in range(0, len(steps), 7):
        buckets.add(steps[i : i + 7], values[i : i + 7, None])
    curve = buckets.curve("loss")
    assert len(curve.step) <= BUCKETS and (np.diff(curve.step) > 0).all()
    assert curve.count.sum() == len(steps)
    assert np.isclose((curve.mean * curve.count).sum(), values.sum(), atol=1e-3)
    assert np.isclose((curve.step * curve.count).sum(), steps.sum())
    assert (curve.low.min(), curve.high.max()) == (values.min(), values.max())
    assert ((curve.low <= curve.mean + 1e-6) & (curve.mean <= curve.high + 1e-6)).all()


def test_a_bucket_holds_exactly_the_steps_of_its_interval() -> None:
    buckets = Buckets(["loss"])
    steps = np.arange(4 * BUCKETS)
    buckets.add(steps, steps[:, None].astype(float))
    curve = buckets.curve("loss")
    assert buckets.width == 4 and len(curve.step) == BUCKETS
    assert np.array_equal(curve.mean, steps.reshape(-1, 4).mean(1))
    assert np.array_equal(curve.low, steps[::4]) and np.array_equal(curve.high, steps[3::4])


def test_the_last_and_the_lowest_value_of_a_long_run_are_exact(tmp_path: Path) -> None:
    losses = 2 + np.random.default_rng(0).normal(size=5000)
    records = [{"step": k + 1, "loss": loss} for k, loss in enumerate(losses)]
    history = read_curves(write_lines(tmp_path / "metrics.jsonl", records), LOSSES)
    least = int(losses.argmin())
    assert history.final["loss"] == (5000, losses[-1])
    assert history.lowest["loss"] == (least + 1, losses[least])
    assert history.last_step == 5000 and history.torn == 0


def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    record = {"loss": 1.0, "loss_bins": [1.0] * BINS}
    peaks = []
    for steps in (4_000, 12_000):
        write_lines(path, [{"step": k} | record for k in range(steps)])
        tracemalloc.start()
        read_curves(path, LOSSES)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_torn_last_line_is_ignored_and_other_torn_lines_are_counted(tmp_path: Path) -> None:
    good = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    path = write_lines(tmp_path / "metrics.jsonl", good, tail=b'{"step": 3, "lo')
    assert read_curves(path, LOSSES).torn == 0
    torn = [b'{"step"', b"[1]", b'{"loss": 1}', b'{"step": -1}', b'{"step": "x"}', b"\xff\x00", b""]
    path.write_bytes(b"\n".join([b'{"step": 1, "loss": 1.0}', *torn, b'{"step": 2}\n']))
    history = read_curves(path, LOSSES)
    assert history.torn == len(torn) and history.final["loss"] == (1, 1.0)


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    lines = ["NaN", "Infinity", "null", '"1"', "[1]", "7.5"]
    text = "".join(f'{{"step": {k}, "loss": {value}}}\n' for k, value in enumerate(lines))
    (tmp_path / "metrics.jsonl").write_text(text)
    curve = read_curves(tmp_path / "metrics.jsonl", LOSSES).curves.curve("loss")
    assert (curve.step.tolist(), curve.mean.tolist()) == ([5], [7.5])


def test_skipped_steps_are_counted_and_the_first_named(tmp_path: Path) -> None:
    records = [{"step": k, "loss": None, "skipped": f"bad {k}"} for k in range(9)]
    history = read_curves(write_lines(tmp_path / "metrics.jsonl", records), LOSSES)
    assert history.skipped == 9 and history.reasons[:2] == [(0, "bad 0"), (1, "bad 1")]
    assert len(history.reasons) == 5


def test_the_time_bins_are_those_of_validation() -> None:
    assert BINS == validation.BINS


def test_smoothing_does_not_change_a_straight_line_and_its_start() -> None:
    step = np.arange(1.0, 201.0)
    ones = np.ones_like(step)
    curve = Curve(step, 3 * step, 3 * step, 3 * step, ones)
    means, window = smooth(curve, 200)
    assert window == 11
    assert np.allclose(means[:-5], 3 * step[:-5])
    noise = np.random.default_rng(0).normal(size=200)
    means, _ = smooth(Curve(step, noise, noise, noise, ones), 200)
    assert means[20:-20].std() == pytest.approx(11**-0.5, rel=0.35)


# Charts


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=6), st.booleans())
@example([607593835.0, 605093893.0], False)
def test_an_axis_holds_its_values_between_ticks(values: list[float], log: bool) -> None:
    axis = log_axis(values) if log else linear_axis(values)
    fractions = [axis.fraction(value) for value in values]
    assert min(fractions) > -1e-3 and max(fractions) < 1 + 1e-3
    ticks = [tick.at for tick in axis.labelled_ticks()]
    assert ticks == sorted(ticks) and ticks[0] == 0 and ticks[-1] == pytest.approx(100, abs=0.01)
    assert 2 <= len(ticks) <= 9 and len({tick.text for tick in axis.labelled_ticks()}) == len(ticks)


def test_a_line_is_drawn_at_its_values() -> None:
    line = Line("a", "c0", [0, 50, 100], [0, 5, 10], dots=True)
    drawn = chart("loss", [line], about="all", log=False)
    assert drawn is not None
    assert drawn.lines[0].line == f"M0 {SIDE}L{SIDE / 2:g} {SIDE / 2:g}L{SIDE} 0"
    assert drawn.lines[0].dots.count("h0") == 3
    assert drawn.values["x"] == [(0, 50, 100)] and drawn.values["lines"][0]["y"] == [0, 5, 10]
    assert drawn.summary == "a: 0 at step 0, 10 at step 100, lowest 0 at step 0."


def test_an_axis_is_logarithmic_for_a_wide_spread_of_positive_values() -> None:
    def is_log(y: list[float]) -> bool:
        drawn = chart("loss", [Line("a", "c0", [0, 1], y)], about="all")
        assert drawn is not None
        return "logarithmic" in drawn.about

    assert is_log([0.1, 10]) and not is_log([1, 2]) and not is_log([-1, 10])


def test_a_chart_without_points_is_none() -> None:
    assert chart("loss", [Line("a", "c0", [], [])], about="all") is None


# Images


@given(st.integers(1, 60), st.integers(0, 59))
def test_first_last_and_best_images_are_among_those_shown(n: int, best: int) -> None:
    steps = list(range(0, 10 * n, 10))
    best_step = steps[best % n]
    selected = select_steps(steps, best_step)
    assert selected == sorted(set(selected)) and len(selected) == min(n, 12)
    assert {steps[0], steps[-1], best_step} <= set(selected)


def test_a_small_image_is_kept_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data, size = encode_webp(tmp_path / "a.png", 10**6)
    (tmp_path / "a.webp").write_bytes(data)
    with Image.open(tmp_path / "a.webp") as decoded:
        assert size == decoded.size == (30, 40)
        assert np.array_equal(np.asarray(decoded.convert("RGB")), pixels)


def test_a_large_image_fits_its_budget(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1800, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    data, size = encode_webp(tmp_path / "a.png", 100_000)
    assert (
        len(data) <= 100_000 and size[0] < 1600 and size[0] == pytest.approx(2 * size[1], rel=0.05)
    )


def test_a_torn_image_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    (tmp_path / "samples" / "step-30-seed-1").mkdir(parents=True)
    for step in (0, 20):
        Image.new("RGB", (8, 8), "red").save(tmp_path / "samples" / f"step-{step}.png")
    whole = (tmp_path / "samples" / "step-20.png").read_bytes()
    (tmp_path / "samples" / "step-10.png").write_bytes(whole[:40])
    (tmp_path / "samples" / "step-15.png").write_text("GIF89a")
    images, notes = embed_previews(tmp_path, best=18, budget=10**6)
    assert [(each.step, each.best) for each in images] == [(0, False), (20, True)]
    assert [re.match(r"step-1[05]\.png cannot be read", note) is not None for note in notes] == [
        True,
        True,
    ]
