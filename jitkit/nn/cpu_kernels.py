"""CPU kernels faster than stock PyTorch, with closed-form gradients.

Each agrees with the stock operation to rounding and is used where it was measured to be faster
(docs/performance.md): in float32 on a CPU; norms on any device. Under `torch.compile` the stock
operation is used where the compiler is faster.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jitkit.nn.rope import rotate
from jitkit.utils.cpu import cpuinfo

MIN_MULTIPLY_ADDS = 2**26  # of a matrix product, above which oneDNN is worth its overhead,
MIN_WEIGHTS = 2**20  # or above this number of weights
ONEDNN_IS_FASTER = (
    cpuinfo("vendor_id") == "AuthenticAMD"  # MKL is fastest on Intel CPUs only
    and torch._C._has_mkldnn
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
FEW_ROWS = 64  # maximum rows for which oneDNN computes the gradient of a weight
SHORT_SEQUENCE = 64  # tokens up to which the whole attention matrix is computed


class _UnitRMS(torch.autograd.Function):
    """y = x r with r = 1 / sqrt(mean x^2 + 1e-6); dL/dx = r (g - y mean(g y)) for g = dL/dy.

    On a CPU `F.rms_norm` and its gradient are chains of operations; this takes less than half of
    the time. `torch.compile` fuses either.
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
    """y s + b, where y is `_UnitRMS` of x; x (B, L, W), scale s and shift b (B, W)."""

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
        grad_x = (g * scale.unsqueeze(1)).addcmul_(y, mean, value=-1).mul_(r)
        return grad_x, product.sum(dim=1), g.sum(dim=1)


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


class _QKVHeads(torch.autograd.Function):
    """Normed and rotated queries and keys, and values; see `qkv_heads`.

    Gradients are written directly into the layout of the projection's gradient, without a copy.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, weights: Tensor, rotary: Tensor, num_heads: int, rotate_values: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = qkv.reshape(*qkv.shape[:-1], 3, num_heads, weights.shape[-1])  # (B, L, 3, H, F)
        r = _inverse_rms(parts[:, :, :2])
        y = parts[:, :, :2] * r
        rotation = torch.view_as_complex(rotary)
        q, k = (_rotated((y[:, :, i] * weights[i]).transpose(1, 2), rotation) for i in range(2))
        value = parts[:, :, 2].transpose(1, 2)
        ctx.save_for_backward(y, r, weights, rotary)
        ctx.rotate_values = rotate_values
        return q, k, _rotated(value, rotation) if rotate_values else value

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        y, r, weights, rotary = ctx.saved_tensors
        inverse = torch.view_as_complex(rotary).conj()
        batch, length, _, num_heads, features = y.shape
        grad_parts = y.new_empty(batch, length, 3, num_heads, features)
        grad_weights = torch.empty_like(weights)
        for i, g in enumerate((grad_q, grad_k)):
            normed, g = y[:, :, i], _rotated(g, inverse).transpose(1, 2)
            product = g * normed
            torch.sum(product, dim=(0, 1, 2), out=grad_weights[i])
            mean = (product @ weights[i]).div_(features).unsqueeze(-1)
            g.mul_(weights[i]).addcmul_(normed, mean, value=-1)
            torch.mul(g, r[:, :, i], out=grad_parts[:, :, i])
        grad_v = _rotated(grad_v, inverse) if ctx.rotate_values else grad_v
        grad_parts[:, :, 2] = grad_v.transpose(1, 2)
        return grad_parts.flatten(2), grad_weights, None, None, None


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """`rope.rotate` by complex numbers, (B, H, L, F); a new contiguous tensor."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2))
    rotated = x.new_empty(*pairs.shape, 2)
    torch.mul(pairs, rotation, out=torch.view_as_complex(rotated))
    return rotated.flatten(-2)


class _SwiGLU(torch.autograd.Function):
    """silu(gate) value, where x is gate and value concatenated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        activated = F.silu(gate)
        ctx.save_for_backward(x, activated)
        return activated * value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, activated = ctx.saved_tensors
        gate, value = x.chunk(2, dim=-1)
        grad_x = torch.empty_like(x)
        grad_gate, grad_value = grad_x.chunk(2, dim=-1)
        torch.mul(g, activated, out=grad_value)
        torch.mul(g, value, out=grad_gate)
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_x


class _Linear(torch.autograd.Function):
    """x w^T + b by oneDNN; the gradient of w by the BLAS of `torch.mm` where rows are many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = g.reshape(-1, g.shape[-1])
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = _onednn(rows, weight.t(), None).view(x.shape)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(rows, x.reshape(-1, x.shape[-1]))
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grad_bias = rows.sum(dim=0)
        return grad_x, grad_weight, grad_bias


def _weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """g^T x; with few rows, as in adaLN, MKL takes ten times the time of the memory traffic."""
    return _onednn(g.t(), x.t(), None) if 0 < len(g) <= FEW_ROWS else g.t() @ x


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return (_onednn_opaque if torch.compiler.is_compiling() else _onednn_eager)(x, weight, bias)


def _onednn_eager(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


@torch.library.custom_op("jitkit::linear", mutates_args=())
def _onednn_opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`_onednn_eager`, opaque to `torch.compile`, which would treat the weights as constants."""
    return _onednn_eager(x, weight, bias)


@_onednn_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _is_supported(x: Tensor) -> bool:
    """Whether the kernels apply to a tensor: float32, on the CPU, without autocast."""
    float32 = x.device.type == "cpu" and x.dtype == torch.float32
    return float32 and not torch.is_autocast_enabled("cpu")


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, (..., inputs) -> (..., outputs), by oneDNN or BLAS, whichever is faster."""
    large = x.numel() * weight.shape[0] >= MIN_MULTIPLY_ADDS or weight.numel() >= MIN_WEIGHTS
    if not (large and ONEDNN_IS_FASTER and _is_supported(x) and _is_supported(weight)):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn(x, weight, bias)
    y: Tensor = _Linear.apply(x, weight, bias)
    return y


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) value of x = (gate, value): (..., 2 M) -> (..., M)."""
    if _is_supported(x) and not torch.compiler.is_compiling():
        y: Tensor = _SwiGLU.apply(x)
        return y
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def qkv_heads(
    qkv: Tensor, weights: Tensor, rotary: Tensor, num_heads: int, *, rotate_values: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Split into heads: RMS-normed and rotated queries and keys, and values.

    Args:
        qkv: output of the joint projection, (B, L, 3 W).
        weights: weights of both norms, (2, W / H).
        rotary: rotary embedding, (L, W / H / 2, 2) or (B, 1 or H, L, W / H / 2, 2).
        num_heads: H.
        rotate_values: whether values are rotated as well.

    Returns:
        Each (B, H, L, W / H); queries and keys are float32.
    """
    stock = torch.compiler.is_compiling() or not _is_supported(qkv) or rotary.requires_grad
    if not stock and 2 * rotary.shape[-2] == weights.shape[-1]:
        result: tuple[Tensor, Tensor, Tensor] = _QKVHeads.apply(
            qkv, weights, rotary, num_heads, rotate_values
        )
        return result
    parts = qkv.reshape(*qkv.shape[:-1], 3, num_heads, weights.shape[-1])
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    q, k = (rotate(unit_rms(x) * w, rotary) for x, w in zip((q, k), weights, strict=True))
    return q, k, rotate(v, rotary).to(v.dtype) if rotate_values else v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T) v, (B, H, L, F) each; q is already divided by sqrt(F).

    Training on sequences of at most `SHORT_SEQUENCE` tokens uses batched matrix products; torch's
    kernel processes them one by one for each sample and head.

    Args:
        q, k, v: queries, keys, values.
        mask: (B, 1, 1, L) bool, True for tokens that may be attended to; None for all.
    """
    short = q.shape[-2] <= SHORT_SEQUENCE and torch.is_grad_enabled()
    if not (short and _is_supported(q)):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    scores = q @ k.mT
    if mask is not None:  # not -inf: a sample may have no data at all
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) @ v
