"""Autoregressive ensemble forecasts: each sampled state conditions the next one.

    states before an initial time ── Autoregressive.conditioning ── sample ── decode ── state ─┐
                                  ▲────────────────────────────────────────────────────────────┘

A member is a function of the model, the seed, its initial time (start) and its number. Each member
has one noise generator per step, so that batch composition and other members change it only by
rounding.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jitkit.data import collate
from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.sampler import draw_noise, fitting_batch, sample
from jitkit.errors import JitkitError, RecipeError, Stopped, listed
from jitkit.protocols import Autoregressive, ForecastWriter
from jitkit.recipe.renamed import with_new_names
from jitkit.runs.run_dir import locked, write_text
from jitkit.sampling.generate import decode_samples, load_guide
from jitkit.sections import SampleSection
from jitkit.utils.console import bar
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.json_arrays import unequal
from jitkit.utils.seeding import mix
from jitkit.utils.signals import Stop, catch_signals

RECORD, PROGRESS, STATES = "record.json", "progress", "states"  # in the folder .NAME.part
LARGEST_BATCH = 64

Member = tuple[str, int]
"""Initial time and member number."""


def autoregressive_domain(denoiser: Denoiser) -> Autoregressive:
    """A model's domain, if it is a sequence of states.

    Raises:
        JitkitError: it is not.
    """
    domain = denoiser.domain
    if not isinstance(domain, Autoregressive) or not domain.is_sequence:
        raise JitkitError(
            f"domain {type(domain).__name__}, with this model's recipe, has independent items, not "
            "a sequence of states; use jitkit sample"
        )
    return domain


class Rollout:
    """Forecasts the members of an initial time: ``rollout("2020-01-01T00", range(8), 40)``."""

    def __init__(
        self,
        denoiser: Denoiser,
        section: SampleSection,
        *,
        batch_size: int | None = None,
        guide: Denoiser | None = None,
    ) -> None:
        """Choose the batch size and load the guide.

        Args:
            denoiser: a model whose domain is `Autoregressive`.
            section: section ``sample`` of a recipe; its seed is that of the members.
            batch_size: members per batch; by default ``sample.batch_size``, else what fits.
            guide: the weaker model of autoguidance; by default ``sample.autoguidance``.

        Raises:
            JitkitError: the domain is not a sequence of states.
        """
        self.denoiser, self.section = denoiser, section
        self.domain = autoregressive_domain(denoiser)
        self.batch_size = batch_size or section.batch_size or fitting_members(denoiser)
        self._guide = guide or load_guide(denoiser, section)

    def __call__(self, start: str, members: Sequence[int], steps: int) -> Iterator[Sequence[Any]]:
        """Yield the states of all members after each step, as items of the domain."""
        initial = list(self.domain.history(start))
        histories = [initial for _ in members]
        for step in range(1, steps + 1):
            states: list[Any] = []
            for first in range(0, len(members), self.batch_size):
                rows = slice(first, first + self.batch_size)
                batch = [(start, member) for member in members[rows]]
                states += self.advance(batch, step, histories[rows])
            histories = [
                [*history[1:], state] for history, state in zip(histories, states, strict=True)
            ]
            yield states

    @torch.no_grad()
    def advance(
        self, members: Sequence[Member], step: int, histories: Sequence[Sequence[Any]]
    ) -> list[Any]:
        """The states of members at a step, sampled in one batch.

        Args:
            members: initial time and number of each.
            step: counted from 1.
            histories: the previous states of each member, oldest first, as many as
                `Autoregressive.history` returns.
        """
        denoiser, section = self.denoiser, self.section
        fields = [
            self.domain.conditioning(start, step, history)
            for (start, _), history in zip(members, histories, strict=True)
        ]
        batch = collate(denoiser.layout, denoiser.conditions, fields)
        grid = tuple(batch.x.shape[2:])
        noise = [
            draw_noise(denoiser, [member], mix(section.seed, "roll-out", start, step), grid)
            for start, member in members
        ]
        x = sample(
            denoiser,
            cond=batch.cond,
            settings=section,
            noise=torch.cat(noise),
            mask=batch.mask,
            coords=batch.coords,
            guide=self._guide,
            batch_size=len(members),
        )
        return list(decode_samples(denoiser.domain, x.cpu(), batch.conditioning))


def fitting_members(denoiser: Denoiser) -> int:
    """Default number of members per batch: a power of two that fits in memory."""
    return int(1 << (min(LARGEST_BATCH, fitting_batch(denoiser)).bit_length() - 1))


@dataclass(frozen=True)
class ForecastRequest:
    """Requested forecasts.

    Attributes:
        inits: initial times, as text that the domain parses.
        lead: length of a forecast, as text that the domain parses.
        members: for each initial time.
        model: checkpoint and data, kept in the record; plain data for JSON.
    """

    inits: tuple[str, ...]
    lead: str
    members: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EnsembleShape:
    """Extent of a file of forecasts.

    Attributes:
        starts: names of the initial times.
        members: for each initial time, numbered from 0.
        steps: of each member.
    """

    starts: tuple[str, ...]
    members: int
    steps: int


def write_forecasts(
    denoiser: Denoiser,
    section: SampleSection,
    request: ForecastRequest,
    out: Path,
    *,
    team: Team = ALONE,
) -> str:
    """Write autoregressive ensemble forecasts to a file, step by step; resume an unfinished one.

    The file grows in the folder ``.NAME.part`` beside ``out`` and is moved when complete. Ranks
    share the batches.

    Args:
        denoiser: a model whose domain is `Autoregressive`.
        section: section ``sample`` of a recipe.
        request: initial times, lead, members.
        out: path of the file.
        team: the processes that share the work.

    Returns:
        One line that describes the content of the file.

    Raises:
        RecipeError: ``out`` holds something else, or forecasts with other settings.
        Stopped: by a signal; all finished steps are kept, and the same call resumes.
    """
    domain = autoregressive_domain(denoiser)
    starts = _init_times(domain, request.inits)
    shape = EnsembleShape(starts, request.members, domain.steps(request.lead))
    part = out.with_name(f".{out.name}.part")
    begun = domain.recorded(out) or _begun(part)
    batch = section.batch_size or (begun or {}).get("batch_size")
    rollout = Rollout(denoiser, section, batch_size=batch or _agreed_size(denoiser, team))
    record = _record(shape, section, rollout.batch_size, request.model)
    _check_output(out, begun, record)
    summary = f"{len(shape.starts)} starts x {shape.members} members x {shape.steps} steps in {out}"
    if out.exists():
        return f"{summary}, already complete"
    lock, busy = out.with_name(f".{out.name}.lock"), f"writes {out}; wait for it ({{}})"
    with locked(lock, team.is_main, busy=busy):
        with team.main_first():
            file = _opened(domain, part, shape, record, make=team.is_main and begun is None)
        with catch_signals() as stop:
            stopped = _fill(rollout, shape, file, part, stop, team)
        name = next((name for name in team.all_gather(stopped) if name), None)
        if name:
            raise Stopped(f"{name}: all finished steps are in {part}; the same command resumes")
        if team.is_main:
            file.finish()
            os.replace(part / STATES, out)
            shutil.rmtree(part)
        team.barrier()
    return summary


def _opened(
    domain: Autoregressive,
    part: Path,
    shape: EnsembleShape,
    record: Mapping[str, Any],
    *,
    make: bool,
) -> ForecastWriter:
    """The unfinished file, opened for writing; created first if ``make``."""
    size = (shape.starts, shape.members, shape.steps)
    if make:
        shutil.rmtree(part, ignore_errors=True)
        domain.forecasts(part / STATES, *size, record)
        write_text(part / RECORD, json.dumps(record, indent=1))  # last: marks the file as usable
    return domain.forecasts(part / STATES, *size, record)


def _agreed_size(denoiser: Denoiser, team: Team) -> int:
    """Members per batch, equal on all ranks, since it decides which members form a batch."""
    return team.min(fitting_members(denoiser))


def _begun(part: Path) -> dict[str, Any] | None:
    """The record of an unfinished forecast; None if there is none."""
    try:
        record: dict[str, Any] = json.loads((part / RECORD).read_text(encoding="utf-8"))
        return record
    except (OSError, ValueError):
        return None


def _check_output(out: Path, begun: Mapping[str, Any] | None, record: Mapping[str, Any]) -> None:
    """Refuse a path whose content is not a forecast, or a forecast with other settings."""
    if begun is None:
        if out.exists():
            raise RecipeError(f"--out {out} exists and is not a forecast; choose a new name")
        return
    # keys of section sample that are newer than the file had their default values
    defaults = SampleSection().model_dump(mode="json", exclude={"batch_size"})
    old_record = with_new_names(dict(begun) | {"sample": dict(begun.get("sample", {}))})
    old_record["sample"] = defaults | old_record["sample"]
    differences = [
        f"{key} was {json.dumps(old)}, now {json.dumps(new)}"
        for key, old, new in unequal(old_record, json.loads(json.dumps(record)))
    ]
    if differences:
        raise RecipeError(
            f"--out {out} was started with other settings: {'; '.join(differences[:4])}"
            f"{' and more' * (len(differences) > 4)}; choose a new name, or delete it and "
            f".{out.name}.part"
        )


def _fill(
    rollout: Rollout,
    shape: EnsembleShape,
    file: ForecastWriter,
    part: Path,
    stop: Stop,
    team: Team,
) -> str | None:
    """Sample the missing states of this rank's batches; return a stopping signal's name."""
    members = [(start, member) for start in shape.starts for member in range(shape.members)]
    size = rollout.batch_size
    batches = [members[first : first + size] for first in range(0, len(members), size)]
    own = list(enumerate(batches))[team.rank :: team.world]
    done = {number: _steps_done(part, number) for number, _ in own}
    num_done = sum(done[number] * len(batch) for number, batch in own)
    total = shape.steps * sum(len(batch) for _, batch in own)
    with bar("forecasting", total, unit="states", start=num_done) as show:
        for number, batch in own:
            first, histories = done[number] + 1, list[Sequence[Any]]()
            if first <= shape.steps:
                histories = [_history(rollout.domain, file, member, first) for member in batch]
            for step in range(first, shape.steps + 1):
                if stop.name:
                    return stop.name
                states = rollout.advance(batch, step, histories)
                for (start, member), state in zip(batch, states, strict=True):
                    file.write(start, member, step, state)
                write_text(part / PROGRESS / f"{number}", str(step))
                histories = [[*h[1:], s] for h, s in zip(histories, states, strict=True)]
                num_done += len(batch)
                show(num_done)
    return None


def _steps_done(part: Path, number: int) -> int:
    """Finished steps of a batch."""
    try:
        return int((part / PROGRESS / f"{number}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _history(domain: Autoregressive, file: ForecastWriter, member: Member, step: int) -> list[Any]:
    """The states that condition a member at a step: initial ones, then forecast ones."""
    initial = list(domain.history(member[0]))
    made = range(max(1, step - len(initial)), step)
    return [*initial[len(made) :], *(file.read(*member, s) for s in made)]


def _record(
    shape: EnsembleShape, section: SampleSection, batch_size: int, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings as plain JSON; two files with equal records have equal values."""
    return {
        "starts": list(shape.starts),
        "members": shape.members,
        "steps": shape.steps,
        "model": dict(model),
        "sample": section.model_dump(mode="json", exclude={"batch_size"}),
        "batch_size": batch_size,
    }


def _init_times(domain: Autoregressive, words: Sequence[str]) -> tuple[str, ...]:
    """The requested initial times, in the domain's order.

    Raises:
        RecipeError: an initial time is given twice.
    """
    starts = list(domain.init_times(words))
    twice = [name for name in dict.fromkeys(starts) if starts.count(name) > 1]
    if twice:
        raise RecipeError(f"--init: {listed(twice)} is given twice")
    return tuple(starts)
