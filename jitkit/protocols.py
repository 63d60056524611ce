"""What a domain, or its items, may be able to do besides what `Domain` asks: all of it optional.

An adapter has these methods or has them not; none need be named as a base class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jitkit.domain import Best
from jitkit.fields import Condition, Field

if TYPE_CHECKING:
    import numpy as np


@runtime_checkable
class VariableSize(Protocol):
    """A domain whose samples differ in size, and that says of what size the next one is to be."""

    def template(
        self, rng: np.random.Generator, told: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """A sample that is yet to be made: its shape, and what it is told.

        Sizes, and conditions that were not asked for, are drawn together from what the training
        items had, with the domain's metadata alone: the data may be gone.

        Args:
            rng: of this sample; what is drawn is a function of it.
            told: what the user asks for, by name: a class of a category, numbers (K,) in the
                domain's own units with NaN for unknown; None for what is not to be told.
            size: cells along the first axis, where the user asks for it.

        Returns:
            Zeros in the sample's shape, with its mask and positions, and every condition as
            `Domain.encode` gives it (class ``n``, NaN: not told).

        Raises:
            ConditionError: sizes and conditions that cannot be together, or a size out of range.
        """


@runtime_checkable
class HasSizes(Protocol):
    """Items whose sizes are known: those of like size are put into one batch, which pads little."""

    sizes: np.ndarray[Any, np.dtype[np.int64]]
    """Cells of each item, (items,)."""


@runtime_checkable
class Threaded(Protocol):
    """Items that are read in threads, several at once."""

    threads: int
    """Items that may be asked for at once, from as many threads."""


@runtime_checkable
class Chunked(Threaded, Protocol):
    """Items that lie together in chunks: in which order to read them, in threads."""

    def order(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A permutation of the items for one epoch, a function of the generator alone."""


@runtime_checkable
class Weighted(Protocol):
    """A domain whose cells count differently, as they do by their area on a sphere."""

    @property
    def weights(self) -> np.ndarray[Any, np.dtype[Any]] | None:
        """How much each cell counts in the loss, (X1..Xn) with a mean of 1; None: all alike."""


class ForecastWriter(Protocol):
    """A file of forecasts that grows: a state for each start, member and step."""

    def write(self, start: str, member: int, step: int, state: Any) -> None:
        """Put a state in, for good when this returns; steps count from 1, members from 0."""

    def read(self, start: str, member: int, step: int) -> Any:
        """A state that was put in, with the very numbers that it had."""

    def finish(self) -> None:
        """All states are in."""


@runtime_checkable
class Autoregressive(Protocol):
    """A domain whose items follow one another: a sample is what the next one is told.

    A state is an item in native form. What `Domain.decode` makes of a sample is one, with nothing
    left to be done to it.
    """

    @property
    def is_sequence(self) -> bool:
        """Whether items follow one another under this recipe."""

    def init_times(self, words: Sequence[str]) -> Sequence[str]:
        """The starts that a user names, each as the domain writes it.

        Raises:
            JitkitError: words that cannot be meant, or a start whose states are not in the data.
        """

    def steps(self, lead: str) -> int:
        """How many states a forecast of this length has.

        Raises:
            JitkitError: words that cannot be meant, or no whole number of steps.
        """

    def history(self, start: str) -> Sequence[Any]:
        """The states up to a start, oldest first, as many as a model is told."""

    def conditioning(self, start: str, step: int, states: Sequence[Any]) -> Field:
        """What the model is told of the state so many steps after a start.

        Args:
            start: as `starts` names it.
            step: counted from 1.
            states: those before, oldest first, as many as `known` gives.

        Returns:
            Zeros in the sample's shape, with its mask and positions, and every condition as
            `Domain.encode` gives it.
        """

    def forecasts(
        self,
        path: Path,
        starts: Sequence[str],
        members: int,
        steps: int,
        record: Mapping[str, Any],
    ) -> ForecastWriter:
        """A file for states of all starts, members and steps; made where it is not there.

        Args:
            path: of the file or folder.
            starts, members, steps: its size.
            record: how they were made, plain data for JSON, which the file keeps.
        """

    def recorded(self, path: Path) -> Mapping[str, Any] | None:
        """The record of a finished file; None where there is none."""


RollOutFunction = Callable[[str, Sequence[int], int], Iterator[Sequence[Any]]]
"""From a start, for some members, so many steps: after each, the states of all these members."""


@runtime_checkable
class VerifiesForecasts(Protocol):
    """A domain whose samples follow one another, and are scored against what came."""

    @property
    def is_sequence(self) -> bool:
        """Whether they do under this recipe; else they are scored by `Domain.scores`."""

    def verify(self, roll_out: RollOutFunction, folder: Path, *, seed: int) -> Mapping[str, Any]:
        """Roll out ensembles from held-out starts, score them, draw pictures into ``folder``.

        Returns plain data for ``evaluation.json``:

        - ``scores``: rows by name, as those of any score, with ``baselines`` besides, which have by
          name a ``value`` and the interval of the ``difference`` to it;
        - ``samples``, ``held_out``: forecasts and starts in number;
        - ``settings``: what was scored and how;
        - ``table``: the scores as text, in place of the usual table;
        - ``notes``: what is to be said besides;
        - ``pictures``: files in ``folder``, by relative path.
        """


class FeatureScores(Protocol):
    """Scores that look at a row of numbers for each item, so that no sample need be kept."""

    @property
    def best(self) -> Mapping[str, Best]:
        """Names of the scores, in the order of a table, and which value of each is the best.

        Asked for after `prepare`.
        """

    replaces: frozenset[str]
    """Measures of `Domain.scores` that need not be taken beside these."""

    def features(self, items: Sequence[Any]) -> np.ndarray[Any, np.dtype[Any]]:
        """(items, D) numbers; each process does it for the samples that it made."""

    def prepare(self) -> Mapping[str, Any]:
        """Find out about the real items that samples are compared with, before any is drawn.

        Returns what they are, as plain data for the record; a list ``notes`` among it is for
        people. Rank 0 alone asks.

        Raises:
            DataError: they are missing or unlike what the section says.
        """

    def scores(self, rows: np.ndarray[Any, np.dtype[Any]]) -> Mapping[str, float]:
        """The scores of these items, NaN where one cannot be taken."""

    def resampled(self, rows: np.ndarray[Any, np.dtype[Any]]) -> Mapping[str, float]:
        """The same of some of the items, for intervals; it may be quicker and less exact."""


@dataclass(frozen=True)
class EvaluationProtocol:
    """A published way of scoring samples.

    Attributes:
        name: of the protocol.
        samples: how many are drawn.
        sampling: keys of section ``sample`` that it fixes.
        departures: from a record of an evaluation and the model's conditions, in words where it was
            not followed.
    """

    name: str
    samples: int
    sampling: Mapping[str, Any]
    departures: Callable[[Mapping[str, Any], Mapping[str, Condition]], list[str]]


@runtime_checkable
class ScoresFeatures(Protocol):
    """A domain with scores on rows of numbers, besides `Domain.scores` or in place of some."""

    def scorer(self) -> tuple[FeatureScores | None, Sequence[str]]:
        """What takes them, None where it cannot; and what people should know about it.

        Raises:
            DataError: what the recipe asks for is not there.
            RecipeError: or cannot be meant.
        """

    def evaluation_protocol(self) -> EvaluationProtocol | None:
        """The published way of scoring that the recipe asks for; None without one."""


@runtime_checkable
class Fetchable(Protocol):
    """A domain whose data may lie far away, and that copies what a recipe reads of them."""

    def fetch(self, folder: Path) -> list[str]:
        """Copy what the recipe reads into a folder, on disk and laid out for training.

        The volume is told before it starts. A copy that was stopped, or of which a part was
        damaged, is gone on with and mended.

        Returns:
            Overrides with which the recipe reads the copy, such as ``domain.path=/data/copy``; its
            items are then the same, bit for bit.

        Raises:
            DataError: the data cannot be read, the disk is too small, or the folder holds
                something else.
        """
