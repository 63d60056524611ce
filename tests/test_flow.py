"""Flow matching: path, conversions between x, eps and v, losses and their weights, times."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import exp, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.diffusion.flow import (
    Space,
    auto_noise_scale,
    convert,
    interpolate,
    logit_normal_t,
    mean_over_data,
    squared_errors,
    uniform_t,
    velocity,
)

SPACES: list[Space] = ["x", "eps", "v"]
PAIRS = list(product(SPACES, SPACES))
TIMES = st.floats(0, 1)
UNCLAMPED = st.floats(0.05, 0.95)
T_EPS = 0.05


def draw(seed: int, *, noise_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Clean data and scaled noise, (2, 3, 4, 5) float64."""
    generator = torch.Generator().manual_seed(seed)
    x, eps = torch.randn(2, 2, 3, 4, 5, generator=generator, dtype=torch.float64)
    return x, noise_scale * eps


def both(t: float) -> Tensor:
    """One time for both samples."""
    return torch.tensor([t, t], dtype=torch.float64)


# Laws


@settings(deadline=None)
@given(st.integers(0, 99), UNCLAMPED, UNCLAMPED, st.sampled_from([1.0, 2.0, 4.0]))
def test_x_eps_and_v_convert_into_each_other(
    seed: int, t1: float, t2: float, noise_scale: float
) -> None:
    x, eps = draw(seed, noise_scale=noise_scale)
    t = torch.tensor([t1, t2], dtype=torch.float64)
    z = interpolate(x, eps, t)
    truth = {"x": x, "eps": eps, "v": x - eps}
    for source, target in PAIRS:
        converted = convert(truth[source], z, t, source=source, target=target)
        torch.testing.assert_close(converted, truth[target], atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.integers(0, 99), UNCLAMPED, st.sampled_from(PAIRS))
def test_conversion_is_invertible(seed: int, t: float, pair: tuple[Space, Space]) -> None:
    prediction, z = draw(seed)  # any prediction, not only the truth
    source, target = pair
    there = convert(prediction, z, both(t), source=source, target=target)
    back = convert(there, z, both(t), source=target, target=source)
    torch.testing.assert_close(back, prediction, atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.integers(0, 99), UNCLAMPED, st.sampled_from(list(product(SPACES, SPACES, SPACES))))
def test_conversion_through_a_third_space_gives_the_same(
    seed: int, t: float, spaces: tuple[Space, Space, Space]
) -> None:
    prediction, z = draw(seed)
    source, middle, target = spaces
    half = convert(prediction, z, both(t), source=source, target=middle)
    indirect = convert(half, z, both(t), source=middle, target=target)
    direct = convert(prediction, z, both(t), source=source, target=target)
    torch.testing.assert_close(indirect, direct, atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.integers(0, 99), TIMES, st.sampled_from(PAIRS))
def test_a_perfect_prediction_has_no_error_even_where_the_divisor_is_clamped(
    seed: int, t: float, pair: tuple[Space, Space]
) -> None:
    x, eps = draw(seed)
    prediction, loss = pair
    truth = {"x": x, "eps": eps, "v": x - eps}[prediction]
    assert not squared_errors(truth, x, eps, both(t), prediction=prediction, loss=loss).any()


@pytest.mark.parametrize("t", [0.0, 0.01, 0.99, 1.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_perfect_prediction_has_no_error_at_the_ends(pair: tuple[Space, Space], t: float) -> None:
    x, eps = draw(0)
    truth = {"x": x, "eps": eps, "v": x - eps}[pair[0]]
    assert not squared_errors(truth, x, eps, both(t), prediction=pair[0], loss=pair[1]).any()


WEIGHTS: dict[tuple[Space, Space], Callable[[float], float]] = {
    ("x", "x"): lambda t: 1,
    ("x", "eps"): lambda t: (t / (1 - t)) ** 2,
    ("x", "v"): lambda t: 1 / (1 - t) ** 2,
    ("eps", "x"): lambda t: ((1 - t) / t) ** 2,
    ("eps", "eps"): lambda t: 1,
    ("eps", "v"): lambda t: 1 / t**2,
    ("v", "x"): lambda t: (1 - t) ** 2,
    ("v", "eps"): lambda t: t**2,
    ("v", "v"): lambda t: 1,
}


@settings(deadline=None)
@given(st.integers(0, 99), UNCLAMPED, st.sampled_from(PAIRS))
def test_the_weight_of_an_error_depends_on_prediction_and_loss(
    seed: int, t: float, pair: tuple[Space, Space]
) -> None:
    x, eps = draw(seed)
    error, _ = draw(seed + 1)
    truth = {"x": x, "eps": eps, "v": x - eps}[pair[0]]
    squares = squared_errors(truth + error, x, eps, both(t), prediction=pair[0], loss=pair[1])
    torch.testing.assert_close(squares, WEIGHTS[pair](t) * error**2, atol=1e-9, rtol=1e-9)


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0, 0.9), st.floats(0.01, 0.1))
def test_the_velocity_is_the_derivative_of_the_path(seed: int, t: float, step: float) -> None:
    x, eps = draw(seed)
    z, later = interpolate(x, eps, both(t)), interpolate(x, eps, both(t + step))
    slope = (later - z) / step
    torch.testing.assert_close(velocity(x, z, both(t)), slope, atol=1e-9, rtol=0)


@st.composite
def partly_observed(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Values (B, C, X) and a mask (B, C or 1, X)."""
    b, c, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    channels = draw(st.sampled_from([1, c]))
    bits = draw(st.lists(st.booleans(), min_size=b * channels * size, max_size=b * channels * size))
    values = torch.randn(b, c, size, generator=torch.Generator().manual_seed(0))
    return values, torch.tensor(bits).reshape(b, channels, size)


@settings(deadline=None)
@given(partly_observed())
def test_the_mean_is_over_each_samples_observed_cells(case: tuple[Tensor, Tensor]) -> None:
    values, mask = case
    means = mean_over_data(values, mask)
    for mean, own, seen in zip(means, values, mask.expand_as(values), strict=True):
        expected = own[seen].mean() if seen.any() else torch.zeros(())
        torch.testing.assert_close(mean, expected)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 16))
def test_the_noise_scale_grows_with_the_side_of_the_grid(cells: int, times: int) -> None:
    larger = auto_noise_scale(256**2 * times**2 * cells)
    assert larger == pytest.approx(times * auto_noise_scale(256**2 * cells))
    assert auto_noise_scale(cells) == 1


# Known answers


def test_the_path_starts_at_noise_and_ends_at_data() -> None:
    x, eps = draw(0)
    assert torch.equal(interpolate(x, eps, both(0)), eps)
    assert torch.equal(interpolate(x, eps, both(1)), x)


def test_each_sample_has_its_own_time() -> None:
    x, eps = draw(0)
    z = interpolate(x, eps, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert torch.equal(z[0], eps[0]) and torch.equal(z[1], x[1])


@pytest.mark.parametrize("t", [0.96, 0.98, 1.0])
def test_the_velocity_near_the_end_is_clamped(t: float) -> None:
    x, eps = draw(0)
    clamped = velocity(x, interpolate(x, eps, both(t)), both(t), t_eps=T_EPS)
    torch.testing.assert_close(clamped, (x - eps) * (1 - t) / T_EPS)


def test_t_eps_can_be_chosen() -> None:
    x, eps = draw(0)
    t = both(0.98)
    unclamped = velocity(x, interpolate(x, eps, t), t, t_eps=0.01)
    torch.testing.assert_close(unclamped, x - eps)


@pytest.mark.parametrize(
    ("prediction", "loss", "t", "weight"),
    [("x", "v", 1.0, 400), ("x", "eps", 1.0, 400), ("eps", "v", 0.0, 400), ("eps", "x", 0.0, 400)],
)
def test_the_weight_of_an_error_is_at_most_400(
    prediction: Space, loss: Space, t: float, weight: float
) -> None:
    x, eps = draw(0)
    truth = {"x": x, "eps": eps}[prediction]
    squares = squared_errors(
        truth + 1, x, eps, both(t), prediction=prediction, loss=loss, t_eps=T_EPS
    )
    torch.testing.assert_close(squares, torch.full_like(x, weight))


def test_values_outside_the_mask_are_ignored() -> None:
    values = torch.tensor([[[1.0, torch.nan, 3.0]], [[torch.inf, torch.nan, torch.nan]]])
    mask = torch.tensor([[[True, False, True]], [[False, False, False]]])
    assert mean_over_data(values, mask).tolist() == [2, 0]


def test_the_mean_without_a_mask_is_over_all_cells() -> None:
    assert mean_over_data(torch.arange(6.0).reshape(2, 1, 3), None).tolist() == [1, 4]


def test_the_noise_scale_of_a_quarter_degree_globe() -> None:
    assert auto_noise_scale(721 * 1440) == pytest.approx(sqrt(721 * 1440) / 256)  # 3.98


# Agreement with the official code: its measured distribution of times


def test_times_are_distributed_as_the_papers() -> None:
    generator = torch.Generator().manual_seed(0)
    t = logit_normal_t(400_000, P_mean=-0.8, P_std=0.8, generator=generator).double()
    ranks = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
    quantiles = t.quantile(torch.tensor(ranks, dtype=t.dtype)).tolist()
    assert quantiles == pytest.approx([0.065, 0.107, 0.207, 0.310, 0.435, 0.626, 0.741], abs=0.002)
    assert t.mean().item() == pytest.approx(0.331, abs=0.001)
    assert t.std().item() == pytest.approx(0.159, abs=0.001)
    assert (1 - t).pow(-2).mean().item() == pytest.approx(2.96, abs=0.03)


def test_the_median_time_is_the_sigmoid_of_p_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    t = logit_normal_t(100_000, P_mean=1.0, P_std=0.5, generator=generator)
    assert t.median().item() == pytest.approx(1 / (1 + exp(-1)), abs=0.003)


def test_uniform_times_are_uniform() -> None:
    t = uniform_t(100_000, generator=torch.Generator().manual_seed(0))
    counts = torch.histc(t, bins=10, min=0, max=1)
    assert t.min() >= 0 and t.max() < 1
    assert (counts - 10_000).abs().max() < 400  # four standard deviations


def test_times_are_reproducible_from_the_generator() -> None:
    def drawn(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        normal = logit_normal_t(4, P_mean=0, P_std=1, generator=generator)
        return [normal, uniform_t(4, generator=generator)]

    for first, again, other in zip(drawn(0), drawn(0), drawn(1), strict=True):
        assert torch.equal(first, again) and not torch.equal(first, other)
