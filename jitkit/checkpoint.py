"""Checkpoints: a folder of safetensors and JSON, written aside and renamed.

```
checkpoints/step-500/
  model.json              layout, conditions, sizes, diffusion, domain: enough to build the model
  model.safetensors       the weights
  ema-0.9999.safetensors  a running mean of them; one file for each decay
  optimizer.safetensors   the optimizer's tensors, by name of the weight
  state.json              step, EMA's updates, and the size of every file
```

Nothing in it is code. A folder whose files are missing or short is torn: it is passed over with a
warning, and the one before it is used.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jitkit.denoiser import Denoiser, build
from jitkit.domain import Domain, domain_class
from jitkit.ema import EMA
from jitkit.errors import CheckpointError, JitkitError, listed, nearest
from jitkit.progress import warn
from jitkit.sections import DomainSection

FORMAT = 1


class _Torn(CheckpointError):
    """Files are missing or short; the checkpoint before it is used."""


@dataclass(frozen=True)
class DomainRecord:
    """Which adapter a model was trained with, and on what.

    Attributes:
        section: section ``domain`` of the recipe; None where the adapter was given in Python.
        facts: what the data told, `Domain.facts`.
        num_items: items of the training split; None where it was not trained here.
    """

    section: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    num_items: int | None = None


def save(
    run: Path,
    step: int,
    denoiser: Denoiser,
    ema: EMA,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    domain: DomainRecord | None = None,
) -> Path:
    """Write ``checkpoints/step-N`` of a run aside, flush it to disk, and rename it.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is untouched.
    """
    final = run / "checkpoints" / f"step-{step}"
    aside = final.with_name(f".step-{step}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        record = None if domain is None else asdict(domain)
        model = {"format": FORMAT, **denoiser.describe(), "domain": record}
        (aside / "model.json").write_text(json.dumps(model, indent=1))
        _save_tensors(dict(denoiser.network.named_parameters()), aside / "model.safetensors")
        for decay, mean in ema.means.items():
            _save_tensors(mean, aside / f"ema-{decay}.safetensors")
        if optimizer is not None:
            tensors = _optimizer_tensors(optimizer, denoiser.network)
            _save_tensors(tensors, aside / "optimizer.safetensors")
        state = {
            "step": step,
            "ema_updates": ema.updates,
            "ema": list(ema.means),
            "files": {file.name: file.stat().st_size for file in sorted(aside.iterdir())},
        }
        (aside / "state.json").write_text(json.dumps(state, indent=1))
        for file in [*aside.iterdir(), aside]:
            _flush(file)
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        _flush(final.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{final} cannot be written: {error}; the checkpoints before it are untouched"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return final


def prune(run: Path, keep: int) -> None:
    """Remove what is older than the newest ``keep`` whole checkpoints of a run."""
    kept = 0
    for step in _steps(run):
        folder = run / "checkpoints" / f"step-{step}"
        if kept >= keep:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(_Torn):  # a torn one does not count, or it could push out the last whole one
            read(folder)
            kept += 1
    for rest in (run / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(rest, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, its sizes checked; tensors are read when asked for."""

    path: Path
    state: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return int(self.state["step"])

    @property
    def decays(self) -> list[float]:
        """Decays of the running means that it holds; the first is the one for samples."""
        return [float(decay) for decay in self.state["ema"]]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU.

        Raises:
            CheckpointError: the file is missing or torn.
        """
        path = self.path / f"{name}.safetensors"
        try:
            return load_file(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: torn or not safetensors: {error}") from None

    @property
    def has_domain(self) -> bool:
        """Whether it says which adapter it was trained with; not where that was given in Python."""
        record = self.model.get("domain")
        return bool(record and record.get("section"))

    def open_domain(self, section: DomainSection | None = None) -> Domain:
        """The adapter it was trained with, on what the data told then.

        Args:
            section: in place of the section that it was trained with.

        Raises:
            CheckpointError: the record is broken, or the adapter has changed since.
        """
        record = self.model["domain"]
        try:
            cls = domain_class(section.name if section else record["section"]["name"])
            return cls(section or cls.Section(**record["section"]), facts=record["facts"])
        except JitkitError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / 'model.json'}: the installed domain does not take what this model "
                f"was trained with: {error!r}"
            ) from None

    def build(self) -> Denoiser:
        """The model with fresh weights, and its domain to be opened when it is asked for."""
        try:
            denoiser = build(self.model)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path / 'model.json'}: not a model: {error}") from None
        if self.has_domain:
            denoiser.open_domain = self.open_domain
        return denoiser


def read(path: Path) -> Checkpoint:
    """The checkpoint in a folder ``step-N``.

    Raises:
        CheckpointError: it is torn, or not one; the text says what is missing or short.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        model = json.loads((path / "model.json").read_text())
        files = dict(state["files"])
        state = state | {"step": int(state["step"]), "ema": [float(d) for d in state["ema"]]}
        version = int(model["format"])
    except FileNotFoundError as error:
        raise _Torn(f"{path}: torn: no {Path(error.filename).name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Torn(f"{path}: torn: {error}") from None
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than this jitkit reads ({FORMAT}); update jitkit"
        )
    for name, size in files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found} bytes of {size}"
            raise _Torn(f"{path}: torn: {name} {what}")
    return Checkpoint(path, state, model)


def newest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; torn ones are passed over with a warning.

    Raises:
        CheckpointError: the newest is of a newer jitkit, and going on before it would be wrong; or
            there are some and none is whole.
    """
    steps = _steps(run)
    for step in steps:
        try:
            return read(run / "checkpoints" / f"step-{step}")
        except _Torn as error:
            warn(f"{error}; trying the one before it")
    if steps:
        raise CheckpointError(
            f"{run / 'checkpoints'}: none of {len(steps)} checkpoints is whole; start another run "
            "with --new or --run DIR"
        )
    return None


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    ema: float | str | None = None,
) -> Denoiser:
    """A trained model, in eval mode, in float32; ``denoiser.autocast = torch.bfloat16`` is faster.

    Args:
        path: a run's folder (its newest checkpoint is taken) or one of its ``step-N`` folders.
        device: where to put it; a GPU if there is one, else the CPU, where not given.
        ema: decay of the running mean to use, or ``"none"`` for the weights themselves; the first
            that the run keeps, if any, where not given.

    Raises:
        CheckpointError: there is no whole checkpoint, no such mean, or weights are missing,
            unexpected or of the wrong shape; all of them are listed.
    """
    found = find(Path(path))
    denoiser = found.build()
    own = ema == "none" or (ema is None and not found.decays)
    name = "model" if own else f"ema-{_decay(found, ema)}"
    load_weights(denoiser.network, found.tensors(name), str(found.path / f"{name}.safetensors"))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return denoiser.to(device).eval()


def find(path: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or of a ``step-N`` folder itself.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "state.json").is_file():
        return read(path)
    if path.is_dir() and (found := newest(path)):
        return found
    if not path.is_dir():
        others = path.parent.iterdir() if path.parent.is_dir() else []
        if path.exists():
            raise CheckpointError(
                f"{path} is a file; give a run's folder, or its checkpoints/step-N"
            )
        raise CheckpointError(
            f"{path}: no such folder{nearest(path.name, (other.name for other in others))}"
        )
    raise CheckpointError(
        f"{path}: no checkpoint in it; expected a run's folder with checkpoints/step-N"
    )


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put tensors into a module's parameters, every one of them and nothing else.

    Raises:
        CheckpointError: names that are missing or unexpected and shapes that differ, all listed.
    """
    check_weights(dict(module.named_parameters()), tensors, where)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(tensors[name])


def check_weights(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Names and shapes, compared as `load_weights` does, without loading."""
    mistakes = []
    if missing := [name for name in expected if name not in tensors]:
        mistakes.append(f"missing: {listed(missing)}")
    if unexpected := [name for name in tensors if name not in expected]:
        mistakes.append(f"unexpected: {listed(unexpected)}")
    wrong = [
        f"{name} {tuple(tensors[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        mistakes.append(f"wrong shape: {listed(wrong)}")
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        mistakes.append(f"not finite: {listed(broken)}")
    if mistakes:
        raise CheckpointError(f"{where} does not fit the model; " + "; ".join(mistakes))


def restore(
    found: Checkpoint, denoiser: Denoiser, ema: EMA, optimizer: torch.optim.Optimizer
) -> None:
    """Weights, means and optimizer as they were when the checkpoint was written.

    Raises:
        CheckpointError: something does not fit; nothing has been changed then but the weights.
    """
    network = denoiser.network
    load_weights(network, found.tensors("model"), str(found.path / "model.safetensors"))
    means = {}
    for decay, mean in ema.means.items():
        name = f"ema-{_decay(found, decay)}"
        means[decay] = found.tensors(name)
        check_weights(mean, means[decay], str(found.path / f"{name}.safetensors"))
    ema.load(int(found.state["ema_updates"]), means)
    tensors = found.tensors("optimizer")
    for name, parameter in network.named_parameters():
        entries = {}
        for key in ("exp_avg", "exp_avg_sq", "step"):
            if f"{key}/{name}" not in tensors:
                raise CheckpointError(f"{found.path / 'optimizer.safetensors'}: no {key}/{name}")
            entries[key] = tensors[f"{key}/{name}"].to(parameter.device)
        optimizer.state[parameter] = entries


def _decay(found: Checkpoint, asked: float | str | None) -> float:
    if asked is None:
        return found.decays[0]
    try:
        matches = [decay for decay in found.decays if decay == float(asked)]
    except ValueError:
        matches = []
    if not matches:
        raise CheckpointError(
            f"{found.path}: no EMA of decay {asked}; it has "
            f"{listed(str(decay) for decay in found.decays)}, and none for the weights themselves"
        )
    return matches[0]


def _steps(run: Path) -> list[int]:
    """Steps of a run's checkpoints, newest first."""
    folder = run / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    steps = [name.removeprefix("step-") for name in names if name.startswith("step-")]
    return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def _optimizer_tensors(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    path.chmod(stat.S_IMODE((path.parent / "model.json").stat().st_mode))  # not for us alone


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
