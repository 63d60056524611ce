"""Exceptions for errors that a user can fix.

JitkitError (a ValueError)
 ├─ RecipeError      an invalid recipe or override
 ├─ DataError        data that are missing, unreadable or inconsistent with the recipe
 │   └─ BadItem      one unreadable item: skipped and reported by name
 ├─ ConditionError   a condition unknown to the model, or a value outside its range
 └─ CheckpointError  a checkpoint that is corrupt, incomplete or from another model

The command line prints their text without a traceback and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JitkitError(ValueError):
    """An error that the user can fix; the text states the request, the finding and the remedy."""


class RecipeError(JitkitError):
    """An invalid recipe or override."""


class DataError(JitkitError):
    """Data that are missing, unreadable or inconsistent with the recipe."""


class Stopped(KeyboardInterrupt):
    """A signal stopped a run after a complete step; everything is saved and it can be resumed.

    The command line then exits with code 75.
    """


class BadItem(DataError):
    """One item cannot be read; training skips it and reports its name."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why

    def __reduce__(self) -> tuple[type[BadItem], tuple[str, str]]:
        return BadItem, (self.name, self.why)  # for pickling between loader workers


class ConditionError(JitkitError):
    """A condition unknown to the model, or a value outside its range."""


class CheckpointError(JitkitError):
    """A checkpoint that is corrupt, incomplete or from another model."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'steps'?"`` if a known word is similar, else ``""``.

    >>> nearest("stepps", ["steps", "seed"])
    "; did you mean 'steps'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first names in one line, and how many more there are.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
