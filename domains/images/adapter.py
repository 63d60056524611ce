"""Domain `images`: folders of PNG, JPEG, WebP and the like, as square arrays of 8-bit colour."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field as Limit

from jitkit.domain import Metric, Split
from jitkit.domains.images.base import ImageDomain, frechet_8x8
from jitkit.domains.images.files import (
    MODES,
    ImageFiles,
    ImageItem,
    check_classes,
    list_images,
    names_in,
    split_held_out,
)
from jitkit.errors import DataError
from jitkit.metrics.fid.section import FidSection
from jitkit.sections import Count, DomainSection
from jitkit.utils.cpu import cores

MOST_THREADS = 16  # that read, unless asked; a GPU at work on the smallest model wants 10


if TYPE_CHECKING:
    pass


class ImagesSection(DomainSection):
    """Section ``domain`` of a recipe for pictures in a folder."""

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "cache", "threads", "fid")

    fid: FidSection = FidSection()
    """How FID and its like are computed."""
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


class Images(ImageDomain):
    """Pictures in a folder, with classes by folder or without.

    Class folders count in the order of their names, and pictures within them. Hidden files and
    those without a suffix of pictures are passed over.
    """

    Section: ClassVar[type[DomainSection]] = ImagesSection
    takes_fid_unasked = True

    def __init__(self, section: ImagesSection, metadata: Mapping[str, Any] | None = None) -> None:
        """List the folder without opening a picture, or stand on ``metadata`` or ``classes`` alone.

        Raises:
            DataError: the folder is missing, empty, mixed, or has more classes than were asked.
        """
        self.section = section
        self._files: dict[Split, ImageFiles] | None = None
        self._class_names: list[str] = [] if metadata is None else list(metadata["class_names"])
        self._asked: int | None = section.classes if metadata is None else metadata["num_classes"]
        num_classes = self._asked
        if metadata is None and (section.path is not None or num_classes is None):
            self._files = self._list()
            num_classes = num_classes or len(self._class_names) or None
        super().__init__(
            section.size,
            section.channels,
            num_classes=num_classes,
            label_drop=section.label_drop,
            flip=section.flip,
            fid=section.fid,
        )

    def metadata(self) -> dict[str, Any]:
        """Number of classes, None for pictures without, and their names where known, in order."""
        return {"num_classes": self._num_classes, "class_names": self._class_names}

    def items(self, split: Split) -> Sequence[ImageItem]:
        """The pictures of a split; one that cannot be read raises `BadItem`.

        Raises:
            DataError: as the constructor, where that stood on metadata; or they cannot be packed.
        """
        if self._files is None:
            self._files = self._list()
        if self.section.cache is not None:
            self._files[split].pack(self.section.cache.expanduser())
        return self._files[split]

    def scores(self) -> Mapping[str, Metric]:
        """How the coarse look of samples compares with that of the training pictures."""
        return {"frechet_8x8": frechet_8x8}

    def _list(self) -> dict[Split, ImageFiles]:
        """Both splits; learns the names of the classes where they are not known."""
        root = _data_folder(self.section.path)
        folders, _ = names_in(root)
        has_splits = "train" in folders and set(folders) <= {"train", "val", "test"}
        train = list_images(root / "train" if has_splits else root, self._class_names)
        check_classes(train, self._asked)
        self._class_names = self._class_names or train.classes
        if has_splits and "val" in folders:
            val = list_images(root / "val", self._class_names)
            if bool(val.classes) != bool(train.classes):
                loose, sorted_ = (val, train) if train.classes else (train, val)
                raise DataError(
                    f"{loose.folder} holds loose pictures but {sorted_.folder} class folders; "
                    f"sort the first into the same class folders"
                )
        else:
            train, val = split_held_out(train, self.section.holdout)
        size, mode = self.section.size, MODES[self.section.channels]
        threads = self.section.threads or _threads()
        return {
            "train": ImageFiles(train, size, mode, threads),
            "val": ImageFiles(val, size, mode, threads),
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


def official_domain(size: int, channels: int, classes: int, label_drop: float) -> Images:
    """The domain of images that official JiT weights make; it reads no files."""
    return Images(
        ImagesSection(
            name="images",
            size=size,
            channels=channels,  # type: ignore[arg-type]
            classes=classes,
            label_drop=label_drop,
        )
    )
