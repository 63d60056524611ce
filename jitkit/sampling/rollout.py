"""Roll-outs: each sample is what the next one is told, for many starts and members.

    states before a start ── Sequential.told ── sample ── decode ── state ─┐
                      ▲────────────────────────────────────────────────────┘

A member is a function of the weights, the seed, its start and its number: the noise of each of its
steps is drawn from a generator of its own, so that neither the batch that it is made in nor what
else is asked changes it (but for rounding).
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
from jitkit.fields import Field
from jitkit.protocols import Autoregressive, ForecastWriter
from jitkit.runs.run_dir import locked, write_text
from jitkit.sampling.generate import guide_of
from jitkit.sections import SampleSection
from jitkit.utils.console import bar
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.json_arrays import unequal
from jitkit.utils.seeding import mix
from jitkit.utils.signals import Stop, listening

RECORD, PROGRESS, STATES = "record.json", "progress", "states"  # in the folder of a part
LARGEST_BATCH = 64

Member = tuple[str, int]
"""A start and a member's number."""


def sequential(denoiser: Denoiser) -> Autoregressive:
    """A model's domain, if its items follow one another.

    Raises:
        JitkitError: they do not.
    """
    domain = denoiser.domain
    if not isinstance(domain, Autoregressive) or not domain.is_sequence:
        raise JitkitError(
            f"domain {type(domain).__name__}, as this model was trained, makes items that do not "
            "follow one another; draw them with jitkit sample"
        )
    return domain


class RollOut:
    """Members of a start, step by step: ``roll_out("2020-01-01T00", range(8), 40)``."""

    def __init__(
        self,
        denoiser: Denoiser,
        section: SampleSection,
        *,
        batch_size: int | None = None,
        guide: Denoiser | None = None,
    ) -> None:
        """Make ready.

        Args:
            denoiser: a model whose domain is `Autoregressive`.
            section: section ``sample`` of a recipe; its seed is the members'.
            batch_size: members made at once; by the section or the memory where not given.
            guide: the weaker model of autoguidance; the one that the section names where not given.

        Raises:
            JitkitError: the domain is something else.
        """
        self.denoiser, self.domain, self.section = denoiser, sequential(denoiser), section
        self.batch_size = batch_size or section.batch_size or fitting_members(denoiser)
        self._guide = guide or guide_of(denoiser, section)

    def __call__(self, start: str, members: Sequence[int], steps: int) -> Iterator[Sequence[Any]]:
        """The states of all members after each of so many steps, as items of the domain."""
        known = list(self.domain.history(start))
        histories = [known for _ in members]
        for step in range(1, steps + 1):
            made: list[Any] = []
            for at in range(0, len(members), self.batch_size):
                rows = slice(at, at + self.batch_size)
                chosen = [(start, member) for member in members[rows]]
                made += self.advance(chosen, step, histories[rows])
            histories = [
                [*history[1:], item] for history, item in zip(histories, made, strict=True)
            ]
            yield made

    @torch.no_grad()
    def advance(
        self, members: Sequence[Member], step: int, histories: Sequence[Sequence[Any]]
    ) -> list[Any]:
        """The states of members at a step, made in one batch.

        Args:
            members: whose.
            step: counted from 1.
            histories: the states before it, of each member, oldest first, as many as
                `Sequential.known` gives.
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
            noise=torch.cat(noise),
            guidance=section.guidance,
            interval=section.guidance_interval,
            guide=self._guide,
            guide_scale=section.guide_scale,
            steps=section.steps,
            method=section.method,
            time_grid=section.time_grid,
            t_eps=section.t_eps,
            batch_size=len(members),
            mask=batch.mask,
            coords=batch.coords,
        ).cpu()
        return [self._decoded(field, values) for field, values in zip(fields, x, strict=True)]

    def _decoded(self, told: Field, values: torch.Tensor) -> Any:
        cut = values[(slice(None), *(slice(n) for n in told.values.shape[1:]))]
        mask = None if told.mask is None else told.mask.expand_as(cut)
        return self.denoiser.domain.decode(Field(cut, mask, told.cond, told.coords))


def fitting_members(denoiser: Denoiser) -> int:
    """Members that are made at once where nothing says: a power of two that fits the memory."""
    return int(1 << (min(LARGEST_BATCH, fitting_batch(denoiser)).bit_length() - 1))


@dataclass(frozen=True)
class ForecastRequest:
    """What forecasts are asked.

    Attributes:
        inits: where they start, in words of the domain.
        lead: how far they go, in words of the domain.
        members: of each start.
        model: which weights and data they are of, for the record; plain data for JSON.
    """

    inits: tuple[str, ...]
    lead: str
    members: int = 1
    model: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Forecast:
    """What a file of forecasts holds.

    Attributes:
        starts: their names.
        members: of each start, numbered from 0.
        steps: of each.
    """

    starts: tuple[str, ...]
    members: int
    steps: int


def forecast(
    denoiser: Denoiser,
    section: SampleSection,
    asked: ForecastRequest,
    out: Path,
    *,
    team: Team = ALONE,
) -> str:
    """Roll out ensembles and write them as they are made; go on where a file is unfinished.

    The file grows beside its place, in the folder ``.NAME.part``, and is moved when all is in.
    Processes of a team share the batches.

    Args:
        denoiser: a model whose domain is `Autoregressive`.
        section: section ``sample`` of a recipe.
        asked: starts, lead, members.
        out: the file's place.
        team: the processes that share the work.

    Returns:
        What is in the file, in words.

    Raises:
        RecipeError: the place holds something else, or forecasts with other settings.
        Stopped: a signal came; all finished steps are kept, and the same call goes on.
    """
    domain = sequential(denoiser)
    whole = Forecast(_starts(domain, asked.inits), asked.members, domain.steps(asked.lead))
    part = out.with_name(f".{out.name}.part")
    begun = domain.recorded(out) or _begun(part)
    batch = section.batch_size or (begun or {}).get("batch_size")
    roll_out = RollOut(denoiser, section, batch_size=batch or _agreed_size(denoiser, team))
    record = _record(whole, section, roll_out.batch_size, asked.model)
    _check_place(out, begun, record)
    told = f"{len(whole.starts)} starts x {whole.members} members x {whole.steps} steps in {out}"
    if out.exists():
        return f"{told}, all there already"
    lock, busy = out.with_name(f".{out.name}.lock"), f"writes {out}; wait for it ({{}})"
    with locked(lock, team.is_main, busy=busy):
        with team.main_first():
            file = _opened(domain, part, whole, record, make=team.is_main and begun is None)
        with listening() as stop:
            stopped = _fill(roll_out, whole, file, part, stop, team)
        name = next((name for name in team.all_gather(stopped) if name), None)
        if name:
            raise Stopped(f"{name}: all finished steps are in {part}; the same command goes on")
        if team.is_main:
            file.finish()
            os.replace(part / STATES, out)
            shutil.rmtree(part)
        team.barrier()
    return told


def _opened(
    domain: Autoregressive, part: Path, whole: Forecast, record: Mapping[str, Any], *, make: bool
) -> ForecastWriter:
    """The file that grows, made first where it is to be."""
    size = (whole.starts, whole.members, whole.steps)
    if make:
        shutil.rmtree(part, ignore_errors=True)
        domain.forecasts(part / STATES, *size, record)
        write_text(part / RECORD, json.dumps(record, indent=1))  # last: then all is there
    return domain.forecasts(part / STATES, *size, record)


def _agreed_size(denoiser: Denoiser, team: Team) -> int:
    """The same in all processes, since it decides which members make a batch."""
    return team.min(fitting_members(denoiser))


def _begun(part: Path) -> dict[str, Any] | None:
    """What a forecast was begun with; None where none was."""
    try:
        found: dict[str, Any] = json.loads((part / RECORD).read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return None


def _check_place(out: Path, begun: Mapping[str, Any] | None, record: Mapping[str, Any]) -> None:
    """Whether a place is free, or holds forecasts that were made alike."""
    if begun is None:
        if out.exists():
            raise RecipeError(f"--out {out} holds something that is no forecast; choose a new name")
        return
    # keys of section sample that are younger than the file had their defaults
    defaults = SampleSection().model_dump(mode="json", exclude={"batch_size"})
    begun = dict(begun) | {"sample": defaults | dict(begun.get("sample", {}))}
    differences = [
        f"{key} was {json.dumps(old)}, now {json.dumps(new)}"
        for key, old, new in unequal(begun, json.loads(json.dumps(record)))
    ]
    if differences:
        raise RecipeError(
            f"--out {out} was begun with other settings: {'; '.join(differences[:4])}"
            f"{' and more' * (len(differences) > 4)}; choose a new name, or delete it and "
            f".{out.name}.part"
        )


def _fill(
    roll_out: RollOut, whole: Forecast, file: ForecastWriter, part: Path, stop: Stop, team: Team
) -> str | None:
    """Make what is missing of this process's batches; the name of a signal that came meanwhile."""
    members = [(start, member) for start in whole.starts for member in range(whole.members)]
    size = roll_out.batch_size
    batches = [members[at : at + size] for at in range(0, len(members), size)]
    own = list(enumerate(batches))[team.rank :: team.world]
    done = {number: _steps_done(part, number) for number, _ in own}
    before = sum(done[number] * len(batch) for number, batch in own)
    total = whole.steps * sum(len(batch) for _, batch in own)
    with bar("forecasting", total, unit="states", start=before) as show:
        for number, batch in own:
            first, histories = done[number] + 1, list[Sequence[Any]]()
            if first <= whole.steps:
                histories = [_history(roll_out.domain, file, member, first) for member in batch]
            for step in range(first, whole.steps + 1):
                if stop.name:
                    return stop.name
                states = roll_out.advance(batch, step, histories)
                for (start, member), state in zip(batch, states, strict=True):
                    file.write(start, member, step, state)
                write_text(part / PROGRESS / f"{number}", str(step))
                histories = [[*h[1:], s] for h, s in zip(histories, states, strict=True)]
                before += len(batch)
                show(before)
    return None


def _steps_done(part: Path, number: int) -> int:
    """Steps of a batch that are in the file."""
    try:
        return int((part / PROGRESS / f"{number}").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _history(domain: Autoregressive, file: ForecastWriter, member: Member, step: int) -> list[Any]:
    """The states that a member is told at a step: known ones, then those in the file."""
    known = list(domain.history(member[0]))
    made = range(max(1, step - len(known)), step)
    return [*known[len(made) :], *(file.read(*member, s) for s in made)]


def _record(
    whole: Forecast, section: SampleSection, batch_size: int, model: Mapping[str, Any]
) -> dict[str, Any]:
    """Plain JSON that is equal for two files whose numbers are."""
    return {
        "starts": list(whole.starts),
        "members": whole.members,
        "steps": whole.steps,
        "model": dict(model),
        "sample": section.model_dump(mode="json", exclude={"batch_size"}),
        "batch_size": batch_size,
    }


def _starts(domain: Autoregressive, words: Sequence[str]) -> tuple[str, ...]:
    """The starts that words name, in their order.

    Raises:
        RecipeError: one is named twice.
    """
    found = list(domain.init_times(words))
    twice = [name for name in dict.fromkeys(found) if found.count(name) > 1]
    if twice:
        raise RecipeError(f"--init: {listed(twice)} is named twice")
    return tuple(found)
