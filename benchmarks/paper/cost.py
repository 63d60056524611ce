"""Table 5: cost when resolution and patch double together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.paper.drawing import draw_mosaics
from benchmarks.paper.jobs import Job
from benchmarks.paper.pages import Claim, Page, Records, Shown, grid, mean
from benchmarks.paper.trainings import Setup

SIZES = (32, 64, 128)
PAPER = {32: ("256, /16", 25.2, 4.37), 64: ("512, /32", 25.8, 4.64), 128: ("1024, /64", 27.9, 4.82)}
ABOUT = """\
`recipes/paper/patch16.yaml` with 16 tokens at every resolution: the patch is a quarter of the
side, and the noise doubles with it, as in the paper. Samples are scored against real images of
their own size, all scaled to 64 x 64 for the features. Multiply-adds of one pass; the paper's are
those of the authors' code (25.2, 25.8 and 27.9 G), its FID-50K those of table 5."""


def _label(size: int) -> str:
    return f"{size} pixels, patch {size // 4}"


def jobs(setup: Setup) -> Sequence[Job]:
    """Every resolution."""
    found: list[Job] = []
    for size in SIZES:
        asked = [f"domain.size={size}", f"model.patch={size // 4}"]
        asked += [f"diffusion.noise_scale={size / SIZES[0]}", "model.bottleneck=32"]
        found += setup.trainings(_label(size), "patch16", asked)
    return found


def page(records: Records, shown: Mapping[str, Shown]) -> Page:
    """The page of the results."""
    rows: list[list[object]] = []
    for size in SIZES:
        found = records[_label(size)][0]["found"]
        paper, gmacs, fid = PAPER[size]
        step = mean(records, _label(size), "step_milliseconds").value
        rows.append(
            [f"{size}, /{size // 4}", 3 * (size // 4) ** 2, f"{found['gmacs'] * 1e3:.1f} M"]
            + [f"{step:.0f} ms", mean(records, _label(size)), paper, f"{gmacs} G", fid]
        )
    small, large = SIZES[0], SIZES[-1]
    pixels = (large // small) ** 2
    work = mean(records, _label(large), "gmacs").value / mean(records, _label(small), "gmacs").value
    worse = mean(records, _label(large)).value / mean(records, _label(small)).value
    claims = [
        Claim(
            f"{pixels} times the pixels cost {work:.3g} times the arithmetic (at most 2 taken for "
            "nearly the same; paper 1.11).",
            work <= 2,
        ),
        Claim(
            f"and the distance grows {worse:.3g} times (at most 1.5 taken for little; paper 1.10).",
            worse <= 1.5,
        ),
    ]
    cells = [
        (f"{size} pixels: {mean(records, _label(size)).value:.3g}", shown[_label(size)].samples)
        for size in SIZES
    ]
    return Page(
        "cost",
        "Table 5 in small: resolution and patch double together",
        ABOUT,
        grid(
            ["ours", "features of a patch", "multiply-adds", "a step", "Fréchet distance"]
            + ["paper", "multiply-adds", "FID"],
            rows,
        ),
        claims,
        "Samples with their Fréchet distance",
        lambda path: draw_mosaics(path, [cells]),
    )
