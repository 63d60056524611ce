"""A sweep scores settings on the same noise, resumes after a kill, and sets the run's defaults."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jitkit.domain import Metric, lower_is_better
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import CheckpointError, JitkitError, RecipeError
from jitkit.evaluation.evaluate import evaluate_model
from jitkit.evaluation.select import select_best
from jitkit.evaluation.sweep import sweep, sweep_table
from jitkit.evaluation.sweep_axes import axes_of, format_setting, points
from jitkit.metrics.fields.scores import field_metrics
from jitkit.runs.defaults import read_best, with_best, write_best
from jitkit.runs.load import checkpoint_with_domain, load_for_sampling, run_recipe
from jitkit.sampling.generate import sample_items
from jitkit.sections import EvaluateSection

WORDS = ("sample.guidance=1:2:0.5", "ema=0.2,none")
FEW = ("evaluate.samples=20", "sample.steps=2")


def ink(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Mean of all pixels."""
    return float(np.mean([item.pixels.mean() for item in samples]))


class Inked(Digits):
    """Scored by simple pixel statistics, quickly."""

    def scores(self) -> Mapping[str, Metric]:
        return {"ink": lower_is_better(lambda a, b: ink(a, b)), "brightest": brightest}


def brightest(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """The largest pixel."""
    return float(max(item.pixels.max() for item in samples))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A writable copy of the trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def swept(run: Path, words: Sequence[str] = WORDS, **given: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"samples": 20, "overrides": ["sample.steps=2"]}
    settings["domain"] = Inked(DigitsSection(name="digits"))
    return sweep(run, words, **settings | given)


def without_times(result: Mapping[str, Any]) -> dict[str, Any]:
    found = json.loads(json.dumps(result))
    for each in (found, *found["points"]):
        del each["seconds"]
    return found


# Axes


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("sample.guidance=1.0:4.0:0.3", [1, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 3.1, 3.4, 3.7, 4]),
        ("sample.guidance=3:1:-1", [3, 2, 1]),
        ("sample.guidance=0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("sample.steps=10:50:20", [10, 30, 50]),
        ("sample.guidance=1e-1,2", [0.1, 2]),
        ("sample.method=heun,euler", ["heun", "euler"]),
        ("sample.guidance_interval=[0.1, 1], [0, 1]", [[0.1, 1], [0, 1]]),
        ("ema=0.9996,0.9999,none", ["0.9996", "0.9999", "none"]),
    ],
)
def test_values_are_a_range_with_both_ends_or_a_list(word: str, values: list[Any]) -> None:
    (found,) = axes_of([word]).values()
    assert found == values
    assert [type(a) for a in found] == [type(b) for b in values]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["sample.guidance"], "expected KEY=VALUES"),
        (["sample.guidanse=1,2"], "unknown; ema, or one of .*did you mean 'sample.guidance'"),
        (["train.lr=1,2"], "unknown; ema, or one of"),
        (["sample.seed=1,2"], "cannot be swept, as evaluate.seed is the seed of samples"),
        (["sample.guidance=1:2:0"], "steps of 0 do not lead from 1 to 2"),
        (["sample.guidance=1:2:-1"], "steps of -1 do not lead"),
        (["sample.guidance=1,1.0"], "a value is given twice"),
        (["sample.guidance=1:2:1e-9"], "values; give fewer"),
        (["sample.guidance=[1"], "expected a:b:step, or values a,b,c: not YAML"),
        (["ema=1,2", "ema=3"], "ema is given twice"),
        (
            ["sample.guidance=1:40:1", "sample.steps=1:40:1"],
            "1,600 settings; give at most 1,000",
        ),
    ],
)
def test_an_invalid_sweep_is_refused(words: list[str], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        axes_of(words)


def test_every_combination_occurs_once_and_those_of_an_ema_are_consecutive() -> None:
    axes = axes_of(["sample.guidance=1,2", "ema=0.5,none", "sample.steps=3,4"])
    found = list(points(axes))
    assert len({json.dumps(each) for each in found}) == len(found) == 8
    assert [each["ema"] for each in found] == ["0.5"] * 4 + ["none"] * 4
    assert list(found[0]) == ["sample.guidance", "ema", "sample.steps"]
    assert format_setting(found[0]) == "guidance 1, ema 0.5, steps 3"


# Scores


def test_each_setting_has_the_scores_of_a_separate_evaluation(run: Path) -> None:
    result = swept(run)
    assert len(result["points"]) == 6
    for point in result["points"]:
        keys = {key: value for key, value in point["set"].items() if key != "ema"}
        recipe = run_recipe(run, {"sample.steps": 2, **keys})
        denoiser = load_for_sampling(recipe, checkpoint_with_domain(run), point["set"]["ema"])
        denoiser.domain = Inked(DigitsSection(name="digits"))
        alone = evaluate_model(denoiser, recipe.sample, EvaluateSection(samples=20), run)
        assert point["scores"] == alone["scores"], point["set"]
    values = [point["scores"]["ink"]["value"] for point in result["points"]]
    assert len(set(values)) == 6
    best = result["points"][int(np.argmin(values))]
    assert result["best"]["set"] == best["set"] and result["by"] == "ink"
    assert result["best"]["interval"] == best["scores"]["ink"]["interval"]
    assert sum(point["wins"] for point in result["points"]) == pytest.approx(1, abs=0.01)


def test_a_second_sweep_scores_only_new_settings(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = swept(run)
    calls: list[int] = []
    module = import_module("jitkit.evaluation.evaluate")

    def counted(*args: Any, **given: Any) -> Any:
        calls.append(1)
        return sample_items(*args, **given)

    monkeypatch.setattr(module, "sample_items", counted)
    again = swept(run)
    assert not calls and without_times(again) == without_times(first)
    wider = swept(run, ("sample.guidance=1:2.5:0.5", "ema=0.2,none"))
    assert len(calls) == 2 and len(wider["points"]) == 8
    swept(run, samples=12)
    assert len(calls) == 8


def test_changed_parameters_in_the_same_file_are_scored_again(run: Path) -> None:
    first = swept(run, ["sample.guidance=1,2"], ema="none")
    checkpoint = run / "checkpoints" / "step-12"
    ema = (checkpoint / "ema-0.2.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(ema)  # as after another training
    second = swept(run, ["sample.guidance=1,2"], ema="none")
    third = swept(run, ["sample.guidance=1,2"], ema="0.2")
    assert [point["scores"] for point in second["points"]] != [
        point["scores"] for point in first["points"]
    ]
    assert [p["scores"] for p in third["points"]] == [p["scores"] for p in second["points"]]


KILLED = """
import json, sys, time
sys.path.insert(0, {tests!r})
from test_sweep import swept
import test_sweep, pathlib
slow = lambda line: (print(line, flush=True), time.sleep({pause}))
swept(pathlib.Path({run!r}), show=slow)
"""


def test_a_killed_sweep_gives_the_same_table_when_resumed(run: Path, tmp_path: Path) -> None:
    whole = swept(Path(shutil.copytree(run, tmp_path / "whole")))
    code = KILLED.format(tests=str(Path(__file__).parent), run=str(run), pause=60)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("1/6 guidance 1, ema 0.2: ink ")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (torn,) = (run / "sweeps").glob("step-12-guidance-ema-*/sweep.json")
    assert len(json.loads(torn.read_text())["points"]) == 1
    assert json.loads(torn.read_text())["best"] is None
    assert not (run / "best.yaml").exists()
    (run / "sweeps" / "points" / ".x.json.part").write_text('{"scores')  # torn in the middle
    again = swept(run)
    for each in (whole, again):
        each.pop("folder"), each.pop("default")
    assert sweep_table(again) == sweep_table(whole)
    assert without_times(again) == without_times(whole)


def test_a_resumed_sweep_keeps_its_batch_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = swept(run)
    shutil.rmtree(run / "sweeps" / "points")
    monkeypatch.setattr("jitkit.diffusion.sampler.free_bytes", lambda _: 1)  # little free memory
    again = swept(run)
    assert again["batch_size"] == first["batch_size"] == 256
    assert [p["scores"] for p in again["points"]] == [p["scores"] for p in first["points"]]


# The best one


def score(value: float, best: str = "low", floor: float | None = None) -> dict[str, Any]:
    reach = [value - 1, value + 1]
    return {"value": value, "interval": reach, "best": best, "floor": floor, "samples": 1000}


def point(number: int, resampled: Sequence[float], **given: Any) -> dict[str, Any]:
    return {
        "set": {"sample.guidance": number},
        "scores": {"fid": score(float(np.mean(resampled)), **given)},
        "resampled": {"fid": list(resampled)},
    }


def test_settings_are_compared_on_the_same_halves_so_that_shared_noise_cancels() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1.0, 40)  # ten times the variation of single settings
    made = [
        point(i, (5 + step + shared + rng.normal(0, 0.1, 40)).tolist())
        for i, step in enumerate((2.0, 0.0, 0.05, 0.8))
    ]
    best_set = select_best(made, "fid", {"sample.guidance": [0, 1, 2, 3]}, 1000)
    assert best_set["best"]["set"] == {"sample.guidance": 1}
    assert best_set["best"]["tied_with"] == [{"sample.guidance": 2}]
    wins = [each["wins"] for each in best_set["points"]]
    assert wins[0] == wins[3] == 0 and wins[1] > wins[2] > 0.1
    assert best_set["best"]["at_edge"] == []


@pytest.mark.parametrize(("best", "wanted"), [("low", 0), ("high", 3), ("real", 2)])
def test_the_best_setting_follows_the_best_value_of_the_score(best: str, wanted: int) -> None:
    made = [point(i, [value] * 40, best=best, floor=6.9) for i, value in enumerate((3, 5, 7, 9))]
    best_set = select_best(made, "fid", {"sample.guidance": [0, 1, 2, 3]}, 1000)["best"]
    assert best_set["set"] == {"sample.guidance": wanted}
    assert best_set["at_edge"] == ([] if wanted == 2 else ["sample.guidance"])


def test_two_equally_good_settings_are_almost_always_tied() -> None:
    """Two settings of one distribution differ significantly in about 5 % of cases."""
    rng = np.random.default_rng(1)
    ties = 0
    for _ in range(200):
        sides = rng.normal(0, 1, (2, 1000))
        halves = [rng.choice(1000, 500, replace=False) for _ in range(40)]
        made = []
        for i, values in enumerate(sides):
            made.append(point(i, [float(values[half].mean()) for half in halves]))
            made[-1]["scores"]["fid"]["value"] = float(values.mean())
        best_set = select_best(made, "fid", {"sample.guidance": [0, 1]}, 1000)
        ties += len(best_set["best"]["tied_with"])
    assert 0.90 < ties / 200 <= 1


def test_distances_of_arrays_are_best_low_and_other_scores_as_of_real_items() -> None:
    found = field_metrics(["t", "q"], [("row", "line")])
    best = {name: getattr(measure, "best", "real") for name, measure in found.items()}
    like_real = {"spread.t", "spread.q", "nearest_ratio", "copied_share"}
    assert {name for name, value in best.items() if value == "real"} == like_real
    assert set(best.values()) == {"low", "real"}


def test_the_default_score_is_the_first_distance(run: Path) -> None:
    result = sweep(run, ["sample.guidance=1,2"], ["sample.steps=2"], samples=12)
    assert list(result["points"][0]["scores"])[0] == "label_agreement"
    assert result["by"] == "frechet_pixels"


def test_equal_settings_share_wins_and_no_edge_is_reported() -> None:
    made = [point(i, [1.0] * 40) for i in range(4)]
    best_set = select_best(made, "fid", {"sample.guidance": [0, 1, 2, 3]}, 1000)
    assert [each["wins"] for each in best_set["points"]] == [0.25] * 4
    assert len(best_set["best"]["tied_with"]) == 3 and best_set["best"]["at_edge"] == []


def test_a_setting_with_an_undefined_score_is_skipped() -> None:
    made = [point(i, [value] * 40) for i, value in enumerate((1.0, 2.0))]
    made[0]["scores"]["fid"]["value"] = None
    made[0]["resampled"]["fid"] = [None] * 40
    best_set = select_best(made, "fid", {"sample.guidance": [0, 1]}, 1000)
    assert best_set["best"]["set"] == {"sample.guidance": 1}
    made[1]["scores"]["fid"]["value"] = None
    with pytest.raises(RecipeError, match="--by fid: the score is undefined for every setting"):
        select_best(made, "fid", {"sample.guidance": [0, 1]}, 1000)


# Defaults of the run


def test_the_best_setting_becomes_a_default_that_is_shown_and_can_be_removed(
    run: Path, jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    shown = jitkit("evaluate", run, *FEW, "--by", "frechet_pixels", *_flags(WORDS))
    assert shown.code == 0, shown.err
    assert "6 settings, 20 samples each:" in shown.out and "<- best" in shown.out
    assert f"{run / 'best.yaml'}; delete it to return to recipe.yaml" in shown.out
    best = yaml.safe_load((run / "best.yaml").read_text())
    best_set = {"guidance": best["sample"]["guidance"], "ema": best["ema"]}
    assert best["sample"]["steps"] == 2  # the override of the sweep
    assert best["found"]["step"] == 12 and best["found"]["by"] == "frechet_pixels"

    def drawn(name: str, *words: str) -> Any:
        answer = jitkit("sample", run, "--n", "3", "--out", tmp_path / name, *words)
        assert answer.code == 0, answer.err
        return np.asarray(Image.open(tmp_path / name / "00002.png")), answer.err

    by_default, shown_line = drawn("default")
    assert f"guidance={best_set['guidance']}" in shown_line
    assert f"ema {best_set['ema']}" in shown_line
    by_hand, _ = drawn("hand", f"sample.guidance={best_set['guidance']}", "--ema", best_set["ema"])
    assert np.array_equal(by_default, by_hand)
    other, shown_line = drawn("other", "sample.guidance=4", "--ema", "0.99")
    assert "guidance" not in shown_line and not np.array_equal(other, by_default)
    shown = jitkit("evaluate", run, "evaluate.samples=4", "--json")
    assert json.loads(shown.out)["model"]["ema"] == best_set["ema"]
    (run / "best.yaml").unlink()
    _, shown_line = drawn("recipe")
    assert shown_line == ""


def _flags(words: Sequence[str]) -> list[str]:
    return [part for word in words for part in ("--sweep", word)]


def test_a_sweep_does_not_depend_on_an_earlier_best_setting(run: Path) -> None:
    first = swept(run)
    write_best(run, {"sample.guidance": 9.0, "sample.method": "euler"}, {})
    assert without_times(swept(run)) == without_times(first)


def test_overrides_take_precedence_over_defaults(tmp_path: Path) -> None:
    write_best(tmp_path, {"sample.guidance": 2.5, "sample.method": "euler", "ema": 0.99}, {})
    keys = {"sample.guidance": 2.5, "sample.method": "euler"}
    assert read_best(tmp_path) == (keys, "0.99", None)
    words, ema = with_best(tmp_path, ["sample.guidance=3"], None)
    assert (list(words), ema) == (['sample.method="euler"', "sample.guidance=3"], "0.99")
    mapping, ema = with_best(tmp_path, {"sample.guidance": 3}, "none")
    assert (mapping, ema) == ({"sample.method": "euler", "sample.guidance": 3}, "none")
    write_best(tmp_path, {"sample.t_eps": 1e-5}, {})
    assert read_best(tmp_path)[0] == {"sample.t_eps": 1e-5}
    for text, reason in (("sample: [", "not YAML"), ("ema: 0.9\nema: 0.99", "given twice")):
        (tmp_path / "best.yaml").write_text(text)
        with pytest.raises(RecipeError, match=f"best.yaml cannot be read: {reason}"):
            read_best(tmp_path)


def test_defaults_written_by_an_older_jitkit_get_the_new_key_names(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").write_text(
        "sample:\n  times: cosine\n  interval: [0.2, 0.9]\n  guide: runs/small\n  steps: 20\n"
        "ema: '0.99'\nfound:\n  by: fid\n  step: 500\n"
    )
    keys = {
        "sample.time_grid": "cosine",
        "sample.guidance_interval": [0.2, 0.9],
        "sample.autoguidance": "runs/small",
        "sample.steps": 20,
    }
    assert read_best(tmp_path) == (keys, "0.99", 500)
    mapping, _ = with_best(tmp_path, {"sample.time_grid": "uniform"}, None)
    assert mapping == keys | {"sample.time_grid": "uniform"}


@pytest.mark.parametrize("words", [WORDS, ["sample.guidance=1,2"], ["ema=0.2,none"]])
def test_the_plot_shows_the_sweep(run: Path, words: Sequence[str]) -> None:
    result = swept(run, words)
    with Image.open(Path(result["folder"]) / "sweep.png") as plot:
        plot.load()
        colours = np.asarray(plot.convert("RGB")).reshape(-1, 3)
    assert 500 < plot.width < 3000 and 200 < plot.height < 2000
    frame = np.array([0xD1, 0x49, 0x5B])
    assert (np.abs(colours.astype(int) - frame).max(axis=1) < 12).sum() > 50  # the best is marked


def test_a_sweep_of_three_keys_is_plotted_as_a_map_of_two(run: Path) -> None:
    words = ("sample.guidance=1,2", "ema=0.2,none", "sample.method=heun,euler")
    result = swept(run, words)
    assert len(result["points"]) == 8 and (Path(result["folder"]) / "sweep.png").is_file()


# Errors


def test_errors_are_raised_before_anything_is_scored(run: Path) -> None:
    for words, given, error, text in (
        (["sample.guidance=1,none"], {}, RecipeError, "sample.guidance"),
        (["sample.t_eps=0,0.1"], {}, RecipeError, "sample.t_eps: 0"),
        (["ema=0.2,0.5"], {}, CheckpointError, "no EMA 0.5; it has 0.2, 0.99"),
        (["ema=0.2,none"], {"ema": "none"}, RecipeError, "--ema and --sweep ema"),
        (["sample.steps=1,2"], {}, RecipeError, "sample.steps is swept and overridden"),
        (["sample.guidance=1,2"], {"by": "inc"}, RecipeError, "--by inc: no such score; ink, "),
    ):
        with pytest.raises(error, match=text):
            swept(run, words, **given)
    assert not (run / "best.yaml").exists()


def test_a_score_that_is_best_as_of_held_out_items_needs_held_out_items(run: Path) -> None:
    class Unheld(Inked):
        def items(self, split: Any) -> Any:
            return super().items(split)[:50] if split == "train" else []

    domain = Unheld(DigitsSection(name="digits"))
    with pytest.raises(JitkitError, match="--by brightest: its best value is that of held-out"):
        swept(run, ["sample.guidance=1,2"], domain=domain, by="brightest")


def test_invalid_arguments_of_the_command_are_refused(
    run: Path, jitkit: Callable[..., Any]
) -> None:
    for words, text in {
        ("--by", "ink"): "--by chooses among the settings of a --sweep",
        ("--samples", "0"): "--samples 0 must be at least 1",
        ("--sweep", "sample.guidance=a"): "sample.guidance: 'a' is not a number",
    }.items():
        shown = jitkit("evaluate", run, *words)
        assert (shown.code, text in shown.err) == (2, True), shown.err


def test_a_sweep_with_json_prints_json_only(run: Path, jitkit: Callable[..., Any]) -> None:
    words = ("evaluate", run, "--sweep", "sample.guidance=1,2", "--samples", "8", "--json")
    result = json.loads(jitkit(*words).out)
    assert [point["set"] for point in result["points"]] == [
        {"sample.guidance": 1},
        {"sample.guidance": 2},
    ]
    assert result["samples"] == 8


def test_autoguidance_models_can_be_swept(run: Path) -> None:
    early = run / "checkpoints" / "step-4"
    words = [f"sample.autoguidance={early},{early}@none", "sample.guide_scale=1.5,3"]
    result = swept(run, words)
    assert len({point["scores"]["ink"]["value"] for point in result["points"]}) == 4
