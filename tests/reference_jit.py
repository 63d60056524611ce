"""JiT once more, written from the paper for square pictures, to compare with.

Names and shapes of the weights are those of the authors' files (github.com/LTH14/JiT); nothing of
jitkit is used. Shapes: B batch, N tokens, H heads, side x side patches of P x P pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Jit:
    """The numbers of a network."""

    width: int
    heads: int
    depth: int = 2
    patch: int = 2
    side: int = 3
    channels: int = 3
    classes: int = 5
    bottleneck: int = 6
    context: int = 2
    context_start: int = 1

    @property
    def input_size(self) -> int:
        return self.side * self.patch


def pos_embed(width: int, side: int) -> Tensor:
    """Sines and cosines of the column, then of the row, (1, N, width)."""
    omega = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    parts = [f(np.outer(place, omega)) for place in (columns, rows) for f in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()[None]


def random_state(jit: Jit, seed: int = 0) -> State:
    """A state dict in which no weight is zero, without ``net.``."""
    rng = torch.Generator().manual_seed(seed)
    width, hidden = jit.width, int(int(4 * jit.width) * 2 / 3)
    out = jit.patch**2 * jit.channels
    shapes: dict[str, tuple[int, ...]] = {
        "t_embedder.mlp.0": (width, 256),
        "t_embedder.mlp.2": (width, width),
        "x_embedder.proj2": (width, jit.bottleneck, 1, 1),
        "final_layer.linear": (out, width),
        "final_layer.adaLN_modulation.1": (2 * width, width),
    }
    for i in range(jit.depth):
        block = f"blocks.{i}"
        shapes |= {
            f"{block}.attn.qkv": (3 * width, width),
            f"{block}.attn.proj": (width, width),
            f"{block}.mlp.w12": (2 * hidden, width),
            f"{block}.mlp.w3": (width, hidden),
            f"{block}.adaLN_modulation.1": (6 * width, width),
        }
    state = {"pos_embed": pos_embed(width, jit.side)}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) / sqrt(shape[1])
        state[f"{name}.bias"] = torch.randn(shape[0], generator=rng) * 0.2
    proj1 = (jit.bottleneck, jit.channels, jit.patch, jit.patch)
    state["x_embedder.proj1.weight"] = torch.randn(proj1, generator=rng) / sqrt(out)
    state["y_embedder.embedding_table.weight"] = torch.randn(jit.classes + 1, width, generator=rng)
    if jit.context:
        state["in_context_posemb"] = torch.randn(1, jit.context, width, generator=rng)
    norms = {"final_layer.norm_final": width}
    for i in range(jit.depth):
        norms |= {f"blocks.{i}.norm{k}": width for k in (1, 2)}
        norms |= {f"blocks.{i}.attn.{k}_norm": width // jit.heads for k in "qk"}
    for name, size in norms.items():
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(size, generator=rng)
    return state


def forward(state: State, jit: Jit, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The clean picture that the network guesses, (B, C, S, S)."""

    def dense(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    angles = t[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
    c = torch.cat([angles.cos(), angles.sin()], dim=1)
    c = dense("t_embedder.mlp.2", F.silu(dense("t_embedder.mlp.0", c)))
    label = state["y_embedder.embedding_table.weight"][y]
    c = F.silu(c + label)

    x = F.conv2d(z, state["x_embedder.proj1.weight"], stride=jit.patch)
    x = F.conv2d(x, state["x_embedder.proj2.weight"], state["x_embedder.proj2.bias"])
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    turn = rotations(jit)
    for i in range(jit.depth):
        name = f"blocks.{i}"
        if jit.context and i == jit.context_start:
            front = label[:, None] + state["in_context_posemb"]
            x = torch.cat([front, x], dim=1)
            turn = torch.cat([torch.ones(jit.context, turn.shape[1]), turn])
        six = dense(f"{name}.adaLN_modulation.1", c)[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six
        h = norm(f"{name}.norm1", x) * (1 + scale_a) + shift_a
        x = x + gate_a * attention(name, h, turn, jit, dense, norm)
        h = norm(f"{name}.norm2", x) * (1 + scale_m) + shift_m
        gate, value = dense(f"{name}.mlp.w12", h).chunk(2, dim=-1)
        x = x + gate_m * dense(f"{name}.mlp.w3", F.silu(gate) * value)
    x = x[:, -(jit.side**2) :]
    shift, scale = dense("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, dim=-1)
    x = dense("final_layer.linear", norm("final_layer.norm_final", x) * (1 + scale) + shift)
    x = x.reshape(-1, jit.side, jit.side, jit.patch, jit.patch, jit.channels)
    x = torch.einsum("byxpqc->bcypxq", x)
    return x.reshape(-1, jit.channels, jit.input_size, jit.input_size)


def rotations(jit: Jit) -> Tensor:
    """What each pair of a head's features is multiplied by, (N, head_dim / 2) complex."""
    head_dim = jit.width // jit.heads
    freqs = 10_000.0 ** (-2 * torch.arange(head_dim // 4) / (head_dim // 2))
    places = torch.arange(jit.side).float()
    rows = places.repeat_interleave(jit.side)
    columns = places.repeat(jit.side)
    angles = torch.cat([rows[:, None] * freqs, columns[:, None] * freqs], dim=1)
    return torch.exp(1j * angles)


def attention(name: str, x: Tensor, turn: Tensor, jit: Jit, dense: Any, norm: Any) -> Tensor:
    """Head by head, with the whole matrix of weights."""
    q, k, v = dense(f"{name}.attn.qkv", x).chunk(3, dim=-1)
    out = []
    for own_q, own_k, own_v in zip(*(n.chunk(jit.heads, dim=-1) for n in (q, k, v)), strict=True):
        own_q = turned(norm(f"{name}.attn.q_norm", own_q), turn)
        own_k = turned(norm(f"{name}.attn.k_norm", own_k), turn)
        scores = own_q @ own_k.transpose(1, 2) / sqrt(own_q.shape[-1])
        out.append(scores.softmax(dim=-1) @ own_v)
    return dense(f"{name}.attn.proj", torch.cat(out, dim=-1))


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Pairs (2i, 2i + 1) as complex numbers, times ``turn``."""
    product = torch.complex(x[..., 0::2], x[..., 1::2]) * turn
    return torch.stack([product.real, product.imag], dim=-1).flatten(-2)
