"""Image files: listed by class folder, read, cropped as the reference does (ADM, Dhariwal & Nichol
2021, arXiv:2105.05233; Li & He 2025, arXiv:2511.13720).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from jitkit.domains.images.image_cache import ImageCache, pack
from jitkit.errors import BadItem, DataError, listed

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # EPS would start Ghostscript
LONGEST = 100  # sides of a picture to each other, at most; a strip would fill the memory


if TYPE_CHECKING:
    pass


@dataclass(frozen=True, eq=False)
class ImageItem:
    """A picture as its file shows it.

    Attributes:
        pixels: (H, W, C) uint8, 0 to 255.
        label: its class, counted from 0; None where it has none.
        name: where it came from, relative to its split.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    label: int | None = None
    name: str = ""


@dataclass(frozen=True)
class ImageListing:
    """What lies in a folder: paths relative to it, and labels where it has class folders."""

    folder: Path
    classes: list[str]  # empty where pictures lie loose
    names: list[str]
    labels: list[int]  # as long as names, or empty


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the pictures in a folder, each in order, hidden ones left out."""
    folders, pictures = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():  # known from the listing itself: no file is touched
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    pictures.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    return sorted(folders), sorted(pictures)


def list_images(folder: Path, known: Sequence[str]) -> ImageListing:
    """The pictures of a folder, loose or in class folders, which must be among ``known`` if any."""
    classes, loose = names_in(folder)
    if classes and loose:
        raise DataError(
            f"{folder} holds both class folders ({listed(classes, 3)}) and loose pictures "
            f"({listed(loose, 3)}); move the pictures into class folders, or all out of them"
        )
    if not classes and not loose:
        raise DataError(
            f"{folder} holds no pictures and no class folders; pictures end in "
            f"{' '.join(sorted(SUFFIXES))}. domain.path=FOLDER points elsewhere"
        )
    if known and (unknown := sorted(set(classes) - set(known))):
        raise DataError(
            f"{folder} has class folders that are not among the {len(known)} known classes "
            f"({listed(known, 3)}): {listed(unknown)}; remove or rename them"
        )
    number = {name: i for i, name in enumerate(known or classes)}
    names, labels = list(loose), []
    for name in classes:
        pictures = _pictures_of_class(folder / name)
        names += [f"{name}/{picture}" for picture in pictures]
        labels += [number[name]] * len(pictures)
    return ImageListing(folder, classes, names, labels)


def _pictures_of_class(folder: Path) -> list[str]:
    nested, pictures = names_in(folder)
    if nested:
        raise DataError(
            f"class folder {folder} holds folders ({listed(nested, 3)}); pictures lie directly in "
            f"class folders, and these in domain.path or in its train/ and val/, beside which "
            f"there is no other folder"
        )
    if not pictures:
        raise DataError(f"class folder {folder} holds no pictures; fill or remove it")
    return pictures


def check_classes(found: ImageListing, asked: int | None) -> None:
    """Whether a model that is told of ``asked`` classes can learn from what was found."""
    if asked is None or 1 <= len(found.classes) <= asked:
        return
    if not found.classes:
        raise DataError(
            f"asked for {asked} classes, but the pictures in {found.folder} lie loose: sort them "
            f"into class folders, or leave domain.classes out to train without labels"
        )
    raise DataError(
        f"asked for {asked} classes, but {found.folder} has {len(found.classes)} class folders "
        f"({listed(found.classes, 3)}): domain.classes must be at least {len(found.classes)}"
    )


def split_held_out(found: ImageListing, share: float) -> tuple[ImageListing, ImageListing]:
    """Split into those for training and a ``share`` held out, by a hash of each relative path."""

    def is_held_out(name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64

    held = np.array([is_held_out(name) for name in found.names])

    def part(keep: np.ndarray[Any, np.dtype[np.bool_]]) -> ImageListing:
        where = np.flatnonzero(keep).tolist()
        labels = [found.labels[i] for i in where] if found.labels else []
        return ImageListing(found.folder, found.classes, [found.names[i] for i in where], labels)

    return part(~held), part(held)


class ImageFiles(Sequence[ImageItem]):
    """Pictures of a folder, each opened when it is asked for; a slice is read at once.

    The index is flat arrays, 55 MB for ImageNet, because it goes to every worker: a list of as
    many strings is twice that, and forked workers would copy it page by page as references are
    counted. Safe for threads: Pillow lets others run while it decodes and scales.

    Attributes:
        threads: that may read at once.
    """

    def __init__(self, listing: ImageListing, size: int, mode: str, threads: int = 1) -> None:
        encoded = [os.fsencode(name) for name in listing.names]
        self._folder = os.fspath(listing.folder)
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])  # name i is _names[ends[i]:ends[i + 1]]
        self._labels = np.array(listing.labels, np.int32) if listing.classes else None
        self._size, self._mode, self.threads = size, mode, threads
        self._packed: ImageCache | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> ImageItem: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageItem]: ...
    def __getitem__(self, index: int | slice) -> ImageItem | Sequence[ImageItem]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        label = None if self._labels is None else int(self._labels[index])
        return ImageItem(self._pixels(index), label, self._name(index))

    def content(self, index: int) -> bytes:
        """What a picture follows from: its file, and how it is read. Quicker than to decode it."""
        how = f"{self._size} {self._mode} ".encode()
        return how + Path(self._folder, self._name(index)).read_bytes()

    def pack(self, folder: Path) -> None:
        """Read from a packed file in a folder from now on, which is made where it is not there.

        Raises:
            DataError: it cannot be.
        """
        if self._packed is None:
            channels = len(Image.new(self._mode, (1, 1)).getbands())
            shape = (len(self), self._size, self._size, channels)
            path = folder / f"{self._size}-{self._mode}-{self._key()}.npy"
            self._packed = pack(path, shape, self._pixels, threads=self.threads)

    def _pixels(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(size, size, C) uint8; read only where it comes from a packed file."""
        if self._packed is not None and index not in self._packed.unreadable:
            return self._packed[index]
        path = self._path(index)
        if self._packed is not None:
            raise BadItem(path, self._packed.unreadable[index])
        return read_pixels(path, self._size, self._mode)

    def _key(self) -> str:
        """Stands for names, sizes and times of the files, in their order; 16 digits."""

        def states(indices: range) -> bytes:
            return np.array([_state(self._path(i)) for i in indices], np.int64).tobytes()

        digest = hashlib.blake2b(self._names + self._ends.tobytes(), digest_size=8)
        parts = [range(i, min(i + 1000, len(self))) for i in range(0, len(self), 1000)]
        with ThreadPoolExecutor(self.threads) as pool:  # far disks answer late, but many at once
            for part in pool.map(states, parts):
                digest.update(part)
        return digest.hexdigest()

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, self._name(index))

    def _name(self, index: int) -> str:
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file; negative where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def read_pixels(path: str, size: int, mode: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture in a file, (size, size, C) uint8.

    As in the reference, EXIF orientation is not applied, opacity is dropped rather than blended
    where ``mode`` has none, and the first frame stands for a film.

    Raises:
        BadItem: the file is broken, not a picture, or too large to open safely.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_sides(image)
            cropped = centre_crop(_convert(image, mode), size)
    except Exception as error:  # decoders raise almost anything on a broken file
        raise BadItem(path, " ".join(str(error).split()) or type(error).__name__) from error
    pixels = np.array(cropped)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_sides(image: Image.Image) -> None:
    """Refuse what would fill the memory. Pillow only warns of large pictures, twice as large ones
    it refuses itself; filters of warnings are not for threads."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and image.width * image.height > most:
        raise ValueError(f"{image.width} x {image.height} exceeds limit of {most} pixels")
    if max(image.size) > LONGEST * min(image.size):
        raise ValueError(f"{image.width} x {image.height} is a strip, not a picture")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """In 8-bit ``mode``; 16-bit grey is scaled, where Pillow alone would clip it."""
    if image.mode == "F":
        raise ValueError("floating-point pictures have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers outside 0 to 65535; save it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a picture, ``size`` pixels a side (ADM's crop).

    Halved by BOX while the short side is at least twice ``size``, scaled by BICUBIC until it is
    ``size``, cropped with offsets rounded down. A short side of ``size`` is not resampled.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
