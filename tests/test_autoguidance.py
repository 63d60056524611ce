"""Autoguidance: closed form on Gaussian data, interval, checks of the guide, runs and commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import difference, layout, random_model
from torch import Tensor

import jitkit
from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.guidance import Autoguided
from jitkit.diffusion.sampler import draw_noise, sample
from jitkit.domains.images.files import ImageItem
from jitkit.errors import CheckpointError, JitkitError
from jitkit.fields import Category, Condition, Conditioning, Grid
from jitkit.recipe.load import load_recipe
from jitkit.sampling.generate import load_guide, sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection

LABEL: dict[str, Condition] = {"label": Category(10)}
T_EPS = 1e-4


class Gaussian(Denoiser):
    """Predicts E[x | z] for data N(mean, std²) in every cell."""

    mean, std = 0.0, 1.0

    def predict(self, z: Tensor, t: Tensor, *_: Any) -> Tensor:
        t = t.reshape(-1, *[1] * (z.ndim - 1))
        return self.mean + t * self.std**2 / self.variance(t) * (z - t * self.mean)

    def variance(self, t: Any) -> Any:
        """Variance of z at time t."""
        return t**2 * self.std**2 + (1 - t) ** 2


def gaussian(mean: float, std: float, prediction: str = "x") -> Gaussian:
    made = random_model(layout((6, 2)), diffusion=Diffusion(t_eps=T_EPS))
    made.__class__ = Gaussian
    made.mean, made.std = mean, std  # type: ignore[assignment]
    return made  # type: ignore[return-value]


def test_samples_of_gaussian_data_have_the_closed_form() -> None:
    """Both models have the true mean m and a wrong std: a for the model, b for its guide.

    dz/dt = v_guide + w (v - v_guide) is linear, dz/dt = m + g(t) (z - t m), and g is the weighted
    sum of d/dt log sqrt(var). So z(1) - m = (z(0) - 0) exp(∫ g) = z(0) a^w b^(1 - w).
    """
    m, a, b, w = 0.7, 0.5, 0.8, 2.5
    noise = torch.randn(64, 2, 6, generator=torch.Generator().manual_seed(1))
    given = {
        "noise": noise,
        "guide": gaussian(m, b),
        "guide_scale": w,
        "guidance_interval": (0.0, 1.0),
    }
    x = sample(gaussian(m, a), **given, steps=2000)  # type: ignore[arg-type]
    expected = m + noise * a**w * b ** (1 - w)
    assert difference(x, expected) < 2e-3
    assert (x - m).std() < 0.8 * a  # narrower than the model's samples without guidance


def test_errors_of_the_mean_are_extrapolated() -> None:
    """With equal std, samples have that std and the mean m_guide + w (m - m_guide)."""
    std, w = 0.6, 3.0
    noise = torch.randn(32, 2, 6, generator=torch.Generator().manual_seed(2))
    given: Any = {"noise": noise, "steps": 2000, **ALWAYS}
    x = sample(gaussian(1.0, std), guide=gaussian(1.2, std), guide_scale=w, **given)
    assert difference(x, 1.2 + w * (1.0 - 1.2) + std * noise) < 2e-3


def test_solvers_keep_their_order_with_autoguidance() -> None:
    noise = torch.randn(16, 2, 6, generator=torch.Generator().manual_seed(3))
    ends = {}
    for method in ("euler", "heun"):
        errors = []
        for steps in (40, 80):
            given: Any = {
                "noise": noise,
                "steps": steps,
                "method": method,
                "guidance_interval": (0.0, 1.0),
            }
            x = sample(gaussian(0.7, 0.5), guide=gaussian(0.7, 0.8), guide_scale=2.0, **given)
            errors.append(difference(x, 0.7 + noise * 0.5**2 / 0.8))
        ends[method] = np.log2(errors[0] / errors[1])
    assert ends["euler"] == pytest.approx(1, abs=0.15)
    assert ends["heun"] > 1.6


ALWAYS: dict[str, Any] = {"guidance_interval": (0.0, 1.0)}


def guided_model(scale: float, **given: Any) -> Autoguided:
    model, weak = (random_model(layout((6, 2)), LABEL, seed=seed) for seed in (0, 1))
    conditioning = Conditioning({"label": torch.tensor([3, 5])})
    return Autoguided(model, weak, conditioning, SampleSection(guide_scale=scale, **given))


def test_the_velocity_is_extrapolated_from_the_guides() -> None:
    guided = guided_model(2.5)
    z, t = torch.randn(2, 2, 6), torch.tensor(0.5)
    v, weak = (
        model.velocity(z, t.expand(2), guided.conditioning)
        for model in (guided.denoiser, guided.guide)
    )
    assert difference(guided(z, t), weak + 2.5 * (v - weak)) < 1e-6
    assert torch.equal(guided_model(1.0)(z, t), v)


@pytest.mark.parametrize(
    ("t", "acts"), [(0.0, False), (0.1, False), (0.11, True), (0.89, True), (0.9, False)]
)
def test_the_guide_is_used_inside_the_interval_only(t: float, acts: bool) -> None:
    guided = guided_model(2.5, guidance_interval=(0.1, 0.9))
    assert guided.is_active(torch.tensor(t)) == acts
    assert guided_model(2.5, guidance_interval=(0.0, 0.9)).is_active(torch.tensor(0.0))
    z, time = torch.randn(2, 2, 6), torch.tensor(t)
    alone = guided.denoiser.velocity(z, time.expand(2), guided.conditioning)
    assert torch.equal(guided(z, time), alone) != acts


def test_cells_without_data_stay_zero() -> None:
    mask = torch.rand(3, 1, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    model, weak = (random_model(layout((6, 2)), seed=seed) for seed in (0, 1))
    x = sample(model, 3, guide=weak, guide_scale=3.0, mask=mask, steps=3)
    assert (x[~mask.expand_as(x)] == 0).all() and (x[mask.expand_as(x)] != 0).all()


def test_a_guide_may_differ_in_prediction_patch_positions_and_have_fewer_conditions() -> None:
    model = random_model(layout((6, 2)), LABEL)
    positioned = replace(layout((6, 3)), positions=("channel 0",))
    weak = random_model(positioned, None, Diffusion(prediction="v"), seed=1)
    noise = draw_noise(model, range(2), 0)
    x = sample(model, guide=weak, noise=noise, cond={"label": [1, 2]}, steps=3)
    alone = sample(model, noise=noise, cond={"label": [1, 2]}, steps=3)
    assert x.isfinite().all() and not torch.equal(x, alone)
    unit_scale = {
        "guide": weak,
        "guide_scale": 1.0,
        "noise": noise,
        "cond": {"label": [1, 2]},
        "steps": 3,
    }
    assert torch.equal(sample(model, **unit_scale), alone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("guide", "text"),
    [
        (
            lambda: random_model(layout((8, 2)), LABEL),
            "its samples are axis 0 8 of .*, the model's axis 0 6",
        ),
        (lambda: random_model(layout((6, 2), channels=3), LABEL), "its samples are"),
        (lambda: random_model(layout((6, 2, "circle")), LABEL), "its samples are"),
        (
            lambda: random_model(layout((6, 2)), LABEL, Diffusion(noise_scale=2.0)),
            "its noise scale is 2, the model's 1",
        ),
        (
            lambda: random_model(layout((6, 2)), {"label": Category(3)}),
            "it is conditioned on label, which",
        ),
        (
            lambda: random_model(layout((6, 2)), LABEL | {"past": Grid(("a",))}),
            "it is conditioned on past, which",
        ),
    ],
)
def test_a_guide_of_other_data_is_refused(guide: Callable[[], Denoiser], text: str) -> None:
    with pytest.raises(JitkitError, match=f"not a weaker model of the same data: {text}"):
        sample(random_model(layout((6, 2)), LABEL), 1, guide=guide())


def test_cfg_and_autoguidance_together_are_refused(tiny: dict[str, Any]) -> None:
    model = random_model(layout((6, 2)), LABEL)
    with pytest.raises(JitkitError, match="guidance=2 .*together are not defined; give one"):
        sample(model, 1, guide=model, guidance=2.0)
    with pytest.raises(
        JitkitError, match="sample: autoguidance and guidance=2 .*together are not defined"
    ):
        load_recipe(tiny, {"sample.autoguidance": "runs/small", "sample.guidance": 2.0})


def test_a_run_is_guided_by_its_earlier_checkpoint(trained: Path) -> None:
    denoiser = jitkit.load(trained)
    early = trained / "checkpoints" / "step-4"
    conditioning = conditioning_for(denoiser, 4)
    section = SampleSection(steps=2, autoguidance=f"{early}@none", guide_scale=3.0)
    guided: list[ImageItem] = list(sample_items(denoiser, 4, conditioning, section))
    weak = jitkit.load(early, ema="none")
    x = sample(denoiser, 4, conditioning.cond, guide=weak, guide_scale=3.0, steps=2)
    field = jitkit.Field(x[2], cond={"label": conditioning.cond["label"][2]})
    assert np.array_equal(guided[2].pixels, denoiser.domain.decode(field).pixels)
    unguided = list(sample_items(denoiser, 4, conditioning, SampleSection(steps=2)))
    assert any((a.pixels != b.pixels).any() for a, b in zip(guided, unguided, strict=True))
    guide = load_guide(denoiser, SampleSection(autoguidance=str(early)))
    assert guide is not None and not guide.training
    first = jitkit.load(early).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in guide.state_dict().items())


def test_the_command_takes_a_guide_and_reports_an_invalid_one(
    trained: Path, jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    early = trained / "checkpoints" / "step-8"
    command = ("sample", trained, "--n", "2", "--out", tmp_path / "guided")
    shown = jitkit(*command, f"sample.autoguidance={early}@0.99", "sample.guide_scale=1.5")
    assert shown.code == 0 and (tmp_path / "guided" / "00001.png").is_file()
    for guide, text in {"nowhere": "nowhere: no such folder", f"{early}@0.5": "no EMA 0.5"}.items():
        shown = jitkit(
            "sample", trained, "--out", tmp_path / "none", f"sample.autoguidance={guide}"
        )
        assert (shown.code, text in shown.err) == (2, True), shown.err
    assert not (tmp_path / "none").exists()


def test_the_record_of_an_evaluation_contains_the_guide(
    trained: Path, jitkit: Callable[..., Any]
) -> None:
    early = trained / "checkpoints" / "step-4"
    shown = jitkit(
        "evaluate", trained, f"sample.autoguidance={early}", "evaluate.samples=10", "--json"
    )
    settings = json.loads(shown.out)["sample"]
    assert (settings["autoguidance"], settings["guide_scale"]) == (str(early), 2.0)
    (trained / "evaluation.json").unlink()


def test_a_missing_guide_is_reported() -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_guide(random_model(layout((6, 2))), SampleSection(autoguidance="runs/nowhere@0.99"))


def test_samples_have_the_std_of_the_closed_form() -> None:
    """A statistical check with drawn noise: std = a^w b^(1 - w)."""
    a, b, w = 0.5, 0.8, 1.5
    given: Any = {"steps": 200, **ALWAYS}
    x = sample(gaussian(0.0, a), 500, guide=gaussian(0.0, b), guide_scale=w, **given)
    n = x.numel()
    assert x.std().item() == pytest.approx(a**w * b ** (1 - w), rel=4 / sqrt(2 * n))
