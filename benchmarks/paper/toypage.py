"""The page of figure 2: results of the toy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper.drawing import draw_points
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, mean
from benchmarks.paper.toy import DIMENSIONS, PREDICTIONS, Toy, sampler_leaves, toy_label
from benchmarks.paper.trainings import Setup

ABOUT = """\
A spiral in the plane, embedded in D dimensions by a random column-orthogonal matrix unknown to the
network; a 5-layer ReLU MLP of width 256; three predictions, one loss (on v), 3,000 steps of
256 with Adam, 4,000 samples by 50 Heun steps. The paper shows only the figure; we add
two measures. *In the plane*: sliced Wasserstein-2 distance of the samples, projected back, to as
many true points (a shift by d costs d; the spiral has unit variance). *Out of the plane*: root
mean square distance of samples to the plane of the data."""


def jobs(setup: Setup) -> Sequence[Job]:
    """Every D, prediction and seed."""
    return [Toy(d, p, seed) for d in DIMENSIONS for p in PREDICTIONS for seed in range(setup.seeds)]


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    rows: list[list[object]] = []
    for d in DIMENSIONS:
        for measure in ("in", "out")[: 1 if d == 2 else 2]:
            means = [mean(records, toy_label(d, p), measure) for p in PREDICTIONS]
            floor = mean(records, toy_label(d, "x"), "floor").value if measure == "in" else None
            least = sampler_leaves(d) if floor is None else floor
            rows.append(
                [d, f"{measure} the plane" if floor else "out of it", *means, f"{least:.2g}"]
            )
    head = ["D", "where", *(f"{p}-prediction" for p in PREDICTIONS), "floor"]
    cells = [
        [("true", shown[toy_label(d, "x")].real)]
        + [(f"{p}, D = {d}", shown[toy_label(d, p)].samples) for p in PREDICTIONS]
        for d in DIMENSIONS
    ]
    note = (
        "\n\n*Floor*: in the plane, the distance of two sets of true points; out of it, the "
        "residual noise of the sampler for an exact x-prediction, because 1 - t is clamped at 0.05 "
        "in its divisions."
    )
    return Page(
        "toy",
        "Figure 2: two dimensions hidden in many",
        ABOUT,
        grid(head, rows) + note,
        _claims(records),
        "Points of the plane: true, and sampled from the first seed's models",
        lambda path: draw_points(path, cells),
    )


def _claims(records: Records) -> list[Claim]:
    small, large = min(DIMENSIONS), max(DIMENSIONS)

    def value(d: int, prediction: str, measure: str = "in") -> float:
        return mean(records, f"{d}-{prediction}", measure).value

    claims = []
    for prediction, demand, sense in (("x", 1.5, 1), ("v", 2, -1), ("eps", 20, -1)):
        ratio = value(large, prediction) / value(small, prediction)
        words = f"at most {demand}" if sense > 0 else f"at least {demand}"
        text = (
            f"{prediction}-prediction in the plane is {ratio:.3g} times as far off at D = {large} "
            f"as at D = {small} ({words} demanded)."
        )
        claims.append(Claim(text, sense * ratio <= sense * demand, demanded=True))
    ratio = value(large, "v", "out") / value(large, "x", "out")
    text = (
        f"at D = {large}, v-prediction leaves the plane {ratio:.3g} times as far as x-prediction "
        "(at least 20 demanded)."
    )
    claims.append(Claim(text, ratio >= 20, demanded=True))
    worse = [p for p in ("v", "eps") if value(16, p) > 1.5 * value(2, p)]
    text = (
        "the paper sees eps and v struggle at D = 16 already; here they are "
        + " and ".join(f"{value(16, p) / value(2, p):.3g} ({p})" for p in ("v", "eps"))
        + " times as far off as at D = 2 (at least 1.5 taken for struggling)."
    )
    return [*claims, Claim(text, len(worse) == 2)]
