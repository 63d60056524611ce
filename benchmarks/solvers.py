"""Which solver and time grid need the fewest network evaluations: all on the same trained weights.

    python -m benchmarks.solvers [--place runs/solvers] [--write]

Two models, trained first if the folder ``--place`` does not have them: the recipe `digits`, sampled
without guidance and with the guidance of the recipe, and the Gaussian fields of `benchmarks.fields`
after fewer steps. For each solver of `jitkit.diffusion.solvers`, each time grid and an NFE of 10 to
50:

- *error*: root mean square difference of samples from those of 400 steps of Heun from the same
  noise, over the root mean square of these. It depends on the solver alone, without the variation
  of scores.
- *scores* at the largest NFE that is at most a quarter of the paper's 99: those of the domain for
  digits; for fields the errors against the known distribution and against the exact sampler's
  fields from the same noise.

Results are stored in the folder, so the same command resumes after an interruption. ``--write``
writes the tables and the figure into docs/solvers.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch

import numpy as np  # noqa: E402
from torch import Tensor  # noqa: E402

import jitkit  # noqa: E402
from benchmarks import fields as fieldbench  # noqa: E402
from benchmarks.gaussian import GaussianFields, marginals, standardized  # noqa: E402
from benchmarks.solverpage import write_page  # noqa: E402
from jitkit.diffusion.sampler import draw_noise  # noqa: E402
from jitkit.diffusion.solvers import SOLVERS, TIME_GRIDS, Method, TimeGrid, nfe  # noqa: E402
from jitkit.evaluation.scoring import Score, resamples, row  # noqa: E402
from jitkit.runs.run_dir import write_text  # noqa: E402
from jitkit.sampling.generate import sample_items  # noqa: E402
from jitkit.sampling.requests import conditioning_for  # noqa: E402
from jitkit.sections import SampleSection  # noqa: E402

COUNTS = (10, 15, 20, 25, 50)
QUARTER = 25
REFERENCE_STEPS = 400
BATCH = 256
FIELD_STEPS, FIELD_ITEMS = 800, 16_000

Measure = Callable[[Sequence[Any]], Mapping[str, float]]


class Setting(NamedTuple):
    """A solver, its time grid and its number of steps."""

    method: Method
    time_grid: TimeGrid
    steps: int

    @property
    def evaluations(self) -> int:
        """Network evaluations (NFE) per sample."""
        return nfe(self.method, self.steps)

    @property
    def key(self) -> str:
        """Name in tables and records: ``"ab3 cosine 25"``."""
        return f"{self.method} {self.time_grid} {self.steps}"


PAPER = Setting("heun", "uniform", 50)


def steps_within(method: Method, most: int) -> int:
    """The most steps of a rule that ask for the velocity no more than so often.

    >>> steps_within("heun", 25), steps_within("ab3", 25)
    (13, 25)
    """
    return (most + 1) // 2 if method == "heun" else most


def settings(count: int) -> list[Setting]:
    """Every solver with every time grid at this NFE (Heun's is one less if it is even)."""
    return [
        Setting(rule, times, steps_within(rule, count)) for rule in SOLVERS for times in TIME_GRIDS
    ]


@dataclass(frozen=True)
class Case:
    """A model with sampling settings, and the metrics of its samples."""

    name: str
    run: Path
    guidance: float | None = None

    @cached_property
    def denoiser(self) -> jitkit.Denoiser:
        """The trained model."""
        return jitkit.load(self.run)

    @cached_property
    def section(self) -> SampleSection:
        """Sampling settings of the recipe, with the guidance of the case."""
        section = jitkit.load_recipe(self.run / "recipe.yaml").sample
        return section if self.guidance is None else section.model_copy(
            update={"guidance": self.guidance})  # fmt: skip

    def under(self, setting: Setting, seed: int) -> SampleSection:
        """The section with a solver, its time grid and a seed."""
        return self.section.model_copy(
            update=setting._asdict() | {"seed": seed, "batch_size": BATCH}
        )

    def ends(self, setting: Setting, n: int, seed: int) -> Tensor:
        """Samples as encoded values, (n, C, X1..Xn)."""
        conditioning, section = (
            conditioning_for(self.denoiser, n, seed=seed),
            self.under(setting, seed),
        )
        return jitkit.sample(
            self.denoiser,
            n,
            conditioning.cond,
            section,
            mask=conditioning.mask,
            coords=conditioning.coords,
        )

    def items(self, setting: Setting, n: int, seed: int) -> list[Any]:
        """Samples as items of the domain."""
        conditioning = conditioning_for(self.denoiser, n, seed=seed)
        return list(sample_items(self.denoiser, n, conditioning, self.under(setting, seed)))

    def scores(self, setting: Setting, n: int, seed: int) -> dict[str, Score]:
        """Every score of samples of one seed."""
        items = self.items(setting, n, seed)
        if "fields" not in self.name:
            return scored(self._by_domain, items)
        noise = draw_noise(self.denoiser, range(n), seed) / self.denoiser.diffusion.noise_scale
        exact = GaussianFields().from_noise(noise.double().numpy())
        return scored(against_truth, list(zip([i.values for i in items], exact, strict=True)))

    def _by_domain(self, items: Sequence[Any]) -> dict[str, float]:
        domain = self.denoiser.domain
        real = list(domain.items("train"))
        return {name: measure(items, real) for name, measure in domain.scores().items()}


def scored(measure: Measure, items: Sequence[Any]) -> dict[str, Score]:
    """Scores of items, and their variation over random halves."""
    values, halves = measure(items), resamples(len(items))
    again = [measure([items[i] for i in half]) for half in halves]
    return {
        name: Score(value, tuple(one[name] for one in again),
                    float(np.std([one[name] for one in again], ddof=1)), len(items))
        for name, value in values.items()
    }  # fmt: skip


def against_truth(pairs: Sequence[Any]) -> dict[str, float]:
    """Metrics of fields and of the exact sampler's from the same noise, (2, rows, columns) each.

    Standard deviation over the exact one; root mean square relative error of power along both axes
    down to the length of a patch; mean square distance from the exact sampler's fields, in
    variances.
    """
    fields = GaussianFields()
    made, exact = (standardized(np.stack(each)) for each in zip(*pairs, strict=True))
    circle = fields.circle_power_of(made).value / fields.circle_power
    line = fields.line_power_of(made).value / fields.line_power
    patch = fieldbench.PATCH
    off = np.concatenate([circle[:, 1 : fields.columns // patch + 1].ravel(),
                          line[:, 1 : fields.rows // patch + 1].ravel()]) - 1  # fmt: skip
    return {
        "standard deviation": float(marginals(made)[1].value.mean()),
        "error of power": float(np.sqrt(np.square(off).mean())),
        "distance from exact": float(np.nanmean(np.square(made - exact))),
    }


class Records:
    """Results by case, kind and setting, in a file that is extended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def once(self, key: str, find: Callable[[], Any]) -> Any:
        """A result, computed if it is not in the file."""
        if key not in self.found:
            self.found[key] = find()
            write_text(self.path, json.dumps(self.found, indent=1))
            print(key, json.dumps(self.found[key])[:100], flush=True)
        return self.found[key]


def errors_of(case: Case, n: int, counts: Sequence[int], records: Records) -> None:
    """The error of every setting, and of the paper's."""

    @cache
    def reference() -> Tensor:
        return case.ends(Setting("heun", "uniform", REFERENCE_STEPS), n, seed=0)

    def error(setting: Setting) -> float:
        off = case.ends(setting, n, seed=0) - reference()
        return float((off.square().mean() / reference().square().mean()).sqrt())

    for setting in [PAPER, *(one for count in counts for one in settings(count))]:
        records.once(f"{case.name} | error of {n} | {setting.key}", partial(error, setting))


def scores_of(case: Case, n: int, seeds: int, count: int, records: Records) -> None:
    """Scores of the paper's setting and of all settings at one NFE."""

    def rows(setting: Setting) -> dict[str, Any]:
        each = [case.scores(setting, n, seed) for seed in range(1, seeds + 1)]
        return {name: row([one[name] for one in each], None, "real") for name in each[0]}

    for setting in [PAPER, *settings(count)]:
        records.once(f"{case.name} | scores of {n} | {setting.key}", partial(rows, setting))


def cases(place: Path) -> Iterator[Case]:
    """The cases; models that are missing are trained."""
    digits, fields = place / "digits", place / "fields" / "run"
    if not _done(digits):
        recipe = jitkit.load_recipe("digits", ["evaluate.after_training=false"])
        jitkit.train(recipe, run=digits)
    yield Case("digits", digits, 1.0)
    yield Case("digits, guidance 1.5", digits)
    if not _done(fields):
        fields.parent.mkdir(exist_ok=True)
        asked = [f"train.steps={FIELD_STEPS}", "train.validate_every_steps=400"]
        fieldbench.train(GaussianFields(), FIELD_ITEMS, asked, fields.parent, as_line=False)
    yield Case("fields", fields)


def _done(run: Path) -> bool:
    status = run / "status.json"
    return status.exists() and json.loads(status.read_text())["state"] == "done"


def main() -> None:
    """Compute missing results, print the tables, and write the page if requested."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--place", type=Path, default=Path("runs/solvers"))
    parser.add_argument("--noises", type=int, default=64, help="samples whose error is taken")
    parser.add_argument("--samples", type=int, default=500, help="scored, for each seed")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="into docs/solvers.md")
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    records = Records(asked.place / "solvers.json")
    for case in cases(asked.place):
        errors_of(case, asked.noises, COUNTS, records)
        if asked.samples:
            scores_of(case, asked.samples, asked.seeds, QUARTER, records)
    write_page(records.found, asked.place, docs=Path("docs") if asked.write else None)


if __name__ == "__main__":
    main()
