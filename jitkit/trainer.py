"""The loop: batch, step, log, save; and what happens when it is stopped or the disk is full.

What step k does is a function of (seed, k), see `learner`. So a run that goes on from a checkpoint
does what it would have done unbroken.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from jitkit import checkpoint, posthoc
from jitkit.check import GIB, macs, memory_settings, peak_rate
from jitkit.checkpoint import Checkpoint, DomainRecord
from jitkit.data import Plan, batches
from jitkit.domain import Chunked, Domain, is_installed, open_domain
from jitkit.ema import mean_name
from jitkit.errors import CheckpointError, JitkitError, RecipeError, Stopped, listed
from jitkit.evaluate import evaluate, table
from jitkit.fields import Batch
from jitkit.generate import conditions_for, generate
from jitkit.learner import Learner, Taken
from jitkit.memory import free_bytes, training_bytes
from jitkit.meter import Meter, peak_flops
from jitkit.parallel import ALONE, Team, team, whole
from jitkit.progress import bar, say, warn
from jitkit.recipe import Recipe, dump_recipe, load_recipe
from jitkit.resume import check_same, check_same_data
from jitkit.run import (
    append_lines,
    choose_folder,
    cut_metrics,
    environment,
    locked,
    skipped_at_end,
    write_text,
)
from jitkit.stop import Stop, listening
from jitkit.tracking import open_trackers
from jitkit.validation import bin_weights, by_bin, held_out_loss

FLUSH_SECONDS = 1.0  # between readings of the loss from the device
TELL_SECONDS = 60.0  # between lines of loss where there is no terminal to draw a bar on
SPEED_SECONDS = 20.0  # between readings of how fast the run goes
RETRY_SECONDS = 60.0  # between attempts to write to a full disk


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    run: str | Path | None = None,
    new: bool = False,
    domain: Domain | None = None,
) -> Path:
    """Train what a recipe describes, or go on with it, and return the run's folder.

    Started by torchrun, all processes train one model. SIGTERM, SIGINT and SIGUSR1 end the run
    after the step that it is in, saved.

    Args:
        recipe: a file, the bare name of a bundled recipe, its sections, or a recipe itself.
        overrides: ``{"train.steps": 100}`` or ``["train.steps=100"]``, laid over it.
        run: the run's folder; ``runs/<name of the recipe>`` where not given. If it holds a
            checkpoint the run goes on from there.
        new: start another run beside one that is there.
        domain: an adapter to use in place of the one that the recipe names; it need name none then.

    Raises:
        RecipeError: a mistake in the recipe, or one that differs from the run's own in what
            changes the model or the data.
        DataError: the data are missing or unlike what the recipe says.
        JitkitError: loss or gradient were no finite numbers for too many steps, or another
            process trains in the same folder.
        Stopped: a signal came; a KeyboardInterrupt too, so that a notebook treats it as one.
    """
    if isinstance(recipe, Recipe) and overrides:
        recipe = recipe.model_dump(mode="json")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, domain=None if domain is None else type(domain))
    with team() as ours:
        folder = choose_folder(recipe.name, None if run is None else Path(run), new=new)
        folder = ours.gathered(folder)[0]
        with locked(folder, ours.leads):
            trainer = _begun(recipe, domain, folder, ours)
            with trainer.state():
                before = trainer.learner.step
                with listening() as stop:
                    trainer.loop(stop)
                unscored = not (folder / "evaluation.json").is_file()
                unscored |= trainer.learner.step > before
                if recipe.evaluate.after_training and ours.highest([unscored])[0]:
                    trainer.evaluate()
    return folder


def _begun(recipe: Recipe, domain: Domain | None, folder: Path, ours: Team) -> Trainer:
    """The run, ready for its next step; all that can be wrong has been looked at."""
    failed: JitkitError | OSError | None = None
    try:
        with ours.leader_first():  # it may measure the data, and the others find what it measured
            domain = domain or open_domain(recipe.domain)
        found = checkpoint.newest(folder)
        if found is not None:
            check_same(folder, recipe, type(domain))
            check_same_data(found, domain)
            if found.step > recipe.train.steps:
                raise RecipeError(
                    f"{folder} is at step {found.step}, past train.steps={recipe.train.steps}; "
                    "ask for more, or start another with --new"
                )
        if recipe.evaluate.after_training and not domain.scores():
            raise RecipeError(
                f"evaluate.after_training: domain {recipe.domain.name!r} has no measures to score "
                "samples with"
            )
        trainer = Trainer(recipe, domain, folder, ours)
    except (JitkitError, OSError) as error:
        failed = error
    ours.raise_together(failed)
    trainer.start(found)
    return trainer


@dataclass
class _Waiting:
    """What a step is to log; its losses are still on the device."""

    step: int
    taken: Taken
    held_out: dict[str, Any] = field(default_factory=dict)

    def record(self, items: Sequence[int]) -> dict[str, Any]:
        """The step's line of ``metrics.jsonl``; waits for the device.

        Args:
            items: of the whole batch, where the step was passed over.
        """
        taken = self.taken
        told: dict[str, Any] = {"step": self.step, "lr": taken.rate}
        if taken.bad is None:
            told |= {"loss": float(taken.losses.mean()), "gradient": taken.gradient}
            return told | {"loss_bins": by_bin(taken.losses, taken.t)} | self.held_out
        if taken.overflow:
            told |= {"loss": float(taken.losses.mean()), "overflow": taken.bad}
            return told | self.held_out
        finite = taken.losses.isfinite().tolist()
        culprits = [item for item, good in zip(items, finite, strict=True) if not good]
        why, loss = taken.bad, None if culprits else float(taken.losses.mean())
        if culprits:
            why = f"the loss of {len(culprits)} of {len(items)} samples is no finite number"
        told |= {"loss": loss, "skipped": why, "items": culprits or list(items)}
        return told | self.held_out


class Trainer:
    """One run: a learner, the data, and what is written on the way."""

    def __init__(self, recipe: Recipe, domain: Domain, folder: Path, ours: Team = ALONE) -> None:
        self.recipe, self.domain, self.folder, self.team = recipe, domain, folder, ours
        self.items = domain.items("train")
        self.plan = self._planned(0)  # or a batch that cannot be shared out is found too late
        self.learner = Learner(recipe, domain, ours)
        self.denoiser = self.learner.denoiser
        installed = is_installed(type(domain), recipe.domain.name)
        named = recipe.domain.model_dump(mode="json") if installed else None
        self._record = DomainRecord(named, domain.facts(), len(self.items))
        self._waiting: list[_Waiting] = []
        self._unwritten: list[dict[str, Any]] = []
        self._flushed = time.monotonic()
        self._retry_at: float | None = None
        self._skipped_in_a_row = self._skipped = 0
        self._passed_over: dict[str, str] = {}
        self._describe()

    def start(self, found: Checkpoint | None) -> None:
        """Begin from the first step, or go on from a checkpoint; then the run's files are there."""
        learner = self.learner
        if not len(self.domain.items("val")):
            say("no items are held out, so there will be no held-out loss")
        if self.team.leads:
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
        if found is None:
            if self.team.leads:
                write_text(self.folder / "environment.json", json.dumps(environment(), indent=1))
                cut_metrics(self.folder, -1)
                posthoc.forget_after(self.folder, -1)
            self._try_whole_path()
        else:
            checkpoint.restore(found, self.denoiser, learner.ema, learner.optimizer)
            if learner.scale and found.state.get("scale"):
                learner.scale.value, learner.scale.good = found.state["scale"]
            learner.step = found.step
            if self.team.leads:
                cut_metrics(self.folder, found.step)
                posthoc.forget_after(self.folder, found.step)
            steps = self.recipe.train.steps
            say(f"going on from step {found.step} of {steps} ({found.path})")
        self.team.wait()
        self._skipped_in_a_row = skipped_at_end(self.folder)

    @contextmanager
    def state(self) -> Iterator[None]:
        """Around the run: ``status.json`` says how it stands, for scripts that start it again.

        "running" (also after a kill), "stopped" (by a signal, saved), "failed" or "done".
        """

        def tell(state: str, why: BaseException | None = None) -> None:
            told = {"state": state, "step": self.learner.step, "steps": self.recipe.train.steps}
            if self.team.leads:
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

    def loop(self, stop: Stop) -> None:
        """Train to the recipe's last step, with what happens on the way.

        Raises:
            Stopped: a signal came; the run is saved.
        """
        section, learner = self.recipe.train, self.learner
        if learner.step >= section.steps:
            say(f"step {learner.step} of {section.steps} is done; ask for more with train.steps=N")
            return
        began, first = time.monotonic(), learner.step
        with bar("training", section.steps, unit="steps", start=first) as show:
            for line in self.steps(stop):
                show(learner.step, line)
        took = time.monotonic() - began
        passed = f", {self._skipped} of them passed over" if self._skipped else ""
        say(
            f"trained {section.steps - first} steps{passed} in {took:.0f} s; "
            f"the run is in {self.folder}"
        )

    def steps(self, stop: Stop) -> Iterator[str]:
        """One step after the other, with what follows it; how it goes, in a line.

        Raises:
            Stopped: a signal came; the run is saved.
        """
        section, learner = self.recipe.train, self.learner
        self.plan = self._planned(learner.step)
        parts = batches(self.domain, self.items, self.plan, workers=section.workers)
        self._told = self._measured = time.monotonic()
        self.denoiser.train()
        with self._log():
            while learner.step < section.steps:
                with self._meter.waiting():
                    batch, failed = self._fetched(parts)
                stopped, flush, retry = self._agreed(stop, failed)
                if stopped:
                    self._end_early(stop)
                self._train_on(batch)
                self._after_step(flush=flush, retry=retry)
                yield self._meter.line()

    def evaluate(self) -> None:
        """Score samples of the first running mean, which becomes the model's weights for good."""
        recipe, learner = self.recipe, self.learner
        name = mean_name(recipe.train.ema[0])
        model = {"step": learner.step, "ema": name}
        settings = (recipe.sample, recipe.evaluate)
        denoiser = learner.become(name)
        say(table(evaluate(denoiser, *settings, self.folder, model=model, team=self.team)))

    # One step

    def _planned(self, start: int) -> Plan:
        section = self.recipe.train
        return Plan(
            len(self.items),
            section.batch_size,
            section.seed,
            start,
            section.steps,
            shuffle=self.items.order if isinstance(self.items, Chunked) else None,
            accumulate=section.accumulate,
            rank=self.team.rank,
            world=self.team.world,
        )

    def _fetched(self, parts: Iterator[Batch]) -> tuple[list[Batch], JitkitError | None]:
        """This process's parts of the next batch, or why there are none."""
        try:
            return [next(parts) for _ in range(self.recipe.train.accumulate)], None
        except JitkitError as error:
            return [], error

    def _agreed(self, stop: Stop, failed: JitkitError | None) -> tuple[bool, bool, bool]:
        """Whether to stop, to flush, and to save again, the same in all processes.

        Raises:
            JitkitError: a process has no batch.
        """
        now = time.monotonic()
        flush = now - self._flushed > FLUSH_SECONDS
        retry = self._retry_at is not None and now > self._retry_at
        told = [stop.name is not None, flush, retry, failed is not None]
        stopped, flush, retry, broken = map(bool, self.team.highest(told))
        if broken:
            with suppress(OSError):
                self._flush()
            self.team.raise_together(failed)
        return stopped, flush, retry

    def _train_on(self, batch: Sequence[Batch]) -> None:
        """One step of the learner, and what it is to log.

        Raises:
            JitkitError: too many steps in a row were passed over.
        """
        learner, section = self.learner, self.recipe.train
        taken = learner.take(iter(batch), self.plan.first_place)
        self._meter.step(section.batch_size // self.team.world)
        self._waiting.append(_Waiting(learner.step, taken))
        for part in batch:
            self._note(part.notes)
        if taken.bad is None or taken.overflow:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self._skipped += 1
        record = self._flush()[-1]
        items = listed(map(str, record["items"]))
        what = f"step {learner.step} was passed over: {record['skipped']} (training items {items})"
        warn(what)
        if self._skipped_in_a_row > section.max_bad_steps:
            raise self._diverged(f"{self._skipped_in_a_row} bad steps in a row; {what}")

    def _after_step(self, *, flush: bool, retry: bool) -> None:
        """Validation, log, checkpoint and pictures, where they are due."""
        learner, section = self.learner, self.recipe.train
        last = learner.step == section.steps
        if self._due(section.validate_every_steps):
            with self._meter.paused():
                self._validate()
        if last or flush:
            self._flush()
            self._tell()
        with self._meter.paused():
            if learner.step % section.ema_snapshot_every_steps == 0:
                self._snapshot()
            if last:
                self._save_surely()
            elif retry or learner.step % section.save_every_steps == 0:
                if not self._skipped_in_a_row:  # or what is wrong could push out the last good one
                    self._save()
            if self._due(section.preview_every_steps):
                self._preview()

    def _due(self, every: int) -> bool:
        """At every so many steps, and at the last of a run that is at least so long."""
        step, steps = self.learner.step, self.recipe.train.steps
        return step % every == 0 or (step == steps and step >= every)

    def _end_early(self, stop: Stop) -> None:
        """Save, and leave.

        Raises:
            Stopped: always.
        """
        self._save_surely()
        step, steps = self.learner.step, self.recipe.train.steps
        why = stop.name or "a signal to another process"
        raise Stopped(f"{why}: saved at step {step} of {steps}; the same command goes on")

    # What is written

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Trackers and meter, for as long as the loop runs."""
        plain = self.recipe.model_dump(mode="json")
        asked = self.recipe.train.log if self.team.leads else []
        self._trackers = open_trackers(asked, self.folder, plain, step=self.learner.step)
        flops = 3 * 2 * macs(self.denoiser)  # the backward pass does twice the work of the forward
        self._meter = Meter(flops_per_sample=flops, peak_flops=None, device=self.learner.device)
        try:
            yield
        finally:
            self._trackers.close()

    def _flush(self) -> list[dict[str, Any]]:
        """Read the waiting losses from the device, write them if possible, and return them."""
        waiting, self._waiting = self._waiting, []
        self._flushed = time.monotonic()
        records = []
        for each in self._whole(waiting):
            bad = each.taken.bad is not None
            items = [i for _, i in self.plan.keys(each.step - 1)] if bad else []
            records.append(each.record(items))
        if not self.team.leads:
            return records
        for record in records:
            if record["loss"] is not None:
                self._meter.smooth(record["loss"])
            self._trackers.log(record["step"], _flat(record))
        self._unwritten += records
        self._write_metrics()
        return records

    def _whole(self, waiting: Sequence[_Waiting]) -> list[_Waiting]:
        """The same steps with the losses of all processes, in the order of their batch."""
        if self.team.world == 1:
            return list(waiting)
        own = [(each.taken.losses.cpu(), each.taken.t.cpu()) for each in waiting]
        parts = (self.recipe.train.accumulate, -1)
        found = []
        for each, pairs in zip(waiting, zip(*self.team.gathered(own), strict=True), strict=True):
            losses, t = (
                torch.stack([values.reshape(parts) for values in kind], dim=1).flatten()
                for kind in zip(*pairs, strict=True)
            )
            found.append(replace(each, taken=replace(each.taken, losses=losses, t=t)))
        return found

    def _write_metrics(self) -> bool:
        """Whether all that was measured is in ``metrics.jsonl``; what is not is kept."""
        try:
            append_lines(self.folder / "metrics.jsonl", self._unwritten)
        except OSError as error:
            self._say_full(f"metrics.jsonl cannot be written: {error}")
            return False
        self._unwritten.clear()
        return True

    def _say_full(self, what: str) -> None:
        """Tell that something cannot be written, and when it is tried again."""
        if self._retry_at is None or time.monotonic() > self._retry_at:
            warn(f"{what}; nothing is lost, trying again every {RETRY_SECONDS:.0f} s")
            self._retry_at = time.monotonic() + RETRY_SECONDS

    def _tell(self) -> None:
        """How the run goes: a line in a while where there is no bar; speed to the trackers."""
        now, step = time.monotonic(), self.learner.step
        if not sys.stderr.isatty() and now - self._told > TELL_SECONDS:
            self._told = now
            say(f"step {step} of {self.recipe.train.steps}: {self._meter.line()}")
        if now - self._measured > SPEED_SECONDS and self.team.leads:
            self._measured = now
            if self._meter.peak_flops is None:
                dtype = self.denoiser.autocast or torch.float32
                with self._meter.paused():
                    self._meter.peak_flops = peak_flops(self.learner.device, dtype)
            speed = {"step": step} | self._meter.read()
            self._trackers.log(step, {f"speed/{k}": v for k, v in speed.items() if k != "step"})
            with suppress(OSError):
                append_lines(self.folder / "speed.jsonl", [speed])

    def _diverged(self, what: str) -> JitkitError:
        kept = checkpoint.newest(self.folder)
        return JitkitError(
            f"{what}; the last checkpoint is {kept.path if kept else 'none'}. Lower the learning "
            "rate (train.lr), set train.clip_gradient=1, or use train.precision=float32"
        )

    def _validate(self) -> None:
        """The held-out loss of the first running mean, logged with the step's own.

        Raises:
            JitkitError: it is not a number.
        """
        section = self.recipe.train
        with self.learner.means():
            bins = held_out_loss(
                self.denoiser,
                self.domain,
                section.validate_items,
                section.batch_size // self.team.world,
                team=self.team,
            )
        if bins is None:
            return
        loss = sum(w * b for w, b in zip(bin_weights(), bins, strict=True))
        step = self.learner.step
        if not isfinite(loss):
            self._flush()  # the step's own loss may tell more
            raise self._diverged(f"the held-out loss of step {step} is {loss}")
        told = {"val_loss": loss, "val_loss_bins": bins}
        if self._waiting:
            self._waiting[-1].held_out = told
        say(f"step {step}: held-out loss {loss:.4f}")

    def _preview(self) -> None:
        """A picture of samples at ``samples/step-N.png``."""
        n, section = self.recipe.train.preview_samples, self.recipe.sample
        with self.learner.means():
            cond = conditions_for(self.denoiser, n)
            made = generate(self.denoiser, n, cond, section, progress=True, team=self.team)
            items = list(made)
        if not self.team.leads:
            return
        step = self.learner.step
        path = self.folder / "samples" / f"step-{step}.png"
        try:
            _save_picture(self.domain.preview(items), path)
        except OSError as error:
            warn(f"{path} cannot be written: {error}")
            return
        self._trackers.picture(step, "samples", path)
        say(f"step {step}: samples in {path}")

    def _snapshot(self) -> None:
        """The power-function means as they are now, if there are any, for `jitkit ema`."""
        means = {
            name: {key: posthoc.stored(whole(value)) for key, value in mean.items()}
            for name, mean in self.learner.ema.means.items()
            if name.startswith("sigma-")
        }
        if not (self.team.leads and means):
            return
        try:
            posthoc.write_snapshot(self.folder, self.learner.step, means)
        except (CheckpointError, OSError) as error:
            warn(f"no snapshot of the power-function means at step {self.learner.step}: {error}")

    def _save(self) -> bool:
        """A checkpoint of this step, the oldest removed; False where the disk did not take it.

        Raises:
            JitkitError: a weight is no finite number.
        """
        self._flush()
        learner, section = self.learner, self.recipe.train
        if not learner.finite():
            raise self._diverged(f"a weight is no finite number after step {learner.step}")
        if self.team.highest([bool(self._unwritten)])[0] and not self._rewritten():
            return False
        try:
            checkpoint.save(
                self.folder,
                learner.step,
                self.denoiser,
                learner.ema,
                optimizer=learner.optimizer,
                domain=self._record,
                scale=(learner.scale.value, learner.scale.good) if learner.scale else None,
                team=self.team,
            )
        except CheckpointError as error:
            self._say_full(str(error))
            return False
        self._retry_at = None
        if self.team.leads:
            checkpoint.prune(self.folder, section.keep, section.keep_every_steps)
        return True

    def _rewritten(self) -> bool:
        """Whether what was measured is written after all: no checkpoint may precede it."""
        return bool(self.team.highest([self.team.leads and self._write_metrics()])[0])

    def _save_surely(self) -> None:
        """A checkpoint of this step, and a snapshot, however long the disk is full."""
        if self.learner.step % self.recipe.train.ema_snapshot_every_steps:
            self._snapshot()
        while not self._save():
            time.sleep(min(5.0, RETRY_SECONDS))

    def _try_whole_path(self) -> None:
        """A few samples of the untrained model through the whole path to files, before step 1."""
        n = min(4, self.recipe.train.preview_samples)
        quick = self.recipe.sample.model_copy(update={"steps": 2, "method": "euler"})
        failed: Exception | None = None
        try:
            with self.learner.means():
                cond = conditions_for(self.denoiser, n)
                items = list(generate(self.denoiser, n, cond, quick, team=self.team))
            if self.team.leads:
                with tempfile.TemporaryDirectory(prefix="first-", dir=self.folder) as out:
                    self.domain.write(items, Path(out))
                _save_picture(self.domain.preview(items), self.folder / "samples" / "step-0.png")
        except (JitkitError, OSError) as error:
            failed = error
        self.team.raise_together(failed)

    def _note(self, notes: Sequence[tuple[str, str]]) -> None:
        """Say what was passed over in the data, each item once, and only the first of many."""
        for name, why in notes:
            if name not in self._passed_over and len(self._passed_over) < 20:
                warn(f"passed over {name}: {why}")
            self._passed_over[name] = why
        if notes:
            lines = "".join(f"{name}: {why}\n" for name, why in sorted(self._passed_over.items()))
            own = "" if self.team.leads else f"-{self.team.rank}"
            with suppress(OSError):
                write_text(self.folder / f"passed_over{own}.txt", lines)

    def _describe(self) -> None:
        """What is about to be trained, in a few lines."""
        denoiser, section, learner = self.denoiser, self.recipe.train, self.learner
        network, layout = denoiser.network, denoiser.layout
        weights = sum(p.numel() for p in network.parameters())
        sizes = " x ".join(str(size) for size in layout.grid)
        conditions = listed(denoiser.conditions) or "nothing"
        say(
            f"{self.recipe.name}: {len(layout.channels)} channels on {sizes} cells, "
            f"{layout.num_tokens} tokens of {layout.patch_features} numbers, "
            f"conditions: {conditions}"
        )
        say(
            f"model: {weights:,} weights on {learner.device}; {learner.precision}; "
            f"noise scale {denoiser.diffusion.noise_scale:g}; "
            f"learning rate {peak_rate(self.recipe):.3g}"
        )
        if self.team.world > 1:
            say(
                f"{self.team.world} processes ({learner.how}), {self.plan.part_size} samples each "
                f"at a time"
            )
        if self.recipe.sample.guidance != 1 and not any(
            condition.drop for condition in denoiser.conditions.values()
        ):
            warn("sample.guidance has no effect: no condition is ever dropped in training")
        world = self.team.world
        settings = memory_settings(section, network, learner.device, processes=world)
        again = section.checkpoint_activations
        parts = training_bytes(network, self.plan.part_size, **settings, checkpointing=again)
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


def _save_picture(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    picture.save(aside, format="PNG")
    aside.replace(path)
