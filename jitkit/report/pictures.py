"""The pictures that a run drew of its samples, chosen and made small enough for one page."""

from __future__ import annotations

import re
import warnings
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN = 12  # of a run
SIDE = 1600  # cells of the longer side, at most
LOSSLESS = 500_000  # cells; a larger picture takes seconds to be kept exactly
QUALITIES = (90, 80, 65)


@dataclass(frozen=True)
class Picture:
    """A picture inside the page."""

    step: int
    width: int
    height: int
    address: str
    """``data:image/webp;base64,...``"""
    best: bool = False
    """Whether no other picture lies nearer to the step of the lowest held-out loss."""


def previews(run: Path) -> list[tuple[int, Path]]:
    """Step and file of every ``samples/step-N.png`` of a run, in order."""
    folder = run / "samples"
    files = folder.iterdir() if folder.is_dir() else []
    named = [(re.fullmatch(r"step-(\d{1,15})\.png", path.name), path) for path in files]
    return sorted((int(name[1]), path) for name, path in named if name and path.is_file())


def chosen(steps: Sequence[int], best: int | None, most: int = SHOWN) -> list[int]:
    """Which of a run's steps to show: the first, the last, the best, and evenly between.

    >>> chosen(range(0, 100, 10), best=30, most=4)
    [0, 30, 60, 90]
    >>> chosen(range(0, 100, 10), best=80, most=4)
    [0, 30, 80, 90]
    """
    if len(steps) <= most:
        return list(steps)
    places = {round(i * (len(steps) - 1) / (most - 1)) for i in range(most)}
    if best in steps and (place := steps.index(best)) not in places:
        inner = sorted(places - {0, len(steps) - 1})
        places = places - {min(inner, key=lambda other: abs(other - place))} | {place}
    return [steps[place] for place in sorted(places)]


def pictures(run: Path, best: int | None, budget: int) -> tuple[list[Picture], list[str]]:
    """A run's pictures for the page, and what could not be read.

    Args:
        best: step of the lowest held-out loss, where there is one.
        budget: bytes that they may take in all.
    """
    files = dict(previews(run))
    nearest = min(files, key=lambda step: abs(step - best)) if files and best is not None else None
    steps = chosen(sorted(files), nearest)
    found, notes = [], []
    for step in steps:
        try:
            data, size = encoded(files[step], budget // len(steps))
        except (OSError, ValueError, SyntaxError) as error:  # torn, or no picture
            notes.append(f"{files[step].name} cannot be read ({error})")
            continue
        found.append(Picture(step, *size, address(data), best=step == nearest))
    return found, notes


def address(data: bytes) -> str:
    """The address that holds a WebP picture itself."""
    return "data:image/webp;base64," + b64encode(data).decode()


def encoded(path: Path, budget: int) -> tuple[bytes, tuple[int, int]]:
    """A picture as WebP of at most so many bytes, and its width and height.

    Exactly as it is where it is small; else at the best quality and size that fit.

    Raises:
        OSError, ValueError, SyntaxError: the file is torn, or no PNG, or past all measure.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=["PNG"]) as opened:
                picture = opened.convert("RGB")
        except bombs as error:
            raise ValueError(str(error)) from None
    picture.thumbnail((SIDE, SIDE))
    for data in _attempts(picture):
        if len(data) <= budget:
            break
    else:
        while len(data) > budget and min(picture.size) > 32:
            half = (picture.width * 2 // 3, picture.height * 2 // 3)
            picture = picture.resize(half, Image.Resampling.LANCZOS)
            data = _webp(picture, quality=QUALITIES[-1])
    return data, picture.size


def _attempts(picture: Image) -> Iterator[bytes]:
    """The same picture in fewer and fewer bytes."""
    if picture.width * picture.height <= LOSSLESS:
        yield _webp(picture, lossless=True)
    for quality in QUALITIES:
        yield _webp(picture, quality=quality)


def _webp(picture: Image, quality: int = 80, lossless: bool = False) -> bytes:
    file = BytesIO()
    picture.save(file, format="WEBP", quality=quality, lossless=lossless, method=2)
    return file.getvalue()
