"""Samples of varying size and a linear constraint: padding, batches, sizes to make, centring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import awake, difference
from PIL import Image
from torch import Tensor

import jitkit
from jitkit.data import PADDED_SIZES, BatchPlan, by_size, collate
from jitkit.diffusion.denoiser import Denoiser, Diffusion, build
from jitkit.diffusion.sampler import draw_noise, sample
from jitkit.diffusion.zero_mean import centre, membership
from jitkit.domain import Metric
from jitkit.errors import ConditionError, DataError, JitkitError
from jitkit.fields import (
    Axis,
    Batch,
    Category,
    Condition,
    Field,
    Grid,
    Kind,
    Layout,
    PerToken,
    Scalars,
    describe,
    described,
)
from jitkit.sampling.generate import generate
from jitkit.sampling.requests import Conditioning, conditioning_for
from jitkit.sections import DomainSection, SampleSection
from jitkit.training.validation import held_out_loss

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
    kind: Kind, *, missing: bool = False, centred: bool = True, places: Sequence[str] = ()
) -> Layout:
    axis = Axis("cell", 40, 1 if kind == "set" else 2, kind)
    groups = (("a", "b"), ("c",)) if centred else ()
    return Layout((axis,), ("a", "b", "c", "d"), missing, groups, tuple(places))


def a_field(layout: Layout, size: int, seed: int) -> Field:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.standard_normal((len(layout.channels), size)).astype(np.float32))
    if layout.missing:
        values[0, seed % size] = torch.nan
    known = values.isfinite()[None] if layout.missing else None
    values = centre(values[None], membership(layout), known)[0]
    cond = {
        "class": seed % 3,
        "state": torch.tensor([0.3, torch.nan]),
        "past": torch.from_numpy(rng.standard_normal((1, size)).astype(np.float32)),
        "type": torch.from_numpy(rng.integers(0, 5, size)),
    }
    return Field(values, cond=cond)


class Clouds:
    """Points of the plane about their mean, 3 to 40 of them, with a hue; told how many."""

    Section: ClassVar[type[DomainSection]] = DomainSection
    layout = CLOUDS
    conditions: Mapping[str, Condition] = {"count": Scalars(("count",), drop=0.0)}

    def metadata(self) -> dict[str, Any]:
        return {}

    def items(self, split: str) -> Sequence[Any]:
        return Many(50 if split == "train" else 6)

    def encode(self, item: int, rng: np.random.Generator | None = None) -> Field:
        made = np.random.default_rng(item)
        size = 3 + item * 7 % 38
        values = torch.from_numpy(made.standard_normal((3, size)).astype(np.float32))
        values = centre(values[None], membership(CLOUDS))[0]
        return Field(values, cond={"count": torch.tensor([float(size)])})

    def template(
        self, rng: np.random.Generator, told: Mapping[str, Any], size: int | None = None
    ) -> Field:
        asked = told.get("count")
        wanted = size or (int(rng.choice([5, 6, 7])) if asked is None else int(asked[0]))
        return Field(torch.zeros(3, wanted), cond={"count": torch.tensor([float(wanted)])})

    def decode(self, field: Field) -> Tensor:
        return field.values if field.mask is None else field.values[:, field.mask[0]]

    def write(self, items: Iterable[Tensor], path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "sizes.npy"
        np.save(file, np.array([item.shape[1] for item in items]))
        return [file]

    def preview(self, items: Sequence[Tensor]) -> Image.Image:
        return Image.new("L", (8, 8))

    def scores(self) -> Mapping[str, Metric]:
        return {}


class Many(Sequence[int]):
    """Items of `Clouds`, whose sizes are known."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.sizes = np.array([3 + i * 7 % 38 for i in range(count)])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return range(self._count)[index]


def clouds(**given: Any) -> Denoiser:
    made = awake(CLOUDS, Clouds.conditions, **given)
    made.domain = Clouds()
    return made


# Padding changes nothing


@pytest.mark.parametrize("places", [(), ("a", "b", "c")])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["line", "set"])
def test_a_padded_batch_gives_what_single_items_give(
    kind: Kind, missing: bool, places: Sequence[str]
) -> None:
    layout = a_layout(kind, missing=missing, positions=places)
    denoiser = awake(layout, CONDITIONS)
    fields = [a_field(layout, size, seed) for seed, size in enumerate((5, 31, 12))]
    batch = collate(layout, CONDITIONS, fields)
    noise = draw_noise(denoiser, range(3), seed=0)
    t = torch.tensor([0.2, 0.6, 0.9])

    def both(batch: Batch, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        eps = noise[rows, :, : batch.x.shape[2]]
        told = (batch.cond, batch.mask, batch.coords)
        loss = denoiser.losses(batch.x, eps, t[rows], *told)
        x_hat = denoiser(batch.x * t[rows, None, None], t[rows], *told)
        grid = batch.x.shape[2:]
        mask = torch.ones(len(batch.x), 1, *grid).bool() if batch.mask is None else batch.mask
        how: dict[str, Any] = {"guidance": 2.0, "first": rows.start, "mask": mask}
        # random weights that turn by places make chaos of rounding, step after step
        how |= {"steps": 1, "interval": (0.0, 1.0)} if places else {"steps": 4}
        return loss, x_hat, sample(denoiser, len(batch.x), batch.cond, **how)

    together = both(batch, slice(0, 3))
    for i, field in enumerate(fields):
        own = field.values.isfinite() if missing else torch.ones(4, field.values.shape[1]).bool()
        for padded, single in zip(
            together, both(collate(layout, CONDITIONS, [field]), slice(i, i + 1)), strict=True
        ):
            if padded.ndim == 1:
                assert padded[i].item() == pytest.approx(single.item(), rel=1e-5)
                continue
            cut, alone = (x[:, : own.shape[1]][own] for x in (padded[i], single[0]))
            assert difference(cut, alone) < 1e-5


def test_the_held_out_loss_does_not_depend_on_the_batch() -> None:
    denoiser = clouds()
    alone, together = (held_out_loss(denoiser, Clouds(), 6, size) for size in (1, 6))
    assert alone is not None and together is not None
    assert together == pytest.approx(alone, rel=1e-5)


def test_batches_come_in_few_shapes() -> None:
    """Of any sizes up to 1,000, at most `PADDED_SIZES` numbers of tokens, none far larger."""
    layout = Layout((Axis("cell", 1000, 2),), ("a",))
    shapes = set()
    for size in range(1, 1001):
        padded = collate(layout, {}, [Field(torch.zeros(1, size))]).x.shape[2]
        assert size <= padded <= min(1000, size + 2 * 16)
        shapes.add(-(-padded // 2))
    assert len(shapes) <= PADDED_SIZES
    small = Layout((Axis("cell", 29, kind="set"),), ("a",))
    assert collate(small, {}, [Field(torch.zeros(1, 19))]).mask is None


def test_compiled_blocks_meet_few_graphs() -> None:
    """Thirty numbers of tokens, padded and not: torch.compile sees them as a handful of graphs."""
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


# Batches of like size


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=300),
    batch_size=st.integers(1, 40),
    first=st.integers(-100, 100),
    seed=st.integers(0, 9),
)
def test_an_order_by_size_has_every_item_once(
    sizes: list[int], batch_size: int, first: int, seed: int
) -> None:
    order = by_size(np.array(sizes), np.random.default_rng(seed), batch_size, first)
    assert sorted(order.tolist()) == list(range(len(sizes)))
    again = by_size(np.array(sizes), np.random.default_rng(seed), batch_size, first)
    assert np.array_equal(order, again)


def test_batches_hold_items_of_like_size_in_every_epoch() -> None:
    """1,003 items in batches of 10: only the batch in which an epoch ends is a mixture."""
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
    assert np.mean(mixed) > 15  # what an even permutation does
    resumed = list(BatchPlan.over(items, 10, seed=0, start=250, stop=400))
    assert resumed == list(plan)[250:]


def test_the_sizes_of_batches_come_in_no_order() -> None:
    items = Many(2000)
    items.sizes = np.random.default_rng(0).integers(3, 30, 2000)
    plan = BatchPlan.over(items, 20, seed=0, stop=100)
    means = [items.sizes[[i for _, i in plan.keys(k)]].mean() for k in range(100)]
    assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.3


# Sizes of samples


def test_sizes_are_drawn_by_the_domain_for_each_sample_by_its_index() -> None:
    denoiser = clouds()
    told = conditioning_for(denoiser, 40, seed=3)
    sizes = sizes_of(told)
    assert set(sizes) == {5, 6, 7}
    assert told.cond["count"][:, 0].tolist() == sizes
    assert sizes_of(conditioning_for(denoiser, 5, seed=3, first=10)) == sizes[10:15]
    assert sizes_of(conditioning_for(denoiser, 40, seed=4)) != sizes


def test_sizes_that_are_asked_for_are_taken_in_turn() -> None:
    denoiser = clouds()
    told = conditioning_for(denoiser, 5, sizes=[9, 12], first=1)
    assert sizes_of(told) == [12, 9, 12, 9, 12]
    assert sizes_of(conditioning_for(denoiser, 2, {"count": "11"})) == [11, 11]
    full = conditioning_for(denoiser, 2, sizes=[40])
    assert full.mask is None and full.cond["count"].tolist() == [[40.0], [40.0]]


@pytest.mark.parametrize("grid", [None, 12])
def test_a_sample_is_a_function_of_its_index_whatever_is_drawn_with_it(grid: int | None) -> None:
    """The same noise and size alone as among larger ones, which pad it."""
    denoiser = awake(
        replace(CLOUDS, positions=()), Clouds.conditions
    )  # with them, chaos of rounding
    denoiser.domain = Clouds()
    sizes = None if grid is None else [grid, 40, 3]
    all_of = list(generate(denoiser, 6, conditioning_for(denoiser, 6, sizes=sizes), QUICK))
    for i in (0, 3, 5):
        told = conditioning_for(denoiser, 1, sizes=sizes, first=i)
        (alone,) = generate(denoiser, 1, told, QUICK, first=i)
        assert alone.shape == all_of[i].shape
        assert difference(alone, all_of[i]) < 5e-5  # guided steps add roundings up


def test_sizes_that_cannot_be_made_are_refused() -> None:
    denoiser = clouds()
    with pytest.raises(ConditionError, match="size 41 is out of range.*up to 40 along 'point'"):
        conditioning_for(denoiser, 2, sizes=[41])
    with pytest.raises(ConditionError, match="give one or the other"):
        conditioning_for(denoiser, 2, source=("val", [0]), sizes=[4])
    with pytest.raises(ConditionError, match="--cond or --cond-from"):
        conditioning_for(denoiser, 2, {"count": "4"}, source=("val", [0]))
    line = Layout((Axis("cell", 8),), ("a",))
    fixed = awake(line)
    fixed.domain = Fixed()
    with pytest.raises(ConditionError, match="have one size, 8 along 'cell'"):
        conditioning_for(fixed, 2, sizes=[4])


class Fixed(Clouds):
    outline = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name == "outline":
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_real_items_of_one_size_below_the_largest_lend_their_place() -> None:
    denoiser = clouds()
    told = conditioning_for(denoiser, 2, source=("val", [1]))
    assert sizes_of(told) == [10, 10]
    assert [item.shape[1] for item in generate(denoiser, 2, told, QUICK)] == [10, 10]


def test_the_command_takes_sizes(jitkit: Any, trained: Path) -> None:
    answer = jitkit("sample", trained, "--size", "a lot")
    assert answer.code == 2 and "expected cells of samples, such as 12 or 9-20" in answer.err
    answer = jitkit("sample", trained, "--size", "12")
    assert answer.code == 2 and "all samples of this model have one size" in answer.err


# The linear constraint


@st.composite
def constrained(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values, groups of their channels, and a mask with something in every group."""
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
    """Three atoms of a residue that lie apart are centred together, not each on the middle."""
    values = torch.tensor([[[1.0, 3.0], [5.0, 7.0], [2.0, 2.0], [9.0, 9.0]]])
    out = centre(values, membership(a_layout("set")))
    assert out.tolist() == [[[-3.0, -1.0], [1.0, 3.0], [0.0, 0.0], [9.0, 9.0]]]


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
@pytest.mark.parametrize("missing", [False, True])
def test_all_that_a_model_says_obeys_the_constraint(prediction: Any, missing: bool) -> None:
    layout = a_layout("set", missing=missing)
    denoiser = awake(layout, CONDITIONS, Diffusion(prediction=prediction, noise_scale=1.5))
    fields = [a_field(layout, size, seed) for seed, size in enumerate((5, 32))]
    batch = collate(layout, CONDITIONS, fields)
    assert batch.mask is not None
    steps: list[Tensor] = []
    velocity = denoiser.velocity

    def watched(z: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        v = velocity(z, *args, **kwargs)
        steps.extend((z, v))
        return v

    denoiser.velocity = watched  # type: ignore[method-assign]
    how: dict[str, Any] = {"guidance": 2.0, "interval": (0.0, 1.0), "steps": 3}
    x = sample(denoiser, 2, batch.cond, mask=batch.mask, **how)
    shift = torch.tensor([7.0, 7.0, -3.0, 0.0])[:, None]
    shifted = draw_noise(denoiser, range(2), 0, (32,)) + shift
    given = sample(denoiser, noise=shifted, cond=batch.cond, mask=batch.mask, **how)
    assert difference(given, x) < 1e-4
    assert len(steps) >= 10
    for values in [x, *steps]:
        mask = batch.mask.repeat(len(values) // 2, 1, 1).expand_as(values)
        kept = torch.where(mask, values, 0.0)
        for own in ([0, 1], [2]):
            assert kept[:, own].sum(dim=(1, 2)).abs().max() < 1e-3


def test_a_model_does_not_see_where_its_data_lie() -> None:
    """The same answer, and the same loss, for noise that is shifted as a whole."""
    layout = a_layout("set")
    denoiser = awake(layout, CONDITIONS)
    batch = collate(layout, CONDITIONS, [a_field(layout, 10, 0)])
    t, shift = torch.tensor([0.4]), torch.tensor([2.0, 2.0, -5.0, 0.0])[:, None]
    eps = draw_noise(denoiser, [0], 0, (10,))
    x_hat = denoiser(eps, t, batch.cond)
    assert difference(denoiser(eps + shift, t, batch.cond), x_hat) < 1e-5
    loss = denoiser.losses(batch.x, eps, t, batch.cond)
    assert difference(denoiser.losses(batch.x, eps + shift, t, batch.cond), loss) < 1e-5
    free = awake(a_layout("set", centred=False), CONDITIONS)
    assert difference(free(eps + shift, t, batch.cond), free(eps, t, batch.cond)) > 1e-2


def test_a_layout_survives_json_and_one_from_before_the_constraint_still_loads() -> None:
    plain = describe(CLOUDS, {})
    assert described(plain)[0] == CLOUDS
    denoiser = clouds()
    old = denoiser.describe()
    del old["layout"]["centred"], old["layout"]["places"]
    assert build(old).layout.centred == () and build(old).groups is None
    assert build(old).layout.positions == ()
    weights = denoiser.state_dict()
    assert not [name for name in weights if "groups" in name]


@pytest.mark.parametrize(
    ("groups", "text"),
    [
        ((("x", "q"),), "centred 'q' is no channel; they are x, y"),
        ((("x",), ("x", "y")), "centred in one group"),
        (((),), "no group is empty"),
    ],
)
def test_a_constraint_that_cannot_be_meant_is_refused(groups: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=text):
        Layout((Axis("point", 4),), ("x", "y"), centred=groups)


@pytest.mark.parametrize(
    ("places", "text"),
    [
        (("x", "q"), "places 'q' is no channel; they are x, y"),
        (("x", "x"), "a channel twice: x, x"),
    ],
)
def test_places_that_cannot_be_meant_are_refused(places: Any, text: str) -> None:
    with pytest.raises(JitkitError, match=text):
        Layout((Axis("point", 4),), ("x", "y"), positions=places)


RECIPE = {
    "domain": "digits",
    "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8},
    "train": {"steps": 6, "batch_size": 8, "lr": 1e-3, "save_every_steps": 3}
    | {"preview_samples": 2, "validate_items": 4, "precision": "float32"},
    "sample": {"steps": 2},
}


def test_a_run_from_before_its_domain_named_places_is_loaded_and_not_gone_on_with(
    tmp_path: Path,
) -> None:
    class Still(Clouds):
        layout = replace(CLOUDS, positions=())

    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=Still())
    loaded = jitkit.load(run, domain=Clouds())
    assert loaded.layout == Still.layout
    assert len(list(generate(loaded, 2, conditioning_for(loaded, 2), QUICK))) == 2
    with pytest.raises(DataError, match=r"layout.positions"):
        jitkit.train(RECIPE, run=run, domain=Clouds())


def test_a_run_of_varying_sizes_trains_samples_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = jitkit.train(RECIPE, run=tmp_path / "whole", domain=Clouds())
    jitkit.train(RECIPE, {"train.steps": 3}, run=tmp_path / "parts", domain=Clouds())
    parts = jitkit.train(RECIPE, run=tmp_path / "parts", domain=Clouds())
    first, second = (jitkit.load(run, domain=Clouds()).state_dict() for run in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)


def sizes_of(told: Conditioning) -> list[int]:
    assert told.mask is not None
    return told.mask[:, 0].sum(dim=1).tolist()
