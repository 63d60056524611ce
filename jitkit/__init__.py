"""Diffusion models of raw scientific arrays: the JiT transformer for any number of axes.

Names are imported on first use, so that ``import jitkit`` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitkit.diffusion.denoiser import Denoiser as Denoiser
    from jitkit.diffusion.denoiser import Diffusion as Diffusion
    from jitkit.diffusion.sampler import sample as sample
    from jitkit.domain import Domain as Domain
    from jitkit.domains.memory.adapter import from_arrays as from_arrays
    from jitkit.errors import BadItem as BadItem
    from jitkit.errors import DataError as DataError
    from jitkit.errors import JitkitError as JitkitError
    from jitkit.evaluation.run import evaluate as evaluate
    from jitkit.fields import Axis as Axis
    from jitkit.fields import Batch as Batch
    from jitkit.fields import Category as Category
    from jitkit.fields import Field as Field
    from jitkit.fields import Grid as Grid
    from jitkit.fields import Layout as Layout
    from jitkit.fields import PerToken as PerToken
    from jitkit.fields import Scalars as Scalars
    from jitkit.nn.transformer import Sizes as Sizes
    from jitkit.recipe.load import load_recipe as load_recipe
    from jitkit.registry import inspect as inspect
    from jitkit.runs.checkpoint import load as load
    from jitkit.runs.official import load_official as load_official
    from jitkit.sampling.run import forecast as forecast
    from jitkit.sampling.run import generate as generate
    from jitkit.sections import DomainSection as DomainSection
    from jitkit.training.trainer import train as train

_HOME = {
    "Axis": "fields",
    "BadItem": "errors",
    "Batch": "fields",
    "Category": "fields",
    "DataError": "errors",
    "Denoiser": "diffusion.denoiser",
    "Diffusion": "diffusion.denoiser",
    "Domain": "domain",
    "DomainSection": "sections",
    "Field": "fields",
    "Grid": "fields",
    "JitkitError": "errors",
    "Layout": "fields",
    "PerToken": "fields",
    "Scalars": "fields",
    "Sizes": "nn.transformer",
    "evaluate": "evaluation.run",
    "forecast": "sampling.run",
    "from_arrays": "domains.memory.adapter",
    "generate": "sampling.run",
    "inspect": "registry",
    "load": "runs.checkpoint",
    "load_official": "runs.official",
    "load_recipe": "recipe.load",
    "sample": "diffusion.sampler",
    "train": "training.trainer",
}

__all__ = sorted(_HOME)  # noqa: PLE0605
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jitkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"jitkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
