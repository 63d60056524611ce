"""JPEG files with the size and decoding cost of ImageNet's images, and reading them with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed.measure import seconds_of

WIDE, HIGH = 500, 375  # ImageNet's commonest
QUALITY = 92


def texture(rng: np.random.Generator, high: int, wide: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image whose amplitudes fall as 1 / frequency, as those of photographs do, (H, W, 3).

    Colour channels share a brightness and differ from it by a fifth as much (the spectrum: Field
    1987, J. Opt. Soc. Am. A 4, 2379).
    """
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None])
    frequency[0, 0] = np.inf
    shape = (4, high, wide // 2 + 1)
    waves = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    grey, *colours = np.fft.irfft2(waves / frequency, s=(high, wide))
    layers = np.stack([grey + 0.2 * colour for colour in colours], axis=-1)
    return np.clip(128 + 50 * layers / grey.std(), 0, 255).astype(np.uint8)


def write(folder: Path, number: int, *, high: int = HIGH, wide: int = WIDE) -> list[Path]:
    """Write this number of JPEGs into one class folder."""
    (folder / "texture").mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for i in range(number):
        files.append(folder / "texture" / f"{i:04}.jpg")
        Image.fromarray(texture(rng, high, wide)).save(files[-1], quality=QUALITY)
    return files


def decode(path: Path) -> None:
    """The pixels of a file, at its own size."""
    with Image.open(path) as image:
        image.convert("RGB").load()


def decode_rate(files: Sequence[Path], threads: int) -> float:
    """Images decoded per second by this number of threads."""
    with ThreadPoolExecutor(threads) as pool:
        return len(files) / seconds_of(lambda: list(pool.map(decode, files)))
