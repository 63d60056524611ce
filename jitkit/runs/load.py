"""Open a trained run for sampling or evaluation: its checkpoint, recipe, domain and model."""

from __future__ import annotations

from pathlib import Path

from jitkit.diffusion.build import choose_precision
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.errors import RecipeError, listed
from jitkit.recipe.load import Recipe, load_recipe
from jitkit.runs.checkpoint import Checkpoint, find_checkpoint, load
from jitkit.runs.defaults import Overrides, with_best


def resolve_run(
    run: str | Path, overrides: Overrides, ema: float | str | None, domain: Domain | None = None
) -> tuple[Checkpoint, Path, Recipe, float | str | None]:
    """Checkpoint, folder, recipe and EMA of a run, with its `best.yaml` below the overrides.

    Raises:
        CheckpointError, RecipeError: as `checkpoint_with_domain` and `run_recipe`.
    """
    checkpoint = checkpoint_with_domain(run, domain)
    folder = run_folder(checkpoint.path)
    overrides, ema = with_best(folder, overrides, ema)
    return checkpoint, folder, run_recipe(folder, overrides, domain), ema


def checkpoint_with_domain(run: str | Path, domain: Domain | None = None) -> Checkpoint:
    """The checkpoint of a run, whose domain is given or recorded by name.

    Raises:
        CheckpointError: there is no checkpoint.
        RecipeError: the domain is neither given nor recorded.
    """
    checkpoint = find_checkpoint(Path(run))
    if domain is None and not checkpoint.has_domain:
        raise RecipeError(
            f"{checkpoint.path} was trained with a domain that was given in Python; use it there: "
            f"jitkit.load({str(run)!r}, domain=...)"
        )
    return checkpoint


def run_folder(checkpoint: Path) -> Path:
    """The run of a checkpoint's folder; the folder itself if it belongs to no run."""
    parent = checkpoint.parent.parent
    return parent if (parent / "recipe.yaml").is_file() else checkpoint


def run_recipe(folder: Path, overrides: Overrides, domain: Domain | None = None) -> Recipe:
    """The run's recipe with overrides of sections sample, evaluate and domain.

    Raises:
        RecipeError: an override of another section, or of ``domain`` if that is given in Python.
    """
    sections = ("domain", "sample", "evaluate") if domain is None else ("sample", "evaluate")
    for word in [overrides] if isinstance(overrides, str) else overrides:
        if not word.startswith(tuple(f"{section}." for section in sections)):
            allowed = listed(sections)
            raise RecipeError(f"override {word!r}: a trained model takes keys of {allowed}")
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} has no recipe.yaml beside its checkpoints, so it is not a run")
    adapter = None if domain is None else type(domain)
    return load_recipe(folder / "recipe.yaml", overrides, domain=adapter, recorded=True)


def load_for_sampling(
    recipe: Recipe, checkpoint: Checkpoint, ema: float | str | None, domain: Domain | None = None
) -> Denoiser:
    """The model of a checkpoint, with the recipe's precision and domain."""
    opened = checkpoint.open_domain(recipe.domain) if domain is None else domain
    denoiser = load(checkpoint.path, ema=ema, domain=opened)
    denoiser.network.autocast = choose_precision(recipe.train.precision, denoiser.device)[0]
    return denoiser
