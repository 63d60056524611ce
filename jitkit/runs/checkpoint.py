"""Checkpoints: folders of safetensors and JSON, written to a temporary folder and renamed.

```
checkpoints/step-500/
  model.json              layout, conditions, sizes, diffusion, domain: enough to build the model
  facts.safetensors       arrays of the domain's metadata, if it has any
  model.safetensors       the parameters
  ema-0.9999.safetensors  their EMA; one file for each decay
  optimizer.safetensors   the optimizer's tensors, by parameter name
  state.json              step, EMA updates, loss scale, and the size of every file
```

A model sharded over processes (FSDP2) is written as folders ``model``, ``ema-0.9999`` and
``optimizer`` of safetensors shards instead of files, through torch.distributed.checkpoint. Any
number of processes can read either form.

A checkpoint contains no code. A folder with missing or truncated files is torn: it is skipped with
a warning, and the previous checkpoint is used.
"""

from __future__ import annotations

import json
import shutil
import stat
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from jitkit.diffusion.denoiser import Denoiser, build
from jitkit.domain import Domain
from jitkit.errors import CheckpointError, JitkitError, listed, nearest
from jitkit.fields import Condition, Layout, describe, described
from jitkit.optim.ema import EMA, SIGMA_PREFIX
from jitkit.optim.optimizers import Optimizer, optimizer_state
from jitkit.registry import check_instance, domain_class
from jitkit.sections import DomainSection
from jitkit.utils.atomic import fsync
from jitkit.utils.console import warn
from jitkit.utils.distributed import ALONE, Team, copy_into
from jitkit.utils.json_arrays import changes, with_arrays, without_arrays

CHECKPOINT_FORMAT = 1
FACTS = "facts.safetensors"


class _Torn(CheckpointError):
    """Files are missing or truncated; the previous checkpoint is used."""


@dataclass(frozen=True)
class DomainRecord:
    """The adapter and the data that a model was trained with.

    Attributes:
        section: section ``domain`` of the recipe; None if the adapter was given in Python.
        metadata: metadata of the training data, from `Domain.metadata`.
        num_items: items of the training split; None if the model was not trained by jitkit.
    """

    section: Mapping[str, Any] | None
    metadata: Mapping[str, Any]
    num_items: int | None = None


def save_checkpoint(
    run: Path,
    step: int,
    denoiser: Denoiser,
    ema: EMA,
    *,
    optimizer: Optimizer | None = None,
    domain: DomainRecord | None = None,
    scale: tuple[float, int] | None = None,
    team: Team = ALONE,
) -> Path:
    """Write ``checkpoints/step-N`` of a run to a temporary folder, flush it to disk, and rename it.

    All processes must call this; rank 0 writes, and the others write their shards, if any.

    Args:
        scale: the loss scale of float16, and its count of finite steps.

    Raises:
        CheckpointError: the disk is full or cannot be written; earlier checkpoints are untouched.
    """
    final = run / "checkpoints" / f"step-{step}"
    partial = final.with_name(f".step-{step}.part")
    tensors: dict[str, dict[str, Tensor]] = {"model": dict(denoiser.network.named_parameters())}
    tensors |= {f"ema-{name}": average for name, average in ema.averages.items()}
    if optimizer is not None:
        tensors["optimizer"] = _optimizer_tensors(optimizer, denoiser.network)
    state = {"step": step, "ema_updates": ema.updates, "ema": list(ema.averages), "scale": scale}
    try:
        error = _on_main(team, lambda: _save_model(partial, denoiser, domain))
        for name, values in tensors.items() if error is None else ():
            error = error or _shared_error(team, _save_tensors(values, partial / name, team))
        error = error or _on_main(team, lambda: _finish(partial, final, state))
    finally:
        if team.is_main:
            shutil.rmtree(partial, ignore_errors=True)
    if error is not None:
        raise CheckpointError(
            f"{final} cannot be written: {error}; earlier checkpoints are untouched"
        ) from error
    return final


def _on_main(team: Team, write: Callable[[], None]) -> Exception | None:
    """Write on rank 0; the error, if any, is returned on all ranks."""
    try:
        if team.is_main:
            write()
    except (OSError, SafetensorError) as error:
        return _shared_error(team, error)
    return _shared_error(team, None)


def _shared_error(team: Team, error: Exception | None) -> Exception | None:
    """The error of this process, else the first one of any process; None without errors."""
    texts = [text for text in team.all_gather(error and str(error)) if text is not None]
    return error or (OSError(texts[0]) if texts else None)


def _save_model(folder: Path, denoiser: Denoiser, domain: DomainRecord | None) -> None:
    """Make the folder, with ``model.json`` and the arrays of the domain's metadata."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = None
    if domain is not None:
        metadata, arrays = without_arrays(domain.metadata)
        fields = asdict(replace(domain, metadata={})) | {"metadata": metadata}
        record = {"facts" if key == "metadata" else key: value for key, value in fields.items()}
        if arrays:
            save_file({k: torch.from_numpy(v) for k, v in arrays.items()}, folder / FACTS)
    model = {"format": CHECKPOINT_FORMAT, **denoiser.describe(), "domain": record}
    (folder / "model.json").write_text(json.dumps(model, indent=1))


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, team: Team) -> Exception | None:
    """Write a file of tensors, or a folder of shards if they are spread over processes."""
    try:
        if any(isinstance(value, DTensor) for value in tensors.values()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns that each rank wrote its own file
                values = {name: value.detach() for name, value in tensors.items()}
                writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
                save_shards(values, storage_writer=writer)
        elif team.is_main:
            values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(values, path.with_name(f"{path.name}.safetensors"))
    except (OSError, SafetensorError, CheckpointException) as error:
        return OSError(str(error))
    return None


def _finish(partial: Path, final: Path, state: Mapping[str, Any]) -> None:
    """Write ``state.json`` with the sizes of all files, flush everything, and rename the folder."""
    files = [file for file in sorted(partial.rglob("*")) if file.is_file()]
    mode = stat.S_IMODE((partial / "model.json").stat().st_mode)
    for file in files:
        file.chmod(mode)  # safetensors makes files that only their owner can read
    sizes = {str(file.relative_to(partial)): file.stat().st_size for file in files}
    (partial / "state.json").write_text(json.dumps(dict(state) | {"files": sizes}, indent=1))
    for path in [*partial.rglob("*"), partial]:
        fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    fsync(final.parent)


def prune(run: Path, keep: int, every: int | None = None) -> None:
    """Remove all but the newest ``keep`` whole checkpoints of a run.

    Checkpoints at multiples of ``every`` steps stay.
    """
    kept = 0
    for step in _steps(run):
        folder = run / "checkpoints" / f"step-{step}"
        if every and step % every == 0:
            continue
        if kept >= keep:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(_Torn):  # if a torn one counted, the last whole one could be removed
            open_checkpoint(folder)
            kept += 1
    for leftover in (run / "checkpoints").glob(".step-*.part"):
        shutil.rmtree(leftover, ignore_errors=True)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk, with file sizes checked; tensors are read on request."""

    path: Path
    state: Mapping[str, Any]
    model: Mapping[str, Any]

    @property
    def run(self) -> Path:
        """The folder of its run."""
        return self.path.parent.parent

    @property
    def step(self) -> int:
        """Completed training steps."""
        return int(self.state["step"])

    @property
    def ema_names(self) -> list[str]:
        """Names of its EMAs of the parameters; the first is the default for sampling."""
        return list(self.state["ema"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU.

        Raises:
            CheckpointError: the file is missing or torn.
        """
        return read_tensors(self.path / f"{name}.safetensors")

    @property
    def metadata(self) -> dict[str, Any]:
        """The domain's metadata of its training data.

        Raises:
            CheckpointError: its arrays are missing or torn.
        """
        metadata = self.model["domain"]["facts"]
        if not (self.path / FACTS).is_file():
            return metadata
        arrays = self.tensors(FACTS.removesuffix(".safetensors"))
        try:
            return with_arrays(metadata, {name: value.numpy() for name, value in arrays.items()})
        except KeyError as error:
            raise CheckpointError(f"{self.path / FACTS}: no array {error}") from None

    @property
    def has_domain(self) -> bool:
        """Whether it records an adapter to open; False if the adapter was given in Python."""
        record = self.model.get("domain")
        return bool(record and record.get("section"))

    def open_domain(self, section: DomainSection | None = None) -> Domain:
        """The adapter it was trained with, with the metadata of the training data.

        Args:
            section: replaces the recorded section.

        Raises:
            CheckpointError: the record is broken, or the adapter has changed since.
        """
        record = self.model["domain"]
        try:
            cls = domain_class(section.name if section else record["section"]["name"])
            return cls.from_metadata(section or cls.Section(**record["section"]), self.metadata)
        except JitkitError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{self.path / 'model.json'}: the installed domain does not accept the section or "
                f"metadata that this model was trained with: {error!r}"
            ) from None

    def build(self) -> Denoiser:
        """The model with newly initialized parameters; its domain is opened on first use."""
        try:
            denoiser = build(self.model)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path / 'model.json'}: not a model: {error}") from None
        if self.has_domain:
            denoiser.open_domain = self.open_domain
        return denoiser


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder ``step-N``.

    Raises:
        CheckpointError: it is torn, or not a checkpoint; the text names the missing or short file.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        model = json.loads((path / "model.json").read_text())
        files = dict(state["files"])
        state = state | {"step": int(state["step"]), "ema": [str(name) for name in state["ema"]]}
        version = int(model["format"])
    except FileNotFoundError as error:
        raise _Torn(f"{path}: torn: no {Path(error.filename).name}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _Torn(f"{path}: torn: {error}") from None
    if version > CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than this jitkit reads ({CHECKPOINT_FORMAT}); "
            "update jitkit"
        )
    for name, size in files.items():
        file = path / name
        actual = file.stat().st_size if file.is_file() else None
        if actual != size:
            problem = "is missing" if actual is None else f"has {actual} bytes of {size}"
            raise _Torn(f"{path}: torn: {name} {problem}")
    return Checkpoint(path, state, model)


def newest(run: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run; torn ones are skipped with a warning.

    Raises:
        CheckpointError: the newest is of a newer jitkit (resuming from an earlier one would be
            wrong), or there are checkpoints and none is whole.
    """
    steps = _steps(run)
    for step in steps:
        try:
            return open_checkpoint(run / "checkpoints" / f"step-{step}")
        except _Torn as error:
            warn(f"{error}; trying the previous checkpoint")
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
    domain: Domain | None = None,
) -> Denoiser:
    """A trained model, in eval mode, in float32; ``denoiser.network.autocast = torch.bfloat16`` is
    faster on hardware that has it.

    Args:
        path: a run's folder (its newest checkpoint is loaded) or one of its ``step-N`` folders.
        device: where to put it; a GPU if there is one, else the CPU, if not given.
        ema: the EMA of the parameters to load: its decay, ``"sigma-0.1"`` for a power-function EMA
            or one that `jitkit ema` made, or ``"none"`` for the raw parameters; by default the
            first EMA that the run keeps, if any.
        domain: the adapter of the data; needed to decode and write samples only if the model was
            trained with an adapter given in Python.

    Raises:
        CheckpointError: there is no whole checkpoint, no such EMA, or parameters are missing,
            unexpected or of the wrong shape (all are listed); or ``domain`` differs from the model
            in axes, channels or conditions.
        RecipeError: ``domain`` is a class.
    """
    check_instance(domain)
    checkpoint = find_checkpoint(Path(path))
    denoiser = checkpoint.build()
    if domain is not None:
        _check_fits(denoiser, domain, checkpoint.path)
        denoiser.domain = domain
    name = ema_name(checkpoint, ema)
    path = checkpoint.path / ("model.safetensors" if name == "none" else f"ema-{name}.safetensors")
    if name not in ("none", *checkpoint.ema_names):
        path = posthoc_ema_file(checkpoint.run, name, checkpoint.step) or path
    load_weights(denoiser.network, read_tensors(path), str(path))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return denoiser.to(device).eval()


def layout_difference(
    model: Mapping[str, Any], layout: Layout, conditions: Mapping[str, Condition]
) -> list[str]:
    """How data differ from those a model was built for, as ``"layout.channels.0: u -> v"``.

    Args:
        model: layout and conditions as in ``model.json``.
        layout, conditions: those of the data.
    """
    both = (describe(*described(model)), describe(layout, conditions))  # new keys get defaults
    return changes(*(json.loads(json.dumps(each)) for each in both))


def _check_fits(denoiser: Denoiser, domain: Domain, where: Path) -> None:
    """Refuse a domain whose samples differ from the model's.

    The model's own choices are not compared: patch, channels of positions, condition dropout.
    """

    def bare(of: Denoiser | Domain) -> tuple[Layout, dict[str, Condition]]:
        conditions = {name: replace(c, drop=0.0) for name, c in of.conditions.items()}
        return of.layout.of_samples, conditions

    if different := layout_difference(describe(*bare(denoiser)), *bare(domain)):
        lines = "".join(f"\n  {line}" for line in different[:20])
        raise CheckpointError(
            f"domain {type(domain).__name__} does not fit the model of {where}, which was built "
            f"for other data:{lines}\ngive the domain that it was trained with"
        )


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint of a run's folder, or of a ``step-N`` folder itself.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "state.json").is_file():
        return open_checkpoint(path)
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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a folder of shards of that name, on the CPU.

    Raises:
        CheckpointError: it is missing or torn.
    """
    try:
        shards = path.with_suffix("")
        return _from_shards(shards) if shards.is_dir() else load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError, CheckpointException) as error:
        raise CheckpointError(f"{path}: torn or not safetensors: {error}") from None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors into a module's parameters; names must match exactly.

    Raises:
        CheckpointError: missing or unexpected names, wrong shapes, values not finite; all listed.
    """
    check_weights(dict(module.named_parameters()), tensors, where)
    for name, parameter in module.named_parameters():
        copy_into(parameter, tensors[name])


def check_weights(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str
) -> None:
    """Check names, shapes and values as `load_weights` does, without loading."""
    errors = []
    if missing := [name for name in expected if name not in tensors]:
        errors.append(f"missing: {listed(missing)}")
    if unexpected := [name for name in tensors if name not in expected]:
        errors.append(f"unexpected: {listed(unexpected)}")
    wrong = [
        f"{name} {tuple(tensors[name].shape)} where the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if wrong:
        errors.append(f"wrong shape: {listed(wrong)}")
    if broken := [name for name, value in tensors.items() if not value.isfinite().all()]:
        errors.append(f"not finite: {listed(broken)}")
    if errors:
        raise CheckpointError(f"{where} does not fit the model; " + "; ".join(errors))


def restore(checkpoint: Checkpoint, denoiser: Denoiser, ema: EMA, optimizer: Optimizer) -> None:
    """Restore parameters, EMAs and optimizer from a checkpoint, bit for bit.

    Raises:
        CheckpointError: something does not fit; only the parameters may have been changed then.
    """
    network = denoiser.network
    load_weights(network, checkpoint.tensors("model"), str(checkpoint.path / "model.safetensors"))
    for name, average in ema.averages.items():
        file = f"ema-{ema_name(checkpoint, name)}"
        tensors = checkpoint.tensors(file)
        check_weights(average, tensors, str(checkpoint.path / f"{file}.safetensors"))
        for key, value in average.items():
            copy_into(value, tensors[key])
        del tensors  # free memory before the next file is read
    ema.updates = int(checkpoint.state["ema_updates"])
    tensors = checkpoint.tensors("optimizer")
    for name, parameter in network.named_parameters():
        entries, keys = optimizer_state(optimizer, parameter)
        for key in keys:
            if f"{key}/{name}" not in tensors:
                where = checkpoint.path / "optimizer.safetensors"
                raise CheckpointError(f"{where}: no {key}/{name}")
            value = tensors[f"{key}/{name}"].to(parameter.device)
            if key != "step":
                entries[key] = torch.empty_like(parameter)
                copy_into(entries[key], value)
            else:
                entries[key] = value


def ema_name(checkpoint: Checkpoint, requested: float | str | None) -> str:
    """The name of an EMA of a checkpoint, or of one that `jitkit ema` made for its run.

    ``"none"`` is the raw parameters; they are the default if the checkpoint has no EMA.

    Raises:
        CheckpointError: there is no such EMA.
    """
    if requested == "none" or (requested is None and not checkpoint.ema_names):
        return "none"
    if requested is None:
        return checkpoint.ema_names[0]
    name = _canonical(str(requested))
    run = checkpoint.run
    if name in checkpoint.ema_names or posthoc_ema_file(run, name, checkpoint.step):
        return name
    hint = f"; make it with: jitkit ema {run} --sigma-rel {name.removeprefix('sigma-')}"
    raise CheckpointError(
        f"{checkpoint.path}: no EMA {requested}; it has {listed(checkpoint.ema_names)}, and none "
        f"for the raw parameters{hint if name.startswith('sigma-') else ''}"
    )


def _canonical(name: str) -> str:
    """An EMA's name as it is stored: ``0.10`` is ``0.1``."""
    start = SIGMA_PREFIX if name.startswith(SIGMA_PREFIX) else ""
    with suppress(ValueError):
        return f"{start}{float(name.removeprefix(start))}"
    return name


def posthoc_ema_file(run: Path, name: str, step: int) -> Path | None:
    """The newest file of an EMA, as ``sigma-0.1``, that `jitkit ema` made up to a step of a run."""
    start, end = f"{name}-step-", ".safetensors"
    files = {
        int(number): path
        for path in (run / "ema").glob(f"{start}*{end}")
        if (number := path.name.removeprefix(start).removesuffix(end)).isdigit()
    }
    usable = [number for number in files if number <= step]
    return files[max(usable)] if usable else None


def _from_shards(folder: Path) -> dict[str, Tensor]:
    """The whole tensors of a folder of shards, read in this process only."""
    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is no process group
        entries = reader.read_metadata().state_dict_metadata
        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        load_shards(tensors, storage_reader=reader, no_dist=True)
    return tensors


def _steps(run: Path) -> list[int]:
    """Steps of a run's checkpoints, newest first."""
    folder = run / "checkpoints"
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    steps = [name.removeprefix("step-") for name in names if name.startswith("step-")]
    return sorted((int(step) for step in steps if step.isdigit()), reverse=True)


def _optimizer_tensors(optimizer: Optimizer, network: nn.Module) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer_state(optimizer, parameter)[0].items()
    }
