"""Patchify and unpatchify for any number of axes, padding, token coordinates and token masks.

A token is one patch of the grid. Tokens and the features of a token are in row-major order,
channels first: token (i1..in) holds (C, P1..Pn). Grids that the patch does not tile are padded at
the end of each axis, and the output is cropped.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from jitkit.errors import JitkitError


def _pattern(num_axes: int) -> tuple[str, str]:
    """Both sides of the einops pattern: b c (x1 p1) (x2 p2) -> b (x1 x2) (c p1 p2)."""
    axes = range(num_axes)
    grid = " ".join(f"(x{i} p{i})" for i in axes)
    tokens, cells = " ".join(f"x{i}" for i in axes), " ".join(f"p{i}" for i in axes)
    return f"b c {grid}", f"b ({tokens}) (c {cells})"


def _check_tiles(grid: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if len(grid) != len(patch):
        raise JitkitError(
            f"patch {patch} has {len(patch)} numbers, but grid {grid} has {len(grid)} axes"
        )
    for axis, (size, p) in enumerate(zip(grid, patch, strict=True)):
        if size % p:
            down, up = size // p * p, padded_size(size, p)
            crop = f"crop to {down} or pad to {up}" if down else f"pad to {up}"
            raise JitkitError(
                f"patch {patch} does not tile grid {grid}: "
                f"axis {axis} has {size} cells, not a multiple of {p}; {crop}"
            )


def padded_size(size: int, patch: int) -> int:
    """Size of an axis padded to whole patches."""
    return -(-size // patch) * patch


def padded_grid(grid: tuple[int, ...], patch: tuple[int, ...]) -> tuple[int, ...]:
    """Grid padded to whole patches."""
    return tuple(padded_size(size, p) for size, p in zip(grid, patch, strict=True))


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C, X1..Xn) -> (B, L, D) with D = C P1..Pn.

    Raises:
        JitkitError: the patch does not tile the grid; `pad` first.
    """
    grid = tuple(x.shape[2:])
    _check_tiles(grid, tuple(patch))
    left, right = _pattern(len(patch))
    return rearrange(x, f"{left} -> {right}", **{f"p{i}": p for i, p in enumerate(patch)})


def unpatchify(tokens: Tensor, patch: tuple[int, ...], grid: tuple[int, ...]) -> Tensor:
    """Inverse of `patchify`: (B, L, D) -> (B, C, X1..Xn).

    Raises:
        JitkitError: the patch does not tile the grid, or the tokens do not fill it.
    """
    grid, patch = tuple(grid), tuple(patch)
    _check_tiles(grid, patch)
    counts = [size // p for size, p in zip(grid, patch, strict=True)]
    if tokens.shape[1] != prod(counts) or tokens.shape[2] % prod(patch):
        raise JitkitError(
            f"tokens {tuple(tokens.shape)} do not fill grid {grid} in patches {patch}: "
            f"expected (B, {prod(counts)}, a multiple of {prod(patch)})"
        )
    left, right = _pattern(len(patch))
    sizes = {f"p{i}": p for i, p in enumerate(patch)} | {f"x{i}": n for i, n in enumerate(counts)}
    return rearrange(tokens, f"{right} -> {left}", **sizes)


def pad(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Zero-pad (masks: False) each axis of (B, C, X1..Xn) at its end to whole patches."""
    grid = tuple(x.shape[2:])
    target = padded_grid(grid, patch)
    if grid == target:
        return x
    ends = [(0, new - old) for old, new in zip(grid, target, strict=True)]
    return F.pad(x, [n for end in reversed(ends) for n in end])  # torch counts from the last axis


def crop(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Crop (B, C, X1..Xn) to the first cells of each axis: the inverse of `pad`."""
    if tuple(x.shape[2:]) == tuple(grid):
        return x
    for axis, size in enumerate(grid, start=2):
        x = x.narrow(axis, 0, size)
    return x


def token_mask(mask: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C or 1, X1..Xn) bool on whole patches -> (B, L), True where a token has any data."""
    return patchify(mask, patch).any(dim=-1)


def token_coords(grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """Coordinates of tokens in units of patches: (L, n) float64.

    >>> token_coords((4, 6), (2, 3)).tolist()
    [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    sizes = [s // p for s, p in zip(padded_grid(grid, patch), patch, strict=True)]
    ranges = [torch.arange(size, dtype=torch.float64) for size in sizes]
    return torch.stack(torch.meshgrid(*ranges, indexing="ij"), dim=-1).reshape(-1, len(sizes))


def extend_coords(coords: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Extend coordinates of cells, (n, X1..Xn) or (B, n, X1..Xn), to a larger grid.

    Cells past the end of an axis continue by the step of the last two, or by 1 from a single cell.
    """
    num_axes = len(grid)
    for i, size in enumerate(grid):
        axis = coords.ndim - num_axes + i
        missing = size - coords.shape[axis]
        if missing <= 0:
            continue
        last = coords.narrow(axis, coords.shape[axis] - 1, 1)
        if coords.shape[axis] > 1:
            step = last - coords.narrow(axis, coords.shape[axis] - 2, 1)
        else:
            unit = torch.eye(num_axes, dtype=coords.dtype, device=coords.device)[i]
            step = unit.reshape(num_axes, *[1] * num_axes)
        coords = torch.cat([coords, *(last + step * (k + 1) for k in range(missing))], axis)
    return coords


def token_coords_from_cells(
    coords: Tensor, patch: tuple[int, ...], lengths: tuple[int | None, ...] | None = None
) -> Tensor:
    """Coordinates of cells, (B, X1..Xn, n) in cells -> of tokens, (B, L, n) in patches.

    A token is at the mean of its cells; cells at 0, 1, 2, ... give `token_coords`.

    Args:
        coords: coordinates of the cells.
        patch: cells of a token along each axis.
        lengths: circumference in cells of each `circle` axis, None for the others. The mean of a
            token across the seam is taken along the circle.
    """
    x = coords.movedim(-1, 1).double()
    x = extend_coords(x, padded_grid(tuple(x.shape[2:]), patch))
    size = torch.tensor(patch, dtype=x.dtype, device=x.device)
    cells = rearrange(patchify(x, patch), "b l (n cells) -> b l n cells", n=len(patch))
    for i, length in enumerate(lengths or ()):
        if length is not None and patch[i] <= length / 2:
            first = cells[:, :, i, :1]
            cells[:, :, i] = first + (cells[:, :, i] - first + length / 2) % length - length / 2
    return (cells.mean(dim=-1) - (size - 1) / 2) / size
