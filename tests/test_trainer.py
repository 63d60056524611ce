"""Training: resuming is bit-identical, checks before the first step, bad steps, validation."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import random_model
from torch import Tensor

import jitkit
from jitkit.data import BatchPlan
from jitkit.diffusion.build import assemble
from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.flow import convert
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import CheckpointError, DataError, JitkitError, RecipeError
from jitkit.fields import Field
from jitkit.optim.ema import EMA
from jitkit.recipe.load import dump_recipe, load_recipe
from jitkit.runs import checkpoint
from jitkit.training.trainer import train
from jitkit.training.validation import bin_weights, validation_loss

DIGITS = Digits(DigitsSection(name="digits"))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def outcome(run: Path) -> dict[str, bytes]:
    """Every file of a run, except those that depend on time, machine and the first recipe."""
    ignored = ("environment.json", "recipe.yaml", "speed.jsonl", ".lock", "tensorboard/")
    return {name: file for name, file in contents(run).items() if not name.startswith(ignored)}


def assert_same(a: Path, b: Path) -> None:
    first, second = outcome(a), outcome(b)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# Resuming

VARIED = {"model.depth": 4, "model.dropout": 0.3, "train.weight_decay": 0.1}
VARIED |= {"train.warmup_steps": 3, "train.validate_every_steps": 3, "train.preview_every_steps": 6}


def test_a_resumed_run_is_bit_identical(tiny: dict[str, Any], tmp_path: Path) -> None:
    overrides = VARIED | {"train.save_every_steps": 6}
    uninterrupted = train(tiny, overrides, run=tmp_path / "uninterrupted")
    resumed = train(tiny, overrides | {"train.steps": 6}, run=tmp_path / "resumed")
    assert steps(resumed) == ["step-6"] and len(metrics(resumed)) == 6
    train(tiny, overrides, run=resumed)
    assert steps(resumed) == ["step-12", "step-6"]
    assert_same(uninterrupted, resumed)


def test_workers_do_not_change_a_run_but_dropout_and_seed_do(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    varied = VARIED | {"train.save_every_steps": 6}
    plain = train(tiny, varied, run=tmp_path / "0")
    resumed = train(tiny, varied | {"train.steps": 6}, run=tmp_path / "1")
    assert_same(plain, train(tiny, varied | {"train.workers": 2}, run=resumed))
    losses = {
        json.dumps([record["loss"] for record in metrics(run)])
        for run in (
            plain,
            train(tiny, VARIED | {"model.dropout": 0}, run=tmp_path / "2"),
            train(tiny, VARIED | {"train.seed": 1}, run=tmp_path / "3"),
        )
    }
    assert len(losses) == 3


def test_a_resumed_run_on_randomly_flipped_images_is_bit_identical(
    tiny: dict[str, Any], tmp_path: Path, image_folder: Path
) -> None:
    tiny["domain"] = {
        "name": "images",
        "path": image_folder,
        "size": 8,
        "flip": True,
        "holdout": 0.2,
    }
    uninterrupted = train(tiny, run=tmp_path / "uninterrupted")
    resumed = train(tiny, {"train.steps": 4}, run=tmp_path / "resumed")
    assert_same(uninterrupted, train(tiny, run=resumed))
    unflipped = train(tiny, {"domain.flip": False}, run=tmp_path / "unflipped")
    assert metrics(unflipped) != metrics(uninterrupted)


class Killed:
    """A run in a separate process that is killed at random moments.

    The process leads a process group, by which its workers are found after the kill.
    """

    def __init__(self, recipe: Path, run: Path) -> None:
        self.command = [sys.executable, "-m", "jitkit", "train", str(recipe), "--run", str(run)]
        self.run = run

    def start_and_kill(self, wait: float) -> bool:
        """Kill the run ``wait`` seconds after a new checkpoint; False if it ended before."""
        before = self.newest()
        process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
        )
        try:
            while self.newest() == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(wait)
        finally:
            process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        assert group_ended(process.pid, within=20), "workers outlive their run"
        return killed

    def newest(self) -> int:
        names = [path.name for path in (self.run / "checkpoints").glob("step-*")]
        return max((int(name.removeprefix("step-")) for name in names), default=0)


def group_ended(group: int, *, within: float) -> bool:
    """Whether a process group ends within ``within`` seconds; it is killed if not."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    return False


def kill_and_compare(
    recipe: dict[str, Any], folder: Path, *, kills: int, longest: float, saving: bool = False
) -> list[int]:
    """Kill a run repeatedly and compare it with an uninterrupted one; the steps of the kills.

    With ``saving`` at least one kill must hit while a checkpoint is being written.
    """
    seed = time.time_ns()
    print(f"random.seed({seed})")  # shown if the test fails
    moments = random.Random(seed)
    uninterrupted = train(recipe, run=folder / "uninterrupted")
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(load_recipe(recipe)))
    run = Killed(path, folder / "killed")
    killed_at: list[int] = []
    half_written = 0
    while len(killed_at) < kills or (saving and not half_written and len(killed_at) < 10 * kills):
        if not run.start_and_kill(moments.uniform(0, longest)):
            break  # the run ended first
        killed_at.append(run.newest())
        half_written += len(list((run.run / "checkpoints").glob(".*.part")))
    assert half_written or not saving
    subprocess.run(run.command, check=True, capture_output=True, text=True)
    assert_same(uninterrupted, run.run)
    return killed_at


def test_a_run_killed_at_any_moment_resumes_bit_identically(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["train"] |= {"steps": 400, "save_every_steps": 3, "validate_every_steps": 50}
    tiny["train"] |= {"preview_every_steps": 100}
    killed_at = kill_and_compare(tiny, tmp_path, kills=2, longest=0.5)
    assert killed_at and 0 < killed_at[0] < 400


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "kills"), [(0, 7), (2, 4)])
def test_a_run_killed_many_times_resumes_bit_identically(
    tiny: dict[str, Any], tmp_path: Path, image_folder: Path, workers: int, kills: int
) -> None:
    tiny["domain"] = {
        "name": "images",
        "path": image_folder,
        "size": 8,
        "holdout": 0.2,
        "flip": True,
    }
    tiny["model"] |= {"depth": 4, "dropout": 0.1}
    tiny["train"] |= {"steps": 400, "save_every_steps": 2, "validate_every_steps": 200}
    tiny["train"] |= {"workers": workers, "accumulate": 2, "ema_sigma_rel": [0.1]}
    tiny["train"] |= {"ema_snapshot_every_steps": 20, "preview_every_steps": 200}
    assert kill_and_compare(tiny, tmp_path, kills=kills, longest=0.3, saving=True)


def test_every_step_draws_new_times_and_noise(tiny: dict[str, Any], tmp_path: Path) -> None:
    class One(Digits):
        def items(self, split: Any) -> Sequence[ImageItem]:
            return super().items(split)[:1]

    still = {"train.lr": 1e-30, "train.batch_size": 1}
    run = train(tiny, still, run=tmp_path / "run", domain=One(DigitsSection(name="digits")))
    assert len({record["loss"] for record in metrics(run)}) == 12


def test_a_torn_checkpoint_is_skipped_and_the_run_resumes_from_the_one_before(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny, run=tmp_path / "run")
    expected = outcome(run)
    (run / "checkpoints/step-12/optimizer.safetensors").write_bytes(b"")
    capsys.readouterr()
    train(tiny, run=run)
    shown = capsys.readouterr()
    assert "step-12: torn: optimizer.safetensors has 0 bytes" in shown.err
    assert "resuming from step 8 of 12" in shown.out
    assert outcome(run) == expected


def test_a_complete_run_is_reported_and_left_unchanged(
    tiny: dict[str, Any], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(trained)
    assert train(tiny, run=trained) == trained
    assert "step 12 of 12 is done; train longer with train.steps=N" in capsys.readouterr().out
    assert contents(trained) == before


# What may change when a run is resumed


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("train.lr", 1e-3, "train.lr: 0.01 -> 0.001"),
        ("train.seed", 1, "train.seed: 0 -> 1"),
        ("train.ema", [0.2], r"train.ema: \[0.2, 0.99\] -> \[0.2\]"),
        ("model.width", 32, "model.width: 16 -> 32"),
        ("diffusion.P_mean", 0, "diffusion.P_mean: -0.8 -> 0.0"),
        ("domain.label_drop", 0.5, "domain.label_drop: 0.1 -> 0.5"),
    ],
)
def test_a_changed_recipe_is_refused_with_the_difference(
    tiny: dict[str, Any], trained: Path, key: str, value: Any, line: str
) -> None:
    before = contents(trained)
    allowed = {"train.steps": 13, "sample.steps": 3, "evaluate.samples": 7}
    with pytest.raises(RecipeError, match=rf"another recipe:\n  {line}\nstart another with --new"):
        train(tiny, allowed | {key: value}, run=trained)
    assert contents(trained) == before


def test_steps_logging_and_sampling_keys_may_change(tiny: dict[str, Any], tmp_path: Path) -> None:
    run = train(tiny, {"train.steps": 4}, run=tmp_path / "run")
    changes = {"train.steps": 6, "train.save_every_steps": 1, "train.keep": 1, "name": "other"}
    changes |= {"train.validate_every_steps": 2, "sample.guidance": 3, "train.preview_samples": 1}
    changes |= {"train.ema_device": "cpu"}
    train(tiny, changes, run=run)
    assert steps(run) == ["step-6"]
    assert "steps: 6" in (run / "recipe.yaml").read_text()


def test_new_starts_another_run_beside_the_first(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    least = {"train.steps": 1}
    assert train(tiny, least) == Path("runs/tiny")
    first = contents(Path("runs/tiny"))
    assert train(tiny, least | {"train.lr": 1e-3}, new=True) == Path("runs/tiny-2")
    assert train(tiny, least, new=True) == Path("runs/tiny-3")
    assert contents(Path("runs/tiny")) == first
    assert outcome(Path("runs/tiny-3")) == outcome(Path("runs/tiny"))


def test_a_folder_with_other_files_is_refused_and_left_unchanged(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RecipeError, match="holds files but no run"):
        train(tiny, run=tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"all of it"}


def test_an_imported_run_cannot_be_resumed_without_an_optimizer(
    tiny: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    denoiser = jitkit.load(trained)
    run = tmp_path / "run"
    checkpoint.save_checkpoint(run, 0, denoiser, EMA(denoiser.network, [0.2, 0.99]))
    (run / "recipe.yaml").write_text((trained / "recipe.yaml").read_text())
    with pytest.raises(CheckpointError, match="optimizer.safetensors: no such file"):
        train(tiny, run=run)


# Arguments of train


def test_a_recipe_may_be_a_name_a_file_sections_or_a_recipe(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_recipe(load_recipe(tiny)))
    small = {f"model.{key}": value for key, value in tiny["model"].items()}
    runs = [
        train(load_recipe(tiny), {"train.steps": 1}, run=tmp_path / "recipe"),
        train(str(path), ["train.steps=1"], run=str(tmp_path / "file")),
        jitkit.train(tiny, {"train.steps": 1}, run=tmp_path / "sections"),
    ]
    assert len({json.dumps(metrics(run)) for run in runs}) == 1
    assert [len(metrics(run)) for run in runs] == [1, 1, 1]
    named = train(
        "digits",
        small | {"train.steps": 1, "evaluate.after_training": False},
        run=tmp_path / "name",
    )
    assert len(metrics(named)) == 1 and (named / "recipe.yaml").read_text().startswith("name: dig")


class Three(Digits):
    """The first three digits."""

    encoded: list[str]

    def items(self, split: Any) -> Sequence[ImageItem]:
        return super().items(split)[:3]

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        if rng is not None:
            self.encoded.append(item.name)
        return super().encode(item, rng)


def test_a_given_adapter_replaces_that_of_the_recipe(tiny: dict[str, Any], tmp_path: Path) -> None:
    domain = Three(DigitsSection(name="digits"))
    domain.encoded = []
    train(tiny, {"train.steps": 3}, run=tmp_path / "run", domain=domain)
    assert len(domain.encoded) == 24
    assert {domain.encoded.count(name) for name in ("0000", "0001", "0002")} == {8}


# Files of a run


def test_a_run_writes_recipe_environment_metrics_checkpoints_samples_and_status(
    trained: Path, tiny: dict[str, Any]
) -> None:
    names = {path.name for path in trained.iterdir()} - {"tensorboard", ".lock"}
    assert names == {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
    } | {"status.json"}
    assert json.loads((trained / "status.json").read_text()) == dict(
        state="done", step=12, steps=12
    )
    assert load_recipe(trained / "recipe.yaml") == load_recipe(tiny)
    assert json.loads((trained / "environment.json").read_text())["versions"]["torch"]
    assert steps(trained) == ["step-12", "step-4", "step-8"]
    assert [path.name for path in (trained / "samples").iterdir()] == ["step-0.png"]


def test_every_step_has_one_line_of_metrics_and_some_have_the_validation_loss(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    often = {"train.validate_every_steps": 5, "train.warmup_steps": 4}
    records = metrics(train(tiny, often, run=tmp_path / "run"))
    assert [record["step"] for record in records] == list(range(1, 13))
    for record in records:
        of_bins = [loss for loss in record["loss_bins"] if loss is not None]
        assert len(record["loss_bins"]) == 10 and min(of_bins) <= record["loss"] <= max(of_bins)
        assert ("val_loss" in record) == ("val_loss_bins" in record)
    assert [r["lr"] for r in records[:6]] == pytest.approx([0, 0.0025, 0.005, 0.0075, 0.01, 0.01])
    validated = [record for record in records if "val_loss" in record]
    assert [record["step"] for record in validated] == [5, 10, 12]
    for record in validated:
        weighted = sum(w * b for w, b in zip(bin_weights(), record["val_loss_bins"], strict=True))
        assert record["val_loss"] == pytest.approx(weighted)


def test_the_logged_validation_loss_is_that_of_the_first_ema(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    run = train(tiny, {"train.validate_every_steps": 4}, run=tmp_path / "run")
    for step in (4, 8, 12):
        denoiser = jitkit.load(run / f"checkpoints/step-{step}", ema=0.2)
        bins = validation_loss(denoiser, DIGITS, 20, 8)
        assert metrics(run)[step - 1]["val_loss_bins"] == bins


def test_training_lowers_the_validation_loss(tiny: dict[str, Any], tmp_path: Path) -> None:
    longer = {"train.steps": 150, "train.batch_size": 32, "train.validate_every_steps": 50}
    records = metrics(train(tiny, longer, run=tmp_path / "run"))
    untrained = validation_loss(assemble(load_recipe(tiny), DIGITS), DIGITS, 20, 20)
    assert untrained is not None
    start = sum(w * b for w, b in zip(bin_weights(), untrained, strict=True))
    losses = [start, *(record["val_loss"] for record in records if "val_loss" in record)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.5 * start


# Checks before the first step


class Unwritable(Digits):
    """Cannot write decoded items."""

    def write(self, items: Iterable[ImageItem], path: Path) -> list[Path]:
        raise JitkitError("no codec for this variable")


class Unreadable(Digits):
    """Has items, but cannot read any for training."""

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        if rng is not None:
            raise DataError("the store is gone")
        return super().encode(item)


def test_samples_that_cannot_be_written_fail_before_the_first_step(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    domain = Unwritable(DigitsSection(name="digits"))
    with pytest.raises(JitkitError, match="no codec for this variable"):
        train(tiny, run=tmp_path / "run", domain=domain)
    assert metrics(tmp_path / "run") == []
    assert [path.name for path in (tmp_path / "run").iterdir() if path.is_dir()] == []


def test_a_preview_is_drawn_before_the_first_step(tiny: dict[str, Any], tmp_path: Path) -> None:
    domain = Unreadable(DigitsSection(name="digits"))
    with pytest.raises(DataError, match="^the store is gone$"):
        train(tiny, run=tmp_path / "run", domain=domain)
    assert metrics(tmp_path / "run") == []
    assert (tmp_path / "run/samples/step-0.png").stat().st_size > 0
    train(tiny, {"train.steps": 1}, run=tmp_path / "run")  # no step was done, so it starts anew
    assert len(metrics(tmp_path / "run")) == 1


def test_a_broken_image_is_named_and_training_continues(
    tiny: dict[str, Any], tmp_path: Path, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "cat" / "03.png").write_bytes(b"<html>404</html>")
    tiny["domain"] = {"name": "images", "path": image_folder, "size": 8, "holdout": 0}
    run = train(tiny, run=tmp_path / "run")
    assert steps(run) == ["step-12", "step-4", "step-8"]
    line = f"{image_folder}/cat/03.png: cannot identify image file '{image_folder}/cat/03.png'"
    assert (run / "skipped_items.txt").read_text() == line + "\n"
    assert capsys.readouterr().err == f"warning: skipped {line}\n"  # once in four epochs


# Steps without a finite loss


def test_a_diverging_run_stops_with_advice_and_keeps_its_last_good_checkpoint(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diverging = {"train.lr": 1e30, "train.save_every_steps": 1, "train.max_bad_steps": 3}
    with pytest.raises(JitkitError) as caught:
        train(tiny, diverging, run=tmp_path / "run")
    assert re.fullmatch(
        r"4 bad steps in a row; step 5 was skipped: the loss of 8 of 8 samples is not finite "
        r"\(training items [\d, ]+\); the last checkpoint is .*run/checkpoints/step-1\. "
        r"Lower the learning rate \(train\.lr\), set train\.clip_gradient=1, or use "
        r"train\.precision=float32",
        str(caught.value),
    )
    records = metrics(tmp_path / "run")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    assert np.isfinite(records[0]["loss"])
    assert all(record["loss"] is None and len(record["items"]) == 8 for record in records[1:])
    assert capsys.readouterr().err.count("warning: step") == 4
    found = checkpoint.find_checkpoint(tmp_path / "run")
    assert found.step == 1
    for tensor in found.tensors("model").values():
        assert bool(tensor.isfinite().all())


class Poisoned(Digits):
    """Some of the training items are too bright for float32."""

    bad: frozenset[str] = frozenset()

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        field = super().encode(item, rng)
        return replace(field, values=field.values * 1e30) if item.name in self.bad else field


def test_a_step_without_a_finite_loss_is_skipped_and_its_items_are_named(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    plan = BatchPlan(1500, 8, 0, 0, 12)
    domain = Poisoned(DigitsSection(name="digits"))
    domain.bad = frozenset(f"{plan.keys(step)[3][1]:04}" for step in (4, 5, 8))
    run = train(tiny, run=tmp_path / "run", domain=domain)
    skipped = {r["step"]: r["items"] for r in metrics(run) if "skipped" in r}
    assert skipped == {step + 1: [plan.keys(step)[3][1]] for step in (4, 5, 8)}
    resumed = train(tiny, {"train.steps": 4}, run=tmp_path / "resumed", domain=domain)
    assert_same(run, train(tiny, run=resumed, domain=domain))


def test_bad_steps_in_a_row_are_counted_across_a_resume(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    plan = BatchPlan(1500, 8, 0, 0, 12)
    domain = Poisoned(DigitsSection(name="digits"))
    domain.bad = frozenset(f"{plan.keys(step)[0][1]:04}" for step in (4, 5, 6, 7))
    run = train(tiny, {"train.steps": 7}, run=tmp_path / "run", domain=domain)
    with pytest.raises(JitkitError, match="4 bad steps in a row; step 8"):
        train(tiny, {"train.max_bad_steps": 3}, run=run, domain=domain)
    train(tiny, {"train.max_bad_steps": 4}, run=run, domain=domain)


def test_weights_that_are_not_finite_are_never_saved(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(JitkitError, match="a weight is not finite after step 1; .* is none"):
        train(tiny, {"train.save_every_steps": 1, "train.lr": 1e39}, run=tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 1
    assert checkpoint.newest(tmp_path / "run") is None


def test_a_validation_loss_that_is_not_finite_stops_the_run(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    class Bright(Digits):
        def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
            field = super().encode(item, rng)
            return field if rng is not None else replace(field, values=field.values * 1e30)

    with pytest.raises(JitkitError, match="the validation loss of step 1 is inf; "):
        train(
            tiny,
            {"train.validate_every_steps": 1},
            run=tmp_path / "run",
            domain=Bright(DigitsSection(name="digits")),
        )
    assert len(metrics(tmp_path / "run")) == 1


# The validation loss


def mean_square() -> float:
    """Of the 20 items used for validation."""
    items = DIGITS.items("val")
    values = [DIGITS.encode(items[i * len(items) // 20]).values for i in range(20)]
    return float(torch.stack(values).square().mean())


@pytest.mark.parametrize("noise_scale", [0.5, 1.0, 4.0])
def test_a_model_that_predicts_zero_has_the_known_validation_loss(
    tiny: dict[str, Any], noise_scale: float
) -> None:
    fresh = assemble(
        load_recipe(tiny, {"diffusion.noise_scale": noise_scale, "diffusion.loss": "eps"}), DIGITS
    )
    bins = validation_loss(fresh, DIGITS, 20, 7)
    expected = [mean_square() / (1 - (k + 0.5) / 10) ** 2 for k in range(10)]
    assert bins == pytest.approx(expected, rel=1e-5)


class Wiener(Denoiser):
    """Best linear prediction of data of unit variance: x_hat = z t / (t² + (1 - t)² s²)."""

    def predict(self, z: Tensor, t: Tensor, conditioning: Any = None) -> Tensor:
        signal, noise = t**2, (1 - t) ** 2 * self.diffusion.noise_scale**2
        x_hat = z * (t / (signal + noise)).reshape(-1, 1, 1, 1)
        return convert(x_hat, z, t, source="x", target=self.diffusion.prediction, t_eps=1e-6)


@pytest.mark.parametrize("scale", [0.25, 2.0, 8.0])
@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_the_validation_loss_is_independent_of_noise_scale_and_parameterization(
    tiny: dict[str, Any], scale: float, prediction: Any
) -> None:
    sizes = assemble(load_recipe(tiny), DIGITS).network.sizes
    layout = DIGITS.layout.with_patch(4)
    plain = Wiener(layout, DIGITS.conditions, sizes, Diffusion(t_eps=1e-6))
    other = Wiener(
        layout, DIGITS.conditions, sizes, Diffusion(prediction, "v", noise_scale=scale, t_eps=1e-6)
    )
    bins = validation_loss(plain, DIGITS, 20, 20)
    assert bins is not None
    assert validation_loss(other, DIGITS, 20, 20) == pytest.approx(bins, rel=1e-4)
    zero = [mean_square() / (1 - (k + 0.5) / 10) ** 2 for k in range(10)]  # of predicting zero
    assert all(loss < worse for loss, worse in zip(bins[2:], zero[2:], strict=True))


class Cropped(Digits):
    """Digits of varying height."""

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        field = super().encode(item, rng)
        return replace(field, values=field.values[:, : 3 + int(item.name) % 6])


@pytest.mark.parametrize("domain", [DIGITS, Cropped(DigitsSection(name="digits"))])
def test_the_validation_loss_depends_only_on_the_weights(domain: Digits) -> None:
    denoiser = random_model(domain.layout, domain.conditions)
    torch.manual_seed(1)
    first = validation_loss(denoiser, domain, 20, 20)
    torch.manual_seed(2)
    assert first == validation_loss(denoiser, domain, 20, 20)
    for batch_size in (1, 7):
        assert first == pytest.approx(validation_loss(denoiser, domain, 20, batch_size), rel=1e-4)
    other = random_model(domain.layout, domain.conditions, seed=1)
    assert first != pytest.approx(validation_loss(other, domain, 20, 20), rel=1e-2)


def test_without_validation_items_there_is_no_validation_loss(
    tiny: dict[str, Any], tmp_path: Path, image_folder: Path
) -> None:
    tiny["domain"] = {"name": "images", "path": image_folder, "size": 8, "holdout": 0}
    run = train(tiny, {"train.validate_every_steps": 2}, run=tmp_path / "run")
    assert not any("val_loss" in record for record in metrics(run))


def test_bin_weights_are_the_probabilities_of_the_paper_s_times() -> None:
    weights = bin_weights()
    assert sum(weights) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    t = (torch.randn(200_000, generator=generator) * 0.8 - 0.8).sigmoid()
    shares = torch.histc(t, bins=10, min=0, max=1) / len(t)
    assert weights == pytest.approx(shares.tolist(), abs=0.005)


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    """After each test no partly written file is left."""
    yield
    assert [path for path in tmp_path.rglob("*.part")] == []
