"""Cost of the network as data and network grow: forward and backward of random inputs.

Three questions: does the same number of tokens cost the same on one axis as on four; does time
follow the counted multiply-accumulates over tokens, width and depth; and what is the cost when
resolution and patch double together, in the blocks and in total.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.speed.measure import Timing, interleaved, ratio
from benchmarks.speed.results import Demand, Plan, Result, Table, milliseconds, percent
from benchmarks.speed.step import pictures
from jitkit.diffusion.build import assemble
from jitkit.diffusion.denoiser import Denoiser
from jitkit.fields import Axis, Category, Layout
from jitkit.nn.flops import macs
from jitkit.nn.transformer import Sizes, Transformer
from jitkit.registry import domain_class

MOST_APART = 1.10  # times of 1 to 4 axes, the longest over the shortest
MOST_DOUBLED = 1.05  # time in the blocks, of twice the resolution and patch over once
PAPER: dict[str, Any] = {"size": "B"}
TINY: dict[str, Any] = {"width": 32, "depth": 2}
GRIDS = (  # 256 tokens of 16 cells: (cells of an axis, cells of a patch)
    ((4096, 16),),
    ((64, 4), (64, 4)),
    ((16, 4), (16, 2), (16, 2)),
    ((8, 2), (8, 2), (8, 2), (8, 2)),
)


@dataclass(frozen=True)
class Case:
    """An unconditional network, and a batch."""

    name: str
    axes: Sequence[tuple[int, int]] = GRIDS[1]
    width: int = 192
    depth: int = 6
    batch: int = 8

    def made(self) -> Denoiser:
        """The model with random weights."""
        axes = tuple(Axis(f"axis {i}", *each) for i, each in enumerate(self.axes))
        sizes = Sizes(
            self.width,
            self.depth,
            heads=self.width // 32,
            bottleneck=64,
            in_context_tokens=0,
            in_context_start=0,
            mlp_hidden=self.width * 8 // 3,
        )
        denoiser = Denoiser(Layout(axes, ("value",)), {}, sizes)
        reference.randomise(denoiser.network)
        return denoiser


def squares(side: int) -> tuple[tuple[int, int], ...]:
    """A square grid of ``side`` x ``side`` tokens of 4 x 4 cells."""
    return ((4 * side, 4), (4 * side, 4))


def grown(plan: Plan) -> dict[str, list[Case]]:
    """The middle network with more and less of one size, with equal tokens per batch for each."""
    return {
        "tokens": [
            Case(f"{side**2} tokens", squares(side), batch=2048 // side**2) for side in (8, 16, 32)
        ],
        "width": [Case(f"width {width}", width=width) for width in (96, 192, 384)],
        "depth": [Case(f"depth {depth}", depth=depth) for depth in (3, 6, 12)],
    }


def taker(network: Transformer, batch: int) -> Callable[[], None]:
    """Forward and backward on a batch of noise."""
    z = torch.randn(batch, len(network.layout.channels), *network.layout.grid)
    t = torch.rand(batch)
    cond = {
        name: torch.zeros(batch, dtype=torch.long)
        for name, condition in network.conditions.items()
        if isinstance(condition, Category)
    }

    def both() -> None:
        torch.autograd.backward(network(z, t, cond).sum())
        network.zero_grad(set_to_none=True)

    return both


def timed(cases: Sequence[Case], rounds: int) -> dict[str, Timing]:
    """Time of forward and backward of each case."""
    ways = {case.name: taker(case.made().network, case.batch) for case in cases}
    return interleaved(ways, rounds=rounds)


def over_axes(plan: Plan, result: Result) -> None:
    """256 tokens on 1 to 4 axes."""
    batch, depth = plan.pick(8, 4, 1), plan.pick(6, 6, 1)
    cases = [Case(f"{len(g)}-D", g, batch=batch, depth=depth) for g in GRIDS]
    took = timed(cases, plan.pick(15, 5, 1))
    over = {name: ratio(timing, took["2-D"])[0] for name, timing in took.items()}
    rows = []
    for case, (name, timing) in zip(cases, took.items(), strict=True):
        grid = " x ".join(str(cells // patch) for cells, patch in case.axes)
        times = [milliseconds(timing.median), percent(timing.spread)]
        rows.append([name, grid, *times, f"{over[name]:.3f}"])
    head = ["axes", "tokens", "forward and backward", "spread", "over 2-D"]
    result.tables.append(Table("256 tokens of 16 cells on 1 to 4 axes", head, rows))
    seconds = {name: timing.median for name, timing in took.items()}
    result.numbers["axes"] = {"seconds": seconds, "over_two": over}
    apart = max(over.values()) / min(over.values())
    result.demands.append(Demand("1 to 4 axes, longest over shortest", apart, MOST_APART))


def over_sizes(plan: Plan, result: Result) -> None:
    """Tokens, width and depth, against counted multiply-accumulates."""
    rows = []
    for what, cases in grown(plan).items():
        took = timed(cases, plan.pick(9, 3, 1))
        work = {case.name: macs(case.made().network) * case.batch for case in cases}
        usual = cases[1].name
        for case in cases:
            timing = took[case.name]
            more = ratio(timing, took[usual])[0] * work[usual] / work[case.name]
            times = [milliseconds(timing.median), percent(timing.spread)]
            rate = 3 * 2 * work[case.name] / timing.median
            row = [what, case.name, case.batch, *times, f"{rate / 1e9:.1f}", f"{more:.3f}"]
            rows.append(row)
            found = {"seconds": timing.median, "macs": work[case.name], "per_mac": more}
            result.numbers.setdefault(what, {})[case.name] = found
    head = ["varied", "case", "batch", "forward and backward", "spread", "model GFLOP/s"]
    head += ["time per counted operation, over the middle case's"]
    result.tables.append(Table("Time against counted multiply-accumulates", head, rows))


@dataclass
class Watch:
    """Seconds between the first block's input and the last one's output, forward and backward.

    Attributes:
        seconds: of every call so far.
    """

    network: Transformer
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network.blocks[0].register_forward_pre_hook(self._enter)
        self.network.blocks[-1].register_forward_hook(self._leave)

    def _enter(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        inputs[0].register_hook(self._back_at_the_start)
        self._began = time.perf_counter()

    def _leave(self, module: torch.nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._forward = time.perf_counter() - self._began
        output.register_hook(self._back_at_the_end)

    def _back_at_the_end(self, gradient: Tensor) -> None:
        self._began = time.perf_counter()

    def _back_at_the_start(self, gradient: Tensor) -> None:
        self.seconds.append(self._forward + time.perf_counter() - self._began)


def over_resolution(plan: Plan, result: Result) -> None:
    """Resolution and patch doubled together, twice."""
    rounds, model = plan.pick(9, 3, 1), plan.pick(PAPER, PAPER, TINY)
    sides = plan.pick((256, 512, 1024), (256, 512, 1024), (32, 64, 128))
    ways, watches = {}, {}
    for side in sides:
        patch = side * 16 // 256
        recipe = pictures(1, side, patch=patch, **model)
        denoiser = assemble(recipe, domain_class("images")(recipe.domain))
        reference.randomise(denoiser.network)
        name = f"{side}, /{patch}"
        watches[name] = Watch(denoiser.network)
        ways[name] = taker(denoiser.network, 1)
    whole = interleaved(ways, rounds=rounds)
    blocks = {name: Timing(tuple(watch.seconds[-rounds:])) for name, watch in watches.items()}
    rows, first, names = [], next(iter(whole)), list(whole)
    for name in names:
        row: list[object] = [name]
        for took in (blocks, whole):
            row += [milliseconds(took[name].median), percent(took[name].spread)]
            row.append(f"{ratio(took[name], took[first])[0]:.3f}")
        rows.append(row)
    head = ["side, /patch", "blocks", "spread", f"over {sides[0]}"]
    head += ["whole network", "spread", f"over {sides[0]}"]
    title = "B at batch 1, resolution and patch doubled together: forward and backward"
    result.tables.append(Table(title, head, rows))
    result.numbers["resolution"] = {
        name: {"blocks": blocks[name].median, "whole": whole[name].median} for name in names
    }
    for small, large in pairwise(names):
        what = f"blocks of {large} over those of {small}"
        result.demands.append(Demand(what, ratio(blocks[large], blocks[small])[0], MOST_DOUBLED))


def run(plan: Plan) -> Result:
    """Axes, sizes, resolution; tests skip the sizes, which would all be equal there."""
    result = Result("scaling")
    over_axes(plan, result)
    if plan.size != "tiny":
        over_sizes(plan, result)
    over_resolution(plan, result)
    return result
