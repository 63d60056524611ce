"""Sample images of a run, selected and compressed to fit into the page."""

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

MAX_SHOWN = 12  # images of a run
SIDE = 1600  # largest side in pixels
LOSSLESS = 500_000  # pixels; lossless compression of larger images takes seconds
QUALITIES = (90, 80, 65)


@dataclass(frozen=True)
class EmbeddedImage:
    """An image inside the page."""

    step: int
    width: int
    height: int
    data_uri: str
    """``data:image/webp;base64,...``"""
    best: bool = False
    """Whether its step is the nearest to that of the lowest validation loss."""


def preview_files(run: Path) -> list[tuple[int, Path]]:
    """Step and file of every ``samples/step-N.png`` of a run, in order."""
    folder = run / "samples"
    files = folder.iterdir() if folder.is_dir() else []
    named = [(re.fullmatch(r"step-(\d{1,15})\.png", path.name), path) for path in files]
    return sorted((int(name[1]), path) for name, path in named if name and path.is_file())


def select_steps(steps: Sequence[int], best: int | None, most: int = MAX_SHOWN) -> list[int]:
    """Steps to show: the first, the last, the best, and others evenly between.

    >>> select_steps(range(0, 100, 10), best=30, most=4)
    [0, 30, 60, 90]
    >>> select_steps(range(0, 100, 10), best=80, most=4)
    [0, 30, 80, 90]
    """
    if len(steps) <= most:
        return list(steps)
    indices = {round(i * (len(steps) - 1) / (most - 1)) for i in range(most)}
    if best in steps and (index := steps.index(best)) not in indices:
        inner = sorted(indices - {0, len(steps) - 1})
        indices = indices - {min(inner, key=lambda other: abs(other - index))} | {index}
    return [steps[index] for index in sorted(indices)]


def embed_previews(
    run: Path, best: int | None, budget: int
) -> tuple[list[EmbeddedImage], list[str]]:
    """A run's sample images for the page, and notes of those that cannot be read.

    Args:
        best: step of the lowest validation loss, if there is one.
        budget: bytes of all images together.
    """
    files = dict(preview_files(run))
    nearest = min(files, key=lambda step: abs(step - best)) if files and best is not None else None
    steps = select_steps(sorted(files), nearest)
    images, notes = [], []
    for step in steps:
        try:
            data, size = encode_webp(files[step], budget // len(steps))
        except (OSError, ValueError, SyntaxError) as error:  # truncated, or not an image
            notes.append(f"{files[step].name} cannot be read ({error})")
            continue
        images.append(EmbeddedImage(step, *size, data_uri(data), best=step == nearest))
    return images, notes


def data_uri(data: bytes) -> str:
    """A data URI of a WebP image."""
    return "data:image/webp;base64," + b64encode(data).decode()


def encode_webp(path: Path, budget: int) -> tuple[bytes, tuple[int, int]]:
    """An image as WebP of at most ``budget`` bytes, and its width and height.

    Lossless if it is small; else at the best quality and size that fit.

    Raises:
        OSError, ValueError, SyntaxError: the file is truncated, not a PNG, or far too large.
    """
    from PIL import Image

    bombs = (Image.DecompressionBombWarning, Image.DecompressionBombError)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=["PNG"]) as opened:
                image = opened.convert("RGB")
        except bombs as error:
            raise ValueError(str(error)) from None
    image.thumbnail((SIDE, SIDE))
    for data in _attempts(image):
        if len(data) <= budget:
            break
    else:
        while len(data) > budget and min(image.size) > 32:
            smaller = (image.width * 2 // 3, image.height * 2 // 3)
            image = image.resize(smaller, Image.Resampling.LANCZOS)
            data = _webp(image, quality=QUALITIES[-1])
    return data, image.size


def _attempts(image: Image) -> Iterator[bytes]:
    """Encodings of the image with decreasing size."""
    if image.width * image.height <= LOSSLESS:
        yield _webp(image, lossless=True)
    for quality in QUALITIES:
        yield _webp(image, quality=quality)


def _webp(image: Image, quality: int = 80, lossless: bool = False) -> bytes:
    file = BytesIO()
    image.save(file, format="WEBP", quality=quality, lossless=lossless, method=2)
    return file.getvalue()
