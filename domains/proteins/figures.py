"""Figures of backbones: a grid of CA traces and a Ramachandran plot."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.torsions import ramachandran
from jitkit.utils.rotations import align_to_principal_axes

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, PLOT = 200, 300  # pixels of a trace, and of the plot
SUPERSAMPLING = 3  # for anti-aliasing
INK, FAINT, DOT = "#404040", "#d8d8d8", "#3557d1"
COLOURS = ((49, 84, 209), (84, 180, 110), (214, 58, 47))  # from the first residue to the last


def protein_grid(items: Sequence[Backbone]) -> Image:
    """Grid of CA traces, blue at the first residue and red at the last, beside a Ramachandran plot
    of all residues."""
    from PIL import Image

    columns = max(1, ceil(sqrt(len(items))))
    rows = max(1, ceil(len(items) / columns))
    sheet = Image.new("RGB", (columns * SIDE + PLOT, max(rows * SIDE, PLOT)), "white")
    for i, item in enumerate(items):
        sheet.paste(backbone_trace(item), (i % columns * SIDE, i // columns * SIDE))
    sheet.paste(ramachandran_plot(items), (columns * SIDE, 0))
    return sheet


def backbone_trace(chain: Backbone) -> Image:
    """CA trace along the principal axes, near parts on top, (SIDE, SIDE) pixels."""
    from PIL import Image, ImageDraw

    size = SIDE * SUPERSAMPLING
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    at = align_to_principal_axes(chain.alphas.astype(np.float64))
    reach = max(5.0, float(np.abs(at[:, :2]).max()) + 2)
    flat = size / 2 + at[:, :2] * (size / 2 / reach)
    width = max(3, int(1.3 * size / 2 / reach))
    order = np.argsort(at[:-1, 2] + at[1:, 2], kind="stable")
    for i in order[chain.bonded[order]].tolist():
        line = [*flat[i].tolist(), *flat[i + 1].tolist()]
        pen.line(line, fill="white", width=width + 2 * SUPERSAMPLING)
        colour = _colour(i / max(1, len(chain) - 2))
        pen.line(line, fill=colour, width=width)
        for x, y in (flat[i], flat[i + 1]):  # covers the neighbouring outline at the joint
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _colour(fraction: float) -> tuple[int, int, int]:
    colours = np.array(COLOURS, float)
    stops = np.linspace(0, 1, len(colours))
    red, green, blue = (int(np.interp(fraction, stops, colours[:, i])) for i in range(3))
    return red, green, blue


def ramachandran_plot(items: Sequence[Backbone]) -> Image:
    """Ramachandran plot: phi to the right, psi upwards, (PLOT, PLOT) pixels."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (PLOT * SUPERSAMPLING, PLOT * SUPERSAMPLING), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(11 * SUPERSAMPLING)
    near, far = 40 * SUPERSAMPLING, (PLOT - 12) * SUPERSAMPLING
    span = far - near

    def point(phi: float, psi: float) -> tuple[float, float]:
        return near + (phi + 180) / 360 * span, far - near + 12 * SUPERSAMPLING - (
            psi + 180
        ) / 360 * span

    for angle in (-180, -90, 0, 90, 180):
        pen.line([point(angle, -180), point(angle, 180)], fill=FAINT, width=SUPERSAMPLING)
        pen.line([point(-180, angle), point(180, angle)], fill=FAINT, width=SUPERSAMPLING)
        x, y = point(angle, -180)
        pen.text((x, y + 4 * SUPERSAMPLING), f"{angle}", fill=INK, font=font, anchor="mt")
        x, y = point(-180, angle)
        pen.text((x - 4 * SUPERSAMPLING, y), f"{angle}", fill=INK, font=font, anchor="rm")
    x, y = point(0, -180)
    pen.text((x, y + 18 * SUPERSAMPLING), "phi (right), psi (up), degrees", fill=INK, font=font,
             anchor="mt")  # fmt: skip
    for item in items:
        phi, psi = ramachandran(item)
        known = np.isfinite(phi) & np.isfinite(psi)
        for x, y in (point(a, b) for a, b in zip(phi[known], psi[known], strict=True)):
            r = 1.2 * SUPERSAMPLING
            pen.ellipse((x - r, y - r, x + r, y + r), fill=DOT)
    return image.resize((PLOT, PLOT), Image.Resampling.LANCZOS)
