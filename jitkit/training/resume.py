"""Whether a run may go on: what its recipe and its data were, against what they are now."""

from __future__ import annotations

from pathlib import Path

from jitkit.diffusion.build import layout_for
from jitkit.domain import Domain, domain_class, is_installed
from jitkit.errors import DataError, RecipeError
from jitkit.recipe.load import Recipe, differences, load_recipe
from jitkit.runs.checkpoint import Checkpoint, DomainRecord, layout_difference
from jitkit.sections import DomainSection
from jitkit.utils.console import say
from jitkit.utils.json_arrays import changes

FREE_TO_CHANGE = (  # keys that change neither the model nor the data it has seen
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


def check_goes_on(found: Checkpoint, recipe: Recipe, domain: Domain) -> None:
    """Whether a recipe and a domain go on with the run of a checkpoint.

    Raises:
        RecipeError: the recipe differs from the run's own in what changes the model or the data,
            or asks for fewer steps than were done.
        DataError: the data are not those that the run has seen.
    """
    check_same(found.run, recipe, type(domain))
    check_same_data(found, domain, recipe)
    if found.step > recipe.train.steps:
        raise RecipeError(
            f"{found.run} is at step {found.step}, past train.steps={recipe.train.steps}; "
            "ask for more, or start another with --new"
        )


def check_same(folder: Path, recipe: Recipe, domain: type[Domain]) -> None:
    """Stop where the run's own recipe differs in what changes model or data; say the rest."""
    changed = differences(load_recipe(folder / "recipe.yaml", domain=domain, recorded=True), recipe)
    own = getattr(domain, "Section", DomainSection).free_to_change
    free = (*FREE_TO_CHANGE, *(f"domain.{key}" for key in own))
    different = [line for line in changed if not line.startswith(free)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise RecipeError(
            f"{folder} holds a run that began otherwise:{lines}\n"
            "start another with --new or --run DIR, or take these back to go on"
        )
    for line in changed:
        say(f"changed from here on: {line}")


def check_same_data(found: Checkpoint, domain: Domain, recipe: Recipe) -> None:
    """Stop where the data are not those that the run has seen, or not as the model was built for:
    its order and labels would shift, its channels change places."""
    different = layout_difference(found.model, layout_for(recipe, domain), domain.conditions)
    if record := found.model.get("domain"):
        items = record.get("num_items")
        now = {"metadata": domain.metadata(), "num_items": items and len(domain.items("train"))}
        different += changes({"metadata": found.metadata, "num_items": items}, now)
    if different:
        lines = "".join(f"\n  {line}" for line in different[:20])
        raise DataError(
            f"the data are not those that {found.path} was trained on:{lines}\n"
            "start another with --new or --run DIR, or take the data back to go on"
        )


def domain_record(domain: Domain, section: DomainSection, num_items: int) -> DomainRecord:
    """What a checkpoint keeps of a domain: to open it again, and for `check_same_data`.

    The section is kept where it opens the domain: that is an installed one, and all of its keys are
    known.
    """
    installed = is_installed(type(domain), section.name)
    known = installed and isinstance(section, domain_class(section.name).Section)
    named = section.model_dump(mode="json") if known else None
    return DomainRecord(named, domain.metadata(), num_items)
