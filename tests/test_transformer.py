"""Transformer: sizes, initialisation, conditioning, masks, positions, training, compilation."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import difference, layout, random_model, randomize, sizes
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from jitkit.data import collate
from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.errors import JitkitError
from jitkit.fields import Axis, Batch, Category, Condition, Field, Grid, Layout, PerToken, Scalars
from jitkit.nn.conditioning import null_condition
from jitkit.nn.flops import macs
from jitkit.nn.layers import Attention, RMSNorm
from jitkit.nn.patches import token_coords
from jitkit.nn.rope import (
    cos_sin,
    position_frequencies,
    rotary_embedding,
    rotary_of_positions,
    rotate,
)
from jitkit.nn.transformer import Sizes, Transformer
from jitkit.sections import SIZES, ModelSection

EVERY_KIND: dict[str, Condition] = {
    "label": Category(10),
    "weather": Scalars(("wind", "rain")),
    "orography": Grid(("height", "slope")),
    "element": PerToken(5),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def times(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))


def conditions_for(n: int, *grid: int) -> dict[str, Tensor]:
    """A value of every kind of condition for each of n samples."""
    return {
        "label": torch.arange(n) % 10,
        "weather": noise(n, 2, seed=1),
        "orography": noise(n, 2, *grid, seed=2),
        "element": (noise(n, *grid, seed=3).abs() * 2).long().clamp_max(4),
    }


def paper(size: Any, patch: int, **given: Any) -> Denoiser:
    """A model of the paper on the meta device: 16 x 16 tokens, 1,000 classes."""
    axes = (Axis("row", 16 * patch, patch), Axis("column", 16 * patch, patch))
    resolved = Sizes(**ModelSection(size=size, **given).resolved())
    with torch.device("meta"):
        return Denoiser(
            Layout(axes, ("red", "green", "blue")), {"label": Category(1000)}, resolved
        ).eval()


# The paper's networks

PAPER = [
    ("B", 16, 131_123_712, 25.22),
    ("L", 16, 458_877_664, 87.94),
    ("H", 16, 952_514_368, 181.95),
    ("G", 16, 2_007_130_000, 383.74),
    ("B", 32, 133_190_400, 25.75),
    ("L", 32, 461_534_176, 88.62),
    ("H", 32, 956_055_616, 182.85),
    ("G", 32, 2_011_555_984, 384.88),
    ("B", 64, 141_457_152, 27.87),
]


@pytest.mark.parametrize(("size", "patch", "parameters", "gmacs"), PAPER)
def test_a_preset_has_the_papers_parameters_and_cost(
    size: str, patch: int, parameters: int, gmacs: float
) -> None:
    denoiser = paper(size, patch)
    assert sum(p.numel() for p in denoiser.parameters()) == parameters
    assert macs(denoiser.network) / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_cost_stays_nearly_constant_when_grid_and_patch_grow_together() -> None:
    def cost(patch: int) -> tuple[int, list[int]]:
        denoiser = paper("B", patch)
        counter = FlopCounterMode(display=False)
        z = torch.empty(1, 3, 16 * patch, 16 * patch, device="meta")
        label = torch.empty(1, dtype=torch.long, device="meta")
        with counter, torch.no_grad():
            denoiser.network(z, torch.empty(1, device="meta"), {"label": label})
        flops = counter.get_flop_counts()
        blocks = [sum(flops[f"Transformer.blocks.{i}"].values()) for i in range(12)]
        return counter.get_total_flops(), blocks

    total, blocks = cost(16)
    doubled, blocks_of_doubled = cost(32)
    assert blocks_of_doubled == blocks and min(blocks) > 0
    assert total < doubled < 1.03 * total


def test_dropout_is_in_the_middle_half_of_the_papers_blocks() -> None:
    middle = {"B": range(3, 9), "L": range(6, 18), "H": range(8, 24), "G": range(10, 30)}
    for size in SIZES:
        blocks: Any = paper(size, 16, dropout=0.2).network.blocks
        for where in ("attn", "mlp"):
            p = [getattr(block, where).dropout.p for block in blocks]
            assert p == [0.2 if i in middle[size] else 0.0 for i in range(len(blocks))]


# The first prediction

ONE_TO_FOUR = [
    layout((6, 2)),
    layout((6, 2), (4, 2, "circle")),
    layout((4, 2), (4, 1), (3, 1, "set")),
    layout((2, 1), (4, 2), (4, 2, "circle"), (3, 3)),
]
AXES = pytest.mark.parametrize("layout", ONE_TO_FOUR, ids=lambda layout: f"{len(layout.axes)} axes")


@AXES
@pytest.mark.parametrize("conditions", [{}, EVERY_KIND], ids=["unconditional", "conditional"])
def test_the_first_prediction_is_exactly_zero(
    layout: Layout, conditions: Mapping[str, Condition]
) -> None:
    denoiser = Denoiser(layout, conditions, sizes())
    z = noise(2, 2, *layout.grid)
    cond = {name: conditions_for(2, *layout.grid)[name] for name in conditions}
    prediction = denoiser(z, times(2), cond)
    assert prediction.shape == z.shape and prediction.dtype == torch.float32
    assert not prediction.any()


def test_blocks_start_as_the_identity() -> None:
    network = Denoiser(layout((6, 2)), {"label": Category(3)}, sizes()).network
    x = noise(2, 3, 16)
    for block in network.blocks:
        assert torch.equal(block(x, noise(2, 16), network.rotary, None), x)


def test_weights_are_initialised_as_in_the_paper() -> None:
    """Xavier's bound, sqrt(6 / (in + out)); embeddings and the layers of time, N(0, 0.02²)."""
    large = sizes(width=256, heads=2, bottleneck=64, mlp_hidden=512, in_context_tokens=64)
    network = Denoiser(layout((4, 2), (4, 2)), {"label": Category(99)}, large).network
    weights = dict(network.named_parameters())
    for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
        weight = weights[f"blocks.0.{name}.weight"]
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
        assert not weights[f"blocks.0.{name}.bias"].any()
    for name in ("time.layer1.weight", "time.layer2.weight", "context"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.05)
    (table,) = network.vectors.parameters()
    assert table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_the_first_loss_is_that_of_a_zero_prediction(prediction: Any) -> None:
    denoiser = Denoiser(layout((6, 2)), {}, sizes(), Diffusion(prediction))
    x, eps = noise(4, 2, 6), noise(4, 2, 6, seed=1)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    expected = x / (1 - t)[:, None, None] if prediction == "x" else x - eps
    losses = denoiser.losses(x, eps, t)
    torch.testing.assert_close(losses, expected.square().mean(dim=(1, 2)))


# Dependence on inputs


@AXES
def test_the_prediction_depends_on_time_and_sample(layout: Layout) -> None:
    denoiser = random_model(layout, EVERY_KIND)
    z, t, cond = noise(1, 2, *layout.grid), times(1), conditions_for(1, *layout.grid)
    prediction = denoiser(z, t, cond)
    assert difference(denoiser(z, t + 0.3, cond), prediction) > 1e-3
    assert difference(denoiser(z + 0.3, t, cond), prediction) > 1e-3


def test_every_token_attends_to_every_other() -> None:
    denoiser = random_model(layout((8, 2), (3, 1)))
    z, t = noise(1, 2, 8, 3), times(1)
    prediction, other = denoiser(z, t), z.clone()
    other[..., 7, 2] += 1
    assert ((denoiser(other, t) - prediction).abs() > 1e-5).all()


@pytest.mark.parametrize("name", list(EVERY_KIND))
def test_every_condition_changes_the_prediction(name: str) -> None:
    denoiser = random_model(layout((6, 2), (4, 2)), {name: EVERY_KIND[name]})
    z, t, value = noise(2, 2, 6, 4), times(2), conditions_for(2, 6, 4)[name]
    unconditional = denoiser(z, t)
    assert difference(denoiser(z, t, {name: value}), unconditional) > 1e-3
    assert difference(denoiser(z, t, {name: value.flip(0)}), denoiser(z, t, {name: value})) > 1e-3


@pytest.mark.parametrize("name", list(EVERY_KIND))
def test_a_null_condition_equals_an_omitted_one(name: str) -> None:
    denoiser = random_model(layout((6, 2), (4, 2)), EVERY_KIND)
    z, t, cond = noise(2, 2, 6, 4), times(2), conditions_for(2, 6, 4)
    dropped = cond | {name: null_condition(EVERY_KIND[name], cond[name])}
    omitted = {other: value for other, value in cond.items() if other != name}
    assert torch.equal(denoiser(z, t, dropped), denoiser(z, t, omitted))


@pytest.mark.parametrize("name", ["weather", "orography"])
def test_one_missing_scalar_leaves_the_others_in_effect(name: str) -> None:
    denoiser = random_model(layout((6, 2), (4, 2)), EVERY_KIND)
    z, t, cond = noise(1, 2, 6, 4), times(1), conditions_for(1, 6, 4)
    half = cond[name].clone()
    half[0, 0] = torch.nan
    predictions = [denoiser(z, t, cond | {name: value}) for value in (cond[name], half, half * 2)]
    assert difference(predictions[1], predictions[0]) > 1e-3
    assert difference(predictions[2], predictions[1]) > 1e-3
    assert all(prediction.isfinite().all() for prediction in predictions)


def test_in_context_tokens_carry_the_condition() -> None:
    denoiser = random_model(layout((6, 2)), {"label": Category(10)}, in_context_start=2)
    z, t = noise(1, 2, 6), times(1)
    lengths = lengths_in_blocks(denoiser.network)
    prediction = denoiser(z, t, {"label": 3})
    assert lengths == [3, 3, 5]
    with torch.no_grad():
        denoiser.network.context.add_(1)
    assert difference(denoiser(z, t, {"label": 3}), prediction) > 1e-3


@pytest.mark.parametrize("conditions", [{}, {"element": PerToken(5)}])
def test_without_a_vector_condition_there_are_no_in_context_tokens(
    conditions: Mapping[str, Condition],
) -> None:
    denoiser = random_model(layout((6, 2)), conditions)
    lengths = lengths_in_blocks(denoiser.network)
    denoiser(noise(1, 2, 6), times(1))
    assert lengths == [3, 3, 3]
    assert "context" not in dict(denoiser.network.named_parameters())


def lengths_in_blocks(network: Transformer) -> list[int]:
    """A list that fills with the number of tokens in each block's output."""
    lengths: list[int] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: lengths.append(len(output[0])))
    return lengths


@pytest.mark.parametrize(
    "names", [["type", "forward", "training"], ["a.b", "a_b", "a~b", "a~1b", ".", ""]]
)
def test_a_condition_may_have_any_name(names: list[str]) -> None:
    conditions: dict[str, Condition] = {name: Category(3) for name in names}
    conditions |= {f"{name} at": PerToken(3) for name in names}
    denoiser = random_model(layout((6, 2)), conditions)
    z, t = noise(1, 2, 6), times(1)
    predictions = [denoiser(z, t)]
    for name in names:
        predictions.append(denoiser(z, t, {name: 0}))
        predictions.append(denoiser(z, t, {f"{name} at": torch.zeros(6, dtype=torch.long)}))
    for i, one in enumerate(predictions):
        assert all(difference(one, other) > 1e-4 for other in predictions[:i])


# Invariance to padding and to values outside the mask


def varying(layout: Layout, lengths: list[int], conditions: Mapping[str, Condition]) -> list[Field]:
    """Fields whose first axis has these lengths."""
    fields = []
    for seed, length in enumerate(lengths):
        grid = (length, *layout.grid[1:])
        values = noise(len(layout.channels), *grid, seed=seed)
        cond = {name: conditions_for(2, *grid)[name][seed % 2] for name in conditions}
        fields.append(Field(values, cond=cond))
    return fields


MASKED = {
    "a set": layout((7, 1, "set")),
    "a line": layout((7, 1)),
    "a line of patches": layout((7, 2)),
    "a line and a circle": layout((7, 2), (5, 3), (4, 2, "circle")),
    "a line with missing cells": Layout((Axis("row", 7, 2),), ("u", "v"), missing=True),
}


@pytest.mark.parametrize("layout", MASKED.values(), ids=MASKED.keys())
@pytest.mark.parametrize("conditions", [{}, EVERY_KIND], ids=["unconditional", "conditional"])
def test_a_padded_batch_equals_single_items(
    layout: Layout, conditions: Mapping[str, Condition]
) -> None:
    denoiser = random_model(layout, conditions)
    lengths = [5, 3, 7, 4, 1]
    fields = varying(layout, lengths, conditions)
    t = times(len(fields))
    batch = collate(layout, conditions, fields)
    assert batch.mask is not None
    prediction = denoiser(batch.x, t, batch.cond, batch.mask)
    for i, (field, length) in enumerate(zip(fields, lengths, strict=True)):
        alone = denoiser(field.values[None], t[i : i + 1], collate_one(layout, conditions, field))
        assert difference(prediction[i, :, :length], alone[0]) < 1e-5


def collate_one(
    layout: Layout, conditions: Mapping[str, Condition], field: Field
) -> Mapping[str, Tensor]:
    return collate(layout, conditions, [field]).cond


@pytest.mark.parametrize("layout", MASKED.values(), ids=MASKED.keys())
def test_values_outside_the_mask_have_no_effect(layout: Layout) -> None:
    denoiser = random_model(layout)
    batch = collate(layout, {}, varying(layout, [5, 3, 7], {}))
    assert batch.mask is not None
    t = times(3)
    prediction = denoiser(batch.x, t, mask=batch.mask)
    for garbage in (1e9, -1e9, torch.inf, torch.nan):
        other = denoiser(torch.where(batch.mask, batch.x, garbage), t, mask=batch.mask)
        assert torch.equal(other, prediction)


def test_a_sample_without_data_equals_one_of_zeros() -> None:
    denoiser = random_model(layout((6, 2)))
    z, t = noise(2, 2, 6), times(2)
    mask = torch.tensor([True, False])[:, None, None].expand(2, 1, 6)
    zeros = denoiser(torch.where(mask, z, 0.0), t)
    assert difference(denoiser(z, t, mask=mask), zeros) < 1e-5


def test_a_missing_cell_differs_from_a_zero_where_the_layout_has_missing_data() -> None:
    for missing, same in ((True, False), (False, True)):
        denoiser = random_model(Layout((Axis("row", 6, 2),), ("u", "v"), missing=missing))
        z, t = noise(1, 2, 6), times(1)
        z[0, 0, 1] = 0
        mask = torch.ones(1, 2, 6, dtype=torch.bool)
        prediction = denoiser(z, t, mask=mask)
        mask[0, 0, 1] = False
        assert (difference(denoiser(z, t, mask=mask), prediction) < 1e-6) == same


@pytest.mark.parametrize("missing", [False, True])
def test_a_mask_of_true_equals_no_mask(missing: bool) -> None:
    denoiser = random_model(Layout((Axis("row", 6, 2),), ("u", "v"), missing=missing), EVERY_KIND)
    z, t, cond = noise(2, 2, 6), times(2), conditions_for(2, 6)
    for channels in (1, 2):
        mask = torch.ones(2, channels, 6, dtype=torch.bool)
        assert difference(denoiser(z, t, cond, mask), denoiser(z, t, cond)) < 1e-5


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_the_order_of_a_set_does_not_matter(order: list[int]) -> None:
    conditions = {name: EVERY_KIND[name] for name in ("label", "orography", "element")}
    denoiser = random_model(layout((6, 1, "set")), conditions)
    z, t, cond = noise(2, 2, 6), times(2), conditions_for(2, 6)
    mask = torch.tensor([[[True] * 6], [[True] * 4 + [False] * 2]])
    shuffled = {
        "label": cond["label"],
        "orography": cond["orography"][..., order],
        "element": cond["element"][..., order],
    }
    prediction = denoiser(z, t, {name: cond[name] for name in conditions}, mask)
    again = denoiser(z[..., order], t, shuffled, mask[..., order])
    # predictions where there are no data have no meaning
    seen = mask[..., order].expand_as(again)
    assert difference(again[seen], prediction[..., order][seen]) < 1e-5


def test_the_order_of_a_line_matters() -> None:
    denoiser = random_model(layout((6, 1)))
    z, t = noise(1, 2, 6), times(1)
    assert difference(denoiser(z.flip(-1), t), denoiser(z, t).flip(-1)) > 1e-2


# Positions of tokens


@pytest.mark.parametrize("by", [1, 3, 7])
def test_attention_on_a_circle_is_equivariant_to_rolling(by: int) -> None:
    attention = Attention(16, 2)
    randomize(attention)
    x = noise(2, 8, 16)

    def attend(kind: Any, x: Tensor) -> Tensor:
        axes = [Axis("longitude", 16, 2, kind)]
        return attention(x, rotary_embedding(token_coords((16,), (2,)), axes, 8), None)

    rolled = x.roll(by, dims=1)
    assert difference(attend("circle", rolled), attend("circle", x).roll(by, dims=1)) < 1e-5
    assert difference(attend("line", rolled), attend("line", x).roll(by, dims=1)) > 1e-2


def test_attention_with_positions_depends_on_relative_positions_only() -> None:
    attention = Attention(16, 2, relative=True)
    randomize(attention)
    x, at, vectors = noise(2, 5, 16), noise(2, 5, 3, seed=1), position_frequencies(2, 4, 3)

    def attend(at: Tensor) -> Tensor:
        return attention(x, rotary_of_positions(at, vectors), None)

    plain = attend(at)
    assert difference(attend(at + torch.tensor([3.0, -2.0, 5.0])), plain) < 1e-5
    moved = at.clone()
    moved[:, 0, 2] += 0.5
    assert (attend(moved) - plain).abs().amax(dim=2).min() > 1e-3  # at every token


def test_attended_values_are_rotated_by_the_relative_position() -> None:
    """With two tokens of which only the second is attended to, its value rotates by w (r2 - r1)."""
    attention = Attention(8, 1, relative=True)
    randomize(attention)
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    x, at, vectors = noise(1, 2, 8), noise(1, 2, 3, seed=1), position_frequencies(1, 4, 3)
    seen = torch.tensor([False, True])[None, None, None]
    out = attention(x, rotary_of_positions(at, vectors), seen)
    angle = (vectors[0] @ (at[0, 1] - at[0, 0]))[None]
    value = attention.qkv(x)[0, 1:, 16:]
    torch.testing.assert_close(out[0, :1], rotate(value, cos_sin(angle)))
    torch.testing.assert_close(out[0, 1:], value)  # no rotation between a token and itself


def test_a_token_of_several_cells_is_at_the_mean_of_those_that_have_data() -> None:
    """With one of two cells missing, the rotation is that of the other cell."""
    points = Layout((Axis("row", 4, 2),), ("x", "y", "hue"), missing=True, positions=("x", "y"))
    network = random_model(points).network
    z, mask = noise(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    mask[:, :, 1] = False
    rotary = network._with_data_positions(network.rotary, z, mask)
    at = torch.stack((z[0, :2, 0], z[0, :2, 2:].mean(dim=1)))[None]
    of_data, of_axis = rotary_of_positions(at, network.frequencies), network.rotary
    half = of_axis.shape[-2]
    assert half == of_data.shape[-2] > 0  # axis and positions have half of the pairs each
    torch.testing.assert_close(rotary[..., :half, :], of_axis.expand(1, len(rotary[0]), -1, -1, -1))
    torch.testing.assert_close(rotary[..., half:, :], of_data)


@pytest.mark.parametrize("kind", ["set", "line"])
def test_a_network_depends_on_relative_positions_of_points(kind: Any) -> None:
    """Without position inputs, moving one point changes the predictions of the others through
    attention; moving all points changes nothing."""
    points = Layout((Axis("point", 6, kind=kind),), ("x", "y", "hue"), positions=("x", "y"))
    denoiser = random_model(points)
    with torch.no_grad():
        denoiser.network.embed.proj1.weight[:, :2] = 0
    z, t = noise(1, 3, 6), times(1)
    plain = denoiser(z, t)
    one_moved, all_moved = z.clone(), z.clone()
    one_moved[:, 0, 0] += 0.5
    all_moved[:, :2] += torch.tensor([3.0, -2.0])[:, None]
    assert (denoiser(one_moved, t) - plain).abs().amax(dim=(0, 1)).min() > 1e-3
    assert difference(denoiser(all_moved, t), plain) < 1e-4


@pytest.mark.parametrize("by", [1, 5])
def test_a_network_is_equivariant_on_a_circle_without_sincos_and_context(by: int) -> None:
    def miss(in_context_tokens: int, *, pos_embed: bool) -> float:
        denoiser = random_model(
            layout((4, 2), (12, 2, "circle")),
            {"label": Category(10)},
            in_context_tokens=in_context_tokens,
        )
        if not pos_embed:
            denoiser.network.pos_embed.zero_()
        z, t, label = noise(2, 2, 4, 12), times(2), {"label": 3}
        rolled = denoiser(z.roll(2 * by, dims=-1), t, label)
        return difference(rolled, denoiser(z, t, label).roll(2 * by, dims=-1))

    assert miss(0, pos_embed=False) < 1e-5
    assert miss(0, pos_embed=True) > 1e-2  # the embedding contains the absolute longitude
    assert miss(2, pos_embed=False) > 1e-2  # context tokens are not rotated: they are at 0


@AXES
def test_coords_of_0_1_2_equal_no_coords(layout: Layout) -> None:
    denoiser = random_model(layout, EVERY_KIND)
    z, t, cond = noise(2, 2, *layout.grid), times(2), conditions_for(2, *layout.grid)
    lines = torch.meshgrid(*(torch.arange(float(n)) for n in layout.grid), indexing="ij")
    coords = torch.stack(lines, dim=-1).expand(2, *layout.grid, -1)
    prediction = denoiser(z, t, cond)
    assert difference(denoiser(z, t, cond, coords=coords), prediction) < 1e-5
    ordered = torch.tensor([axis.kind != "set" for axis in layout.axes])
    shifted = denoiser(z, t, cond, coords=coords + 0.7 * ordered)
    assert difference(shifted, prediction) > 1e-3


def test_each_sample_may_have_its_own_coords() -> None:
    denoiser = random_model(layout((6, 2)))
    z, t = noise(2, 2, 6), times(2)
    coords = torch.arange(6.0)[:, None] * torch.tensor([1.0, 3.0])[:, None, None]
    prediction = denoiser(z, t, coords=coords)
    for i in range(2):
        alone = denoiser(z[i : i + 1], t[i : i + 1], coords=coords[i : i + 1])
        assert difference(prediction[i : i + 1], alone) < 1e-5


@pytest.mark.parametrize("grid", [(6, 4), (8, 6), (2, 2), (5, 3), (1, 1), (7, 9)])
def test_a_grid_may_differ_from_the_layouts(grid: tuple[int, int]) -> None:
    """Positions on lines are absolute, so a model built for that grid predicts the same."""
    native_layout = layout(*((max(size, 2), 2) for size in grid))
    denoiser, native = (
        random_model(layout((6, 2), (4, 2)), EVERY_KIND),
        random_model(native_layout, EVERY_KIND),
    )
    z, t, cond = noise(2, 2, *grid), times(2), conditions_for(2, *grid)
    prediction = denoiser(z, t, cond)
    assert prediction.shape == z.shape
    assert difference(prediction, native(z, t, cond)) < 1e-5


# Training


def test_dropout_acts_in_the_middle_half_and_only_in_training() -> None:
    denoiser = random_model(layout((6, 2)), depth=4, dropout=0.5)
    z, t = noise(1, 2, 6), times(1)
    seen: dict[int, list[Tensor]] = defaultdict(list)
    for i, block in enumerate(denoiser.network.blocks):
        block.register_forward_hook(
            lambda _module, _inputs, output, i=i: seen[i].append(output.detach())
        )

    def twice() -> dict[int, tuple[Tensor, Tensor]]:
        seen.clear()
        for seed in range(2):
            torch.manual_seed(seed)
            denoiser(z, t)
        return {i: (first, second) for i, (first, second) in seen.items()}

    assert all(torch.equal(*pair) for pair in twice().values())
    denoiser.train()
    pairs = twice()
    assert torch.equal(*pairs[0])
    assert not torch.equal(*pairs[1])
    assert not torch.equal(*pairs[2])
    last: Any = denoiser.network.blocks[3]
    assert last.attn.dropout.p == last.mlp.dropout.p == 0


def batch_with_holes() -> tuple[Denoiser, Batch]:
    """A model with every kind of condition, and samples of which one has no data at all."""
    grid = Layout((Axis("row", 6, 2), Axis("column", 5, 2)), ("u", "v"), missing=True)
    x = noise(3, 2, 6, 5)
    mask = noise(3, 2, 6, 5, seed=5) > -0.5
    mask[2] = False
    cond = conditions_for(3, 6, 5)
    cond["orography"][0, 0, :3] = torch.nan
    cond["weather"][1, 0] = torch.nan
    return random_model(grid, EVERY_KIND, dropout=0.2), Batch(torch.where(mask, x, 0.0), mask, cond)


def loss_of(denoiser: Denoiser, batch: Batch) -> Tensor:
    n, eps = len(batch.x), noise(*batch.x.shape, seed=7)
    return denoiser.losses(batch.x, eps, times(n), batch.conditioning).mean()


def test_gradients_are_finite_with_missing_data_and_nonzero_for_every_parameter() -> None:
    denoiser, batch = batch_with_holes()
    torch.autograd.backward(loss_of(denoiser.train(), batch))
    for name, p in denoiser.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_the_gradient_matches_finite_differences() -> None:
    denoiser, batch = batch_with_holes()
    torch.autograd.backward(loss_of(denoiser, batch))
    weights = list(denoiser.parameters())
    direction = [noise(*p.shape, seed=i) for i, p in enumerate(weights)]
    slope = sum((p.grad * d).sum().item() for p, d in zip(weights, direction, strict=True)
                if p.grad is not None)  # fmt: skip

    @torch.no_grad()
    def along(step: float) -> float:
        for p, d in zip(weights, direction, strict=True):
            p.add_(step * d)
        loss = loss_of(denoiser, batch).item()
        for p, d in zip(weights, direction, strict=True):
            p.sub_(step * d)
        return loss

    step = 1e-3
    assert (along(step) - along(-step)) / (2 * step) == pytest.approx(slope, rel=0.01)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    denoiser, batch = batch_with_holes()
    gradients = []
    for checkpointed in (False, True):
        denoiser.zero_grad()
        denoiser.network.checkpoint_activations = checkpointed
        calls = count_calls(denoiser.network.blocks[0])
        torch.manual_seed(0)  # for dropout
        torch.autograd.backward(loss_of(denoiser.train(), batch))
        assert len(calls) == 1 + checkpointed
        gradients.append([p.grad.clone() for p in denoiser.parameters() if p.grad is not None])
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def count_calls(module: nn.Module) -> list[None]:
    """A list that grows by one with every call of a module."""
    calls: list[None] = []
    module.register_forward_pre_hook(lambda _module, _inputs: calls.append(None))
    return calls


def test_under_bfloat16_the_residual_stream_stays_float32() -> None:
    denoiser = random_model(layout((6, 2)), {"label": Category(10)})
    z, t = noise(2, 2, 6), times(2)
    exact = denoiser(z, t, {"label": 3})
    stream, products = [], []
    for block in denoiser.network.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: stream.append(out.dtype))
        linear: Any = block.attn
        linear.proj.register_forward_hook(lambda _module, _inputs, out: products.append(out.dtype))
    denoiser.network.autocast = torch.bfloat16
    prediction = denoiser(z, t, {"label": 3})
    assert stream == [torch.float32] * 3
    assert products == [torch.bfloat16] * 3
    assert prediction.dtype == torch.float32
    assert 0 < difference(prediction, exact) < 0.05


# Compiling


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def plain() -> tuple[Denoiser, tuple[Any, ...]]:
    """A model and its inputs, without a mask."""
    label = {"label": torch.tensor([3, 10])}
    return random_model(layout((6, 2)), {"label": Category(10)}), (noise(2, 2, 6), times(2), label)


def full() -> tuple[Denoiser, tuple[Any, ...]]:
    """A model and its inputs: a mask, missing cells, every kind of condition."""
    denoiser, batch = batch_with_holes()
    return denoiser, (batch.x, times(3), batch.cond, batch.mask)


def test_rms_norm_and_its_gradients_equal_torch() -> None:
    norm = RMSNorm(24)
    torch.nn.init.normal_(norm.weight)
    x, shift, scale = torch.randn(3, 5, 24), torch.randn(3, 24), torch.randn(3, 24)
    leaves = [leaf.requires_grad_() for leaf in (x, shift, scale)] + [norm.weight]
    plain = torch.nn.functional.rms_norm(x, (24,), norm.weight, eps=1e-6)
    expected = plain * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    modulated = norm.modulated(x, shift, scale)
    torch.testing.assert_close(norm(x), plain)
    torch.testing.assert_close(modulated, expected)
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((modulated * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


CASES = pytest.mark.parametrize("case", [plain, full])


@CASES
@pytest.mark.usefixtures("_fresh_compiler")
def test_the_whole_network_is_one_graph(case: Any) -> None:
    denoiser, inputs = case()
    counter = CompileCounter()
    compiled: Any = torch.compile(denoiser.network, fullgraph=True, backend=counter)
    with torch.no_grad():
        for _ in range(3):
            # not bit-identical: in eager mode pairs are rotated as complex numbers
            torch.testing.assert_close(compiled(*inputs), denoiser.network(*inputs))
    assert counter.frame_count == 1


@pytest.mark.slow
@CASES
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_network_predicts_the_same(case: Any) -> None:
    denoiser, inputs = case()
    expected = denoiser.network(*inputs)
    compiled: Any = torch.compile(denoiser.network, fullgraph=True)
    for _ in range(2):
        assert difference(compiled(*inputs), expected) < 1e-5
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@CASES
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch accesses it itself
def test_compiled_blocks_predict_the_same_and_share_graphs(case: Any) -> None:
    denoiser, inputs = case()
    expected = denoiser.network(*inputs)
    torch.autograd.backward(expected.square().mean())
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    denoiser.zero_grad()
    denoiser.network.compile_blocks()
    for _ in range(2):
        prediction = denoiser.network(*inputs)
    assert difference(prediction, expected) < 1e-5
    assert counters["stats"]["unique_graphs"] == 2  # before and after the in-context tokens
    torch.autograd.backward(prediction.square().mean())
    for name, p in denoiser.named_parameters():
        assert p.grad is not None and gradients[name] is not None
        torch.testing.assert_close(p.grad, gradients[name], atol=1e-4, rtol=1e-4)


# Errors


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"width": 16, "heads": 3}, "width 16 is not a multiple of 3 heads"),
        (
            {"depth": 3, "in_context_start": 3},
            "in-context tokens cannot join before block 3: the network has blocks 0 to 2",
        ),
    ],
)
def test_invalid_sizes_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        sizes(**given)
