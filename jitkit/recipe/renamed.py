"""Recipe keys renamed since jitkit 0.1: refused in recipes, converted in the record of a run."""

from __future__ import annotations

from typing import Any

from jitkit.recipe.yaml import merged, nested

RENAMED = {
    "sample.times": "sample.time_grid",
    "sample.interval": "sample.guidance_interval",
    "sample.guide": "sample.autoguidance",
    "evaluate.protocol": "domain.fid.protocol",
    "evaluate.extractor": "domain.fid.extractor",
    "evaluate.inception_weights": "domain.fid.inception_weights",
    "evaluate.reference": "domain.fid.reference",
    "evaluate.reference_items": "domain.fid.reference_items",
}
DEFAULTS = (None, 50_000)
"""Default values of moved keys are dropped, because only image domains have a key ``fid``."""


def with_new_names(values: dict[str, Any]) -> dict[str, Any]:
    """The recorded recipe of a run with the current names of keys.

    >>> with_new_names({"sample": {"times": "cosine"}, "evaluate": {"protocol": None}})
    {'sample': {'time_grid': 'cosine'}, 'evaluate': {}}
    """
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if isinstance(values.get(section), dict) and key in values[section]:
            value = values[section].pop(key)
            if new.startswith(f"{section}.") or value not in DEFAULTS:
                values = merged(nested(tuple(new.split(".")), value), values)
    return values
