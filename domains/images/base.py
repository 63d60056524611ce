"""Base class of image domains: items, normalization, output files, previews, FID."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from jitkit.domain import lower_is_better
from jitkit.domains.images.files import MODES, ImageFiles, ImageItem, list_images
from jitkit.fields import Axis, Category, Condition, Field, Layout
from jitkit.metrics.fid.section import FidSection
from jitkit.metrics.frechet import frechet_distance
from jitkit.protocols import ScoresFeatures
from jitkit.sections import DomainSection
from jitkit.utils.atomic import atomic_write
from jitkit.utils.types import Array

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
MAX_IN_PREVIEW = 400


if TYPE_CHECKING:
    from jitkit.metrics.fid.scorer import FeatureScorer
    from jitkit.metrics.metric import EvaluationProtocol


class ImageDomain(ScoresFeatures):
    """Square images from any source; an adapter adds `items`, `num_classes` and `scores`.

    Key ``fid`` requests metrics on the features of a network (`jitkit.metrics.fid`). With
    ``fid_by_default`` they are also computed without a request, if network and weights are
    available.
    """

    fid_by_default: ClassVar[bool] = False

    def __init__(
        self,
        section: DomainSection,
        size: int,
        channels: int,
        *,
        label_drop: float = 0.1,
        flip: bool = False,
        fid: FidSection | None = None,
    ) -> None:
        super().__init__(section)
        patch = max(2, size // 16)  # 16 x 16 tokens, as in the paper, for 32 cells and more
        axes = (Axis("row", size, patch), Axis("column", size, patch))
        self.layout = Layout(axes, CHANNELS[channels])
        self._label_drop, self._flip = label_drop, flip
        self._fid = fid or FidSection()

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes; None for unconditional data."""
        return None

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """label, the class of an image, unless there are no classes."""
        n = self.num_classes
        return {} if n is None else {"label": Category(n, self._label_drop)}

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
        """Values pixels / 255 · 2 - 1 in [-1, 1], (C, H, W); ``rng`` may mirror left and right.

        In a conditional model an unlabelled image gets the null class.
        """
        import torch

        pixels = item.pixels
        if rng is not None and self._flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        values = np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)  # (C, H, W)
        values /= np.float32(255)  # in place: allocating costs ten times the arithmetic
        values *= 2
        values -= 1
        if self.num_classes is None:
            return Field(torch.from_numpy(values))
        label = self.num_classes if item.label is None else item.label
        return Field(torch.from_numpy(values), cond={"label": torch.tensor(label)})

    def decode(self, field: Field) -> ImageItem:
        """Undo `encode` exactly by rounding to 8 bits, except for mirroring and the name."""
        values = field.values.detach().float().cpu().numpy()
        pixels = np.clip(np.rint((values + 1) / 2 * 255), 0, 255).astype(np.uint8)
        label = int(field.cond["label"]) if "label" in field.cond else None
        return ImageItem(
            np.ascontiguousarray(pixels.transpose(1, 2, 0)),
            label=None if label == self.num_classes else label,
        )

    def write(self, items: Iterable[ImageItem], path: Path) -> list[Path]:
        """Write ``00000.png``, ``00001.png``, ..., then ``grid.png`` and ``samples.npz``.

        The archive has the layout of ADM's evaluation: ``arr_0`` (N, H, W, C) uint8 and, if all
        items have labels, ``arr_1`` (N,) int64.
        """
        path.mkdir(parents=True, exist_ok=True)
        written: list[ImageItem] = []
        files = []
        for item in items:
            files.append(_write_png(path / f"{len(written):05}.png", _image(item.pixels)))
            written.append(item)
        arrays = [np.stack([item.pixels for item in written])]
        labels = [item.label for item in written]
        if None not in labels:
            arrays.append(np.array(labels, np.int64))
        archive = path / "samples.npz"
        with atomic_write(archive) as aside, aside.open("wb") as file:
            np.savez(file, *arrays)
        return [*files, _write_png(path / "grid.png", self.preview(written)), archive]

    def scorer(self) -> tuple[FeatureScorer | None, list[str]]:
        """Scorer of FID and related metrics if requested or available, and notes for the user."""
        from jitkit.metrics.fid.scorer import scorer_for

        size = self.layout.axes[0].size
        return scorer_for(self._fid, size, self._real, by_default=self.fid_by_default)

    def evaluation_protocol(self) -> EvaluationProtocol | None:
        """The paper's protocol if ``domain.fid.protocol`` requests it."""
        from jitkit.metrics.fid.jit_protocol import jit_protocol

        return jit_protocol() if self._fid.protocol == "jit" else None

    def _real(self, source: str) -> Sequence[ImageItem]:
        """The training split (``"train"``), or the images of a folder at the model's size."""
        if source == "train":
            return self.items("train")
        mode = MODES[len(self.layout.channels)]
        listing = list_images(Path(source).expanduser(), ())
        return ImageFiles(listing, self.layout.axes[0].size, mode)

    def preview(self, items: Sequence[ImageItem]) -> Image.Image:
        """The first 400 items as a grid, enlarged if it is narrower than 512 pixels.

        Each row shows one class if the items are ordered in equal runs of a class.
        """
        items = items[:MAX_IN_PREVIEW]
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
    """Images per row: one class if that is not too elongated, else a nearly square grid."""
    classes = list(dict.fromkeys(labels))
    each = len(labels) // len(classes)
    in_runs = None not in labels and labels == [c for c in classes for _ in range(each)]
    if in_runs and max(2, len(classes) / 4) <= each <= len(classes) * 4:
        return each
    return ceil(sqrt(len(labels)))


def _image(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _write_png(path: Path, image: Image.Image) -> Path:
    with atomic_write(path) as aside:
        image.save(aside, format="PNG")
    return path


@lower_is_better
def frechet_8x8(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Fréchet distance between Gaussians fitted to images downscaled to 8 x 8, pixels 0 to 1.

    It measures layout and colour, not detail, and needs no other network. It is not the FID.
    """
    return frechet_distance(_downscaled(samples), _downscaled(train))


def _downscaled(items: Sequence[ImageItem]) -> Array:
    """Every image averaged down to 8 x 8, (N, 64 C)."""
    return np.stack(
        [
            np.asarray(_image(item.pixels).resize((8, 8), Image.Resampling.BOX)).ravel() / 255
            for item in items
        ]
    )
