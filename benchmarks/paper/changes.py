"""Models that are not JiT, for comparison: changes to a `Denoiser` that keep its parameter names.

Each is a hook or a constant, so that the same code trains, saves, loads and samples the model; a
loaded model must be changed again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from jitkit.diffusion.denoiser import Denoiser
from jitkit.nn.layers import Attention

SIGMA_DATA = 0.5  # as in EDM and in the paper

Scales = Callable[[Tensor], tuple[Tensor, Tensor]]


def edm(t: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of z and of the network in x_hat (Karras et al. 2022, arXiv:2206.00364, table 1).

    EDM's are for y = z / t with noise of standard deviation sigma = (1 - t) / t:
    c_skip = s² / (sigma² + s²), c_out = sigma s / √(sigma² + s²), s = sigma_data. The fractions are
    expanded so that nothing is divided by t.
    """
    noise, data = 1 - t, t * SIGMA_DATA
    total = noise.square() + data.square()
    return t * SIGMA_DATA**2 / total, noise * SIGMA_DATA / total.sqrt()


def linear(t: Tensor) -> tuple[Tensor, Tensor]:
    """The same for c_skip = t and c_out = 1 - t."""
    return t, 1 - t


def precondition(scales: Scales) -> Callable[[Denoiser], None]:
    """Let a model predict x_hat = skip(t) z + out(t) network(z, t); it uses x-prediction."""

    def change(denoiser: Denoiser) -> None:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            z, t = inputs[:2]
            skip, out = (each.reshape(-1, *[1] * (z.ndim - 1)) for each in scales(t))
            return skip * z + out * output

        denoiser.network.register_forward_hook(hook)

    return change


def without_rope(denoiser: Denoiser) -> None:
    """Remove the rotary embedding and the norm of queries and keys; keep the fixed embedding."""

    def bare(attention: Attention, x: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = attention.qkv(x).unflatten(-1, (3, attention.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return q * q.shape[-1] ** -0.5, k, v

    for attention in denoiser.network.modules():
        if isinstance(attention, Attention):
            attention.queries_keys_values = partial(bare, attention)  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[Denoiser], None]] = {
    "edm": precondition(edm),
    "linear": precondition(linear),
    "without-rope": without_rope,
}
