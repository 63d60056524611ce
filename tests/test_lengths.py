"""Samples of varying size and the zero-mean constraint: padding, batches by size, sizes to draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import difference, random_model
from PIL import Image
from torch import Tensor

import jitkit
from jitkit.data import PADDED_SIZES, BatchPlan, by_size, collate
from jitkit.diffusion.denoiser import Denoiser, Diffusion, build
from jitkit.diffusion.sampler import draw_noise, sample
from jitkit.diffusion.zero_mean import centre, membership
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.errors import ConditionError, DataError, JitkitError
from jitkit.fields import (
    Axis,
    Batch,
    Category,
    Condition,
    Conditioning,
    Field,
    Grid,
    Kind,
    Layout,
    PerToken,
    Scalars,
    describe,
    described,
)
from jitkit.protocols import HasSizes, VariableSize
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection
from jitkit.training.validation import validation_loss

CONDITIONS: dict[str, Condition] = {
    "class": Category(3),
    "state": Scalars(("energy", "size")),
    "past": Grid(("before",)),
    "type": PerToken(4),
}
QUICK = SampleSection(steps=3, guidance=2.0)
CLOUDS = Layout(
    (Axis("point", 40, kind="set"),),
    ("x", "y", "hue"),
    centred=(("x",), ("y",)),
    positions=("x", "y"),
)


def a_layout(
    kind: Kind, *, missing: bool = False, centred: bool = True, positions: Sequence[str] = ()
) -> Layout:
    axis = Axis("cell", 40, 1 if kind == "set" else 2, kind)
    groups = (("a", "b"), ("c",)) if centred else ()
    return Layout((axis,), ("a", "b", "c", "d"), missing, groups, tuple(positions))


def a_field(layout: Layout, size: int, seed: int) -> Field:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((len(layout.channels), size)).astype(np.float32))
    if layout.missing:
        values[0, seed % size] = torch.nan
    mask = values.isfinite()[None] if layout.missing else None
    values = centre(values[None], membership(layout), mask)[0]
    cond = {
        "class": seed % 3,
        "state": torch.tensor([0.3, torch.nan]),
        "past": torch.from_numpy(rng.standard_normal((1, size)).astype(np.float32)),
        "type": torch.from_numpy(rng.integers(0, 5, size)),
    }
    return Field(values, cond=cond)


class Clouds(VariableSize):
    """Clouds of 3 to 40 points in the plane, centred, with a hue; conditioned on their number."""

    layout = CLOUDS
    conditions: Mapping[str, Condition] = {"count": Scalars(("count",), drop=0.0)}

    def items(self, split: str) -> Sequence[Any]:
        return Many(50 if split == "train" else 6)

    def encode(self, item: int, rng: np.random.Generator | None = None) -> Field:
        made = np.random.default_rng(item)
        size = 3 + item * 7 % 38
        values = torch.from_numpy(made.standard_normal((3, size)).astype(np.float32))
        values = centre(values[None], membership(CLOUDS))[0]
        return Field(values, cond={"count": torch.tensor([float(size)])})

    def template(
        self, rng: np.random.Generator, cond: Mapping[str, Any], size: int | None = None
    ) -> Field:
        count = cond.get("count")
        size = size or (int(rng.choice([5, 6, 7])) if count is None else int(count[0]))
        return Field(torch.zeros(3, size), cond={"count": torch.tensor([float(size)])})

    def decode(self, field: Field) -> Tensor:
        return field.values if field.mask is None else field.values[:, field.mask[0]]

    def write(self, items: Iterable[Tensor], path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "sizes.npy"
        np.save(file, np.array([item.shape[1] for item in items]))
        return [file]

    def preview(self, items: Sequence[Tensor]) -> Image.Image:
        return Image.new("L", (8, 8))


class Many(HasSizes, Sequence[int]):
    """Items of `Clouds` with known sizes."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.sizes = np.array([3 + i * 7 % 38 for i in range(count)])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return range(self._count)[index]


def clouds(**given: Any) -> Denoiser:
    made = random_model(CLOUDS, Clouds.conditions, **given)
    made.domain = Clouds()
    return made


# Invariance to padding


@pytest.mark.parametrize("positions", [(), ("a", "b", "c")])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["line", "set"])
def test_a_padded_batch_equals_single_items(
    kind: Kind, missing: bool, positions: Sequence[str]
) -> None:
    layout = a_layout(kind, missing=missing, positions=positions)
    denoiser = random_model(layout, CONDITIONS)
    fields = [a_field(layout, size, seed) for seed, size in enumerate((5, 31, 12))]
    batch = collate(layout, CONDITIONS, fields)
    noise = draw_noise(denoiser, range(3), seed=0)
    t = torch.tensor([0.2, 0.6, 0.9])

    def evaluate(batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        eps = noise[rows, :, : batch.x.shape[2]]
        loss = denoiser.losses(batch.x, eps, t[rows], batch.conditioning)
        rest = (batch.cond, batch.mask, batch.coords)
        x_hat = denoiser(batch.x * t[rows, None, None], t[rows], *rest)
        grid = batch.x.shape[2:]
        mask = torch.ones(len(batch.x), 1, *grid).bool() if batch.mask is None else batch.mask
        settings: dict[str, Any] = {"guidance": 2.0, "first": rows.start, "mask": mask}
        # with rotary embedding of positions, a random model amplifies rounding at every step
        settings |= {"steps": 1, "guidance_interval": (0.0, 1.0)} if positions else {"steps": 4}
        return loss, x_hat, sample(denoiser, len(batch.x), batch.cond, **settings)

    batched = evaluate(batch, slice(0, 3))
    for i, field in enumerate(fields):
        own = field.values.isfinite() if missing else torch.ones(4, field.values.shape[1]).bool()
        for padded, single in zip(
            batched, evaluate(collate(layout, CONDITIONS, [field]), slice(i, i + 1)), strict=True
        ):
            if padded.ndim == 1:
                assert padded[i].item() == pytest.approx(single.item(), rel=1e-5)
                continue
            cut, alone = (x[:, : own.shape[1]][own] for x in (padded[i], single[0]))
            assert difference(cut, alone) < 1e-5


def test_the_validation_loss_does_not_depend_on_the_batch_size() -> None:
    denoiser = clouds()
    alone, together = (validation_loss(denoiser, Clouds(), 6, size) for size in (1, 6))
    assert alone is not None and together is not None
    assert together == pytest.approx(alone, rel=1e-5)


def test_batches_have_few_shapes() -> None:
    """Sizes up to 1,000 give at most `PADDED_SIZES` sequence lengths, with little padding."""
    layout = Layout((Axis("cell", 1000, 2),), ("a",))
    shapes = set()
    for size in range(1, 1001):
        padded = collate(layout, {}, [Field(torch.zeros(1, size))]).x.shape[2]
        assert size <= padded <= min(1000, size + 2 * 16)
        shapes.add(-(-padded // 2))
    assert len(shapes) <= PADDED_SIZES
    small = Layout((Axis("cell", 29, kind="set"),), ("a",))
    assert collate(small, {}, [Field(torch.zeros(1, 19))]).mask is None


def test_compiled_blocks_need_few_graphs() -> None:
    """Thirty sequence lengths, padded and not, compile to a few graphs."""
    graphs = 0

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    denoiser = clouds(depth=2)
    torch._dynamo.reset()
    for block in denoiser.network.blocks:
        block.compile(backend=count)
    items = [Clouds().encode(i) for i in range(30)]
    try:
        with torch.no_grad():
            for field in items:
                for fields in ([field], [field, items[0]]):
                    batch = collate(CLOUDS, Clouds.conditions, fields)
                    t = torch.full((len(fields),), 0.5)
                    denoiser(batch.x, t, batch.cond, batch.mask)
    finally:
        torch._dynamo.reset()
    assert 1 <= graphs <= 12


# Batches by size


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    first=st.integers(-100, 100),
    seed=st.integers(0, 9),
)
def test_an_order_by_size_contains_every_item_once(
    sizes: list[int], batch_size: int, first: int, seed: int
) -> None:
    order = by_size(np.array(sizes), np.random.default_rng(seed), batch_size, first)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    again = by_size(np.array(sizes), np.random.default_rng(seed), batch_size, first)
    assert np.array_equal(order, again)


def test_batches_have_items_of_similar_size_in_every_epoch() -> None:
    """1,003 items in batches of 10: only the batch in which an epoch ends is mixed."""
    items = Many(1003)
    items.sizes = np.random.default_rng(0).integers(3, 30, 1003)
    plan = BatchPlan.over(items, 10, seed=0, stop=400)
    spans = []
    for k in range(400):
        keys = plan.keys(k)
        if len({epoch for epoch, _ in keys}) == 1:
            sizes = items.sizes[[index for _, index in keys]]
            spans.append(int(sizes.max() - sizes.min()))
    assert len(spans) >= 396 and np.mean(spans) < 1 and max(spans) <= 4
    mixed = [
        np.ptp(items.sizes[[i for _, i in BatchPlan(1003, 10, 0, 0, 9).keys(k)]]) for k in range(9)
    ]
    assert np.mean(mixed) > 15  # as with a uniform permutation
    resumed = list(BatchPlan.over(items, 10, seed=0, start=250, stop=400))
    assert resumed == list(plan)[250:]


def test_batches_are_not_ordered_by_size() -> None:
    items = Many(2000)
    items.sizes = np.random.default_rng(0).integers(3, 30, 2000)
    plan = BatchPlan.over(items, 20, seed=0, stop=100)
    means = [items.sizes[[i for _, i in plan.keys(k)]].mean() for k in range(100)]
    assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.3


# Sizes of samples


def test_the_domain_draws_a_size_for_each_sample_by_its_index() -> None:
    denoiser = clouds()
    conditioning = conditioning_for(denoiser, 40, seed=3)
    sizes = sizes_of(conditioning)
    assert set(sizes) == {5, 6, 7}
    assert conditioning.cond["count"][:, 0].tolist() == sizes
    assert sizes_of(conditioning_for(denoiser, 5, seed=3, first=10)) == sizes[10:15]
    assert sizes_of(conditioning_for(denoiser, 40, seed=4)) != sizes


def test_requested_sizes_are_used_in_turn() -> None:
    denoiser = clouds()
    conditioning = conditioning_for(denoiser, 5, sizes=[9, 12], first=1)
    assert sizes_of(conditioning) == [12, 9, 12, 9, 12]
    assert sizes_of(conditioning_for(denoiser, 2, {"count": "11"})) == [11, 11]
    full = conditioning_for(denoiser, 2, sizes=[40])
    assert full.mask is None and full.cond["count"].tolist() == [[40.0], [40.0]]


@pytest.mark.parametrize("grid", [None, 12])
def test_a_sample_depends_on_its_index_and_not_on_others_of_the_batch(grid: int | None) -> None:
    """The same noise and size alone as padded among larger samples."""
    # with positions, a random model amplifies rounding
    denoiser = random_model(replace(CLOUDS, positions=()), Clouds.conditions)
    denoiser.domain = Clouds()
    sizes = None if grid is None else [grid, 40, 3]
    together = list(sample_items(denoiser, 6, conditioning_for(denoiser, 6, sizes=sizes), QUICK))
    for i in (0, 3, 5):
        conditioning = conditioning_for(denoiser, 1, sizes=sizes, first=i)
        (alone,) = sample_items(denoiser, 1, conditioning, QUICK, first=i)
        assert alone.shape == together[i].shape
        assert difference(alone, together[i]) < 5e-5  # rounding accumulates over guided steps


def test_invalid_sizes_are_refused() -> None:
    denoiser = clouds()
    with pytest.raises(ConditionError, match="size 41 is out of range.*up to 40 along 'point'"):
        conditioning_for(denoiser, 2, sizes=[41])
    with pytest.raises(ConditionError, match="give either sizes or items"):
        conditioning_for(denoiser, 2, source=("val", [0]), sizes=[4])
    with pytest.raises(ConditionError, match="--cond or --cond-from"):
        conditioning_for(denoiser, 2, {"count": "4"}, source=("val", [0]))
    line = Layout((Axis("cell", 8),), ("a",))
    fixed = random_model(line)
    fixed.domain = Digits(DigitsSection(name="digits"))
    with pytest.raises(ConditionError, match="have one size, 8 along 'cell'"):
        conditioning_for(fixed, 2, sizes=[4])


def test_conditions_of_real_items_bring_their_size() -> None:
    denoiser = clouds()
    conditioning = conditioning_for(denoiser, 2, source=("val", [1]))
    assert sizes_of(conditioning) == [10, 10]
    assert [item.shape[1] for item in sample_items(denoiser, 2, conditioning, QUICK)] == [10, 10]


def test_the_command_takes_sizes(jitkit: Any, trained: Path) -> None:
    answer = jitkit("sample", trained, "--size", "a lot")
    assert answer.code == 2 and "expected numbers of cells, such as 12 or 9-20" in answer.err
    answer = jitkit("sample", trained, "--size", "12")
    assert answer.code == 2 and "all samples of this model have one size" in answer.err


# The zero-mean constraint


@st.composite
def constrained(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, groups of their channels, and a mask with data in every group."""
    layout = a_layout("set")
    values = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    rows = draw(st.sampled_from([0, 1, 4]))
    mask = None
    if rows:
        drawn = torch.rand(2, rows, 7, generator=torch.Generator().manual_seed(rows))
        mask = drawn < draw(st.floats(0.1, 0.9))
        mask[..., 0] = True
    groups = membership(layout)
    assert groups is not None
    return values, groups, mask


@settings(deadline=None)
@given(constrained())
def test_centring_is_the_orthogonal_projection_onto_zero_means(
    case: tuple[Tensor, Tensor, Tensor | None],
) -> None:
    values, groups, mask = case
    seen = torch.ones_like(values).bool() if mask is None else mask.expand_as(values)
    out = centre(values, groups, mask)
    for own in ([0, 1], [2]):
        sums = torch.where(seen, out, 0.0)[:, own].sum(dim=(1, 2))
        assert sums.abs().max() < 1e-5
    torch.testing.assert_close(centre(out, groups, mask), out, atol=1e-6, rtol=0)
    moved = torch.where(seen, values - out, 0.0)
    torch.testing.assert_close((moved * out).sum(dim=(1, 2)), torch.zeros(2), atol=1e-4, rtol=0)
    assert torch.equal(out[:, 3], values[:, 3])
    assert torch.equal(torch.where(seen, 0.0, out), torch.where(seen, 0.0, values))


def test_channels_of_a_group_keep_their_distance() -> None:
    """The atoms of a residue are centred together, not each separately."""
    values = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [2.0, 2.0], [9.0, 9.0]]])
    out = centre(values, membership(a_layout("set")))
    assert out.tolist() == [[[-3.0, -1.0], [1.0, 3.0], [0.0, 0.0], [9.0, 9.0]]]


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
@pytest.mark.parametrize("missing", [False, True])
def test_all_predictions_of_a_model_obey_the_constraint(prediction: Any, missing: bool) -> None:
    layout = a_layout("set", missing=missing)
    denoiser = random_model(layout, CONDITIONS, Diffusion(prediction=prediction, noise_scale=1.5))
    fields = [a_field(layout, size, seed) for seed, size in enumerate((5, 32))]
    batch = collate(layout, CONDITIONS, fields)
    assert batch.mask is not None
    steps: list[Tensor] = []
    velocity = denoiser.velocity

    def recorded(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        v = velocity(z, *args, **kwargs)
        steps.extend((z, v))
        return v

    denoiser.velocity = recorded  # type: ignore[method-assign]
    settings: dict[str, Any] = {"guidance": 2.0, "guidance_interval": (0.0, 1.0), "steps": 3}
    x = sample(denoiser, 2, batch.cond, mask=batch.mask, **settings)
    shift = torch.tensor([7.0, 7.0, -3.0, 0.0])[:, None]
    shifted = draw_noise(denoiser, range(2), 0, (32,)) + shift
    given = sample(denoiser, noise=shifted, cond=batch.cond, mask=batch.mask, **settings)
    assert difference(given, x) < 1e-4
    assert len(steps) >= 10
    for values in [x, *steps]:
        mask = batch.mask.repeat(len(values) // 2, 1, 1).expand_as(values)
        kept = torch.where(mask, values, 0.0)
        for own in ([0, 1], [2]):
            assert kept[:, own].sum(dim=(1, 2)).abs().max() < 1e-3


def test_a_model_is_invariant_to_translation() -> None:
    """Shifting all noise changes neither the prediction nor the loss."""
    layout = a_layout("set")
    denoiser = random_model(layout, CONDITIONS)
    batch = collate(layout, CONDITIONS, [a_field(layout, 10, 0)])
    t, shift = torch.tensor([0.4]), torch.tensor([2.0, 2.0, -5.0, 0.0])[:, None]
    eps = draw_noise(denoiser, [0], 0, (10,))
    x_hat = denoiser(eps, t, batch.cond)
    assert difference(denoiser(eps + shift, t, batch.cond), x_hat) < 1e-5
    loss = denoiser.losses(batch.x, eps, t, batch.conditioning)
    assert difference(denoiser.losses(batch.x, eps + shift, t, batch.conditioning), loss) < 1e-5
    free = random_model(a_layout("set", centred=False), CONDITIONS)
    assert difference(free(eps + shift, t, batch.cond), free(eps, t, batch.cond)) > 1e-2


def test_a_layout_survives_json_and_one_without_the_constraint_loads() -> None:
    plain = describe(CLOUDS, {})
    assert described(plain)[0] == CLOUDS
    denoiser = clouds()
    old = denoiser.describe()
    del old["layout"]["centred"], old["layout"]["positions"]
    assert build(old).layout.centred == () and build(old).groups is None
    assert build(old).layout.positions == ()
    weights = denoiser.state_dict()
    assert not [name for name in weights if "groups" in name]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ((("x", "q"),), "centred 'q' is not a channel; channels are x, y"),
        ((("x",), ("x", "y")), "in one centred group"),
        (((),), "no group may be empty"),
    ],
)
def test_an_invalid_constraint_is_refused(groups: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=text):
        Layout((Axis("point", 4),), ("x", "y"), centred=groups)


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        (("x", "q"), "positions 'q' is not a channel; channels are x, y"),
        (("x", "x"), "a channel twice: x, x"),
    ],
)
def test_invalid_positions_are_refused(positions: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=text):
        Layout((Axis("point", 4),), ("x", "y"), positions=positions)


RECIPE = {
    "domain": "digits",
    "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8},
    "train": {"steps": 6, "batch_size": 8, "lr": 1e-3, "save_every_steps": 3}
    | {"preview_samples": 2, "validate_items": 4, "precision": "float32"},
    "sample": {"steps": 2},
}


def test_a_run_without_the_positions_of_its_domain_loads_but_does_not_resume(
    tmp_path: Path,
) -> None:
    class WithoutPositions(Clouds):
        layout = replace(CLOUDS, positions=())

    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=WithoutPositions())
    loaded = jitkit.load(run, domain=Clouds())
    assert loaded.layout == WithoutPositions.layout
    assert len(list(sample_items(loaded, 2, conditioning_for(loaded, 2), QUICK))) == 2
    with pytest.raises(DataError, match=r"layout.positions"):
        jitkit.train(RECIPE, run=run, domain=Clouds())


def test_a_resumed_run_of_varying_sizes_is_bit_identical(tmp_path: Path) -> None:
    whole = jitkit.train(RECIPE, run=tmp_path / "whole", domain=Clouds())
    jitkit.train(RECIPE, {"train.steps": 3}, run=tmp_path / "parts", domain=Clouds())
    parts = jitkit.train(RECIPE, run=tmp_path / "parts", domain=Clouds())
    first, second = (jitkit.load(run, domain=Clouds()).state_dict() for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def sizes_of(conditioning: Conditioning) -> list[int]:
    assert conditioning.mask is not None
    return conditioning.mask[:, 0].sum(dim=1).tolist()
