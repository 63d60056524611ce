"""From noise to data: guidance and its interval, and what samples are."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import awake, difference, layout
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.guidance import Guided
from jitkit.diffusion.sampler import draw_noise, fitting_batch, sample
from jitkit.diffusion.solvers import Method, integrate
from jitkit.errors import ConditionError, JitkitError
from jitkit.fields import Category, Condition, Grid, Layout, PerToken, Scalars

LABEL: dict[str, Condition] = {"label": Category(10)}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Guidance


class Counted(Denoiser):
    """A model that writes down the time and the samples of each call."""

    calls: list[tuple[float, int]]

    def velocity(self, z: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.calls.append((t[0].item(), len(z)))
        return super().velocity(z, t, *args, **kwargs)


def counted(conditions: dict[str, Condition] = LABEL, **given: Any) -> Counted:
    denoiser = awake(layout((6, 2)), conditions, **given)
    denoiser.__class__ = Counted
    assert isinstance(denoiser, Counted)
    denoiser.calls = []
    return denoiser


def test_fifty_steps_of_heun_take_99_calls_and_187_passes_of_a_sample() -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=2.0, interval=(0.1, 1.0), steps=50)
    assert len(denoiser.calls) == 99
    assert sum(size for _, size in denoiser.calls) == 3 * 187
    guided = {round(t * 50) for t, size in denoiser.calls if size == 6}
    single = {round(t * 50) for t, size in denoiser.calls if size == 3}
    assert guided == set(range(6, 50)) and single == set(range(6))


def test_25_steps_of_ab3_on_cosine_times_take_25_calls_and_44_passes_of_a_sample() -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=2.0, steps=25, method="ab3", time_grid="cosine")
    assert len(denoiser.calls) == 25
    assert sum(size for _, size in denoiser.calls) == 3 * 44


@pytest.mark.parametrize("method", ["ab2", "ab3", "dpm2m"])
def test_a_multistep_rule_calls_once_a_step_whether_guided_or_not(method: Method) -> None:
    denoiser = counted()
    sample(denoiser, 3, {"label": 1}, guidance=3.0, steps=20, method=method, time_grid="cosine")
    assert len(denoiser.calls) == 20
    assert {size for t, size in denoiser.calls if t > 0.1} == {6}


@pytest.mark.parametrize(
    ("conditions", "guidance"),
    [(LABEL, 1.0), ({}, 2.0), ({"past": Grid(("height",), drop=0)}, 2.0)],
    ids=["guidance 1", "no condition", "a condition that was never dropped"],
)
def test_where_guidance_changes_nothing_no_second_pass_is_made(
    conditions: dict[str, Condition], guidance: float
) -> None:
    denoiser = counted(conditions)
    cond = {"past": torch.zeros(1, 6)} if "past" in conditions else {}
    sample(denoiser, 3, cond, guidance=guidance, steps=4)
    assert [size for _, size in denoiser.calls] == [3] * 7


def pushed(guidance: float = 3.0, **given: Any) -> Guided:
    return Guided(awake(layout((6, 2)), LABEL), {"label": torch.tensor([3, 5])}, guidance, **given)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 3.0, -1.0])
def test_guidance_is_a_step_from_not_told_to_told(guidance: float) -> None:
    guided, z, t = pushed(guidance), noise(2, 2, 6), torch.tensor(0.4)
    told, untold = (
        guided.denoiser.velocity(z, t.expand(2), {"label": torch.tensor(label)})
        for label in ([3, 5], [10, 10])
    )
    assert difference(told, untold) > 0.01
    wanted = untold + guidance * (told - untold)
    torch.testing.assert_close(guided(z, t), wanted, atol=1e-5, rtol=1e-5)


def test_outside_the_interval_a_model_is_told_and_not_guided() -> None:
    guided, z, t = pushed(), noise(2, 2, 6), torch.tensor(0.05)
    told = guided.denoiser.velocity(z, t.expand(2), guided.cond)
    assert torch.equal(guided(z, t), told)


def test_what_was_never_dropped_is_told_to_both() -> None:
    past = Grid(("height",), drop=0.0)
    denoiser = awake(layout((6, 2)), LABEL | {"past": past})
    cond = {"label": torch.tensor([3]), "past": noise(1, 1, 6, seed=1)}
    z, t = noise(1, 2, 6), torch.tensor(0.4)
    guided = Guided(denoiser, cond, 3.0)(z, t)
    told, untold = (
        denoiser.velocity(z, t.expand(1), cond | {"label": torch.tensor([label])})
        for label in (3, 10)
    )
    torch.testing.assert_close(guided, untold + 3 * (told - untold), atol=1e-5, rtol=1e-5)


def test_all_that_may_be_dropped_is_dropped_at_once() -> None:
    conditions = LABEL | {"weather": Scalars(("wind",)), "element": PerToken(4)}
    denoiser = awake(layout((6, 2)), conditions)
    cond = {
        "label": torch.tensor([3]),
        "weather": torch.ones(1, 1),
        "element": torch.ones(1, 6, dtype=torch.long),
    }
    z, t = noise(1, 2, 6), torch.tensor(0.4)
    told = denoiser.velocity(z, t.expand(1), cond)
    nothing = {
        "label": torch.tensor([10]),
        "weather": torch.full((1, 1), torch.nan),
        "element": torch.full((1, 6), 4),
    }
    untold = denoiser.velocity(z, t.expand(1), nothing)
    guided = Guided(denoiser, cond, 3.0)(z, t)
    torch.testing.assert_close(guided, untold + 3 * (told - untold), atol=1e-5, rtol=1e-5)


def test_the_ends_of_the_interval_do_not_belong_to_it() -> None:
    low, high = torch.tensor(0.1), torch.tensor(0.7)
    guided = pushed(interval=(0.1, 0.7))
    assert not guided.acts(low) and not guided.acts(high)
    assert guided.acts(low.nextafter(high)) and guided.acts(high.nextafter(low))
    assert not guided.acts(torch.tensor(0.0)) and not guided.acts(torch.tensor(0.9))


def test_an_interval_from_0_has_0_in_it() -> None:
    assert pushed(interval=(0.0, 0.7)).acts(torch.tensor(0.0))
    assert not pushed(interval=(1e-6, 0.7)).acts(torch.tensor(0.0))


def test_node_5_of_50_is_a_little_less_than_a_tenth_and_not_guided() -> None:
    t = torch.linspace(0, 1, 51)
    assert t[5].item() < 0.1
    assert not pushed().acts(t[5]) and pushed().acts(t[6])


def test_the_second_pass_sees_the_same_mask_and_coords() -> None:
    denoiser = awake(layout((6, 2)), LABEL)
    cond, z, t = {"label": torch.tensor([3, 5])}, noise(2, 2, 6), torch.tensor(0.4)
    mask = torch.tensor([[[True] * 6], [[True] * 3 + [False] * 3]])
    coords = torch.arange(6.0)[:, None] + torch.tensor([0.0, 2.0])[:, None, None]
    z = torch.where(mask, z, 0.0)
    guided = Guided(denoiser, cond, 3.0, mask=mask, coords=coords)(z, t)
    told, untold = (
        denoiser.velocity(z, t.expand(2), {"label": torch.tensor(label)}, mask, coords)
        for label in ([3, 5], [10, 10])
    )
    wanted = torch.where(mask, untold + 3 * (told - untold), 0.0)
    torch.testing.assert_close(guided, wanted, atol=1e-5, rtol=1e-5)


# What a sample is


@pytest.fixture(scope="module")
def seven() -> tuple[Callable[..., Tensor], Tensor]:
    """A way to sample, and seven samples."""
    denoiser = awake(layout((6, 2), (4, 2)), LABEL, Diffusion(noise_scale=2.0))

    def draw(n: int | None = None, labels: range = range(7), **given: Any) -> Tensor:
        cond = {"label": torch.tensor(labels)}
        return sample(denoiser, n, cond, guidance=2.0, steps=4, **given)

    return draw, draw(7)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_samples_do_not_depend_on_the_batch_they_are_made_in(seven: Any, batch_size: int) -> None:
    draw, wanted = seven
    assert difference(draw(7, batch_size=batch_size), wanted) < 1e-5


def test_samples_do_not_depend_on_how_many_there_are(seven: Any) -> None:
    draw, wanted = seven
    assert difference(draw(3, range(3)), wanted[:3]) < 1e-5


def test_samples_may_start_at_any_index(seven: Any) -> None:
    draw, wanted = seven
    assert difference(draw(5, range(2, 7), first=2), wanted[2:]) < 1e-5
    assert difference(draw(5, range(2, 7), first=2, batch_size=2), wanted[2:]) < 1e-5


def test_all_samples_differ_and_so_do_those_of_another_seed(seven: Any) -> None:
    draw, wanted = seven
    assert torch.equal(draw(7), wanted)
    many = [*wanted, *draw(7, seed=1)]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(many) for b in many[:i])


def test_samples_from_given_noise_are_those_from_the_same_noise_drawn() -> None:
    denoiser = awake(layout((6, 2)), diffusion=Diffusion(noise_scale=2.0))
    drawn = draw_noise(denoiser, range(3, 6), seed=5)
    given = sample(denoiser, noise=drawn, steps=3)
    assert torch.equal(sample(denoiser, 3, seed=5, first=3, steps=3), given)
    assert torch.equal(sample(denoiser, 3, noise=drawn.double(), steps=3), given)


def test_noise_has_the_models_scale() -> None:
    large = layout((100, 2), (100, 2))
    for scale in (1.0, 4.0):
        drawn = draw_noise(awake(large, diffusion=Diffusion(noise_scale=scale)), range(2), seed=0)
        assert drawn.shape == (2, 2, 100, 100) and drawn.dtype == torch.float32
        assert drawn.std().item() == pytest.approx(scale, rel=0.02)
        assert drawn.mean().item() == pytest.approx(0, abs=0.02 * scale)


def test_samples_carry_no_gradient() -> None:
    assert not sample(awake(layout((6, 2))), 1, steps=2).requires_grad


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_a_sample_is_what_integration_of_its_velocity_gives(prediction: Any) -> None:
    denoiser = awake(layout((6, 2)), diffusion=Diffusion(prediction))
    z = noise(2, 2, 6)
    wanted = integrate(lambda z, t: denoiser.velocity(z, t.expand(2), {}), z, steps=5)
    assert difference(sample(denoiser, noise=z, steps=5), wanted) < 1e-5


def test_the_samplers_floor_is_the_models_or_its_own() -> None:
    z = noise(2, 2, 6)

    def drawn(trained: float, own: float | None) -> Tensor:
        denoiser = awake(layout((6, 2)), diffusion=Diffusion(t_eps=trained))
        return sample(denoiser, noise=z, steps=50, t_eps=own)

    assert torch.equal(drawn(0.05, None), drawn(0.2, 0.05))
    assert torch.equal(drawn(0.2, None), drawn(0.05, 0.2))
    assert difference(drawn(0.05, None), drawn(0.05, 0.2)) > 1e-3


# Masks, other grids, positions


def test_there_is_nothing_where_the_mask_has_no_data() -> None:
    denoiser = awake(layout((6, 2)), LABEL)
    mask = torch.tensor([[[True] * 6], [[True] * 3 + [False] * 3]])
    x = sample(denoiser, 2, {"label": 3}, mask=mask, guidance=2.0, steps=3)
    assert not x[1, :, 3:].any() and x[0].all() and x[1, :, :3].all()


def test_a_sample_of_a_part_of_the_grid_is_that_of_a_grid_so_large() -> None:
    denoiser = awake(layout((8, 1)), LABEL)
    z, lengths = noise(3, 2, 8), torch.tensor([8, 5, 3])
    mask = torch.arange(8) < lengths[:, None, None]
    x = sample(denoiser, noise=z, cond={"label": 3}, mask=mask, guidance=2.0, steps=4, batch_size=2)
    for i, length in enumerate(lengths.tolist()):
        own = z[i : i + 1, :, :length]
        alone = sample(denoiser, noise=own, cond={"label": 3}, guidance=2.0, steps=4)
        assert difference(x[i, :, :length], alone[0]) < 1e-5


def test_the_mask_or_the_noise_may_bring_another_grid() -> None:
    denoiser = awake(layout((6, 2)))
    mask = torch.ones(2, 1, 9, dtype=torch.bool)
    assert sample(denoiser, 2, mask=mask, steps=2).shape == (2, 2, 9)
    assert sample(denoiser, noise=noise(2, 2, 3), steps=2).shape == (2, 2, 3)


def test_positions_reach_the_network_sample_by_sample() -> None:
    denoiser = awake(layout((6, 2)))
    z = noise(3, 2, 6)
    coords = torch.arange(6.0)[:, None] + torch.tensor([0.0, 2.0, 5.0])[:, None, None]
    x = sample(denoiser, noise=z, coords=coords, steps=3, batch_size=2)
    assert difference(x[:1], sample(denoiser, noise=z[:1], steps=3)) < 1e-5
    alone = sample(denoiser, noise=z[2:], coords=coords[2:], steps=3)
    assert difference(x[2:], alone) < 1e-5
    assert difference(x[2:], sample(denoiser, noise=z[2:], steps=3)) > 1e-3


# Memory, the bar


def test_a_batch_that_does_not_fit_is_halved_and_the_samples_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser = counted()
    wanted = sample(denoiser, 7, {"label": 3}, steps=3)
    inside = Counted.velocity

    def too_large(self: Counted, z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(z) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return inside(self, z, *args, **kwargs)

    monkeypatch.setattr(Counted, "velocity", too_large)
    denoiser.calls.clear()
    assert difference(sample(denoiser, 7, {"label": 3}, steps=3, batch_size=7), wanted) < 1e-5
    assert {size for _, size in denoiser.calls} == {1}  # 7, 3, 1


def test_one_sample_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: Any, **__: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Denoiser, "velocity", too_large)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        sample(awake(layout((6, 2))), 7, steps=2)


def test_a_batch_fits_into_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = awake(layout((6, 2)))

    def with_free(free: int) -> int:
        monkeypatch.setattr("jitkit.diffusion.sampler.free_bytes", lambda _device: free)
        monkeypatch.setattr("jitkit.diffusion.sampler.sampling_bytes", lambda _network: 1000)
        return fitting_batch(denoiser)

    assert [with_free(n) for n in (0, 1999, 2000, 7999, 8000)] == [1, 1, 1, 3, 4]
    assert with_free(10**12) == 1024


class Terminal:
    """Standard error as a terminal would be."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def test_the_bar_is_silent_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    sample(awake(layout((6, 2))), 2, steps=2, progress=True)
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_a_terminal_shows_the_bar_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    sample(awake(layout((6, 2))), 3, steps=2)
    assert terminal.text == ""
    sample(awake(layout((6, 2))), 3, steps=2, batch_size=2, progress=True)
    assert "sampling" in terminal.text and "6/6" in terminal.text


# Mistakes


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 0}, "steps 0 must be a whole number, at least 1"),
        ({"method": "rk4"}, "method 'rk4' is none of euler, heun, ab2, ab3, dpm2m"),
        ({"time_grid": "late"}, "time_grid 'late' is none of uniform, cosine"),
    ],
)
def test_a_way_to_sample_that_is_not_known_is_refused(given: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{text}$"):
        sample(awake(layout((6, 2))), 1, **given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "n is None; ask for at least 1 sample, or give their noise"),
        ({"n": 0}, "n is 0; ask for at least 1 sample, or give their noise"),
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
def test_a_wrong_number_or_shape_is_refused(given: dict[str, Any], text: str) -> None:
    ready: dict[str, Any] = {
        name: torch.ones(value, dtype=torch.bool if name == "mask" else torch.float32)
        if isinstance(value, tuple)
        else value
        for name, value in given.items()
    }
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        sample(awake(layout((6, 2))), **ready)


def test_conditions_are_checked_before_the_first_step() -> None:
    denoiser = counted()
    with pytest.raises(ConditionError, match="11 is not a class"):
        sample(denoiser, 2, {"label": 11})
    assert not denoiser.calls


def test_layouts_of_several_axes_are_sampled() -> None:
    grid: Layout = layout((4, 2), (3, 2, "circle"), (2, 1, "set"))
    assert sample(awake(grid), 2, steps=2).shape == (2, 2, 4, 3, 2)
