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
    """How long to measure, and with what.

    Attributes:
        size: ``quick`` takes fewer rounds and less data; ``tiny`` is for tests of this code alone,
            and its figures mean nothing.
        threads: of torch in this process, and of what it starts.
    """

    size: Size = "full"
    threads: int = 1

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """What belongs to the size."""
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
        """Whether what was found keeps the bound; what is not a number does not."""
        return self.found <= self.bound if self.kind == "at most" else self.found >= self.bound

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        text = f"{self.what}: {self.found:.3g}{unit}, target {self.kind} {self.bound:g}{unit}"
        return f"{'met' if self.met else 'NOT MET'}: {text}"


@dataclass(frozen=True)
class Table:
    """Rows below a heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass
class Result:
    """All that one benchmark found.

    Attributes:
        name: of the benchmark.
        tables: to be read.
        numbers: what they show and more, plain data for JSON.
        demands: bounds on it.
        notes: what a reader must know to read the tables right.
    """

    name: str
    tables: list[Table] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    demands: list[Demand] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        """Whether all demands are."""
        return all(demand.met for demand in self.demands)

    def markdown(self) -> str:
        """The whole to be read."""
        parts = [f"## {self.name}\n"]
        parts += [f"{each.title}\n\n{table(each.head, each.rows)}" for each in self.tables]
        parts += [f"{note}\n" for note in self.notes]
        if self.demands:
            parts.append("".join(f"- {demand}\n" for demand in self.demands))
        return "\n".join(parts)

    def plain(self) -> dict[str, Any]:
        """The whole for JSON."""
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
