"""Rotary and sine-cosine position embeddings on lines, circles and sets."""

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
    axis_frequencies,
    cos_sin,
    frequencies_per_axis,
    position_frequencies,
    rotary_embedding,
    rotary_of_positions,
    rotate,
    sincos_embedding,
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


def positions(axes: Sequence[Axis], seed: int, num: int = 4) -> Tensor:
    """Random positions on the axes, not only at whole patches."""
    sizes = torch.tensor([axis.size / axis.patch for axis in axes], dtype=torch.float64)
    draw = torch.rand(num, len(axes), generator=torch.Generator().manual_seed(seed))
    return draw.double() * sizes


# Laws


@settings(deadline=None)
@given(any_axes(), st.integers(1, 21), st.integers(0, 9), st.floats(-50, 50))
def test_scores_depend_on_relative_positions_only(
    axes: list[Axis], head_dim: int, seed: int, by: float
) -> None:
    q, k = positions(axes, seed), positions(axes, seed + 1)
    moved = scores(axes, head_dim, q + by, k + by)
    torch.testing.assert_close(moved, scores(axes, head_dim, q, k), atol=2e-5, rtol=0)


@settings(deadline=None)
@given(any_axes(), st.integers(2, 21), st.integers(0, 9))
def test_rotation_preserves_norms(axes: list[Axis], head_dim: int, seed: int) -> None:
    x = torch.randn(4, head_dim, generator=torch.Generator().manual_seed(seed))
    rotated = rotate(x, rotary_embedding(positions(axes, seed), axes, head_dim))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))


@settings(deadline=None)
@given(any_axes(["circle"]), st.integers(2, 21), st.integers(0, 9), st.integers(-2, 2))
def test_full_turns_on_a_circle_change_nothing(
    axes: list[Axis], head_dim: int, seed: int, times: int
) -> None:
    q, k = positions(axes, seed), positions(axes, seed + 1)
    lengths = torch.tensor([axis.size / axis.patch for axis in axes])
    around = scores(axes, head_dim, q, k + times * lengths)
    torch.testing.assert_close(around, scores(axes, head_dim, q, k), atol=2e-5, rtol=0)


@settings(deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(2, 21), st.integers(-20, 20))
def test_the_origin_on_a_circle_is_arbitrary(num: int, patch: int, head_dim: int, by: int) -> None:
    axes = [Axis("longitude", num * patch, patch, "circle")]
    here = token_coords((num * patch,), (patch,))
    there = (here + by) % num  # whole patches, across the seam
    torch.testing.assert_close(
        scores(axes, head_dim, there, there), scores(axes, head_dim, here, here), atol=2e-5, rtol=0
    )


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 10))
def test_patches_of_a_circle_have_distinct_embeddings(num: int, count: int) -> None:
    angle = torch.arange(num)[:, None] * axis_frequencies(
        Axis("longitude", num, 1, "circle"), count
    )
    embedding = torch.cat([angle.cos(), angle.sin()], dim=1)
    distances = torch.cdist(embedding, embedding) + torch.eye(num)
    assert distances.min() > 1e-3


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 10))
def test_frequencies_of_a_circle_are_integer_harmonics(size: int, patch: int, count: int) -> None:
    axis = Axis("longitude", max(size, patch), patch, "circle")
    harmonics = axis_frequencies(axis, count) * axis.size / axis.patch / (2 * pi)
    torch.testing.assert_close(harmonics, harmonics.round(), atol=1e-9, rtol=0)
    assert (harmonics > 0.5).all()  # frequency 0 would carry no information


@settings(deadline=None)
@given(any_axes(), st.integers(0, 40))
def test_frequencies_are_divided_evenly_among_axes(axes: list[Axis], total: int) -> None:
    counts = frequencies_per_axis(total, axes)
    ordered = [n for n, axis in zip(counts, axes, strict=True) if axis.kind != "set"]
    assert sum(counts) == sum(ordered) == (total if ordered else 0)
    assert ordered == sorted(ordered, reverse=True)
    assert not ordered or ordered[0] - ordered[-1] <= 1


@settings(deadline=None)
@given(any_axes(["set"]), st.integers(1, 21), st.integers(0, 9))
def test_sets_have_no_position_embedding(axes: list[Axis], head_dim: int, seed: int) -> None:
    x = torch.randn(4, head_dim, generator=torch.Generator().manual_seed(seed))
    at = positions(axes, seed)
    assert torch.equal(rotate(x, rotary_embedding(at, axes, head_dim)), x)
    assert not sincos_embedding(at, axes, head_dim).any()


@settings(deadline=None)
@given(any_axes(["line", "circle"]), st.integers(0, 3), st.integers(2, 21), st.integers(0, 9))
def test_a_set_axis_does_not_change_the_embedding_of_other_axes(
    axes: list[Axis], before: int, head_dim: int, seed: int
) -> None:
    at, before = positions(axes, seed), min(before, len(axes))
    more = [*axes[:before], Axis("atom", 9, kind="set"), *axes[before:]]
    with_atom = torch.cat([at[:, :before], torch.rand(4, 1), at[:, before:]], dim=1)
    for embedding, other in zip(
        (rotary_embedding(at, axes, head_dim), sincos_embedding(at, axes, head_dim)),
        (rotary_embedding(with_atom, more, head_dim), sincos_embedding(with_atom, more, head_dim)),
        strict=True,
    ):
        assert torch.equal(embedding, other)


@settings(deadline=None)
@given(any_axes(["circle"]), st.integers(2, 40), st.integers(0, 9), st.integers(-2, 2))
def test_the_sincos_embedding_of_a_circle_has_no_seam(
    axes: list[Axis], width: int, seed: int, times: int
) -> None:
    at = positions(axes, seed)
    lengths = torch.tensor([axis.size / axis.patch for axis in axes])
    torch.testing.assert_close(
        sincos_embedding(at + times * lengths, axes, width),
        sincos_embedding(at, axes, width),
        atol=1e-5,
        rtol=0,
    )


# Known answers


def test_neighbours_across_the_seam_are_as_close_as_others() -> None:
    axes = [Axis("longitude", 12, 1, "circle")]
    embedding = sincos_embedding(token_coords((12,), (1,)), axes, 24)
    steps = (embedding.roll(-1, dims=0) - embedding).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand(12))


def test_a_line_has_a_seam() -> None:
    axes = [Axis("row", 12)]
    at = torch.arange(12.0)[:, None]
    around = scores(axes, 8, at[:1], at[-1:]) - scores(axes, 8, at[1:2], at[:1])
    assert around.abs() > 0.1


def test_harmonics_of_a_circle_of_eight_patches() -> None:
    axis = Axis("longitude", 16, 2, "circle")
    assert (axis_frequencies(axis, 3) * 8 / (2 * pi)).tolist() == pytest.approx([4, 2, 1])
    assert (axis_frequencies(axis, 1) * 8 / (2 * pi)).tolist() == pytest.approx([1])


def test_one_pair_on_a_line_rotates_by_one_radian_per_patch() -> None:
    rotary = rotary_embedding(torch.tensor([[pi / 2]]), [Axis("row", 8)], 2)
    rotated = rotate(torch.tensor([[3.0, 4.0]]), rotary)
    torch.testing.assert_close(rotated, torch.tensor([[-4.0, 3.0]]))
    torch.testing.assert_close(rotate(rotated, rotary, back=True), torch.tensor([[3.0, 4.0]]))


def test_an_odd_last_feature_is_not_rotated() -> None:
    rotary = rotary_embedding(torch.tensor([[1.0]]), [Axis("row", 8)], 5)
    assert rotary.shape == (1, 2, 2)
    assert rotate(torch.ones(1, 5), rotary)[0, 4] == 1


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_position_frequencies_are_isotropic_and_span_the_range(dims: int) -> None:
    frequencies = position_frequencies(8, 8, dims).double()
    lengths = frequencies.norm(dim=2)
    assert lengths.min() == pytest.approx(0.3) and lengths.max() == pytest.approx(12)
    assert (lengths.max(dim=1).values > 20 * lengths.min(dim=1).values).all()  # in every head
    frequencies, lengths = frequencies.flatten(0, 1), lengths.flatten()
    directions = frequencies / lengths[:, None]
    assert directions.mean(dim=0).abs().max() < 0.1
    spread = directions.T @ directions / len(directions)
    torch.testing.assert_close(spread, torch.eye(dims).double() / dims, rtol=0, atol=0.05)


def test_the_angle_is_the_frequency_times_the_position() -> None:
    at, frequencies = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, 0.25], [0.0, 1.0]]])
    angles = torch.tensor([[[[1.0, 2.0]]]])  # (B, H, L, P)
    torch.testing.assert_close(rotary_of_positions(at, frequencies), cos_sin(angles))


def test_autocast_does_not_round_positions() -> None:
    at, frequencies = 3 * torch.randn(2, 5, 3), position_frequencies(2, 4, 3)
    whole = rotary_of_positions(at, frequencies)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary_of_positions(at, frequencies), whole)


@pytest.mark.parametrize("back", [False, True])
def test_complex_rotation_equals_rotation_of_pairs(back: bool) -> None:
    x, rotary = torch.randn(2, 3, 7, 10), cos_sin(torch.randn(7, 5))
    pairs = rotate(x.double(), rotary.double(), back=back)  # float64 always uses pairs
    rotated = rotate(x, rotary, back=back).double()
    torch.testing.assert_close(rotated, pairs, rtol=0, atol=1e-6)


# Agreement with the paper


@pytest.mark.parametrize("head_dim", [4, 20, 64, 80, 104])
def test_the_rotary_embedding_of_two_lines_is_the_papers(head_dim: int) -> None:
    side = 16
    freqs = 10_000.0 ** (-2 * np.arange(head_dim // 4) / (head_dim // 2))
    row, column = np.divmod(np.arange(side * side), side)
    angles = np.concatenate([np.outer(row, freqs), np.outer(column, freqs)], axis=1)
    x = np.random.default_rng(0).normal(size=(side * side, head_dim))
    rotated = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angles)  # pairs (2i, 2i + 1)
    expected = np.stack([rotated.real, rotated.imag], axis=-1).reshape(x.shape)

    axes = [Axis("row", side), Axis("column", side)]
    ours = rotate(
        torch.from_numpy(x), rotary_embedding(token_coords((side, side), (1, 1)), axes, head_dim)
    )
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("width", [8, 48, 768])
def test_the_sincos_embedding_of_two_lines_is_the_papers(width: int) -> None:
    side = 16
    omega = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(side * side), side)
    parts = []
    for position in (column, row):  # the column first, as in He et al. 2022 (arXiv:2111.06377)
        parts += [np.sin(np.outer(position, omega)), np.cos(np.outer(position, omega))]

    axes = [Axis("row", side), Axis("column", side)]
    ours = sincos_embedding(token_coords((side, side), (1, 1)), axes, width)
    np.testing.assert_allclose(ours.numpy(), np.concatenate(parts, axis=1), atol=1e-6)
