"""From drawn samples to scores: each with its interval, beside the same score of real items.

Of a set of samples the score's standard deviation is estimated from random halves of it, drawn
without replacement: the variance of a score over subsets of m of n samples is (n - m) / m times
that over sets of n (Politis, Romano & Wolf 1999, Subsampling, section 2). A bootstrap with
replacement would not do: samples repeat in it, and a Fréchet distance, a distance to nearest
neighbours or a share of copies is another thing then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from jitkit.domain import Best, Domain, Metric, Split
from jitkit.errors import BadItem, JitkitError
from jitkit.protocols import FeatureScores, ScoresFeatures
from jitkit.utils.console import bar
from jitkit.utils.types import Array

RESAMPLES = 40
LARGEST_RESAMPLE = 5_000  # samples, so that intervals of 50,000 do not take hours
REFERENCE = 10_000  # real items that measures compare with, at most
KEPT = 10_000  # samples that are kept for measures, where a scorer needs none, at most
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class DrawnSamples:
    """One seed's samples, as far as they are needed.

    Attributes:
        n: how many were drawn.
        items: those that measures look at.
        rows: (n, D) numbers for the domain's scorer; None where it has none.
    """

    n: int
    items: Sequence[Any]
    rows: Array | None = None


@dataclass(frozen=True)
class Score:
    """A score of one seed's samples.

    Attributes:
        value: NaN where it says nothing.
        resampled: the same score of random halves.
        std: standard deviation of the value over seeds, estimated from those.
        samples: how many it was taken on.
    """

    value: float
    resampled: tuple[float, ...]
    std: float
    samples: int


class Scoring:
    """All scores of a domain, and the real items that samples are held against, found out once.

    Args:
        domain: the data.
        is_main: whether this process scores; others only make the rows of their samples.

    Attributes:
        scorer: the domain's scores on rows of numbers, if it has any.
        best: names of all scores in order, and which value of each is the best.
        notes: what people should know about the scores.
        reference: what samples are compared with, for the record.
        held_out: real items behind each floor.

    Raises:
        JitkitError: the domain has no measures, or real items are missing.
    """

    def __init__(self, domain: Domain, *, is_main: bool = True) -> None:
        self.scorer: FeatureScores | None = None
        self.notes: list[str] = []
        if isinstance(domain, ScoresFeatures):
            self.scorer, notes = domain.scorer()
            self.notes += notes
        replaced = self.scorer.replaces if self.scorer else frozenset[str]()
        measures = domain.scores()
        self.measures = {k: measure for k, measure in measures.items() if k not in replaced}
        if not self.measures and self.scorer is None:
            raise JitkitError(
                f"domain {type(domain).__name__} has no measures to score samples with"
            )
        self.best: dict[str, Best] = {}
        self.floors: dict[str, float] = {}
        self.reference: dict[str, Any] = {}
        self.held_out = 0
        if is_main:
            self._look_at_real(domain)

    def kept(self, n: int) -> Sequence[int]:
        """Which of ``n`` samples are kept as items: those that measures look at."""
        if not self.measures:
            return range(0)
        count = min(n, KEPT) if self.scorer else n
        return [i * n // count for i in range(count)]

    def scores(self, drawn: DrawnSamples) -> dict[str, Score]:
        """Every score of one seed's samples."""
        found = {}
        if self.scorer and drawn.rows is not None:
            found = _scored(self.scorer.scores, self.scorer.resampled, drawn.rows)
        if self.measures:
            found |= _scored(self._measured, self._measured, drawn.items)
        return {name: found[name] for name in self.best}

    def _measured(self, items: Sequence[Any]) -> dict[str, float]:
        return {name: measure(items, self._real) for name, measure in self.measures.items()}

    def _look_at_real(self, domain: Domain) -> None:
        """The reference, and the scores of held-out items against it."""
        if self.scorer:
            self.reference = dict(self.scorer.prepare())
            self.notes += self.reference.pop("notes", [])
            self.best |= self.scorer.best
        self.best |= {name: _best(measure) for name, measure in self.measures.items()}
        self._real = list(real_items(domain, "train")) if self.measures else []
        self.reference |= {"items_measured": len(self._real)} if self.measures else {}
        kept, rows = [], []
        for part in _in_parts(real_items(domain, "val")):
            self.held_out += len(part)
            kept += part if self.measures else []
            rows += [self.scorer.features(part)] if self.scorer else []
        if self.scorer and rows:
            self.floors |= self.scorer.scores(np.concatenate(rows))
        if kept:
            self.floors |= self._measured(kept)


def real_items(domain: Domain, split: Split) -> Iterator[Any]:
    """Items of a split that samples are compared with, those that cannot be read left out."""
    items = domain.items(split)
    for i in range(min(len(items), REFERENCE)):
        with suppress(BadItem):
            yield items[i]


def row(scores: Sequence[Score], floor: float | None, best: Best) -> dict[str, Any]:
    """A score over several seeds as the record has it (docs/evaluate.md).

    With S seeds a further one's value differs from their mean with variance (1 + 1 / S) times that
    of one; the interval is 1.96 such deviations to each side. The one over seeds has Student's t
    and the scatter of the values in place of 1.96 and the resamples.
    """
    values = [score.value for score in scores]
    value, further = float(np.mean(values)), sqrt(1 + 1 / len(scores))
    std = sqrt(float(np.mean([score.std**2 for score in scores])))
    found: dict[str, Any] = {
        "value": number(value),
        "interval": _around(value, 1.96 * further * std),
        "std": number(std),
        "by_seed": [number(v) for v in values],
        "floor": None if floor is None else number(floor),
        "best": best,
        "samples": scores[0].samples,
    }
    if len(scores) > 1:
        reach = _student(len(scores) - 1) * further * float(np.std(values, ddof=1))
        found["interval_over_seeds"] = _around(value, reach)
    return found


def cost(score: Mapping[str, Any], value: float | None) -> float:
    """How bad a value of a score is, by what its row says is best; infinite where it says nothing.

    Args:
        score: a row of the record, from `row`.
        value: of this score, taken on any samples.
    """
    if value is None or not isfinite(value):
        return inf
    match score.get("best", "low"):
        case "high":
            return -value
        case "real":
            return abs(value - float(score["floor"]))
    return value


def number(value: float) -> float | None:
    """A number as JSON knows it; None where the measure says nothing."""
    return value if isfinite(value) else None


def resamples(n: int) -> list[Array]:
    """Indices of random halves of ``n`` samples, at most 5,000 each; the same every time.

    >>> [len(half) for half in resamples(7)] == [3] * RESAMPLES
    True
    """
    rng = np.random.default_rng(0)
    size = min(n // 2, LARGEST_RESAMPLE)
    return [np.sort(rng.choice(n, size, replace=False)) for _ in range(RESAMPLES)]


def _scored(
    exactly: Callable[[Any], Mapping[str, float]],
    quickly: Callable[[Any], Mapping[str, float]],
    samples: Sequence[Any] | Array,
) -> dict[str, Score]:
    """Scores of samples, and how much each scatters."""
    n, values = len(samples), exactly(samples)
    again: list[Mapping[str, float]] = []
    if n >= 4:  # of fewer, halves say nothing
        halves = resamples(n)
        with bar("intervals", len(halves), unit="resamples") as show:
            for i, half in enumerate(halves):
                part = (
                    samples[half] if isinstance(samples, np.ndarray) else [samples[j] for j in half]
                )
                again.append(quickly(part))
                show(i + 1)
    found = {}
    for name, value in values.items():
        resampled = tuple(float(each[name]) for each in again)
        std = float("nan")
        if again:
            size = min(n // 2, LARGEST_RESAMPLE)
            std = float(np.std(resampled, ddof=1)) * sqrt(size / (n - size))
        found[name] = Score(float(value), resampled, std, n)
    return found


def _in_parts(items: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(items, ROWS_AT_ONCE)):
        yield part


def _around(value: float, reach: float) -> list[float | None]:
    return [number(value - reach), number(value + reach)]


def _student(freedom: int) -> float:
    """How many standard deviations hold 95 in 100 values of Student's t to both sides."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _best(measure: Metric) -> Best:
    found: Best = getattr(measure, "best", "real")
    return found
