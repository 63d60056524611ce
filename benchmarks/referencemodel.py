"""Network of the plain JiT reference, written from the paper; `reference` trains and samples it.

Square images with classes, as in Li & He 2025 (arXiv:2511.13720). Every part is written explicitly
in float32: norms, rotary embedding, attention with its full matrix of weights, a linear layer for
the modulation of each block. Names and shapes of the parameters are those of the official
checkpoints (github.com/LTH14/JiT); nothing of jitkit is used.

Shapes: B batch, N tokens, W width, H heads, F features of a head, side x side patches of P x P.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Jit:
    """Sizes of a model; the hidden width of SwiGLU is 8/3 of the width by default."""

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
    hidden: int | None = None
    noise_scale: float = 1.0
    t_eps: float = 0.05

    @property
    def input_size(self) -> int:
        """Pixels along a side of the image."""
        return self.side * self.patch


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + 1e-6), times a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Rope(nn.Module):
    """Rotary embedding of two axes: half of a head is rotated by the row, half by the column."""

    cos: Tensor
    sin: Tensor

    def __init__(self, features: int, side: int, in_front: int) -> None:
        super().__init__()
        rates = 10_000.0 ** (-2 * torch.arange(features // 4) / (features // 2))
        place = torch.arange(side).float()
        rows, columns = place.repeat_interleave(side), place.repeat(side)
        angle = torch.cat([rows[:, None] * rates, columns[:, None] * rates], dim=1)
        angle = F.pad(angle.repeat_interleave(2, dim=1), (0, 0, in_front, 0))  # not rotated
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate each pair of features (2i, 2i + 1), (B, H, N, F) to the same shape."""
        first, second = x[..., 0::2], x[..., 1::2]
        turned = torch.stack([-second, first], dim=-1).flatten(-2)
        return x * self.cos + turned * self.sin


class Attention(nn.Module):
    """softmax(q k^T / sqrt(F)) v, with normalized and rotated queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, H, N, F)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        weights = (q @ k.transpose(-2, -1) / sqrt(q.shape[-1])).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class SwiGLU(nn.Module):
    """w3(silu(gate) value)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift; shift and scale are (B, W)."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def modulation(width: int, parts: int) -> nn.Sequential:
    """A linear layer from the condition to a number of modulation vectors."""
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    """Attention and SwiGLU, modulated and gated by the condition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = SwiGLU(width, hidden)
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x: Tensor, c: Tensor, rope: Rope) -> Tensor:
        """(B, N, W) -> (B, N, W); c (B, W)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, -1)
        x = x + gate_a.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_a, scale_a), rope)
        return x + gate_m.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class PatchEmbedder(nn.Module):
    """A convolution over each patch (the bottleneck), then a linear layer per token."""

    def __init__(self, jit: Jit) -> None:
        super().__init__()
        self.proj1 = nn.Conv2d(jit.channels, jit.bottleneck, jit.patch, jit.patch, bias=False)
        self.proj2 = nn.Conv2d(jit.bottleneck, jit.width, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, N, W)."""
        return self.proj2(self.proj1(z)).flatten(2).transpose(1, 2)


class TimeEmbedder(nn.Module):
    """128 cosines and 128 sines of the time, then two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, W)."""
        angle = t[:, None] * 10_000.0 ** (-torch.arange(128) / 128)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=1))


class LabelEmbedder(nn.Module):
    """A vector for each class; the last one is the null class."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        """(B,) -> (B, W)."""
        return self.embedding_table(y)


class FinalLayer(nn.Module):
    """Tokens to the pixels of their patches."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = nn.Linear(width, features)
        self.adaLN_modulation = modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, P P C); c (B, W)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class JiT(nn.Module):
    """The complete network; default initialization, because weights are replaced."""

    def __init__(self, jit: Jit) -> None:
        super().__init__()
        self.jit, width = jit, jit.width
        self.t_embedder = TimeEmbedder(width)
        self.y_embedder = LabelEmbedder(jit.classes, width)
        self.x_embedder = PatchEmbedder(jit)
        self.pos_embed = nn.Parameter(pos_embed(width, jit.side), requires_grad=False)
        if jit.context:
            self.in_context_posemb = nn.Parameter(torch.zeros(1, jit.context, width))
        hidden = jit.hidden or int(int(4 * width) * 2 / 3)
        self.blocks = nn.ModuleList(Block(width, jit.heads, hidden) for _ in range(jit.depth))
        self.final_layer = FinalLayer(width, jit.patch**2 * jit.channels)
        self.rope = Rope(width // jit.heads, jit.side, 0)
        self.rope_in_context = Rope(width // jit.heads, jit.side, jit.context)

    def forward(self, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Prediction of the clean image.

        Args:
            z: noisy images, (B, C, S, S).
            t: times in [0, 1], (B,).
            y: classes, (B,); the number of classes is the null class.
        """
        jit = self.jit
        label = self.y_embedder(y)
        c = self.t_embedder(t) + label
        x = self.x_embedder(z) + self.pos_embed
        rope = self.rope
        for i, block in enumerate(self.blocks):
            if jit.context and i == jit.context_start:
                front = label.unsqueeze(1).repeat(1, jit.context, 1) + self.in_context_posemb
                x, rope = torch.cat([front, x], dim=1), self.rope_in_context
            x = block(x, c, rope)
        x = self.final_layer(x[:, -(jit.side**2) :], c)
        x = x.reshape(-1, jit.side, jit.side, jit.patch, jit.patch, jit.channels)
        x = torch.einsum("byxpqc->bcypxq", x)
        return x.reshape(-1, jit.channels, jit.input_size, jit.input_size)


def pos_embed(width: int, side: int) -> Tensor:
    """Sines and cosines of the column, then of the row, (1, N, W)."""
    omega = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    rows, columns = np.divmod(np.arange(side * side), side)
    parts = [f(np.outer(place, omega)) for place in (columns, rows) for f in (np.sin, np.cos)]
    return torch.from_numpy(np.concatenate(parts, axis=1)).float()[None]
