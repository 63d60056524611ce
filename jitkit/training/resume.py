"""Resume check: are the recipe and the data those of the run?"""

from __future__ import annotations

from pathlib import Path

from jitkit.diffusion.build import layout_for
from jitkit.domain import Domain
from jitkit.errors import DataError, RecipeError
from jitkit.recipe.load import Recipe, differences, load_recipe
from jitkit.registry import name_of
from jitkit.runs.checkpoint import Checkpoint, DomainRecord, layout_difference
from jitkit.sections import DomainSection
from jitkit.utils.console import say
from jitkit.utils.json_arrays import changes

FREE_TO_CHANGE = (  # keys that change neither the model nor its training data
    "name",
    "sample.",
    "evaluate.",
    "train.steps",
    "train.save_every_steps",
    "train.keep",
    "train.max_bad_steps",
    "train.preview_",
    "train.validate_",
    "train.workers",
    "train.ema_device",
    "train.accumulate",
    "train.parallel",
    "train.compile",
    "train.checkpoint_activations",
    "train.log",
)


def check_resumable(saved: Checkpoint, recipe: Recipe, domain: Domain) -> None:
    """Check that a recipe and a domain can resume the run of a checkpoint.

    Raises:
        RecipeError: the recipe differs from the run's in what changes the model or the data, or
            requests fewer steps than were done.
        DataError: the data are not those that the run was trained on.
    """
    check_same_recipe(saved.run, recipe, type(domain))
    check_same_data(saved, domain, recipe)
    if saved.step > recipe.train.steps:
        raise RecipeError(
            f"{saved.run} is at step {saved.step}, past train.steps={recipe.train.steps}; "
            "raise train.steps, or start another with --new"
        )


def check_same_recipe(folder: Path, recipe: Recipe, domain: type[Domain]) -> None:
    """Refuse a recipe that changes the run's model or data; print its other changes."""
    changed = differences(load_recipe(folder / "recipe.yaml", domain=domain, recorded=True), recipe)
    domain_keys = domain.Section.free_to_change
    free = (*FREE_TO_CHANGE, *(f"domain.{key}" for key in domain_keys))
    different = [line for line in changed if not line.startswith(free)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise RecipeError(
            f"{folder} holds a run with another recipe:{lines}\n"
            "start another with --new or --run DIR, or undo these changes to resume"
        )
    for line in changed:
        say(f"changed from here on: {line}")


def check_same_data(saved: Checkpoint, domain: Domain, recipe: Recipe) -> None:
    """Refuse data or a layout other than the run's: order, labels or channels would change."""
    different = layout_difference(saved.model, layout_for(recipe, domain), domain.conditions)
    if record := saved.model.get("domain"):
        items = record.get("num_items")
        now = {"metadata": domain.metadata(), "num_items": items and len(domain.items("train"))}
        different += changes({"metadata": saved.metadata, "num_items": items}, now)
    if different:
        lines = "".join(f"\n  {line}" for line in different[:20])
        raise DataError(
            f"the data are not those that {saved.path} was trained on:{lines}\n"
            "start another with --new or --run DIR, or restore the data to resume"
        )


def domain_record(domain: Domain, section: DomainSection, num_items: int) -> DomainRecord:
    """What a checkpoint records of a domain: to open it again, and for `check_same_data`.

    The section is recorded if it can open the domain: its name is that of the class, which has this
    class of section.
    """
    known = name_of(type(domain)) == section.name and isinstance(section, domain.Section)
    recorded = section.model_dump(mode="json") if known else None
    return DomainRecord(recorded, domain.metadata(), num_items)
