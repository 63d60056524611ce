"""Forecast verification: CRPS, RMSE, bias, spread-skill, ranks and spectra against baselines.

    starts x leads ─ ForecastSystem.forecast ─▶ (M, C, X1..Xn) ─ ScoreAccumulator.add ─▶ scores

Forecasts are requested for one start and lead at a time and not kept, so memory is that of one
ensemble at one lead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.fields.summaries import linspace_indices
from jitkit.metrics.forecasts.baselines import ForecastSystem
from jitkit.metrics.forecasts.climatology import StateSeries
from jitkit.metrics.forecasts.ensemble_scores import (
    RESAMPLES,
    ScoreAccumulator,
    ScoreFrame,
    ScoreSums,
    block_bootstrap_indices,
    block_length,
)
from jitkit.utils.console import bar
from jitkit.utils.types import Array

MODEL = "model"
Z_95 = 1.96  # standard deviations of a 95 % interval
MAX_LISTED = 5  # leads in the list of scores
IDEAL = {"bias": 0.0, "spread_skill": 1.0}  # values of a perfect ensemble
BEST = {
    "bias": "real",
    "spread": "real",
    "spread_skill": "real",
}  # nearest to the ideal; others: lowest
WITH_UNIT = ("rmse", "crps", "bias", "spread")  # scores with the unit of the data


@dataclass(frozen=True, eq=False)
class VerificationPlan:
    """Forecasts to score.

    Attributes:
        starts: positions of the initial times, in order, (I,).
        leads: lead times in steps, ascending, (L,).
        labels: labels of the leads, such as ``24h``.
        seed: seed for tie-breaking of ranks and for resampling.
    """

    starts: Sequence[int]
    leads: Sequence[int]
    labels: Sequence[str]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Deviations:
    """Bootstrap standard deviations, by system and score, (L, C) each.

    Attributes:
        score: deviations of the scores.
        difference: deviations of the model's score minus the system's, on the same resamples.
    """

    score: Mapping[str, ScoreSums]
    difference: Mapping[str, ScoreSums]


@dataclass(frozen=True, eq=False)
class Verification:
    """Result of a verification.

    Attributes:
        plan, frame: what was scored.
        accumulators: score sums of each system by name, the model first.
    """

    plan: VerificationPlan
    frame: ScoreFrame
    accumulators: Mapping[str, ScoreAccumulator]

    @property
    def block(self) -> int:
        """Number of initial times in a bootstrap block."""
        return block_length(len(self.plan.starts))

    def scores(self) -> dict[str, ScoreSums]:
        """Every score of every system, (L, C) each."""
        return {name: sums.scores() for name, sums in self.accumulators.items()}

    @cached_property
    def deviations(self) -> Deviations:
        """Standard deviations of scores over block-bootstrap resamples of the initial times."""
        rng = np.random.default_rng(self.plan.seed)
        n = len(self.plan.starts)
        moments = _ResampleMoments()
        for _ in range(RESAMPLES):
            indices = block_bootstrap_indices(n, self.block, rng)
            moments.add({name: sums.scores(indices) for name, sums in self.accumulators.items()})
        return moments.deviations()

    def expected_by_chance(self) -> Array:
        """Expected rank_error of the model if its true rank histogram were flat, (L, C)."""
        blocks = np.arange(len(self.plan.starts)) // self.block
        return self.accumulators[MODEL].expected_rank_error(blocks)

    def rows(self, units: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Scores of the model by name, ``SCORE.CHANNEL.LEAD``, with those of the baselines.

        Of many leads, some evenly spaced ones are listed, including first and last. Spectra without
        complete rows are left out. Intervals are ± 1.96 standard deviations of the resamples; none
        for a single initial time.

        Args:
            units: units of the channels, by name.
        """
        values, chance = self.scores(), self.expected_by_chance()
        rows = {}
        for score in values[MODEL]:
            for c, channel in enumerate(self.frame.channels):
                for number in linspace_indices(len(self.plan.leads), MAX_LISTED):
                    at = (number, c)
                    if not self._has_rows(score, at):
                        continue
                    row = self._row(score, at, values)
                    row |= {"floor": IDEAL.get(score), "best": BEST.get(score, "low")}
                    if score == "rank_error":
                        row["floor"] = _number(chance[at])
                    if score in WITH_UNIT and channel in units:
                        row["unit"] = units[channel]
                    rows[f"{score}.{channel}.{self.plan.labels[number]}"] = row
        return rows

    def _has_rows(self, score: str, at: tuple[int, int]) -> bool:
        """Whether a score is not spectral, or had rows without missing cells."""
        kind, _, axis = score.partition(".")
        return kind != "spectrum" or bool(self.accumulators[MODEL].row_weights[axis][:, *at].any())

    def _row(
        self, score: str, at: tuple[int, int], values: Mapping[str, ScoreSums]
    ) -> dict[str, Any]:
        value = float(values[MODEL][score][at])
        std = float(self.deviations.score[MODEL][score][at])
        baselines = {}
        for name, scores in values.items():
            if name != MODEL and score in scores:
                baseline = float(scores[score][at])
                deviation = float(self.deviations.difference[name][score][at])
                baselines[name] = {
                    "value": _number(baseline),
                    "difference": self._interval(value - baseline, deviation),
                }
        return {
            "value": _number(value),
            "interval": self._interval(value, std),
            "std": _number(std) if len(self.plan.starts) > 1 else None,
            "by_seed": [_number(value)],
            "interval_over_seeds": None,
            "samples": len(self.plan.starts) * self.accumulators[MODEL].members,
            "baselines": baselines,
        }

    def _interval(self, value: float, std: float) -> list[float | None]:
        if len(self.plan.starts) < 2:
            return [None, None]
        return [_number(value - Z_95 * std), _number(value + Z_95 * std)]


class _ResampleMoments:
    """Running sums over resamples for the standard deviations."""

    def __init__(self) -> None:
        self.count = 0
        self.first: dict[str, ScoreSums] = {}
        self.sums: dict[tuple[str, str, str], tuple[Array, Array]] = {}

    def add(self, scores: Mapping[str, ScoreSums]) -> None:
        """Add the scores of every system on one resample."""
        self.count += 1
        self.first = self.first or {name: dict(values) for name, values in scores.items()}
        for name, of_system in scores.items():
            for score, values in of_system.items():
                shifted = values - self.first[name][score]  # avoids cancellation in the squares
                self._add((name, score, "score"), shifted)
                if score in scores[MODEL]:
                    model = scores[MODEL][score] - self.first[MODEL][score]
                    self._add((name, score, "difference"), model - shifted)

    def _add(self, key: tuple[str, str, str], values: Array) -> None:
        total, squares = self.sums.get(key, (0.0, 0.0))
        self.sums[key] = (total + values, squares + values**2)

    def deviations(self) -> Deviations:
        """Standard deviations over the added resamples."""
        stds: dict[str, dict[str, ScoreSums]] = {"score": {}, "difference": {}}
        for (name, score, kind), (total, squares) in self.sums.items():
            variance = (squares - total**2 / self.count) / (self.count - 1)
            stds[kind].setdefault(name, {})[score] = np.sqrt(np.maximum(variance, 0))
        return Deviations(stds["score"], stds["difference"])


def verify(
    systems: Sequence[ForecastSystem],
    states: StateSeries,
    frame: ScoreFrame,
    plan: VerificationPlan,
    *,
    shown: bool = True,
) -> Verification:
    """Score forecast systems on the same starts and leads.

    A lead without a verifying state (end of the data, a gap) is left out for all systems.

    Args:
        systems: the model, named ``"model"``, and the baselines.
        states: the verifying analyses or observations.
        frame: channels, axes, weights.
        plan: starts and leads.
        shown: show a progress bar on a terminal.

    Raises:
        DataError: no start has a verifying state at some lead.
    """
    shape = (len(plan.starts), len(plan.leads))
    accumulators = {
        system.name: ScoreAccumulator(frame, *shape, system.members) for system in systems
    }
    count = np.zeros(len(plan.leads), int)
    with bar("verifying", shape[0] * shape[1], unit="leads", shown=shown) as done:
        for i, start in enumerate(plan.starts):
            for number, steps in enumerate(plan.leads):
                position = states.after(start, steps)
                if position is not None:
                    analysis = states.read(position)
                    for system in systems:
                        rng = np.random.default_rng([plan.seed, start, steps])
                        ensemble = system.forecast(start, steps)
                        accumulators[system.name].add(i, number, ensemble, analysis, rng)
                    count[number] += 1
                done(i * shape[1] + number + 1)
    if not count.all():
        lead = plan.labels[int(np.flatnonzero(count == 0)[0])]
        raise DataError(
            f"no initial time has a held-out verifying state {lead} later; use shorter leads or a "
            "larger held-out split (domain.val)"
        )
    return Verification(plan, frame, accumulators)


def _number(value: float) -> float | None:
    """A number for JSON; None if not finite."""
    return float(value) if np.isfinite(value) else None
