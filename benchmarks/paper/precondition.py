"""Table 10: pre-conditioning of the network's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper.drawing import draw_mosaics
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, less, mean
from benchmarks.paper.pairs import SPACES, label, pair
from benchmarks.paper.trainings import Setup

FORMS = ("x", "edm", "linear")
TITLES = {"x": "x alone", "edm": "EDM's", "linear": "linear"}
PAPER = {
    # FID-50K by loss: x alone, EDM's, linear
    "x": (10.14, 28.94, 39.50),
    "eps": (10.45, 72.05, 67.56),
    "v": (8.62, 35.49, 46.25),
}
ABOUT = """\
The network predicts only a part of x_hat: x_hat = skip(t) z + out(t) net(z, t). *EDM's*
weights are those of Karras et al. 2022 with sigma_data 0.5 and sigma = (1 - t) / t; *linear* is
skip = t, out = 1 - t; the network sees z itself. Everything else is `recipes/paper/patch32.yaml`.
Fréchet distance on random features beside the paper's FID-50K (table 10)."""


def _label(form: str, loss: str) -> str:
    return label("patch32", "x", loss) if form == "x" else f"patch32 {form} {loss}-loss"


def jobs(setup: Setup) -> Sequence[Job]:
    """Three forms under three losses; x alone is shared with the nine pairs."""
    found: list[Job] = []
    for loss in SPACES:
        found += pair(setup, "patch32", "x", loss)
        for form in FORMS[1:]:
            asked = ["diffusion.prediction=x", f"diffusion.loss={loss}"]
            found += setup.trainings(_label(form, loss), "patch32", asked, form)
    return found


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    found = {loss: {f: mean(records, _label(f, loss)) for f in FORMS} for loss in SPACES}
    head = ["loss", *TITLES.values(), *(f"paper: {title}" for title in TITLES.values())]
    rows = [[loss, *means.values(), *PAPER[loss]] for loss, means in found.items()]
    claims = []
    for loss, means in found.items():
        better = min((means[form] for form in FORMS[1:]), key=lambda each: each.value)
        ratio = better.value / means["x"].value
        expected = min(PAPER[loss][1:]) / PAPER[loss][0]
        text = (
            f"under {loss}-loss, pre-conditioning is worse: the better form is {ratio:.3g} times "
            f"as far off as x alone (paper {expected:.3g})."
        )
        claims.append(Claim(text, less(means["x"], better)))
    cells = [
        (f"{TITLES[f]}: {found['v'][f].value:.3g}", shown[_label(f, "v")].samples) for f in FORMS
    ]
    return Page(
        "precondition",
        "Table 10 in small: pre-conditioning",
        ABOUT,
        grid(head, rows),
        claims,
        "Samples under v-loss with their Fréchet distance",
        lambda path: draw_mosaics(path, [cells]),
    )
