"""Diffusion models of raw scientific arrays: the JiT transformer for any number of axes.

The names below are loaded when they are first used, so that ``import jitkit`` is quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jitkit.checkpoint import load as load
    from jitkit.denoiser import Denoiser as Denoiser
    from jitkit.denoiser import Diffusion as Diffusion
    from jitkit.domain import Domain as Domain
    from jitkit.errors import BadItem as BadItem
    from jitkit.errors import DataError as DataError
    from jitkit.errors import JitkitError as JitkitError
    from jitkit.fields import Axis as Axis
    from jitkit.fields import Batch as Batch
    from jitkit.fields import Category as Category
    from jitkit.fields import Field as Field
    from jitkit.fields import Grid as Grid
    from jitkit.fields import Layout as Layout
    from jitkit.fields import PerToken as PerToken
    from jitkit.fields import Scalars as Scalars
    from jitkit.official import load_official as load_official
    from jitkit.recipe import load_recipe as load_recipe
    from jitkit.sampler import sample as sample
    from jitkit.sections import DomainSection as DomainSection
    from jitkit.trained import evaluate as evaluate
    from jitkit.trainer import train as train
    from jitkit.transformer import Sizes as Sizes

_HOME = {
    "Axis": "fields",
    "BadItem": "errors",
    "Batch": "fields",
    "Category": "fields",
    "DataError": "errors",
    "Denoiser": "denoiser",
    "Diffusion": "denoiser",
    "Domain": "domain",
    "DomainSection": "sections",
    "Field": "fields",
    "Grid": "fields",
    "JitkitError": "errors",
    "Layout": "fields",
    "PerToken": "fields",
    "Scalars": "fields",
    "Sizes": "transformer",
    "evaluate": "trained",
    "load": "checkpoint",
    "load_official": "official",
    "load_recipe": "recipe",
    "sample": "sampler",
    "train": "trainer",
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


class _Face(ModuleType):
    """This package; a submodule that is imported does not hide the name that it shares."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
