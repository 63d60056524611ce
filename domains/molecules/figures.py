"""Molecules side by side: in space, and drawn as chemists do where RDKit is installed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.molecules.bonds import bond_orders, stable_atoms
from jitkit.domains.molecules.chemistry import has_rdkit, perceived
from jitkit.domains.molecules.molecule import Molecule
from jitkit.utils.rotations import along_axes
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE, DRAWING = 200, 130  # pixels of a view in space, and the height of the drawing under it
FINER = 3  # times the pixels that a view is painted with, for smooth edges
COLOURS = {
    1: "#e8e8e8", 6: "#5b5b5b", 7: "#3557d1", 8: "#d63a2f", 9: "#58b53c", 15: "#e38a1b",
    16: "#d9c322", 17: "#2ca02c", 35: "#8c3b2e", 53: "#7a2d8c",
}  # fmt: skip
OTHER, UNSTABLE, INK = "#c06fb5", "#ff3b7f", "#6b6b6b"
RADII = {1: 0.28}  # angstrom as painted
USUAL_RADIUS = 0.42


def grid(items: Sequence[Molecule]) -> Image:
    """A picture of molecules, in rows: a view in space above a drawing.

    In space each is turned so that it spreads over the picture. An atom whose number of bonds does
    not suit it wears a pink ring. Under a molecule whose bonds cannot be told there is no drawing.
    """
    from PIL import Image

    drawn = has_rdkit()
    height = SIDE + (DRAWING if drawn else 0)
    columns = max(1, ceil(sqrt(len(items) * height / SIDE)))
    rows = max(1, ceil(len(items) / columns))
    sheet = Image.new("RGB", (columns * SIDE, rows * height), "white")
    for i, item in enumerate(items):
        left, top = i % columns * SIDE, i // columns * height
        sheet.paste(in_space(item), (left, top))
        if drawn:
            sheet.paste(drawing(item), (left, top + SIDE))
    return sheet


def in_space(molecule: Molecule) -> Image:
    """Balls and sticks, farther ones first, (SIDE, SIDE) pixels."""
    from PIL import Image, ImageDraw

    size = SIDE * FINER
    picture = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(picture)
    at = along_axes(molecule.positions)
    reach = max(1.5, float(np.abs(at[:, :2]).max()) + 0.6)
    scale = size / 2 / reach
    flat = size / 2 + at[:, :2] * scale
    orders, stable = bond_orders(molecule), stable_atoms(molecule)
    for i in np.argsort(at[:, 2], kind="stable").tolist():
        for j in np.flatnonzero(orders[i] * (at[:, 2] >= at[i, 2])).tolist():
            _stick(pen, flat[i], flat[j], int(orders[i, j]), scale)
        _ball(pen, flat[i], int(molecule.numbers[i]), bool(stable[i]), scale)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _stick(pen: ImageDraw, a: Array, b: Array, order: int, scale: float) -> None:
    along = b - a
    length = max(float(np.sqrt(along @ along)), 1e-9)
    side = np.array([-along[1], along[0]]) / length * 0.14 * scale
    for k in range(order):
        shift = side * (k - (order - 1) / 2) * 1.3
        ends = [*(a + shift).tolist(), *(b + shift).tolist()]
        pen.line(ends, fill="#9a9a9a", width=max(1, int(0.11 * scale)))


def _ball(pen: ImageDraw, at: Array, number: int, stable: bool, scale: float) -> None:
    radius = RADII.get(number, USUAL_RADIUS) * scale
    x, y = at.tolist()
    ring = UNSTABLE if not stable else "#404040"
    width = max(1, int((0.1 if not stable else 0.03) * scale))
    box = (x - radius, y - radius, x + radius, y + radius)
    pen.ellipse(box, fill=COLOURS.get(number, OTHER), outline=ring, width=width)
    shine = radius * 0.35
    x, y = x - radius * 0.3, y - radius * 0.35
    pen.ellipse((x - shine, y - shine, x + shine, y + shine), fill=_lighter(number))


def _lighter(number: int) -> tuple[int, int, int]:
    from PIL.ImageColor import getrgb

    red, green, blue = getrgb(COLOURS.get(number, OTHER))[:3]
    return (red + (255 - red) // 3, green + (255 - green) // 3, blue + (255 - blue) // 3)


def drawing(molecule: Molecule) -> Image:
    """RDKit's drawing of the molecule without hydrogens, (SIDE, DRAWING) pixels."""
    from PIL import Image, ImageDraw
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    made = perceived(molecule)
    if made is None:
        picture = Image.new("RGB", (SIDE, DRAWING), "white")
        ImageDraw.Draw(picture).text(
            (SIDE / 2, DRAWING / 2), "no bonds make sense", fill=INK, anchor="mm"
        )
        return picture
    canvas = rdMolDraw2D.MolDraw2DCairo(SIDE, DRAWING)
    with rdBase.BlockLogs():
        flat = Chem.RemoveHs(made)
        flat.RemoveAllConformers()
        rdMolDraw2D.PrepareAndDrawMolecule(canvas, flat)
    canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")
