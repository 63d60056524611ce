"""Optional base classes of a domain or its items: what some kinds of data can do besides.

An adapter names those it implements: ``class Molecules(VariableSize)``. A class that has a member
of one of them, or a name close to one, without deriving from it is refused when the domain is
opened.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jitkit.domain import Domain
from jitkit.fields import Field
from jitkit.metrics.metric import Best, EvaluationProtocol

if TYPE_CHECKING:
    import numpy as np


class VariableSize(Domain):
    """A domain with variable-size samples; provides the size of each new sample."""

    @abstractmethod
    def template(
        self, rng: np.random.Generator, cond: Mapping[str, Any], size: int | None = None
    ) -> Field:
        """Shape and conditions of a new sample.

        The size and all unspecified conditions are drawn from the joint distribution of the
        training items, using the domain's metadata only, since the data may be unavailable.

        Args:
            rng: generator of this sample; determines all random draws.
            cond: requested conditions by name: a class of a category, numbers (K,) in the domain's
                units with NaN for unknown; None for a condition to leave unset.
            size: requested number of cells along the first axis.

        Returns:
            Zeros in the sample's shape, with its mask and positions, and every condition as
            returned by `Domain.encode` (unset: class ``n``, NaN).

        Raises:
            ConditionError: size and conditions are incompatible, or the size is out of range.
        """


class HasSizes:
    """Items with known sizes; batches then hold items of similar size, to minimize padding."""

    @cached_property
    def sizes(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Cells of each item, (items,)."""
        raise NotImplementedError


class Threaded:
    """Items that are read concurrently in threads."""

    threads: int
    """Number of threads that may read items concurrently."""


class Chunked(Threaded):
    """Items stored in chunks; provides a reading order that keeps chunks together."""

    @abstractmethod
    def order(self, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
        """A permutation of the items for one epoch, determined by the generator alone."""


class Weighted(Domain):
    """A domain with loss weights of cells, such as their area on a sphere."""

    @cached_property
    def weights(self) -> np.ndarray[Any, np.dtype[Any]] | None:
        """Loss weight of each cell, (X1..Xn) with mean 1; None means equal weights."""
        return None


class ForecastWriter(Protocol):
    """A growing file of forecasts: one state for each start, member and step."""

    def write(self, start: str, member: int, step: int, state: Any) -> None:
        """Store a state durably; steps count from 1, members from 0."""

    def read(self, start: str, member: int, step: int) -> Any:
        """A stored state, bit for bit."""

    def finish(self) -> None:
        """Complete the file after all states are written."""


class Autoregressive(Domain):
    """A domain of sequences for autoregressive forecasts: each sampled state conditions the next.

    A state is an item in native form, as returned by `Domain.decode`.
    """

    @property
    @abstractmethod
    def is_sequence(self) -> bool:
        """Whether items form a sequence under this recipe."""

    @abstractmethod
    def init_times(self, words: Sequence[str]) -> Sequence[str]:
        """Initialization times (starts) named by the user, in the domain's notation.

        Raises:
            JitkitError: invalid notation, or a start whose states are not in the data.
        """

    @abstractmethod
    def steps(self, lead: str) -> int:
        """Number of states of a forecast with this lead time.

        Raises:
            JitkitError: invalid notation, or not a whole number of steps.
        """

    @abstractmethod
    def history(self, start: str) -> Sequence[Any]:
        """The states up to a start, oldest first, as many as the model is conditioned on."""

    @abstractmethod
    def conditioning(self, start: str, step: int, states: Sequence[Any]) -> Field:
        """Conditions of the state at a step after a start.

        Args:
            start: as returned by `init_times`.
            step: counted from 1.
            states: the preceding states, oldest first, as many as `history` returns.

        Returns:
            Zeros in the sample's shape, with its mask and positions, and every condition as
            returned by `Domain.encode`.
        """

    @abstractmethod
    def forecasts(
        self,
        path: Path,
        starts: Sequence[str],
        members: int,
        steps: int,
        record: Mapping[str, Any],
    ) -> ForecastWriter:
        """A file for the states of all starts, members and steps; created if absent.

        Args:
            path: path of the file or folder.
            starts, members, steps: its size.
            record: how the states were generated, JSON-compatible, stored in the file.
        """

    @abstractmethod
    def recorded(self, path: Path) -> Mapping[str, Any] | None:
        """The record of a completed file; None if there is none."""


RolloutFunction = Callable[[str, Sequence[int], int], Iterator[Sequence[Any]]]
"""(start, members, steps) -> after each step, the states of these members."""


class VerifiesForecasts(Domain):
    """A domain whose forecasts are scored against verifying analyses or observations."""

    @property
    @abstractmethod
    def is_sequence(self) -> bool:
        """Whether items form a sequence under this recipe; else `Domain.scores` is used."""

    @abstractmethod
    def verify(self, roll_out: RolloutFunction, folder: Path, *, seed: int) -> Mapping[str, Any]:
        """Forecast ensembles from held-out starts, score them, draw figures into ``folder``.

        Returns JSON-compatible data for ``evaluation.json``:

        - ``scores``: rows by name, as for other metrics, and ``baselines``, which have by name a
          ``value`` and the interval of the ``difference`` to it;
        - ``samples``, ``held_out``: number of forecasts and of starts;
        - ``settings``: what was scored and how;
        - ``table``: the scores as text, in place of the usual table;
        - ``notes``: remarks for the user;
        - ``pictures``: files in ``folder``, by relative path.
        """


class FeatureScores(Protocol):
    """Metrics computed from a feature vector per item, so that samples need not be kept."""

    @property
    def best(self) -> Mapping[str, Best]:
        """Names of the metrics in table order, and which value of each is best.

        Valid after `prepare`.
        """

    replaces: frozenset[str]
    """Metrics of `Domain.scores` that these replace."""

    def features(self, items: Sequence[Any]) -> np.ndarray[Any, np.dtype[Any]]:
        """Features, (items, D); each process computes those of the samples it generated."""

    def prepare(self) -> Mapping[str, Any]:
        """Prepare the reference statistics of real items, before samples are drawn.

        Returns a description of them, JSON-compatible, for the record; its list ``notes`` is shown
        to the user. Called on rank 0 only.

        Raises:
            DataError: they are missing or inconsistent with the section.
        """

    def scores(self, features: np.ndarray[Any, np.dtype[Any]]) -> Mapping[str, float]:
        """The metrics of these features, NaN if one cannot be computed."""

    def resampled(self, features: np.ndarray[Any, np.dtype[Any]]) -> Mapping[str, float]:
        """Metrics of a resample, for intervals; may be faster and less exact."""


class ScoresFeatures(Domain):
    """A domain with metrics on features, in addition to or in place of `Domain.scores`."""

    @abstractmethod
    def scorer(self) -> tuple[FeatureScores | None, Sequence[str]]:
        """The feature metrics, None if unavailable, and notes for the user.

        Raises:
            DataError: something requested by the recipe is missing.
            RecipeError: the request is invalid.
        """

    @abstractmethod
    def evaluation_protocol(self) -> EvaluationProtocol | None:
        """The evaluation protocol that the recipe requests; None without one."""


class Fetchable(Domain):
    """A domain that can copy the data of a recipe from a remote store to disk."""

    @abstractmethod
    def fetch(self, folder: Path) -> list[str]:
        """Copy the data that the recipe reads into a folder on disk, chunked for training.

        The volume is reported first. An interrupted copy is resumed, damaged parts are repaired.

        Returns:
            Overrides with which the recipe reads the copy, such as ``domain.path=/data/copy``; its
            items are then identical, bit for bit.

        Raises:
            DataError: the data cannot be read, the disk is too small, or the folder contains
                other files.
        """


class Inspects(Domain):
    """A domain that can scan data and propose a recipe for them."""

    @staticmethod
    @abstractmethod
    def inspect(
        path: str, *, group: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Any:
        """Scan data and propose a recipe; the result has ``text()``, the recipe, and ``plain()``.

        Args:
            path: file, folder, pattern or URL.
            group: group inside it.
            options: of a remote store.

        Raises:
            DataError: the data cannot be read.
        """
