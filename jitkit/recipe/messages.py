"""What is wrong with a recipe, in words.

A model's errors are told apart by their type, never by pydantic's own words, which change between
its releases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_core import ErrorDetails

from jitkit.errors import nearest
from jitkit.recipe.yaml import KeyPath, Problem

_WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping of keys",
    "date_type": "a date such as 2020-12-31",
    "date_parsing": "a date such as 2020-12-31",
    "date_from_datetime_parsing": "a date such as 2020-12-31",
}
"""Errors of type: "'many' is not a whole number"."""

_REFUSED = {
    "greater_than_equal": "{input} is less than {ge}",
    "greater_than": "{input} is not above {gt}",
    "less_than_equal": "{input} is more than {le}",
    "less_than": "{input} is not below {lt}",
    "multiple_of": "{input} is not a multiple of {multiple_of}",
    "too_short": "{input} has {actual_length} values, not at least {min_length}",
    "too_long": "{input} has {actual_length} values, not at most {max_length}",
    "string_too_short": "{input} is shorter than {min_length} characters",
    "string_too_long": "{input} is longer than {max_length} characters",
    "string_pattern_mismatch": "{input} does not have the form {pattern}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}
"""Errors of a value of the right type; ours (`RecipeError`) keep their own text."""


def phrased(
    errors: Iterable[ErrorDetails], values: Any, unknown: Callable[[KeyPath], str]
) -> dict[KeyPath, str]:
    """What is wrong at each key of a section.

    A key of several types has an error for each, and gets one line: "'atuo' is not auto or a
    number", or, where one of the types fits, only what is wrong with it.

    Args:
        errors: pydantic's account of them.
        values: the section as it was written.
        unknown: the text for an unknown key.
    """
    texts: dict[KeyPath, str] = {}
    misfits: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        path = _written(error["loc"], values)
        match error["type"]:
            case "extra_forbidden":
                texts[path] = unknown(path)
            case "missing" if isinstance(error["loc"][-1], int):  # of a list of fixed length
                texts[path] = f"{quoted(error['input'])} is too short"
            case "missing":
                texts[*path, error["loc"][-1]] = "missing"
            case "literal_error" | "enum":
                misfits.setdefault(path, []).append(error)
            case kind if kind in _WANTED:
                misfits.setdefault(path, []).append(error)
            case _:
                texts[path] = _refusal(error)
    for path, cases in misfits.items():
        if not any(other[: len(path)] == path for other in (texts | misfits).keys() - {path}):
            texts.setdefault(path, _misfit(cases))
    return texts


def _written(loc: tuple[int | str, ...], value: Any) -> KeyPath:
    """The steps of an error's location that lead through the values; branches of a type do not."""
    path: KeyPath = ()
    for step in loc:
        items = range(len(value)) if isinstance(value, list) else ()
        if step in (value if isinstance(value, dict) else items):
            value, path = value[step], (*path, step)
    return path


def _misfit(errors: list[ErrorDetails]) -> str:
    """One line for a value that is of none of the types its key may have."""
    value = errors[0]["input"]
    wanted: list[str] = []
    choices: list[str] = []
    for error in errors:
        if error["type"] in _WANTED:
            wanted.append(_WANTED[error["type"]])
            continue
        expected = error.get("ctx", {})["expected"]  # "'x', 'eps' or 'v'"
        words = re.findall(r"'([^']*)'", expected) or [expected]
        wanted.append(f"one of {', '.join(words)}" if len(words) > 1 else words[0])
        choices += words
    close = nearest(value, choices) if isinstance(value, str) else ""
    return f"{quoted(value)} is not {' or '.join(dict.fromkeys(wanted))}{close}"


def _refusal(error: ErrorDetails) -> str:
    limits = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in error.get("ctx", {}).items()
    }
    template = _REFUSED.get(error["type"], "{input} is refused: {msg}")
    return template.format(**{"input": quoted(error["input"]), "msg": error["msg"]} | limits)


def error_text(mistakes: list[Problem], source: str) -> str:
    """All mistakes: those in ``source`` by line, then in files it extends, then in overrides."""

    def order(mistake: Problem) -> tuple[bool, bool, str, int]:
        at = mistake.place
        return at.file is None, at.file != source, at.file or "", at.line

    def line(mistake: Problem, *, alone: bool) -> str:
        at = mistake.place
        if at.file is None:
            return f"override {mistake}"
        if alone or at.file != source:
            return f"{at}: {mistake}"
        return f"line {at.line}: {mistake}" if at.line else str(mistake)

    if len(mistakes) == 1:
        return line(mistakes[0], alone=True)
    lines = [f"  {line(mistake, alone=False)}" for mistake in sorted(mistakes, key=order)]
    return "\n".join([f"{source}: {len(mistakes)} mistakes", *lines])


def quoted(value: Any) -> str:
    """A value as a message quotes it.

    >>> said("many"), said(None), said(True)
    ("'many'", 'null', 'true')
    """
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
