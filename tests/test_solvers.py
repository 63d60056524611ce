"""ODE solvers: order of convergence, exact cases, jumps of v, NFE and time grids."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log, log2
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.diffusion import flow
from jitkit.diffusion.solvers import (
    SOLVERS,
    TIME_GRIDS,
    History,
    Method,
    TimeGrid,
    adams_weights,
    dpm2m,
    integrate,
    nfe,
    time_steps,
)
from jitkit.errors import JitkitError

ALL: list[tuple[Method, TimeGrid]] = [
    (method, time_grid) for method in SOLVERS for time_grid in TIME_GRIDS
]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slopes(errors: list[float]) -> list[float]:
    """Orders of convergence where each error belongs to twice the steps of the one before."""
    return [log2(a / b) for a, b in pairwise(errors)]


# Order


class Gaussian:
    """Data x ~ N(mean, std²), whose conditional mean E[x | z] is known in closed form.

    z = t x + (1 - t) eps is normal too, and dz/dt = v maps z0 = s e to mean + std e.
    """

    noise_scale = 2.0

    def __init__(self) -> None:
        self.mean = noise(3, 8, seed=1).double()
        self.std = noise(3, 8, seed=2).double().abs() + 0.3

    def velocity(self, z: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        variance = (t * self.std) ** 2 + ((1 - t) * self.noise_scale) ** 2
        x_hat = self.mean + t * self.std**2 / variance * (z - t * self.mean)
        return flow.velocity(x_hat, z, t.expand(len(z)), t_eps=1e-6)

    def error(self, steps: int, method: Method, time_grid: TimeGrid = "uniform") -> float:
        """Mean absolute error at the end of the path."""
        z = noise(4, 3, 8).double()
        start = self.noise_scale * z
        end = integrate(self.velocity, start, steps=steps, method=method, time_grid=time_grid)
        return (end - (self.mean + self.std * z)).abs().mean().item()


@pytest.mark.parametrize(
    ("method", "time_grid", "order"),
    [
        ("euler", "uniform", 1),
        ("heun", "uniform", 2),
        ("ab2", "uniform", 2),
        ("ab3", "uniform", 2),  # its first and last step are Euler's, of h² each
        ("euler", "cosine", 1),
        ("heun", "cosine", 2),
        ("ab2", "cosine", 2),
        ("ab3", "cosine", 3),  # these two steps are shorter: h⁴
        ("dpm2m", "cosine", 2),
    ],
)
def test_the_error_converges_with_the_order_of_the_solver(
    method: Method, time_grid: TimeGrid, order: int
) -> None:
    errors = [Gaussian().error(steps, method, time_grid) for steps in (80, 160, 320)]
    assert slopes(errors) == pytest.approx([order, order], abs=0.12)


def test_dpm2m_on_uniform_times_has_order_two_up_to_a_logarithm() -> None:
    """At both ends lambda is the logarithm of t or 1 - t and changes much in a uniform step."""
    errors = [Gaussian().error(steps, "dpm2m") for steps in (40, 80, 160, 320)]
    orders = slopes(errors)
    assert orders == sorted(orders) and 1.6 < orders[-1] < 2


def test_heun_is_more_accurate_than_euler() -> None:
    assert Gaussian().error(50, "heun") < 0.05 * Gaussian().error(50, "euler")


def test_at_equal_nfe_ab3_on_cosine_times_is_more_accurate_than_heun() -> None:
    assert nfe("heun", 13) == nfe("ab3", 25) == 25
    assert Gaussian().error(25, "ab3", "cosine") < 0.2 * Gaussian().error(13, "heun")


# Exact cases


@pytest.mark.parametrize(("method", "time_grid"), ALL)
def test_a_constant_velocity_is_integrated_exactly(method: Method, time_grid: TimeGrid) -> None:
    v = noise(2, 3)
    end = integrate(
        lambda _z, _t: v, torch.zeros(2, 3), steps=7, method=method, time_grid=time_grid
    )
    torch.testing.assert_close(end, v)


@pytest.mark.parametrize(("method", "time_grid"), ALL)
def test_a_perfect_prediction_ends_at_the_data(method: Method, time_grid: TimeGrid) -> None:
    x, eps = noise(2, 3, 8).double(), noise(2, 3, 8, seed=1).double()

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return flow.velocity(x, z, t.double().expand(len(z)), t_eps=1e-6)

    end = integrate(velocity, eps, steps=9, method=method, time_grid=time_grid)
    torch.testing.assert_close(end, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("steps", "method", "t_eps", "remaining"),
    [
        (50, "heun", 0.05, 0.0171),
        (50, "euler", 0.05, 0.0144),
        (100, "heun", 0.05, 0.0181),
        (25, "heun", 0.05, 0.0088),
        (20, "heun", 0.05, 0),
        (20, "euler", 0.05, 0),
        (50, "heun", 0.02, 0),
    ],
)
def test_a_perfect_prediction_leaves_as_much_noise_as_the_official_code(
    steps: int, method: Method, t_eps: float, remaining: float
) -> None:
    x, eps = noise(2, 3, 8).double(), noise(2, 3, 8, seed=1).double()

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return flow.velocity(x, z, t.double().expand(len(z)), t_eps=t_eps)

    end = integrate(velocity, eps, steps=steps, method=method)
    torch.testing.assert_close(end - x, remaining * (eps - x), atol=4e-4, rtol=0)


def test_heun_on_exponential_growth() -> None:
    """On dz/dt = z a step of h multiplies by 1 + h + h²/2, the last step by 1 + h."""
    end = integrate(lambda z, _t: z, torch.ones(1).double(), steps=2, method="heun")
    assert end.item() == pytest.approx((1 + 0.5 + 0.125) * 1.5)


def test_equal_steps_have_the_textbook_adams_bashforth_weights() -> None:
    assert adams_weights([0.5], 0.75) == pytest.approx([0.25])
    assert adams_weights([0.5, 0.25], 0.75) == pytest.approx([3 / 8, -1 / 8])
    expected = [0.25 * w / 12 for w in (23, -16, 5)]
    assert adams_weights([0.5, 0.25, 0.0], 0.75) == pytest.approx(expected)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=4),
    st.lists(st.floats(-2, 2), min_size=3, max_size=3),
)
def test_adams_weights_are_exact_on_polynomials_for_any_steps(
    lengths: list[float], factors: list[float]
) -> None:
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    times, end = ends[-2::-1][:3], ends[-1]
    factors = factors[: len(times)]

    def value(t: float) -> float:
        return sum(a * t**i for i, a in enumerate(factors))

    def integral(t: float) -> float:
        return sum(a * t ** (i + 1) / (i + 1) for i, a in enumerate(factors))

    result = sum(w * value(t) for w, t in zip(adams_weights(times, end), times, strict=True))
    assert result == pytest.approx(integral(end) - integral(times[0]), abs=1e-6)


@settings(deadline=None)
@given(st.floats(0.02, 0.9), st.floats(0.01, 1), st.floats(0.01, 0.99))
def test_dpm2m_equals_algorithm_2_of_its_paper(at: float, back: float, on: float) -> None:
    """Lu et al. 2022: alpha, sigma, lambda of z = alpha x + sigma eps, data prediction."""
    t, t_old, t_new = (torch.tensor(at - s * d) for s, d in ((0, 0), (back, at / 2), (on, at - 1)))
    old, now = (History(time, noise(5, seed=i), noise(5, seed=i + 2)) for i, time in
                enumerate((t_old, t)))  # fmt: skip

    def schedule(t: Tensor) -> tuple[float, float, float]:
        return float(t), 1 - float(t), log(float(t) / (1 - float(t)))

    (_, _, lam_old), (_, sigma, lam), (alpha_new, sigma_new, lam_new) = map(
        schedule, (t_old, t, t_new)
    )
    x_old, x = (state.z + (1 - float(state.t)) * state.v for state in (old, now))
    h, r = lam_new - lam, (lam - lam_old) / (lam_new - lam)
    d = (1 + 1 / (2 * r)) * x - 1 / (2 * r) * x_old
    expected = sigma_new / sigma * now.z - alpha_new * (exp(-h) - 1) * d
    result = dpm2m(lambda z, _t: z, [now, old], t_new)
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-3)


# Jumps of v


@pytest.mark.parametrize("method", ["heun", "ab2", "ab3"])
@pytest.mark.parametrize("edge", [0.301, 0.33, 0.349])
def test_a_jump_inside_a_step_acts_at_its_middle(method: Method, edge: float) -> None:
    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(z, float(t > edge))

    end = integrate(velocity, torch.zeros(1).double(), steps=20, method=method)
    assert end.item() == pytest.approx(1 - 0.325, abs=1e-6)


@pytest.mark.parametrize(("method", "time_grid"), [one for one in ALL if one[0] != "euler"])
def test_a_jump_costs_less_than_a_step_of_euler(method: Method, time_grid: TimeGrid) -> None:
    for edge in (0.1, 0.3, 0.7):

        def velocity(z: Tensor, t: Tensor, edge: float = edge) -> Tensor:
            return torch.full_like(z, float(t > edge))

        end = integrate(velocity, torch.zeros(1), steps=20, method=method, time_grid=time_grid)
        assert abs(end.item() - (1 - edge)) < 0.7 * time_steps(time_grid, 20).diff().max()


# NFE and time grids


def evaluated_times(
    method: Method, steps: int, time_grid: TimeGrid = "uniform"
) -> tuple[list[float], list[int]]:
    """The times at which v is evaluated, and the steps reported to ``after_step``."""
    when: list[float] = []
    done: list[int] = []

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype is torch.float32 and t.device.type == "cpu" and t.ndim == 0
        when.append(round(float(t), 6))
        return z

    integrate(
        velocity,
        torch.ones(1),
        steps=steps,
        method=method,
        time_grid=time_grid,
        after_step=done.append,
    )
    return when, done


def test_heuns_last_step_is_eulers_and_v_is_not_evaluated_at_the_end() -> None:
    assert evaluated_times("heun", 4) == ([0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75], [1, 2, 3, 4])
    assert evaluated_times("euler", 4)[0] == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(("method", "time_grid"), ALL)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_nfe_is_the_number_of_evaluations(method: Method, time_grid: TimeGrid, steps: int) -> None:
    when, done = evaluated_times(method, steps, time_grid)
    assert len(when) == nfe(method, steps) and max(when) < 1
    assert done == list(range(1, steps + 1))


@pytest.mark.parametrize("time_grid", TIME_GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_time_grids_increase_from_0_to_1(time_grid: TimeGrid, steps: int) -> None:
    times = time_steps(time_grid, steps)
    assert times.shape == (steps + 1,) and times.dtype == torch.float32
    assert times[0] == 0 and times[-1] == 1 and bool((times.diff() > 0).all())
    torch.testing.assert_close(times + times.flip(0), torch.ones(steps + 1))


def test_uniform_times_are_bit_identical_to_the_papers() -> None:
    assert torch.equal(time_steps("uniform", 50), torch.linspace(0, 1, 51))


def test_heun_on_uniform_times_is_bit_identical_to_the_papers() -> None:
    """Against an explicit loop (Li & He 2025, appendix A and the official code)."""
    model, z = torch.nn.Linear(8, 8), noise(4, 8)
    torch.nn.init.orthogonal_(model.weight)

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        return model(z).detach() * (1 + t)

    ends, expected = torch.linspace(0, 1, 51), z
    for i in range(49):
        step, v = float(ends[i + 1] - ends[i]), velocity(expected, ends[i])
        expected = expected + step * (v + velocity(expected + step * v, ends[i + 1])) / 2
    expected = expected + float(ends[50] - ends[49]) * velocity(expected, ends[49])
    assert torch.equal(integrate(velocity, z, steps=50), expected)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"steps": 0}, "steps 0 must be a whole number, at least 1"),
        ({"steps": 2.0}, "steps 2.0 must be a whole number, at least 1"),
        ({"steps": 2, "method": "rk4"}, "method 'rk4' is not one of euler, heun, ab2, ab3, dpm2m"),
        ({"steps": 2, "time_grid": "late"}, "time_grid 'late' is not one of uniform, cosine"),
    ],
)
def test_invalid_settings_are_refused(given: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{text}$"):
        integrate(lambda z, _t: z, torch.ones(1), **given)
