"""Post-hoc EMA: reconstructed EMAs equal those kept in training within one per cent."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jitkit.domains.digits import Digits, DigitsSection
from jitkit.errors import CheckpointError, JitkitError
from jitkit.optim import posthoc_ema
from jitkit.optim.ema import EMA, gamma_of, sigma_name
from jitkit.optim.optimizers import adamw
from jitkit.optim.posthoc_ema import (
    fit,
    inner_products,
    list_snapshots,
    reconstruct,
    write_reconstructed,
)
from jitkit.runs.checkpoint import posthoc_ema_file

KEPT = (0.05, 0.1)  # as in the paper
REQUESTED = (0.03, 0.04, 0.07, 0.15, 0.2)


def relative_error(made: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> float:
    """The error of all weights, relative to their norm."""
    assert set(made) == set(true)
    squared = sum(float((made[key] - true[key]).double().square().sum()) for key in true)
    return float((squared / sum(float(v.double().square().sum()) for v in true.values())) ** 0.5)


class Walk:
    """A module whose weights do a random walk, with snapshots of its EMAs at regular intervals."""

    def __init__(self, run: Path, steps: int = 320, every: int = 20, size: int = 40) -> None:
        self.run = run
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(size, size), nn.Linear(size, 1))
        kept, requested = EMA(module, [0.9], KEPT), EMA(module, (), REQUESTED)
        self.online: dict[int, dict[str, dict[str, Tensor]]] = {}
        for step in range(1, steps + 1):
            with torch.no_grad():
                for p in module.parameters():
                    p.add_(0.02 * torch.randn(p.shape))
            kept.update()
            requested.update()
            if step % every == 0:
                posthoc_ema.write_snapshot(run, step, kept.averages)
                self.online[step] = {
                    name: {key: value.clone() for key, value in ema.items()}
                    for name, ema in (kept.averages | requested.averages).items()
                }


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """320 steps, 16 snapshots of widths 0.05 and 0.1; tests that modify it use `copy`."""
    return Walk(tmp_path_factory.mktemp("walk"))


@pytest.fixture
def copy(walk: Walk, tmp_path: Path) -> Path:
    """A copy of the walk's run."""
    return Path(shutil.copytree(walk.run, tmp_path / "run"))


STEPS, GAMMAS = st.floats(1, 1000), st.floats(0, 40)


@settings(deadline=None)
@given(STEPS, GAMMAS, STEPS, GAMMAS)
def test_inner_products_are_integrals(n: float, g: float, m: float, h: float) -> None:
    times = np.linspace(0, min(n, m), 20_001)
    integrand = (g + 1) / n * (times / n) ** g * (h + 1) / m * (times / m) ** h
    integral = np.trapezoid(integrand, times)
    product = inner_products(np.array([n]), np.array([g]), m, h)
    assert product == pytest.approx(integral, rel=1e-3, abs=1e-12)


@st.composite
def stored_profiles(draw: st.DrawFn) -> tuple[list[int], list[float], int]:
    """Steps and widths of stored profiles, and the last step."""
    every, count = draw(st.integers(1, 50)), draw(st.integers(1, 20))
    steps = [every * (i + 1) for i in range(count)]
    return [*steps, *steps], [0.05] * count + [0.1] * count, steps[-1]


@settings(deadline=None, max_examples=50)
@given(stored_profiles(), st.floats(0.01, 0.28))
def test_coefficients_sum_to_one_and_do_not_depend_on_the_unit_of_time(
    kept: tuple[list[int], list[float], int], sigma_rel: float
) -> None:
    steps, widths, last = kept
    coefficients, residual = fit(steps, widths, last, sigma_rel)
    assert coefficients.sum() == pytest.approx(1)
    longer, same = fit([7 * step for step in steps], widths, 7 * last, sigma_rel)
    assert longer == pytest.approx(coefficients) and same == pytest.approx(residual)


@settings(deadline=None, max_examples=50)
@given(stored_profiles(), st.floats(0.01, 0.28))
def test_the_error_summed_over_steps_is_at_most_the_residual(
    kept: tuple[list[int], list[float], int], sigma_rel: float
) -> None:
    """The residual is of continuous profiles; sums over steps can only reduce the difference."""
    steps, widths, last = kept
    coefficients, residual = fit(steps, widths, last, sigma_rel)

    def profile(step: int, width: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        times = np.minimum(np.arange(last + 1) / step, 1)
        return np.diff(times ** (gamma_of(width) + 1))

    made = sum(f * profile(n, w) for f, n, w in zip(coefficients, steps, widths, strict=True))
    error = float(np.linalg.norm(made - profile(last, sigma_rel)))
    gamma = gamma_of(sigma_rel)
    norm = (gamma + 1) / (2 * gamma + 1) ** 0.5 / last**0.5
    assert error <= residual * norm + 1e-6


@pytest.mark.parametrize("sigma_rel", KEPT)
def test_a_stored_profile_is_reproduced_by_itself(sigma_rel: float) -> None:
    steps = [20, 40, 60] * 2
    coefficients, residual = fit(steps, [0.05] * 3 + [0.1] * 3, 60, sigma_rel)
    assert residual < 1e-3
    assert coefficients[2 if sigma_rel == 0.05 else 5] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("sigma_rel", [*REQUESTED, *KEPT])
@pytest.mark.parametrize("step", [None, 250])
def test_a_post_hoc_ema_of_a_random_walk_equals_the_online_one(
    walk: Walk, sigma_rel: float, step: int | None
) -> None:
    made = reconstruct(walk.run, sigma_rel, step)
    true = walk.online[240 if step else 320][sigma_name(sigma_rel)]
    assert relative_error(made, true) < 0.01
    for key, value in made.items():
        assert value.dtype == torch.float32 and value.shape == true[key].shape


def test_a_post_hoc_ema_after_training_equals_the_online_one(tmp_path: Path) -> None:
    """A small network on the digits, 300 steps of AdamW; the stored EMAs are further away."""
    domain = Digits(DigitsSection(name="digits"))
    items = domain.items("train")
    x = torch.stack([torch.as_tensor(domain.encode(items[i], None).values) for i in range(256)])
    denoiser = random_model(domain.layout.with_patch(2)).train()
    kept = EMA(denoiser.network, (), KEPT)
    requested = EMA(denoiser.network, (), REQUESTED)
    optimizer = adamw(denoiser.network, betas=(0.9, 0.95), weight_decay=0.0)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[-1]["lr"] = 3e-3
    for step in range(1, 301):
        batch = x[torch.randint(len(x), (16,))]
        losses = denoiser.losses(batch, torch.randn_like(batch), torch.rand(16))
        torch.autograd.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()
        kept.update()
        requested.update()
        if step % 15 == 0:
            posthoc_ema.write_snapshot(tmp_path, step, kept.averages)
    for sigma_rel in REQUESTED:
        true = requested.averages[sigma_name(sigma_rel)]
        error = relative_error(reconstruct(tmp_path, sigma_rel), true)
        nearest = min(relative_error(ema, true) for ema in kept.averages.values())
        assert error < 0.01 and error < nearest / 4


def test_snapshots_are_listed_by_step_with_a_file_for_each_width(walk: Walk) -> None:
    snapshots = list_snapshots(walk.run)
    assert [snapshot.step for snapshot in snapshots] == list(range(20, 321, 20))
    assert sorted(snapshots[0].files) == [0.05, 0.1]
    path = snapshots[0].files[0.1]
    assert path == walk.run / "ema" / "step-20" / "sigma-0.1.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["mean"])
    assert (metadata["format"], metadata["step"], metadata["sigma_rel"]) == ("1", "20", "0.1")
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}


def test_tensors_that_float16_cannot_represent_are_stored_unchanged() -> None:
    normal = torch.randn(1000)
    assert posthoc_ema.to_snapshot_dtype(normal).dtype == torch.float16
    assert torch.equal(
        posthoc_ema.to_snapshot_dtype(posthoc_ema.to_snapshot_dtype(normal)), normal.half()
    )
    assert torch.equal(posthoc_ema.to_snapshot_dtype(normal * 1e5), normal * 1e5)
    assert torch.equal(posthoc_ema.to_snapshot_dtype(normal * 1e-6), normal * 1e-6)
    assert posthoc_ema.to_snapshot_dtype(torch.zeros(3)).dtype == torch.float16


def test_a_torn_snapshot_is_skipped_and_named(
    copy: Path, walk: Walk, capsys: pytest.CaptureFixture[str]
) -> None:
    short = copy / "ema" / "step-320" / "sigma-0.1.safetensors"
    short.write_bytes(short.read_bytes()[:-7])
    (copy / "ema" / "step-200" / "sigma-0.05.safetensors").unlink()
    (copy / "ema" / "step-100" / "sigma-0.05.safetensors").write_bytes(b"")
    (copy / "ema" / ".step-340.part").mkdir()
    (copy / "ema" / "step-60").rename(copy / "ema" / "step-62")
    (copy / "ema" / "step-64").mkdir()
    made = reconstruct(copy, 0.07)
    assert relative_error(made, walk.online[300]["sigma-0.07"]) < 0.01
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 5
    for step, why in {
        320: "torn: ",
        200: "torn: no sigma-0.05;",
        100: "torn: ",
        62: "sigma-0.05.safetensors is of step 60",
        64: "torn: no EMAs in it",
    }.items():
        assert any(f"step-{step}: " in line and why in line for line in warnings), (step, warnings)


def test_a_corrupt_file_of_full_length_is_refused(copy: Path) -> None:
    """Its values are overwritten, so the result is not finite."""
    path = copy / "ema" / "step-320" / "sigma-0.05.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-400] + b"\xff" * 400)
    with pytest.raises(CheckpointError, match=r"up to step 320 .*not finite.*--step"):
        reconstruct(copy, 0.07)
    reconstruct(copy, 0.07, 319)


def test_without_snapshots_the_recipe_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no snapshots .*train\.ema_sigma_rel="):
        reconstruct(tmp_path, 0.1)


def test_a_step_before_the_first_snapshot_is_refused(walk: Walk) -> None:
    with pytest.raises(CheckpointError, match="no snapshot up to step 19; the first is 20"):
        reconstruct(walk.run, 0.1, 19)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.3, float("nan")])
def test_a_relative_width_out_of_range_is_refused(walk: Walk, sigma_rel: float) -> None:
    with pytest.raises(
        JitkitError, match=r"relative width \(sigma_rel\) .* is out of range: power-function"
    ):
        reconstruct(walk.run, sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.005, 0.28])
def test_an_unreachable_width_is_refused_with_the_possible_range(
    walk: Walk, sigma_rel: float
) -> None:
    with pytest.raises(CheckpointError, match=r"miss its profile by \d+\.\d%") as error:
        reconstruct(walk.run, sigma_rel)
    possible = str(error.value).split("Possible widths: ")[1].split(";")[0]
    low, high = (float(word) for word in possible.split(" to "))
    assert 0.015 < low < 0.03 and 0.2 < high < 0.28
    reconstruct(walk.run, low * 1.01)
    reconstruct(walk.run, high * 0.99)


def test_separate_ranges_of_possible_widths_are_listed(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    ema = EMA(module, (), [0.01, 0.25])
    ema.update()
    posthoc_ema.write_snapshot(tmp_path, 100, ema.averages)
    with pytest.raises(CheckpointError, match=r"widths: 0\.\d+ to 0\.\d+, 0\.\d+ to 0\.\d+;"):
        reconstruct(tmp_path, 0.1)


def test_snapshots_of_two_models_are_not_mixed(copy: Path) -> None:
    path = copy / "ema" / "step-320" / "sigma-0.1.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file(tensors | {"0.bias": torch.zeros(7)}, path, metadata=metadata)
    with pytest.raises(
        CheckpointError, match=r"0\.bias is \(7,\), but \(40,\).*not of the same model"
    ):
        reconstruct(copy, 0.1)
    save_file(tensors | {"more": torch.zeros(7)}, path, metadata=metadata)
    with pytest.raises(
        CheckpointError, match="other parameters .* more; they are not of the same model"
    ):
        reconstruct(copy, 0.1)


def test_a_file_of_a_newer_jitkit_is_refused(copy: Path) -> None:
    path = copy / "ema" / "step-320" / "sigma-0.1.safetensors"
    metadata = {"format": "2", "step": "320", "sigma_rel": "0.1"}
    save_file(load_file(path), path, metadata={"mean": json.dumps(metadata)})
    with pytest.raises(CheckpointError, match="format 2 is newer than 1, .* update jitkit"):
        reconstruct(copy, 0.1)


def test_a_post_hoc_ema_is_written_atomically_and_found_by_name(copy: Path) -> None:
    assert posthoc_ema_file(copy, "sigma-0.07", 160) is None
    path = write_reconstructed(copy, 0.07, 179)
    assert path == copy / "ema" / "sigma-0.07-step-160.safetensors"
    made, again = load_file(path), reconstruct(copy, 0.07, 160)
    assert made.keys() == again.keys()
    assert all(torch.equal(made[key], again[key]) for key in made)
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["mean"])
    assert (metadata["format"], metadata["step"], metadata["sigma_rel"]) == ("1", "160", "0.07")
    assert float(metadata["residual"]) < 0.02
    assert (
        "width 0.07 at step 160, combined from 16 stored EMAs"
        in posthoc_ema.reconstruction_summary(path)
    )
    assert (
        posthoc_ema_file(copy, "sigma-0.07", 160)
        == posthoc_ema_file(copy, "sigma-0.07", 180)
        == path
    )
    for name, step in (("sigma-0.07", 159), ("sigma-0.08", 160), ("0.07", 160), ("none", 160)):
        assert posthoc_ema_file(copy, name, step) is None
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert not [path for path in (copy / "ema").iterdir() if path.suffix == ".part"]


def test_a_snapshot_of_the_same_step_replaces_the_first(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    for value in (1.0, 2.0):
        nn.init.constant_(module.weight, value)
        path = posthoc_ema.write_snapshot(tmp_path, 5, EMA(module, (), [0.1]).averages)
    assert (load_file(path / "sigma-0.1.safetensors")["weight"] == 2).all()
    assert [folder.name for folder in (tmp_path / "ema").iterdir()] == ["step-5"]


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "ema").write_text("in the way")
    with pytest.raises(CheckpointError, match="step-5 cannot be written: "):
        posthoc_ema.write_snapshot(tmp_path, 5, EMA(nn.Linear(2, 1), (), [0.1]).averages)
    assert (tmp_path / "ema").read_text() == "in the way"


def test_resuming_from_an_earlier_step_removes_later_snapshots(copy: Path) -> None:
    write_reconstructed(copy, 0.07)
    early = write_reconstructed(copy, 0.07, 100)
    (copy / "ema" / ".step-340.part").mkdir()
    posthoc_ema.remove_after(copy, 120)
    names = {f"step-{step}" for step in range(20, 121, 20)} | {early.name}
    assert {path.name for path in (copy / "ema").iterdir()} == names
    posthoc_ema.remove_after(copy / "no such run", 0)
