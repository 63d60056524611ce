"""The network: its sizes, what reaches what, and what never matters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import awake, awaken, difference, layout, sizes
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


def told(n: int, *grid: int) -> dict[str, Tensor]:
    """A value of every kind for each of n samples."""
    return {
        "label": torch.arange(n) % 10,
        "weather": noise(n, 2, seed=1),
        "orography": noise(n, 2, *grid, seed=2),
        "element": (noise(n, *grid, seed=3).abs() * 2).long().clamp_max(4),
    }


def paper(size: Any, patch: int, **given: Any) -> Denoiser:
    """A model of the paper on the meta device: 16 x 16 tokens, 1,000 classes."""
    axes = (Axis("row", 16 * patch, patch), Axis("column", 16 * patch, patch))
    numbers = Sizes(**ModelSection(size=size, **given).resolved())
    with torch.device("meta"):
        return Denoiser(
            Layout(axes, ("red", "green", "blue")), {"label": Category(1000)}, numbers
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


def test_cost_does_not_grow_where_grid_and_patch_do() -> None:
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


# The first guess

ONE_TO_FOUR = [
    layout((6, 2)),
    layout((6, 2), (4, 2, "circle")),
    layout((4, 2), (4, 1), (3, 1, "set")),
    layout((2, 1), (4, 2), (4, 2, "circle"), (3, 3)),
]
AXES = pytest.mark.parametrize("layout", ONE_TO_FOUR, ids=lambda layout: f"{len(layout.axes)} axes")


@AXES
@pytest.mark.parametrize("conditions", [{}, EVERY_KIND], ids=["unconditional", "conditional"])
def test_the_first_guess_is_exactly_zero(
    layout: Layout, conditions: Mapping[str, Condition]
) -> None:
    denoiser = Denoiser(layout, conditions, sizes())
    z = noise(2, 2, *layout.grid)
    cond = {name: told(2, *layout.grid)[name] for name in conditions}
    guess = denoiser(z, times(2), cond)
    assert guess.shape == z.shape and guess.dtype == torch.float32
    assert not guess.any()


def test_blocks_start_as_the_identity() -> None:
    network = Denoiser(layout((6, 2)), {"label": Category(3)}, sizes()).network
    x = noise(2, 3, 16)
    for block in network.blocks:
        assert torch.equal(block(x, noise(2, 16), network.rotary, None), x)


def test_weights_start_as_the_papers() -> None:
    """Xavier's bound, sqrt(6 / (in + out)); the tables and the layers of time, N(0, 0.02²)."""
    large = sizes(width=256, heads=2, bottleneck=64, mlp_hidden=512, in_context_tokens=64)
    network = Denoiser(layout((4, 2), (4, 2)), {"label": Category(99)}, large).network
    weights = dict(network.named_parameters())
    for name in ("attn.qkv", "attn.proj", "mlp.w12", "mlp.w3"):
        own = weights[f"blocks.0.{name}.weight"]
        bound = (6 / sum(own.shape)) ** 0.5
        assert own.abs().max() <= bound and own.abs().max() > 0.99 * bound
        assert not weights[f"blocks.0.{name}.bias"].any()
    for name in ("time.layer1.weight", "time.layer2.weight", "context"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.05)
    (table,) = network.vectors.parameters()
    assert table.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("prediction", ["x", "v"])
def test_the_first_loss_is_that_of_a_guess_of_zero(prediction: Any) -> None:
    denoiser = Denoiser(layout((6, 2)), {}, sizes(), Diffusion(prediction))
    x, eps = noise(4, 2, 6), noise(4, 2, 6, seed=1)
    t = torch.tensor([0.1, 0.3, 0.5, 0.9])
    wanted = x / (1 - t)[:, None, None] if prediction == "x" else x - eps
    found = denoiser.losses(x, eps, t, {})
    torch.testing.assert_close(found, wanted.square().mean(dim=(1, 2)))


# What reaches what


@AXES
def test_an_awake_network_tells_times_and_samples_apart(layout: Layout) -> None:
    denoiser = awake(layout, EVERY_KIND)
    z, t, cond = noise(1, 2, *layout.grid), times(1), told(1, *layout.grid)
    guess = denoiser(z, t, cond)
    assert difference(denoiser(z, t + 0.3, cond), guess) > 1e-3
    assert difference(denoiser(z + 0.3, t, cond), guess) > 1e-3


def test_every_token_sees_every_other() -> None:
    denoiser = awake(layout((8, 2), (3, 1)))
    z, t = noise(1, 2, 8, 3), times(1)
    guess, other = denoiser(z, t), z.clone()
    other[..., 7, 2] += 1
    assert ((denoiser(other, t) - guess).abs() > 1e-5).all()


@pytest.mark.parametrize("name", list(EVERY_KIND))
def test_what_is_told_changes_the_guess(name: str) -> None:
    denoiser = awake(layout((6, 2), (4, 2)), {name: EVERY_KIND[name]})
    z, t, value = noise(2, 2, 6, 4), times(2), told(2, 6, 4)[name]
    untold = denoiser(z, t)
    assert difference(denoiser(z, t, {name: value}), untold) > 1e-3
    assert difference(denoiser(z, t, {name: value.flip(0)}), denoiser(z, t, {name: value})) > 1e-3


@pytest.mark.parametrize("name", list(EVERY_KIND))
def test_dropped_is_the_same_as_never_told(name: str) -> None:
    denoiser = awake(layout((6, 2), (4, 2)), EVERY_KIND)
    z, t, cond = noise(2, 2, 6, 4), times(2), told(2, 6, 4)
    dropped = cond | {name: null_condition(EVERY_KIND[name], cond[name])}
    never = {other: value for other, value in cond.items() if other != name}
    assert torch.equal(denoiser(z, t, dropped), denoiser(z, t, never))


@pytest.mark.parametrize("name", ["weather", "orography"])
def test_one_unknown_number_leaves_the_others_told(name: str) -> None:
    denoiser = awake(layout((6, 2), (4, 2)), EVERY_KIND)
    z, t, cond = noise(1, 2, 6, 4), times(1), told(1, 6, 4)
    half = cond[name].clone()
    half[0, 0] = torch.nan
    guesses = [denoiser(z, t, cond | {name: value}) for value in (cond[name], half, half * 2)]
    assert difference(guesses[1], guesses[0]) > 1e-3
    assert difference(guesses[2], guesses[1]) > 1e-3
    assert all(guess.isfinite().all() for guess in guesses)


def test_in_context_tokens_carry_the_condition() -> None:
    denoiser = awake(layout((6, 2)), {"label": Category(10)}, in_context_start=2)
    z, t = noise(1, 2, 6), times(1)
    lengths = lengths_in_blocks(denoiser.network)
    guess = denoiser(z, t, {"label": 3})
    assert lengths == [3, 3, 5]
    with torch.no_grad():
        denoiser.network.context.add_(1)
    assert difference(denoiser(z, t, {"label": 3}), guess) > 1e-3


@pytest.mark.parametrize("conditions", [{}, {"element": PerToken(5)}])
def test_without_a_vector_there_are_no_in_context_tokens(
    conditions: Mapping[str, Condition],
) -> None:
    denoiser = awake(layout((6, 2)), conditions)
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
    denoiser = awake(layout((6, 2)), conditions)
    z, t = noise(1, 2, 6), times(1)
    guesses = [denoiser(z, t)]
    for name in names:
        guesses.append(denoiser(z, t, {name: 0}))
        guesses.append(denoiser(z, t, {f"{name} at": torch.zeros(6, dtype=torch.long)}))
    for i, one in enumerate(guesses):
        assert all(difference(one, other) > 1e-4 for other in guesses[:i])


# What never matters: padding, and what lies behind a mask


def varying(layout: Layout, lengths: list[int], conditions: Mapping[str, Condition]) -> list[Field]:
    """Fields whose first axis has these lengths."""
    fields = []
    for seed, length in enumerate(lengths):
        grid = (length, *layout.grid[1:])
        values = noise(len(layout.channels), *grid, seed=seed)
        cond = {name: told(2, *grid)[name][seed % 2] for name in conditions}
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
def test_a_padded_batch_gives_what_single_items_give(
    layout: Layout, conditions: Mapping[str, Condition]
) -> None:
    denoiser = awake(layout, conditions)
    lengths = [5, 3, 7, 4, 1]
    fields = varying(layout, lengths, conditions)
    t = times(len(fields))
    batch = collate(layout, conditions, fields)
    assert batch.mask is not None
    guess = denoiser(batch.x, t, batch.cond, batch.mask)
    for i, (field, length) in enumerate(zip(fields, lengths, strict=True)):
        alone = denoiser(field.values[None], t[i : i + 1], collate_one(layout, conditions, field))
        assert difference(guess[i, :, :length], alone[0]) < 1e-5


def collate_one(
    layout: Layout, conditions: Mapping[str, Condition], field: Field
) -> Mapping[str, Tensor]:
    return collate(layout, conditions, [field]).cond


@pytest.mark.parametrize("layout", MASKED.values(), ids=MASKED.keys())
def test_values_behind_the_mask_never_matter(layout: Layout) -> None:
    denoiser = awake(layout)
    batch = collate(layout, {}, varying(layout, [5, 3, 7], {}))
    assert batch.mask is not None
    t = times(3)
    guess = denoiser(batch.x, t, mask=batch.mask)
    for garbage in (1e9, -1e9, torch.inf, torch.nan):
        other = denoiser(torch.where(batch.mask, batch.x, garbage), t, mask=batch.mask)
        assert torch.equal(other, guess)


def test_a_sample_without_any_data_is_as_one_of_zeros() -> None:
    denoiser = awake(layout((6, 2)))
    z, t = noise(2, 2, 6), times(2)
    mask = torch.tensor([True, False])[:, None, None].expand(2, 1, 6)
    zeros = denoiser(torch.where(mask, z, 0.0), t)
    assert difference(denoiser(z, t, mask=mask), zeros) < 1e-5


def test_a_missing_cell_is_not_the_same_as_a_zero() -> None:
    for missing, same in ((True, False), (False, True)):
        denoiser = awake(Layout((Axis("row", 6, 2),), ("u", "v"), missing=missing))
        z, t = noise(1, 2, 6), times(1)
        z[0, 0, 1] = 0
        mask = torch.ones(1, 2, 6, dtype=torch.bool)
        guess = denoiser(z, t, mask=mask)
        mask[0, 0, 1] = False
        assert (difference(denoiser(z, t, mask=mask), guess) < 1e-6) == same


@pytest.mark.parametrize("missing", [False, True])
def test_a_mask_of_true_is_no_mask(missing: bool) -> None:
    denoiser = awake(Layout((Axis("row", 6, 2),), ("u", "v"), missing=missing), EVERY_KIND)
    z, t, cond = noise(2, 2, 6), times(2), told(2, 6)
    for channels in (1, 2):
        mask = torch.ones(2, channels, 6, dtype=torch.bool)
        assert difference(denoiser(z, t, cond, mask), denoiser(z, t, cond)) < 1e-5


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(6)))
def test_the_order_of_a_set_does_not_matter(order: list[int]) -> None:
    conditions = {name: EVERY_KIND[name] for name in ("label", "orography", "element")}
    denoiser = awake(layout((6, 1, "set")), conditions)
    z, t, cond = noise(2, 2, 6), times(2), told(2, 6)
    mask = torch.tensor([[[True] * 6], [[True] * 4 + [False] * 2]])
    shuffled = {
        "label": cond["label"],
        "orography": cond["orography"][..., order],
        "element": cond["element"][..., order],
    }
    guess = denoiser(z, t, {name: cond[name] for name in conditions}, mask)
    again = denoiser(z[..., order], t, shuffled, mask[..., order])
    # what the network says where there are no data means nothing
    seen = mask[..., order].expand_as(again)
    assert difference(again[seen], guess[..., order][seen]) < 1e-5


def test_the_order_of_a_line_matters() -> None:
    denoiser = awake(layout((6, 1)))
    z, t = noise(1, 2, 6), times(1)
    assert difference(denoiser(z.flip(-1), t), denoiser(z, t).flip(-1)) > 1e-2


# Where tokens lie


@pytest.mark.parametrize("by", [1, 3, 7])
def test_attention_on_a_circle_rolls_with_its_tokens(by: int) -> None:
    attention = Attention(16, 2)
    awaken(attention)
    x = noise(2, 8, 16)

    def attend(kind: Any, x: Tensor) -> Tensor:
        axes = [Axis("longitude", 16, 2, kind)]
        return attention(x, rotary_embedding(token_coords((16,), (2,)), axes, 8), None)

    rolled = x.roll(by, dims=1)
    assert difference(attend("circle", rolled), attend("circle", x).roll(by, dims=1)) < 1e-5
    assert difference(attend("line", rolled), attend("line", x).roll(by, dims=1)) > 1e-2


def test_attention_by_places_sees_how_tokens_lie_to_one_another_and_not_where_all_lie() -> None:
    attention = Attention(16, 2, relative=True)
    awaken(attention)
    x, at, vectors = noise(2, 5, 16), noise(2, 5, 3, seed=1), position_frequencies(2, 4, 3)

    def attend(at: Tensor) -> Tensor:
        return attention(x, rotary_of_positions(at, vectors), None)

    plain = attend(at)
    assert difference(attend(at + torch.tensor([3.0, -2.0, 5.0])), plain) < 1e-5
    moved = at.clone()
    moved[:, 0, 2] += 0.5
    assert (attend(moved) - plain).abs().amax(dim=2).min() > 1e-3  # every token sees it


def test_what_attention_brings_is_turned_by_where_it_comes_from() -> None:
    """Two tokens, of which only the second may be looked at: its value turns by w . (r2 - r1)."""
    attention = Attention(8, 1, relative=True)
    awaken(attention)
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    x, at, vectors = noise(1, 2, 8), noise(1, 2, 3, seed=1), position_frequencies(1, 4, 3)
    seen = torch.tensor([False, True])[None, None, None]
    out = attention(x, rotary_of_positions(at, vectors), seen)
    angle = (vectors[0] @ (at[0, 1] - at[0, 0]))[None]
    value = attention.qkv(x)[0, 1:, 16:]
    torch.testing.assert_close(out[0, :1], rotate(value, cos_sin(angle)))
    torch.testing.assert_close(out[0, 1:], value)  # nothing lies between a token and itself


def test_a_token_of_several_cells_lies_at_the_mean_of_those_that_have_data() -> None:
    """A network told of two cells, one of them missing, turns as if the other were all there is."""
    own = Layout((Axis("row", 4, 2),), ("x", "y", "hue"), missing=True, positions=("x", "y"))
    network = awake(own).network
    z, mask = noise(1, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    mask[:, :, 1] = False
    rotary = network._with_own_positions(network.rotary, z, mask)
    at = torch.stack((z[0, :2, 0], z[0, :2, 2:].mean(dim=1)))[None]
    by_place, half = rotary_of_positions(at, network.waves), network.rotary
    count = half.shape[-2]
    assert count == by_place.shape[-2] > 0  # the axis and the places share the pairs
    torch.testing.assert_close(rotary[..., :count, :], half.expand(1, len(rotary[0]), -1, -1, -1))
    torch.testing.assert_close(rotary[..., count:, :], by_place)


@pytest.mark.parametrize("kind", ["set", "line"])
def test_a_network_sees_how_points_lie_to_one_another(kind: Any) -> None:
    """Of a network that cannot see places but by attention, other points' guesses move with one;
    with all of them nothing moves."""
    own = Layout((Axis("point", 6, kind=kind),), ("x", "y", "hue"), positions=("x", "y"))
    denoiser = awake(own)
    with torch.no_grad():
        denoiser.network.embed.proj1.weight[:, :2] = 0
    z, t = noise(1, 3, 6), times(1)
    plain = denoiser(z, t)
    one, all_of = z.clone(), z.clone()
    one[:, 0, 0] += 0.5
    all_of[:, :2] += torch.tensor([3.0, -2.0])[:, None]
    assert (denoiser(one, t) - plain).abs().amax(dim=(0, 1)).min() > 1e-3
    assert difference(denoiser(all_of, t), plain) < 1e-4


@pytest.mark.parametrize("by", [1, 5])
def test_but_for_fixed_code_and_in_context_tokens_a_network_rolls_with_a_circle(by: int) -> None:
    def miss(in_context_tokens: int, *, code: bool) -> float:
        denoiser = awake(
            layout((4, 2), (12, 2, "circle")),
            {"label": Category(10)},
            in_context_tokens=in_context_tokens,
        )
        if not code:
            denoiser.network.code.zero_()
        z, t, label = noise(2, 2, 4, 12), times(2), {"label": 3}
        rolled = denoiser(z.roll(2 * by, dims=-1), t, label)
        return difference(rolled, denoiser(z, t, label).roll(2 * by, dims=-1))

    assert miss(0, code=False) < 1e-5
    assert miss(0, code=True) > 1e-2  # it says which longitude a token is at
    assert miss(2, code=False) > 1e-2  # they do not turn, which is to lie at 0


@AXES
def test_cells_at_0_1_2_are_where_cells_are_without_coords(layout: Layout) -> None:
    denoiser = awake(layout, EVERY_KIND)
    z, t, cond = noise(2, 2, *layout.grid), times(2), told(2, *layout.grid)
    lines = torch.meshgrid(*(torch.arange(float(n)) for n in layout.grid), indexing="ij")
    coords = torch.stack(lines, dim=-1).expand(2, *layout.grid, -1)
    guess = denoiser(z, t, cond)
    assert difference(denoiser(z, t, cond, coords=coords), guess) < 1e-5
    ordered = torch.tensor([axis.kind != "set" for axis in layout.axes])
    elsewhere = denoiser(z, t, cond, coords=coords + 0.7 * ordered)
    assert difference(elsewhere, guess) > 1e-3


def test_each_sample_may_lie_elsewhere() -> None:
    denoiser = awake(layout((6, 2)))
    z, t = noise(2, 2, 6), times(2)
    coords = torch.arange(6.0)[:, None] * torch.tensor([1.0, 3.0])[:, None, None]
    guess = denoiser(z, t, coords=coords)
    for i in range(2):
        alone = denoiser(z[i : i + 1], t[i : i + 1], coords=coords[i : i + 1])
        assert difference(guess[i : i + 1], alone) < 1e-5


@pytest.mark.parametrize("grid", [(6, 4), (8, 6), (2, 2), (5, 3), (1, 1), (7, 9)])
def test_a_grid_may_be_another_than_the_layouts(grid: tuple[int, int]) -> None:
    """Positions on lines are absolute, so a model made for that grid says the same."""
    made_for_it = layout(*((max(size, 2), 2) for size in grid))
    denoiser, native = awake(layout((6, 2), (4, 2)), EVERY_KIND), awake(made_for_it, EVERY_KIND)
    z, t, cond = noise(2, 2, *grid), times(2), told(2, *grid)
    guess = denoiser(z, t, cond)
    assert guess.shape == z.shape
    assert difference(guess, native(z, t, cond)) < 1e-5


# Training


def test_dropout_acts_in_the_middle_half_and_in_training_alone() -> None:
    denoiser = awake(layout((6, 2)), depth=4, dropout=0.5)
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
    """A model that knows every kind of condition, and samples of which one has no data at all."""
    grid = Layout((Axis("row", 6, 2), Axis("column", 5, 2)), ("u", "v"), missing=True)
    x = noise(3, 2, 6, 5)
    mask = noise(3, 2, 6, 5, seed=5) > -0.5
    mask[2] = False
    cond = told(3, 6, 5)
    cond["orography"][0, 0, :3] = torch.nan
    cond["weather"][1, 0] = torch.nan
    return awake(grid, EVERY_KIND, dropout=0.2), Batch(torch.where(mask, x, 0.0), mask, cond)


def loss_of(denoiser: Denoiser, batch: Batch) -> Tensor:
    n, eps = len(batch.x), noise(*batch.x.shape, seed=7)
    return denoiser.losses(batch.x, eps, times(n), batch.cond, batch.mask).mean()


def test_gradients_are_finite_where_data_are_missing_and_reach_every_weight() -> None:
    denoiser, batch = batch_with_holes()
    torch.autograd.backward(loss_of(denoiser.train(), batch))
    for name, p in denoiser.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_the_gradient_is_the_slope_of_the_loss() -> None:
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


def test_checkpointed_activations_give_the_same_gradients() -> None:
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
    denoiser = awake(layout((6, 2)), {"label": Category(10)})
    z, t = noise(2, 2, 6), times(2)
    exact = denoiser(z, t, {"label": 3})
    stream, products = [], []
    for block in denoiser.network.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: stream.append(out.dtype))
        linear: Any = block.attn
        linear.proj.register_forward_hook(lambda _module, _inputs, out: products.append(out.dtype))
    denoiser.autocast = torch.bfloat16
    guess = denoiser(z, t, {"label": 3})
    assert stream == [torch.float32] * 3
    assert products == [torch.bfloat16] * 3
    assert guess.dtype == torch.float32
    assert 0 < difference(guess, exact) < 0.05


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
    return awake(layout((6, 2)), {"label": Category(10)}), (noise(2, 2, 6), times(2), label)


def full() -> tuple[Denoiser, tuple[Any, ...]]:
    """A model and its inputs: a mask, missing cells, every kind of condition."""
    denoiser, batch = batch_with_holes()
    return denoiser, (batch.x, times(3), batch.cond, batch.mask)


def test_a_norm_and_its_gradients_are_those_of_torch() -> None:
    norm = RMSNorm(24)
    torch.nn.init.normal_(norm.weight)
    x, shift, scale = torch.randn(3, 5, 24), torch.randn(3, 24), torch.randn(3, 24)
    leaves = [leaf.requires_grad_() for leaf in (x, shift, scale)] + [norm.weight]
    plain = torch.nn.functional.rms_norm(x, (24,), norm.weight, eps=1e-6)
    wanted = plain * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    found = norm.modulated(x, shift, scale)
    torch.testing.assert_close(norm(x), plain)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((wanted * weights).sum(), leaves),
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
            # not bit for bit: pairs turn as complex numbers where nothing is compiled
            torch.testing.assert_close(compiled(*inputs), denoiser.network(*inputs))
    assert counter.frame_count == 1


@pytest.mark.slow
@CASES
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_network_says_the_same(case: Any) -> None:
    denoiser, inputs = case()
    wanted = denoiser.network(*inputs)
    compiled: Any = torch.compile(denoiser.network, fullgraph=True)
    for _ in range(2):
        assert difference(compiled(*inputs), wanted) < 1e-5
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow
@CASES
@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks, and hides it
def test_compiled_blocks_say_the_same_and_share_their_graphs(case: Any) -> None:
    denoiser, inputs = case()
    wanted = denoiser.network(*inputs)
    torch.autograd.backward(wanted.square().mean())
    gradients = {name: p.grad for name, p in denoiser.named_parameters()}
    denoiser.zero_grad()
    denoiser.network.compile_blocks()
    for _ in range(2):
        guess = denoiser.network(*inputs)
    assert difference(guess, wanted) < 1e-5
    assert counters["stats"]["unique_graphs"] == 2  # before and after in-context tokens join
    torch.autograd.backward(guess.square().mean())
    for name, p in denoiser.named_parameters():
        assert p.grad is not None and gradients[name] is not None
        torch.testing.assert_close(p.grad, gradients[name], atol=1e-4, rtol=1e-4)


# Mistakes


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
def test_sizes_that_make_no_network_are_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(JitkitError, match=f"^{re.escape(text)}$"):
        sizes(**given)
