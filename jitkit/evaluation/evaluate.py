"""Samples of a model against real items: drawn, scored, and told in one table and one file."""

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
from jitkit.domain import Domain, section_of
from jitkit.errors import JitkitError
from jitkit.evaluation.scoring import DrawnSamples, Scoring, row
from jitkit.protocols import EvaluationProtocol, ScoresFeatures, VerifiesForecasts
from jitkit.runs.run_dir import write_text
from jitkit.sampling.generate import generate, guide_of, summarised
from jitkit.sampling.requests import conditioning_for
from jitkit.sampling.rollout import RollOut
from jitkit.sections import EvaluateSection, SampleSection
from jitkit.utils.distributed import ALONE, Team

EVALUATION_FORMAT = 2
LARGEST_BATCH = 256  # so that machines with more memory than that need draw the same samples


def evaluate(
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

    Each score stands beside the same score of held-out real items, which is its floor, and with an
    interval in which another seed's value falls 95 times in 100 (`scoring.row`). The file's keys
    are described in docs/evaluate.md. A domain of items that follow one another is asked to score
    roll-outs itself (`domain.VerifiesForecasts`).

    Processes of a team draw the samples together; rank 0 scores them, and all get the result.

    Args:
        denoiser: a model with its domain.
        sampling, section: sections ``sample`` and ``evaluate`` of a recipe.
        folder: the run's.
        model: which step and which mean of the weights is scored, and its ``means`` in order.
        samples: how many, in place of the section's and its protocol's.
        team: the processes that share the work.

    Raises:
        JitkitError: the domain has no measures, or what the section asks for is not there.
    """
    began = time.monotonic()
    protocol = protocol_of(denoiser.domain)
    sampling, section = under_protocol(protocol, sampling, section, samples)
    judge = open_evaluator(denoiser, section, folder, team)
    sampling = steady(denoiser, sampling, team)
    judged = judge(denoiser, sampling, guide_of(denoiser, sampling))
    result: dict[str, Any] = {}
    if team.is_main:
        result = {"format": EVALUATION_FORMAT, "model": dict(model or {}), **judged.record}
        result |= {
            "scores": judged.scores,
            "seconds": round(time.monotonic() - began, 1),
            "sample": sampling.model_copy(update={"seed": section.seed}).model_dump(mode="json"),
            "evaluate": section.model_dump(mode="json"),
            "protocol": None,
        }
        if protocol:
            departed = protocol.departures(result, denoiser.conditions)
            result["protocol"] = {"name": protocol.name, "departures": departed}
        write_text(folder / "evaluation.json", json.dumps(result, indent=1))
    return dict(team.all_gather(result)[0])


@dataclass(frozen=True)
class EvaluationResult:
    """What was found out about a model; empty in other processes than rank 0.

    Attributes:
        scores: rows by name, as the record has them.
        resampled: the values of each score on random halves of the first seed's samples, the same
            halves for every model; none where a score has no such.
        record: what else belongs into the record.
    """

    scores: Mapping[str, Any] = field(default_factory=dict)
    resampled: Mapping[str, Sequence[float]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Scores models of one domain, under settings for samples, with real items looked at once."""

    @property
    def key(self) -> str:
        """Tells what samples are held against from anything else; rank 0 alone knows it."""

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        """All processes must ask."""


def open_evaluator(
    denoiser: Denoiser, section: EvaluateSection, folder: Path, team: Team
) -> Evaluator:
    """What scores models of this domain; all that is wrong with the real items is found here."""
    domain = denoiser.domain
    if isinstance(domain, VerifiesForecasts) and domain.is_sequence:
        return _RollOuts(domain, section, folder, team)
    failed: JitkitError | OSError | None = None
    try:
        scoring = Scoring(domain, is_main=team.is_main)
    except (JitkitError, OSError) as error:
        failed = error
    team.raise_together(failed)
    return _Samples(scoring, section, team)


def check_ready(domain: Domain) -> None:
    """Whether samples could be scored once a model is trained, but for what takes long to find out.

    Raises:
        RecipeError: the domain does not know what is asked for.
        DataError: weights of a network or a reference are not there.
    """
    if isinstance(domain, ScoresFeatures):
        domain.scorer()


def protocol_of(domain: Domain) -> EvaluationProtocol | None:
    """The published way of scoring that a domain's recipe asks for, if any."""
    return domain.evaluation_protocol() if isinstance(domain, ScoresFeatures) else None


@dataclass(frozen=True)
class _Samples:
    """Samples against real items."""

    scoring: Scoring
    section: EvaluateSection
    team: Team

    @property
    def key(self) -> str:
        """What the real items are, and how those that are held out score."""
        scoring = self.scoring
        return json.dumps([scoring.reference, list(scoring.best), scoring.floors])

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        section, scoring = self.section, self.scoring
        seeds = list(range(section.seed, section.seed + section.seeds))
        found, seconds = [], 0.0
        for seed in seeds:
            drawn = self._drawn(denoiser, sampling.model_copy(update={"seed": seed}), guide)
            if self.team.is_main:
                start = time.monotonic()
                found.append(scoring.scores(drawn))
                seconds += time.monotonic() - start
        if not self.team.is_main:
            return EvaluationResult()
        scores = {
            name: row([each[name] for each in found], scoring.floors.get(name), best)
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
        return EvaluationResult(scores, {name: found[0][name].resampled for name in scores}, record)

    def _drawn(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> DrawnSamples:
        """One seed's samples, as far as the scores look at them."""
        n, scorer, team = self.section.samples, self.scoring.scorer, self.team
        told = conditioning_for(denoiser, n, seed=sampling.seed)
        if scorer is None:
            made = generate(denoiser, n, told, sampling, guide=guide, progress=True, team=team)
            return DrawnSamples(n, list(made))
        kept = frozenset(self.scoring.kept(n))
        rows, items = summarised(
            denoiser,
            n,
            told,
            sampling,
            scorer.features,
            kept,
            guide=guide,
            progress=True,
            team=team,
        )
        return DrawnSamples(n, items, rows)


@dataclass(frozen=True)
class _RollOuts:
    """Roll-outs against what came, by the domain's own scores."""

    domain: VerifiesForecasts
    section: EvaluateSection
    folder: Path
    team: Team

    @property
    def key(self) -> str:
        """What the domain was made from."""
        section = section_of(self.domain)
        return "" if section is None else section.model_dump_json()

    def __call__(
        self, denoiser: Denoiser, sampling: SampleSection, guide: Denoiser | None
    ) -> EvaluationResult:
        seed = self.section.seed
        roll_out = RollOut(denoiser, sampling.model_copy(update={"seed": seed}), guide=guide)
        # all call the network, whose parts they may hold; rank 0 alone writes into the run
        with TemporaryDirectory(prefix="jitkit-") as aside:
            folder = self.folder if self.team.is_main else Path(aside)
            found = dict(self.domain.verify(roll_out, folder, seed=seed))
        return EvaluationResult(found.pop("scores"), {}, found | {"seeds": [seed]})


def steady(denoiser: Denoiser, sampling: SampleSection, team: Team) -> SampleSection:
    """With a batch size that does not hang on what else the machine does.

    The last digits of a sample hang on the size of the batch that it is made in, so that scores of
    one seed would differ from day to day.
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
    """Both sections with what a protocol fixes; ``samples`` has the last word."""
    if protocol is not None:
        sampling = sampling.model_copy(update=dict(protocol.sampling))
        section = section.model_copy(update={"samples": protocol.samples})
    if samples is not None:
        section = section.model_copy(update={"samples": samples})
    return sampling, section


def score_table(result: Mapping[str, Any]) -> str:
    """What `evaluate` found, a line for each score."""
    if "table" in result:  # a domain's own
        return "\n".join([str(result["table"]), *(f"note: {text}" for text in _notes(result))])
    rows = [("", "value", "95 % interval", "held out")]
    rows += [(name, *cells(score)) for name, score in result["scores"].items()]
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


def cells(score: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, interval and floor in words."""
    low, high = score["interval"]
    value = "says nothing" if score["value"] is None else f"{score['value']:.4g}"
    reach = "" if low is None or high is None else f"{low:.4g} to {high:.4g}"
    return value, reach, "" if score["floor"] is None else f"{score['floor']:.4g}"


def _notes(result: Mapping[str, Any]) -> list[str]:
    protocol = result.get("protocol")
    if not protocol:
        return list(result.get("notes", []))
    departed = "; ".join(protocol["departures"])
    how = f"but for: {departed}" if departed else "kept"
    return [*result.get("notes", []), f"protocol {protocol['name']}, {how}"]
