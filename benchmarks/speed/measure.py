"""Times of several ways to do one thing, alternating, so that machine load affects all equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timing:
    """Seconds of one call in each round, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """See `spread`."""
        return spread(self.seconds)


def interleaved(
    takers: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    repeats: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call each function in turn, round after round.

    Every second round has the reverse order, so that no function always follows the same other one.

    Args:
        takers: the functions to time, by name.
        rounds: how often each is timed, at least 1.
        warmup: rounds before these that are not timed.
        repeats: consecutive calls per timing, by name, for short calls; 1 by default.
        clock: returns seconds.
    """
    found: dict[str, list[float]] = {name: [] for name in takers}
    names = list(takers)
    for number in range(-warmup, rounds):
        for name in names if number % 2 == 0 else reversed(names):
            took = seconds_of(takers[name], repeats=(repeats or {}).get(name, 1), clock=clock)
            if number >= 0:
                found[name].append(took)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def seconds_of(
    taker: Callable[[], object],
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of one call, the mean of this number of consecutive calls."""
    began = clock()
    for _ in range(repeats):
        taker()
    return (clock() - began) / repeats


def ratio(over: Timing, under: Timing) -> tuple[float, float]:
    """Median of the ratios of paired rounds, and their `spread`."""
    return middle([a / b for a, b in zip(over.seconds, under.seconds, strict=True)])


def middle(numbers: Sequence[float]) -> tuple[float, float]:
    """Median of numbers, and their `spread`."""
    return median(numbers), spread(numbers)


def spread(numbers: Sequence[float]) -> float:
    """The range of the middle half of numbers (interquartile), over their median.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    0.6666666666666666
    """
    if len(numbers) < 2:
        return 0.0
    low, _, high = quantiles(numbers, n=4, method="inclusive")
    return (high - low) / median(numbers)
