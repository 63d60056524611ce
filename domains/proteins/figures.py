"""Traces of chains side by side, and a Ramachandran plot of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.proteins.backbone import Backbone
from jitkit.domains.proteins.torsions import ramachandran
from jitkit.utils.rotations import along_axes

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, PLOT = 200, 300  # pixels of a trace, and of the plot
FINER = 3  # times the pixels that is painted with, for smooth edges
INK, FAINT, DOT = "#404040", "#d8d8d8", "#3557d1"
ENDS = ((49, 84, 209), (84, 180, 110), (214, 58, 47))  # from the first residue to the last


def grid(items: Sequence[Backbone]) -> Image:
    """Traces of CA in rows, blue at the first residue and red at the last; right of them phi and
    psi of all residues."""
    from PIL import Image

    columns = max(1, ceil(sqrt(len(items))))
    rows = max(1, ceil(len(items) / columns))
    sheet = Image.new("RGB", (columns * SIDE + PLOT, max(rows * SIDE, PLOT)), "white")
    for i, item in enumerate(items):
        sheet.paste(trace(item), (i % columns * SIDE, i // columns * SIDE))
    sheet.paste(torsions(items), (columns * SIDE, 0))
    return sheet


def trace(chain: Backbone) -> Image:
    """A chain along its principal axes, nearer parts above, (SIDE, SIDE) pixels."""
    from PIL import Image, ImageDraw

    size = SIDE * FINER
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    at = along_axes(chain.alphas.astype(np.float64))
    reach = max(5.0, float(np.abs(at[:, :2]).max()) + 2)
    flat = size / 2 + at[:, :2] * (size / 2 / reach)
    width = max(3, int(1.3 * size / 2 / reach))
    order = np.argsort(at[:-1, 2] + at[1:, 2], kind="stable")
    for i in order[chain.bonded[order]].tolist():
        line = [*flat[i].tolist(), *flat[i + 1].tolist()]
        pen.line(line, fill="white", width=width + 2 * FINER)
        colour = _colour(i / max(1, len(chain) - 2))
        pen.line(line, fill=colour, width=width)
        for x, y in (flat[i], flat[i + 1]):  # the outline of a neighbour would cut the joint
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _colour(along: float) -> tuple[int, int, int]:
    stops = np.array(ENDS, float)
    place = np.linspace(0, 1, len(stops))
    red, green, blue = (int(np.interp(along, place, stops[:, i])) for i in range(3))
    return red, green, blue


def torsions(items: Sequence[Backbone]) -> Image:
    """The Ramachandran plot: phi to the right, psi upwards, (PLOT, PLOT) pixels."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (PLOT * FINER, PLOT * FINER), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11 * FINER)
    near, far = 40 * FINER, (PLOT - 12) * FINER
    span = far - near

    def place(phi: float, psi: float) -> tuple[float, float]:
        return near + (phi + 180) / 360 * span, far - near + 12 * FINER - (psi + 180) / 360 * span

    for angle in (-180, -90, 0, 90, 180):
        pen.line([place(angle, -180), place(angle, 180)], fill=FAINT, width=FINER)
        pen.line([place(-180, angle), place(180, angle)], fill=FAINT, width=FINER)
        x, y = place(angle, -180)
        pen.text((x, y + 4 * FINER), f"{angle}", fill=INK, font=font, anchor="mt")
        x, y = place(-180, angle)
        pen.text((x - 4 * FINER, y), f"{angle}", fill=INK, font=font, anchor="rm")
    x, y = place(0, -180)
    pen.text((x, y + 18 * FINER), "phi (right), psi (up), degrees", fill=INK, font=font,
             anchor="mt")  # fmt: skip
    for item in items:
        phi, psi = ramachandran(item)
        known = np.isfinite(phi) & np.isfinite(psi)
        for x, y in (place(a, b) for a, b in zip(phi[known], psi[known], strict=True)):
            r = 1.2 * FINER
            pen.ellipse((x - r, y - r, x + r, y + r), fill=DOT)
    return picture.resize((PLOT, PLOT), Image.Resampling.LANCZOS)
