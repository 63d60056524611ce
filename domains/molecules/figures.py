"""Figures of molecules: ball-and-stick views, and structure drawings by RDKit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING

import numpy as np

from jitkit.domains.molecules.bonds import bond_orders, stable_atoms
from jitkit.domains.molecules.chemistry import has_rdkit, perceive_bonds
from jitkit.domains.molecules.molecule import Molecule
from jitkit.utils.rotations import align_to_principal_axes
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE, DRAWING = 200, 130  # pixels of a 3-D view; height of the structure drawing below it
SUPERSAMPLING = 3  # for anti-aliasing
COLOURS = {
    1: "#e8e8e8", 6: "#5b5b5b", 7: "#3557d1", 8: "#d63a2f", 9: "#58b53c", 15: "#e38a1b",
    16: "#d9c322", 17: "#2ca02c", 35: "#8c3b2e", 53: "#7a2d8c",
}  # fmt: skip
OTHER, UNSTABLE, INK = "#c06fb5", "#ff3b7f", "#6b6b6b"
RADII = {1: 0.28}  # angstrom, as drawn
DEFAULT_RADIUS = 0.42


def molecule_grid(items: Sequence[Molecule]) -> Image:
    """Grid of molecules, each with a 3-D view above a structure drawing.

    The view is along the smallest principal axis. Unstable atoms have a pink ring. There is no
    structure drawing if the bonds cannot be determined.
    """
    from PIL import Image

    with_drawing = has_rdkit()
    height = SIDE + (DRAWING if with_drawing else 0)
    columns = max(1, ceil(sqrt(len(items) * height / SIDE)))
    rows = max(1, ceil(len(items) / columns))
    sheet = Image.new("RGB", (columns * SIDE, rows * height), "white")
    for i, item in enumerate(items):
        left, top = i % columns * SIDE, i // columns * height
        sheet.paste(ball_and_stick(item), (left, top))
        if with_drawing:
            sheet.paste(structure_drawing(item), (left, top + SIDE))
    return sheet


def ball_and_stick(molecule: Molecule) -> Image:
    """Ball-and-stick view, far atoms first, (SIDE, SIDE) pixels."""
    from PIL import Image, ImageDraw

    size = SIDE * SUPERSAMPLING
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    at = align_to_principal_axes(molecule.positions)
    reach = max(1.5, float(np.abs(at[:, :2]).max()) + 0.6)
    scale = size / 2 / reach
    flat = size / 2 + at[:, :2] * scale
    orders, stable = bond_orders(molecule), stable_atoms(molecule)
    for i in np.argsort(at[:, 2], kind="stable").tolist():
        for j in np.flatnonzero(orders[i] * (at[:, 2] >= at[i, 2])).tolist():
            _stick(pen, flat[i], flat[j], int(orders[i, j]), scale)
        _ball(pen, flat[i], int(molecule.numbers[i]), bool(stable[i]), scale)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _stick(pen: ImageDraw, a: Array, b: Array, order: int, scale: float) -> None:
    along = b - a
    length = max(float(np.sqrt(along @ along)), 1e-9)
    side = np.array([-along[1], along[0]]) / length * 0.14 * scale
    for k in range(order):
        shift = side * (k - (order - 1) / 2) * 1.3
        ends = [*(a + shift).tolist(), *(b + shift).tolist()]
        pen.line(ends, fill="#9a9a9a", width=max(1, int(0.11 * scale)))


def _ball(pen: ImageDraw, at: Array, number: int, stable: bool, scale: float) -> None:
    radius = RADII.get(number, DEFAULT_RADIUS) * scale
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


def structure_drawing(molecule: Molecule) -> Image:
    """RDKit's structure drawing without hydrogens, (SIDE, DRAWING) pixels."""
    from PIL import Image, ImageDraw
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = perceive_bonds(molecule)
    if mol is None:
        image = Image.new("RGB", (SIDE, DRAWING), "white")
        ImageDraw.Draw(image).text(
            (SIDE / 2, DRAWING / 2), "no bonds make sense", fill=INK, anchor="mm"
        )
        return image
    canvas = rdMolDraw2D.MolDraw2DCairo(SIDE, DRAWING)
    with rdBase.BlockLogs():
        flat = Chem.RemoveHs(mol)
        flat.RemoveAllConformers()
        rdMolDraw2D.PrepareAndDrawMolecule(canvas, flat)
    canvas.FinishDrawing()
    return Image.open(io.BytesIO(canvas.GetDrawingText())).convert("RGB")
