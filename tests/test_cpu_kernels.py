"""CPU kernels and their gradients against stock PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jitkit.nn import cpu_kernels
from jitkit.nn.rope import cos_sin, rotate

Op = Callable[..., Tensor | tuple[Tensor, ...]]


def normal(*shape: int) -> Tensor:
    """Normal random values that require a gradient."""
    return torch.randn(shape).requires_grad_()


def assert_same(ours: Op, stock: Op, leaves: Sequence[Tensor]) -> None:
    """Assert that two functions have equal outputs and gradients."""
    results = []
    for function in (ours, stock):
        output = function(*leaves)
        outputs = output if isinstance(output, tuple) else (output,)
        torch.manual_seed(1)
        loss = torch.stack([(x * torch.randn(x.shape)).sum() for x in outputs]).sum()
        results.append((*outputs, *torch.autograd.grad(loss, leaves)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def _always_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use oneDNN for matrix products of any size on any CPU."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu_kernels, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(cpu_kernels, "MIN_MULTIPLY_ADDS", 0)


@pytest.mark.usefixtures("_always_onednn")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(0, 4), (1,), (3, 40), (2, 1, 37)])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 17), (9, 48)])
def test_linear_equals_torch(rows: tuple[int, ...], inputs: int, outputs: int, bias: bool) -> None:
    leaves = [normal(*rows, inputs), normal(outputs, inputs)]
    if bias:
        leaves.append(normal(outputs))
        assert_same(cpu_kernels.fast_linear, F.linear, leaves)
    else:
        assert_same(lambda x, weight: cpu_kernels.fast_linear(x, weight, None), F.linear, leaves)
    x, weight, *added = leaves
    with torch.no_grad():
        output = cpu_kernels.fast_linear(x, weight, added[0] if bias else None)
    torch.testing.assert_close(output, F.linear(x, weight, *added))


@pytest.mark.usefixtures("_always_onednn")
def test_linear_computes_only_required_gradients() -> None:
    x, weight, bias = torch.randn(4, 8), normal(3, 8), normal(3)
    (grad_weight,) = torch.autograd.grad(cpu_kernels.fast_linear(x, weight, bias).sum(), [weight])
    torch.testing.assert_close(grad_weight, x.sum(0).expand(3, 8))
    (grad_bias,) = torch.autograd.grad(cpu_kernels.fast_linear(x, weight, bias).sum(), [bias])
    torch.testing.assert_close(grad_bias, torch.full((3,), 4.0))


@pytest.mark.usefixtures("_always_onednn")
def test_gradients_of_any_memory_layout_are_accepted() -> None:
    leaves = [normal(3, 40, 24), normal(17, 24)]
    for view in (
        lambda y: y.sum(),  # the gradient is one expanded number
        lambda y: (y.transpose(0, 2)[::2] ** 2).sum(),
    ):
        assert_same(lambda x, w, view=view: view(cpu_kernels.fast_linear(x, w, None)),
              lambda x, w, view=view: view(F.linear(x, w)), leaves)  # fmt: skip
    inputs = [normal(2, 5, 36), torch.ones(2, 6).requires_grad_()]
    rotary = cos_sin(torch.randn(5, 3))

    def keys_only(qkv: Tensor, weights: Tensor) -> Tensor:
        return cpu_kernels.qkv_heads(qkv, weights, rotary, 2)[1].mT.sum(dim=-1)

    def stock(qkv: Tensor, weights: Tensor) -> Tensor:
        k = qkv.chunk(3, -1)[1].reshape(2, 5, 2, 6).transpose(1, 2)
        return rotate(F.rms_norm(k, (6,), weights[1], eps=1e-6), rotary).mT.sum(dim=-1)

    assert_same(keys_only, stock, inputs)


@pytest.mark.usefixtures("_always_onednn")
def test_linear_under_autocast_returns_the_autocast_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            cpu_kernels.fast_linear(torch.randn(4, 8), torch.randn(3, 8), None).dtype
            == torch.bfloat16
        )


@pytest.mark.usefixtures("_always_onednn")
def test_linear_equals_torch_under_the_compiler() -> None:
    torch._dynamo.reset()
    leaves = [normal(3, 40, 24), normal(17, 24), normal(17)]
    compiled: Op = torch.compile(cpu_kernels.fast_linear, fullgraph=True, backend="aot_eager")
    assert_same(compiled, F.linear, leaves)


def test_swiglu_is_silu_of_the_gate_times_the_value() -> None:
    def stock(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return gate * gate.sigmoid() * value

    assert_same(cpu_kernels.swiglu, stock, [normal(3, 5, 14)])


@pytest.mark.parametrize("features", [6, 7], ids=["even", "odd"])
@pytest.mark.parametrize("rotary_shape", ["shared", "by sample", "by sample and head"])
@pytest.mark.parametrize("values", [False, True])
def test_heads_are_normed_and_rotated(features: int, rotary_shape: str, values: bool) -> None:
    batch, length, heads = 3, 5, 2
    shapes = {"shared": (), "by sample": (batch, 1), "by sample and head": (batch, heads)}
    lead = shapes[rotary_shape]
    rotary = cos_sin(torch.randn(*lead, length, features // 2))

    def ours(qkv: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return cpu_kernels.qkv_heads(qkv, weights, rotary, heads, rotate_values=values)

    def stock(qkv: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (
            x.reshape(batch, length, heads, features).transpose(1, 2) for x in qkv.chunk(3, -1)
        )
        q, k = (
            rotate(F.rms_norm(x, (features,), w, eps=1e-6), rotary)
            for x, w in zip((q, k), weights, strict=True)
        )
        return q, k, rotate(v, rotary) if values else v

    leaves = [normal(batch, length, 3 * heads * features), normal(2, features)]
    assert_same(ours, stock, leaves)
    rotary.requires_grad_()  # as for positions in the data whose gradient is required
    loss = torch.stack([x.square().sum(dim=(1, 2, 3)).mean() for x in ours(*leaves)]).sum()
    loss = loss + sum(x[..., 0].sum() for x in ours(*leaves))
    (grad_rotary,) = torch.autograd.grad(loss, [rotary])
    assert grad_rotary.any()


@pytest.mark.parametrize("length", [5, cpu_kernels.SHORT_SEQUENCE])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_short_sequences_equals_torch(length: int, masked: bool) -> None:
    mask = torch.rand(2, 1, 1, length) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True

    def stock(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)

    leaves = [normal(2, 3, length, 8) for _ in range(3)]
    assert_same(lambda q, k, v: cpu_kernels.attention(q, k, v, mask), stock, leaves)


def test_a_sample_without_data_has_finite_zero_gradients() -> None:
    leaves = [normal(2, 3, 5, 8) for _ in range(3)]
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = False
    output = cpu_kernels.attention(leaves[0], leaves[1], leaves[2], mask)
    assert output.isfinite().all()
    for grad in torch.autograd.grad(output[0].sum(), leaves):
        assert grad.isfinite().all()
        assert not grad[1].any()
