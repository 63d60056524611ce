"""Denoiser: x-, eps- and v-prediction, losses, masks, description and domain."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import difference, layout, random_model, sizes
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser, Diffusion, build
from jitkit.diffusion.flow import Space, convert, interpolate
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.errors import ConditionError, JitkitError
from jitkit.fields import Axis, Category, Condition, Conditioning, Grid, Layout, PerToken, Scalars

SPACES: list[Space] = ["x", "eps", "v"]
EVERY_KIND: dict[str, Condition] = {
    "label": Category(10, 0.2),
    "weather": Scalars(("wind", "rain")),
    "orography": Grid(("height",), 0.0),
    "element": PerToken(5),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Oracle(Denoiser):
    """A model whose prediction is always the truth, in its own space."""

    truth: Tensor

    def predict(self, *_: Any, **__: Any) -> Tensor:
        return self.truth


def oracle(prediction: Space, loss: Space, x: Tensor, eps: Tensor) -> Oracle:
    made = Oracle(layout((6, 2)), {}, sizes(), Diffusion(prediction, loss))
    made.truth = {"x": x, "eps": eps, "v": x - eps}[prediction]
    return made


# Laws


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(SPACES), st.sampled_from(SPACES), st.floats(0.05, 0.95))
def test_an_oracle_predicts_the_data_and_has_no_loss(
    prediction: Space, loss: Space, t: float
) -> None:
    x, eps, at = noise(2, 2, 6), noise(2, 2, 6, seed=1), torch.tensor([t, 1 - t])
    perfect, z = oracle(prediction, loss, x, eps), interpolate(x, eps, at)
    torch.testing.assert_close(perfect(z, at), x, atol=1e-4, rtol=0)
    torch.testing.assert_close(perfect.velocity(z, at), x - eps, atol=1e-4, rtol=0)
    assert not perfect.losses(x, eps, at).any()


@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize("loss", SPACES)
def test_the_loss_is_the_squared_error_in_its_space(prediction: Space, loss: Space) -> None:
    denoiser = random_model(layout((6, 2)), diffusion=Diffusion(prediction, loss))
    other = random_model(layout((6, 2)), diffusion=Diffusion(prediction, "x"))
    x, eps, t = noise(2, 2, 6), noise(2, 2, 6, seed=1), torch.tensor([0.2, 0.6])
    z = interpolate(x, eps, t)
    converted = convert(denoiser(z, t), z, t, source="x", target=loss)
    expected = (converted - {"x": x, "eps": eps, "v": x - eps}[loss]).square().mean(dim=(1, 2))
    torch.testing.assert_close(denoiser.losses(x, eps, t), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.losses(x, eps, t, loss=loss), expected, atol=1e-4, rtol=1e-4)


def test_the_description_of_a_model_survives_json() -> None:
    axes = (Axis("row", 6, 2), Axis("longitude", 4, 2, "circle"), Axis("atom", 3, kind="set"))
    grid = Layout(axes, ("u", "v"), missing=True)
    diffusion = Diffusion("eps", "x", noise_scale=2.0, t_eps=0.01)
    denoiser = random_model(grid, EVERY_KIND, diffusion, dropout=0.1)
    again = build(json.loads(json.dumps(denoiser.describe())))
    assert again.describe() == denoiser.describe()
    assert (again.layout, again.conditions) == (grid, EVERY_KIND)
    assert again.diffusion == diffusion and again.network.sizes == denoiser.network.sizes

    state = denoiser.state_dict()
    assert {n: v.shape for n, v in again.state_dict().items()} == {
        n: v.shape for n, v in state.items()
    }
    again.load_state_dict(state)
    z, t, cond = noise(1, 2, 6, 4, 3), torch.rand(1), {"orography": torch.zeros(1, 6, 4, 3)}
    assert torch.equal(again.eval()(z, t, cond), denoiser(z, t, cond))


# Masks


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("prediction", SPACES)
def test_losses_ignore_cells_without_data(prediction: Space, missing: bool) -> None:
    grid = Layout((Axis("row", 6, 2),), ("u", "v"), missing=missing)
    denoiser = random_model(grid, diffusion=Diffusion(prediction))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()[:, None]
    x, eps, t = noise(2, 2, 6), noise(2, 2, 6, seed=1), torch.tensor([0.2, 0.6])
    seen = Conditioning(mask=mask)
    losses = denoiser.losses(x, eps, t, seen)
    other_x, other_eps = (torch.where(mask, value, 100 * value) for value in (x, eps))
    torch.testing.assert_close(denoiser.losses(other_x, other_eps, t, seen), losses)
    assert difference(denoiser.losses(x, eps, t), losses) > 1e-3


def test_the_loss_of_a_masked_sample_is_that_of_its_observed_part() -> None:
    denoiser = random_model(layout((6, 2)))
    x, eps, t = noise(1, 2, 6), noise(1, 2, 6, seed=1), torch.tensor([0.4])
    mask = torch.arange(6).reshape(1, 1, 6) < 4
    part = denoiser.losses(x[..., :4], eps[..., :4], t)
    torch.testing.assert_close(denoiser.losses(x, eps, t, Conditioning(mask=mask)), part)


def test_a_sample_without_data_has_no_loss() -> None:
    denoiser = random_model(layout((6, 2)))
    mask = torch.zeros(1, 1, 6, dtype=torch.bool)
    assert denoiser.losses(
        noise(1, 2, 6), noise(1, 2, 6), torch.rand(1), Conditioning(mask=mask)
    ).tolist() == [0]


# Known answers


def test_t_eps_is_the_models_unless_given() -> None:
    x, eps, t = noise(2, 2, 6), noise(2, 2, 6, seed=1), torch.tensor([0.98, 1.0])
    perfect, z = oracle("x", "v", x, eps), interpolate(x, eps, t)
    clamped = (x - eps) * ((1 - t) / 0.05)[:, None, None]
    torch.testing.assert_close(perfect.velocity(z, t), clamped, atol=1e-4, rtol=0)
    unclamped = (x - eps) * torch.tensor([1.0, 0.0])[:, None, None]
    torch.testing.assert_close(perfect.velocity(z, t, t_eps=0.01), unclamped, atol=1e-4, rtol=0)


def test_the_prediction_is_float32_for_any_input_dtype() -> None:
    denoiser = random_model(layout((6, 2)))
    z, t = noise(1, 2, 6), torch.tensor([0.4])
    prediction = denoiser(z, t)
    assert prediction.dtype == torch.float32
    assert difference(denoiser(z.double(), t.double()).float(), prediction) < 1e-6


def test_a_model_reports_its_device() -> None:
    denoiser = random_model(layout((6, 2)))
    assert denoiser.device == torch.device("cpu")
    assert denoiser.to("meta").device.type == "meta"


def test_the_domain_is_opened_at_first_access() -> None:
    denoiser = random_model(layout((6, 2)))
    opened = []

    def open_domain() -> Digits:
        opened.append(Digits(DigitsSection(name="digits")))
        return opened[-1]

    denoiser.open_domain = open_domain
    assert not opened
    assert denoiser.domain is denoiser.domain is opened[0]
    assert len(opened) == 1


# Errors


def test_a_model_without_a_domain_raises_an_error() -> None:
    text = r"^this model has no domain; give .*load\(run, domain=...\), or set denoiser.domain$"
    denoiser = random_model(layout((6, 2)))
    with pytest.raises(JitkitError, match=text):
        _ = denoiser.domain
    denoiser.domain = digits = Digits(DigitsSection(name="digits"))
    assert denoiser.domain is digits


@pytest.mark.parametrize(
    ("z", "t"),
    [((3, 2, 6, 4), (2,)), ((3, 1, 6, 4), (3,)), ((2, 6, 4), (2,)), ((3, 2, 6, 4), (3, 1))],
)
def test_shapes_that_do_not_fit_are_refused(z: tuple[int, ...], t: tuple[int, ...]) -> None:
    text = (
        f"z {z} and t {t} do not fit a model of 2 channels on 2 axes: "
        "expected (B, 2, 2 sizes) and (B,)"
    )
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        random_model(layout((6, 2), (4, 2)))(torch.zeros(z), torch.zeros(t))


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(ConditionError, match="no condition 'labl'.*did you mean 'label'"):
        random_model(layout((6, 2)), {"label": Category(3)})(
            noise(1, 2, 6), torch.rand(1), {"labl": 1}
        )


def missing_layout(missing: bool) -> Layout:
    return Layout((Axis("row", 6, 2), Axis("column", 4, 2)), ("u", "v"), missing=missing)


def test_a_mask_of_all_cells_equals_no_mask() -> None:
    denoiser = random_model(missing_layout(True))
    z, t = noise(2, 2, 6, 4), torch.tensor([0.2, 0.6])
    everywhere = Conditioning(mask=torch.ones(2, 2, 6, 4, dtype=torch.bool))
    torch.testing.assert_close(denoiser.predict(z, t, everywhere), denoiser.predict(z, t))


def test_without_missing_cells_in_the_layout_nan_stays_nan() -> None:
    denoiser = random_model(missing_layout(False))
    z = noise(2, 2, 6, 4)
    z[0, 0, 0, 0] = torch.nan
    x_hat = denoiser(z, torch.tensor([0.2, 0.6]))
    assert x_hat[0].isnan().any() and x_hat[1].isfinite().all()


@pytest.mark.parametrize("missing", [False, True])
def test_a_denoiser_can_be_exported(missing: bool) -> None:
    denoiser = random_model(missing_layout(missing), {"label": Category(3)}).eval()
    z, t = noise(2, 2, 6, 4), torch.tensor([0.2, 0.6])
    if missing:
        z[0, 1, 2, 3] = torch.nan
    null: dict[str, Any] = {}
    program = torch.export.export(denoiser, (z, t, null), strict=False)
    expected = denoiser(z, t, null)
    torch.testing.assert_close(program.module()(z, t, null), expected)
    assert expected.isfinite().all()
