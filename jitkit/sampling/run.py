"""Samples and forecasts of a trained run: `jitkit.generate` and `jitkit.forecast`.

Both take the run's own settings: section ``sample`` of its recipe, below it the best setting of a
sweep (``best.yaml``), above both the overrides of the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.errors import RecipeError
from jitkit.recipe.load import Recipe
from jitkit.registry import check_instance
from jitkit.runs.checkpoint import Checkpoint, ema_name
from jitkit.runs.defaults import Overrides
from jitkit.runs.load import load_for_sampling, resolve_run
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for, parse_sizes, parse_source
from jitkit.sampling.rollout import ForecastRequest, write_forecasts
from jitkit.utils.distributed import ALONE, Team

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class SampleRequest:
    """What to sample, as options of `jitkit sample` or arguments of `generate`.

    Attributes:
        n: number of samples.
        cond: conditions by name, see `generate`.
        cond_from: real items whose conditions are used, ``"val:0-15"``.
        size: cells of variable-size samples, ``"9-20"``, a number or several.
        first: index of the first sample.
    """

    n: int = 16
    cond: Mapping[str, Any] = field(default_factory=dict)
    cond_from: str | None = None
    size: str | int | Sequence[int] | None = None
    first: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise RecipeError(f"n is {self.n}; it must be at least 1")
        if self.first < 0:
            raise RecipeError(f"first is {self.first}; it must be at least 0")


@dataclass(frozen=True)
class OpenedRun:
    """A trained run, its checkpoint and the recipe with all settings; the model is not loaded yet.

    Attributes:
        checkpoint: the newest, or the one that was given.
        folder: of the run.
        recipe: with best.yaml and overrides.
        ema: name or decay of the EMA; None for the first.
        domain: given in Python, if any.
    """

    checkpoint: Checkpoint
    folder: Path
    recipe: Recipe
    ema: float | str | None
    domain: Domain | None = None

    @classmethod
    def open(
        cls,
        run: str | Path,
        overrides: Overrides = (),
        ema: float | str | None = None,
        domain: Domain | None = None,
    ) -> OpenedRun:
        """Resolve checkpoint and settings.

        Raises:
            CheckpointError, RecipeError: as `jitkit.runs.load.resolve_run`.
        """
        check_instance(domain)
        return cls(*resolve_run(run, overrides, ema, domain), domain)

    def load(self) -> Denoiser:
        """The model, with its domain and precision."""
        return load_for_sampling(self.recipe, self.checkpoint, self.ema, self.domain)

    def samples(
        self, denoiser: Denoiser, request: SampleRequest, *, ranks: Team = ALONE
    ) -> Iterator[Any]:
        """Samples as items, generated lazily; sample i does not depend on ``n`` and ``first``.

        Raises:
            ConditionError: a condition or size that the model does not have.
        """
        section = self.recipe.sample
        conditioning = conditioning_for(
            denoiser,
            request.n,
            request.cond,
            parse_source(request.cond_from),
            sizes=parse_sizes(request.size),
            seed=section.seed,
            first=request.first,
        )
        return sample_items(
            denoiser,
            request.n,
            conditioning,
            section,
            first=request.first,
            progress=True,
            team=ranks,
        )

    def forecast(
        self, init: Sequence[str], lead: str, members: int, out: Path, *, ranks: Team = ALONE
    ) -> str:
        """Write forecasts into a file; resume an unfinished one. Returns a line about it."""
        if members < 1:
            raise RecipeError(f"members is {members}; it must be at least 1")
        domain = self.recipe.domain.model_dump(mode="json")
        model = {
            "checkpoint": str(self.checkpoint.path),
            "ema": self.ema or ema_name(self.checkpoint, None),
            "domain": domain,
        }
        request = ForecastRequest(tuple(init), lead, members, model)
        return write_forecasts(self.load(), self.recipe.sample, request, out, team=ranks)


def generate(
    run: str | Path,
    n: int = 16,
    cond: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
    *,
    cond_from: str | None = None,
    size: str | int | Sequence[int] | None = None,
    ema: float | str | None = None,
    first: int = 0,
    domain: Domain | None = None,
) -> list[Any]:
    """Samples of a trained run as items in physical units, the same as `jitkit sample` writes.

    ``jitkit.load(run).domain.write(items, folder)`` writes them in the format of the field.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        n: number of samples.
        cond: by name: for a category a class, several (in equal runs), or one per sample; for
            scalars K numbers or (n, K); for maps an array for all or (n, ...); None or ``"none"``
            for the null condition; or text as for the command, ``{"label": "0-9"}``.
        overrides: ``{"sample.guidance": 2.0}`` or ``["sample.steps=20"]``.
        cond_from: real items whose conditions are used, ``"val:0-15"``.
        size: cells of variable-size samples: a number, or several in turn; default: drawn from the
            sizes of the training items.
        ema: the EMA of the parameters, as in `jitkit.load`; default: the run's.
        first: index of the first sample; sample i does not depend on ``n`` and ``first``.
        domain: the adapter, if the model was trained with one given in Python.

    Raises:
        CheckpointError: there is no whole checkpoint or no such EMA, or ``domain`` does not fit.
        RecipeError: an invalid override, ``n`` or ``first``.
        ConditionError: a condition or size that the model does not have.
    """
    request = SampleRequest(n, cond or {}, cond_from, size, first)
    opened = OpenedRun.open(run, overrides, ema, domain)
    return list(opened.samples(opened.load(), request))


def forecast(
    run: str | Path,
    init: str | Sequence[str],
    lead: str,
    members: int = 1,
    overrides: Overrides = (),
    *,
    ema: float | str | None = None,
    out: str | Path | None = None,
    domain: Domain | None = None,
) -> xarray.Dataset:
    """Autoregressive ensemble forecasts of a trained run, as `jitkit forecast` writes them.

    Args:
        run: a run's folder, or one of its ``checkpoints/step-N``.
        init: initialization times in the domain's notation, as ``"2020-01-01T00"`` or ``"val:4"``.
        lead: lead time, as ``"10d"``.
        members: ensemble members of each start.
        overrides, ema, domain: as in `generate`.
        out: Zarr store for the forecasts, which the result then reads lazily; an unfinished one is
            resumed. Default: a temporary one, loaded into memory.

    Raises:
        CheckpointError, RecipeError: as `generate`; or ``out`` holds something else.
        JitkitError: the model's items are not a sequence, or no such time or lead.
    """
    import xarray

    opened = OpenedRun.open(run, overrides, ema, domain)
    inits = [init] if isinstance(init, str) else list(init)
    if out is not None:
        opened.forecast(inits, lead, members, Path(out))
        return xarray.open_zarr(out, chunks=None)
    with TemporaryDirectory(prefix="jitkit-") as temporary:
        path = Path(temporary) / "forecast.zarr"
        opened.forecast(inits, lead, members, path)
        with xarray.open_zarr(path, chunks=None) as data:
            return data.load()
