"""The loop: batch, loss, step, means, log, save.

What step k does is a function of (seed, k): the batch, t, the noise, which conditions are dropped,
and dropout. So a run that goes on from a checkpoint does what it would have done unbroken.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from math import erf, isfinite, log, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jitkit import checkpoint
from jitkit.check import GIB, assemble, choose_device, choose_precision, peak_rate
from jitkit.checkpoint import Checkpoint, DomainRecord
from jitkit.conditions import drop
from jitkit.data import batches, held_out
from jitkit.denoiser import Denoiser
from jitkit.domain import Domain, domain_class, open_domain
from jitkit.ema import EMA
from jitkit.errors import DataError, JitkitError, RecipeError, listed
from jitkit.evaluate import evaluate, table
from jitkit.fields import Batch
from jitkit.flow import logit_normal_t, uniform_t
from jitkit.generate import conditions_for, generate
from jitkit.memory import free_bytes, training_bytes
from jitkit.optim import adamw, learning_rate
from jitkit.progress import bar, say, warn
from jitkit.recipe import Recipe, differences, dump_recipe, load_recipe
from jitkit.run import append_metrics, choose_folder, cut_metrics, environment, write_text
from jitkit.seeds import mix

BINS = 10  # of t, in the log
FLUSH_SECONDS = 1.0  # between readings of the loss from the device
TELL_SECONDS = 60.0  # between lines of loss where there is no terminal to draw a bar on
FREE_TO_CHANGE = (  # keys that change neither the model nor the data it has seen
    "name",
    "domain.path",  # data may move; whether they are the same is asked of themselves
    "sample.",
    "evaluate.",
    "train.steps",
    "train.save_every_steps",
    "train.keep",
    "train.preview_",
    "train.validate_",
    "train.workers",
    "train.compile",
    "train.checkpoint_activations",
)


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    run: str | Path | None = None,
    new: bool = False,
    domain: Domain | None = None,
) -> Path:
    """Train what a recipe describes, or go on with it, and return the run's folder.

    Args:
        recipe: a file, the bare name of a bundled recipe, its sections, or a recipe itself.
        overrides: ``{"train.steps": 100}`` or ``["train.steps=100"]``, laid over it.
        run: the run's folder; ``runs/<name of the recipe>`` where not given. If it holds a
            checkpoint the run goes on from there.
        new: start another run beside one that is there.
        domain: an adapter to use in place of the one that the recipe names.

    Raises:
        RecipeError: a mistake in the recipe, or one that differs from the run's own in what
            changes the model or the data.
        DataError: the data are missing or unlike what the recipe says.
        JitkitError: the loss is no longer a number.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise JitkitError(
            f"started as {os.environ['WORLD_SIZE']} processes, and a run has one for now: start it "
            "without torchrun"
        )
    if isinstance(recipe, Recipe) and overrides:
        recipe = recipe.model_dump(mode="json")
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides)
    folder = choose_folder(recipe.name, None if run is None else Path(run), new=new)
    found = checkpoint.newest(folder)
    domain = domain or open_domain(recipe.domain)
    if found is not None:
        if found.step > recipe.train.steps:
            raise RecipeError(
                f"{folder} is at step {found.step}, past train.steps={recipe.train.steps}; ask for "
                "more, or start another with --new"
            )
        _check_same(folder, recipe)
        _check_same_data(found, domain)
    if recipe.evaluate.after_training and not domain.scores():
        raise RecipeError(
            f"evaluate.after_training: domain {recipe.domain.name!r} has no measures to score "
            "samples with"
        )
    trainer = Trainer(recipe, domain, folder)
    trainer.start(found)
    before = trainer.step
    trainer.loop()
    unscored = trainer.step > before or not (folder / "evaluation.json").is_file()
    if recipe.evaluate.after_training and unscored:
        denoiser = trainer.denoiser_for_samples()
        model = {"step": trainer.step, "ema": str(recipe.train.ema[0])}
        result = evaluate(denoiser, recipe.sample, recipe.evaluate, folder, model=model)
        say(table(result))
    return folder


@dataclass
class _Waiting:
    """What a step is to log; its losses are still on the device."""

    step: int
    rate: float
    losses: Tensor
    t: Tensor
    held_out: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The step's line of ``metrics.jsonl``; waits for the device."""
        told = {"step": self.step, "lr": self.rate, "loss": float(self.losses.mean())}
        return told | {"loss_bins": _by_bin(self.losses, self.t)} | self.held_out


class Trainer:
    """One run in one process: model, means, optimizer, and where it stands.

    Attributes:
        step: steps that are done.
    """

    def __init__(self, recipe: Recipe, domain: Domain, folder: Path) -> None:
        self.recipe, self.domain, self.folder = recipe, domain, folder
        section = recipe.train
        torch.manual_seed(mix(section.seed, "weights"))
        self.device = choose_device()
        self.denoiser = assemble(recipe, domain).to(self.device)
        self.denoiser.autocast, why = choose_precision(section.precision, self.device)
        network = self.denoiser.network
        network.checkpoint_activations = section.checkpoint_activations
        self.ema = EMA(network, section.ema)
        self.optimizer = adamw(network, betas=section.betas, weight_decay=section.weight_decay)
        self.step = 0
        self._waiting: list[_Waiting] = []
        self._flushed = time.monotonic()
        self._bad: dict[str, str] = {}
        given = type(domain) is not domain_class(recipe.domain.name)
        self._record = DomainRecord(
            None if given else recipe.domain.model_dump(mode="json"),
            domain.facts(),
            len(domain.items("train")),
        )
        self._describe(why)
        if section.compile is True or (section.compile == "auto" and self.device.type == "cuda"):
            network.compile_blocks()

    def start(self, found: Checkpoint | None) -> None:
        """Begin from the first step, or go on from a checkpoint; then the run's files are there."""
        self.items = self.domain.items("train")
        if not len(self.domain.items("val")):
            say("no items are held out, so there will be no held-out loss")
        write_text(self.folder / "recipe.yaml", dump_recipe(self.recipe))
        if found is None:
            write_text(self.folder / "environment.json", json.dumps(environment(), indent=1))
            cut_metrics(self.folder, -1)
            self._try_whole_path()
            return
        checkpoint.restore(found, self.denoiser, self.ema, self.optimizer)
        self.step = found.step
        cut_metrics(self.folder, self.step)
        say(f"going on from step {self.step} of {self.recipe.train.steps} ({found.path})")

    def loop(self) -> None:
        """Train to the recipe's last step, with what happens on the way."""
        section, steps = self.recipe.train, self.recipe.train.steps
        if self.step >= steps:
            say(f"step {self.step} of {steps} is done; ask for more with train.steps=N")
            return
        data = batches(
            self.domain,
            self.items,
            batch_size=section.batch_size,
            seed=section.seed,
            start=self.step,
            stop=steps,
            workers=section.workers,
        )
        began, first = time.monotonic(), self.step
        told = began
        self.denoiser.train()
        with bar("training", steps, unit="steps", start=self.step) as show:
            for batch in data:
                self._train_on(batch.to(self.device))
                if self._due(section.validate_every_steps):
                    self._validate()
                last = self.step == steps
                if last or time.monotonic() - self._flushed > FLUSH_SECONDS:
                    loss = self._flush()
                    show(self.step, f"loss {loss:.4f}")
                    if not sys.stderr.isatty() and time.monotonic() - told > TELL_SECONDS:
                        told = time.monotonic()
                        say(f"step {self.step} of {steps}: loss {loss:.4f}")
                if last or self.step % section.save_every_steps == 0:
                    self._save()
                if self._due(section.preview_every_steps):
                    self._preview()
        took = time.monotonic() - began
        say(f"trained {steps - first} steps in {took:.0f} s; the run is in {self.folder}")

    def denoiser_for_samples(self) -> Denoiser:
        """The model with its first running mean for weights, in eval mode, for good."""
        with torch.no_grad():
            mean = self.ema.means[self.recipe.train.ema[0]]
            for name, parameter in self.denoiser.network.named_parameters():
                parameter.copy_(mean[name])
        return self.denoiser.eval()

    def _train_on(self, batch: Batch) -> None:
        """One step of the optimizer, a function of the batch, the seed and the step."""
        section, numbers = self.recipe.train, self.recipe.diffusion
        generator = torch.Generator(self.device)
        generator.manual_seed(mix(section.seed, "step", self.step))
        torch.manual_seed(mix(section.seed, "dropout", self.step))
        n = len(batch.x)
        if numbers.t_distribution == "uniform":
            t = uniform_t(n, generator=generator)
        else:
            t = logit_normal_t(n, P_mean=numbers.P_mean, P_std=numbers.P_std, generator=generator)
        eps = torch.randn(batch.x.shape, generator=generator, device=self.device)
        eps = eps * self.denoiser.diffusion.noise_scale
        cond = drop(self.denoiser.conditions, batch.cond, generator)
        rate = learning_rate(
            self.step,
            peak=peak_rate(self.recipe),
            warmup_steps=section.warmup_steps,
            steps=section.steps,
            schedule=section.schedule,
        )

        losses = self.denoiser.losses(batch.x, eps, t, cond, batch.mask, batch.coords)
        torch.autograd.backward(losses.mean())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step += 1
        self._waiting.append(_Waiting(self.step, rate, losses.detach(), t))
        self._note(batch.notes)

    def _flush(self) -> float:
        """Read the waiting losses from the device, log them, and return the last.

        Raises:
            JitkitError: a loss is not a number; what came before it is logged.
        """
        records = [waiting.record() for waiting in self._waiting]
        self._waiting.clear()
        self._flushed = time.monotonic()
        finite = list(takewhile(lambda record: isfinite(record["loss"]), records))
        append_metrics(self.folder, finite)
        if len(finite) < len(records):
            step, loss = (records[len(finite)][key] for key in ("step", "loss"))
            raise self._diverged(f"the loss of step {step} is {loss}")
        return float(records[-1]["loss"]) if records else float("nan")

    def _diverged(self, what: str) -> JitkitError:
        kept = checkpoint.newest(self.folder)
        return JitkitError(
            f"{what}; the last checkpoint is {kept.path if kept else 'none'}. Lower the learning "
            "rate (train.lr), or use train.precision=float32"
        )

    def _validate(self) -> None:
        """The held-out loss of the first running mean, logged with the step's own.

        Raises:
            JitkitError: it is not a number.
        """
        section = self.recipe.train
        with self._means():
            bins = held_out_loss(
                self.denoiser, self.domain, section.validate_items, section.batch_size
            )
        if bins is None:
            return
        loss = sum(w * b for w, b in zip(bin_weights(), bins, strict=True))
        if not isfinite(loss):
            self._flush()  # the step's own loss may tell more
            raise self._diverged(f"the held-out loss of step {self.step} is {loss}")
        self._waiting[-1].held_out = {"val_loss": loss, "val_loss_bins": bins}
        say(f"step {self.step}: held-out loss {loss:.4f}")

    def _preview(self) -> None:
        """A picture of samples at ``samples/step-N.png``."""
        with self._means():
            n, section = self.recipe.train.preview_samples, self.recipe.sample
            cond = conditions_for(self.denoiser, n)
            items = list(generate(self.denoiser, n, cond, section, progress=True))
        path = self.folder / "samples" / f"step-{self.step}.png"
        _save_picture(self.domain.preview(items), path)
        say(f"step {self.step}: samples in {path}")

    def _save(self) -> None:
        """A checkpoint of this step, the oldest removed.

        Raises:
            JitkitError: a loss or a weight is no finite number.
            CheckpointError: it cannot be written.
        """
        self._flush()
        if not all(bool(p.isfinite().all()) for p in self.denoiser.network.parameters()):
            raise self._diverged(f"a weight is no finite number after step {self.step}")
        checkpoint.save(
            self.folder,
            self.step,
            self.denoiser,
            self.ema,
            optimizer=self.optimizer,
            domain=self._record,
        )
        checkpoint.prune(self.folder, self.recipe.train.keep)

    def _try_whole_path(self) -> None:
        """A few samples of the untrained model through the whole path to files, before step 1."""
        with self._means():
            n = min(4, self.recipe.train.preview_samples)
            cond = conditions_for(self.denoiser, n)
            quick = self.recipe.sample.model_copy(update={"steps": 2, "method": "euler"})
            items = list(generate(self.denoiser, n, cond, quick))
        with tempfile.TemporaryDirectory(prefix="first-", dir=self.folder) as out:
            self.domain.write(items, Path(out))
        _save_picture(self.domain.preview(items), self.folder / "samples" / "step-0.png")

    @contextmanager
    def _means(self) -> Iterator[None]:
        """The first running mean in place of the weights, in eval mode; then back."""
        mean = self.ema.means[self.recipe.train.ema[0]]
        parameters = dict(self.denoiser.network.named_parameters())

        def swap() -> None:
            for name, parameter in parameters.items():
                parameter.data, mean[name] = mean[name], parameter.data

        swap()
        self.denoiser.eval()
        try:
            yield
        finally:
            swap()
            self.denoiser.train()

    def _due(self, every: int) -> bool:
        """At every so many steps, and at the last of a run that is at least so long."""
        return self.step % every == 0 or (
            self.step == self.recipe.train.steps and self.step >= every
        )

    def _note(self, notes: Sequence[tuple[str, str]]) -> None:
        """Say what was passed over in the data, each item once, and only the first of many."""
        for name, why in notes:
            if name not in self._bad and len(self._bad) < 20:
                warn(f"passed over {name}: {why}")
            self._bad[name] = why
        if notes:
            lines = "".join(f"{name}: {why}\n" for name, why in sorted(self._bad.items()))
            write_text(self.folder / "passed_over.txt", lines)

    def _describe(self, precision: str) -> None:
        """What is about to be trained, in a few lines."""
        denoiser, section = self.denoiser, self.recipe.train
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
            f"model: {weights:,} weights on {self.device}; {precision}; "
            f"noise scale {denoiser.diffusion.noise_scale:g}; "
            f"learning rate {peak_rate(self.recipe):.3g}"
        )
        if self.recipe.sample.guidance != 1 and not any(
            condition.drop for condition in denoiser.conditions.values()
        ):
            warn("sample.guidance has no effect: no condition is ever dropped in training")
        needed = sum(
            training_bytes(
                network,
                section.batch_size,
                emas=len(section.ema),
                checkpointing=section.checkpoint_activations,
            ).values()
        )
        if needed > (free := free_bytes(self.device) + weights * 4 * (1 + len(section.ema))):
            warn(
                f"training needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} are free; if it "
                "fails, lower train.batch_size or set train.checkpoint_activations=true"
            )


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser, domain: Domain, most: int, batch_size: int
) -> list[float] | None:
    """Loss on validation items for each bin of t, on noise that never changes; None without items.

    It can be compared between runs: bins are of the t that the same signal-to-noise ratio has
    under unit noise, t' = t / (t + s (1 - t)), and the error is that of the clean data times
    1 / (1 - t')², which is the v-loss of a run with unit noise, whatever the recipe's own.
    """
    totals, count = [0.0] * BINS, 0
    scale = denoiser.diffusion.noise_scale
    full = (len(denoiser.layout.channels), *denoiser.layout.grid)
    for indices, batch in held_out(domain, most=most, batch_size=batch_size):
        batch = batch.to(denoiser.device)
        own = (slice(None), slice(None), *(slice(size) for size in batch.x.shape[2:]))
        count += len(indices)
        for k in range(BINS):
            unit = (k + 0.5) / BINS
            draws = [  # on the full grid, so that what an item is padded with changes nothing
                torch.randn(full, generator=torch.Generator().manual_seed(mix("held out", i, k)))
                for i in indices
            ]
            eps = torch.stack(draws)[own].to(denoiser.device) * scale
            t = torch.full((len(indices),), scale * unit / (1 - unit + scale * unit))
            losses = denoiser.losses(
                batch.x, eps, t.to(eps.device), batch.cond, batch.mask, batch.coords, loss="x"
            )
            totals[k] += float(losses.sum()) / (1 - unit) ** 2
    return [total / count for total in totals] if count else None


def bin_weights() -> list[float]:
    """Share of the paper's times (logit-normal, -0.8, 0.8) in each bin of t."""

    def below(t: float) -> float:
        if t in (0.0, 1.0):
            return t
        return (1 + erf((log(t / (1 - t)) + 0.8) / 0.8 / sqrt(2))) / 2

    return [below((k + 1) / BINS) - below(k / BINS) for k in range(BINS)]


def _by_bin(losses: Tensor, t: Tensor) -> list[float | None]:
    """Mean loss of the samples in each bin of t; None where there are none."""
    bins = (t * BINS).long().clamp(0, BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add_(0, bins, losses).tolist()
    counts = torch.bincount(bins, minlength=BINS).tolist()
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)]


def _save_picture(picture: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    picture.save(aside, format="PNG")
    aside.replace(path)


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Stop where the run's own recipe differs in what changes the model or the data."""
    own = load_recipe(folder / "recipe.yaml")
    different = [line for line in differences(own, recipe) if not line.startswith(FREE_TO_CHANGE)]
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise RecipeError(
            f"{folder} holds a run that began otherwise:{lines}\n"
            "start another with --new or --run DIR, or take these back to go on"
        )


def _check_same_data(found: Checkpoint, domain: Domain) -> None:
    """Stop where the data are not those that the run has seen: its order and labels would shift."""
    record = found.model.get("domain") or {}
    facts = json.loads(json.dumps(domain.facts()))
    now = {"facts": facts, "num_items": len(domain.items("train"))}
    different = [
        f"\n  {name}: {record[name]} -> {value}"
        for name, value in now.items()
        if record.get(name) not in (None, value)
    ]
    if different:
        raise DataError(
            f"the data are not those that {found.path} was trained on:{''.join(different)}\n"
            "start another with --new or --run DIR, or take the data back to go on"
        )
