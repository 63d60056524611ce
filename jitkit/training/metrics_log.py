"""Training log: metrics of each step, throughput and status of a run, also sent to the trackers.

learner ─▶ StepResult, losses on the device ─ add ─▶ pending ─ flush ─▶ metrics.jsonl, trackers
meter ─ report_speed ─▶ speed.jsonl, trackers, a line if there is no progress bar
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from jitkit.data import BatchPlan
from jitkit.errors import Stopped, listed
from jitkit.nn.flops import macs
from jitkit.nn.memory import GIB, free_bytes, training_bytes
from jitkit.optim.optimizers import peak_learning_rate
from jitkit.recipe.load import Recipe
from jitkit.runs.run_dir import append_lines, write_text
from jitkit.training.memory_plan import memory_settings
from jitkit.training.step import Learner, StepResult
from jitkit.training.throughput import Meter, peak_flops
from jitkit.training.trackers import open_trackers
from jitkit.training.validation import loss_by_bin
from jitkit.utils.console import say, warn
from jitkit.utils.distributed import Team

FLUSH_SECONDS = 1.0  # between reads of the loss from the device
LINE_SECONDS = 60.0  # between lines of loss and speed if standard error is no terminal
SPEED_SECONDS = 20.0  # between measurements of throughput
RETRY_SECONDS = 60.0  # between attempts to write to a full disk
MAX_NAMED = 20  # skipped items that are named on screen


@dataclass
class _Pending:
    """A step to be logged; its losses are still on the device.

    Attributes:
        items: item indices of the whole batch, if the step was skipped.
    """

    step: int
    result: StepResult
    items: Sequence[int]
    validation: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The step's line of ``metrics.jsonl``; synchronizes with the device."""
        result, items = self.result, self.items
        line: dict[str, Any] = {"step": self.step, "lr": result.learning_rate}
        if result.skip_reason is None:
            line |= {"loss": float(result.losses.mean()), "gradient": result.gradient_norm}
            return line | {"loss_bins": loss_by_bin(result.losses, result.t)} | self.validation
        if result.overflow:
            line |= {"loss": float(result.losses.mean()), "overflow": result.skip_reason}
            return line | self.validation
        finite = result.losses.isfinite().tolist()
        bad_items = [item for item, good in zip(items, finite, strict=True) if not good]
        why, loss = result.skip_reason, None if bad_items else float(result.losses.mean())
        if bad_items:
            why = f"the loss of {len(bad_items)} of {len(items)} samples is not finite"
        line |= {"loss": loss, "skipped": why, "items": bad_items or list(items)}
        return line | self.validation


class RunLog:
    """The log of one run, gathered from all ranks; only rank 0 writes.

    Records that cannot be written to a full disk are kept and written later.

    Attributes:
        meter: throughput and time spent waiting for data; exists while the log is open.
    """

    def __init__(self, recipe: Recipe, folder: Path, learner: Learner, team: Team) -> None:
        self.recipe, self.folder, self.learner, self.team = recipe, folder, learner, team
        self._pending: list[_Pending] = []
        self._unwritten: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._retry_at: float | None = None
        self._skipped_items: dict[str, str] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Context of the training loop, in which trackers and meter exist."""
        self._line_at = self._speed_at = time.monotonic()
        recipe = self.recipe.model_dump(mode="json")
        names = self.recipe.train.log if self.team.is_main else []
        self._trackers = open_trackers(names, self.folder, recipe, step=self.learner.step)
        # the backward pass does twice the work of the forward pass
        flops = 3 * 2 * macs(self.learner.denoiser.network)
        self.meter = Meter(flops_per_sample=flops, peak_flops=None, device=self.learner.device)
        try:
            yield
        finally:
            self._trackers.close()

    @contextmanager
    def status(self) -> Iterator[None]:
        """Context of the run that keeps its state in ``status.json``, for scripts that restart it.

        "running" (also after a kill), "stopped" (by a signal, saved), "failed" or "done".
        """

        def write(state: str, error: BaseException | None = None) -> None:
            status = {"state": state, "step": self.learner.step, "steps": self.recipe.train.steps}
            if self.team.is_main:
                with suppress(OSError):
                    why = {} if error is None else {"why": str(error)}
                    write_text(self.folder / "status.json", json.dumps(status | why, indent=1))

        write("running")
        try:
            yield
        except Stopped as stopped:
            write("stopped", stopped)
            raise
        except Exception as error:
            write("failed", error)
            raise
        write("done")

    # Metrics of the steps

    def add(self, result: StepResult, items: Sequence[int]) -> None:
        """Log the learner's last step at the next flush.

        Args:
            items: item indices of the whole batch; needed if the step was skipped.
        """
        self._pending.append(_Pending(self.learner.step, result, items))

    def add_validation(self, losses: dict[str, Any]) -> None:
        """Log validation losses with the last step."""
        if self._pending:
            self._pending[-1].validation = losses

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush; each rank has its own clock."""
        return time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self) -> list[dict[str, Any]]:
        """Read the pending losses from the device, write them if possible, and return them."""
        pending, self._pending = self._pending, []
        self._flushed = time.monotonic()
        records = [each.record() for each in self._gather(pending)]
        if not self.team.is_main:
            return records
        for record in records:
            if record["loss"] is not None:
                self.meter.smooth(record["loss"])
            self._trackers.log(record["step"], _flat(record))
        self._unwritten += records
        self._write()
        return records

    def _gather(self, pending: Sequence[_Pending]) -> list[_Pending]:
        """The same steps with the losses of all ranks, in batch order."""
        if self.team.world == 1:
            return list(pending)
        local = [(each.result.losses.cpu(), each.result.t.cpu()) for each in pending]
        parts = (self.recipe.train.accumulate, -1)
        gathered = []
        ranks = zip(*self.team.all_gather(local), strict=True)
        for each, pairs in zip(pending, ranks, strict=True):
            losses, t = (
                torch.stack([values.reshape(parts) for values in kind], dim=1).flatten()
                for kind in zip(*pairs, strict=True)
            )
            gathered.append(replace(each, result=replace(each.result, losses=losses, t=t)))
        return gathered

    # A full disk

    def all_written(self) -> bool:
        """Whether every flushed record is in ``metrics.jsonl``, after a retry if one was not; the
        same on all ranks."""
        if not self.team.max([bool(self._unwritten)])[0]:
            return True
        return bool(self.team.max([self.team.is_main and self._write()])[0])

    def _write(self) -> bool:
        """Write the unwritten records to ``metrics.jsonl``; return whether this succeeded."""
        try:
            append_lines(self.folder / "metrics.jsonl", self._unwritten)
        except OSError as error:
            self.warn_disk(f"metrics.jsonl cannot be written: {error}")
            return False
        self._unwritten.clear()
        return True

    def warn_disk(self, what: str) -> None:
        """Warn that something cannot be written, and schedule a retry."""
        if self._retry_at is None or time.monotonic() > self._retry_at:
            warn(f"{what}; nothing is lost, retrying every {RETRY_SECONDS:.0f} s")
            self._retry_at = time.monotonic() + RETRY_SECONDS

    @property
    def retry_is_due(self) -> bool:
        """Whether it is time to retry a failed write."""
        return self._retry_at is not None and time.monotonic() > self._retry_at

    def cancel_retry(self) -> None:
        """Cancel the scheduled retry, because everything is written."""
        self._retry_at = None

    # Progress

    def report_speed(self) -> None:
        """Print a line periodically if there is no progress bar; log throughput."""
        now, step = time.monotonic(), self.learner.step
        if not sys.stderr.isatty() and now - self._line_at > LINE_SECONDS:
            self._line_at = now
            say(f"step {step} of {self.recipe.train.steps}: {self.meter.line()}")
        if now - self._speed_at > SPEED_SECONDS and self.team.is_main:
            self._speed_at = now
            if self.meter.peak_flops is None:
                dtype = self.learner.denoiser.network.autocast or torch.float32
                with self.meter.paused():
                    self.meter.peak_flops = peak_flops(self.learner.device, dtype)
            speed = {"step": step} | self.meter.read()
            self._trackers.log(step, {f"speed/{k}": v for k, v in speed.items() if k != "step"})
            with suppress(OSError):
                append_lines(self.folder / "speed.jsonl", [speed])

    def add_preview(self, path: Path) -> None:
        """Log the preview image of samples drawn at this step."""
        self._trackers.image(self.learner.step, "samples", path)
        say(f"step {self.learner.step}: samples in {path}")

    def add_skipped_items(self, items: Sequence[tuple[str, str]]) -> None:
        """Record skipped data items with their reasons; warn of each once, of the first 20 only."""
        for name, why in items:
            if name not in self._skipped_items and len(self._skipped_items) < MAX_NAMED:
                warn(f"skipped {name}: {why}")
            self._skipped_items[name] = why
        if items:
            lines = "".join(f"{name}: {why}\n" for name, why in sorted(self._skipped_items.items()))
            suffix = "" if self.team.is_main else f"-{self.team.rank}"
            with suppress(OSError):
                write_text(self.folder / f"skipped_items{suffix}.txt", lines)


def print_header(recipe: Recipe, learner: Learner, plan: BatchPlan, team: Team) -> None:
    """Print what is about to be trained, and warn if memory may be too small."""
    denoiser, section = learner.denoiser, recipe.train
    network, layout = denoiser.network, denoiser.layout
    parameters = sum(p.numel() for p in network.parameters())
    sizes = " x ".join(str(size) for size in layout.grid)
    conditions = listed(denoiser.conditions) or "nothing"
    say(
        f"{recipe.name}: {len(layout.channels)} channels on {sizes} cells, "
        f"{layout.num_tokens} tokens of {layout.patch_features} features, conditions: {conditions}"
    )
    lr = peak_learning_rate(recipe.train)
    say(
        f"model: {parameters:,} parameters on {learner.device}; {learner.precision}; "
        f"{'compiled; ' if learner.compiled else ''}"
        f"noise scale {denoiser.diffusion.noise_scale:g}; learning rate {lr:.3g}"
    )
    if team.world > 1:
        say(f"{team.world} processes ({learner.parallel}), {plan.part_size} samples each at a time")
    if recipe.sample.guidance != 1 and not any(c.drop for c in denoiser.conditions.values()):
        warn("sample.guidance (CFG) has no effect: no condition is dropped in training")
    settings = memory_settings(section, network, learner.device, processes=team.world)
    checkpointing = section.checkpoint_activations
    parts = training_bytes(network, plan.part_size, **settings, checkpointing=checkpointing)
    allocated = parts["weights"] + parts["ema"]
    if (needed := sum(parts.values())) > (free := free_bytes(learner.device) + allocated):
        warn(
            f"training needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} are free; if it "
            "fails, raise train.accumulate or set train.checkpoint_activations=true"
        )


def _flat(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics of a record by name, bins as ``name/0`` to ``name/9``; other values are left out."""
    flat: dict[str, float | None] = {}
    for key, value in record.items():
        if isinstance(value, list) and key != "items":
            flat |= {f"{key}/{i}": v for i, v in enumerate(value)}
        elif isinstance(value, int | float) and key != "step":
            flat[key] = value
    return flat
