"""Results of a benchmark: tables, data as JSON, and requirements met or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

from benchmarks.scaling import table

Size = Literal["full", "quick", "tiny"]
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """Amount of data and threads of a benchmark.

    Attributes:
        size: ``quick`` takes fewer rounds and less data; ``tiny`` is for tests of this code alone,
            and its results are meaningless.
        threads: of torch in this process and its child processes.
    """

    size: Size = "full"
    threads: int = 1

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The value for the size of the plan."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]


@dataclass(frozen=True)
class Demand:
    """A bound on something measured.

    >>> str(Demand("a step, over the reference", 0.8, 0.85))
    'met: a step, over the reference: 0.8, target at most 0.85'
    """

    what: str
    found: float
    bound: float
    kind: Literal["at most", "at least"] = "at most"
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the measured value meets the bound; NaN does not."""
        return self.found <= self.bound if self.kind == "at most" else self.found >= self.bound

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        text = f"{self.what}: {self.found:.3g}{unit}, target {self.kind} {self.bound:g}{unit}"
        return f"{'met' if self.met else 'NOT MET'}: {text}"


@dataclass(frozen=True)
class Table:
    """A table with a heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class Result:
    """All results of one benchmark.

    Attributes:
        name: of the benchmark.
        tables: for people.
        numbers: values of the tables and more, plain data for JSON.
        demands: the requirements.
        notes: how to read the tables.
    """

    name: str
    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    demands: list[Demand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether all requirements are met."""
        return all(demand.met for demand in self.demands)

    def markdown(self) -> str:
        """All of it as text."""
        parts = [f"## {self.name}\n"]
        parts += [f"{each.title}\n\n{table(each.head, each.rows)}" for each in self.tables]
        parts += [f"{note}\n" for note in self.notes]
        if self.demands:
            parts.append("".join(f"- {demand}\n" for demand in self.demands))
        return "\n".join(parts)

    def plain(self) -> dict[str, Any]:
        """All of it as plain data for JSON."""
        demands = [asdict(demand) | {"met": demand.met} for demand in self.demands]
        return {"numbers": self.numbers, "demands": demands, "notes": self.notes}


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds to be read.

    >>> milliseconds(0.01234), milliseconds(2.5)
    ('12.3 ms', '2,500 ms')
    """
    number = 1e3 * seconds
    return f"{number:,.0f} ms" if number >= 100 else f"{number:.3g} ms"


def percent(share: float) -> str:
    """A share of 1 in per cent.

    >>> percent(0.864)
    '86.4 %'
    """
    return f"{100 * share:.3g} %"
