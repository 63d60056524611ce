"""Error messages of a recipe: pydantic's validation errors as text, reported together.

Messages depend on the type of an error, not on pydantic's wording, which changes between releases.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_core import ErrorDetails

from jitkit.errors import nearest
from jitkit.recipe.yaml import KeyPath, Problem, YamlPosition

_MISFITS = {
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
    "literal_error": "",  # one of the words that pydantic expects
    "enum": "",
}
"""Values of the wrong type: "'many' is not a whole number"."""

_INVALID = {
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
"""Invalid values of the right type; the text of a `RecipeError` is kept."""


def messages_by_key(
    errors: Iterable[ErrorDetails], values: Any, unknown: Callable[[KeyPath], str]
) -> dict[KeyPath, str]:
    """Error message for each key of a section.

    pydantic reports one error for each type of a union. They become one line: "'atuo' is not auto
    or a number", or, if the value has one of the types, only the error of that type.

    Args:
        errors: as reported by pydantic.
        values: the section as written.
        unknown: returns the text for an unknown key.
    """
    cases: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        cases.setdefault(_key_path(error, values), []).append(error)
    parents = {path[:n] for path in cases for n in range(len(path))}
    texts: dict[KeyPath, str] = {}
    for path, found in cases.items():
        others = [error for error in found if error["type"] not in _MISFITS]
        if others:
            unknown_key = others[-1]["type"] == "extra_forbidden"
            texts[path] = unknown(path) if unknown_key else _invalid_value(others[-1])
        elif path not in parents:
            texts[path] = _misfit(found)
    return texts


def _key_path(error: ErrorDetails, value: Any) -> KeyPath:
    """The keys of an error's location, without the names of union branches."""
    path: KeyPath = ()
    for step in error["loc"]:
        items = range(len(value)) if isinstance(value, list) else ()
        if step in (value if isinstance(value, dict) else items):
            value, path = value[step], (*path, step)
    absent = error["type"] == "missing" and isinstance(error["loc"][-1], str)
    return (*path, error["loc"][-1]) if absent else path


def _misfit(errors: list[ErrorDetails]) -> str:
    """One line for a value that has none of the types allowed for its key."""
    value = errors[0]["input"]
    allowed: list[str] = []
    choices: list[str] = []
    for error in errors:
        expected = error.get("ctx", {}).get("expected", "")  # "'x', 'eps' or 'v'"
        words = re.findall(r"'([^']*)'", expected) or [_MISFITS[error["type"]] or expected]
        allowed.append(f"one of {', '.join(words)}" if len(words) > 1 else words[0])
        choices += words if expected else []
    close = nearest(value, choices) if isinstance(value, str) else ""
    return f"{quoted(value)} is not {' or '.join(dict.fromkeys(allowed))}{close}"


def _invalid_value(error: ErrorDetails) -> str:
    if error["type"] == "missing":  # a key, or an item of a list of fixed length
        is_item = isinstance(error["loc"][-1], int)
        return f"{quoted(error['input'])} is too short" if is_item else "missing"
    limits = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in error.get("ctx", {}).items()
    }
    template = _INVALID.get(error["type"], "{input} is invalid: {msg}")
    return template.format(**{"input": quoted(error["input"]), "msg": error["msg"]} | limits)


def error_text(problems: list[Problem], source: str) -> str:
    """All problems: those in ``source`` by line, then in files it extends, then in overrides."""

    def order(problem: Problem) -> tuple[bool, bool, str, int]:
        at = problem.position
        return at.file is None, at.file != source, at.file or "", at.line

    if len(problems) == 1:
        return _place(problems[0].position) + str(problems[0])
    lines = [f"  {_place(each.position, source)}{each}" for each in sorted(problems, key=order)]
    return "\n".join([f"{source}: {len(problems)} errors", *lines])


def _place(at: YamlPosition, source: str = "") -> str:
    """``"override "``, ``"line 3: "`` inside the source, or ``"other.yaml:3: "``."""
    if at.file is None:
        return "override "
    if at.file == source:
        return f"line {at.line}: " if at.line else ""
    return ":".join([at.file, *(str(number) for number in (at.line, at.column) if number), " "])


def quoted(value: Any) -> str:
    """A value as quoted in a message.

    >>> quoted("many"), quoted(None), quoted(True)
    ("'many'", 'null', 'true')
    """
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
