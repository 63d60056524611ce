"""How stable molecules become in an hour on two cores, by what the network says: x, v or eps.

    python -m benchmarks.molecules [--minutes 60] [--predictions x,v,eps] [section.key=value ...]

Trains the recipe `qm9-cpu` once for each prediction, all with the v-loss, for equally many steps:
as many as fit in the minutes that are given by the time of a step, measured first (the network is
the same, and so is that time). Along the way eight checkpoints are kept, and a thousand samples of
each are scored with the domain's own measures. Prints a table, writes it into docs/results.md
between its marks, and draws docs/molecules.png: stable atoms and molecules against minutes.

A run that was cut off goes on when the same command is given again (``--folder`` keeps runs).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

from jitkit.processor import settle

settle()  # as the command line does, before torch

import jitkit  # noqa: E402
from jitkit.check import assemble  # noqa: E402
from jitkit.domain import Domain, open_domain  # noqa: E402
from jitkit.generate import conditions_for, generate  # noqa: E402
from jitkit.learner import rehearse  # noqa: E402
from jitkit.recipe import Recipe, load_recipe  # noqa: E402
from jitkit.run import environment  # noqa: E402

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
PICTURE = RESULTS.with_name("molecules.png")
BEGIN, END = "<!-- molecules -->\n", "<!-- end of molecules -->"
CHECKPOINTS = 8
MEASURES = ("atom_stability", "molecule_stability", "validity", "valid_and_unique", "novelty")
DEMAND = 0.8  # of atoms stable after the hour, by x-prediction
COLOURS = {"x": "#1f6fb4", "v": "#d95f02", "eps": "#7a7a7a"}


def seconds_of_a_step(recipe: Recipe, domain: Domain) -> float:
    """Seconds of a training step on this machine, the middle of five rehearsals."""
    return sorted(rehearse(recipe, domain)["step_seconds"] for _ in range(5))[2]


def trained(overrides: Sequence[str], prediction: str, steps: int, run: Path) -> float:
    """Train a run to its end, and return the minutes that a step took, the middle of all readings.

    What a run's own clock has read holds for one that was cut off and went on as well.
    """
    every = max(1, steps // CHECKPOINTS)
    fixed = (
        f"diffusion.prediction={prediction}",
        f"train.steps={steps}",
        f"train.save_every_steps={every}",
        f"train.keep_every_steps={every}",
        f"train.preview_every_steps={steps}",
        f"train.validate_every_steps={steps}",
        "evaluate.after_training=false",
    )
    jitkit.train(load_recipe("qm9-cpu", [*overrides, *fixed]), run=run)
    lines = (run / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    rates = sorted(json.loads(line)["samples_per_second"] for line in lines)
    return load_recipe(run / "recipe.yaml").train.batch_size / rates[len(rates) // 2] / 60


def scored(run: Path, domain: Domain, samples: int) -> list[dict[str, float]]:
    """Scores of samples of each checkpoint of a run, in the order of their steps."""
    rows, measures = [], domain.scores()
    for place in sorted(run.glob("checkpoints/step-*"), key=lambda p: int(p.name[5:])):
        kept = run / f"scores-{place.name}-{samples}.json"
        if not kept.is_file():
            denoiser = jitkit.load(place)
            denoiser.domain = domain
            section = load_recipe(run / "recipe.yaml").sample
            told = conditions_for(denoiser, samples, seed=section.seed)
            items = list(generate(denoiser, samples, told, section))
            found = {name: measures[name](items, []) for name in MEASURES if name in measures}
            kept.write_text(json.dumps({"step": int(place.name[5:])} | found))
        rows.append(json.loads(kept.read_text()))
    return rows


def table(rows: dict[str, list[dict[str, float]]], minutes: dict[str, float]) -> str:
    """Two lines for each prediction: after a quarter of its steps, and at the end."""
    names = [name for name in MEASURES if name in next(iter(rows.values()))[-1]]
    lines = [f"| prediction | minutes | {' | '.join(n.replace('_', ' ') for n in names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for prediction, found in rows.items():
        for row in (found[max(0, len(found) // 4 - 1)], found[-1]):
            at = minutes[prediction] * row["step"]
            shown = (100 * row[name] for name in names)
            values = " | ".join("none valid" if isnan(v) else f"{v:.1f} %" for v in shown)
            lines.append(f"| {prediction} | {at:.0f} | {values} |")
    return "\n".join(lines)


def draw(rows: dict[str, list[dict[str, float]]], minutes: dict[str, float]) -> None:
    """Shares of stable atoms and molecules against minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    titles = {"atom_stability": "stable atoms", "molecule_stability": "stable molecules"}
    real = {"atom_stability": 0.994, "molecule_stability": 0.953}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for prediction, found in rows.items():
            x = [minutes[prediction] * row["step"] for row in found]
            label, colour = f"{prediction}-prediction", COLOURS[prediction]
            axes.plot(x, [row[name] for row in found], "o-", label=label, color=colour, ms=4)
        axes.axhline(real[name], color="black", lw=0.8, ls=":", label="QM9 itself")
        axes.set(title=title, xlabel="minutes of training", ylim=(0, 1.02), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    figure.savefig(PICTURE)


def write(text: str) -> None:
    """Put a text between the marks in docs/results.md, which gets them where it has none."""
    whole = RESULTS.read_text(encoding="utf-8")
    if BEGIN not in whole:
        before, mark, after = whole.partition("## Not measured")
        whole = f"{before}{BEGIN}{END}\n\n{mark}{after}"
    before, rest = whole.split(BEGIN)
    RESULTS.write_text(f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def report(command: str, body: str, denoiser: Any, steps: int, samples: int) -> str:
    """The section of docs/results.md."""
    made = environment()
    machine, commit = made["machine"], made["commit"]
    weights = sum(p.numel() for p in denoiser.network.parameters())
    return (
        f"## Molecules of QM9\n\n`{command}`: the recipe `qm9-cpu` ({weights:,} weights, {steps:,} "
        f"steps), the v-loss, one run for each prediction; {samples:,} samples of each checkpoint. "
        f"{machine['cores']} cores of {machine['processor']}, torch {made['versions']['torch']}, "
        f"commit {commit}.\n\n{body}\n\nQM9 itself has 99.4 % and 95.3 % by the same table of "
        "bonds.\n\n![Stability against minutes](molecules.png)\n"
    )


def main() -> None:
    """Train, score, write; exit code 1 where x-prediction falls short of the demand."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--predictions", default="x,v,eps")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-molecules"))
    parser.add_argument("--dry", action="store_true", help="print, and leave the documents alone")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    recipe = load_recipe("qm9-cpu", given.overrides)
    domain = open_domain(recipe.domain)
    given.folder.mkdir(parents=True, exist_ok=True)
    plan = given.folder / "plan.json"
    if not plan.is_file():
        steps = int(given.minutes * 60 / seconds_of_a_step(recipe, domain))
        plan.write_text(json.dumps({"steps": steps}))
    steps = int(json.loads(plan.read_text())["steps"])
    rows, minutes = {}, {}
    for prediction in given.predictions.split(","):
        run = given.folder / prediction
        minutes[prediction] = trained(given.overrides, prediction, steps, run)
        rows[prediction] = scored(run, domain, given.samples)
    body = table(rows, minutes)
    print(body)
    if not given.dry:
        words = [f"--minutes {given.minutes:g}", *given.overrides]
        command = " ".join(["python -m benchmarks.molecules", *words])
        write(report(command, body, assemble(recipe, domain), steps, given.samples))
        draw(rows, minutes)
    raise SystemExit("x" in rows and rows["x"][-1]["atom_stability"] < DEMAND)


if __name__ == "__main__":
    main()
