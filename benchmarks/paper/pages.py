"""Page of a table or figure: results in Markdown, a figure, and the values in JSON.

All statements of a page about the values are computed from them, so that a trend that does not hold
is reported as such.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.paper.jobs import Record
from benchmarks.paper.measures import Mean
from jitkit.runs.run_dir import write_text
from jitkit.utils.types import Array

Records = Mapping[str, Sequence[Record]]
"""Results by label, one per seed."""


class Shown(NamedTuple):
    """Data of a figure: (N, ...) each."""

    samples: Array
    real: Array


@dataclass(frozen=True)
class Claim:
    """A statement of the paper, or of ours, beside the result.

    Attributes:
        text: the sentence, with its values.
        holds: whether it is true; None if the intervals overlap.
        demanded: whether the command fails if it is not.
    """

    text: str
    holds: bool | None
    demanded: bool = False

    def __str__(self) -> str:
        verdict = {True: "Holds", False: "**Does not hold**", None: "Not decided"}[self.holds]
        return f"- {verdict}: {self.text}"


@dataclass(frozen=True)
class Page:
    """One page of ``docs/results/``.

    Attributes:
        name: of its files.
        title: its heading.
        about: what was done, before the table.
        table: the values, in Markdown.
        claims: conclusions from them.
        caption: of the figure.
        draw: writes the figure to a path.
    """

    name: str
    title: str
    about: str
    table: str
    claims: Sequence[Claim]
    caption: str
    draw: Callable[[Path], None]


def mean(records: Records, label: str, key: str = "frechet") -> Mean:
    """Mean over the seeds of a label; of one seed, with a bootstrap interval over its samples."""
    found = [record["found"] for record in records[label]]
    deviation = found[0].get(f"{key}_deviation") if len(found) == 1 else None
    return Mean.of([float(each[key]) for each in found], deviation)


def less(a: Mean, b: Mean) -> bool | None:
    """Whether one mean is less than another; None if their intervals overlap."""
    lower, higher = (a, b) if a.value < b.value else (b, a)
    top = lower.value if lower.high is None else lower.high
    bottom = higher.value if higher.low is None else higher.low
    return a.value < b.value if top < bottom else None


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head), ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(page: Page, records: Records, command: str, folder: Path, data: str = "") -> None:
    """Write ``NAME.md``, ``NAME.png`` and ``NAME.json``, each to a temporary file that is renamed.

    Args:
        page: what to write.
        records: the results that it was made from.
        command: that produced it.
        folder: for the files.
        data: a sentence about the training data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{page.name}.part.png"
    page.draw(aside)
    aside.replace(folder / f"{page.name}.png")
    claims = [{"text": c.text, "holds": c.holds, "demanded": c.demanded} for c in page.claims]
    found = {label: [record["found"] for record in seeds] for label, seeds in records.items()}
    numbers = {"command": command, "claims": claims, "found": found}
    write_text(folder / f"{page.name}.json", json.dumps(numbers, indent=1) + "\n")
    write_text(folder / f"{page.name}.md", _text(page, records, command, data))


INTERVALS = {
    1: "In brackets: a 95 % interval from resamples of the samples of one training; another "
    "training may differ by more.",
    2: "Means of two trainings, both in brackets.",
}
MANY = "Means of {n} trainings, with a 95 % interval (Student's t)."


def _text(page: Page, records: Records, command: str, data: str) -> str:
    claims = "\n".join(map(str, page.claims))
    picture = f"![{page.caption}]({page.name}.png)"
    heading, end = f"# {page.title}", f"{page.caption}. {data}".strip()
    table = f"{page.table}\n\n{_brackets(records)}"
    parts = [heading, page.about, table, claims, picture, end, _origin(records, command)]
    return "\n\n".join(parts) + "\n"


def _brackets(records: Records) -> str:
    """Meaning of the intervals of a table, by the number of seeds per value."""
    numbers = sorted(set(map(len, records.values())))
    return " ".join(INTERVALS.get(n, MANY).format(n=n) for n in numbers)


def _origin(records: Records, command: str) -> str:
    """Command, trainings, time, machine, versions and commits, from the records."""
    every = [record for seeds in records.values() for record in seeds]
    places = [record["environment"] for record in every]

    def all_of(pick: Callable[[Mapping[str, Any]], Any]) -> str:
        return ", ".join(sorted({str(pick(place)) for place in places}))

    minutes = sum(record["seconds"] for record in every) / 60
    return (
        f"`{command}`: {len(every)} trainings, {minutes:.0f} minutes of one core, some of them "
        f"shared with other pages; {all_of(lambda p: p['machine']['processor'])}, torch "
        f"{all_of(lambda p: p['versions']['torch'])}, commit {all_of(lambda p: p['commit'])}."
    )
