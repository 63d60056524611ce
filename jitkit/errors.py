"""What can go wrong through no fault of ours, drawn as a tree.

JitkitError (a ValueError)
 ├─ RecipeError      a recipe or an override that cannot be meant
 ├─ DataError        data that are missing, unreadable or unlike what the recipe says
 │   └─ BadItem      one item of many: named, reported, passed over
 ├─ ConditionError   a condition the model does not know, or a value outside its range
 └─ CheckpointError  a checkpoint that is torn, incomplete or of another model

The command line prints their text, without a traceback, and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class JitkitError(ValueError):
    """Something the user can mend; the text says what was asked, what was found, what to do."""


class RecipeError(JitkitError):
    """A recipe or an override that cannot be meant."""


class DataError(JitkitError):
    """Data that are missing, unreadable or unlike what the recipe says."""


class Stopped(KeyboardInterrupt):
    """A signal ended a run at a whole step; all is saved, and the run goes on when asked again.

    The command line exits with code 75 then.
    """


class BadItem(DataError):
    """One item of many cannot be read; training passes over it and reports its name."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why

    def __reduce__(self) -> tuple[type[BadItem], tuple[str, str]]:
        return BadItem, (self.name, self.why)  # so that it crosses from a loader's worker


class ConditionError(JitkitError):
    """A condition the model does not know, or a value outside its range."""


class CheckpointError(JitkitError):
    """A checkpoint that is torn, incomplete or of another model."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'steps'?"`` for a word that is nearly a known one, else ``""``.

    >>> nearest("stepps", ["steps", "seed"])
    "; did you mean 'steps'?"
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(names: Iterable[str], most: int = 8) -> str:
    """Names in one line, the rest counted.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
