"""Post-hoc EMA: reconstruct power-function EMAs of any width from snapshots kept in training.

```
ema/step-500/
  sigma-0.05.safetensors              power-function EMAs of that step, one file for each width
  sigma-0.1.safetensors
ema/sigma-0.07-step-500.safetensors   an EMA reconstructed from them
```

An EMA is a weighted sum of the weights of all steps; its profile is the weight of each step. The
requested profile is fitted by least squares as a linear combination of the profiles of all
snapshots up to its step, and the same coefficients combine the snapshots (Karras et al. 2023,
arXiv:2312.02696, section 3.2 and appendix C). Two additions to the paper reduce the error: the
coefficients sum to exactly one, and large coefficients, which amplify rounding, are penalised.
Snapshots are float16, whose rounding is 0.02 % of the weights; tensors that float16 represents less
accurately are stored in float32.
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
from jitkit.optim.ema import MAX_SIGMA_REL, SIGMA_PREFIX, gamma_of, sigma_name
from jitkit.utils.atomic import fsync
from jitkit.utils.console import bar, warn
from jitkit.utils.types import Floats

SNAPSHOT_FORMAT = 1
MAX_RESIDUAL = 0.075
"""Largest accepted residual of a profile. Up to it the weights of small networks and of random
walks were within 1 % (benchmarks/posthoc_ema.py); above it those of some walks were not."""
REGULARIZATION = 1e-5
"""Penalty on the squared norm of the coefficients, relative to the squared relative residual.
Rounding adds 2e-4 of the weights per unit of the coefficients' norm, a residual r about 0.06 r."""


@dataclass(frozen=True)
class Snapshot:
    """A complete snapshot on disk: the power-function EMAs of one step.

    Attributes:
        path: the folder.
        step: training step of the snapshot.
        files: a file for each relative width.
    """

    path: Path
    step: int
    files: Mapping[float, Path]


@dataclass(frozen=True)
class EmaCombination:
    """A linear combination of snapshots that reconstructs an EMA.

    Attributes:
        step: training step of the EMA, that of a snapshot.
        sigma_rel: its relative width.
        parts: files of stored EMAs, each with its coefficient; the coefficients sum to 1.
        residual: relative L2 distance of its profile to the requested one.
    """

    step: int
    sigma_rel: float
    parts: Sequence[tuple[Path, float]]
    residual: float


def write_snapshot(run: Path, step: int, averages: Mapping[str, Mapping[str, Tensor]]) -> Path:
    """Write ``ema/step-N`` of a run to a temporary folder, flush it to disk, and rename it.

    Args:
        run: the run's folder.
        step: completed steps, equal to the number of EMA updates.
        averages: `EMA.averages` as unsharded tensors; those named ``sigma-*`` are written.

    Raises:
        CheckpointError: the disk is full or cannot be written; existing snapshots are unchanged.
    """
    final = run / "ema" / f"step-{step}"
    temporary = final.with_name(f".step-{step}.part")
    written = {name: ema for name, ema in averages.items() if name.startswith(SIGMA_PREFIX)}
    assert written, "there is no power-function EMA to store"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, ema in written.items():
            header = {
                "step": step,
                "sigma_rel": float(name.removeprefix(SIGMA_PREFIX)),
                "beside": " ".join(sorted(written)),
            }
            tensors = {key: to_snapshot_dtype(value) for key, value in ema.items()}
            _save(tensors, temporary / f"{name}.safetensors", header)
        fsync(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync(final.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final} cannot be written: {error}; earlier snapshots are unchanged"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def to_snapshot_dtype(value: Tensor) -> Tensor:
    """A tensor as stored in snapshots, on the CPU: float16, or unchanged if that is too coarse.

    Too coarse means an error above 0.1 % of its norm: values above 65504, or nearly all below 2e-5.
    """
    value = value.detach().cpu().contiguous()
    half = value.half()
    fits = (half.float() - value.float()).norm() <= 1e-3 * value.float().norm()
    return half if fits else value


def list_snapshots(run: Path) -> list[Snapshot]:
    """The complete snapshots of a run by step; torn ones are skipped with a warning.

    Raises:
        CheckpointError: one was written by a newer jitkit.
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
            warn(f"{folder}: torn: {error}; skipped, the other snapshots are used")
    return sorted(found, key=lambda snapshot: snapshot.step)


def remove_after(run: Path, step: int) -> None:
    """Remove snapshots and reconstructed EMAs after a step, and partly written ones.

    For a run that resumes from that step, as its weights may differ from before.
    """
    for path in (run / "ema").glob("*"):
        number = path.name.removesuffix(".safetensors").rpartition("step-")[2]
        if path.suffix == ".part" or (number.isdigit() and int(number) > step):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def plan_combination(run: Path, sigma_rel: float, step: int | None = None) -> EmaCombination:
    """The combination for an EMA at the last snapshot up to a step (default: the newest).

    Raises:
        JitkitError: the width is outside the range of power functions.
        CheckpointError: there is no snapshot up to that step, or the snapshots cannot reproduce
            the width.
    """
    gamma_of(sigma_rel)  # refuses an invalid width
    found = list_snapshots(run)
    if not found:
        raise CheckpointError(
            f"{run}: no snapshots of power-function EMAs; train with "
            "train.ema_sigma_rel=[0.05,0.1] to keep them"
        )
    used = [snapshot for snapshot in found if step is None or snapshot.step <= step]
    if not used:
        raise CheckpointError(f"{run}: no snapshot up to step {step}; the first is {found[0].step}")
    at = used[-1].step
    files = [(s.step, sigma, path) for s in used for sigma, path in s.files.items()]
    steps, widths, paths = zip(*files, strict=True)
    coefficients, residual = fit(steps, widths, at, sigma_rel)
    if residual > MAX_RESIDUAL:
        raise CheckpointError(_out_of_reach(run, steps, widths, at, sigma_rel, residual))
    parts = list(zip(paths, coefficients.tolist(), strict=True))
    return EmaCombination(at, sigma_rel, parts, residual)


def reconstruct(run: Path, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """Post-hoc EMA of a relative width, as if kept in training; float32, on the CPU.

    Needs the memory of one model and its largest tensor, for any number of snapshots.

    Args:
        run: the run's folder.
        sigma_rel: relative width.
        step: the EMA is that of the last snapshot up to this step; default: the newest.

    Raises:
        JitkitError: the width is outside the range of power functions.
        CheckpointError: there are no snapshots, they are of different models, or they cannot
            reproduce the width.
    """
    return _combined(plan_combination(run, sigma_rel, step))


def write_reconstructed(run: Path, sigma_rel: float, step: int | None = None) -> Path:
    """`reconstruct` into ``ema/sigma-W-step-N.safetensors`` of a run, written atomically.

    Raises:
        JitkitError: as `reconstruct`.
        CheckpointError: as `reconstruct`, or the file cannot be written.
    """
    combination = plan_combination(run, sigma_rel, step)
    final = run / "ema" / f"{sigma_name(sigma_rel)}-step-{combination.step}.safetensors"
    temporary = final.with_name(f".{final.name}.part")
    header = {
        "step": combination.step,
        "sigma_rel": float(sigma_rel),
        "residual": combination.residual,
        "made_of": len(combination.parts),
    }
    try:
        _save(_combined(combination), temporary, header)
        temporary.replace(final)
        fsync(final.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{final} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return final


def reconstruction_summary(path: Path) -> str:
    """One-line summary of a file of `write_reconstructed`."""
    header = _header(path)
    return (
        f"{path}: EMA of relative width {header['sigma_rel']} at step {header['step']}, combined "
        f"from {header['made_of']} stored EMAs; residual of its profile "
        f"{100 * float(header['residual']):.2g} %"
    )


def inner_products(steps: Floats, gammas: Floats, step: float, gamma: float) -> Floats:
    """Inner products of many profiles with one, in closed form.

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
    """Least-squares coefficients of stored profiles for a requested profile, and the residual.

    They minimise |p - sum f_i p_i|² + c |f|² subject to sum f_i = 1, because a large part of the
    weights is constant and must be counted once. c is `REGULARIZATION` times |p|².

    Args:
        steps: steps of the stored profiles.
        sigma_rels: their relative widths.
        step: step of the requested profile, no less than the others.
        sigma_rel: its relative width.

    Returns:
        The coefficients f, and the residual |p - sum f_i p_i| / |p|.
    """
    times = np.asarray(steps, np.float64) / step
    gammas = np.array([gamma_of(sigma) for sigma in sigma_rels])
    gamma = gamma_of(sigma_rel)
    rows = [inner_products(times, gammas, *one) for one in zip(times, gammas, strict=True)]
    a, b = np.stack(rows), inner_products(times, gammas, 1.0, gamma)
    norm = (gamma + 1) ** 2 / (2 * gamma + 1)
    regularized = a + REGULARIZATION * norm * np.eye(len(a))
    free, ones = np.linalg.solve(regularized, np.stack([b, np.ones_like(b)], axis=1)).T
    coefficients = free + ones * (1 - free.sum()) / ones.sum()
    squared = norm - 2 * coefficients @ b + coefficients @ a @ coefficients
    return coefficients, float(np.sqrt(max(squared, 0.0) / norm))


def _out_of_reach(
    run: Path,
    steps: Sequence[int],
    widths: Sequence[float],
    at: int,
    sigma_rel: float,
    residual: float,
) -> str:
    """Message: why a width is refused, and which widths are possible."""
    candidates = sorted({*np.geomspace(0.004, MAX_SIGMA_REL, 60).tolist(), *widths})
    groups = groupby(candidates, lambda width: fit(steps, widths, at, width)[1] <= MAX_RESIDUAL)
    possible = [list(group) for within, group in groups if within]
    ranges = listed(f"{group[0]:.3f} to {group[-1]:.3f}" for group in possible)
    return (
        f"{run}: an EMA of relative width {sigma_rel} cannot be reconstructed at step {at}: the "
        f"{len(set(steps))} snapshots of widths {listed(map(str, sorted(set(widths))))} miss its "
        f"profile by {residual:.1%}, and weights are correct within 1 % only up to "
        f"{MAX_RESIDUAL:.1%}. Possible widths: {ranges}; a smaller train.ema_snapshot_every_steps "
        "extends the range"
    )


def _combined(combination: EmaCombination) -> dict[str, Tensor]:
    """The linear combination of stored EMAs, reading one tensor at a time."""
    total: dict[str, Tensor] = {}
    with bar("reading snapshots", len(combination.parts), unit="files") as show:
        for i, (path, coefficient) in enumerate(combination.parts):
            try:
                _add(total, path, coefficient)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path}: torn or not safetensors: {error}") from None
            show(i + 1)
    if bad := [name for name, value in total.items() if not value.isfinite().all()]:
        raise CheckpointError(
            f"the snapshots up to step {combination.step} have values that are not finite, in "
            f"{listed(bad)}; choose an earlier step with --step"
        )
    return total


def _add(total: dict[str, Tensor], path: Path, coefficient: float) -> None:
    with safe_open(path, framework="pt") as file:
        if not total:
            total |= {name: torch.zeros(file.get_slice(name).get_shape()) for name in file.keys()}
        if other := set(file.keys()) ^ set(total):
            raise CheckpointError(
                f"{path} has other parameters than the snapshots before it: "
                f"{listed(sorted(other))}; they are not of the same model"
            )
        for name in total:
            value = file.get_tensor(name)
            if total[name].shape != value.shape:
                raise CheckpointError(
                    f"{path}: {name} is {tuple(value.shape)}, but {tuple(total[name].shape)} in "
                    "the snapshots before it; they are not of the same model"
                )
            total[name].add_(value.float(), alpha=coefficient)  # float64 takes seven times as long


def _read(folder: Path, step: int) -> Snapshot:
    """Open a snapshot and check that it is complete.

    Raises:
        CheckpointError: it was written by a newer jitkit.
        OSError, SafetensorError, ValueError: it is torn.
    """
    files: dict[float, Path] = {}
    expected: set[str] = set()
    for path in sorted(folder.glob(f"{SIGMA_PREFIX}*.safetensors")):
        header = _header(path)
        if int(header["step"]) != step:
            raise ValueError(f"{path.name} is of step {header['step']}")
        files[float(header["sigma_rel"])] = path
        expected |= set(header.get("beside", "").split())
    missing = expected - {path.stem for path in files.values()}
    if missing or not files:
        raise ValueError(f"no {listed(sorted(missing)) or 'EMAs in it'}")
    return Snapshot(folder, step, files)


def _header(path: Path) -> dict[str, str]:
    """The metadata of a file; safetensors has checked its length."""
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("mean", "{}"))
    if not {"format", "step", "sigma_rel"} <= set(header):
        raise ValueError(f"{path.name} has no metadata of an EMA")
    if int(header["format"]) > SNAPSHOT_FORMAT:
        raise CheckpointError(
            f"{path}: format {header['format']} is newer than {SNAPSHOT_FORMAT}, the newest that "
            "this jitkit reads; update jitkit"
        )
    return header


def _save(tensors: dict[str, Tensor], path: Path, header: Mapping[str, object]) -> None:
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    values = {"format": SNAPSHOT_FORMAT, **header}
    text = json.dumps({key: str(value) for key, value in values.items()})
    save_file(tensors, path, metadata={"mean": text})  # one entry, as the order of several varies
    path.chmod(mode)  # safetensors makes it readable by the owner only
    fsync(path)
