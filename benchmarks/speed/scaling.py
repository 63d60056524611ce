"""What the network costs as data and network grow: forward and backward of random inputs.

Three questions: do as many tokens cost the same on one axis as on four; does time follow the
counted multiply-accumulates over tokens, width and depth; and what does it cost when resolution and
patch double together, in the blocks and as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.speed.measure import Timing, interleaved, middle
from benchmarks.speed.results import Demand, Plan, Result, Table, milliseconds, percent
from benchmarks.speed.step import pictures
from jitkit.check import assemble, macs
from jitkit.denoiser import Denoiser
from jitkit.domain import domain_class
from jitkit.fields import Axis, Category, Layout
from jitkit.transformer import Sizes, Transformer

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
    """A network of no conditions, and a batch."""

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
    """The middle network with more and less of one thing, as many tokens in a batch for each."""
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


def timed(cases: Sequence[Case], rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Time of each case, and seconds for each counted multiply-accumulate."""
    models = {case.name: case.made() for case in cases}
    ways = {case.name: taker(models[case.name].network, case.batch) for case in cases}
    took = interleaved(ways, rounds=rounds)
    each = {c.name: took[c.name].median / (macs(models[c.name]) * c.batch) for c in cases}
    return took, each


def over_axes(plan: Plan, result: Result) -> None:
    """256 tokens on 1 to 4 axes."""
    batch, depth = plan.pick(8, 4, 1), plan.pick(6, 6, 1)
    cases = [Case(f"{len(g)} axes", g, batch=batch, depth=depth) for g in GRIDS]
    took, _ = timed(cases, plan.pick(15, 5, 1))
    least = min(timing.median for timing in took.values())
    rows = []
    for case, (name, timing) in zip(cases, took.items(), strict=True):
        grid = " x ".join(str(cells // patch) for cells, patch in case.axes)
        times = [milliseconds(timing.median), percent(timing.spread)]
        rows.append([name, grid, *times, f"{timing.median / least:.3f}"])
    head = ["axes", "tokens", "forward and backward", "spread", "over the shortest"]
    result.tables.append(Table("256 tokens of 16 cells, whatever the number of axes", head, rows))
    result.numbers["axes"] = {name: timing.seconds for name, timing in took.items()}
    apart = max(timing.median for timing in took.values()) / least
    result.demands.append(Demand("1 to 4 axes, longest over shortest", apart, MOST_APART))


def over_sizes(plan: Plan, result: Result) -> None:
    """Tokens, width and depth, against what is counted."""
    rows = []
    for what, cases in grown(plan).items():
        took, each = timed(cases, plan.pick(9, 3, 1))
        middle_case = cases[1].name
        for case in cases:
            timing = took[case.name]
            times = [milliseconds(timing.median), percent(timing.spread)]
            share = each[case.name] / each[middle_case]
            rate = f"{3 * 2 / each[case.name] / 1e9:.1f}"
            rows.append([what, case.name, case.batch, *times, rate, f"{share:.3f}"])
            result.numbers.setdefault(what, {})[case.name] = {
                "seconds": timing.median,
                "seconds_per_mac": each[case.name],
            }
    head = ["grown", "case", "batch", "forward and backward", "spread", "model GFLOP/s"]
    head += ["time for a counted operation, over the middle case's"]
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
    first = sides[0]
    ways, watches = {}, {}
    for side in sides:
        recipe = pictures(1, side, patch=side * 16 // 256, **model)
        denoiser = assemble(recipe, domain_class("images")(recipe.domain))
        reference.randomise(denoiser.network)
        name = f"{side}, /{side * 16 // 256}"
        watches[name] = Watch(denoiser.network)
        ways[name] = taker(denoiser.network, 1)
    took = interleaved(ways, rounds=rounds)
    rows, found = [], {}
    for name, watch in watches.items():
        blocks, whole = middle(watch.seconds[-rounds:])[0], took[name].median
        found[name] = {"blocks": blocks, "whole": whole}
        smallest = next(iter(found.values()))
        parts = [milliseconds(blocks), f"{blocks / smallest['blocks']:.3f}"]
        parts += [
            milliseconds(whole),
            f"{whole / smallest['whole']:.3f}",
            percent(took[name].spread),
        ]
        rows.append([name, *parts])
    head = ["side, /patch", "blocks", f"over {first}", "whole network", f"over {first}", "spread"]
    title = "B at batch 1, resolution and patch doubled together: forward and backward"
    result.tables.append(Table(title, head, rows))
    result.numbers["resolution"] = found
    for (small, less), (large, more) in zip(
        list(found.items())[:-1], list(found.items())[1:], strict=True
    ):
        what = f"blocks of {large} over those of {small}"
        result.demands.append(Demand(what, more["blocks"] / less["blocks"], MOST_DOUBLED))


def run(plan: Plan) -> Result:
    """Axes, sizes, resolution; sizes are left out in tests, where they would be the same."""
    result = Result("scaling")
    over_axes(plan, result)
    if plan.size != "tiny":
        over_sizes(plan, result)
    over_resolution(plan, result)
    return result
