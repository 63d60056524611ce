"""Dry run (`jitkit check`): counts of model, memory and largest batch, and all problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from jitkit.diffusion.build import assemble, choose_noise_scale, choose_precision
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.fields import Axis, Category, Grid, Layout, PerToken, Scalars
from jitkit.nn.flops import macs
from jitkit.nn.memory import parse_bytes
from jitkit.optim.optimizers import peak_learning_rate
from jitkit.recipe.load import load_recipe
from jitkit.training.dry_run import check

DIGITS = Digits(DigitsSection(name="digits"))
GIB = 2**30


def summary(name: str, *overrides: str) -> dict[str, Any]:
    return check(load_recipe(name, overrides)).summary


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder and no ImageNet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IMAGENET", raising=False)


# Without data


def test_the_model_of_the_paper_is_counted_without_data(jitkit: Callable[..., Any]) -> None:
    answer = jitkit("check", "imagenet256", "--json")
    assert answer.code == 2
    report = json.loads(answer.out)
    assert report["parameters"] == 131_123_712
    assert round(report["gmacs"], 2) == 25.22
    assert (report["tokens"], report["patch_features"]) == (256, 768)
    assert report["in_context_tokens"] == 32
    assert report["learning_rate"] == pytest.approx(2e-4)
    (problem,) = report["problems"]
    assert problem.startswith("domain.path data/imagenet: no such folder. For ImageNet download")
    assert answer.err == f"jitkit: {problem}\n"


@pytest.mark.parametrize(
    ("overrides", "parameters"),
    [
        (["model.size=L"], 459e6),  # table 6 of the paper, in millions
        (["model.size=H"], 953e6),
        (["model.size=G"], 2.0e9),
        (["domain.size=512", "model.patch=32"], 133e6),
    ],
)
def test_other_sizes_have_the_parameter_counts_of_the_paper(
    overrides: list[str], parameters: float
) -> None:
    assert summary("imagenet256", *overrides)["parameters"] == pytest.approx(parameters, rel=0.012)


def test_the_same_number_of_tokens_costs_the_same_at_every_image_size() -> None:
    small, middle, large = (
        summary(name)["gmacs"] for name in ("imagenet64-1gpu", "imagenet256", "imagenet512")
    )
    assert small < middle < large < 1.1 * small


def test_a_section_without_the_layout_gives_only_the_problem() -> None:
    report = check(load_recipe({"domain": {"name": "images"}, "model": {"size": "B"}}))
    assert report.summary == {"recipe": "images"}
    assert len(report.problems) == 1 and "domain.path is not set" in report.problems[0]


def test_all_problems_are_reported_together() -> None:
    report = check(load_recipe("imagenet256", ["model.patch=[16, 16, 16]"]))
    first, second = report.problems
    assert "no such folder" in first
    assert second == "patch [16, 16, 16] has 3 numbers for 2 axes (row, column)"


# With data


def test_digits_have_no_problems_and_readable_output(
    jitkit: Callable[..., Any],
) -> None:
    answer = jitkit("check", "digits")
    assert (answer.code, answer.err) == (0, "")
    assert "\ntrain:\n  steps: " in answer.out  # every key of the resolved recipe
    for line in (
        "grid: 8, 8",
        "channels: grey",
        "axes: row (line), column (line)",
        "conditions: label Category",
        "tokens: 16",
        "noise_scale: 1",
        "noise_scale_why: auto: side of the grid over 256, at least 1",
    ):
        assert f"\n{line}\n" in answer.out


def test_json_output_is_one_object_of_summary_and_problems(jitkit: Callable[..., Any]) -> None:
    answer = jitkit("check", "digits", "train.ema=[0.9, 0.99, 0.999]", "--json")
    report = json.loads(answer.out)
    assert (answer.code, answer.err, report["problems"]) == (0, "", [])
    parts = report["memory_parts_gib"]
    weights = 4 * report["parameters"] / GIB
    assert parts["weights"] == parts["gradients"] == pytest.approx(weights)
    assert parts["optimizer"] == pytest.approx(2 * weights)
    assert parts["ema"] == pytest.approx(3 * weights)
    assert report["memory_gib"] == pytest.approx(sum(parts.values())) and (
        report["memory_gib"] >= (4 + 3) * weights
    )
    assert report["memory_free_gib"] > 0


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing() -> None:
    def activations(*overrides: str) -> float:
        return summary("imagenet64-1gpu", *overrides)["memory_parts_gib"]["activations"]

    kept = activations("train.checkpoint_activations=false")
    assert activations("train.checkpoint_activations=false", "train.batch_size=64") == (
        pytest.approx(kept / 4)
    )
    assert activations() < kept / 5


# The largest batch


def fitted(memory: str, *overrides: str, processes: int = 1) -> dict[str, Any]:
    recipe = load_recipe("imagenet64-1gpu", ["train.precision=float32", *overrides])
    return check(recipe, memory=parse_bytes(memory), processes=processes).summary


def test_the_largest_batch_fits_the_given_memory_with_a_tenth_kept_free() -> None:
    largest = fitted("24GiB")["largest_batch"]
    for batch_size, fits in ((largest, True), (largest + 1, False)):
        overrides = [f"train.batch_size={batch_size}", "train.checkpoint_activations=false"]
        needed = fitted("24GiB", *overrides)["memory_gib"] + 0.5 / 1.1  # torch itself takes 0.5
        assert (1.1 * needed <= 24) is fits


def test_memory_is_counted_with_and_without_checkpointing() -> None:
    checkpointed, kept = (
        fitted("24GiB", f"train.checkpoint_activations={answer}") for answer in ("true", "false")
    )
    assert checkpointed["memory_gib"] == checkpointed["memory_with_checkpointing_gib"]
    assert kept["memory_gib"] == checkpointed["memory_without_checkpointing_gib"]
    assert kept["memory_gib"] > checkpointed["memory_gib"]
    for counted in (checkpointed, kept):
        assert 0 < counted["largest_batch"] < counted["largest_batch_checkpointing"]


def test_accumulation_and_processes_raise_the_largest_batch_and_lower_the_memory() -> None:
    alone = fitted("24GiB", "train.batch_size=64")
    parts = fitted("24GiB", "train.batch_size=64", "train.accumulate=4")
    both = fitted("24GiB", "train.batch_size=64", "train.accumulate=4", processes=2)
    assert parts["largest_batch"] == 4 * alone["largest_batch"]
    assert both["largest_batch"] == 8 * alone["largest_batch"]
    assert both["largest_batch_why"].endswith("; 4 parts (train.accumulate) in each of 2 processes")
    kept, *fewer = (f["memory_parts_gib"]["activations"] for f in (alone, parts, both))
    assert fewer == pytest.approx([kept / 4, kept / 8])


def test_memory_too_small_for_one_sample_is_reported() -> None:
    counted = fitted("800 MiB")
    assert counted["largest_batch"] == counted["largest_batch_checkpointing"] == 0
    assert counted["largest_batch_why"].startswith("not even one sample fits: it takes 3.")


def test_without_a_memory_there_is_no_largest_batch() -> None:
    assert not [key for key in summary("digits") if key.startswith("largest")]


def test_every_ema_and_half_precision_are_counted() -> None:
    plain = summary("digits", "train.precision=float32")["memory_parts_gib"]
    more = summary("digits", "train.ema_sigma_rel=[0.05, 0.1]", "train.precision=bfloat16")
    assert more["memory_parts_gib"]["ema"] == pytest.approx(2 * plain["ema"])
    assert more["memory_parts_gib"]["activations"] < plain["activations"]
    assert "half_weights" in more["memory_parts_gib"] and "half_weights" not in plain


def test_a_model_that_takes_half_of_the_memory_is_sharded() -> None:
    assert fitted("24GiB", processes=4)["memory_parts_gib"]["weights"] > (
        2 * fitted("4GiB", processes=4)["memory_parts_gib"]["weights"]
    )


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    check(load_recipe("digits"))
    assert list(tmp_path.iterdir()) == []


def test_the_counted_model_is_the_model_of_the_recipe(tiny: dict[str, Any]) -> None:
    recipe = load_recipe(tiny)
    denoiser = assemble(recipe, DIGITS)
    counted = check(recipe).summary
    assert counted["parameters"] == sum(p.numel() for p in denoiser.parameters())
    assert counted["gmacs"] == macs(denoiser.network) / 1e9 > 0
    assert denoiser.domain is DIGITS


# Automatic choices


def test_the_noise_scale_follows_the_side_of_the_grid_and_ignores_sets() -> None:
    def scale(*axes: Axis, noise_scale: str = "auto") -> float:
        domain = Digits(DigitsSection(name="digits"))
        domain.layout = Layout(axes, ("u",))
        recipe = load_recipe("digits", [f"diffusion.noise_scale={noise_scale}"])
        return choose_noise_scale(recipe, domain)

    row, column = Axis("row", 512), Axis("column", 512)
    assert scale(row, column) == 2
    assert scale(row, column, Axis("atom", 1000, kind="set")) == 2
    assert scale(Axis("residue", 256)) == 1
    assert scale(row, column, noise_scale="0.5") == 0.5


def test_the_learning_rate_is_blr_per_256_samples_or_lr_itself() -> None:
    overrides = ["train.lr=", "train.blr=1e-3", "train.batch_size=64"]
    assert peak_learning_rate(load_recipe("digits", overrides).train) == pytest.approx(2.5e-4)
    assert peak_learning_rate(load_recipe("digits", [*overrides, "train.lr=7"]).train) == 7


def test_emas_on_the_cpu_take_no_gpu_memory(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def memory(device: str, ema_device: str) -> tuple[float, float, float]:
        monkeypatch.setattr("jitkit.training.dry_run.choose_device", lambda: torch.device(device))
        monkeypatch.setattr("jitkit.training.dry_run.free_bytes", lambda device: GIB)
        for module in ("dry_run", "memory_plan"):
            monkeypatch.setattr(
                f"jitkit.training.{module}.choose_precision", lambda *_: (None, "float32")
            )
        recipe = load_recipe(tiny, [f"train.ema_device={ema_device}", "train.ema=[0.9, 0.99]"])
        counted = check(recipe).summary
        parts = counted["memory_parts_gib"]
        on_cpu = counted.get("memory_means_on_cpu_gib", 0)
        return parts["weights"], parts["ema"], on_cpu

    weights, *rest = memory("cpu", "cpu")
    assert rest == [2 * weights, 0]  # a CPU run has one memory
    assert memory("cuda", "auto") == (weights, 2 * weights, 0)
    weights, emas, on_cpu = memory("cuda", "cpu")
    assert emas == 0 and on_cpu == pytest.approx(3 * weights)


def test_precision_is_as_requested_or_chosen_for_the_machine() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == (None, "float32, as requested")
    assert choose_precision("bfloat16", cpu) == (torch.bfloat16, "bfloat16, as requested")
    dtype, why = choose_precision("auto", cpu)
    assert why.startswith("bfloat16: " if dtype is torch.bfloat16 else "float32: ")


def test_multiply_adds_are_counted_for_every_kind_of_condition(tiny: dict[str, Any]) -> None:
    def count(conditions: dict[str, Any]) -> int:
        domain = Digits(DigitsSection(name="digits"))
        domain.conditions = conditions
        return macs(assemble(load_recipe(tiny), domain).network)

    plain = count({})
    scalars = count({"a": Scalars(("x", "y"))})
    assert scalars > plain and count({"a": Category(5)}) == scalars - 4 * 16 - 16 * 16
    tokens, bottleneck, cells = 4, 128, prod((4, 4))
    grid = count({"a": Grid(("u", "v"))})
    assert grid - plain == tokens * 2 * 2 * cells * bottleneck  # channels and their masks
    assert count({"a": PerToken(3)}) - plain == tokens * 16 * cells * bottleneck
