"""A trained run, opened to draw samples or to score them: its model, its recipe, its domain."""

from __future__ import annotations

from pathlib import Path

from jitkit.diffusion.build import choose_precision
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.errors import RecipeError, listed
from jitkit.recipe.load import Recipe, load_recipe
from jitkit.runs.checkpoint import Checkpoint, find_checkpoint, load
from jitkit.runs.defaults import Overrides, with_best


def asked(
    run: str | Path, overrides: Overrides, ema: float | str | None, domain: Domain | None = None
) -> tuple[Checkpoint, Path, Recipe, float | str | None]:
    """What is asked of a run: its checkpoint, its folder, its recipe and the mean of the weights,
    the last two with the best setting that a sweep found beneath what is asked.

    Raises:
        CheckpointError, RecipeError: as `found_in` and `settings`.
    """
    found = found_in(run, domain)
    folder = folder_of(found.path)
    words, mean = with_best(folder, overrides, ema)
    return found, folder, settings(folder, words, domain), mean


def found_in(run: str | Path, domain: Domain | None = None) -> Checkpoint:
    """The checkpoint that is asked for, where its domain is given or can be found by its name.

    Raises:
        CheckpointError: there is none.
        RecipeError: its domain is needed, and only Python can give it.
    """
    found = find_checkpoint(Path(run))
    if domain is None and not found.has_domain:
        raise RecipeError(
            f"{found.path} was trained with a domain that was given in Python; use it there: "
            f"jitkit.load({str(run)!r}, domain=...)"
        )
    return found


def folder_of(checkpoint: Path) -> Path:
    """The run of a checkpoint's folder; the folder itself where it stands alone."""
    parent = checkpoint.parent.parent
    return parent if (parent / "recipe.yaml").is_file() else checkpoint


def settings(folder: Path, overrides: Overrides, domain: Domain | None = None) -> Recipe:
    """The run's recipe with sections sample, evaluate and domain overridden.

    Raises:
        RecipeError: an override is of another section; or of domain, which was given in Python.
    """
    sections = ("domain", "sample", "evaluate") if domain is None else ("sample", "evaluate")
    for word in [overrides] if isinstance(overrides, str) else overrides:
        if not word.startswith(tuple(f"{section}." for section in sections)):
            known = listed(sections)
            raise RecipeError(f"override {word!r}: a trained model takes keys of {known}")
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} has no recipe.yaml beside its checkpoints, so it is no run")
    given = None if domain is None else type(domain)
    return load_recipe(folder / "recipe.yaml", overrides, domain=given, recorded=True)


def ready(
    recipe: Recipe, found: Checkpoint, ema: float | str | None, domain: Domain | None = None
) -> Denoiser:
    """A loaded model, with the arithmetic and the data that the recipe asks for."""
    opened = found.open_domain(recipe.domain) if domain is None else domain
    denoiser = load(found.path, ema=ema, domain=opened)
    denoiser.autocast = choose_precision(recipe.train.precision, denoiser.device)[0]
    return denoiser
