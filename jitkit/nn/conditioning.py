"""Conditioning: embeddings of each kind of condition, null conditions, condition dropout.

`Category` and `Scalars` become one vector per sample, which is added to the time embedding and
repeated as in-context tokens. `Grid` and `PerToken` become extra input channels beside the noisy
data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jitkit.errors import ConditionError, listed, nearest
from jitkit.fields import Category, Condition, Grid, PerToken, Scalars
from jitkit.nn.layers import linear

PER_TOKEN_CHANNELS = 16


class CategoryEmbedding(nn.Module):
    """Class embedding: a learned vector for each class and one for the null class."""

    def __init__(self, condition: Category, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(condition.n + 1, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, value: Tensor) -> Tensor:
        """(B,) -> (B, W)."""
        return self.table(value)


class ScalarsEmbedding(nn.Module):
    """Scalars and their mask (1 where known) through a two-layer MLP."""

    def __init__(self, condition: Scalars, width: int) -> None:
        super().__init__()
        self.layer1 = linear(2 * len(condition.names), width)
        self.layer2 = linear(width, width)
        nn.init.normal_(self.layer2.weight, std=0.02)

    def forward(self, value: Tensor) -> Tensor:
        """(B, number of names), NaN where unknown -> (B, W)."""
        return self.layer2(F.silu(self.layer1(with_mask(value))))


class PerTokenEmbedding(nn.Module):
    """A learned vector of `PER_TOKEN_CHANNELS` for the category of each cell, and a null vector."""

    def __init__(self, condition: PerToken) -> None:
        super().__init__()
        self.table = nn.Embedding(condition.n + 1, PER_TOKEN_CHANNELS)

    def forward(self, value: Tensor) -> Tensor:
        """(B, X1..Xn) -> (B, PER_TOKEN_CHANNELS, X1..Xn)."""
        return self.table(value).movedim(-1, 1)


def with_mask(value: Tensor) -> Tensor:
    """(B, C, ...) with NaN -> (B, 2 C, ...): values with zeros for NaN, then 1 where known.

    The weights of the second half are a learned fill value: a linear map of both halves can
    replace a missing value by any other.
    """
    known = torch.isfinite(value)
    return torch.cat((torch.where(known, value, 0.0), known.to(value.dtype)), dim=1)


def embedding_module(condition: Condition, width: int) -> nn.Module | None:
    """The module that embeds a condition as one vector; None for `Grid` and `PerToken`."""
    if isinstance(condition, Category):
        return CategoryEmbedding(condition, width)
    if isinstance(condition, Scalars):
        return ScalarsEmbedding(condition, width)
    return None


def num_channels(condition: Condition) -> int:
    """Number of input channels of a condition; 0 for `Category` and `Scalars`."""
    if isinstance(condition, Grid):
        return 2 * len(condition.channels)
    return PER_TOKEN_CHANNELS if isinstance(condition, PerToken) else 0


def null_condition(condition: Condition, value: Tensor) -> Tensor:
    """The null condition in the shape of ``value``: class n, or NaN for scalars and grids."""
    if isinstance(condition, Category | PerToken):
        return torch.full_like(value, condition.n)
    return torch.full_like(value, torch.nan)


def drop(
    conditions: Mapping[str, Condition], cond: Mapping[str, Tensor], draws: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Condition dropout for classifier-free guidance (CFG), independent per sample and condition.

    Args:
        conditions: the model's conditions.
        cond: a value for each of them, (B, ...).
        draws: uniform on [0, 1) for each, (B,); below ``drop`` the condition becomes null.
    """
    dropped = {}
    for name, condition in conditions.items():
        value = cond[name]
        is_null = (draws[name].to(value.device) < condition.drop).reshape(
            -1, *[1] * (value.ndim - 1)
        )
        dropped[name] = torch.where(is_null, null_condition(condition, value), value)
    return dropped


def prepare(
    conditions: Mapping[str, Condition],
    cond: Mapping[str, Any] | None,
    *,
    n: int,
    grid: tuple[int, ...],
    device: torch.device,
) -> dict[str, Tensor]:
    """Check a user's conditions and expand them to (n, ...) on a device.

    A value without batch axis is used for all samples. A condition that is left out becomes the
    null condition if the model was trained with condition dropout.

    Raises:
        ConditionError: an unknown name, a wrong shape, a class out of range, or a missing
            condition that was never dropped in training.
    """
    cond = cond or {}
    for name in cond:
        if name not in conditions:
            known = f"it knows {listed(conditions)}" if conditions else "it takes none"
            raise ConditionError(f"the model has no condition {name!r}; {known}"
                                 f"{nearest(name, conditions)}")  # fmt: skip
    ready = {}
    for name, condition in conditions.items():
        shape = _shape(condition, grid)
        integer = isinstance(condition, Category | PerToken)
        dtype = torch.long if integer else torch.float32
        if cond.get(name) is None:
            if condition.drop == 0:
                raise ConditionError(
                    f"condition {name!r} is missing, and the model was never trained without it"
                )
            value = null_condition(condition, torch.zeros(n, *shape, dtype=dtype, device=device))
        else:
            given = _tensor(name, cond[name])
            if integer and (given.is_floating_point() or given.dtype is torch.bool):
                raise ConditionError(f"condition {name!r} is a category: whole numbers, not "
                                     f"{given.dtype}")  # fmt: skip
            value = given.to(device, dtype)
            if tuple(value.shape) == shape:
                value = value.expand(n, *shape)
            if tuple(value.shape) != (n, *shape):
                raise ConditionError(
                    f"condition {name!r} has shape {tuple(value.shape)}; expected {(n, *shape)}, "
                    f"or {shape} for all samples alike"
                )
            if isinstance(condition, Category | PerToken):
                _check_range(name, condition, value)
        ready[name] = value
    return ready


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConditionError(f"condition {name!r} is not numeric: {value!r}") from None


def _shape(condition: Condition, grid: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a condition's value without the batch."""
    match condition:
        case Category():
            return ()
        case Scalars(names=names):
            return (len(names),)
        case Grid(channels=channels):
            return (len(channels), *grid)
        case PerToken():
            return grid


def _check_range(name: str, condition: Category | PerToken, value: Tensor) -> None:
    low, high = (int(v) for v in value.aminmax()) if value.numel() else (0, 0)
    if low < 0 or high > condition.n:
        wrong = low if low < 0 else high
        raise ConditionError(
            f"condition {name!r}: {wrong} is not a class; classes are 0 to {condition.n - 1}, "
            f"and {condition.n} for none"
        )
