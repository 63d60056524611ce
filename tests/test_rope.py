"""Rotary and fixed code: distances on a line, on a circle, and none in a set."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.fields import Axis, Kind
from jitkit.nn.patches import token_coords
from jitkit.nn.rope import (
    cos_sin,
    frequencies,
    position_frequencies,
    rotary_embedding,
    rotary_of_positions,
    rotate,
    share,
    sincos,
)

KINDS: list[Kind] = ["line", "circle", "set"]
SIZES = st.integers(1, 12)


@st.composite
def any_axes(draw: st.DrawFn, kinds: Sequence[Kind] = KINDS) -> list[Axis]:
    """One to four axes whose patch is 1 or 2."""
    made = []
    for i in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(kinds))
        patch = 1 if kind == "set" else draw(st.integers(1, 2))
        made.append(Axis(f"axis {i}", patch * draw(SIZES), patch, kind))
    return made


def scores(axes: Sequence[Axis], head_dim: int, at_q: Tensor, at_k: Tensor) -> Tensor:
    """Attention scores of one random query and key at each pair of positions."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, head_dim, generator=generator)
    q = rotate(q.expand(len(at_q), -1), rotary_embedding(at_q, axes, head_dim))
    k = rotate(k.expand(len(at_k), -1), rotary_embedding(at_k, axes, head_dim))
    return q @ k.T


def places(axes: Sequence[Axis], seed: int, num: int = 4) -> Tensor:
    """Positions anywhere on the axes, not at whole patches alone."""
    sizes = torch.tensor([axis.size / axis.patch for axis in axes], dtype=torch.float64)
    draw = torch.rand(num, len(axes), generator=torch.Generator().manual_seed(seed))
    return draw.double() * sizes


# Laws


@settings(deadline=None)
@given(any_axes(), st.integers(1, 21), st.integers(0, 9), st.floats(-50, 50))
def test_scores_depend_on_differences_only(
    axes: list[Axis], head_dim: int, seed: int, by: float
) -> None:
    q, k = places(axes, seed), places(axes, seed + 1)
    moved = scores(axes, head_dim, q + by, k + by)
    torch.testing.assert_close(moved, scores(axes, head_dim, q, k), atol=2e-5, rtol=0)


@settings(deadline=None)
@given(any_axes(), st.integers(2, 21), st.integers(0, 9))
def test_turning_keeps_every_length(axes: list[Axis], head_dim: int, seed: int) -> None:
    x = torch.randn(4, head_dim, generator=torch.Generator().manual_seed(seed))
    turned = rotate(x, rotary_embedding(places(axes, seed), axes, head_dim))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@settings(deadline=None)
@given(any_axes(["circle"]), st.integers(2, 21), st.integers(0, 9), st.integers(-2, 2))
def test_going_round_a_circle_changes_nothing(
    axes: list[Axis], head_dim: int, seed: int, times: int
) -> None:
    q, k = places(axes, seed), places(axes, seed + 1)
    lengths = torch.tensor([axis.size / axis.patch for axis in axes])
    around = scores(axes, head_dim, q, k + times * lengths)
    torch.testing.assert_close(around, scores(axes, head_dim, q, k), atol=2e-5, rtol=0)


@settings(deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(2, 21), st.integers(-20, 20))
def test_patches_of_a_circle_may_be_counted_from_any_of_them(
    num: int, patch: int, head_dim: int, by: int
) -> None:
    axes = [Axis("longitude", num * patch, patch, "circle")]
    here = token_coords((num * patch,), (patch,))
    there = (here + by) % num  # whole patches, round the seam
    torch.testing.assert_close(
        scores(axes, head_dim, there, there), scores(axes, head_dim, here, here), atol=2e-5, rtol=0
    )


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 10))
def test_patches_of_a_circle_are_all_told_apart(num: int, count: int) -> None:
    angle = torch.arange(num)[:, None] * frequencies(Axis("longitude", num, 1, "circle"), count)
    code = torch.cat([angle.cos(), angle.sin()], dim=1)
    between = torch.cdist(code, code) + torch.eye(num)
    assert between.min() > 1e-3


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 10))
def test_a_circle_turns_by_whole_harmonics_of_its_length(size: int, patch: int, count: int) -> None:
    axis = Axis("longitude", max(size, patch), patch, "circle")
    around = frequencies(axis, count) * axis.size / axis.patch / (2 * pi)
    torch.testing.assert_close(around, around.round(), atol=1e-9, rtol=0)
    assert (around > 0.5).all()  # one that does not turn would tell nothing


@settings(deadline=None)
@given(any_axes(), st.integers(0, 40))
def test_frequencies_are_shared_out_fairly(axes: list[Axis], total: int) -> None:
    shares = share(total, axes)
    ordered = [n for n, axis in zip(shares, axes, strict=True) if axis.kind != "set"]
    assert sum(shares) == sum(ordered) == (total if ordered else 0)
    assert ordered == sorted(ordered, reverse=True)
    assert not ordered or ordered[0] - ordered[-1] <= 1


@settings(deadline=None)
@given(any_axes(["set"]), st.integers(1, 21), st.integers(0, 9))
def test_sets_do_not_turn_and_have_no_fixed_code(
    axes: list[Axis], head_dim: int, seed: int
) -> None:
    x = torch.randn(4, head_dim, generator=torch.Generator().manual_seed(seed))
    at = places(axes, seed)
    assert torch.equal(rotate(x, rotary_embedding(at, axes, head_dim)), x)
    assert not sincos(at, axes, head_dim).any()


@settings(deadline=None)
@given(any_axes(["line", "circle"]), st.integers(0, 3), st.integers(2, 21), st.integers(0, 9))
def test_a_set_among_other_axes_takes_nothing_from_them(
    axes: list[Axis], before: int, head_dim: int, seed: int
) -> None:
    at, before = places(axes, seed), min(before, len(axes))
    more = [*axes[:before], Axis("atom", 9, kind="set"), *axes[before:]]
    with_atom = torch.cat([at[:, :before], torch.rand(4, 1), at[:, before:]], dim=1)
    for code, other in zip(
        (rotary_embedding(at, axes, head_dim), sincos(at, axes, head_dim)),
        (rotary_embedding(with_atom, more, head_dim), sincos(with_atom, more, head_dim)),
        strict=True,
    ):
        assert torch.equal(code, other)


@settings(deadline=None)
@given(any_axes(["circle"]), st.integers(2, 40), st.integers(0, 9), st.integers(-2, 2))
def test_the_fixed_code_of_a_circle_has_no_seam(
    axes: list[Axis], width: int, seed: int, times: int
) -> None:
    at = places(axes, seed)
    lengths = torch.tensor([axis.size / axis.patch for axis in axes])
    torch.testing.assert_close(
        sincos(at + times * lengths, axes, width), sincos(at, axes, width), atol=1e-5, rtol=0
    )


# Known answers


def test_neighbours_across_the_seam_are_as_near_as_any_others() -> None:
    axes = [Axis("longitude", 12, 1, "circle")]
    code = sincos(token_coords((12,), (1,)), axes, 24)
    steps = (code.roll(-1, dims=0) - code).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(12))


def test_a_line_has_a_seam() -> None:
    axes = [Axis("row", 12)]
    at = torch.arange(12.0)[:, None]
    around = scores(axes, 8, at[:1], at[-1:]) - scores(axes, 8, at[1:2], at[:1])
    assert around.abs() > 0.1


def test_a_circle_of_eight_patches_turns_by_these_harmonics() -> None:
    axis = Axis("longitude", 16, 2, "circle")
    assert (frequencies(axis, 3) * 8 / (2 * pi)).tolist() == pytest.approx([4, 2, 1])
    assert (frequencies(axis, 1) * 8 / (2 * pi)).tolist() == pytest.approx([1])


def test_one_pair_on_a_line_turns_by_one_radian_a_patch() -> None:
    turn = rotary_embedding(torch.tensor([[pi / 2]]), [Axis("row", 8)], 2)
    turned = rotate(torch.tensor([[3.0, 4.0]]), turn)
    torch.testing.assert_close(turned, torch.tensor([[-4.0, 3.0]]))
    torch.testing.assert_close(rotate(turned, turn, back=True), torch.tensor([[3.0, 4.0]]))


def test_an_odd_last_feature_is_left_alone() -> None:
    turn = rotary_embedding(torch.tensor([[1.0]]), [Axis("row", 8)], 5)
    assert turn.shape == (1, 2, 2)
    assert rotate(torch.ones(1, 5), turn)[0, 4] == 1


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_waves_prefer_no_direction_and_reach_from_whole_samples_to_details(dims: int) -> None:
    vectors = position_frequencies(8, 8, dims).double()
    lengths = vectors.norm(dim=2)
    assert lengths.min() == pytest.approx(0.3) and lengths.max() == pytest.approx(12)
    assert (lengths.max(dim=1).values > 20 * lengths.min(dim=1).values).all()  # in every head
    vectors, lengths = vectors.flatten(0, 1), lengths.flatten()
    directions = vectors / lengths[:, None]
    assert directions.mean(dim=0).abs().max() < 0.1
    spread = directions.T @ directions / len(directions)
    torch.testing.assert_close(spread, torch.eye(dims).double() / dims, rtol=0, atol=0.05)


def test_a_token_turns_by_the_wave_times_its_place() -> None:
    at, vectors = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, 0.25], [0.0, 1.0]]])
    angles = torch.tensor([[[[1.0, 2.0]]]])  # (B, H, L, P)
    torch.testing.assert_close(rotary_of_positions(at, vectors), cos_sin(angles))


def test_half_precision_does_not_round_where_tokens_lie() -> None:
    at, vectors = 3 * torch.randn(2, 5, 3), position_frequencies(2, 4, 3)
    whole = rotary_of_positions(at, vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary_of_positions(at, vectors), whole)


@pytest.mark.parametrize("back", [False, True])
def test_turning_as_complex_numbers_is_turning_as_pairs(back: bool) -> None:
    x, turn = torch.randn(2, 3, 7, 10), cos_sin(torch.randn(7, 5))
    pairs = rotate(x.double(), turn.double(), back=back)  # float64 has no other
    turned = rotate(x, turn, back=back).double()
    torch.testing.assert_close(turned, pairs, rtol=0, atol=1e-6)


# Agreement with the paper


@pytest.mark.parametrize("head_dim", [4, 20, 64, 80, 104])
def test_rotary_code_of_two_lines_is_the_papers(head_dim: int) -> None:
    side = 16
    freqs = 10_000.0 ** (-2 * np.arange(head_dim // 4) / (head_dim // 2))
    row, column = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([np.outer(row, freqs), np.outer(column, freqs)], axis=1)
    x = np.random.default_rng(0).normal(size=(side * side, head_dim))
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)  # pairs (2i, 2i + 1)
    wanted = np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    axes = [Axis("row", side), Axis("column", side)]
    ours = rotate(
        torch.from_numpy(x), rotary_embedding(token_coords((side, side), (1, 1)), axes, head_dim)
    )
    np.testing.assert_allclose(ours.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("width", [8, 48, 768])
def test_fixed_code_of_two_lines_is_the_papers(width: int) -> None:
    side = 16
    omega = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(side * side), side)
    parts = []
    for place in (column, row):  # the column first, as He et al. 2022 (arXiv:2111.06377) do
        parts += [np.sin(np.outer(place, omega)), np.cos(np.outer(place, omega))]

    axes = [Axis("row", side), Axis("column", side)]
    ours = sincos(token_coords((side, side), (1, 1)), axes, width)
    np.testing.assert_allclose(ours.numpy(), np.concatenate(parts, axis=1), atol=1e-6)
