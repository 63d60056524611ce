"""The textbook JiT of the benchmarks: its predictions, training and samples equal jitkit's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from models import difference, layout, random_model
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.sampler import sample
from jitkit.fields import Category, Conditioning, Scalars
from jitkit.optim.optimizers import adamw

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks import reference  # noqa: E402
from benchmarks.reference import Training, like, randomise  # noqa: E402

CLASSES = 5
NOISY = Diffusion(noise_scale=2.0)


def ours(seed: int = 0) -> Denoiser:
    """A tiny model of 12 x 12 images of two channels, all parameters random."""
    return random_model(layout((12, 3), (12, 3)), {"label": Category(CLASSES)}, NOISY, seed=seed)


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, noise, times and labels, one of them null."""
    rng = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(3, 2, 12, 12, generator=rng) for _ in range(2))
    return x, eps, torch.tensor([0.1, 0.5, 0.97]), torch.tensor([0, 4, CLASSES])


def under_textbook_names(denoiser: Denoiser, what: str) -> dict[str, Tensor]:
    """Parameters of a model, or their gradients, under the names of the textbook JiT."""
    parameters = list(denoiser.network.parameters())
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p in parameters:
            p.copy_(p.grad if what == "gradients" and p.grad is not None else p)
        textbook = dict(like(denoiser).named_parameters())
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
    return {name: p.detach() for name, p in textbook.items() if p.requires_grad}


def test_predictions_are_equal() -> None:
    denoiser, (x, _, t, y) = ours(), batch()
    with torch.no_grad():
        assert difference(like(denoiser)(x, t, y), denoiser(x, t, {"label": y})) < 1e-5


def test_loss_gradients_and_a_training_step_are_equal() -> None:
    denoiser, (x, eps, t, y) = ours(), batch()
    training = Training(like(denoiser), lr=1e-3)
    optimizer = adamw(denoiser.network, betas=(0.9, 0.95), weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    loss = denoiser.losses(x, eps, t, Conditioning({"label": y})).mean()
    assert training.step_on(x, eps, t, y) == pytest.approx(loss.item(), rel=1e-5)
    torch.autograd.backward(loss)
    model = training.model
    for name, gradient in under_textbook_names(denoiser, "gradients").items():
        textbook = model.get_parameter(name).grad
        assert textbook is not None and difference(textbook, gradient) < 1e-4, name
    optimizer.step()
    for name, weight in under_textbook_names(denoiser, "weights").items():
        assert difference(model.get_parameter(name), weight) < 1e-4, name


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_samples_are_equal(guidance: float) -> None:
    denoiser, (x, *_), y = ours(), batch(), torch.tensor([0, 4, 2])
    settings: dict[str, Any] = {"steps": 10, "guidance": guidance}
    textbook = reference.sample(like(denoiser), x, y, interval=(0.1, 1.0), **settings)
    settings |= {"guidance_interval": (0.1, 1.0)}
    expected = sample(denoiser, noise=x, cond={"label": y}, **settings)
    assert difference(textbook, expected) < 1e-4


def test_the_ema_moves_towards_the_weights() -> None:
    training = Training(like(ours()), lr=0.1, decays=(0.75, 0.5))
    before = [p.detach().clone() for p in training.parameters]
    x, eps, t, y = batch()
    training.step_on(x, eps, t, y)
    for decay, mean in zip(training.decays, training.means, strict=True):
        for m, old, new in zip(mean, before, training.parameters, strict=True):
            torch.testing.assert_close(m, decay * old + (1 - decay) * new)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    training = Training(like(ours()), lr=3e-3)
    x, _, _, y = batch()
    losses = [training.step(x, y.clamp_max(CLASSES - 1)) for _ in range(60)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_textbook_copy_shares_no_memory_with_the_model() -> None:
    denoiser = ours()
    model = like(denoiser)
    before = denoiser.network.context.clone()
    randomise(model, seed=5)
    assert torch.equal(denoiser.network.context, before)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (random_model(layout((12, 3))), "square images"),
        (random_model(layout((12, 3), (6, 3))), "square images"),
        (random_model(layout((12, 3), (12, 3))), "conditioned on a label"),
        (
            random_model(layout((12, 3), (12, 3)), {"hour": Scalars(("sine",))}),
            "conditioned on a label",
        ),
    ],
    ids=["a line", "not square", "no label", "a scalar"],
)
def test_a_model_without_square_images_or_a_label_is_refused(made: Denoiser, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        like(made)
