"""Stability of molecules after an hour on two cores, with x-, v- and eps-prediction.

    python -m benchmarks.molecules [--minutes 60] [--compare 10] [section.key=value ...]

Trains the recipe `qm9-cpu` for as many steps as fit in the minutes, and then for fewer minutes once
with each prediction, all with the v-loss. The time of a step is measured first, by a short run on
an idle machine, and stored; all runs use it, because their networks have the same cost. Four
checkpoints of the long run are scored for stability. The final weights of each run are scored by
`jitkit.evaluate`, those of the long run also with its first checkpoint as guide
(`sample.autoguidance`). Prints a table, writes it into docs/results.md between its marks, and draws
docs/molecules.png: stable atoms and molecules against minutes.

An interrupted run resumes when the same command is given again (``--folder`` keeps runs). With
``--only x-60,v-10`` only these are trained and scored, so that two commands with one thread each
can share the work after the time of a step was measured (``--only none``); a last command without
``--only`` writes the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jitkit.utils.cpu import configure_process

configure_process()  # as the command line does, before torch

import jitkit  # noqa: E402
from jitkit.diffusion.build import assemble  # noqa: E402
from jitkit.domain import Domain  # noqa: E402
from jitkit.recipe.load import load_recipe  # noqa: E402
from jitkit.registry import open_domain  # noqa: E402
from jitkit.runs.run_dir import environment  # noqa: E402
from jitkit.sampling.generate import sample_items  # noqa: E402
from jitkit.sampling.requests import conditioning_for  # noqa: E402

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
PICTURE = RESULTS.with_name("molecules.png")
BEGIN, END = "<!-- molecules -->\n", "<!-- end of molecules -->"
PACE = 600  # steps that are timed beforehand
CHECKPOINTS = 5
MEASURES = ("atom_stability", "molecule_stability", "validity", "valid_and_unique", "novelty")
DEMAND = 0.8  # of atoms stable after the hour, by x-prediction
COLOURS = {"x": "#1f6fb4", "v": "#d95f02", "eps": "#7a7a7a"}


@dataclass(frozen=True)
class Training:
    """One training: the prediction, and its minutes on the machine."""

    prediction: str
    minutes: float

    @property
    def name(self) -> str:
        """Name of the run, such as ``"x-60"``."""
        return f"{self.prediction}-{self.minutes:g}"


def seconds_of_a_step(overrides: Sequence[str], run: Path) -> float:
    """Seconds of a training step on this machine, measured in a run of `PACE` steps."""
    every = ("save", "validate", "preview")
    seldom = [f"train.{what}_every_steps={PACE}" for what in every]
    short = (f"train.steps={PACE}", "evaluate.after_training=false")
    recipe = load_recipe("qm9-cpu", [*overrides, *seldom, *short])
    jitkit.train(recipe, run=run)
    lines = (run / "speed.jsonl").read_text(encoding="utf-8").splitlines()
    rates = sorted(json.loads(line)["samples_per_second"] for line in lines)
    return float(recipe.train.batch_size / rates[len(rates) // 2])


def trained(overrides: Sequence[str], training: Training, steps: int, run: Path) -> None:
    """Train a run to its end, unless it is finished."""
    every = -(-steps // CHECKPOINTS)
    fixed = (
        f"diffusion.prediction={training.prediction}",
        f"train.steps={steps}",
        f"train.save_every_steps={every}",
        f"train.keep_every_steps={every}",
        f"train.preview_every_steps={steps}",
        f"train.validate_every_steps={every}",
        "evaluate.after_training=false",
    )
    jitkit.train(load_recipe("qm9-cpu", [*overrides, *fixed]), run=run)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, in the order of their steps."""
    return sorted(run.glob("checkpoints/step-*"), key=lambda path: int(path.name[5:]))


def scored(run: Path, domain: Domain, samples: int, *, guided: bool = False) -> dict[str, Any]:
    """Scores of the final weights of a run, with intervals, as in ``evaluation.json``."""
    kept = run / f"{'guided' if guided else 'scores'}-{samples}.json"
    if not kept.is_file():
        how = {"sample.autoguidance": str(checkpoints(run)[0])} if guided else {}
        found = jitkit.evaluate(run, how, samples=samples, domain=domain)
        kept.write_text(json.dumps(found["scores"]))
    return dict(json.loads(kept.read_text()))


def curve(run: Path, domain: Domain, samples: int) -> list[dict[str, float]]:
    """Stability of samples of each checkpoint of a run except the last."""
    rows, measures = [], domain.scores()
    for path in checkpoints(run)[:-1]:
        kept = run / f"curve-{path.name}-{samples}.json"
        if not kept.is_file():
            denoiser = jitkit.load(path)
            denoiser.domain = domain
            section = load_recipe(run / "recipe.yaml").sample
            conditioning = conditioning_for(denoiser, samples, seed=section.seed)
            items = list(sample_items(denoiser, samples, conditioning, section))
            found = {name: measures[name](items, []) for name in MEASURES[:2]}
            kept.write_text(json.dumps({"step": int(path.name[5:])} | found))
        rows.append(json.loads(kept.read_text()))
    return rows


def table(scores: Mapping[tuple[str, float], Mapping[str, Any]]) -> str:
    """A line for each kind of samples and minutes of training, each score with its interval, and
    one for held-out molecules."""
    first = next(iter(scores.values()))
    names = [name for name in MEASURES if name in first]
    lines = [f"| prediction | minutes | {' | '.join(n.replace('_', ' ') for n in names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    for (kind, minutes), found in scores.items():
        shown = " | ".join(_shown(found[name]) for name in names)
        lines.append(f"| {kind} | {minutes:g} | {shown} |")
    floors = " | ".join(f"{100 * first[name]['floor']:.1f} %" for name in names)
    lines.append(f"| held-out molecules | | {floors} |")
    return "\n".join(lines)


def _shown(score: Mapping[str, Any]) -> str:
    """A share in per cent with its interval."""
    if score["value"] is None:
        return "none valid"
    low, high = (min(max(end, 0.0), 1.0) for end in score["interval"])
    return f"{100 * score['value']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def draw(points: Mapping[Training, Sequence[tuple[float, Mapping[str, float]]]]) -> None:
    """Shares of stable atoms and molecules against minutes of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    titles = {"atom_stability": "stable atoms", "molecule_stability": "stable molecules"}
    real = {"atom_stability": 0.994, "molecule_stability": 0.953}
    for axes, (name, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for training, found in points.items():
            values = [row[name] for _, row in found]
            style: dict[str, Any] = {"color": COLOURS[training.prediction], "ms": 5}
            mark = "o-" if len(found) > 1 else "D"
            label = f"{training.prediction}, {training.minutes:g} minutes"
            axes.plot([minute for minute, _ in found], values, mark, label=label, **style)
        axes.axhline(real[name], color="black", lw=0.8, ls=":", label="QM9 itself")
        axes.set(title=title, xlabel="minutes of training", ylim=(-0.02, 1.02), xlim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[1].legend(frameon=False)
    figure.savefig(PICTURE)


def write(text: str) -> None:
    """Put a text between the marks in docs/results.md, which are added if missing."""
    whole = RESULTS.read_text(encoding="utf-8")
    if BEGIN not in whole:
        before, mark, after = whole.partition("## Not measured")
        whole = f"{before}{BEGIN}{END}\n\n{mark}{after}"
    before, rest = whole.split(BEGIN)
    RESULTS.write_text(f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


def report(command: str, body: str, denoiser: Any, plan: Mapping[str, Any], samples: int) -> str:
    """The section of docs/results.md."""
    made = environment()
    machine, commit = made["machine"], made["commit"]
    weights = sum(p.numel() for p in denoiser.network.parameters())
    taken = f"a step in {1000 * plan['seconds']:.0f} ms"
    return (
        f"## Molecules of QM9\n\n`{command}`: the recipe `qm9-cpu` ({weights:,} parameters), "
        f"{taken}, v-loss, one run each; {samples:,} samples of each at the end, with 95 % "
        f"intervals in brackets. {machine['cores']} cores of {machine['processor']}, "
        f"torch {made['versions']['torch']}, commit {commit}.\n\n{body}"
        "\n\n![Stability against minutes](molecules.png)\n\n"
        f"Intermediate points use {samples // 4} samples each.\n"
    )


def main() -> None:
    """Train, score, write; exit code 1 if x-prediction misses the requirement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--compare", type=float, default=10)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark-molecules"))
    parser.add_argument("--only", default="", help="these runs alone, such as x-60,v-10; no page")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    hour = Training("x", given.minutes)
    wanted = [hour, *(Training(prediction, given.compare) for prediction in COLOURS)]
    names = ["none", *(each.name for each in wanted)]
    if strange := set(filter(None, given.only.split(","))) - set(names):
        parser.error(f"--only {', '.join(strange)}: the choice is {', '.join(names)}")
    recipe = load_recipe("qm9-cpu", given.overrides)
    domain = open_domain(recipe.domain)
    given.folder.mkdir(parents=True, exist_ok=True)
    kept, pace = given.folder / "plan.json", given.folder / "pace"
    if not kept.is_file():
        kept.write_text(json.dumps({"seconds": seconds_of_a_step(given.overrides, pace)}))
    plan = json.loads(kept.read_text())
    if given.only == "none":
        return
    scores, points, short = {}, {}, False
    for training in wanted:
        if given.only and training.name not in given.only.split(","):
            continue
        run, steps = given.folder / training.name, int(training.minutes * 60 / plan["seconds"])
        trained(given.overrides, training, steps, run)
        found = scored(run, domain, given.samples)
        scores[training.prediction, training.minutes] = found
        if training == hour:
            short = found["atom_stability"]["value"] < DEMAND
            guided = scored(run, domain, given.samples, guided=True)
            scores["x, autoguided by its first checkpoint", training.minutes] = guided
        values = {name: found[name]["value"] for name in MEASURES[:2]}
        on_the_way = curve(run, domain, given.samples // 4) if training == hour else []
        points[training] = [
            *((row["step"] * plan["seconds"] / 60, row) for row in on_the_way),
            (training.minutes, values),
        ]
    body = table(scores)
    print(body)
    if not given.only:
        options = f"--minutes {given.minutes:g} --compare {given.compare:g}"
        command = " ".join(["python -m benchmarks.molecules", options, *given.overrides])
        write(report(command, body, assemble(recipe, domain), plan, given.samples))
        draw(points)
    raise SystemExit(short)


if __name__ == "__main__":
    main()
