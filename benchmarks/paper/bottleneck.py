"""Figure 4: the width of the bottleneck between a patch and its token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper.drawing import draw_lines
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, less, mean
from benchmarks.paper.trainings import Setup

WIDTH = 128
WIDTHS = (3, 8, 16, 32, 64, WIDTH)
ABOUT = """\
A patch is projected to d' features before it becomes a token of width 128.
`recipes/paper/patch16.yaml`: 64 x 64 pixels, patch 16, 768 features in a patch, as in the paper's
B/16. d' = 128 is the network's own width, and so no bottleneck. The paper shows only a plot: of
768, every d' from 32 to 512 is better than none, by up to about 1.3 of 8.6, and 16 does not
collapse. Our d' are the same shares of the width."""


def label(width: int) -> str:
    """Label of a width; the page of parts shares one."""
    return f"patch16 bottleneck {width}"


def trainings(setup: Setup, width: int) -> Sequence[Job]:
    """The trainings of a width."""
    return setup.trainings(label(width), "patch16", [f"model.bottleneck={width}"])


def jobs(setup: Setup) -> Sequence[Job]:
    """Every width."""
    return [job for width in WIDTHS for job in trainings(setup, width)]


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    means = {width: mean(records, label(width)) for width in WIDTHS}
    rows = [
        [f"{width}{' (none)' if width == WIDTH else ''}", f"{width / WIDTH:.3g}", found]
        for width, found in means.items()
    ]
    none = means[WIDTH].value
    best = min(WIDTHS[:-1], key=lambda width: means[width].value)
    ratio, narrow = means[best].value / none, means[WIDTHS[0]].value / none
    claims = [
        Claim(
            f"a bottleneck helps: at its best, d' = {best}, the distance is {ratio:.3g} times that "
            "without (paper: about 0.85).",
            less(means[best], means[WIDTH]),
        ),
        Claim(
            f"the narrowest, d' = {WIDTHS[0]}, does not collapse: {narrow:.3g} times the distance "
            "without (at most 2 taken for that).",
            narrow <= 2,
        ),
    ]
    return Page(
        "bottleneck",
        "Figure 4 in small: a bottleneck between patch and token",
        ABOUT,
        grid(["d'", "share of the width", "Fréchet distance"], rows),
        claims,
        "Fréchet distance over the width of the bottleneck",
        lambda path: draw_lines(
            path,
            {"x": [(width, found) for width, found in means.items()]},
            setting="d', width of the bottleneck",
            logarithmic=True,
        ),
    )
