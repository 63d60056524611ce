"""Whether samples have the distribution of the data, where that is known: Gaussian random fields.

    python -m benchmarks.fields [--samples 1000] [--as-line] [section.key=value ...]

Draws 32,000 fields of two correlated channels on 16 x 32 cells (`benchmarks.gaussian`: a line and a
circle, an island without data), writes them as a Zarr store, trains a small model and samples it.
What it must show, on two cores and in under 5 minutes of training:

- power at each wavenumber down to the length of a patch, 4 cells, along the circle and along the
  line, within 10 % of the known;
- no seam on the circle: jumps across it are distributed as those on the other side (two-sample
  Kolmogorov-Smirnov at the 1 % level), their mean square is within 10 % of that at other edges of
  tokens, and that within 10 % of the one inside tokens;
- mean and standard deviation within 3 % of the known standard deviation, correlation within 0.03;
- data missing on the island and nowhere else.

Beside the samples stand as many true fields, which show what chance alone does. ``--as-line`` tells
the model that the circle is a line, to show that the measures see a seam.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch

import numpy as np  # noqa: E402

import jitkit  # noqa: E402
from benchmarks.fieldpicture import draw_picture  # noqa: E402
from benchmarks.gaussian import (  # noqa: E402
    CHANNELS,
    CORRELATION,
    Array,
    Estimate,
    GaussianFields,
    ks_critical,
    marginals,
    standardized,
    write_zarr,
)
from jitkit.generate import conditions_for, generate  # noqa: E402
from jitkit.run import environment  # noqa: E402
from jitkit.validation import BINS, bin_weights  # noqa: E402

PATCH = 4
MOST_SECONDS = 300
KS_LEVEL = 0.01
RECIPE: dict[str, Any] = {
    "name": "fields",
    "domain": {
        "name": "arrays",
        "variables": list(CHANNELS),
        "axes": {"latitude": "line", "longitude": "circle"},
        "val": 0.02,
    },
    "model": {"width": 96, "depth": 4, "heads": 4, "patch": PATCH},
    "train": {
        "steps": 1500,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "ema": [0.99, 0.995],
        "precision": "float32",
        "save_every_steps": 500,
        "preview_every_steps": 10_000,
        "validate_every_steps": 500,
        "validate_items": 128,
    },
    "sample": {"steps": 25},
}


@dataclass(frozen=True)
class Row:
    """A line of the table: a measure of true fields and of samples, and what is demanded.

    Attributes:
        name: of the measure.
        true, sampled: the numbers, and in ``error`` the standard error of the second.
        demand: in words.
        met: whether the samples meet it.
    """

    name: str
    true: float
    sampled: float
    error: float
    demand: str
    met: bool

    def __str__(self) -> str:
        error = f" ± {self.error:.3f}" if np.isfinite(self.error) else ""
        met = "yes" if self.met else "no"
        return (
            f"| {self.name} | {self.true:.3f} | {self.sampled:.3f}{error} | {self.demand} | {met} |"
        )


def train(
    fields: GaussianFields, items: int, overrides: Sequence[str], folder: Path, *, as_line: bool
) -> tuple[Path, float]:
    """Write the data and train on them; the run's folder and the seconds it took."""
    data = folder / "fields.zarr"
    write_zarr(fields.draw(items, np.random.default_rng(0)), fields, data)
    axes = {"latitude": "line", "longitude": "line" if as_line else "circle"}
    recipe = RECIPE | {"domain": RECIPE["domain"] | {"path": str(data), "axes": axes}}
    began = time.monotonic()
    run = jitkit.train(jitkit.load_recipe(recipe, overrides), run=folder / "run")
    return run, time.monotonic() - began


def sample(run: Path, n: int, overrides: Sequence[str]) -> Array:
    """Fields that the model makes, in K and Pa, (n, 2, rows, columns)."""
    section = jitkit.load_recipe(run / "recipe.yaml", overrides).sample
    denoiser = jitkit.load(run)
    items = generate(denoiser, n, conditions_for(denoiser, n), section, progress=True)
    return np.stack([item.values for item in items])


def compare(fields: GaussianFields, true: Array, sampled: Array) -> list[Row]:
    """The table of true fields and samples, both (N, 2, rows, columns) in K and Pa."""
    z, x = standardized(true), standardized(sampled)
    wrong = float((np.isnan(x) != fields.island).mean())
    rows = [Row("share of cells wrongly missing or present", 0, wrong, np.nan, "0", not wrong)]
    if wrong:
        return rows  # the rest would be NaN
    rows += _marginal_rows(z, x)
    rows += _spectrum_rows(
        "circle",
        fields.circle_power,
        fields.circle_power_of(z),
        fields.circle_power_of(x),
        fields.columns // PATCH,
    )
    rows += _spectrum_rows(
        "line",
        np.stack([fields.line_power] * 2),
        fields.line_power_of(z),
        fields.line_power_of(x),
        fields.rows // PATCH,
    )
    return rows + _seam_rows(fields, z, x)


def _marginal_rows(z: Array, x: Array) -> list[Row]:
    rows = []
    true, found = marginals(z), marginals(x)
    for c, channel in enumerate(CHANNELS):
        for i, (name, known) in enumerate((("mean", 0.0), ("standard deviation", 1.0))):
            value, error = float(found[i].value[c]), float(found[i].error[c])
            demand = f"{known:g} within 0.03"
            met = abs(value - known) <= 0.03
            rows.append(
                Row(f"{channel}: {name}", float(true[i].value[c]), value, error, demand, met)
            )
    value, error = float(found[2].value), float(found[2].error)
    met = abs(value - CORRELATION) <= 0.03
    demand = f"{CORRELATION} within 0.03"
    return [*rows, Row("correlation", float(true[2].value), value, error, demand, met)]


def _spectrum_rows(
    axis: str, known: Array, true: Estimate, found: Estimate, resolved: int
) -> list[Row]:
    """The wavenumber whose power is farthest off, from 1 to the resolved one, by channel."""
    rows = []
    within = slice(1, resolved + 1)
    for c, channel in enumerate(CHANNELS):
        off, chance = (e.value[c, within] / known[c, within] - 1 for e in (found, true))
        worst = int(np.abs(off).argmax())
        error = float(found.error[c, within][worst] / known[c, within][worst])
        name = f"{channel}: power along the {axis}, worst of k = 1 to {resolved} (k = {worst + 1})"
        true_worst = float(chance[np.abs(chance).argmax()])
        met = abs(off[worst]) <= 0.1
        rows.append(
            Row(name, 1 + true_worst, 1 + float(off[worst]), error, "1 within 0.1", bool(met))
        )
    return rows


def _seam_rows(fields: GaussianFields, z: Array, x: Array) -> list[Row]:
    rows = []
    distance, chance = fields.seam_distance(x), fields.seam_distance(z)
    most = ks_critical(len(x), len(x), KS_LEVEL)
    ratios = {
        "at the seam over that at other edges of tokens": fields.seam_ratio,
        "at edges of tokens over that inside": fields.edge_ratio,
    }
    for c, channel in enumerate(CHANNELS):
        for where, measure in ratios.items():
            true, found = measure(z, PATCH), measure(x, PATCH)
            value, error = float(found.value[c]), float(found.error[c])
            name = f"{channel}: mean square of jumps {where}"
            met = abs(value - 1) <= 0.1
            rows.append(Row(name, float(true.value[c]), value, error, "1 within 0.1", met))
        name = f"{channel}: KS distance of jumps at the seam and on the other side"
        value, demand = float(distance[c]), f"below {most:.3f}"
        rows.append(Row(name, float(chance[c]), value, np.nan, demand, value < most))
    return rows


def losses(run: Path, fields: GaussianFields) -> tuple[float, float]:
    """Last held-out loss of a run, and the least that any network could have."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [line["val_loss"] for line in map(json.loads, lines) if "val_loss" in line]
    least = fields.least_loss((np.arange(BINS) + 0.5) / BINS)
    return found[-1] if found else np.nan, float(np.dot(bin_weights(), least))


def main() -> None:
    """Print the table and write the picture; exit code 1 where a demand is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--items", type=int, default=32_000)
    parser.add_argument("--as-line", action="store_true", help="tell the model of no circle")
    parser.add_argument("--picture", type=Path, default=Path("docs/fields.png"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    fields = GaussianFields()
    with tempfile.TemporaryDirectory() as folder:
        run, seconds = train(
            fields,
            arguments.items,
            arguments.overrides,
            Path(folder),
            as_line=arguments.as_line,
        )
        began = time.monotonic()
        sampled = sample(run, arguments.samples, arguments.overrides)
        took = time.monotonic() - began
        loss, least = losses(run, fields)
    true = fields.draw(arguments.samples, np.random.default_rng(1))
    rows = compare(fields, true, sampled)
    print(f"\n| measure | {len(true)} true fields | {len(sampled)} samples | demand | met |")
    print("|---|---|---|---|---|", *rows, sep="\n")
    print(f"\nheld-out loss {loss:.4f}; {least:.4f} is the least there is (the conditional mean)")
    where = environment()
    machine, commit = where["machine"], where["commit"]
    print(f"training {seconds:.0f} s, sampling {took:.0f} s; {machine['processor']}", end=", ")
    print(f"{machine['cores']} cores, torch {where['versions']['torch']}, commit {commit}")
    draw_picture(fields, true, sampled, arguments.picture)
    raise SystemExit(not (seconds < MOST_SECONDS and all(row.met for row in rows)))


if __name__ == "__main__":
    main()
