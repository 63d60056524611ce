"""Operations that are worked on otherwise on a processor, against the plain ones."""

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
    """Numbers that want a gradient."""
    return torch.randn(shape).requires_grad_()


def agree(ours: Op, plain: Op, leaves: Sequence[Tensor]) -> None:
    """Whether two functions say the same, with the same gradients."""
    answers = []
    for function in (ours, plain):
        said = function(*leaves)
        outputs = said if isinstance(said, tuple) else (said,)
        torch.manual_seed(1)
        loss = torch.stack([(x * torch.randn(x.shape)).sum() for x in outputs]).sum()
        answers.append((*outputs, *torch.autograd.grad(loss, leaves)))
    for mine, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def _every_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of any size by oneDNN, whoever made the processor."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(cpu_kernels, "ONEDNN_IS_FASTER", True)
    monkeypatch.setattr(cpu_kernels, "LEAST", 0)


@pytest.mark.usefixtures("_every_product")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(0, 4), (1,), (3, 40), (2, 1, 37)])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 17), (9, 48)])
def test_products_are_those_of_torch(
    rows: tuple[int, ...], inputs: int, outputs: int, bias: bool
) -> None:
    leaves = [normal(*rows, inputs), normal(outputs, inputs)]
    if bias:
        leaves.append(normal(outputs))
        agree(cpu_kernels.linear, F.linear, leaves)
    else:
        agree(lambda x, weight: cpu_kernels.linear(x, weight, None), F.linear, leaves)
    x, weight, *added = leaves
    with torch.no_grad():
        said = cpu_kernels.linear(x, weight, added[0] if bias else None)
    torch.testing.assert_close(said, F.linear(x, weight, *added))


@pytest.mark.usefixtures("_every_product")
def test_a_product_makes_no_gradient_that_nobody_wants() -> None:
    x, weight, bias = torch.randn(4, 8), normal(3, 8), normal(3)
    (of_weight,) = torch.autograd.grad(cpu_kernels.linear(x, weight, bias).sum(), [weight])
    torch.testing.assert_close(of_weight, x.sum(0).expand(3, 8))
    (of_bias,) = torch.autograd.grad(cpu_kernels.linear(x, weight, bias).sum(), [bias])
    torch.testing.assert_close(of_bias, torch.full((3,), 4.0))


@pytest.mark.usefixtures("_every_product")
def test_gradients_come_in_any_layout() -> None:
    leaves = [normal(3, 40, 24), normal(17, 24)]
    for view in (
        lambda y: y.sum(),  # the gradient is one number, seen everywhere
        lambda y: (y.transpose(0, 2)[::2] ** 2).sum(),
    ):
        agree(lambda x, w, view=view: view(cpu_kernels.linear(x, w, None)),
              lambda x, w, view=view: view(F.linear(x, w)), leaves)  # fmt: skip
    first = [normal(2, 5, 36), torch.ones(2, 6).requires_grad_()]
    rotary = cos_sin(torch.randn(5, 3))

    def keys_alone(qkv: Tensor, weights: Tensor) -> Tensor:
        return cpu_kernels.heads(qkv, weights, rotary, 2)[1].mT.sum(dim=-1)

    def plainly(qkv: Tensor, weights: Tensor) -> Tensor:
        k = qkv.chunk(3, -1)[1].reshape(2, 5, 2, 6).transpose(1, 2)
        return rotate(F.rms_norm(k, (6,), weights[1], eps=1e-6), rotary).mT.sum(dim=-1)

    agree(keys_alone, plainly, first)


@pytest.mark.usefixtures("_every_product")
def test_products_under_autocast_are_as_narrow_as_it_asks() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            cpu_kernels.linear(torch.randn(4, 8), torch.randn(3, 8), None).dtype == torch.bfloat16
        )


@pytest.mark.usefixtures("_every_product")
def test_products_stay_as_they_are_under_the_compiler() -> None:
    torch._dynamo.reset()
    leaves = [normal(3, 40, 24), normal(17, 24), normal(17)]
    compiled: Op = torch.compile(cpu_kernels.linear, fullgraph=True, backend="aot_eager")
    agree(compiled, F.linear, leaves)


def test_swiglu_is_the_gate_times_the_value() -> None:
    def plain(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, dim=-1)
        return gate * gate.sigmoid() * value

    agree(cpu_kernels.swiglu, plain, [normal(3, 5, 14)])


@pytest.mark.parametrize("features", [6, 7], ids=["pairs", "and one over"])
@pytest.mark.parametrize("turned", ["alike", "by sample", "by sample and head"])
@pytest.mark.parametrize("values", [False, True])
def test_heads_are_normed_and_turned(features: int, turned: str, values: bool) -> None:
    batch, length, number = 3, 5, 2
    lead = {"alike": (), "by sample": (batch, 1), "by sample and head": (batch, number)}[turned]
    rotary = cos_sin(torch.randn(*lead, length, features // 2))

    def ours(qkv: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        return cpu_kernels.heads(qkv, weights, rotary, number, rotate_values=values)

    def plain(qkv: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        q, k, v = (
            x.reshape(batch, length, number, features).transpose(1, 2) for x in qkv.chunk(3, -1)
        )
        q, k = (
            rotate(F.rms_norm(x, (features,), w, eps=1e-6), rotary)
            for x, w in zip((q, k), weights, strict=True)
        )
        return q, k, rotate(v, rotary) if values else v

    leaves = [normal(batch, length, 3 * number * features), normal(2, features)]
    agree(ours, plain, leaves)
    rotary.requires_grad_()  # where places of the data rotary, and their gradient is asked for
    loss = torch.stack([x.square().sum(dim=(1, 2, 3)).mean() for x in ours(*leaves)]).sum()
    loss = loss + sum(x[..., 0].sum() for x in ours(*leaves))
    (of_turn,) = torch.autograd.grad(loss, [rotary])
    assert of_turn.any()


@pytest.mark.parametrize("length", [5, cpu_kernels.FEW])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_few_tokens_is_that_of_torch(length: int, masked: bool) -> None:
    mask = torch.rand(2, 1, 1, length) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)

    leaves = [normal(2, 3, length, 8) for _ in range(3)]
    agree(lambda q, k, v: cpu_kernels.attention(q, k, v, mask), plain, leaves)


def test_a_sample_without_data_spoils_no_gradient() -> None:
    leaves = [normal(2, 3, 5, 8) for _ in range(3)]
    mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = False
    mixed = cpu_kernels.attention(leaves[0], leaves[1], leaves[2], mask)
    assert mixed.isfinite().all()
    for grad in torch.autograd.grad(mixed[0].sum(), leaves):
        assert grad.isfinite().all()
        assert not grad[1].any()
