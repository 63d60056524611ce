"""Checkpoints: a folder of safetensors and JSON, written aside and renamed.

```
checkpoints/step-500/
  model.json              layout, conditions, sizes, diffusion, domain: enough to build the model
  facts.safetensors       arrays among what the domain found in its data, where there are any
  model.safetensors       the weights
  ema-0.9999.safetensors  a running mean of them; one file for each
  optimizer.safetensors   the optimizer's tensors, by name of the weight
  state.json              step, EMA's updates, loss scale, and the size of every file
```

Processes that each hold a part of the model (FSDP2) write folders ``model``, ``ema-0.9999``,
``optimizer`` of shards in place of the files, through torch.distributed.checkpoint and still as
safetensors; any number of processes reads either.

Nothing in it is code. A folder whose files are missing or short is torn: it is passed over with a
warning, and the one before it is used.
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
from jitkit.domain import Domain, check_instance, domain_class
from jitkit.errors import CheckpointError, JitkitError, listed, nearest
from jitkit.fields import Condition, Layout, describe, described
from jitkit.optim.ema import EMA, SIGMA
from jitkit.optim.optimizers import Optimizer, state_of
from jitkit.sections import DomainSection
from jitkit.utils.atomic import flush
from jitkit.utils.console import warn
from jitkit.utils.distributed import ALONE, Team, put
from jitkit.utils.json_arrays import changes, with_arrays, without_arrays

CHECKPOINT_FORMAT = 1
FACTS = "facts.safetensors"


class _Torn(CheckpointError):
    """Files are missing or short; the checkpoint before it is used."""


@dataclass(frozen=True)
class DomainRecord:
    """Which adapter a model was trained with, and on what.

    Attributes:
        section: section ``domain`` of the recipe; None where the adapter was given in Python.
        metadata: what the data told, `Domain.metadata`.
        num_items: items of the training split; None where it was not trained here.
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
    """Write ``checkpoints/step-N`` of a run aside, flush it to disk, and rename it.

    All processes of a team ask; rank 0 writes, and the others their parts where they hold any.

    Args:
        scale: the loss scale of float16, and its count of good steps.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was there before is untouched.
    """
    final = run / "checkpoints" / f"step-{step}"
    aside = final.with_name(f".step-{step}.part")
    tensors: dict[str, dict[str, Tensor]] = {"model": dict(denoiser.network.named_parameters())}
    tensors |= {f"ema-{name}": mean for name, mean in ema.means.items()}
    if optimizer is not None:
        tensors["optimizer"] = _optimizer_tensors(optimizer, denoiser.network)
    state = {"step": step, "ema_updates": ema.updates, "ema": list(ema.means), "scale": scale}
    try:
        failed = _attempt(team, lambda: _save_model(aside, denoiser, domain))
        for name, values in tensors.items() if failed is None else ():
            failed = failed or _first(team, _save_tensors(values, aside / name, team))
        failed = failed or _attempt(team, lambda: _finish(aside, final, state))
    finally:
        if team.is_main:
            shutil.rmtree(aside, ignore_errors=True)
    if failed is not None:
        raise CheckpointError(
            f"{final} cannot be written: {failed}; the checkpoints before it are untouched"
        ) from failed
    return final


def _attempt(team: Team, work: Callable[[], None]) -> Exception | None:
    """Have rank 0 write something; what went wrong, known to all."""
    try:
        if team.is_main:
            work()
    except (OSError, SafetensorError) as error:
        return _first(team, error)
    return _first(team, None)


def _first(team: Team, failed: Exception | None) -> Exception | None:
    """What went wrong in any process, known to all."""
    told = [text for text in team.all_gather(failed and str(failed)) if text is not None]
    return failed or (OSError(told[0]) if told else None)


def _save_model(folder: Path, denoiser: Denoiser, domain: DomainRecord | None) -> None:
    """A new folder with ``model.json``, and the arrays of the domain's metadata."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record = None
    if domain is not None:
        metadata, arrays = without_arrays(domain.metadata)
        record = asdict(replace(domain, metadata={})) | {"facts": metadata}
        if arrays:
            save_file({k: torch.from_numpy(v) for k, v in arrays.items()}, folder / FACTS)
    model = {"format": CHECKPOINT_FORMAT, **denoiser.describe(), "domain": record}
    (folder / "model.json").write_text(json.dumps(model, indent=1))


def _save_tensors(tensors: Mapping[str, Tensor], path: Path, team: Team) -> Exception | None:
    """A file of tensors, or a folder of shards where they are spread over processes."""
    try:
        if any(isinstance(value, DTensor) for value in tensors.values()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that every rank wrote its own file, as it should
                values = {name: value.detach() for name, value in tensors.items()}
                writer = HuggingFaceStorageWriter(str(path), save_distributed=True)
                save_shards(values, storage_writer=writer)
        elif team.is_main:
            values = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(values, path.with_name(f"{path.name}.safetensors"))
    except (OSError, SafetensorError, CheckpointException) as error:
        return OSError(str(error))
    return None


def _finish(aside: Path, final: Path, state: Mapping[str, Any]) -> None:
    """The sizes of all files into ``state.json``; everything flushed, and the folder renamed."""
    files = [file for file in sorted(aside.rglob("*")) if file.is_file()]
    mode = stat.S_IMODE((aside / "model.json").stat().st_mode)
    for file in files:
        file.chmod(mode)  # not for us alone, as safetensors makes them
    sizes = {str(file.relative_to(aside)): file.stat().st_size for file in files}
    (aside / "state.json").write_text(json.dumps(dict(state) | {"files": sizes}, indent=1))
    for path in [*aside.rglob("*"), aside]:
        flush(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    flush(final.parent)


def prune(run: Path, keep: int, every: int | None = None) -> None:
    """Remove what is older than the newest ``keep`` whole checkpoints of a run.

    Those of every ``every`` steps stay.
    """
    kept = 0
    for step in _steps(run):
        folder = run / "checkpoints" / f"step-{step}"
        if every and step % every == 0:
            continue
        if kept >= keep:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(_Torn):  # a torn one does not count, or it could push out the last whole one
            open_checkpoint(folder)
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
    def run(self) -> Path:
        """The run that it belongs to."""
        return self.path.parent.parent

    @property
    def step(self) -> int:
        """Steps that were done."""
        return int(self.state["step"])

    @property
    def means(self) -> list[str]:
        """Names of the running means that it holds; the first is the one for samples."""
        return list(self.state["ema"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, on the CPU.

        Raises:
            CheckpointError: the file is missing or torn.
        """
        return read_tensors(self.path / f"{name}.safetensors")

    @property
    def metadata(self) -> dict[str, Any]:
        """What the domain had found in its data.

        Raises:
            CheckpointError: arrays among it are missing or torn.
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
            return cls(section or cls.Section(**record["section"]), metadata=self.metadata)
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


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder ``step-N``.

    Raises:
        CheckpointError: it is torn, or not one; the text says what is missing or short.
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
            f"{path}: format {version} is newer than this jitkit reads ({CHECKPOINT_FORMAT}); update jitkit"
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
            return open_checkpoint(run / "checkpoints" / f"step-{step}")
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
    domain: Domain | None = None,
) -> Denoiser:
    """A trained model, in eval mode, in float32; ``denoiser.autocast = torch.bfloat16`` is faster.

    Args:
        path: a run's folder (its newest checkpoint is taken) or one of its ``step-N`` folders.
        device: where to put it; a GPU if there is one, else the CPU, where not given.
        ema: the running mean to use: its decay, ``"sigma-0.1"`` for a power function's or one that
            `jitkit ema` made, or ``"none"`` for the weights themselves; the first that the run
            keeps, if any, where not given.
        domain: the adapter of the data; needed to decode and write samples only where the model was
            trained with one that was given in Python.

    Raises:
        CheckpointError: there is no whole checkpoint, no such mean, or weights are missing,
            unexpected or of the wrong shape; all of them are listed. Or ``domain`` has other axes,
            channels or conditions than the model.
        RecipeError: ``domain`` is a class.
    """
    check_instance(domain)
    found = find_checkpoint(Path(path))
    denoiser = found.build()
    if domain is not None:
        _check_fits(denoiser, domain, found.path)
        denoiser.domain = domain
    name = mean_named(found, ema)
    path = found.path / ("model.safetensors" if name == "none" else f"ema-{name}.safetensors")
    if name not in ("none", *found.means):
        path = made_mean(found.run, name, found.step) or path
    load_weights(denoiser.network, read_tensors(path), str(path))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return denoiser.to(device).eval()


def layout_difference(
    model: Mapping[str, Any], layout: Layout, conditions: Mapping[str, Condition]
) -> list[str]:
    """Where samples are not those that a model was built for, as ``"layout.channels.0: u -> v"``.

    Args:
        model: layout and conditions as ``model.json`` has them.
        layout, conditions: of the samples.
    """
    both = (describe(*described(model)), describe(layout, conditions))  # what is new has a default
    return changes(*(json.loads(json.dumps(each)) for each in both))


def _check_fits(denoiser: Denoiser, domain: Domain, where: Path) -> None:
    """Stop where a domain's samples are not those of the model.

    How it was built and trained is its own affair: patch, places that attention turns by, drop.
    """

    def bare(of: Denoiser | Domain) -> tuple[Layout, dict[str, Condition]]:
        conditions = {name: replace(c, drop=0.0) for name, c in of.conditions.items()}
        return of.layout.of_samples, conditions

    if different := layout_difference(describe(*bare(denoiser)), *bare(domain)):
        lines = "".join(f"\n  {line}" for line in different[:20])
        raise CheckpointError(
            f"domain {type(domain).__name__} does not fit the model of {where}, which was built "
            f"for other samples:{lines}\ngive the domain that it was trained with"
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
    """The tensors of a file, or of the folder of shards in its place, on the CPU.

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
    """Put tensors into a module's parameters, every one of them and nothing else.

    Raises:
        CheckpointError: names that are missing or unexpected and shapes that differ, all listed.
    """
    check_weights(dict(module.named_parameters()), tensors, where)
    for name, parameter in module.named_parameters():
        put(parameter, tensors[name])


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


def restore(found: Checkpoint, denoiser: Denoiser, ema: EMA, optimizer: Optimizer) -> None:
    """Weights, means and optimizer as they were when the checkpoint was written.

    Raises:
        CheckpointError: something does not fit; nothing has been changed then but the weights.
    """
    network = denoiser.network
    load_weights(network, found.tensors("model"), str(found.path / "model.safetensors"))
    for name, mean in ema.means.items():
        file = f"ema-{mean_named(found, name)}"
        tensors = found.tensors(file)
        check_weights(mean, tensors, str(found.path / f"{file}.safetensors"))
        for key, value in mean.items():
            put(value, tensors[key])
        del tensors  # before the next file is read
    ema.updates = int(found.state["ema_updates"])
    tensors = found.tensors("optimizer")
    for name, parameter in network.named_parameters():
        entries, keys = state_of(optimizer, parameter)
        for key in keys:
            if f"{key}/{name}" not in tensors:
                raise CheckpointError(f"{found.path / 'optimizer.safetensors'}: no {key}/{name}")
            value = tensors[f"{key}/{name}"].to(parameter.device)
            if key != "step":
                entries[key] = torch.empty_like(parameter)
                put(entries[key], value)
            else:
                entries[key] = value


def mean_named(found: Checkpoint, asked: float | str | None) -> str:
    """The name of a running mean that a checkpoint holds, or that was made for its run.

    ``"none"`` stands for the weights themselves, which are meant where it holds no mean.

    Raises:
        CheckpointError: there is no such mean.
    """
    if asked == "none" or (asked is None and not found.means):
        return "none"
    if asked is None:
        return found.means[0]
    name = _canonical(str(asked))
    if name in found.means or made_mean(found.run, name, found.step):
        return name
    hint = f"; make it with: jitkit ema {found.run} --sigma-rel {name.removeprefix('sigma-')}"
    raise CheckpointError(
        f"{found.path}: no EMA {asked}; it has {listed(found.means)}, and none for the weights "
        f"themselves{hint if name.startswith('sigma-') else ''}"
    )


def _canonical(name: str) -> str:
    """A mean's name as it is stored: ``0.10`` is ``0.1``."""
    start = SIGMA if name.startswith(SIGMA) else ""
    with suppress(ValueError):
        return f"{start}{float(name.removeprefix(start))}"
    return name


def made_mean(run: Path, name: str, step: int) -> Path | None:
    """The newest file of a mean, as ``sigma-0.1``, that `jitkit ema` made up to a step of a run."""
    start, end = f"{name}-step-", ".safetensors"
    made = {
        int(number): path
        for path in (run / "ema").glob(f"{start}*{end}")
        if (number := path.name.removeprefix(start).removesuffix(end)).isdigit()
    }
    return made[max(found)] if (found := [number for number in made if number <= step]) else None


def _from_shards(folder: Path) -> dict[str, Tensor]:
    """The whole tensors of a folder of shards, read in this process alone."""
    reader = HuggingFaceStorageReader(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no process group, which is meant
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
        for key, value in state_of(optimizer, parameter)[0].items()
    }
