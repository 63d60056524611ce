"""What a metric is: a function of samples and real items, and which of its values is best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jitkit.fields import Condition

Metric = Callable[[Sequence[Any], Sequence[Any]], float]
"""A metric: samples and real items of the training split, in native form, to one value.

An optional attribute ``best`` states which value is best (see `Best`).
"""

Best = Literal["low", "high", "real"]
"""Which value of a metric is best: the lowest, the highest, or that of real held-out items."""


def lower_is_better(metric: Metric) -> Metric:
    """Mark a metric whose best value is the lowest one, rather than that of real items."""
    metric.best = "low"  # type: ignore[attr-defined]
    return metric


@dataclass(frozen=True)
class EvaluationProtocol:
    """A published evaluation protocol.

    Attributes:
        name: name of the protocol.
        samples: number of samples.
        sampling: keys of section ``sample`` that it fixes.
        departures: maps the record of an evaluation and the model's conditions to the deviations
            from the protocol, as text.
    """

    name: str
    samples: int
    sampling: Mapping[str, Any]
    departures: Callable[[Mapping[str, Any], Mapping[str, Condition]], list[str]]
