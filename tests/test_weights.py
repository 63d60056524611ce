"""Loss weights of cells: laws of the weighted mean, and weights from a domain."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import layout, random_model

from jitkit.data import evenly_spaced
from jitkit.diffusion.build import assemble
from jitkit.diffusion.flow import interpolate, mean_over_data, squared_errors
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.protocols import Weighted
from jitkit.recipe.load import load_recipe
from jitkit.training.validation import validation_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_one_are_bit_identical_to_no_weights(masked: bool) -> None:
    values = draw(3, 2, 6, 8).square()
    mask = draw(3, 2, 6, 8, seed=1) > 0 if masked else None
    plain = mean_over_data(values, mask)
    assert torch.equal(mean_over_data(values, mask, torch.ones(6, 8)), plain)


@given(st.integers(0, 2**48 - 1))
def test_a_weight_of_zero_acts_as_a_mask(cells: int) -> None:
    kept = torch.tensor([cells >> i & 1 for i in range(48)], dtype=torch.bool).reshape(6, 8)
    if not kept.any():
        return
    values = draw(2, 3, 6, 8).square()
    weights = kept * (48 / kept.sum())
    masked = mean_over_data(values, kept.expand(2, 1, 6, 8))
    torch.testing.assert_close(mean_over_data(values, None, weights), masked)
    everywhere = torch.ones(2, 1, 6, 8, dtype=torch.bool)
    torch.testing.assert_close(mean_over_data(values, everywhere, weights), masked)


def test_the_loss_is_a_weighted_mean_over_observed_cells() -> None:
    values, weights = draw(2, 3, 6, 8).square(), draw(6, 8, seed=1).exp()
    mask = draw(2, 3, 6, 8, seed=2) > 0
    for sample in range(2):
        every = np.broadcast_to(weights.numpy(), (3, 6, 8))
        expected = np.average(values[sample].numpy()[mask[sample]], weights=every[mask[sample]])
        assert mean_over_data(values, mask, weights)[sample].item() == pytest.approx(expected)


def test_the_loss_of_a_model_uses_its_weights() -> None:
    denoiser = random_model(layout((4, 2), (6, 2)))
    x, eps, t = draw(2, 2, 4, 6), draw(2, 2, 4, 6, seed=1), torch.tensor([0.3, 0.6])
    plain = denoiser.losses(x, eps, t)
    denoiser.weights = torch.ones(4, 6)
    assert torch.equal(denoiser.losses(x, eps, t), plain)
    north = torch.zeros(4, 6)
    north[:2] = 2
    denoiser.weights = north
    prediction = denoiser.predict(interpolate(x, eps, t), t)
    squares = squared_errors(prediction, x, eps, t, prediction="x", loss="v")
    expected = squares[:, :, :2].mean(dim=(1, 2, 3))
    torch.testing.assert_close(denoiser.losses(x, eps, t), expected)


class Round(Weighted, Digits):
    """Digits with larger weights in the middle."""

    @cached_property
    def weights(self) -> np.ndarray[Any, np.dtype[Any]]:
        weights = np.ones((8, 8), np.float32)
        weights[2:6, 2:6] = 3
        return weights / weights.mean()


def test_a_domains_weights_are_used_in_training_and_validation(tiny: dict[str, Any]) -> None:
    section = DigitsSection(name="digits")
    assert isinstance(Round(section), Weighted) and not isinstance(Digits(section), Weighted)
    domain = Round(section)
    denoiser = assemble(load_recipe(tiny), domain).eval()
    assert denoiser.weights is not None and "weights" not in denoiser.state_dict()
    losses = validation_loss(denoiser, domain, 4, 4)
    items = [domain.items("val")[i] for i in evenly_spaced(len(domain.items("val")), 4)]
    squares = torch.stack([domain.encode(item).values for item in items]).square()
    # a new model predicts zero: its error is the data, and bins differ by 1 / (1 - t)^2
    expected = (squares * torch.from_numpy(domain.weights)).mean().item()
    assert losses == pytest.approx([expected / (1 - (k + 0.5) / 10) ** 2 for k in range(10)])
