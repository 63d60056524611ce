"""What a run tells while it trains: its numbers, how fast it goes, how it stands.

learner ─▶ Taken, losses on the device ─ add ─▶ waiting ─ flush ─▶ metrics.jsonl, trackers
meter ─ tell ─▶ speed.jsonl, trackers, a line where there is no bar
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
from jitkit.training.validation import by_bin
from jitkit.utils.console import say, warn
from jitkit.utils.distributed import Team

FLUSH_SECONDS = 1.0  # between readings of the loss from the device
TELL_SECONDS = 60.0  # between lines of loss where there is no terminal to draw a bar on
SPEED_SECONDS = 20.0  # between readings of how fast the run goes
RETRY_SECONDS = 60.0  # between attempts to write to a full disk
NOTED = 20  # items that are passed over and named on screen, at most


@dataclass
class _Waiting:
    """What a step is to log; its losses are still on the device.

    Attributes:
        items: of the whole batch, where the step was passed over.
    """

    step: int
    result: StepResult
    items: Sequence[int]
    held_out: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The step's line of ``metrics.jsonl``; waits for the device."""
        result, items = self.result, self.items
        told: dict[str, Any] = {"step": self.step, "lr": result.rate}
        if result.bad is None:
            told |= {"loss": float(result.losses.mean()), "gradient": result.gradient}
            return told | {"loss_bins": by_bin(result.losses, result.t)} | self.held_out
        if result.overflow:
            told |= {"loss": float(result.losses.mean()), "overflow": result.bad}
            return told | self.held_out
        finite = result.losses.isfinite().tolist()
        culprits = [item for item, good in zip(items, finite, strict=True) if not good]
        why, loss = result.bad, None if culprits else float(result.losses.mean())
        if culprits:
            why = f"the loss of {len(culprits)} of {len(items)} samples is no finite number"
        told |= {"loss": loss, "skipped": why, "items": culprits or list(items)}
        return told | self.held_out


class RunLog:
    """The log of one run, of all processes of its team; rank 0 alone writes.

    What a full disk does not take is kept, and written later.

    Attributes:
        meter: speed, and what the loop waits for; there while the log is open.
    """

    def __init__(self, recipe: Recipe, folder: Path, learner: Learner, ours: Team) -> None:
        self.recipe, self.folder, self.learner, self.team = recipe, folder, learner, ours
        self._waiting: list[_Waiting] = []
        self._unwritten: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._retry_at: float | None = None
        self._passed_over: dict[str, str] = {}

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Around the loop: trackers and meter are there."""
        self._told = self._measured = time.monotonic()
        plain = self.recipe.model_dump(mode="json")
        asked = self.recipe.train.log if self.team.is_main else []
        self._trackers = open_trackers(asked, self.folder, plain, step=self.learner.step)
        # the backward pass does twice the work of the forward
        flops = 3 * 2 * macs(self.learner.denoiser.network)
        self.meter = Meter(flops_per_sample=flops, peak_flops=None, device=self.learner.device)
        try:
            yield
        finally:
            self._trackers.close()

    @contextmanager
    def state(self) -> Iterator[None]:
        """Around the run: ``status.json`` says how it stands, for scripts that start it again.

        "running" (also after a kill), "stopped" (by a signal, saved), "failed" or "done".
        """

        def tell(state: str, why: BaseException | None = None) -> None:
            told = {"state": state, "step": self.learner.step, "steps": self.recipe.train.steps}
            if self.team.is_main:
                with suppress(OSError):
                    why_told = {} if why is None else {"why": str(why)}
                    write_text(self.folder / "status.json", json.dumps(told | why_told, indent=1))

        tell("running")
        try:
            yield
        except Stopped as stopped:
            tell("stopped", stopped)
            raise
        except Exception as error:
            tell("failed", error)
            raise
        tell("done")

    # Numbers of the steps

    def add(self, result: StepResult, items: Sequence[int]) -> None:
        """Log the step that the learner has result, at the next flush.

        Args:
            items: of the whole batch; needed where the step was passed over.
        """
        self._waiting.append(_Waiting(self.learner.step, result, items))

    def add_held_out(self, told: dict[str, Any]) -> None:
        """Held-out losses, to be logged with the last step."""
        if self._waiting:
            self._waiting[-1].held_out = told

    @property
    def is_due(self) -> bool:
        """Whether it is time to flush; each process has its own clock."""
        return time.monotonic() - self._flushed > FLUSH_SECONDS

    def flush(self) -> list[dict[str, Any]]:
        """Read the waiting losses from the device, write them if possible, and return them."""
        waiting, self._waiting = self._waiting, []
        self._flushed = time.monotonic()
        records = [each.record() for each in self._whole(waiting)]
        if not self.team.is_main:
            return records
        for record in records:
            if record["loss"] is not None:
                self.meter.smooth(record["loss"])
            self._trackers.log(record["step"], _flat(record))
        self._unwritten += records
        self._write()
        return records

    def _whole(self, waiting: Sequence[_Waiting]) -> list[_Waiting]:
        """The same steps with the losses of all processes, in the order of their batch."""
        if self.team.world == 1:
            return list(waiting)
        own = [(each.result.losses.cpu(), each.result.t.cpu()) for each in waiting]
        parts = (self.recipe.train.accumulate, -1)
        found = []
        for each, pairs in zip(waiting, zip(*self.team.all_gather(own), strict=True), strict=True):
            losses, t = (
                torch.stack([values.reshape(parts) for values in kind], dim=1).flatten()
                for kind in zip(*pairs, strict=True)
            )
            found.append(replace(each, result=replace(each.result, losses=losses, t=t)))
        return found

    # A full disk

    def written(self) -> bool:
        """Whether all that was flushed is in ``metrics.jsonl``, after another attempt where it was
        not; the same in all processes."""
        if not self.team.max([bool(self._unwritten)])[0]:
            return True
        return bool(self.team.max([self.team.is_main and self._write()])[0])

    def _write(self) -> bool:
        """Whether all that was measured is in ``metrics.jsonl``; what is not is kept."""
        try:
            append_lines(self.folder / "metrics.jsonl", self._unwritten)
        except OSError as error:
            self.say_full(f"metrics.jsonl cannot be written: {error}")
            return False
        self._unwritten.clear()
        return True

    def say_full(self, what: str) -> None:
        """Tell that something cannot be written, and when it is tried again."""
        if self._retry_at is None or time.monotonic() > self._retry_at:
            warn(f"{what}; nothing is lost, trying again every {RETRY_SECONDS:.0f} s")
            self._retry_at = time.monotonic() + RETRY_SECONDS

    @property
    def retry_is_due(self) -> bool:
        """Whether it is time to write again what could not be written."""
        return self._retry_at is not None and time.monotonic() > self._retry_at

    def forget_retry(self) -> None:
        """All is written."""
        self._retry_at = None

    # How it goes

    def tell(self) -> None:
        """How the run goes: a line in a while where there is no bar; speed to the trackers."""
        now, step = time.monotonic(), self.learner.step
        if not sys.stderr.isatty() and now - self._told > TELL_SECONDS:
            self._told = now
            say(f"step {step} of {self.recipe.train.steps}: {self.meter.line()}")
        if now - self._measured > SPEED_SECONDS and self.team.is_main:
            self._measured = now
            if self.meter.peak_flops is None:
                dtype = self.learner.denoiser.autocast or torch.float32
                with self.meter.paused():
                    self.meter.peak_flops = peak_flops(self.learner.device, dtype)
            speed = {"step": step} | self.meter.read()
            self._trackers.log(step, {f"speed/{k}": v for k, v in speed.items() if k != "step"})
            with suppress(OSError):
                append_lines(self.folder / "speed.jsonl", [speed])

    def show(self, path: Path) -> None:
        """A picture of samples that the run has drawn at this step."""
        self._trackers.picture(self.learner.step, "samples", path)
        say(f"step {self.learner.step}: samples in {path}")

    def note(self, notes: Sequence[tuple[str, str]]) -> None:
        """Say what was passed over in the data, each item once, and only the first of many."""
        for name, why in notes:
            if name not in self._passed_over and len(self._passed_over) < NOTED:
                warn(f"passed over {name}: {why}")
            self._passed_over[name] = why
        if notes:
            lines = "".join(f"{name}: {why}\n" for name, why in sorted(self._passed_over.items()))
            own = "" if self.team.is_main else f"-{self.team.rank}"
            with suppress(OSError):
                write_text(self.folder / f"passed_over{own}.txt", lines)


def introduce(recipe: Recipe, learner: Learner, plan: BatchPlan, ours: Team) -> None:
    """Say in a few lines what is about to be trained, and warn where memory may not do."""
    denoiser, section = learner.denoiser, recipe.train
    network, layout = denoiser.network, denoiser.layout
    weights = sum(p.numel() for p in network.parameters())
    sizes = " x ".join(str(size) for size in layout.grid)
    conditions = listed(denoiser.conditions) or "nothing"
    say(
        f"{recipe.name}: {len(layout.channels)} channels on {sizes} cells, "
        f"{layout.num_tokens} tokens of {layout.patch_features} numbers, conditions: {conditions}"
    )
    rate = peak_learning_rate(recipe.train)
    say(
        f"model: {weights:,} weights on {learner.device}; {learner.precision}; "
        f"{'compiled; ' if learner.compiled else ''}"
        f"noise scale {denoiser.diffusion.noise_scale:g}; learning rate {rate:.3g}"
    )
    if ours.world > 1:
        say(f"{ours.world} processes ({learner.how}), {plan.part_size} samples each at a time")
    if recipe.sample.guidance != 1 and not any(c.drop for c in denoiser.conditions.values()):
        warn("sample.guidance has no effect: no condition is ever dropped in training")
    settings = memory_settings(section, network, learner.device, processes=ours.world)
    again = section.checkpoint_activations
    parts = training_bytes(network, plan.part_size, **settings, checkpointing=again)
    held = parts["weights"] + parts["ema"]  # these are there already
    if (needed := sum(parts.values())) > (free := free_bytes(learner.device) + held):
        warn(
            f"training needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} are free; if it "
            "fails, raise train.accumulate or set train.checkpoint_activations=true"
        )


def _flat(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers of a record by name, those of bins each under its own; the rest is left out."""
    flat: dict[str, float | None] = {}
    for key, value in record.items():
        if isinstance(value, list) and key != "items":
            flat |= {f"{key}/{i}": v for i, v in enumerate(value)}
        elif isinstance(value, int | float) and key != "step":
            flat[key] = value
    return flat
