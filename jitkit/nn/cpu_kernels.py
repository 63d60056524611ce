"""Operations that torch leaves slow on a processor, with their gradients in closed form.

Each agrees with the plain operation to rounding, and is taken where it was measured to be faster
(docs/performance.md): in float32 on a CPU, norms anywhere. `torch.compile` sees the plain operation
where it can do better itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jitkit.nn.rope import rotate
from jitkit.utils.cpu import told_by_itself

LEAST = 2**26  # multiply-adds of a product from which the faster library repays its call,
LARGE = 2**20  # or weights that are read for it
ONEDNN_IS_FASTER = (
    told_by_itself("vendor_id") == "AuthenticAMD"  # MKL, the other, spares its best for Intel's
    and torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
FEW_ROWS = 64  # of a product that makes the gradient of a weight
FEW = 64  # tokens up to which the whole matrix of attention is made


class _UnitRMS(torch.autograd.Function):
    """y = x r with r = 1 / sqrt(mean x^2 + 1e-6); dL/dx = r (g - y mean(g y)) for g = dL/dy.

    torch's own `F.rms_norm` is a chain of operations on a CPU, and so is its gradient: this takes
    less than half of the time. `torch.compile` fuses either.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = _inverse_rms(x)
        y = x * r
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        y, r = ctx.saved_tensors
        mean = (g * y).sum(dim=-1, keepdim=True) / y.shape[-1]
        return torch.addcmul(g, y, mean, value=-1).mul_(r)


class _ModulatedRMS(torch.autograd.Function):
    """y s + b, where y is `_UnitRMS` of x; s and b have no tokens: (B, L, W), (B, W), (B, W)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        r = _inverse_rms(x)
        y = x * r
        ctx.save_for_backward(y, r, scale)
        return torch.addcmul(shift.unsqueeze(1), y, scale.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, r, scale = ctx.saved_tensors
        product = g * y
        mean = (product * scale.unsqueeze(1)).sum(dim=-1, keepdim=True) / y.shape[-1]
        x = (g * scale.unsqueeze(1)).addcmul_(y, mean, value=-1).mul_(r)
        return x, product.sum(dim=1), g.sum(dim=1)


def _inverse_rms(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (norm.square() / x.shape[-1] + 1e-6).rsqrt()


def unit_rms(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-6) over the last axis, float32."""
    y: Tensor = _UnitRMS.apply(x.float())
    return y


def modulated_rms(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`unit_rms` of x times a scale and plus a shift: (B, L, W), (B, W), (B, W) -> (B, L, W)."""
    y: Tensor = _ModulatedRMS.apply(x.float(), scale.float(), shift.float())
    return y


class _Heads(torch.autograd.Function):
    """Queries and keys, normed and turned, and values, of one product; see `heads`.

    Its gradients are written where the product wants them, and gathered by nothing else.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weights: Tensor, rotary: Tensor, number: int, rotate_values: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = qkv.reshape(*qkv.shape[:-1], 3, number, weights.shape[-1])  # (B, L, 3, H, F)
        r = _inverse_rms(parts[:, :, :2])
        y = parts[:, :, :2] * r
        by = torch.view_as_complex(rotary)
        turned = [_turned((y[:, :, i] * weights[i]).transpose(1, 2), by) for i in range(2)]
        value = parts[:, :, 2].transpose(1, 2)
        ctx.save_for_backward(y, r, weights, rotary)
        ctx.rotate_values = rotate_values
        return turned[0], turned[1], _turned(value, by) if rotate_values else value

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_q: Tensor, of_k: Tensor, of_v: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        y, r, weights, rotary = ctx.saved_tensors
        back = torch.view_as_complex(rotary).conj()
        batch, length, _, number, features = y.shape
        of_parts = y.new_empty(batch, length, 3, number, features)
        of_weights = torch.empty_like(weights)
        for i, g in enumerate((of_q, of_k)):
            own, g = y[:, :, i], _turned(g, back).transpose(1, 2)
            product = g * own
            torch.sum(product, dim=(0, 1, 2), out=of_weights[i])
            mean = (product @ weights[i]).div_(features).unsqueeze(-1)
            g.mul_(weights[i]).addcmul_(own, mean, value=-1)
            torch.mul(g, r[:, :, i], out=of_parts[:, :, i])
        of_v = _turned(of_v, back) if ctx.rotate_values else of_v
        of_parts[:, :, 2] = of_v.transpose(1, 2)
        return of_parts.flatten(2), of_weights, None, None, None


def _turned(x: Tensor, by: Tensor) -> Tensor:
    """`rope.rotate` by complex numbers, (B, H, L, F), a tensor of its own without gaps."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    turned = x.new_empty(*pairs.shape, 2)
    torch.mul(pairs, by, out=torch.view_as_complex(turned))
    return turned.flatten(-2)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) value, where both lie side by side in x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        open_ = F.silu(gate)
        ctx.save_for_backward(x, open_)
        return open_ * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, open_ = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        of_x = torch.empty_like(x)
        of_gate, of_value = of_x.chunk(2, dim=-1)
        torch.mul(g, open_, out=of_value)
        torch.mul(g, value, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
        return of_x


class _Linear(torch.autograd.Function):
    """x w^T + b by oneDNN; the gradient of w by the library of `torch.mm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _by_onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = g.reshape(-1, g.shape[-1])
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _by_onednn(rows, weight.t(), None).view(x.shape)
        if ctx.needs_input_grad[1]:
            of_weight = _of_weight(rows, x.reshape(-1, x.shape[-1]))
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = rows.sum(dim=0)
        return of_x, of_weight, of_bias


def _of_weight(g: Tensor, x: Tensor) -> Tensor:
    """g^T x: MKL needs ten times as long as memory does where rows are few, as in adaLN."""
    return _by_onednn(g.t(), x.t(), None) if 0 < len(g) <= FEW_ROWS else g.t() @ x


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (_opaque if torch.compiler.is_compiling() else _at_once)(x, weight, bias)


def _at_once(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@torch.library.custom_op("jitkit::linear", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same where `torch.compile` must not look inside: it takes weights for constants there."""
    return _at_once(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _here(x: Tensor) -> bool:
    """Whether a tensor is to be worked on here: in float32, on a processor."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not torch.is_autocast_enabled("cpu")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, (..., inputs) -> (..., outputs), by the library that is faster here."""
    large = x.numel() * weight.shape[0] >= LEAST or weight.numel() >= LARGE
    if not (large and ONEDNN_IS_FASTER and _here(x) and _here(weight)):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _by_onednn(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) value, of x with the gate before the value: (..., 2 M) -> (..., M)."""
    if _here(x) and not torch.compiler.is_compiling():
        y: Tensor = _SwiGLU.apply(x)
        return y
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def heads(
    qkv: Tensor, weights: Tensor, rotary: Tensor, number: int, *, rotate_values: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys, each head normed by its root mean square and turned, and values.

    Args:
        qkv: of one product, (B, L, 3 W).
        weights: of both norms, (2, W / H).
        rotary: rotary code, (L, W / H / 2, 2) or (B, 1 or H, L, W / H / 2, 2).
        number: of heads, H.
        rotate_values: whether values rotary as well.

    Returns:
        Each (B, H, L, W / H); queries and keys are float32.
    """
    plain = torch.compiler.is_compiling() or not _here(qkv) or rotary.requires_grad
    if not plain and 2 * rotary.shape[-2] == weights.shape[-1]:
        found: tuple[Tensor, Tensor, Tensor] = _Heads.apply(
            qkv, weights, rotary, number, rotate_values
        )
        return found
    parts = qkv.reshape(*qkv.shape[:-1], 3, number, weights.shape[-1])
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    q, k = (rotate(unit_rms(x) * w, rotary) for x, w in zip((q, k), weights, strict=True))
    return q, k, rotate(v, rotary).to(v.dtype) if rotate_values else v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T) v, (B, H, L, F) each; q is already divided by the root of F.

    Where tokens are few, training makes the products themselves: torch's kernel takes such small
    problems one by one, as many as there are heads in the batch.

    Args:
        q, k, v: queries, keys, values.
        mask: (B, 1, 1, L) bool, True for tokens that may be looked at; None for all.
    """
    few = q.shape[-2] <= FEW and torch.is_grad_enabled()
    if not (few and _here(q)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = q @ k.mT
    if mask is not None:  # not by infinity: a sample may have no data at all
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ v
