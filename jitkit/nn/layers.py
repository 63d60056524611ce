"""Transformer layers: RMSNorm, attention, SwiGLU, adaLN-Zero block, patch and time embeddings.

The residual stream is float32 throughout; under bfloat16 autocast only matrix products and
attention run in bfloat16 (norms, rotary embedding and residual sums stay float32).
Shapes: B batch, L tokens, W width, H heads.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jitkit.nn import cpu_kernels
from jitkit.nn.rope import rotate


class Linear(nn.Linear):
    """`nn.Linear` computed by `cpu_kernels.fast_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return cpu_kernels.fast_linear(x, self.weight, self.bias)


def linear(inputs: int, outputs: int, *, bias: bool = True, zero: bool = False) -> nn.Linear:
    """A linear layer with JiT's initialisation: Xavier-uniform or zero weights; zero bias."""
    layer = Linear(inputs, outputs, bias=bias)
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    """RMS normalisation with a learned weight (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape, float32."""
        return cpu_kernels.unit_rms(x) * self.weight

    def modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """norm(x) (1 + scale) + shift, one shift and scale, (B, width), for all tokens of a sample.

        The weight is multiplied into the per-sample scale before x: (B, L, width).
        """
        return cpu_kernels.modulated_rms(x, self.weight * (1 + scale), shift)


class Attention(nn.Module):
    """Self-attention with RMS-normed, rotated queries and keys.

    With ``relative``, values are rotated as well, and the attention output is rotated back by the
    query's angle, so it too depends on relative position (except for in-context tokens, which are
    at the origin).
    """

    def __init__(
        self, width: int, heads: int, *, dropout: float = 0.0, relative: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.relative = heads, relative
        self.qkv = linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.proj = linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        """Self-attention, (B, L, W) -> (B, L, W).

        Args:
            x: (B, L, W).
            rotary: rotary embedding, (L, W / H / 2, 2) or (B, 1 or H, L, W / H / 2, 2).
            mask: (B, 1, 1, L) bool, True for tokens that may be attended to; None for all.
        """
        q, k, v = self.queries_keys_values(x, rotary)
        out = cpu_kernels.attention(q.to(v.dtype), k.to(v.dtype), v, mask)
        if self.relative:
            out = rotate(out, rotary, back=True).to(v.dtype)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))

    def queries_keys_values(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, L, W / H) each; queries are divided by sqrt(W / H)."""
        qkv = self.qkv(x)
        scale = (qkv.shape[-1] // 3 // self.heads) ** -0.5
        weights = torch.stack((self.q_norm.weight * scale, self.k_norm.weight))
        return cpu_kernels.qkv_heads(qkv, weights, rotary, self.heads, rotate_values=self.relative)


class SwiGLU(nn.Module):
    """SwiGLU feed-forward layer: w3(silu(gate) value) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.w12 = linear(width, 2 * hidden)
        self.w3 = linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return self.w3(self.dropout(cpu_kernels.swiglu(self.w12(x))))


class Block(nn.Module):
    """Transformer block with adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748).

    Attention and SwiGLU are each modulated and gated by the conditioning vector.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, dropout: float = 0.0, relative: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, heads, dropout=dropout, relative=relative)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden, dropout=dropout)
        self.adaLN = linear(width, 6 * width, zero=True)

    def forward(self, x: Tensor, c: Tensor, rotary: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L, W) -> (B, L, W); ``c`` is SiLU of the conditioning vector, (B, W)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN(c).chunk(6, dim=-1)
        attended = self.attn(self.norm1.modulated(x, shift1, scale1), rotary, mask)
        x = x + gate1.unsqueeze(1) * attended
        return x + gate2.unsqueeze(1) * self.mlp(self.norm2.modulated(x, shift2, scale2))


class PatchEmbedding(nn.Module):
    """Bottleneck patch embedding (Li & He 2025, section 4.3)."""

    def __init__(self, features: int, bottleneck: int, width: int) -> None:
        super().__init__()
        self.proj1 = linear(features, bottleneck, bias=False)
        self.proj2 = linear(bottleneck, width)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, W)."""
        return self.proj2(self.proj1(patches))


class TimeEmbedding(nn.Module):
    """Time embedding of t in [0, 1]: 256 cosines and sines, then a two-layer MLP."""

    features = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer1 = linear(self.features, width)
        self.layer2 = linear(width, width)
        nn.init.normal_(self.layer1.weight, std=0.02)
        nn.init.normal_(self.layer2.weight, std=0.02)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, W)."""
        half = self.features // 2
        frequencies = torch.exp(-log(10_000) * torch.arange(half, device=t.device).float() / half)
        angle = t.float()[:, None] * frequencies
        embedding = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.layer2(F.silu(self.layer1(embedding)))


class FinalLayer(nn.Module):
    """Output layer from tokens to patches, zero-initialised."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.linear = linear(width, features, zero=True)
        self.adaLN = linear(width, 2 * width, zero=True)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(B, L, W) -> (B, L, D); ``c`` is SiLU of the conditioning vector, (B, W)."""
        shift, scale = self.adaLN(c).chunk(2, dim=-1)
        return self.linear(self.norm.modulated(x, shift, scale))
