"""Scores of samples with confidence intervals by subsampling, and of real held-out items.

The standard deviation of a score is estimated from random halves of the samples, drawn without
replacement: the variance over subsets of m of n samples is (n - m) / m times that over sets of n
(Politis, Romano & Wolf 1999, Subsampling, section 2). A bootstrap with replacement would repeat
samples, which biases Fréchet distances, nearest-neighbour distances and fractions of copies.
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
REFERENCE = 10_000  # most real items that metrics compare with
KEPT = 10_000  # most samples that are kept as items for metrics if a scorer takes features
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class DrawnSamples:
    """One seed's samples, reduced to what the scores need.

    Attributes:
        n: number of samples drawn.
        items: those that metrics use.
        features: (n, D) for the domain's scorer; None if it has none.
    """

    n: int
    items: Sequence[Any]
    features: Array | None = None


@dataclass(frozen=True)
class Score:
    """A score of one seed's samples.

    Attributes:
        value: NaN if undefined.
        resampled: the same score of random halves.
        std: standard deviation of the value over seeds, estimated from the halves.
        samples: number of samples.
    """

    value: float
    resampled: tuple[float, ...]
    std: float
    samples: int


class Scoring:
    """All scores of a domain, and the real items that samples are compared with, read once.

    Args:
        domain: the data.
        is_main: whether this process scores; other ranks only compute features of their samples.

    Attributes:
        scorer: the domain's scores on features, if it has any.
        best: names of all scores in order, and which value of each is best.
        notes: remarks on the scores, for the reader.
        reference: description of the real items, for the record.
        held_out: number of held-out items of the floors.

    Raises:
        JitkitError: the domain has no metrics, or real items are missing.
    """

    def __init__(self, domain: Domain, *, is_main: bool = True) -> None:
        self.scorer: FeatureScores | None = None
        self.notes: list[str] = []
        if isinstance(domain, ScoresFeatures):
            self.scorer, notes = domain.scorer()
            self.notes += notes
        replaced = self.scorer.replaces if self.scorer else frozenset[str]()
        metrics = domain.scores()
        self.metrics = {name: m for name, m in metrics.items() if name not in replaced}
        if not self.metrics and self.scorer is None:
            raise JitkitError(
                f"domain {type(domain).__name__} has no metrics to score samples with"
            )
        self.best: dict[str, Best] = {}
        self.floors: dict[str, float] = {}
        self.reference: dict[str, Any] = {}
        self.held_out = 0
        if is_main:
            self._read_real(domain)

    def kept(self, n: int) -> Sequence[int]:
        """Indices of the samples, of ``n``, that are kept as items for the metrics."""
        if not self.metrics:
            return range(0)
        count = min(n, KEPT) if self.scorer else n
        return [i * n // count for i in range(count)]

    def scores(self, drawn: DrawnSamples) -> dict[str, Score]:
        """Every score of one seed's samples."""
        scores = {}
        if self.scorer and drawn.features is not None:
            scores = _scored(self.scorer.scores, self.scorer.resampled, drawn.features)
        if self.metrics:
            scores |= _scored(self._metric_values, self._metric_values, drawn.items)
        return {name: scores[name] for name in self.best}

    def _metric_values(self, items: Sequence[Any]) -> dict[str, float]:
        return {name: metric(items, self._real) for name, metric in self.metrics.items()}

    def _read_real(self, domain: Domain) -> None:
        """Read the reference, and score held-out items against it."""
        if self.scorer:
            self.reference = dict(self.scorer.prepare())
            self.notes += self.reference.pop("notes", [])
            self.best |= self.scorer.best
        self.best |= {name: _best(metric) for name, metric in self.metrics.items()}
        self._real = list(real_items(domain, "train")) if self.metrics else []
        self.reference |= {"items_measured": len(self._real)} if self.metrics else {}
        held_out, features = [], []
        for part in _batched(real_items(domain, "val")):
            self.held_out += len(part)
            held_out += part if self.metrics else []
            features += [self.scorer.features(part)] if self.scorer else []
        if self.scorer and features:
            self.floors |= self.scorer.scores(np.concatenate(features))
        if held_out:
            self.floors |= self._metric_values(held_out)


def real_items(domain: Domain, split: Split) -> Iterator[Any]:
    """Items of a split that samples are compared with; unreadable ones are skipped."""
    items = domain.items(split)
    for i in range(min(len(items), REFERENCE)):
        with suppress(BadItem):
            yield items[i]


def row(scores: Sequence[Score], floor: float | None, best: Best) -> dict[str, Any]:
    """A score over several seeds, as an entry of the record (docs/evaluate.md).

    With S seeds, the value of a further seed differs from their mean with variance (1 + 1 / S)
    times that of one seed; the interval is 1.96 such deviations to each side. The interval over
    seeds uses Student's t and the standard deviation of the values over seeds instead.
    """
    values = [score.value for score in scores]
    value, further = float(np.mean(values)), sqrt(1 + 1 / len(scores))
    std = sqrt(float(np.mean([score.std**2 for score in scores])))
    result: dict[str, Any] = {
        "value": finite_or_none(value),
        "interval": _interval(value, 1.96 * further * std),
        "std": finite_or_none(std),
        "by_seed": [finite_or_none(v) for v in values],
        "floor": None if floor is None else finite_or_none(floor),
        "best": best,
        "samples": scores[0].samples,
    }
    if len(scores) > 1:
        half_width = _student(len(scores) - 1) * further * float(np.std(values, ddof=1))
        result["interval_over_seeds"] = _interval(value, half_width)
    return result


def cost(score: Mapping[str, Any], value: float | None) -> float:
    """Cost of a value of a score (less is better) by the score's ``best``; inf if undefined.

    Args:
        score: from `row`.
        value: a value of this score, on any samples.
    """
    if value is None or not isfinite(value):
        return inf
    match score.get("best", "low"):
        case "high":
            return -value
        case "real":
            return abs(value - float(score["floor"]))
    return value


def finite_or_none(value: float) -> float | None:
    """The value, or None (null in JSON) if it is not finite."""
    return value if isfinite(value) else None


def resamples(n: int) -> list[Array]:
    """Indices of random halves of ``n`` samples, at most 5,000 each; the same on every call.

    >>> [len(half) for half in resamples(7)] == [3] * RESAMPLES
    True
    """
    rng = np.random.default_rng(0)
    size = min(n // 2, LARGEST_RESAMPLE)
    return [np.sort(rng.choice(n, size, replace=False)) for _ in range(RESAMPLES)]


def _scored(
    exact: Callable[[Any], Mapping[str, float]],
    fast: Callable[[Any], Mapping[str, float]],
    samples: Sequence[Any] | Array,
) -> dict[str, Score]:
    """Scores of samples, and the standard deviation of each."""
    n, values = len(samples), exact(samples)
    by_half: list[Mapping[str, float]] = []
    if n >= 4:  # halves of fewer samples are too small
        halves = resamples(n)
        with bar("intervals", len(halves), unit="resamples") as show:
            for i, half in enumerate(halves):
                part = (
                    samples[half] if isinstance(samples, np.ndarray) else [samples[j] for j in half]
                )
                by_half.append(fast(part))
                show(i + 1)
    scores = {}
    for name, value in values.items():
        resampled = tuple(float(each[name]) for each in by_half)
        std = float("nan")
        if by_half:
            size = min(n // 2, LARGEST_RESAMPLE)
            std = float(np.std(resampled, ddof=1)) * sqrt(size / (n - size))
        scores[name] = Score(float(value), resampled, std, n)
    return scores


def _batched(items: Iterator[Any]) -> Iterator[list[Any]]:
    while part := list(islice(items, ROWS_AT_ONCE)):
        yield part


def _interval(value: float, half_width: float) -> list[float | None]:
    return [finite_or_none(value - half_width), finite_or_none(value + half_width)]


def _student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with ``freedom`` degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _best(metric: Metric) -> Best:
    best: Best = getattr(metric, "best", "real")
    return best
