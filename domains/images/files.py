"""Image files: list class folders, read, centre crop as in the reference code (ADM, Dhariwal &
Nichol 2021, arXiv:2105.05233; Li & He 2025, arXiv:2511.13720).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from jitkit.domains.images.image_cache import ImageCache, open_image_cache
from jitkit.errors import BadItem, DataError, listed
from jitkit.protocols import Threaded

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # EPS would start Ghostscript
MAX_ASPECT = 100  # ratio of the sides; scaling a longer strip would fill the memory


@dataclass(frozen=True, eq=False)
class ImageItem:
    """An 8-bit image and its label.

    Attributes:
        pixels: (H, W, C) uint8, 0 to 255.
        label: class index from 0; None if unlabelled.
        name: path relative to the folder of its split.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    label: int | None = None
    name: str = ""


@dataclass(frozen=True)
class ImageListing:
    """Contents of a folder: relative paths, and labels if it has class folders."""

    folder: Path
    classes: list[str]  # empty without class folders
    names: list[str]
    labels: list[int]  # one per name, or empty


def names_in(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the images in a folder, without hidden ones."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():  # from the listing itself: no stat call per file
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    images.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
    return sorted(folders), sorted(images)


def list_images(folder: Path, known: Sequence[str]) -> ImageListing:
    """Images of a folder or of its class folders, which must be among ``known`` if given."""
    classes, unsorted = names_in(folder)
    if classes and unsorted:
        raise DataError(
            f"{folder} has both class folders ({listed(classes, 3)}) and unsorted images "
            f"({listed(unsorted, 3)}); move these into class folders, or all out of them"
        )
    if not classes and not unsorted:
        raise DataError(
            f"{folder} has no images and no class folders; image files end in "
            f"{' '.join(sorted(SUFFIXES))}. Set domain.path=FOLDER"
        )
    if known and (unknown := sorted(set(classes) - set(known))):
        raise DataError(
            f"{folder} has class folders that are not among the {len(known)} known classes "
            f"({listed(known, 3)}): {listed(unknown)}; remove or rename them"
        )
    label_of = {name: i for i, name in enumerate(known or classes)}
    names, labels = list(unsorted), []
    for name in classes:
        images = _images_of_class(folder / name)
        names += [f"{name}/{image}" for image in images]
        labels += [label_of[name]] * len(images)
    return ImageListing(folder, classes, names, labels)


def _images_of_class(folder: Path) -> list[str]:
    nested, images = names_in(folder)
    if nested:
        raise DataError(
            f"class folder {folder} has subfolders ({listed(nested, 3)}); images must be directly "
            f"in class folders, and these in domain.path or in its train/ and val/ without other "
            f"folders beside"
        )
    if not images:
        raise DataError(f"class folder {folder} has no images; fill or remove it")
    return images


def check_classes(listing: ImageListing, num_classes: int | None) -> None:
    """Check that the class folders suit a model of ``num_classes`` classes."""
    if num_classes is None or 1 <= len(listing.classes) <= num_classes:
        return
    if not listing.classes:
        raise DataError(
            f"asked for {num_classes} classes, but {listing.folder} has no class folders: sort the "
            f"images into class folders, or omit domain.classes to train without labels"
        )
    raise DataError(
        f"asked for {num_classes} classes, but {listing.folder} has {len(listing.classes)} class "
        f"folders ({listed(listing.classes, 3)}): domain.classes must be at least "
        f"{len(listing.classes)}"
    )


def split_by_name(listing: ImageListing, val_share: float) -> tuple[ImageListing, ImageListing]:
    """Split into training and validation images by a hash of each relative path."""

    def is_held_out(name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") < val_share * 2**64

    held_out = np.array([is_held_out(name) for name in listing.names])

    def part(keep: np.ndarray[Any, np.dtype[np.bool_]]) -> ImageListing:
        indices = np.flatnonzero(keep).tolist()
        names = [listing.names[i] for i in indices]
        labels = [listing.labels[i] for i in indices] if listing.labels else []
        return ImageListing(listing.folder, listing.classes, names, labels)

    return part(~held_out), part(held_out)


class ImageFiles(Threaded, Sequence[ImageItem]):
    """Images of a folder, each read when indexed; a slice is read completely.

    The index is stored in flat arrays, 55 MB for ImageNet, because every worker gets it: a list of
    strings takes twice as much, and forked workers would copy it page by page through reference
    counting. Thread-safe: Pillow releases the GIL while it decodes and scales.

    Attributes:
        class_names: of the class folders, in order of the labels; empty without labels.
        threads: number of threads that may read at once.
    """

    def __init__(self, listing: ImageListing, size: int, mode: str, threads: int = 1) -> None:
        encoded = [os.fsencode(name) for name in listing.names]
        self._folder = os.fspath(listing.folder)
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])  # name i is _names[ends[i]:ends[i + 1]]
        self._labels = np.array(listing.labels, np.int32) if listing.classes else None
        self._size, self._mode, self.threads = size, mode, threads
        self.class_names = list(listing.classes)
        self._cache: ImageCache | None = None

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
        """Bytes that determine an image: its file, size and mode. Faster than decoding it."""
        settings = f"{self._size} {self._mode} ".encode()
        return settings + Path(self._folder, self._name(index)).read_bytes()

    def use_cache(self, folder: Path) -> None:
        """Read from a cache file in ``folder`` from now on; write it first if it is missing.

        Raises:
            DataError: it cannot be written.
        """
        if self._cache is None:
            channels = len(Image.new(self._mode, (1, 1)).getbands())
            shape = (len(self), self._size, self._size, channels)
            path = folder / f"{self._size}-{self._mode}-{self._key()}.npy"
            self._cache = open_image_cache(path, shape, self._pixels, threads=self.threads)

    def _pixels(self, index: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(size, size, C) uint8; read-only if it comes from the cache file."""
        if self._cache is not None and index not in self._cache.unreadable:
            return self._cache[index]
        path = self._path(index)
        if self._cache is not None:
            raise BadItem(path, self._cache.unreadable[index])
        return read_pixels(path, self._size, self._mode)

    def _key(self) -> str:
        """Hash of names, sizes and modification times of the files, in order; 16 hex digits."""

        def stats(indices: range) -> bytes:
            return np.array([_stat(self._path(i)) for i in indices], np.int64).tobytes()

        digest = hashlib.blake2b(self._names + self._ends.tobytes(), digest_size=8)
        parts = [range(i, min(i + 1000, len(self))) for i in range(0, len(self), 1000)]
        with ThreadPoolExecutor(self.threads) as pool:  # network disks have high latency
            for part in pool.map(stats, parts):
                digest.update(part)
        return digest.hexdigest()

    def _path(self, index: int) -> str:
        return os.path.join(self._folder, self._name(index))

    def _name(self, index: int) -> str:
        return os.fsdecode(self._names[self._ends[index] : self._ends[index + 1]])


def _stat(path: str) -> tuple[int, int]:
    """Size and modification time of a file; -1 if it is missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def read_pixels(path: str, size: int, mode: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Read and centre crop the image in a file, (size, size, C) uint8.

    As in the reference code, EXIF orientation is ignored, alpha is dropped rather than blended if
    ``mode`` has none, and the first frame of an animation is used.

    Raises:
        BadItem: the file is broken, not an image, or too large to open safely.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            _check_sides(image)
            cropped = centre_crop(_convert(image, mode), size)
    except Exception as error:  # decoders may raise anything on a broken file
        raise BadItem(path, " ".join(str(error).split()) or type(error).__name__) from error
    pixels = np.array(cropped)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _check_sides(image: Image.Image) -> None:
    """Refuse images that would fill the memory. Pillow itself refuses them only at twice its limit
    and warns before; warning filters are not thread-safe."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} exceeds limit of {limit} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ValueError(f"{image.width} x {image.height} is a strip, not an image")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert to 8-bit ``mode``; 16-bit grey is scaled, while Pillow would clip it."""
    if image.mode == "F":
        raise ValueError("floating-point images have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers outside 0 to 65535; save it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square of an image, ``size`` pixels per side (ADM's crop).

    Halved by BOX while the shorter side is at least twice ``size``, scaled by BICUBIC to ``size``,
    cropped with offsets rounded down. If the shorter side is ``size`` it is not resampled.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    scaled = (round(image.width * scale), round(image.height * scale))
    image = image.resize(scaled, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
