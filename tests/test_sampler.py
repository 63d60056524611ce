"""Sampler: classifier-free guidance (CFG) and its interval, reproducible samples, masks, memory."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from models import difference, layout, random_model
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.guidance import Guided
from jitkit.diffusion.sampler import draw_noise, fitting_batch, sample
from jitkit.diffusion.solvers import Method, integrate
from jitkit.errors import ConditionError, JitkitError
from jitkit.fields import Category, Condition, Conditioning, Grid, Layout, PerToken, Scalars
from jitkit.sections import SampleSection

LABEL: dict[str, Condition] = {"label": Category(10)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Classifier-free guidance


class Counted(Denoiser):
    """A model that records the time and the batch size of each call."""

    calls: list[tuple[float, int]]

    def velocity(self, z: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append((t[0].item(), len(z)))
        return super().velocity(z, t, *args, **kwargs)


def counted(conditions: dict[str, Condition] = LABEL, **given: Any) -> Counted:
    denoiser = random_model(layout((6, 2)), conditions, **given)
    denoiser.__class__ = Counted
    assert isinstance(denoiser, Counted)
    denoiser.calls = []
    return denoiser


def test_50_steps_of_heun_with_cfg_take_99_calls_and_187_nfe_per_sample() -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=2.0, guidance_interval=(0.1, 1.0), steps=50)
    assert len(denoiser.calls) == 99
    assert sum(size for _, size in denoiser.calls) == 3 * 187
    guided = {round(t * 50) for t, size in denoiser.calls if size == 6}
    single = {round(t * 50) for t, size in denoiser.calls if size == 3}
    assert guided == set(range(6, 50)) and single == set(range(6))


def test_25_steps_of_ab3_on_cosine_times_with_cfg_take_25_calls_and_44_nfe_per_sample() -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=2.0, steps=25, method="ab3", time_grid="cosine")
    assert len(denoiser.calls) == 25
    assert sum(size for _, size in denoiser.calls) == 3 * 44


@pytest.mark.parametrize("method", ["ab2", "ab3", "dpm2m"])
def test_a_multistep_solver_calls_once_per_step_with_and_without_cfg(method: Method) -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=3.0, steps=20, method=method, time_grid="cosine")
    assert len(denoiser.calls) == 20
    assert {size for t, size in denoiser.calls if t > 0.1} == {6}


@pytest.mark.parametrize(
    ("conditions", "guidance"),
    [(LABEL, 1.0), ({}, 2.0), ({"past": Grid(("height",), drop=0)}, 2.0)],
    ids=["guidance 1", "no condition", "a condition that was never dropped"],
)
def test_without_effect_of_guidance_there_is_no_unconditional_pass(
    conditions: dict[str, Condition], guidance: float
) -> None:
    denoiser = counted(conditions)
    cond = {"past": torch.zeros(1, 6)} if "past" in conditions else {}
    sample(denoiser, 3, cond, guidance=guidance, steps=4)
    assert [size for _, size in denoiser.calls] == [3] * 7


def labelled(*labels: int) -> Conditioning:
    return Conditioning({"label": torch.tensor(labels)})


def guided_model(guidance: float = 3.0, **given: Any) -> Guided:
    settings = SampleSection(guidance=guidance, **given)
    return Guided(random_model(layout((6, 2)), LABEL), labelled(3, 5), settings)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_guidance_extrapolates_from_unconditional_to_conditional(guidance: float) -> None:
    guided, z, t = guided_model(guidance), noise(2, 2, 6), torch.tensor(0.4)
    conditional, unconditional = (
        guided.denoiser.velocity(z, t.expand(2), labelled(*labels)) for labels in ([3, 5], [10, 10])
    )
    assert difference(conditional, unconditional) > 0.01
    expected = unconditional + guidance * (conditional - unconditional)
    torch.testing.assert_close(guided(z, t), expected, atol=1e-5, rtol=1e-5)


def test_outside_the_interval_the_velocity_is_the_conditional_one() -> None:
    guided, z, t = guided_model(), noise(2, 2, 6), torch.tensor(0.05)
    conditional = guided.denoiser.velocity(z, t.expand(2), guided.conditioning)
    assert torch.equal(guided(z, t), conditional)


def test_a_condition_without_dropout_is_kept_in_the_unconditional_pass() -> None:
    past = Grid(("height",), drop=0.0)
    denoiser = random_model(layout((6, 2)), LABEL | {"past": past})
    cond = {"label": torch.tensor([3]), "past": noise(1, 1, 6, seed=1)}
    z, t = noise(1, 2, 6), torch.tensor(0.4)
    guided = Guided(denoiser, Conditioning(cond), SampleSection(guidance=3.0))(z, t)
    conditional, unconditional = (
        denoiser.velocity(z, t.expand(1), Conditioning(cond | {"label": torch.tensor([label])}))
        for label in (3, 10)
    )
    torch.testing.assert_close(
        guided, unconditional + 3 * (conditional - unconditional), atol=1e-5, rtol=1e-5
    )


def test_the_unconditional_pass_drops_all_droppable_conditions() -> None:
    conditions = LABEL | {"weather": Scalars(("wind",)), "element": PerToken(4)}
    denoiser = random_model(layout((6, 2)), conditions)
    cond = {
        "label": torch.tensor([3]),
        "weather": torch.ones(1, 1),
        "element": torch.ones(1, 6, dtype=torch.long),
    }
    z, t = noise(1, 2, 6), torch.tensor(0.4)
    conditional = denoiser.velocity(z, t.expand(1), Conditioning(cond))
    null_cond = {
        "label": torch.tensor([10]),
        "weather": torch.full((1, 1), torch.nan),
        "element": torch.full((1, 6), 4),
    }
    unconditional = denoiser.velocity(z, t.expand(1), Conditioning(null_cond))
    guided = Guided(denoiser, Conditioning(cond), SampleSection(guidance=3.0))(z, t)
    torch.testing.assert_close(
        guided, unconditional + 3 * (conditional - unconditional), atol=1e-5, rtol=1e-5
    )


def test_the_guidance_interval_is_open() -> None:
    low, high = torch.tensor(0.1), torch.tensor(0.7)
    guided = guided_model(guidance_interval=(0.1, 0.7))
    assert not guided.is_active(low) and not guided.is_active(high)
    assert guided.is_active(low.nextafter(high)) and guided.is_active(high.nextafter(low))
    assert not guided.is_active(torch.tensor(0.0)) and not guided.is_active(torch.tensor(0.9))


def test_a_guidance_interval_from_0_includes_0() -> None:
    assert guided_model(guidance_interval=(0.0, 0.7)).is_active(torch.tensor(0.0))
    assert not guided_model(guidance_interval=(1e-6, 0.7)).is_active(torch.tensor(0.0))


def test_time_5_of_50_is_below_a_tenth_in_float32_and_not_guided() -> None:
    t = torch.linspace(0, 1, 51)
    assert t[5].item() < 0.1
    assert not guided_model().is_active(t[5]) and guided_model().is_active(t[6])


def test_the_unconditional_pass_gets_the_same_mask_and_coords() -> None:
    denoiser = random_model(layout((6, 2)), LABEL)
    z, t = noise(2, 2, 6), torch.tensor(0.4)
    mask = torch.tensor([[[True] * 6], [[True] * 3 + [False] * 3]])
    coords = torch.arange(6.0)[:, None] + torch.tensor([0.0, 2.0])[:, None, None]
    z = torch.where(mask, z, 0.0)
    given = replace(labelled(3, 5), mask=mask, coords=coords)
    guided = Guided(denoiser, given, SampleSection(guidance=3.0))(z, t)
    conditional, unconditional = (
        denoiser.velocity(z, t.expand(2), replace(given, cond=labelled(*labels).cond))
        for labels in ([3, 5], [10, 10])
    )
    expected = torch.where(mask, unconditional + 3 * (conditional - unconditional), 0.0)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-5)


# Reproducible samples


@pytest.fixture(scope="module")
def seven() -> tuple[Callable[..., Tensor], Tensor]:
    """A function that draws samples, and seven samples of it."""
    denoiser = random_model(layout((6, 2), (4, 2)), LABEL, Diffusion(noise_scale=2.0))

    def draw(n: int | None = None, labels: range = range(7), **given: Any) -> Tensor:
        cond = {"label": torch.tensor(labels)}
        return sample(denoiser, n, cond, guidance=2.0, steps=4, **given)

    return draw, draw(7)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch_size(seven: Any, batch_size: int) -> None:
    draw, expected = seven
    assert difference(draw(7, batch_size=batch_size), expected) < 1e-5


def test_samples_do_not_depend_on_their_number(seven: Any) -> None:
    draw, expected = seven
    assert difference(draw(3, range(3)), expected[:3]) < 1e-5


def test_samples_may_start_at_any_index(seven: Any) -> None:
    draw, expected = seven
    assert difference(draw(5, range(2, 7), first=2), expected[2:]) < 1e-5
    assert difference(draw(5, range(2, 7), first=2, batch_size=2), expected[2:]) < 1e-5


def test_all_samples_differ_within_and_between_seeds(seven: Any) -> None:
    draw, expected = seven
    assert torch.equal(draw(7), expected)
    many = [*expected, *draw(7, seed=1)]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(many) for b in many[:i])


def test_samples_from_given_noise_equal_those_from_the_same_drawn_noise() -> None:
    denoiser = random_model(layout((6, 2)), diffusion=Diffusion(noise_scale=2.0))
    drawn = draw_noise(denoiser, range(3, 6), seed=5)
    given = sample(denoiser, noise=drawn, steps=3)
    assert torch.equal(sample(denoiser, 3, seed=5, first=3, steps=3), given)
    assert torch.equal(sample(denoiser, 3, noise=drawn.double(), steps=3), given)


def test_noise_has_the_models_noise_scale() -> None:
    large = layout((100, 2), (100, 2))
    for scale in (1.0, 4.0):
        drawn = draw_noise(
            random_model(large, diffusion=Diffusion(noise_scale=scale)), range(2), seed=0
        )
        assert drawn.shape == (2, 2, 100, 100) and drawn.dtype == torch.float32
        assert drawn.std().item() == pytest.approx(scale, rel=0.02)
        assert drawn.mean().item() == pytest.approx(0, abs=0.02 * scale)


def test_samples_carry_no_gradient() -> None:
    assert not sample(random_model(layout((6, 2))), 1, steps=2).requires_grad


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_a_sample_is_the_integral_of_its_velocity(prediction: Any) -> None:
    denoiser = random_model(layout((6, 2)), diffusion=Diffusion(prediction))
    z = noise(2, 2, 6)
    expected = integrate(lambda z, t: denoiser.velocity(z, t.expand(2)), z, steps=5)
    assert difference(sample(denoiser, noise=z, steps=5), expected) < 1e-5


def test_t_eps_of_the_sampler_is_the_models_unless_given() -> None:
    z = noise(2, 2, 6)

    def drawn(trained: float, given: float | None) -> Tensor:
        denoiser = random_model(layout((6, 2)), diffusion=Diffusion(t_eps=trained))
        return sample(denoiser, noise=z, steps=50, t_eps=given)

    assert torch.equal(drawn(0.05, None), drawn(0.2, 0.05))
    assert torch.equal(drawn(0.2, None), drawn(0.05, 0.2))
    assert difference(drawn(0.05, None), drawn(0.05, 0.2)) > 1e-3


# Masks, other grids, coordinates


def test_samples_are_zero_outside_the_mask() -> None:
    denoiser = random_model(layout((6, 2)), LABEL)
    mask = torch.tensor([[[True] * 6], [[True] * 3 + [False] * 3]])
    x = sample(denoiser, 2, {"label": 3}, mask=mask, guidance=2.0, steps=3)
    assert not x[1, :, 3:].any() and x[0].all() and x[1, :, :3].all()


def test_a_masked_sample_equals_one_of_a_grid_of_that_size() -> None:
    denoiser = random_model(layout((8, 1)), LABEL)
    z, lengths = noise(3, 2, 8), torch.tensor([8, 5, 3])
    mask = torch.arange(8) < lengths[:, None, None]
    x = sample(denoiser, noise=z, cond={"label": 3}, mask=mask, guidance=2.0, steps=4, batch_size=2)
    for i, length in enumerate(lengths.tolist()):
        own = z[i : i + 1, :, :length]
        alone = sample(denoiser, noise=own, cond={"label": 3}, guidance=2.0, steps=4)
        assert difference(x[i, :, :length], alone[0]) < 1e-5


def test_the_mask_or_the_noise_may_have_another_grid() -> None:
    denoiser = random_model(layout((6, 2)))
    mask = torch.ones(2, 1, 9, dtype=torch.bool)
    assert sample(denoiser, 2, mask=mask, steps=2).shape == (2, 2, 9)
    assert sample(denoiser, noise=noise(2, 2, 3), steps=2).shape == (2, 2, 3)


def test_coords_are_used_per_sample() -> None:
    denoiser = random_model(layout((6, 2)))
    z = noise(3, 2, 6)
    coords = torch.arange(6.0)[:, None] + torch.tensor([0.0, 2.0, 5.0])[:, None, None]
    x = sample(denoiser, noise=z, coords=coords, steps=3, batch_size=2)
    assert difference(x[:1], sample(denoiser, noise=z[:1], steps=3)) < 1e-5
    alone = sample(denoiser, noise=z[2:], coords=coords[2:], steps=3)
    assert difference(x[2:], alone) < 1e-5
    assert difference(x[2:], sample(denoiser, noise=z[2:], steps=3)) > 1e-3


# Memory, progress bar


def test_after_out_of_memory_the_batch_is_halved_with_the_same_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = counted()
    expected = sample(denoiser, 7, {"label": 3}, steps=3)
    inside = Counted.velocity

    def too_large(self: Counted, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(z) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return inside(self, z, *args, **kwargs)

    monkeypatch.setattr(Counted, "velocity", too_large)
    denoiser.calls.clear()
    assert difference(sample(denoiser, 7, {"label": 3}, steps=3, batch_size=7), expected) < 1e-5
    assert {size for _, size in denoiser.calls} == {1}  # 7, 3, 1


def test_out_of_memory_with_one_sample_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any, **__: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Denoiser, "velocity", too_large)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(random_model(layout((6, 2))), 7, steps=2)


def test_a_batch_fits_into_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = random_model(layout((6, 2)))

    def with_free(free: int) -> int:
        monkeypatch.setattr("jitkit.diffusion.sampler.free_bytes", lambda _device: free)
        monkeypatch.setattr("jitkit.diffusion.sampler.sampling_bytes", lambda _network: 1000)
        return fitting_batch(denoiser)

    assert [with_free(n) for n in (0, 1999, 2000, 7999, 8000)] == [1, 1, 1, 3, 4]
    assert with_free(10**12) == 1024


class Terminal:
    """A fake terminal as standard error."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_the_progress_bar_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    sample(random_model(layout((6, 2))), 2, steps=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_a_terminal_shows_the_progress_bar_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    sample(random_model(layout((6, 2))), 3, steps=2)
    assert terminal.text == ""
    sample(random_model(layout((6, 2))), 3, steps=2, batch_size=2, progress=True)
    assert "sampling" in terminal.text and "6/6" in terminal.text


# Errors


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 0}, "steps: 0 is less than 1"),
        ({"method": "rk4"}, "method: 'rk4' is not one of euler, heun, ab2, ab3, dpm2m"),
        ({"time_grid": "late"}, "time_grid: 'late' is not one of uniform, cosine"),
        ({"interval": (0, 1)}, "interval: unknown; did you mean 'guidance_interval'?; there are m"),
        ({"guidance_interval": (0.5, 0.2)}, r"guidance_interval [0.5, 0.2] ends before it starts"),
        ({"batch_size": 0, "t_eps": 2.0}, "t_eps: 2 is not below 1; batch_size: 0 is less than 1"),
        (
            {"autoguidance": "runs/a"},
            "autoguidance='runs/a' names a model that is not loaded; give",
        ),
    ],
)
def test_invalid_settings_are_refused(given: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}"):
        sample(random_model(layout((6, 2))), 1, **given)


def test_settings_are_those_of_a_recipe_and_keys_replace_them() -> None:
    model, settings = random_model(layout((6, 2))), SampleSection(steps=3, seed=4)
    assert torch.equal(sample(model, 2, settings=settings), sample(model, 2, steps=3, seed=4))
    other = sample(model, 2, settings=settings, seed=np.int64(5))
    assert torch.equal(other, sample(model, 2, steps=3, seed=5))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "n is None; request at least 1 sample, or give the noise"),
        ({"n": 0}, "n is 0; request at least 1 sample, or give the noise"),
        ({"noise": (3, 1, 6)}, "noise (3, 1, 6) does not fit: expected (n, 2, 1 sizes)"),
        ({"noise": (2, 6)}, "noise (2, 6) does not fit: expected (n, 2, 1 sizes)"),
        ({"n": 2, "noise": (3, 2, 6)}, "noise (3, 2, 6) does not fit: expected (2, 2, 1 sizes)"),
        (
            {"n": 2, "mask": (1, 1, 6)},
            "mask (1, 1, 6) does not fit: expected (2, 1, 6) or (2, 2, 6)",
        ),
        (
            {"noise": (3, 2, 6), "mask": (3, 1, 4)},
            "mask (3, 1, 4) does not fit: expected (3, 1, 6) or (3, 2, 6)",
        ),
        ({"n": 2, "coords": (2, 6)}, "coords (2, 6) does not fit: expected (2, 6, 1)"),
    ],
)
def test_an_invalid_number_or_shape_is_refused(given: dict[str, Any], text: str) -> None:
    ready: dict[str, Any] = {
        name: torch.ones(value, dtype=torch.bool if name == "mask" else torch.float32)
        if isinstance(value, tuple)
        else value
        for name, value in given.items()
    }
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        sample(random_model(layout((6, 2))), **ready)


def test_conditions_are_checked_before_the_first_step() -> None:
    denoiser = counted()
    with pytest.raises(ConditionError, match="11 is not a class"):
        sample(denoiser, 2, {"label": 11})
    assert not denoiser.calls


def test_layouts_of_several_axes_are_sampled() -> None:
    grid: Layout = layout((4, 2), (3, 2, "circle"), (2, 1, "set"))
    assert sample(random_model(grid), 2, steps=2).shape == (2, 2, 4, 3, 2)
