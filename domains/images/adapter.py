"""Domain `images`: folders of PNG, JPEG, WebP and other image files, as square 8-bit arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

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
    split_by_name,
)
from jitkit.errors import ConditionError, DataError, listed
from jitkit.metrics.fid.section import FidSection
from jitkit.sections import Count, DomainSection
from jitkit.utils.cpu import cores

MAX_THREADS = 16  # default; keeping a GPU busy with the smallest model takes 10


class ImagesSection(DomainSection):
    """Section ``domain`` of a recipe: folders of images."""

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "cache", "threads", "fid")

    fid: FidSection = FidSection()
    """How FID and related metrics are computed."""
    path: Path | None = None
    """Folder with class folders, with unsorted images (no labels then), or with train/ and
    optionally val/, each laid out in one of these ways."""
    size: Annotated[int, Limit(ge=2)] = 256
    """Height and width in pixels; other images are scaled and cropped to it."""
    channels: Literal[1, 3, 4] = 3
    """Grey (1), RGB (3), or RGB with alpha (4)."""
    classes: Count | None = None
    """Number of classes of the model; by default the number of class folders. If given, no path is
    needed to build the model."""
    label_drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of labels dropped in training, as classifier-free guidance (CFG) needs."""
    flip: bool = True
    """Mirror left and right at random in training."""
    holdout: Annotated[float, Limit(ge=0, lt=1)] = 0.01
    """Share of the images held out for validation if there is no val/; chosen by file name, so new
    files do not move others between the splits."""
    threads: Count | None = None
    """Threads per process that read and decode; by default the number of its cores, at most 16."""
    cache: Path | None = None
    """Folder, outside `path`, for a cache file of cropped images, which is read several times
    faster: size x size x channels bytes per image, 252 GB for ImageNet at 256. It is written at
    the first use and again when files have changed; it may be deleted."""


class Images(ImageDomain):
    """Images in a folder, conditioned on their class folder or unconditional.

    Class folders, and images within them, are ordered by name. Hidden files and files without an
    image suffix are skipped.
    """

    Section: ClassVar[type[DomainSection]] = ImagesSection
    fid_by_default = True

    section: ImagesSection

    def __init__(self, section: ImagesSection) -> None:
        super().__init__(
            section,
            section.size,
            section.channels,
            label_drop=section.label_drop,
            flip=section.flip,
            fid=section.fid,
        )

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes; None for images without labels."""
        return self.metadata()["num_classes"]

    def measure(self) -> dict[str, Any]:
        """Number of classes, None without labels, and the class names in order, if known.

        Lists the folder without opening an image, unless key ``classes`` suffices.
        """
        section = self.section
        if section.path is None and section.classes is not None:
            return {"num_classes": section.classes, "class_names": []}
        names = self._files["train"].class_names
        return {"num_classes": section.classes or len(names) or None, "class_names": names}

    def encode_condition(self, name: str, value: Any) -> Any:
        """A class by the name of its folder, or by its index unless folders are named by numbers.

        Raises:
            ConditionError: no class has this name.
        """
        names = self.metadata()["class_names"]
        if str(value) in names:
            return names.index(str(value))
        if isinstance(value, str) or any(name.isdigit() for name in names):
            known = listed(names) if names else "known by number only"
            raise ConditionError(f"condition {name}={value!r}: no such class; classes are {known}")
        return value

    def items(self, split: Split) -> Sequence[ImageItem]:
        """The images of a split; an unreadable one raises `BadItem`.

        Raises:
            DataError: the folder is missing, empty, mixed, or has other classes than the model or
                more than requested; or the cache file cannot be written.
        """
        if self.section.cache is not None:
            self._files[split].use_cache(self.section.cache.expanduser())
        return self._files[split]

    def scores(self) -> Mapping[str, Metric]:
        """Metrics of the coarse appearance of samples against the training images."""
        return {"frechet_8x8": frechet_8x8}

    @cached_property
    def _files(self) -> dict[Split, ImageFiles]:
        """Files of both splits."""
        known = self._metadata or {"num_classes": self.section.classes, "class_names": []}
        root = _data_folder(self.section.path)
        folders, _ = names_in(root)
        has_splits = "train" in folders and set(folders) <= {"train", "val", "test"}
        train = list_images(root / "train" if has_splits else root, known["class_names"])
        check_classes(train, known["num_classes"])
        if has_splits and "val" in folders:
            val = list_images(root / "val", known["class_names"] or train.classes)
            if bool(val.classes) != bool(train.classes):
                flat, sorted_ = (val, train) if train.classes else (train, val)
                raise DataError(
                    f"{flat.folder} has images but no class folders, {sorted_.folder} has class "
                    f"folders; sort the first into the same class folders"
                )
        else:
            train, val = split_by_name(train, self.section.holdout)
        size, mode = self.section.size, MODES[self.section.channels]
        threads = self.section.threads or _threads()
        return {
            "train": ImageFiles(train, size, mode, threads),
            "val": ImageFiles(val, size, mode, threads),
        }


def _threads() -> int:
    """Cores per process: those of the machine divided among the processes of the run on it."""
    return max(1, min(MAX_THREADS, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _data_folder(path: Path | None) -> Path:
    """The folder named by the recipe, checked to be one."""
    if path is not None and path.expanduser().is_dir():
        return path.expanduser()
    problem = "is not set" if path is None else f"{path}: {_problem_of(path.expanduser())}"
    raise DataError(
        f"domain.path {problem}. For ImageNet download ILSVRC2012 (image-net.org, after signing "
        f"up) and unpack it to FOLDER/train/ with its 1000 class folders (n01440764, ...) and "
        f"optionally FOLDER/val/ with the same; any folder of class folders or of images works "
        f"too. Set domain.path=FOLDER"
    )


def _problem_of(path: Path) -> str:
    return "a file, not a folder" if path.exists() else "no such folder"


def official_domain(size: int, channels: int, classes: int, label_drop: float) -> Images:
    """The image domain of an official JiT checkpoint; it reads no files."""
    return Images(
        ImagesSection(
            name="images",
            size=size,
            channels=channels,
            classes=classes,
            label_drop=label_drop,
        )
    )
