"""The loop: batch, step, log, save; and what happens when it is stopped or the disk is full.

What step k does is a function of (seed, k), see `learner`. So a run that goes on from a checkpoint
does what it would have done unbroken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

from jitkit.data import BatchPlan, batches
from jitkit.domain import Domain, check_has_items, check_instance, open_domain, section_of
from jitkit.errors import CheckpointError, JitkitError, RecipeError, Stopped, listed
from jitkit.evaluation.evaluate import check_ready, evaluate, score_table
from jitkit.fields import Batch
from jitkit.optim import posthoc_ema
from jitkit.optim.ema import mean_name
from jitkit.recipe.load import Recipe, dump_recipe, load_recipe
from jitkit.runs import checkpoint
from jitkit.runs.checkpoint import Checkpoint
from jitkit.runs.run_dir import (
    choose_folder,
    cut_metrics,
    environment,
    locked,
    skipped_at_end,
    write_text,
)
from jitkit.training.metrics_log import RETRY_SECONDS, RunLog, introduce
from jitkit.training.previews import Previews
from jitkit.training.resume import check_goes_on, domain_record
from jitkit.training.step import Learner
from jitkit.training.validation import bin_weights, held_out_loss
from jitkit.utils.console import bar, say, warn
from jitkit.utils.distributed import ALONE, Team, team, whole
from jitkit.utils.signals import Stop, listening


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
        domain: an adapter to use in place of the one that the recipe names; it need name none
            then. The section that it was made from, its attribute ``section``, is recorded where
            there is one.

    Raises:
        RecipeError: a mistake in the recipe, or one that differs from the run's own in what
            changes the model or the data; or ``domain`` is a class.
        DataError: the data are missing or unlike what the recipe says.
        JitkitError: loss or gradient were no finite numbers for too many steps, or another
            process trains in the same folder.
        Stopped: a signal came; a KeyboardInterrupt too, so that a notebook treats it as one.
    """
    check_instance(domain)
    if isinstance(recipe, Recipe) and overrides:
        recipe = recipe.model_dump(mode="json")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, domain=None if domain is None else type(domain))
    if (own := section_of(domain)) is not None:
        recipe = recipe.model_copy(update={"domain": own})
    with team() as ours:
        folder = choose_folder(recipe.name, None if run is None else Path(run), new=new)
        folder = ours.all_gather(folder)[0]
        with locked(folder, ours.is_main):
            trainer = _begun(recipe, domain, folder, ours)
            with trainer.log.state():
                before = trainer.learner.step
                with listening() as stop:
                    trainer.loop(stop)
                unscored = not (folder / "evaluation.json").is_file()
                unscored |= trainer.learner.step > before
                if recipe.evaluate.after_training and ours.max([unscored])[0]:
                    trainer.evaluate()
    return folder


def _begun(recipe: Recipe, domain: Domain | None, folder: Path, ours: Team) -> Trainer:
    """The run, ready for its next step; all that can be wrong has been looked at."""
    failed: JitkitError | OSError | None = None
    try:
        with ours.main_first():  # it may measure the data, and the others find what it measured
            if domain is None:
                domain = open_domain(recipe.domain)
            else:
                check_has_items(domain, recipe.domain.name)
        found = checkpoint.newest(folder)
        if found is not None:
            check_goes_on(found, recipe, domain)
        if recipe.evaluate.after_training and not domain.scores():
            raise RecipeError(
                f"evaluate.after_training: domain {recipe.domain.name!r} has no measures to score "
                "samples with"
            )
        if recipe.evaluate.after_training:
            check_ready(domain)
        trainer = Trainer(recipe, domain, folder, ours)
    except (JitkitError, OSError) as error:
        failed = error
    ours.raise_together(failed)
    trainer.start(found)
    return trainer


class Trainer:
    """One run: a learner, the data, and what is written on the way."""

    def __init__(self, recipe: Recipe, domain: Domain, folder: Path, ours: Team = ALONE) -> None:
        self.recipe, self.domain, self.folder, self.team = recipe, domain, folder, ours
        self.items = domain.items("train")
        self.plan = self._planned(0)  # or a batch that cannot be shared out is found too late
        self.learner = Learner(recipe, domain, ours)
        self.denoiser = self.learner.denoiser
        self._record = domain_record(domain, recipe.domain, len(self.items))
        self.log = RunLog(recipe, folder, self.learner, ours)
        self.previews = Previews(recipe, domain, self.learner, folder, ours)
        self._skipped_in_a_row = self._skipped = 0
        introduce(recipe, self.learner, self.plan, ours)

    def start(self, found: Checkpoint | None) -> None:
        """Begin from the first step, or go on from a checkpoint; then the run's files are there."""
        learner = self.learner
        if not len(self.domain.items("val")):
            say("no items are held out, so there will be no held-out loss")
        if self.team.is_main:
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
        if found is None:
            if self.team.is_main:
                write_text(self.folder / "environment.json", json.dumps(environment(), indent=1))
                cut_metrics(self.folder, -1)
                posthoc_ema.forget_after(self.folder, -1)
            self.previews.try_whole_path()
        else:
            checkpoint.restore(found, self.denoiser, learner.ema, learner.optimizer)
            if learner.scale and found.state.get("scale"):
                learner.scale.value, learner.scale.good = found.state["scale"]
            learner.step = found.step
            if self.team.is_main:
                cut_metrics(self.folder, found.step)
                posthoc_ema.forget_after(self.folder, found.step)
            steps = self.recipe.train.steps
            say(f"going on from step {found.step} of {steps} ({found.path})")
        self.team.barrier()
        self._skipped_in_a_row = skipped_at_end(self.folder)

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
        self.denoiser.train()
        with self.log.opened():
            while learner.step < section.steps:
                with self.log.meter.waiting():
                    batch, failed = self._fetched(parts)
                stopped, flush, retry = self._agreed(stop, failed)
                if stopped:
                    self._end_early(stop)
                self._train_on(batch)
                self._after_step(flush=flush, retry=retry)
                yield self.log.meter.line()

    def evaluate(self) -> None:
        """Score samples of the first running mean, which becomes the model's weights for good."""
        recipe, learner = self.recipe, self.learner
        name = mean_name(recipe.train.ema[0])
        model = {"step": learner.step, "ema": name}
        settings = (recipe.sample, recipe.evaluate)
        denoiser = learner.become(name)
        say(score_table(evaluate(denoiser, *settings, self.folder, model=model, team=self.team)))

    # One step

    def _planned(self, start: int) -> BatchPlan:
        section = self.recipe.train
        return BatchPlan.over(
            self.items,
            section.batch_size,
            section.seed,
            start=start,
            stop=section.steps,
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
        due = [self.log.is_due, self.log.retry_is_due]
        told = [stop.name is not None, *due, failed is not None]
        stopped, flush, retry, broken = map(bool, self.team.max(told))
        if broken:
            with suppress(OSError):
                self.log.flush()
            self.team.raise_together(failed)
        return stopped, flush, retry

    def _train_on(self, batch: Sequence[Batch]) -> None:
        """One step of the learner, and what it is to log.

        Raises:
            JitkitError: too many steps in a row were passed over.
        """
        learner, section = self.learner, self.recipe.train
        result = learner.step(iter(batch), self.plan.first_place)
        self.log.meter.step(section.batch_size // self.team.world)
        bad = result.bad is not None
        self.log.add(result, [i for _, i in self.plan.keys(learner.step - 1)] if bad else [])
        for part in batch:
            self.log.note(part.notes)
        if result.bad is None or result.overflow:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self._skipped += 1
        record = self.log.flush()[-1]
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
            with self.log.meter.paused():
                self._validate()
        if last or flush:
            self.log.flush()
            self.log.tell()
        with self.log.meter.paused():
            if learner.step % section.ema_snapshot_every_steps == 0:
                self._snapshot()
            if last:
                self._save_surely()
            elif retry or learner.step % section.save_every_steps == 0:
                if not self._skipped_in_a_row:  # or what is wrong could push out the last good one
                    self._save()
            if self._due(section.preview_every_steps) and (path := self.previews.draw()):
                self.log.show(path)

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
            self.log.flush()  # the step's own loss may tell more
            raise self._diverged(f"the held-out loss of step {step} is {loss}")
        self.log.add_held_out({"val_loss": loss, "val_loss_bins": bins})
        say(f"step {step}: held-out loss {loss:.4f}")

    def _snapshot(self) -> None:
        """The power-function means as they are now, if there are any, for `jitkit ema`."""
        means = {
            name: {key: posthoc_ema.stored(whole(value)) for key, value in mean.items()}
            for name, mean in self.learner.ema.means.items()
            if name.startswith("sigma-")
        }
        if not (self.team.is_main and means):
            return
        try:
            posthoc_ema.write_snapshot(self.folder, self.learner.step, means)
        except (CheckpointError, OSError) as error:
            warn(f"no snapshot of the power-function means at step {self.learner.step}: {error}")

    def _save(self) -> bool:
        """A checkpoint of this step, the oldest removed; False where the disk did not take it.

        Raises:
            JitkitError: a weight is no finite number.
        """
        self.log.flush()
        learner, section = self.learner, self.recipe.train
        if not learner.finite():
            raise self._diverged(f"a weight is no finite number after step {learner.step}")
        if not self.log.written():  # no checkpoint may precede what was measured
            return False
        try:
            checkpoint.save_checkpoint(
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
            self.log.say_full(str(error))
            return False
        self.log.forget_retry()
        if self.team.is_main:
            checkpoint.prune(self.folder, section.keep, section.keep_every_steps)
        return True

    def _save_surely(self) -> None:
        """A checkpoint of this step, and a snapshot, however long the disk is full."""
        if self.learner.step % self.recipe.train.ema_snapshot_every_steps:
            self._snapshot()
        while not self._save():
            time.sleep(min(5.0, RETRY_SECONDS))
