"""Systems of forecasts through the same truth, side by side.

    starts x leads ─ System.forecast ─▶ (M, C, X1..Xn) ─ Tally.add ─▶ scores, intervals, baselines

Forecasts are asked for one start and lead at a time and forgotten once they are added up, so the
memory is that of one ensemble of one lead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.fields.summaries import spaced
from jitkit.metrics.forecasts.baselines import System
from jitkit.metrics.forecasts.climatology import StateSeries
from jitkit.metrics.forecasts.ensemble_scores import (
    RESAMPLES,
    Numbers,
    ScoreFrame,
    Tally,
    block_length,
    drawn_blocks,
)
from jitkit.utils.console import bar
from jitkit.utils.types import Array

MODEL = "model"
REACH = 1.96  # standard deviations of an interval
LISTED = 5  # leads that stand in the list of scores
IDEAL = {"bias": 0.0, "spread_skill": 1.0}  # what the truth itself would have
BEST = {"bias": "real", "spread": "real", "spread_skill": "real"}  # nearest to it; else lowest
WITH_UNIT = ("rmse", "crps", "bias", "spread")  # those of the data


@dataclass(frozen=True, eq=False)
class VerificationPlan:
    """Which forecasts are scored.

    Attributes:
        starts: positions of the initial times, in order, (I,).
        leads: steps ahead, rising, (L,).
        labels: of the leads, such as ``24h``.
        seed: of ranks among ties, and of resamples.
    """

    starts: Sequence[int]
    leads: Sequence[int]
    labels: Sequence[str]
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Deviations:
    """Standard deviations of scores over resamples, by system and score, (L, C) each.

    Attributes:
        own: of the scores.
        apart: of the model's score less the system's, both on the same resamples.
    """

    own: Mapping[str, Numbers]
    apart: Mapping[str, Numbers]


@dataclass(frozen=True, eq=False)
class Verification:
    """What came of it.

    Attributes:
        plan, frame: what was scored.
        tallies: of each system by name, the model first.
    """

    plan: VerificationPlan
    frame: ScoreFrame
    tallies: Mapping[str, Tally]

    @property
    def block(self) -> int:
        """Initial times of a block of the bootstrap."""
        return block_length(len(self.plan.starts))

    def scores(self) -> dict[str, Numbers]:
        """Every score of every system, (L, C) each."""
        return {name: tally.scores() for name, tally in self.tallies.items()}

    @cached_property
    def deviations(self) -> Deviations:
        """How far scores of bootstrap resamples of the initial times scatter."""
        rng = np.random.default_rng(self.plan.seed)
        n = len(self.plan.starts)
        gathered = _Gathered()
        for _ in range(RESAMPLES):
            drawn = drawn_blocks(n, self.block, rng)
            gathered.add({name: tally.scores(drawn) for name, tally in self.tallies.items()})
        return gathered.deviations()

    def by_chance(self) -> Array:
        """What the model's rank_error would be if its histogram were flat, (L, C)."""
        blocks = np.arange(len(self.plan.starts)) // self.block
        return self.tallies[MODEL].rank_error_by_chance(blocks)

    def rows(self, units: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """Scores of the model by name, ``SCORE.CHANNEL.LEAD``, beside those of the baselines.

        Of many leads some are listed, evenly spaced, the first and last among them; a spectrum that
        had no whole row to be taken from is not. An interval is
        1.96 standard deviations of the resamples to each side; none for a single initial time.

        Args:
            units: of channels, by name.
        """
        values, chance = self.scores(), self.by_chance()
        found = {}
        for score in values[MODEL]:
            for c, channel in enumerate(self.frame.channels):
                for number in spaced(len(self.plan.leads), LISTED):
                    at = (number, c)
                    if not self._has_rows(score, at):
                        continue
                    row = self._row(score, at, values)
                    row |= {"floor": IDEAL.get(score), "best": BEST.get(score, "low")}
                    if score == "rank_error":
                        row["floor"] = _number(chance[at])
                    if score in WITH_UNIT and channel in units:
                        row["unit"] = units[channel]
                    found[f"{score}.{channel}.{self.plan.labels[number]}"] = row
        return found

    def _has_rows(self, score: str, at: tuple[int, int]) -> bool:
        """Whether a score is none of a spectrum, or a row without missing cells went into it."""
        kind, _, axis = score.partition(".")
        return kind != "spectrum" or bool(self.tallies[MODEL].rows[axis][:, *at].any())

    def _row(
        self, score: str, at: tuple[int, int], values: Mapping[str, Numbers]
    ) -> dict[str, Any]:
        value = float(values[MODEL][score][at])
        std = float(self.deviations.own[MODEL][score][at])
        baselines = {}
        for name, numbers in values.items():
            if name != MODEL and score in numbers:
                theirs = float(numbers[score][at])
                apart = float(self.deviations.apart[name][score][at])
                baselines[name] = {
                    "value": _number(theirs),
                    "difference": self._interval(value - theirs, apart),
                }
        return {
            "value": _number(value),
            "interval": self._interval(value, std),
            "std": _number(std) if len(self.plan.starts) > 1 else None,
            "by_seed": [_number(value)],
            "interval_over_seeds": None,
            "samples": len(self.plan.starts) * self.tallies[MODEL].members,
            "baselines": baselines,
        }

    def _interval(self, value: float, std: float) -> list[float | None]:
        if len(self.plan.starts) < 2:
            return [None, None]
        return [_number(value - REACH * std), _number(value + REACH * std)]


class _Gathered:
    """Sums over resamples, so that none of them is kept."""

    def __init__(self) -> None:
        self.count = 0
        self.first: dict[str, Numbers] = {}
        self.sums: dict[tuple[str, str, str], tuple[Array, Array]] = {}

    def add(self, scores: Mapping[str, Numbers]) -> None:
        """Take in the scores of every system on one resample."""
        self.count += 1
        self.first = self.first or {name: dict(numbers) for name, numbers in scores.items()}
        for name, numbers in scores.items():
            for score, values in numbers.items():
                moved = values - self.first[name][score]  # near zero, so that squares do not cancel
                self._add((name, score, "own"), moved)
                if score in scores[MODEL]:
                    own = scores[MODEL][score] - self.first[MODEL][score]
                    self._add((name, score, "apart"), own - moved)

    def _add(self, key: tuple[str, str, str], values: Array) -> None:
        total, squares = self.sums.get(key, (0.0, 0.0))
        self.sums[key] = (total + values, squares + values**2)

    def deviations(self) -> Deviations:
        """Standard deviations over what was added."""
        found: dict[str, dict[str, Numbers]] = {"own": {}, "apart": {}}
        for (name, score, kind), (total, squares) in self.sums.items():
            variance = (squares - total**2 / self.count) / (self.count - 1)
            found[kind].setdefault(name, {})[score] = np.sqrt(np.maximum(variance, 0))
        return Deviations(found["own"], found["apart"])


def verify(
    systems: Sequence[System],
    states: StateSeries,
    frame: ScoreFrame,
    plan: VerificationPlan,
    *,
    shown: bool = True,
) -> Verification:
    """Score systems on the same starts and leads.

    Where the data have no state a lead after a start (their end, a hole), that lead is left out
    for all systems.

    Args:
        systems: the model, named ``"model"``, and what it is held against.
        states: the truth.
        frame: channels, axes, weights.
        plan: starts and leads.
        shown: a progress bar on a terminal.

    Raises:
        DataError: no start has a truth at some lead.
    """
    shape = (len(plan.starts), len(plan.leads))
    tallies = {system.name: Tally(frame, *shape, system.members) for system in systems}
    count = np.zeros(len(plan.leads), int)
    with bar("verifying", shape[0] * shape[1], unit="leads", shown=shown) as done:
        for i, start in enumerate(plan.starts):
            for number, steps in enumerate(plan.leads):
                position = states.after(start, steps)
                if position is not None:
                    truth = states.read(position)
                    for system in systems:
                        rng = np.random.default_rng([plan.seed, start, steps])
                        ensemble = system.forecast(start, steps)
                        tallies[system.name].add(i, number, ensemble, truth, rng)
                    count[number] += 1
                done(i * shape[1] + number + 1)
    if not count.all():
        lead = plan.labels[int(np.flatnonzero(count == 0)[0])]
        raise DataError(
            f"no initial time has a held-out state {lead} later to be scored against; forecast "
            "less far, or hold out more (domain.val)"
        )
    return Verification(plan, frame, tallies)


def _number(value: float) -> float | None:
    """A number as JSON knows it; None where there is none."""
    return float(value) if np.isfinite(value) else None
