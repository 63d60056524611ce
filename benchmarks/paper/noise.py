"""Table 3: the shift of the noise level, the mean of logit(t)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper.drawing import draw_lines
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, less, mean
from benchmarks.paper.pairs import SPACES
from benchmarks.paper.trainings import Setup

PAPER = {
    # FID-50K of ImageNet 256, B/16, v-loss: x-, eps-, v-prediction
    0.0: (14.44, 464.25, 120.03),
    -0.4: (9.79, 372.91, 109.93),
    -0.8: (8.62, 372.36, 96.53),
    -1.2: (8.99, 355.25, 106.85),
}
ABOUT = """\
Times are drawn as t = sigmoid(n), n ~ N(mu, 0.8²); a lower mu (`diffusion.P_mean`) is noisier.
`recipes/paper/patch32.yaml`, v-loss, three predictions. Fréchet distance on random features
beside the paper's FID-50K (table 3)."""


def _label(mu: float, prediction: str) -> str:
    return f"mu {mu:g} {prediction}-prediction"


def jobs(setup: Setup) -> Sequence[Job]:
    """Every shift and prediction."""
    found: list[Job] = []
    for mu in PAPER:
        for p in SPACES:
            asked = [f"diffusion.prediction={p}", "diffusion.loss=v", f"diffusion.P_mean={mu}"]
            found += setup.trainings(_label(mu, p), "patch32", asked)
    return found


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    head = ["mu", *(f"{p}-prediction" for p in SPACES), *(f"paper: {p}" for p in SPACES)]
    rows = [[mu, *(mean(records, _label(mu, p)) for p in SPACES), *PAPER[mu]] for mu in PAPER]
    lines = {p: [(mu, mean(records, _label(mu, p))) for mu in PAPER] for p in SPACES}
    return Page(
        "noise",
        "Table 3 in small: more or less noise",
        ABOUT,
        grid(head, rows),
        _claims(records),
        "Fréchet distance over the shift of the noise level",
        lambda path: draw_lines(path, lines, setting="mu, the mean of logit(t)"),
    )


def _claims(records: Records) -> list[Claim]:
    means = {p: {mu: mean(records, _label(mu, p)) for mu in PAPER} for p in SPACES}
    found = {p: {mu: each.value for mu, each in row.items()} for p, row in means.items()}
    best = min(found["x"], key=lambda mu: found["x"][mu])
    gain = found["x"][0.0] / found["x"][best]
    rescue = min(*found["eps"].values(), *found["v"].values()) / found["x"][best]
    return [
        Claim(
            f"x-prediction needs more noise than mu = 0: its best is at mu = {best:g}, {gain:.3g} "
            "times better than at 0 (paper: at -0.8, 1.68 times).",
            best < 0 and less(means["x"][best], means["x"][0.0]),
        ),
        Claim(
            f"no shift rescues eps or v: the best of them is {rescue:.3g} times worse than the "
            "best x-prediction (at least 2 taken for that; paper 11.2).",
            rescue >= 2,
        ),
    ]
