"""Running means of any width after training, from snapshots of a few that were kept while training.

```
ema/step-500/
  sigma-0.05.safetensors          the power-function means of that step, one file for each width
  sigma-0.1.safetensors
ema/sigma-0.07-step-500.safetensors   a mean that was made of them
```

Every mean is a sum of all weights there were, and its profile says how much each step counts. The
profile that is asked for is put together from those of all snapshots up to its step, by least
squares; the same factors then put the weights together (Karras et al. 2023, arXiv:2312.02696,
section 3.2 and appendix C). Two things are not the paper's, and both keep the weights closer: the
factors sum to one exactly, and large factors, which would multiply the rounding of what is stored,
are held back. Snapshots are float16: the rounding is 0.02 % of the weights, and a tensor that
float16 does not hold so well is stored in float32.
"""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from jitkit.errors import CheckpointError, listed
from jitkit.optim.ema import SIGMA, WIDEST, gamma_of, sigma_name
from jitkit.utils.atomic import flush
from jitkit.utils.console import bar, warn
from jitkit.utils.types import Floats

SNAPSHOT_FORMAT = 1
LIMIT = 0.075
"""Largest residual of a profile. Up to it the weights of small networks in training, and random
walks, came out within 1 % (benchmarks/posthoc_ema.py); above it some walks did not."""
ROUNDING = 1e-5
"""What a unit of the factors' squares costs, against one of the relative residual's: rounding adds
2e-4 of the weights for each unit of the factors' norm, a residual r about 0.06 r."""


@dataclass(frozen=True)
class Snapshot:
    """The power-function means of one step on disk, found whole.

    Attributes:
        path: the folder.
        step: after which they were written.
        files: a file for each relative width.
    """

    path: Path
    step: int
    files: Mapping[float, Path]


@dataclass(frozen=True)
class EmaCombination:
    """How a mean is put together from snapshots.

    Attributes:
        step: at which it stands, that of a snapshot.
        sigma_rel: its relative width.
        parts: files of stored means, each with its factor; the factors sum to 1.
        residual: how far its profile is from the one asked for, relative, in the L2 norm.
    """

    step: int
    sigma_rel: float
    parts: Sequence[tuple[Path, float]]
    residual: float


def write_snapshot(run: Path, step: int, means: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write ``ema/step-N`` of a run aside, flush it to disk, and rename it.

    Args:
        run: the run's folder.
        step: steps that are done; as many updates as the means have had.
        means: as `EMA.means` has them, whole tensors; those named ``sigma-*`` are taken.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is untouched.
    """
    final = run / "ema" / f"step-{step}"
    aside = final.with_name(f".step-{step}.part")
    taken = {name: mean for name, mean in means.items() if name.startswith(SIGMA)}
    assert taken, "there is no power-function mean to store"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        for name, mean in taken.items():
            header = {
                "step": step,
                "sigma_rel": float(name.removeprefix(SIGMA)),
                "beside": " ".join(sorted(taken)),
            }
            tensors = {key: stored(value) for key, value in mean.items()}
            _save(tensors, aside / f"{name}.safetensors", header)
        flush(aside)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        flush(final.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final} cannot be written: {error}; the snapshots before it are untouched"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def stored(value: Tensor) -> Tensor:
    """A tensor as snapshots hold it, on the CPU: in float16, or as it is where that is too coarse.

    Too coarse is more than 0.1 % of its norm: numbers above 65504, or nearly all below 2e-5.
    """
    value = value.detach().cpu().contiguous()
    half = value.half()
    fits = (half.float() - value.float()).norm() <= 1e-3 * value.float().norm()
    return half if fits else value


def snapshots(run: Path) -> list[Snapshot]:
    """The whole snapshots of a run by step; torn ones are passed over with a warning.

    Raises:
        CheckpointError: one is of a newer jitkit.
    """
    found = []
    for folder in (run / "ema").glob("step-*"):
        step = folder.name.removeprefix("step-")
        if not step.isdigit() or not folder.is_dir():
            continue
        try:
            found.append(_read(folder, int(step)))
        except (OSError, SafetensorError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            warn(f"{folder}: torn: {error}; the other snapshots are used")
    return sorted(found, key=lambda snapshot: snapshot.step)


def forget_after(run: Path, step: int) -> None:
    """Remove snapshots and means after a step, and what a kill left half written.

    For a run that goes on from that step: it may go another way than before.
    """
    for path in (run / "ema").glob("*"):
        number = path.name.removesuffix(".safetensors").rpartition("step-")[2]
        if path.suffix == ".part" or (number.isdigit() and int(number) > step):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def plan(run: Path, sigma_rel: float, step: int | None = None) -> EmaCombination:
    """How the mean of a relative width at the last snapshot up to a step (the newest) is made.

    Raises:
        JitkitError: no power function is of that width.
        CheckpointError: there is no snapshot up to that step, or the width is too far from what
            the snapshots hold.
    """
    gamma_of(sigma_rel)  # a width that there is
    found = snapshots(run)
    if not found:
        raise CheckpointError(
            f"{run}: no snapshots of power-function means; a run keeps them that is trained with "
            "train.ema_sigma_rel=[0.05,0.1]"
        )
    used = [snapshot for snapshot in found if step is None or snapshot.step <= step]
    if not used:
        raise CheckpointError(f"{run}: no snapshot up to step {step}; the first is {found[0].step}")
    at = used[-1].step
    files = [(s.step, sigma, path) for s in used for sigma, path in s.files.items()]
    steps, widths, paths = zip(*files, strict=True)
    factors, residual = fit(steps, widths, at, sigma_rel)
    if residual > LIMIT:
        raise CheckpointError(_too_far(run, steps, widths, at, sigma_rel, residual))
    return EmaCombination(at, sigma_rel, list(zip(paths, factors.tolist(), strict=True)), residual)


def reconstruct(run: Path, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """The mean of a relative width as if it had been kept while training; float32, on the CPU.

    Takes the memory of one model and its largest tensor, however many snapshots there are.

    Args:
        run: the run's folder.
        sigma_rel: relative width.
        step: the last snapshot up to it is where the mean stands; the newest where not given.

    Raises:
        JitkitError: no power function is of that width.
        CheckpointError: there are no snapshots, they do not belong together, or the width is too
            far from what they hold.
    """
    return _combined(plan(run, sigma_rel, step))


def write_reconstructed(run: Path, sigma_rel: float, step: int | None = None) -> Path:
    """`reconstruct` into ``ema/sigma-W-step-N.safetensors`` of a run, written aside and renamed.

    Raises:
        JitkitError: as `reconstruct`.
        CheckpointError: as `reconstruct`, or the file cannot be written.
    """
    chosen = plan(run, sigma_rel, step)
    final = run / "ema" / f"{sigma_name(sigma_rel)}-step-{chosen.step}.safetensors"
    aside = final.with_name(f".{final.name}.part")
    header = {
        "step": chosen.step,
        "sigma_rel": float(sigma_rel),
        "residual": chosen.residual,
        "made_of": len(chosen.parts),
    }
    try:
        _save(_combined(chosen), aside, header)
        aside.replace(final)
        flush(final.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{final} cannot be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return final


def describe(path: Path) -> str:
    """What a file that `write_reconstructed` wrote holds, in a line for its maker."""
    header = _header(path)
    return (
        f"{path}: the mean of relative width {header['sigma_rel']} at step {header['step']}, made "
        f"of {header['made_of']} stored means; its profile is met within "
        f"{100 * float(header['residual']):.2g} %"
    )


def inner_products(steps: Floats, gammas: Floats, step: float, gamma: float) -> Floats:
    """Integrals of profiles' products, in closed form: of many profiles with one.

    A profile is p(t) = (gamma + 1) / n (t / n)^gamma from 0 to its step n. If a ends before b,
    their product's integral is (g_a + 1)(g_b + 1) / ((g_a + g_b + 1) n_b) (n_a / n_b)^g_b
    (Karras et al. 2023, arXiv:2312.02696, equation 151).
    """
    first, last = np.minimum(steps, step), np.maximum(steps, step)
    exponent = np.where(steps <= step, gamma, gammas)
    scale = (gammas + 1) * (gamma + 1) / (gammas + gamma + 1)
    return np.asarray(scale / last * (first / last) ** exponent)


def fit(
    steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> tuple[Floats, float]:
    """Factors of stored profiles that meet another best, and the residual that remains.

    They make |p - sum f_i p_i|² + c |f|² least under sum f_i = 1: weights have a large part that
    never changes, which must come out once. c is `ROUNDING` times |p|².

    Args:
        steps: of the stored profiles.
        sigma_rels: their relative widths.
        step: of the profile that is asked for, no less than the others.
        sigma_rel: its relative width.

    Returns:
        The factors, and the residual |p - sum f_i p_i| / |p|.
    """
    times = np.asarray(steps, np.float64) / step
    gammas = np.array([gamma_of(sigma) for sigma in sigma_rels])
    gamma = gamma_of(sigma_rel)
    rows = [inner_products(times, gammas, *one) for one in zip(times, gammas, strict=True)]
    a, b = np.stack(rows), inner_products(times, gammas, 1.0, gamma)
    norm = (gamma + 1) ** 2 / (2 * gamma + 1)
    held = a + ROUNDING * norm * np.eye(len(a))
    free, ones = np.linalg.solve(held, np.stack([b, np.ones_like(b)], axis=1)).T
    factors = free + ones * (1 - free.sum()) / ones.sum()
    missed = norm - 2 * factors @ b + factors @ a @ factors
    return factors, float(np.sqrt(max(missed, 0.0) / norm))


def _too_far(
    run: Path,
    steps: Sequence[int],
    widths: Sequence[float],
    at: int,
    sigma_rel: float,
    residual: float,
) -> str:
    """Why a width is refused, and which are not."""
    tried = sorted({*np.geomspace(0.004, WIDEST, 60).tolist(), *widths})
    runs = groupby(tried, lambda width: fit(steps, widths, at, width)[1] <= LIMIT)
    within = [list(some) for possible, some in runs if possible]
    ranges = listed(f"{some[0]:.3f} to {some[-1]:.3f}" for some in within)
    return (
        f"{run}: a mean of relative width {sigma_rel} cannot be made at step {at}: the "
        f"{len(set(steps))} snapshots of widths {listed(map(str, sorted(set(widths))))} miss its "
        f"profile by {residual:.1%}, and weights are right within 1 % up to {LIMIT:.1%}. Widths "
        f"that can be made here: {ranges}; a run with a smaller train.ema_snapshot_every_steps "
        "reaches further"
    )


def _combined(chosen: EmaCombination) -> dict[str, Tensor]:
    """The sum of stored means times their factors, one tensor read at a time."""
    total: dict[str, Tensor] = {}
    with bar("reading snapshots", len(chosen.parts), unit="files") as show:
        for number, (path, factor) in enumerate(chosen.parts):
            try:
                _add(total, path, factor)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: torn or not safetensors: {error}") from None
            show(number + 1)
    if broken := [name for name, value in total.items() if not value.isfinite().all()]:
        raise CheckpointError(
            f"the snapshots up to step {chosen.step} hold numbers that are not finite, in "
            f"{listed(broken)}; choose a step before that with --step"
        )
    return total


def _add(total: dict[str, Tensor], path: Path, factor: float) -> None:
    with safe_open(path, framework="pt") as file:
        if not total:
            total |= {name: torch.zeros(file.get_slice(name).get_shape()) for name in file.keys()}
        if other := set(file.keys()) ^ set(total):
            raise CheckpointError(
                f"{path} holds other weights than the snapshots before it: "
                f"{listed(sorted(other))}; they are not of one model"
            )
        for name in total:
            value = file.get_tensor(name)
            if total[name].shape != value.shape:
                raise CheckpointError(
                    f"{path}: {name} is {tuple(value.shape)}, and {tuple(total[name].shape)} in "
                    "the snapshots before it; they are not of one model"
                )
            total[name].add_(value.float(), alpha=factor)  # in float64 it takes seven times as long


def _read(folder: Path, step: int) -> Snapshot:
    """A snapshot whose files are all there, opened once.

    Raises:
        CheckpointError: it is of a newer jitkit.
        OSError, SafetensorError, ValueError: it is torn.
    """
    files: dict[float, Path] = {}
    beside: set[str] = set()
    for path in sorted(folder.glob(f"{SIGMA}*.safetensors")):
        header = _header(path)
        if int(header["step"]) != step:
            raise ValueError(f"{path.name} is of step {header['step']}")
        files[float(header["sigma_rel"])] = path
        beside |= set(header.get("beside", "").split())
    missing = beside - {path.stem for path in files.values()}
    if missing or not files:
        raise ValueError(f"no {listed(sorted(missing)) or 'means in it'}")
    return Snapshot(folder, step, files)


def _header(path: Path) -> dict[str, str]:
    """What a file says of itself; that it is as long as it says has been seen to."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("mean", "{}"))
    if not {"format", "step", "sigma_rel"} <= set(header):
        raise ValueError(f"{path.name} does not say which mean it holds")
    if int(header["format"]) > SNAPSHOT_FORMAT:
        raise CheckpointError(
            f"{path}: format {header['format']} is newer than this jitkit reads ({SNAPSHOT_FORMAT}); "
            "update jitkit"
        )
    return header


def _save(tensors: dict[str, Tensor], path: Path, header: Mapping[str, object]) -> None:
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    told = {"format": SNAPSHOT_FORMAT, **header}
    about = json.dumps({key: str(value) for key, value in told.items()})
    save_file(tensors, path, metadata={"mean": about})  # one entry: several come in any order
    path.chmod(mode)  # not for us alone, as safetensors makes it
    flush(path)
