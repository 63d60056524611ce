"""Table 4: parts of the transformer, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper import bottleneck
from benchmarks.paper.drawing import draw_mosaics
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, less, mean
from benchmarks.paper.trainings import Setup

BOTTLENECK = 32
PLAIN = "patch16 without RoPE and qk-norm"
ROPE = bottleneck.label(BOTTLENECK)
CONTEXT = "patch16 with in-context tokens"
ROWS = {
    # our label, the paper's row, its FID-50K for B/16 without and with the guidance interval
    PLAIN: ("SwiGLU + RMSNorm", 7.48, 6.32),
    ROPE: ("+ RoPE, qk-norm", 6.69, 5.44),
    CONTEXT: ("+ in-context class tokens", 5.49, 4.37),
}
ABOUT = """\
`recipes/paper/patch16.yaml` with a bottleneck of 32: first without rotary embedding and the norm of
queries and keys (the fixed sine-cosine embedding of positions stays), then as it is, then with 8
in-context class tokens. The transformer here always has SwiGLU and RMSNorm, the first row of the
paper's table. No classifier-free guidance; the paper's values are with it."""


def jobs(setup: Setup) -> Sequence[Job]:
    """Three steps of the transformer."""
    narrow = f"model.bottleneck={BOTTLENECK}"
    return [
        *setup.trainings(PLAIN, "patch16", [narrow], "without-rope"),
        *bottleneck.trainings(setup, BOTTLENECK),
        *setup.trainings(CONTEXT, "patch16", [narrow, "model.in_context_tokens=8"]),
    ]


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    means = {label: mean(records, label) for label in ROWS}
    rows = [[name, means[label], *paper] for label, (name, *paper) in ROWS.items()]
    claims = []
    for (before, _), (after, row) in zip(
        list(ROWS.items())[:-1], list(ROWS.items())[1:], strict=True
    ):
        ratio = means[after].value / means[before].value
        expected = row[1] / ROWS[before][1]
        text = (
            f"{row[0].removeprefix('+ ')} help: {ratio:.3g} times the distance of the row before "
            f"(paper {expected:.3g})."
        )
        claims.append(Claim(text, less(means[after], means[before])))
    cells = [
        (f"{name}: {means[label].value:.3g}", shown[label].samples)
        for label, (name, *_) in ROWS.items()
    ]
    return Page(
        "parts",
        "Table 4 in small: parts of the transformer",
        ABOUT,
        grid(["parts", "Fréchet distance", "paper", "paper, with interval"], rows),
        claims,
        "Samples with their Fréchet distance",
        lambda path: draw_mosaics(path, [cells]),
    )
