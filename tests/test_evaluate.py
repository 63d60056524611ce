"""Scores have an interval and the score of held-out items, and record how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jitkit
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Metric, lower_is_better
from jitkit.domains.digits import Digits, DigitsSection, nearest_distance
from jitkit.domains.images.adapter import Images, ImagesSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import BadItem, JitkitError
from jitkit.evaluation import scoring
from jitkit.evaluation.evaluate import (
    evaluate_model,
    score_table,
    under_protocol,
    with_fixed_batch_size,
)
from jitkit.evaluation.scoring import DrawnSamples, Score, Scoring, resamples, row
from jitkit.fields import Category
from jitkit.metrics.fid.jit_protocol import jit_protocol
from jitkit.metrics.frechet import frechet_distance
from jitkit.recipe.load import load_recipe
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import EvaluateSection, SampleSection
from jitkit.training.trainer import train
from jitkit.utils.distributed import ALONE

SAMPLING = SampleSection(steps=2, seed=5)
SECTION = EvaluateSection(samples=20, seed=7)


def ink(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Mean of all pixels."""
    return float(np.mean([item.pixels.mean() for item in samples]))


class Inked(Digits):
    """Scored by mean pixel value; items in ``bad`` are unreadable, ``held_out`` are held out."""

    bad: Sequence[int] = ()
    held_out = 297

    def scores(self) -> Mapping[str, Metric]:
        return {"ink": ink, "items": lambda samples, train: len(train)}

    def items(self, split: Any) -> Sequence[ImageItem]:
        items = super().items(split)
        return _Some(items[: self.held_out] if split == "val" else items[:50], self.bad)


class _Some(Sequence[ImageItem]):
    def __init__(self, items: Sequence[ImageItem], bad: Sequence[int]) -> None:
        self.items, self.bad = items, bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if index in self.bad:
            raise BadItem(f"item {index}", "torn")
        return self.items[index]


def evaluated(trained: Path, folder: Path, domain: Digits | None = None, **more: Any) -> Any:
    denoiser = jitkit.load(trained)
    if domain is not None:
        denoiser.domain = domain
    return evaluate_model(denoiser, SAMPLING, SECTION.model_copy(update=more), folder)


def drawn(trained: Path, seed: int = 7, n: int = 20) -> list[ImageItem]:
    """The samples of an evaluation, drawn by `generate`."""
    denoiser = jitkit.load(trained)
    section = with_fixed_batch_size(denoiser, SAMPLING.model_copy(update={"seed": seed}), ALONE)
    return list(sample_items(denoiser, n, conditioning_for(denoiser, n), section))


def test_scores_are_of_samples_of_the_given_seed_and_of_held_out_items(
    trained: Path, tmp_path: Path
) -> None:
    result = evaluated(trained, tmp_path)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["samples"], result["held_out"], result["seeds"]) == (20, 297, [7])
    used = SAMPLING.model_dump(mode="json") | {"seed": 7, "batch_size": 256}
    assert result["sample"] == used
    assert result["evaluate"] == SECTION.model_dump(mode="json")
    assert result["seconds"] >= result["seconds_scoring"] >= 0
    assert set(result["scores"]) == {"label_agreement", "nearest_distance", "frechet_pixels"}

    samples = drawn(trained)
    assert [item.label for item in samples] == [i // 2 for i in range(20)]
    digits = Digits(DigitsSection(name="digits"))
    found = result["scores"]["nearest_distance"]
    assert found["value"] == nearest_distance(samples, digits.items("train"))
    assert found["floor"] == nearest_distance(digits.items("val"), digits.items("train"))
    assert (found["best"], result["scores"]["frechet_pixels"]["best"]) == ("real", "low")


def test_evaluations_agree_exactly_for_equal_seeds_only(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    first, again, other = (evaluated(trained, tmp_path, domain, seed=seed) for seed in (7, 7, 8))
    times = {"seconds", "seconds_scoring"}
    first, again = ({k: v for k, v in each.items() if k not in times} for each in (first, again))
    assert first == again
    assert first["scores"] != other["scores"]


def test_several_seeds_have_their_mean_and_a_second_interval(trained: Path, tmp_path: Path) -> None:
    result = evaluated(trained, tmp_path, Inked(DigitsSection(name="digits")), seeds=3)
    found, seeds = result["scores"]["ink"], (7, 8, 9)
    values = [ink(drawn(trained, seed), []) for seed in seeds]
    assert (result["seeds"], found["by_seed"]) == (list(seeds), values)
    assert found["value"] == pytest.approx(np.mean(values))
    low, high = found["interval_over_seeds"]
    student = 4.302653  # 97.5 % of Student's t with two degrees of freedom
    assert high - low == pytest.approx(2 * student * np.std(values, ddof=1) * sqrt(4 / 3))
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * found["std"] * sqrt(4 / 3))


def test_the_standard_deviation_of_a_mean_is_its_standard_error(
    trained: Path, tmp_path: Path
) -> None:
    found = evaluated(trained, tmp_path, Inked(DigitsSection(name="digits")))["scores"]["ink"]
    low, high = found["interval"]
    assert low < found["value"] < high
    error = np.std([item.pixels.mean() for item in drawn(trained)], ddof=1) / np.sqrt(20)
    assert found["std"] == pytest.approx(error, rel=0.4)  # of 40 resamples
    assert high - low == pytest.approx(2 * 1.96 * sqrt(2) * found["std"])


class Points(Digits):
    """Items are four normal values; scored by mean, Fréchet and nearest-neighbour distance."""

    def scores(self) -> Mapping[str, Metric]:
        return {
            "mean": lambda samples, real: float(np.mean(samples)),
            "frechet": lambda samples, real: frechet_distance(
                np.asarray(samples), np.asarray(real)
            ),
            "nearest": lambda samples, real: float(np.median(_nearest(np.asarray(samples)))),
        }

    def items(self, split: Any) -> Any:
        return list(np.random.default_rng(5).normal(0.3, 1.2, (400, 4)))


def _nearest(points: Any) -> Any:
    """Distance of each point to the nearest other one."""
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    return (distance + 1e9 * np.eye(len(points))).min(axis=1)


def test_the_interval_contains_the_value_of_another_seed_95_times_in_100() -> None:
    """Points of a known distribution; for a mean and a Fréchet distance."""
    scorer = Scoring(Points(DigitsSection(name="digits")))
    trials, n = 150, 60
    rng = np.random.default_rng(0)
    one, other = (
        [scorer.scores(DrawnSamples(n, list(rng.standard_normal((n, 4))))) for _ in range(trials)]
        for _ in range(2)
    )
    for name in ("mean", "frechet"):
        rows = [row([scores[name]], None, "low") for scores in one]
        inside = [
            each["interval"][0] <= scores[name].value <= each["interval"][1]
            for each, scores in zip(rows, other, strict=True)
        ]
        assert 0.89 <= np.mean(inside) <= 0.99, (name, np.mean(inside))
        true = np.std([scores[name].value for scores in one + other], ddof=1)
        assert np.median([scores[name].std for scores in one]) == pytest.approx(true, rel=0.15)
    mean = [row([scores["mean"]], None, "low")["std"] for scores in one]
    assert np.median(mean) == pytest.approx(1 / sqrt(4 * n), rel=0.1)  # known in closed form


def test_resamples_are_the_same_halves_without_repeats_on_every_call() -> None:
    for n, size in ((4, 2), (7, 3), (20_000, scoring.LARGEST_RESAMPLE)):
        halves = resamples(n)
        assert len(halves) == 40
        assert all(len(set(half.tolist())) == size and half.max() < n for half in halves)
        again = resamples(n)
        assert all(np.array_equal(a, b) for a, b in zip(halves, again, strict=True))


def test_subsets_smaller_than_halves_give_the_same_standard_deviation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Means of subsets of 8 of 80 samples vary three times as much as over seeds."""
    monkeypatch.setattr(scoring, "LARGEST_RESAMPLE", 8)
    scorer = Scoring(Points(DigitsSection(name="digits")))
    rng = np.random.default_rng(3)
    found = [
        scorer.scores(DrawnSamples(80, list(rng.standard_normal((80, 4)))))["mean"]
        for _ in range(30)
    ]
    assert np.std(found[0].resampled) > 2 * found[0].std
    assert np.median([score.std for score in found]) == pytest.approx(1 / sqrt(4 * 80), rel=0.15)


def test_fewer_than_four_samples_have_no_interval(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    found = evaluated(trained, tmp_path, domain, samples=3)["scores"]["ink"]
    assert (found["interval"], found["std"]) == ([None, None], None)
    assert found["value"] == pytest.approx(ink(drawn(trained, n=3), []))


def test_unreadable_items_are_skipped(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    domain.bad = [0, 10, 49]
    result = evaluated(trained, tmp_path, domain)
    assert result["held_out"] == 294
    assert result["scores"]["items"]["value"] == 47


def test_without_held_out_items_there_is_no_floor(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    domain.held_out = 0
    result = evaluated(trained, tmp_path, domain)
    assert result["scores"]["ink"]["floor"] is None
    first, _, second, _ = score_table(result).splitlines()
    assert re.fullmatch(r"20 samples in \d+ s:", first)
    assert re.fullmatch(r"  ink +[\d.]+ +[\d.]+ to [\d.]+ *", second)


def test_the_table_has_a_line_for_each_score_in_columns(trained: Path, tmp_path: Path) -> None:
    first, head, *lines = score_table(evaluated(trained, tmp_path)).splitlines()
    assert re.fullmatch(r"20 samples in \d+ s, beside 297 held-out items:", first)
    number = r"-?\d+(\.\d+)?(e-\d+)?"
    assert head.split() == ["value", "95", "%", "interval", "held", "out"]
    for name, line in zip(("label_agreement", "nearest_distance"), lines, strict=False):
        assert re.fullmatch(rf"  {name} +{number} +{number} to {number} +{number}", line), line
    assert len({len(line) for line in (head, *lines)}) == 1


class Mute(Digits):
    """Has no metrics."""

    def scores(self) -> Mapping[str, Metric]:
        return {}


def test_a_domain_without_metrics_is_refused_and_nothing_is_written(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(JitkitError, match="domain Mute has no metrics to score samples with"):
        evaluated(trained, tmp_path, Mute(DigitsSection(name="digits")))
    assert not (tmp_path / "evaluation.json").exists()


def test_a_run_can_be_scored_after_training(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny, {"evaluate.after_training": True}, run=tmp_path / "run")
    assert "\n20 samples in " in capsys.readouterr().out
    trained = json.loads((run / "evaluation.json").read_text())
    section = EvaluateSection(samples=20)
    later = evaluate_model(jitkit.load(run), SampleSection(steps=2), section, tmp_path)
    assert trained["scores"] == later["scores"]  # of the first EMA, the default of jitkit.load


def test_json_output_is_one_object_and_nothing_else(
    trained: Path, jitkit: Callable[..., Any]
) -> None:
    shown = jitkit("evaluate", trained, "--json")
    assert (shown.code, shown.err) == (0, "")
    result = json.loads(shown.out)
    assert result == json.loads((trained / "evaluation.json").read_text())
    assert result["sample"]["steps"] == 2
    table = jitkit("evaluate", trained, "evaluate.samples=10", "sample.steps=1")
    assert table.out.startswith("10 samples in ")
    (trained / "evaluation.json").unlink()


def test_an_undefined_score_is_null_in_the_file_and_undefined_in_the_table() -> None:
    nan = float("nan")
    found = row([Score(nan, (nan, nan), nan, 2)], nan, "real")
    assert (found["value"], found["interval"], found["floor"]) == (None, [None, None], None)
    text = score_table({"samples": 2, "seconds": 1.0, "held_out": 1, "scores": {"spectrum": found}})
    assert text.splitlines()[-1].split() == ["spectrum", "undefined"]


def test_a_metric_states_which_value_is_best(trained: Path, tmp_path: Path) -> None:
    assert lower_is_better(ink) is ink
    found = evaluated(trained, tmp_path, Inked(DigitsSection(name="digits")))["scores"]
    assert (found["ink"]["best"], found["items"]["best"]) == ("low", "real")
    del ink.best  # type: ignore[attr-defined]


def labelled(n: int) -> Denoiser:
    """A model of images of ``n`` classes; it is not sampled."""
    from models import random_model

    domain = Images(ImagesSection(name="images", size=8, classes=n, channels=3))
    denoiser = random_model(domain.layout, domain.conditions)
    denoiser.domain = domain
    return denoiser


def test_the_protocol_of_the_paper_fixes_the_sampler_but_not_guidance() -> None:
    requested = SampleSection(
        method="euler",
        steps=5,
        time_grid="cosine",
        t_eps=0.01,
        guidance=2.4,
        guidance_interval=(0.2, 1.0),
    )
    same = under_protocol(None, requested, SECTION)
    assert same == (requested, SECTION)
    sampling, section = under_protocol(jit_protocol(), requested, EvaluateSection(samples=10))
    assert (sampling.method, sampling.steps, sampling.t_eps) == ("heun", 50, None)
    assert sampling.time_grid == "uniform"
    assert (sampling.guidance, sampling.guidance_interval) == (2.4, (0.2, 1.0))
    assert section.samples == 50_000
    labels = conditioning_for(labelled(1000), 50_000).cond["label"]
    assert torch.equal(labels.bincount(), torch.full((1000,), 50))
    assert torch.equal(labels, torch.arange(1000).repeat_interleave(50))


def label(n: int) -> dict[str, Any]:
    return {"label": Category(n)}


def test_departures_from_the_protocol_of_the_paper_are_listed() -> None:
    kept: dict[str, Any] = {
        "samples": 50_000,
        "model": {"ema": "0.9999", "means": ["0.9999", "0.9996"]},
        "sample": {"autoguidance": None},
        "reference": {"extractor": "inception-v3-compat", "items": None, "whole": True},
    }
    assert jit_protocol().departures(kept, label(1000)) == []
    assert jit_protocol().departures(kept, label(7)) == [
        "50,000 samples are not balanced over label"
    ]
    few = kept | {"samples": 8000, "model": {"ema": "0.9996", "means": ["0.9999", "0.9996"]}}
    few |= {"reference": {"extractor": "vgg16", "items": 10_000, "whole": False}}
    assert jit_protocol().departures(few, label(1000)) == [
        "8,000 samples, not 50,000",
        "EMA 0.9996, not the first, 0.9999",
        "features of vgg16, not Inception's",
        "compared with 10000 images, not with the statistics of the whole training set",
    ]


def test_pixels_are_rounded_as_in_the_official_code() -> None:
    """round(clip(255 (z + 1) / 2)), halves to even, as in NumPy; on ties and beyond the ends."""
    steps = torch.arange(-40, 2 * 256 * 4 + 40, dtype=torch.float32) / 4  # quarters of grey levels
    z = steps[: len(steps) // 12 * 12].reshape(-1, 3, 2, 2) / 255 - 1
    digits = Images(ImagesSection(name="images", size=2, classes=1))
    for values in z:
        theirs = ((values + 1) / 2).numpy().transpose(1, 2, 0)
        theirs = np.round(np.clip(theirs * 255, 0, 255)).astype(np.uint8)
        ours = digits.decode(jitkit.Field(values, cond={"label": torch.tensor(0)})).pixels
        assert np.array_equal(ours, theirs)


def test_the_batch_size_does_not_depend_on_free_memory(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = jitkit.load(trained)
    for fits, size in ((10_000, 256), (300, 256), (200, 128), (1, 1)):
        module = import_module("jitkit.evaluation.evaluate")
        monkeypatch.setattr(module, "fitting_batch", lambda _, fits=fits: fits)
        assert with_fixed_batch_size(denoiser, SAMPLING, ALONE).batch_size == size
    assert with_fixed_batch_size(denoiser, SampleSection(batch_size=7), ALONE).batch_size == 7


def test_an_unknown_protocol_is_refused(tiny: dict[str, Any]) -> None:
    with pytest.raises(JitkitError, match="domain.fid.protocol: 'edm' is not"):
        load_recipe(tiny, {"domain.fid.protocol": "edm"})
