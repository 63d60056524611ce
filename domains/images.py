"""Pictures: folders of PNG, JPEG, WebP and the like, as square arrays of 8-bit colour.

`Pictures` is what every adapter of pictures shares: numbers, files, previews. `Images` adds the
reading of folders, cropped as the reference does (ADM, Dhariwal & Nichol 2021, arXiv:2105.05233;
Li & He 2025, arXiv:2511.13720).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, overload

import numpy as np
from PIL import Image
from pydantic import Field as Limit

from jitkit.domain import Measure, Split
from jitkit.domains.measures import Array, frechet, lower_is_better
from jitkit.domains.packed import Packed, pack
from jitkit.errors import BadItem, DataError, listed
from jitkit.fields import Axis, Category, Condition, Field, Layout
from jitkit.files import written_aside
from jitkit.processor import cores
from jitkit.sections import Count, DomainSection, EvaluateSection

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names
SUFFIXES = frozenset(".bmp .gif .jpeg .jpg .pgm .png .pnm .ppm .tif .tiff .webp".split())
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # EPS would start Ghostscript
LONGEST = 100  # sides of a picture to each other, at most; a strip would fill the memory
MOST_IN_PREVIEW = 400
MOST_THREADS = 16  # that read, unless asked; a GPU at work on the smallest model wants 10


if TYPE_CHECKING:
    from jitkit.domains.features.scorer import FeatureScorer


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as its file shows it.

    Attributes:
        pixels: (H, W, C) uint8, 0 to 255.
        label: its class, counted from 0; None where it has none.
        name: where it came from, relative to its split.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    label: int | None = None
    name: str = ""


class Pictures:
    """Square pictures wherever they come from; an adapter adds `items`, `facts` and `scores`.

    They can be scored in the features of a network (`domains.features`) where the recipe's section
    ``evaluate`` asks for it; ``takes_fid_unasked`` says whether they are where it does not, if all
    that this needs is at hand.
    """

    takes_fid_unasked: ClassVar[bool] = False

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        num_classes: int | None,
        label_drop: float = 0.1,
        flip: bool = False,
    ) -> None:
        patch = max(2, size // 16)  # 16 x 16 tokens, as in the paper, from 32 cells upwards
        axes = (Axis("row", size, patch), Axis("column", size, patch))
        self.layout = Layout(axes, CHANNELS[channels])
        self.conditions: Mapping[str, Condition] = (
            {} if num_classes is None else {"label": Category(num_classes, label_drop)}
        )
        self._num_classes = num_classes
        self._flip = flip

    def encode(self, item: Picture, rng: np.random.Generator | None = None) -> Field:
        """Values pixels / 255 · 2 - 1 in [-1, 1], (C, H, W); ``rng`` may mirror left and right.

        A picture without label is of the null class where others have one.
        """
        import torch

        pixels = item.pixels
        if rng is not None and self._flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)  # (C, H, W)
        values /= np.float32(255)  # in place: fresh memory costs ten times the arithmetic
        values *= 2
        values -= 1
        if self._num_classes is None:
            return Field(torch.from_numpy(values))
        label = self._num_classes if item.label is None else item.label
        return Field(torch.from_numpy(values), cond={"label": torch.tensor(label)})

    def decode(self, field: Field) -> Picture:
        """Undo `encode`, rounded to 8 bits and so exactly, but for a mirror and the name."""
        values = field.values.detach().float().cpu().numpy()
        pixels = np.clip(np.rint((values + 1) / 2 * 255), 0, 255).astype(np.uint8)
        label = int(field.cond["label"]) if "label" in field.cond else None
        return Picture(
            np.ascontiguousarray(pixels.transpose(1, 2, 0)),
            label=None if label == self._num_classes else label,
        )

    def write(self, items: Iterable[Picture], path: Path) -> list[Path]:
        """Write ``00000.png`` and on as items come, then ``grid.png`` and ``samples.npz``.

        The archive is laid out as ADM's evaluation reads it: ``arr_0`` (N, H, W, C) uint8 and,
        where all items have one, labels ``arr_1`` (N,) int64.
        """
        path.mkdir(parents=True, exist_ok=True)
        kept: list[Picture] = []
        files = []
        for item in items:
            files.append(_write_png(path / f"{len(kept):05}.png", _image(item.pixels)))
            kept.append(item)
        arrays = [np.stack([item.pixels for item in kept])]
        labels = [item.label for item in kept]
        if None not in labels:
            arrays.append(np.array(labels, np.int64))
        archive = path / "samples.npz"
        with written_aside(archive) as aside, aside.open("wb") as file:
            np.savez(file, *arrays)
        return [*files, _write_png(path / "grid.png", self.preview(kept)), archive]

    def scorer(self, section: EvaluateSection) -> tuple[FeatureScorer | None, list[str]]:
        """FID and its like, where they are asked for or can be had; else why there are none."""
        from jitkit.domains.features.scorer import scorer_for

        size = self.layout.axes[0].size
        return scorer_for(section, size, self._real, unasked=self.takes_fid_unasked)

    def _real(self, source: str) -> Sequence[Picture]:
        """The training split (``"train"``), or the pictures of a folder at the model's size."""
        if source == "train":
            return self.items("train")
        mode = MODES[len(self.layout.channels)]
        listing = _list_classes(Path(source).expanduser(), ())
        return PictureFiles(listing, self.layout.axes[0].size, mode)

    def items(self, split: Split) -> Sequence[Picture]:
        """The pictures of a split."""
        raise NotImplementedError

    def preview(self, items: Sequence[Picture]) -> Image.Image:
        """The first 400 items side by side, enlarged where they are narrower than 512 pixels.

        A row holds one class where the items come in equal runs of a class.
        """
        items = items[:MOST_IN_PREVIEW]
        columns = _columns([item.label for item in items])
        rows = ceil(len(items) / columns)
        height, width, channels = items[0].pixels.shape
        zoom = ceil(512 / (columns * width))
        gap = 2
        step_y, step_x = height * zoom + gap, width * zoom + gap
        canvas = np.full((rows * step_y - gap, columns * step_x - gap, channels), 128, np.uint8)
        for i, item in enumerate(items):
            y, x = i // columns * step_y, i % columns * step_x
            enlarged = item.pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
            canvas[y : y + height * zoom, x : x + width * zoom] = enlarged
        return _image(canvas)


def _columns(labels: Sequence[int | None]) -> int:
    """Pictures in a row: those of one class where that is not a strip, else near a square."""
    classes = list(dict.fromkeys(labels))
    each = len(labels) // len(classes)
    in_runs = None not in labels and labels == [c for c in classes for _ in range(each)]
    if in_runs and max(2, len(classes) / 4) <= each <= len(classes) * 4:
        return each
    return ceil(sqrt(len(labels)))


def _image(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _write_png(path: Path, image: Image.Image) -> Path:
    with written_aside(path) as aside:
        image.save(aside, format="PNG")
    return path


@lower_is_better
def frechet_8x8(samples: Sequence[Picture], train: Sequence[Picture]) -> float:
    """Fréchet distance of Gaussians fitted to pictures shrunk to 8 x 8, pixels from 0 to 1.

    It sees layout and colour, not detail, and needs no other network; it is not the FID.
    """
    return frechet(_shrunk(samples), _shrunk(train))


def _shrunk(items: Sequence[Picture]) -> Array:
    """Means over 8 x 8 boxes of every picture, (N, 64 C)."""
    return np.stack(
        [
            np.asarray(_image(item.pixels).resize((8, 8), Image.Resampling.BOX)).ravel() / 255
            for item in items
        ]
    )


class ImagesSection(DomainSection):
    """Section ``domain`` of a recipe for pictures in a folder."""

    path: Path | None = None
    """Folder of class folders, of loose pictures (then there are no labels), or of train/ and, if
    there is one, val/, each laid out in one of these ways."""
    size: Annotated[int, Limit(ge=2)] = 256
    """Height and width in pixels; other pictures are scaled and cropped to it."""
    channels: Literal[1, 3, 4] = 3
    """Grey (1), colour (3), or colour and opacity (4)."""
    classes: Count | None = None
    """Classes the model is told of; the class folders are counted where not given. With it, layout
    and conditions are known without a path."""
    label_drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of labels hidden in training, which guidance needs."""
    flip: bool = True
    """Mirror left and right at random in training."""
    holdout: Annotated[float, Limit(ge=0, lt=1)] = 0.01
    """Share of the pictures kept from training where there is no val/; which ones follows from
    their names, so that new files move no others."""
    threads: Count | None = None
    """Threads that read and decode in each process; as many as it has cores, 16 at most, where not
    given."""
    cache: Path | None = None
    """Folder, outside of `path`, in which the cropped pictures are kept in one file, from which
    they are read several times faster: size x size x channels bytes each, 252 GB for ImageNet at
    256. It is made at the first use, and again when files have changed; it may be deleted."""


class Images(Pictures):
    """Pictures in a folder, with classes by folder or without.

    Class folders count in the order of their names, and pictures within them. Hidden files and
    those without a suffix of pictures are passed over.
    """

    Section: ClassVar[type[DomainSection]] = ImagesSection
    takes_fid_unasked = True

    def __init__(self, section: ImagesSection, facts: Mapping[str, Any] | None = None) -> None:
        """List the folder without opening a picture, or stand on ``facts`` or ``classes`` alone.

        Raises:
            DataError: the folder is missing, empty, mixed, or has more classes than were asked.
        """
        self.section = section
        self._files: dict[Split, PictureFiles] | None = None
        self._class_names: list[str] = [] if facts is None else list(facts["class_names"])
        self._asked: int | None = section.classes if facts is None else facts["num_classes"]
        num_classes = self._asked
        if facts is None and (section.path is not None or num_classes is None):
            self._files = self._list()
            num_classes = num_classes or len(self._class_names) or None
        super().__init__(
            section.size,
            section.channels,
            num_classes=num_classes,
            label_drop=section.label_drop,
            flip=section.flip,
        )

    def facts(self) -> dict[str, Any]:
        """Number of classes, None for pictures without, and their names where known, in order."""
        return {"num_classes": self._num_classes, "class_names": self._class_names}

    def items(self, split: Split) -> Sequence[Picture]:
        """The pictures of a split; one that cannot be read raises `BadItem`.

        Raises:
            DataError: as the constructor, where that stood on facts; or they cannot be packed.
        """
        if self._files is None:
            self._files = self._list()
        if self.section.cache is not None:
            self._files[split].pack(self.section.cache.expanduser())
        return self._files[split]

    def scores(self) -> Mapping[str, Measure]:
        """How the coarse look of samples compares with that of the training pictures."""
        return {"frechet_8x8": frechet_8x8}

    def _list(self) -> dict[Split, PictureFiles]:
        """Both splits; learns the names of the classes where they are not known."""
        root = _data_folder(self.section.path)
        folders, _ = _names_in(root)
        has_splits = "train" in folders and set(folders) <= {"train", "val", "test"}
        train = _list_classes(root / "train" if has_splits else root, self._class_names)
        _check_classes(train, self._asked)
        self._class_names = self._class_names or train.classes
        if has_splits and "val" in folders:
            val = _list_classes(root / "val", self._class_names)
            if bool(val.classes) != bool(train.classes):
                loose, sorted_ = (val, train) if train.classes else (train, val)
                raise DataError(
                    f"{loose.folder} holds loose pictures but {sorted_.folder} class folders; "
                    f"sort the first into the same class folders"
                )
        else:
            train, val = _held_out(train, self.section.holdout)
        size, mode = self.section.size, MODES[self.section.channels]
        threads = self.section.threads or _threads()
        return {
            "train": PictureFiles(train, size, mode, threads),
            "val": PictureFiles(val, size, mode, threads),
        }


def _threads() -> int:
    """Cores of this process, those that it shares with others of a run shared out."""
    return max(1, min(MOST_THREADS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _data_folder(path: Path | None) -> Path:
    """The folder that the recipe names, if it is one."""
    if path is not None and path.expanduser().is_dir():
        return path.expanduser()
    found = "is not set" if path is None else f"{path}: {_lack(path.expanduser())}"
    raise DataError(
        f"domain.path {found}. For ImageNet fetch ILSVRC2012 (image-net.org, after signing up) and "
        f"unpack it to FOLDER/train/ with its 1000 class folders (n01440764, ...) and, if wanted, "
        f"FOLDER/val/ with the same; any folder of class folders or of pictures will do as well. "
        f"domain.path=FOLDER says where it lies"
    )


def _lack(path: Path) -> str:
    return "a file, not a folder" if path.exists() else "no such folder"


@dataclass(frozen=True)
class _Listing:
    """What lies in a folder: paths relative to it, and labels where it has class folders."""

    folder: Path
    classes: list[str]  # empty where pictures lie loose
    names: list[str]
    labels: list[int]  # as long as names, or empty


def _names_in(folder: Path) -> tuple[list[str], list[str]]:
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


def _list_classes(folder: Path, known: Sequence[str]) -> _Listing:
    """The pictures of a folder, loose or in class folders, which must be among ``known`` if any."""
    classes, loose = _names_in(folder)
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
    return _Listing(folder, classes, names, labels)


def _pictures_of_class(folder: Path) -> list[str]:
    nested, pictures = _names_in(folder)
    if nested:
        raise DataError(
            f"class folder {folder} holds folders ({listed(nested, 3)}); pictures lie directly in "
            f"class folders, and these in domain.path or in its train/ and val/, beside which "
            f"there is no other folder"
        )
    if not pictures:
        raise DataError(f"class folder {folder} holds no pictures; fill or remove it")
    return pictures


def _check_classes(found: _Listing, asked: int | None) -> None:
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


def _held_out(found: _Listing, share: float) -> tuple[_Listing, _Listing]:
    """Split into those for training and a ``share`` held out, by a hash of each relative path."""

    def is_held_out(name: str) -> bool:
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") < share * 2**64

    held = np.array([is_held_out(name) for name in found.names])

    def part(keep: np.ndarray[Any, np.dtype[np.bool_]]) -> _Listing:
        where = np.flatnonzero(keep).tolist()
        labels = [found.labels[i] for i in where] if found.labels else []
        return _Listing(found.folder, found.classes, [found.names[i] for i in where], labels)

    return part(~held), part(held)


class PictureFiles(Sequence[Picture]):
    """Pictures of a folder, each opened when it is asked for; a slice is read at once.

    The index is flat arrays, 55 MB for ImageNet, because it goes to every worker: a list of as
    many strings is twice that, and forked workers would copy it page by page as references are
    counted. Safe for threads: Pillow lets others run while it decodes and scales.

    Attributes:
        threads: that may read at once.
    """

    def __init__(self, listing: _Listing, size: int, mode: str, threads: int = 1) -> None:
        encoded = [os.fsencode(name) for name in listing.names]
        self._folder = os.fspath(listing.folder)
        self._names = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])  # name i is _names[ends[i]:ends[i + 1]]
        self._labels = np.array(listing.labels, np.int32) if listing.classes else None
        self._size, self._mode, self.threads = size, mode, threads
        self._packed: Packed | None = None

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | Sequence[Picture]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        label = None if self._labels is None else int(self._labels[index])
        return Picture(self._pixels(index), label, self._name(index))

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
