"""Forecasts of a system with a known forecast distribution: `python -m benchmarks.forecast`.

Writes a series of `benchmarks.forecastsystem` as a Zarr store, trains a small model of one step
(`jitkit train [overrides]`), forecasts ensembles (`jitkit forecast`), scores them (`jitkit
evaluate`), and compares them with the exact ensemble from the same states and the baselines, with
the same code. Requirements, with at most 30 minutes of training on two cores, in both channels:

- one step ahead: CRPS within 5 % of the exact ensemble's, spread over RMSE from 0.95 to 1.05, power
  of the members at every wavenumber down to the length of a patch within 10 % of the exact one's;
- ten steps ahead: CRPS within 10 %, spread over RMSE from 0.9 to 1.1.

``--write`` puts the table into docs/results.md and the figure into docs/forecast.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import jitkit
from benchmarks.forecastsystem import (
    CHANNELS,
    HOURS,
    UNITS,
    DriftingFields,
    optimum,
    physical,
    standardised,
    write_zarr,
)
from jitkit.domains.weather.verify import grid_coordinates
from jitkit.metrics.forecasts.baselines import baselines
from jitkit.metrics.forecasts.climatology import StateSeries
from jitkit.metrics.forecasts.ensemble_scores import ScoreFrame
from jitkit.metrics.forecasts.forecast_files import ForecastFile
from jitkit.metrics.forecasts.verify import MODEL, Verification, VerificationPlan, verify
from jitkit.plots.forecasts import draw_scores
from jitkit.runs.run_dir import environment, write_text
from jitkit.utils.atomic import atomic_write
from jitkit.utils.types import Array

PATCH, STEPS = 4, 10
EXACT = "optimum"
MOST_SECONDS = 1800
DOCS = Path(__file__).parents[1] / "docs"
HEADING = "## Forecasts of a system that is known"
CHECKED = ((1, 0.05, 0.05), (STEPS, 0.1, 0.1))  # step, tolerance of CRPS, of spread over RMSE
SPECTRUM = 0.1
RECIPE: dict[str, Any] = {
    "domain": {
        "name": "weather",
        "task": "forecast",
        "lead": f"{HOURS}h",
        # A change would have the noise of two steps: the pressure drifts by two cells per step.
        "target": "state",
        "variables": list(CHANNELS),
        "static": ["land_sea_mask"],
        "val": 0.05,
    },
    "model": {"width": 128, "depth": 3, "heads": 4, "patch": PATCH, "in_context_tokens": 0},
    # Times near 0 and 1 determine the longest and shortest wavelengths, so more are drawn there.
    "diffusion": {"P_mean": -0.8, "P_std": 1.2},
    "train": {
        "steps": 5000,
        "batch_size": 128,
        "lr": 4e-3,
        "warmup_steps": 200,
        "schedule": "cosine",
        "ema": [0.995, 0.99],
        "precision": "float32",
        "save_every_steps": 1000,
        "preview_every_steps": 100_000,
        "validate_every_steps": 1000,
        "validate_items": 1024,
    },
    # The last step ends at t = 1: clamped at 0.05, as in training, it would lose 3 % of variance.
    "sample": {"steps": 25, "t_eps": 0.04},
}


class ExactEnsemble:
    """The exact forecast distribution as a forecast system: members from the known recursion."""

    name = EXACT

    def __init__(self, fields: DriftingFields, states: StateSeries, members: int) -> None:
        self.members, self._fields, self._states = members, fields, states
        self._held: tuple[int, Array] | None = None

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, rows, columns) in K and Pa, as `System`."""
        if self._held is None or self._held[0] != start:
            x, rng = standardised(self._states.read(start)), np.random.default_rng(start)
            self._held = start, self._fields.ensemble(x, self.members, STEPS, rng)
        return physical(self._held[1][steps - 1], self._fields)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: of the score.
        numbers: of every system, the model first; NaN where undefined.
        reach: half the model's 95 % interval; NaN without one.
        demand: requirement as text; empty without one.
        met: whether the model meets it.
    """

    name: str
    numbers: Sequence[float]
    reach: float
    demand: str
    met: bool

    def __str__(self) -> str:
        first, *others = [f"{n:.4g}" if np.isfinite(n) else "" for n in self.numbers]
        first += f" ± {self.reach:.2g}" if np.isfinite(self.reach) else ""
        met = ("yes" if self.met else "no") if self.demand else ""
        cells = [self.name, first, *others, self.demand, met]
        return f"| {' | '.join(cells)} |"


def command(*words: object) -> float:
    """Run a command of jitkit; returns the seconds it took."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "jitkit", *map(str, words)], check=True)
    return time.monotonic() - began


def scored(run: Path, file: Path, fields: DriftingFields) -> Verification:
    """Forecasts of the file, exact forecasts from the same states, and the baselines."""
    domain: Any = jitkit.load(run).domain
    states = domain.states()
    model = ForecastFile(file, states, MODEL, grid_coordinates(domain.layout, domain.metadata()))
    axes = [(axis.name, axis.kind) for axis in domain.layout.axes]
    frame = ScoreFrame(states.channels, axes, np.asarray(domain.weights, np.float64))
    exact = ExactEnsemble(fields, states, model.members)
    kinds = [kind for _, kind in axes]
    others, _ = baselines(
        states, kinds=kinds, members=model.members, max_steps=STEPS, max_states=2000, seed=0
    )
    labels = [f"{HOURS * step}h" for step in model.leads]
    plan = VerificationPlan(model.starts, model.leads, labels)
    return verify([model, exact, *others], states, frame, plan)


def compare(found: Verification) -> list[Row]:
    """The table: scores of all systems, and the requirements of the model."""
    values, rows = found.scores(), list[Row]()
    deviations = found.deviations.score[MODEL]
    for step, crps, skill in CHECKED:
        lead = list(found.plan.leads).index(step)
        for c, (channel, unit) in enumerate(zip(CHANNELS, UNITS, strict=True)):
            at = (lead, c)
            where = f"{channel}, {found.plan.labels[lead]}"

            def of(score: str, at: tuple[int, int] = at) -> list[float]:
                return [float(v[score][at]) if score in v else np.nan for v in values.values()]

            numbers, reach = of("crps"), 1.96 * float(deviations["crps"][at])
            demand, met = (
                f"within {100 * crps:.0f} % of the optimum",
                numbers[0] < (1 + crps) * numbers[1],
            )
            rows.append(Row(f"{where}: CRPS ({unit})", numbers, reach, demand, met))
            rows.append(Row(f"{where}: RMSE ({unit})", of("rmse"), np.nan, "", True))
            numbers, reach = of("spread_skill"), 1.96 * float(deviations["spread_skill"][at])
            demand, met = f"1 within {skill:g}", abs(numbers[0] - 1) <= skill
            rows.append(Row(f"{where}: spread over RMSE", numbers, reach, demand, met))
            rows += [_spectrum_row(found, axis, at, where) for axis, _ in found.frame.axes]
    return rows


def _spectrum_row(found: Verification, axis: str, at: tuple[int, int], where: str) -> Row:
    """The wavenumber where the members' power differs most from the exact ensemble's."""
    sizes = dict(zip((name for name, _ in found.frame.axes), found.frame.grid, strict=True))
    resolved = sizes[axis] // PATCH
    power = {name: sums.power_ratio(axis)[at] for name, sums in found.accumulators.items()}
    ratio = {name: p[:resolved] / power[EXACT][:resolved] for name, p in power.items()}
    k = int(np.abs(ratio[MODEL] - 1).argmax())
    name = f"{where}: power along {axis} over the optimum's, worst of k = 1 to {resolved}: {k + 1}"
    met = abs(ratio[MODEL][k] - 1) <= SPECTRUM or at[0] > 0
    demand = f"1 within {SPECTRUM:g}" if at[0] == 0 else ""
    return Row(name, [float(r[k]) for r in ratio.values()], np.nan, demand, met)


def section_text(
    found: Verification, rows: Sequence[Row], fields: DriftingFields, about: str
) -> str:
    """The section of docs/results.md."""
    names = [name.replace("_", " ") for name in found.accumulators]
    head = ["measure", *names, "demand", "met"]
    known = optimum(fields, [step for step, _, _ in CHECKED])[..., ~fields.island].mean(axis=-1)
    closed = "; ".join(
        f"{HOURS * step}h: {t:.4g} K, {p:.4g} Pa"
        for (step, _, _), (t, p) in zip(CHECKED, known, strict=True)
    )
    return "\n".join(
        [
            HEADING,
            "",
            "`python -m benchmarks.forecast --write`: two correlated channels that are advected "
            "around a circle of 32 cells at\ndifferent speeds, with damping and noise of a steep "
            "spectrum, and an island without data; domain `weather`\nfrom a Zarr store. The "
            "*optimum* is an ensemble of the exact forecast distribution from the same states, "
            f"scored by\nthe same code. {about}",
            "",
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *map(str, rows),
            "",
            "`±` is half a 95 % interval by block bootstrap over initial times. The closed form of "
            f"the optimum's CRPS, σ / √π\naveraged over all states and cells: {closed}.",
            "",
            "![Forecasts: truth, members, mean, spread; scores against lead](forecast.png)",
            "",
        ]
    )


def filled(text: str, section: str) -> str:
    """The document with this section replaced, or inserted before the last section."""
    before, heading, after = text.partition(HEADING)
    if heading:
        _, following, rest = after.partition("\n## ")
        return before + section + following + rest
    at = text.rindex("\n## ") + 1
    return text[:at] + section + "\n" + text[at:]


def join_figures(maps: Path, scores: Path, path: Path) -> None:
    """Maps above scores in one PNG."""
    from PIL import Image

    above, below = (Image.open(p).convert("RGB") for p in (maps, scores))
    below = below.resize((above.width, below.height * above.width // below.width))
    both = Image.new("RGB", (above.width, above.height + below.height), "white")
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    with atomic_write(path) as aside:
        both.quantize(256).save(aside, format="PNG", optimize=True)


def main() -> None:
    """Print the table; exit code 1 if a requirement is not met."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--series", type=int, default=40_000, help="steps of the series")
    parser.add_argument("--inits", type=int, default=64)
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="keep data and run there, and go on from it")
    parser.add_argument("--write", action="store_true", help="into docs/")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as aside:
        folder = arguments.folder or Path(aside)
        seconds, rows, text = measured(folder, arguments)
    print(text)
    raise SystemExit(not (seconds < MOST_SECONDS and all(row.met for row in rows)))


def measured(folder: Path, arguments: argparse.Namespace) -> tuple[float, list[Row], str]:
    """Data, training, forecasts and scores in a folder: seconds of training, table, section."""
    fields, run, data = DriftingFields(), folder / "run", folder / "fields.zarr"
    if not data.exists():
        series = fields.series(arguments.series, np.random.default_rng(0))
        write_zarr(series, fields, data, "1990-01-01")
    recipe = RECIPE | {"name": "forecast", "domain": RECIPE["domain"] | {"path": str(data)}}
    write_text(folder / "forecast.yaml", yaml.safe_dump(recipe, sort_keys=False))
    trained = command("train", folder / "forecast.yaml", *arguments.overrides, "--run", run)
    init, lead, file = f"val:{arguments.inits}", f"{HOURS * STEPS}h", folder / "forecasts.zarr"
    took = command("forecast", run, "--init", init, "--lead", lead, "--members", arguments.members,
                   "--out", file)  # fmt: skip
    command("evaluate", run, f"domain.verify.forecasts={file}")
    found = scored(run, file, fields)
    rows = compare(found)
    where = environment()
    about = (
        f"Training {trained:.0f} s, {arguments.inits} x {arguments.members} forecasts of {STEPS} "
        f"steps {took:.0f} s;\n{where['machine']['processor']}, {where['machine']['cores']} cores, "
        f"torch {where['versions']['torch']}, commit {where['commit']}."
    )
    text = section_text(found, rows, fields, about)
    figures = run / "verification"
    units, hours = dict(zip(CHANNELS, UNITS, strict=True)), [HOURS * s for s in found.plan.leads]
    draw_scores(found, units=units, hours=hours, path=figures / "with_optimum.png")
    target = DOCS if arguments.write else folder
    join_figures(figures / "maps.png", figures / "with_optimum.png", target / "forecast.png")
    if arguments.write:
        results = DOCS / "results.md"
        write_text(results, filled(results.read_text(encoding="utf-8"), text))
    return trained, rows, text


if __name__ == "__main__":
    main()
