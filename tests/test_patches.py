"""Patchify and unpatchify, padding, token coordinates and masks."""

from __future__ import annotations

import re
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jitkit.errors import JitkitError
from jitkit.nn.patches import (
    crop,
    pad,
    padded_grid,
    patchify,
    token_coords,
    token_coords_from_cells,
    token_mask,
    unpatchify,
)

Case = tuple[Tensor, tuple[int, ...]]


def numbered(*shape: int) -> Tensor:
    """An array whose cells all differ."""
    return torch.arange(prod(shape)).reshape(shape)


@st.composite
def tiled(draw: st.DrawFn) -> Case:
    """An array of one to four axes whose cells all differ, and a patch that tiles it."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    patch, tiles = zip(*draw(st.lists(pair, min_size=1, max_size=4)), strict=True)
    grid = (p * k for p, k in zip(patch, tiles, strict=True))
    return numbered(draw(st.integers(1, 2)), draw(st.integers(1, 3)), *grid), patch


@st.composite
def any_size(draw: st.DrawFn) -> Case:
    """An array of one to four axes and a patch that may not tile it, or be larger."""
    pair = st.tuples(st.integers(1, 5), st.integers(1, 4))
    grid, patch = zip(*draw(st.lists(pair, min_size=1, max_size=4)), strict=True)
    return numbered(draw(st.integers(1, 2)), draw(st.integers(1, 3)), *grid), patch


def positions(grid: tuple[int, ...], batch: int = 1) -> Tensor:
    """Cells at 0, 1, 2, ... along each axis, (B, X1..Xn, n)."""
    lines = torch.meshgrid(*(torch.arange(float(size)) for size in grid), indexing="ij")
    return torch.stack(lines, dim=-1).expand(batch, *grid, len(grid))


# Laws


@settings(deadline=None)
@given(tiled())
def test_unpatchify_undoes_patchify(case: Case) -> None:
    x, patch = case
    assert torch.equal(unpatchify(patchify(x, patch), patch, tuple(x.shape[2:])), x)


@settings(deadline=None)
@given(any_size())
def test_a_grid_of_any_size_survives_padding_and_cropping(case: Case) -> None:
    x, patch = case
    grid = tuple(x.shape[2:])
    tokens = patchify(pad(x, patch), patch)
    assert torch.equal(crop(unpatchify(tokens, patch, padded_grid(grid, patch)), grid), x)


@settings(deadline=None)
@given(tiled())
def test_a_token_holds_the_cells_at_its_coordinates_channels_first(case: Case) -> None:
    x, patch = case
    coords = token_coords(tuple(x.shape[2:]), patch).long().tolist()
    for token, position in zip(patchify(x, patch).unbind(1), coords, strict=True):
        cells = [slice(i * p, (i + 1) * p) for i, p in zip(position, patch, strict=True)]
        assert torch.equal(token, x[:, :, *cells].flatten(1))


@settings(deadline=None)
@given(any_size())
def test_padding_is_less_than_a_patch_and_holds_zeros(case: Case) -> None:
    x, patch = case
    padded = pad(x + 1, patch)
    for new, old, p in zip(padded.shape[2:], x.shape[2:], patch, strict=True):
        assert new % p == 0 and 0 <= new - old < p
    assert (padded != 0).sum() == x.numel()


@settings(deadline=None)
@given(any_size())
def test_cells_at_0_1_2_give_the_token_coords_of_the_grid(case: Case) -> None:
    x, patch = case
    grid = tuple(x.shape[2:])
    coords = token_coords_from_cells(positions(grid, len(x)), patch)
    assert torch.equal(coords, token_coords(grid, patch).expand(len(x), -1, -1))


@settings(deadline=None)
@given(any_size(), st.integers(-3, 3))
def test_shifting_cells_by_whole_patches_shifts_tokens_equally(case: Case, by: int) -> None:
    x, patch = case
    cells = positions(tuple(x.shape[2:]))
    moved = token_coords_from_cells(cells + by * torch.tensor(patch), patch)
    assert torch.allclose(moved, token_coords_from_cells(cells, patch) + by)


# Known answers


def test_tokens_of_a_small_grid() -> None:
    x = numbered(1, 1, 4, 6)
    assert patchify(x, (2, 3)).tolist() == [
        [
            [0, 1, 2, 6, 7, 8],
            [3, 4, 5, 9, 10, 11],
            [12, 13, 14, 18, 19, 20],
            [15, 16, 17, 21, 22, 23],
        ]
    ]
    assert token_coords((4, 6), (2, 3)).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_the_last_token_may_reach_past_the_end() -> None:
    assert padded_grid((5, 6), (2, 3)) == (6, 6)
    assert token_coords((5,), (2,)).tolist() == [[0], [1], [2]]


def test_a_tiled_grid_is_neither_padded_nor_cropped() -> None:
    x = numbered(1, 2, 4, 6)
    assert pad(x, (2, 3)) is x and crop(x, (4, 6)) is x


def test_a_token_has_data_if_any_of_its_cells_and_channels_has() -> None:
    mask = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    mask[0, 1, 3, 0] = mask[0, 0, 0, 5] = True
    assert token_mask(mask, (2, 3)).tolist() == [[False, True, True, False]]


def test_padding_of_a_mask_has_no_data() -> None:
    mask = torch.ones(1, 1, 3, dtype=torch.bool)
    assert pad(mask, (2,)).tolist() == [[[True, True, True, False]]]


def test_a_token_is_at_the_mean_of_its_cells() -> None:
    cells = torch.tensor([0.0, 2.0, 7.0, 9.0]).reshape(1, 4, 1)
    assert token_coords_from_cells(cells, (1,)).flatten().tolist() == [0, 2, 7, 9]
    assert token_coords_from_cells(cells, (2,)).flatten().tolist() == [
        0.25,
        3.75,
    ]  # (1 - .5)/2, (8 - .5)/2


def test_cells_past_the_end_continue_by_the_last_step() -> None:
    cells = torch.tensor([0.0, 1.0, 4.0]).reshape(1, 3, 1)  # and 7
    assert token_coords_from_cells(cells, (2,)).flatten().tolist() == [0, 2.5]


# Errors


@pytest.mark.parametrize(
    ("grid", "patch", "text"),
    [
        (
            (8, 6),
            (4, 4),
            "patch (4, 4) does not tile grid (8, 6): axis 1 has 6 cells, not a multiple of 4; "
            "crop to 4 or pad to 8",
        ),
        (
            (3,),
            (4,),
            "patch (4,) does not tile grid (3,): axis 0 has 3 cells, not a multiple of 4; pad to 4",
        ),
        ((8, 6), (4,), "patch (4,) has 1 numbers, but grid (8, 6) has 2 axes"),
    ],
)
def test_a_patch_that_does_not_fit_the_grid_is_refused(
    grid: tuple[int, ...], patch: tuple[int, ...], text: str
) -> None:
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        patchify(numbered(1, 1, *grid), patch)
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        unpatchify(numbered(1, 1, 4), patch, grid)


@pytest.mark.parametrize("shape", [(1, 5, 8), (1, 6, 9)])
def test_tokens_that_do_not_fill_the_grid_are_refused(shape: tuple[int, ...]) -> None:
    text = f"tokens {shape} do not fill grid (4, 6) in patches (2, 2): expected (B, 6, a multiple"
    with pytest.raises(JitkitError, match=re.escape(text)):
        unpatchify(torch.zeros(shape), (2, 2), (4, 6))
