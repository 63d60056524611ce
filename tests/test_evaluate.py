"""Scores stand beside their floor and carry an interval, and say how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jitkit
from jitkit.domain import Measure
from jitkit.domains.digits import Digits, DigitsSection, nearest_distance
from jitkit.domains.images import Picture
from jitkit.errors import BadItem, JitkitError
from jitkit.evaluate import _score, evaluate, table
from jitkit.generate import conditions_for, generate
from jitkit.sections import EvaluateSection, SampleSection
from jitkit.trainer import train

SAMPLING = SampleSection(steps=2, seed=5)
SECTION = EvaluateSection(samples=20, seed=7)


def ink(samples: Sequence[Picture], train: Sequence[Picture]) -> float:
    """Mean of all pixels."""
    return float(np.mean([item.pixels.mean() for item in samples]))


class Inked(Digits):
    """Scored by their ink; items in ``bad`` cannot be read, ``held_out`` of them are held out."""

    bad: Sequence[int] = ()
    held_out = 297

    def scores(self) -> Mapping[str, Measure]:
        return {"ink": ink, "items": lambda samples, train: len(train)}

    def items(self, split: Any) -> Sequence[Picture]:
        items = super().items(split)
        return _Some(items[: self.held_out] if split == "val" else items[:50], self.bad)


class _Some(Sequence[Picture]):
    def __init__(self, items: Sequence[Picture], bad: Sequence[int]) -> None:
        self.items, self.bad = items, bad

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        if index in self.bad:
            raise BadItem(f"item {index}", "torn")
        return self.items[index]


def scored(trained: Path, folder: Path, domain: Digits | None = None) -> dict[str, Any]:
    denoiser = jitkit.load(trained)
    if domain is not None:
        denoiser.domain = domain
    return evaluate(denoiser, SAMPLING, SECTION, folder)


def test_scores_are_of_samples_of_their_own_seed_beside_held_out_items(
    trained: Path, tmp_path: Path
) -> None:
    result = scored(trained, tmp_path)
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["samples"], result["held_out"]) == (20, 297)
    assert result["sample"] == SAMPLING.model_dump(mode="json") | {"seed": 7}
    assert result["seconds"] >= 0
    assert set(result["scores"]) == {"label_agreement", "nearest_distance", "frechet_pixels"}

    denoiser = jitkit.load(trained)
    section = SAMPLING.model_copy(update={"seed": 7})
    samples = list(generate(denoiser, 20, conditions_for(denoiser, 20), section))
    assert [item.label for item in samples] == [i // 2 for i in range(20)]
    digits = Digits(DigitsSection(name="digits"))
    row = result["scores"]["nearest_distance"]
    assert row["value"] == nearest_distance(samples, digits.items("train"))
    assert row["floor"] == nearest_distance(digits.items("val"), digits.items("train"))
    again = scored(trained, tmp_path)
    assert again["scores"] == result["scores"]


def test_the_interval_of_a_mean_is_that_of_its_standard_error(
    trained: Path, tmp_path: Path
) -> None:
    row = scored(trained, tmp_path, Inked(DigitsSection(name="digits")))["scores"]["ink"]
    low, high = row["interval"]
    assert low < row["value"] < high
    denoiser = jitkit.load(trained)
    section = SAMPLING.model_copy(update={"seed": 7})
    samples = list(generate(denoiser, 20, conditions_for(denoiser, 20), section))
    error = np.std([item.pixels.mean() for item in samples]) / np.sqrt(20)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.4)  # of 40 resamples


def test_items_that_cannot_be_read_are_left_out(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    domain.bad = [0, 10, 49]
    result = scored(trained, tmp_path, domain)
    assert result["held_out"] == 294
    assert result["scores"]["items"]["value"] == 47


def test_without_held_out_items_there_is_no_floor(trained: Path, tmp_path: Path) -> None:
    domain = Inked(DigitsSection(name="digits"))
    domain.held_out = 0
    result = scored(trained, tmp_path, domain)
    assert result["scores"]["ink"]["floor"] is None
    first, second, _ = table(result).splitlines()
    assert re.fullmatch(r"20 samples in \d+ s:", first)
    assert re.fullmatch(r"  ink: [\d.]+ \([\d.]+ to [\d.]+\)", second)


def test_the_table_has_a_line_for_each_score(trained: Path, tmp_path: Path) -> None:
    first, *lines = table(scored(trained, tmp_path)).splitlines()
    assert re.fullmatch(r"20 samples in \d+ s, beside 297 held-out items:", first)
    number = r"\d+\.\d{4}"
    for name, line in zip(("label_agreement", "nearest_distance"), lines, strict=False):
        pattern = rf"  {name}: {number} \(-?{number} to {number}\); held out {number}"
        assert re.fullmatch(pattern, line), line


class Mute(Digits):
    """Has no measures."""

    def scores(self) -> Mapping[str, Measure]:
        return {}


def test_a_domain_without_measures_says_so_and_writes_nothing(
    trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(JitkitError, match="domain Mute has no measures to score samples with"):
        scored(trained, tmp_path, Mute(DigitsSection(name="digits")))
    assert not (tmp_path / "evaluation.json").exists()


def test_a_run_may_be_scored_as_soon_as_it_is_trained(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny, {"evaluate.after_training": True}, run=tmp_path / "run")
    assert "\n20 samples in " in capsys.readouterr().out
    at_once = json.loads((run / "evaluation.json").read_text())
    section = EvaluateSection(samples=20)
    later = evaluate(jitkit.load(run), SampleSection(steps=2), section, tmp_path)
    assert at_once["scores"] == later["scores"]  # of the first mean, as jitkit.load gives it


def test_json_is_one_object_and_nothing_else(trained: Path, jitkit: Callable[..., Any]) -> None:
    shown = jitkit("evaluate", trained, "--json")
    assert (shown.code, shown.err) == (0, "")
    result = json.loads(shown.out)
    assert result == json.loads((trained / "evaluation.json").read_text())
    assert result["sample"]["steps"] == 2
    for_people = jitkit("evaluate", trained, "evaluate.samples=10", "sample.steps=1")
    assert for_people.out.startswith("10 samples in ")
    (trained / "evaluation.json").unlink()


def test_a_measure_that_says_nothing_is_null_in_the_file_and_told_in_words() -> None:
    row = _score(lambda samples, reference: float("nan"), [1, 2], [3], [4])
    assert row == {"value": None, "interval": [None, None], "floor": None}
    said = table({"samples": 2, "seconds": 1.0, "held_out": 1, "scores": {"spectrum": row}})
    assert said.endswith("spectrum: says nothing here")
