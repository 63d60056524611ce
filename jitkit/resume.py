"""Whether a run may go on: what its recipe and its data were, against what they are now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from jitkit.checkpoint import Checkpoint
from jitkit.domain import Domain
from jitkit.errors import DataError, RecipeError
from jitkit.facts import unequal
from jitkit.progress import say
from jitkit.recipe import Recipe, differences, load_recipe

FREE_TO_CHANGE = (  # keys that change neither the model nor the data it has seen
    "name",
    "domain.path",  # data may move; whether they are the same is asked of themselves
    "sample.",
    "evaluate.",
    "train.steps",
    "train.save_every_steps",
    "train.keep",
    "train.max_bad_steps",
    "train.preview_",
    "train.validate_",
    "train.workers",
    "train.accumulate",
    "train.parallel",
    "train.compile",
    "train.checkpoint_activations",
    "train.log",
)


def check_same(folder: Path, recipe: Recipe, domain: type[Domain]) -> None:
    """Stop where the run's own recipe differs in what changes model or data; say the rest."""
    changed = differences(load_recipe(folder / "recipe.yaml", domain=domain), recipe)
    different = [line for line in changed if not line.startswith(FREE_TO_CHANGE)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise RecipeError(
            f"{folder} holds a run that began otherwise:{lines}\n"
            "start another with --new or --run DIR, or take these back to go on"
        )
    for line in changed:
        say(f"changed from here on: {line}")


def check_same_data(found: Checkpoint, domain: Domain) -> None:
    """Stop where the data are not those that the run has seen: its order and labels would shift."""
    record = found.model.get("domain")
    if not record:
        return
    before = {"facts": found.facts, "num_items": record.get("num_items")}
    now = {"facts": domain.facts(), "num_items": len(domain.items("train"))}
    different = [
        f"\n  {path}: {_brief(old)} -> {_brief(new)}"
        for path, old, new in unequal(before, now)
        if (path, old) != ("num_items", None)
    ]
    if different:
        raise DataError(
            f"the data are not those that {found.path} was trained on:{''.join(different[:20])}\n"
            "start another with --new or --run DIR, or take the data back to go on"
        )


def _brief(value: Any) -> str:
    return f"array {value.shape}" if isinstance(value, np.ndarray) else json.dumps(value)
