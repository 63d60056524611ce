"""Training loop: batches, steps, validation, logging, checkpoints, resuming, stopping by signal.

Step k is a function of (seed, k), see `step`, so a run resumed from a checkpoint is bit-identical
to an uninterrupted one.
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
from jitkit.domain import Domain
from jitkit.errors import CheckpointError, JitkitError, RecipeError, Stopped, listed
from jitkit.evaluation.evaluate import check_scorer, evaluate_model, score_table
from jitkit.fields import Batch
from jitkit.optim import posthoc_ema
from jitkit.optim.ema import decay_name
from jitkit.recipe.load import Recipe, dump_recipe, load_recipe
from jitkit.registry import check_has_items, check_instance, open_domain
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
from jitkit.training.metrics_log import RETRY_SECONDS, RunLog, print_header
from jitkit.training.previews import Previews
from jitkit.training.resume import check_resumable, domain_record
from jitkit.training.step import Learner
from jitkit.training.validation import bin_weights, validation_loss
from jitkit.utils.console import bar, say, warn
from jitkit.utils.distributed import ALONE, Team, full_tensor, team
from jitkit.utils.signals import Stop, catch_signals


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    run: str | Path | None = None,
    new: bool = False,
    domain: Domain | None = None,
) -> Path:
    """Train what a recipe describes, or resume its run, and return the run's folder.

    Under torchrun all processes train one model. SIGTERM, SIGINT and SIGUSR1 end the run after the
    current step and its checkpoint.

    Args:
        recipe: a file, the bare name of a bundled recipe, its sections, or a recipe itself.
        overrides: ``{"train.steps": 100}`` or ``["train.steps=100"]``; they replace its values.
        run: the run's folder; default ``runs/<name of the recipe>``. If it has a checkpoint, the
            run resumes from there.
        new: start another run beside an existing one.
        domain: an adapter to use in place of the one that the recipe names; the recipe then need
            not name one. Its attribute ``section``, if it has one, is recorded.

    Raises:
        RecipeError: an error in the recipe, or the recipe differs from the run's in what changes
            the model or the data; or ``domain`` is a class.
        DataError: the data are missing or do not match the recipe.
        JitkitError: loss or gradient were not finite for too many steps, or another process
            trains in the same folder.
        Stopped: by a signal; also a KeyboardInterrupt, so that a notebook treats it as one.
    """
    check_instance(domain)
    if isinstance(recipe, Recipe) and overrides:
        recipe = recipe.model_dump(mode="json")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, domain=None if domain is None else type(domain))
    if domain is not None and domain.section is not None:
        recipe = recipe.model_copy(update={"domain": domain.section})
    with team() as ranks:
        folder = choose_folder(recipe.name, None if run is None else Path(run), new=new)
        folder = ranks.all_gather(folder)[0]
        with locked(folder, ranks.is_main):
            trainer = _prepare(recipe, domain, folder, ranks)
            with trainer.log.status():
                before = trainer.learner.step
                with catch_signals() as stop:
                    trainer.loop(stop)
                unscored = not (folder / "evaluation.json").is_file()
                unscored |= trainer.learner.step > before
                if recipe.evaluate.after_training and ranks.max([unscored])[0]:
                    trainer.evaluate()
    return folder


def _prepare(recipe: Recipe, domain: Domain | None, folder: Path, ranks: Team) -> Trainer:
    """A trainer ready for its next step, after all checks."""
    failed: JitkitError | OSError | None = None
    try:
        with ranks.main_first():  # rank 0 may compute statistics; the other ranks read its cache
            if domain is None:
                domain = open_domain(recipe.domain)
            else:
                check_has_items(domain, recipe.domain.name)
        saved = checkpoint.newest(folder)
        if saved is not None:
            check_resumable(saved, recipe, domain)
        if recipe.evaluate.after_training and not domain.scores():
            raise RecipeError(
                f"evaluate.after_training: domain {recipe.domain.name!r} has no metrics to score "
                "samples with"
            )
        if recipe.evaluate.after_training:
            check_scorer(domain)
        trainer = Trainer(recipe, domain, folder, ranks)
    except (JitkitError, OSError) as error:
        failed = error
    ranks.raise_together(failed)
    trainer.start(saved)
    return trainer


class Trainer:
    """One run: the learner, the data, the log, checkpoints and previews."""

    def __init__(self, recipe: Recipe, domain: Domain, folder: Path, ranks: Team = ALONE) -> None:
        self.recipe, self.domain, self.folder, self.team = recipe, domain, folder, ranks
        self.items = domain.items("train")
        self.plan = self._batch_plan(
            0
        )  # before the model: a batch that cannot be split fails early
        self.learner = Learner(recipe, domain, ranks)
        self.denoiser = self.learner.denoiser
        self._record = domain_record(domain, recipe.domain, len(self.items))
        self.log = RunLog(recipe, folder, self.learner, ranks)
        self.previews = Previews(recipe, domain, self.learner, folder, ranks)
        self._skipped_in_a_row = self._skipped = 0
        print_header(recipe, self.learner, self.plan, ranks)

    def start(self, saved: Checkpoint | None) -> None:
        """Start at step 0 or resume from a checkpoint, and write the run's first files."""
        learner = self.learner
        if not len(self.domain.items("val")):
            say("no validation items, so there will be no validation loss")
        if self.team.is_main:
            write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
        if saved is None:
            if self.team.is_main:
                write_text(self.folder / "environment.json", json.dumps(environment(), indent=1))
                cut_metrics(self.folder, -1)
                posthoc_ema.remove_after(self.folder, -1)
            self.previews.smoke_test()
        else:
            checkpoint.restore(saved, self.denoiser, learner.ema, learner.optimizer)
            if learner.scale and saved.state.get("scale"):
                learner.scale.value, learner.scale.good = saved.state["scale"]
            learner.step = saved.step
            if self.team.is_main:
                cut_metrics(self.folder, saved.step)
                posthoc_ema.remove_after(self.folder, saved.step)
            steps = self.recipe.train.steps
            say(f"resuming from step {saved.step} of {steps} ({saved.path})")
        self.team.barrier()
        self._skipped_in_a_row = skipped_at_end(self.folder)

    def loop(self, stop: Stop) -> None:
        """Train to the recipe's last step.

        Raises:
            Stopped: by a signal; the run is saved.
        """
        section, learner = self.recipe.train, self.learner
        if learner.step >= section.steps:
            say(f"step {learner.step} of {section.steps} is done; train longer with train.steps=N")
            return
        began, first = time.monotonic(), learner.step
        with bar("training", section.steps, unit="steps", start=first) as show:
            for line in self.steps(stop):
                show(learner.step, line)
        took = time.monotonic() - began
        skipped = f", {self._skipped} of them skipped" if self._skipped else ""
        say(
            f"trained {section.steps - first} steps{skipped} in {took:.0f} s; "
            f"the run is in {self.folder}"
        )

    def steps(self, stop: Stop) -> Iterator[str]:
        """Train step by step; yields the progress line after each.

        Raises:
            Stopped: by a signal; the run is saved.
        """
        section, learner = self.recipe.train, self.learner
        self.plan = self._batch_plan(learner.step)
        parts = batches(self.domain, self.items, self.plan, workers=section.workers)
        self.denoiser.train()
        with self.log.open():
            while learner.step < section.steps:
                with self.log.meter.waiting():
                    batch, failed = self._next_batch(parts)
                stopped, flush, retry = self._agree(stop, failed)
                if stopped:
                    self._end_early(stop)
                self._train_on(batch)
                self._after_step(flush=flush, retry=retry)
                yield self.log.meter.line()

    def evaluate(self) -> None:
        """Score samples of the first EMA, which replaces the model's weights permanently."""
        recipe, learner = self.recipe, self.learner
        name = decay_name(recipe.train.ema[0])
        model = {"step": learner.step, "ema": name}
        settings = (recipe.sample, recipe.evaluate)
        denoiser = learner.load_ema(name)
        result = evaluate_model(denoiser, *settings, self.folder, model=model, team=self.team)
        say(score_table(result))

    # One step

    def _batch_plan(self, start: int) -> BatchPlan:
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

    def _next_batch(self, parts: Iterator[Batch]) -> tuple[list[Batch], JitkitError | None]:
        """This rank's parts of the next batch, or the error that prevents it."""
        try:
            return [next(parts) for _ in range(self.recipe.train.accumulate)], None
        except JitkitError as error:
            return [], error

    def _agree(self, stop: Stop, failed: JitkitError | None) -> tuple[bool, bool, bool]:
        """Whether to stop, to flush, and to retry saving; the same on all ranks.

        Raises:
            JitkitError: a rank has no batch.
        """
        due = [self.log.is_due, self.log.retry_is_due]
        flags = [stop.name is not None, *due, failed is not None]
        stopped, flush, retry, broken = map(bool, self.team.max(flags))
        if broken:
            with suppress(OSError):
                self.log.flush()
            self.team.raise_together(failed)
        return stopped, flush, retry

    def _train_on(self, batch: Sequence[Batch]) -> None:
        """Take and log one optimizer step.

        Raises:
            JitkitError: too many steps in a row were skipped.
        """
        learner, section = self.learner, self.recipe.train
        result = learner.train_step(iter(batch), self.plan.first_position)
        self.log.meter.step(section.batch_size // self.team.world)
        bad = result.skip_reason is not None
        self.log.add(result, [i for _, i in self.plan.keys(learner.step - 1)] if bad else [])
        for part in batch:
            self.log.add_skipped_items(part.notes)
        if result.skip_reason is None or result.overflow:
            self._skipped_in_a_row = 0
            return
        self._skipped_in_a_row += 1
        self._skipped += 1
        record = self.log.flush()[-1]
        items = listed(map(str, record["items"]))
        what = f"step {learner.step} was skipped: {record['skipped']} (training items {items})"
        warn(what)
        if self._skipped_in_a_row > section.max_bad_steps:
            raise self._diverged(f"{self._skipped_in_a_row} bad steps in a row; {what}")

    def _after_step(self, *, flush: bool, retry: bool) -> None:
        """Validation, log, checkpoint and previews when due."""
        learner, section = self.learner, self.recipe.train
        last = learner.step == section.steps
        if self._due(section.validate_every_steps):
            with self.log.meter.paused():
                self._validate()
        if last or flush:
            self.log.flush()
            self.log.report_speed()
        with self.log.meter.paused():
            if learner.step % section.ema_snapshot_every_steps == 0:
                self._snapshot()
            if last:
                self._save_until_written()
            elif retry or learner.step % section.save_every_steps == 0:
                if not self._skipped_in_a_row:  # a diverging run must keep its last good one
                    self._save()
            if self._due(section.preview_every_steps) and (path := self.previews.draw()):
                self.log.add_preview(path)

    def _due(self, every: int) -> bool:
        """Every ``every`` steps, and at the last step of a run that is at least that long."""
        step, steps = self.learner.step, self.recipe.train.steps
        return step % every == 0 or (step == steps and step >= every)

    def _end_early(self, stop: Stop) -> None:
        """Save and stop.

        Raises:
            Stopped: always.
        """
        self._save_until_written()
        step, steps = self.learner.step, self.recipe.train.steps
        why = stop.name or "a signal to another process"
        raise Stopped(f"{why}: saved at step {step} of {steps}; the same command resumes")

    # Validation and checkpoints

    def _diverged(self, what: str) -> JitkitError:
        kept = checkpoint.newest(self.folder)
        return JitkitError(
            f"{what}; the last checkpoint is {kept.path if kept else 'none'}. Lower the learning "
            "rate (train.lr), set train.clip_gradient=1, or use train.precision=float32"
        )

    def _validate(self) -> None:
        """Log the validation loss of the first EMA with the current step.

        Raises:
            JitkitError: it is not finite.
        """
        section = self.recipe.train
        with self.learner.ema_weights():
            bins = validation_loss(
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
            self.log.flush()  # the step's training loss may explain it
            raise self._diverged(f"the validation loss of step {step} is {loss}")
        self.log.add_validation({"val_loss": loss, "val_loss_bins": bins})
        say(f"step {step}: validation loss {loss:.4f}")

    def _snapshot(self) -> None:
        """Save the current power-function EMAs, if any, for `jitkit ema`."""
        emas = {
            name: {k: posthoc_ema.to_snapshot_dtype(full_tensor(v)) for k, v in ema.items()}
            for name, ema in self.learner.ema.averages.items()
            if name.startswith("sigma-")
        }
        if not (self.team.is_main and emas):
            return
        try:
            posthoc_ema.write_snapshot(self.folder, self.learner.step, emas)
        except (CheckpointError, OSError) as error:
            warn(f"no snapshot of the power-function EMAs at step {self.learner.step}: {error}")

    def _save(self) -> bool:
        """Save a checkpoint and remove the oldest; False if it could not be written.

        Raises:
            JitkitError: a weight is not finite.
        """
        self.log.flush()
        learner, section = self.learner, self.recipe.train
        if not learner.weights_are_finite():
            raise self._diverged(f"a weight is not finite after step {learner.step}")
        if not self.log.all_written():  # a checkpoint must not be ahead of metrics.jsonl
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
            self.log.warn_disk(str(error))
            return False
        self.log.cancel_retry()
        if self.team.is_main:
            checkpoint.prune(self.folder, section.keep, section.keep_every_steps)
        return True

    def _save_until_written(self) -> None:
        """Save a checkpoint and a snapshot, retrying as long as the disk is full."""
        if self.learner.step % self.recipe.train.ema_snapshot_every_steps:
            self._snapshot()
        while not self._save():
            time.sleep(min(5.0, RETRY_SECONDS))
