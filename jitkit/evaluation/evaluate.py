"""Evaluate a model: draw samples, score them against real items, write a table and a JSON file."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.sampler import fitting_batch
from jitkit.domain import Domain
from jitkit.errors import JitkitError
from jitkit.evaluation.scoring import DrawnSamples, Scoring, row
from jitkit.metrics.metric import EvaluationProtocol
from jitkit.protocols import ScoresFeatures, VerifiesForecasts
from jitkit.runs.run_dir import write_text
from jitkit.sampling.generate import load_guide, sample_features, sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sampling.rollout import Rollout
from jitkit.sections import EvaluateSection, SampleSection
from jitkit.utils.distributed import ALONE, Team

EVALUATION_FORMAT = 2
LARGEST_BATCH = 256  # a limit, so that all machines with enough memory draw the same samples


def evaluate_model(
    denoiser: Denoiser,
    sampling: SampleSection,
    section: EvaluateSection,
    folder: Path,
    *,
    model: Mapping[str, Any] | None = None,
    samples: int | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Draw samples, score them and write ``evaluation.json`` into the run.

    Each score comes with the score of real held-out items (its floor) and a 95 % prediction
    interval for the value of another seed (`scoring.row`). docs/evaluate.md describes the keys of
    the file. A domain that is a sequence of states scores autoregressive forecasts itself
    (`protocols.VerifiesForecasts`).

    All ranks draw samples; rank 0 scores them, and all get the result.

    Args:
        denoiser: a model with its domain.
        sampling, section: sections ``sample`` and ``evaluate`` of a recipe.
        folder: the run's folder.
        model: for the record, step and EMA of the model, and all its EMAs under ``means``.
        samples: replaces the number of samples of the section and its protocol.
        team: the processes that share the work.

    Raises:
        JitkitError: the domain has no metrics, or data that the section needs are missing.
    """
    began = time.monotonic()
    protocol = protocol_of(denoiser.domain)
    sampling, section = under_protocol(protocol, sampling, section, samples)
    evaluator = open_evaluator(denoiser, section, folder, team)
    sampling = with_fixed_batch_size(denoiser, sampling, team)
    result = evaluator(denoiser, sampling, load_guide(denoiser, sampling))
    record: dict[str, Any] = {}
    if team.is_main:
        record = {"format": EVALUATION_FORMAT, "model": dict(model or {}), **result.record}
        record |= {
            "scores": result.scores,
            "seconds": round(time.monotonic() - began, 1),
            "sample": sampling.model_copy(update={"seed": section.seed}).model_dump(mode="json"),
            "evaluate": section.model_dump(mode="json"),
            "protocol": None,
        }
        if protocol:
            departures = protocol.departures(record, denoiser.conditions)
            record["protocol"] = {"name": protocol.name, "departures": departures}
        write_text(folder / "evaluation.json", json.dumps(record, indent=1))
    return dict(team.all_gather(record)[0])


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model; empty on ranks other than 0.

    Attributes:
        scores: by name, from `scoring.row`.
        resampled: values of each score on random halves of the first seed's samples, the same
            halves for every model; empty if a score has none.
        record: other entries of the record.
    """

    scores: Mapping[str, Any] = field(default_factory=dict)
    resampled: Mapping[str, Sequence[float]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Scores models of one domain under sampling settings; real items are read once."""

    @property
    def key(self) -> str:
        """Identifies the real items that samples are compared with; set on rank 0 only."""

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        """Score a model; all ranks must call this."""


def open_evaluator(
    denoiser: Denoiser, section: EvaluateSection, folder: Path, team: Team
) -> Evaluator:
    """The evaluator of this domain's models; errors in the real items are raised here."""
    domain = denoiser.domain
    if isinstance(domain, VerifiesForecasts) and domain.is_sequence:
        return _ForecastEvaluator(domain, section, folder, team)
    failure: JitkitError | OSError | None = None
    try:
        scoring = Scoring(domain, is_main=team.is_main)
    except (JitkitError, OSError) as error:
        failure = error
    team.raise_together(failure)
    return _SampleEvaluator(scoring, section, team)


def check_scorer(domain: Domain) -> None:
    """Check early, and quickly, that samples can be scored after training.

    Raises:
        RecipeError: the domain does not know the requested scores.
        DataError: a feature network's parameters or a reference are missing.
    """
    if isinstance(domain, ScoresFeatures):
        domain.scorer()


def protocol_of(domain: Domain) -> EvaluationProtocol | None:
    """The published evaluation protocol that a domain's recipe selects, if any."""
    return domain.evaluation_protocol() if isinstance(domain, ScoresFeatures) else None


@dataclass(frozen=True)
class _SampleEvaluator:
    """Scores samples against real items."""

    scoring: Scoring
    section: EvaluateSection
    team: Team

    @property
    def key(self) -> str:
        """The reference and the scores of held-out items."""
        scoring = self.scoring
        return json.dumps([scoring.reference, list(scoring.best), scoring.floors])

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        section, scoring = self.section, self.scoring
        seeds = list(range(section.seed, section.seed + section.seeds))
        by_seed, seconds = [], 0.0
        for seed in seeds:
            drawn = self._draw(denoiser, sampling.model_copy(update={"seed": seed}), guide)
            if self.team.is_main:
                start = time.monotonic()
                by_seed.append(scoring.scores(drawn))
                seconds += time.monotonic() - start
        if not self.team.is_main:
            return EvaluationResult()
        scores = {
            name: row([each[name] for each in by_seed], scoring.floors.get(name), best)
            for name, best in scoring.best.items()
        }
        record = {
            "samples": section.samples,
            "seeds": seeds,
            "held_out": scoring.held_out,
            "seconds_scoring": round(seconds, 1),
            "reference": scoring.reference,
            "notes": scoring.notes,
        }
        resampled = {name: by_seed[0][name].resampled for name in scores}
        return EvaluationResult(scores, resampled, record)

    def _draw(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> DrawnSamples:
        """One seed's samples: the items and features that the scores need."""
        n, scorer, team = self.section.samples, self.scoring.scorer, self.team
        conditioning = conditioning_for(denoiser, n, seed=sampling.seed)
        if scorer is None:
            items = sample_items(
                denoiser, n, conditioning, sampling, guide=guide, progress=True, team=team
            )
            return DrawnSamples(n, list(items))
        features, kept = sample_features(
            denoiser,
            n,
            conditioning,
            sampling,
            scorer.features,
            frozenset(self.scoring.kept(n)),
            guide=guide,
            progress=True,
            team=team,
        )
        return DrawnSamples(n, kept, features)


@dataclass(frozen=True)
class _ForecastEvaluator:
    """Scores autoregressive forecasts against verifying observations, by the domain's metrics."""

    domain: VerifiesForecasts
    section: EvaluateSection
    folder: Path
    team: Team

    @property
    def key(self) -> str:
        """The domain's section of the recipe."""
        section = self.domain.section
        return "" if section is None else section.model_dump_json()

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        seed = self.section.seed
        rollout = Rollout(denoiser, sampling.model_copy(update={"seed": seed}), guide=guide)
        # all ranks forecast, since they may hold shards of the model; only rank 0 writes to the run
        with TemporaryDirectory(prefix="jitkit-") as temporary:
            folder = self.folder if self.team.is_main else Path(temporary)
            record = dict(self.domain.verify(rollout, folder, seed=seed))
        return EvaluationResult(record.pop("scores"), {}, record | {"seeds": [seed]})


def with_fixed_batch_size(denoiser: Denoiser, sampling: SampleSection, team: Team) -> SampleSection:
    """Section ``sample`` with a batch size that does not depend on machine load.

    The last digits of a sample depend on the batch size; otherwise scores of one seed would vary
    with free memory.
    """
    if sampling.batch_size is not None:
        return sampling
    fits = team.min(fitting_batch(denoiser))
    size = 1 << (min(fits, LARGEST_BATCH).bit_length() - 1)
    return sampling.model_copy(update={"batch_size": size})


def under_protocol(
    protocol: EvaluationProtocol | None,
    sampling: SampleSection,
    section: EvaluateSection,
    samples: int | None = None,
) -> tuple[SampleSection, EvaluateSection]:
    """Both sections with the keys that a protocol fixes; ``samples`` overrides its number."""
    if protocol is not None:
        sampling = sampling.model_copy(update=dict(protocol.sampling))
        section = section.model_copy(update={"samples": protocol.samples})
    if samples is not None:
        section = section.model_copy(update={"samples": samples})
    return sampling, section


def score_table(result: Mapping[str, Any]) -> str:
    """The result of `evaluate_model` as text, one line per score."""
    if "table" in result:  # made by the domain
        return "\n".join([str(result["table"]), *(f"note: {text}" for text in _notes(result))])
    rows = [("", "value", "95 % interval", "held out")]
    rows += [(name, *formatted_score(score)) for name, score in result["scores"].items()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  " + "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])))
        for row in rows
    ]
    return "\n".join([f"{_head(result)}:", *lines, *(f"note: {text}" for text in _notes(result))])


def _head(result: Mapping[str, Any]) -> str:
    seeds = result.get("seeds", [])
    of_seeds = f" for each of {len(seeds)} seeds" if len(seeds) > 1 else ""
    held_out = f", beside {result['held_out']} held-out items" if result["held_out"] else ""
    return f"{result['samples']} samples{of_seeds} in {result['seconds']:.0f} s{held_out}"


def formatted_score(score: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, interval and floor as text."""
    low, high = score["interval"]
    value = "undefined" if score["value"] is None else f"{score['value']:.4g}"
    interval = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    return value, interval, "" if score["floor"] is None else f"{score['floor']:.4g}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    protocol = result.get("protocol")
    if not protocol:
        return list(result.get("notes", []))
    departures = "; ".join(protocol["departures"])
    status = f"except: {departures}" if departures else "followed"
    return [*result.get("notes", []), f"protocol {protocol['name']}, {status}"]
