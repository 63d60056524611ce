"""What all domains of images share: items, normalization, files, previews, FID."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from jitkit.domain import Split, lower_is_better
from jitkit.domains.images.files import MODES, ImageFiles, ImageItem, list_images
from jitkit.fields import Axis, Category, Condition, Field, Layout
from jitkit.metrics.fid.section import FidSection
from jitkit.metrics.frechet import frechet
from jitkit.utils.atomic import written_aside
from jitkit.utils.types import Array

CHANNELS = {1: ("grey",), 3: ("red", "green", "blue"), 4: ("red", "green", "blue", "alpha")}
MOST_IN_PREVIEW = 400


if TYPE_CHECKING:
    from jitkit.metrics.fid.scorer import FeatureScorer
    from jitkit.protocols import EvaluationProtocol


class ImageDomain:
    """Square pictures wherever they come from; an adapter adds `items`, `metadata` and `scores`.

    They can be scored in the features of a network (`jitkit.metrics.fid`) where key ``fid`` asks
    for it; ``takes_fid_unasked`` says whether they are where it does not, if all
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
        fid: FidSection | None = None,
    ) -> None:
        patch = max(2, size // 16)  # 16 x 16 tokens, as in the paper, from 32 cells upwards
        axes = (Axis("row", size, patch), Axis("column", size, patch))
        self.layout = Layout(axes, CHANNELS[channels])
        self.conditions: Mapping[str, Condition] = (
            {} if num_classes is None else {"label": Category(num_classes, label_drop)}
        )
        self._num_classes = num_classes
        self._flip = flip
        self._fid = fid or FidSection()

    def encode(self, item: ImageItem, rng: np.random.Generator | None = None) -> Field:
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

    def decode(self, field: Field) -> ImageItem:
        """Undo `encode`, rounded to 8 bits and so exactly, but for a mirror and the name."""
        values = field.values.detach().float().cpu().numpy()
        pixels = np.clip(np.rint((values + 1) / 2 * 255), 0, 255).astype(np.uint8)
        label = int(field.cond["label"]) if "label" in field.cond else None
        return ImageItem(
            np.ascontiguousarray(pixels.transpose(1, 2, 0)),
            label=None if label == self._num_classes else label,
        )

    def write(self, items: Iterable[ImageItem], path: Path) -> list[Path]:
        """Write ``00000.png`` and on as items come, then ``grid.png`` and ``samples.npz``.

        The archive is laid out as ADM's evaluation reads it: ``arr_0`` (N, H, W, C) uint8 and,
        where all items have one, labels ``arr_1`` (N,) int64.
        """
        path.mkdir(parents=True, exist_ok=True)
        kept: list[ImageItem] = []
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

    def scorer(self) -> tuple[FeatureScorer | None, list[str]]:
        """FID and its like, where they are asked for or can be had; else why there are none."""
        from jitkit.metrics.fid.scorer import scorer_for

        size = self.layout.axes[0].size
        return scorer_for(self._fid, size, self._real, unasked=self.takes_fid_unasked)

    def evaluation_protocol(self) -> EvaluationProtocol | None:
        """The paper's, where ``domain.fid.protocol`` asks for it."""
        from jitkit.metrics.fid.jit_protocol import jit_protocol

        return jit_protocol() if self._fid.protocol == "jit" else None

    def _real(self, source: str) -> Sequence[ImageItem]:
        """The training split (``"train"``), or the pictures of a folder at the model's size."""
        if source == "train":
            return self.items("train")
        mode = MODES[len(self.layout.channels)]
        listing = list_images(Path(source).expanduser(), ())
        return ImageFiles(listing, self.layout.axes[0].size, mode)

    def items(self, split: Split) -> Sequence[ImageItem]:
        """The pictures of a split."""
        raise NotImplementedError

    def preview(self, items: Sequence[ImageItem]) -> Image.Image:
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
def frechet_8x8(samples: Sequence[ImageItem], train: Sequence[ImageItem]) -> float:
    """Fréchet distance of Gaussians fitted to pictures shrunk to 8 x 8, pixels from 0 to 1.

    It sees layout and colour, not detail, and needs no other network; it is not the FID.
    """
    return frechet(_shrunk(samples), _shrunk(train))


def _shrunk(items: Sequence[ImageItem]) -> Array:
    """Means over 8 x 8 boxes of every picture, (N, 64 C)."""
    return np.stack(
        [
            np.asarray(_image(item.pixels).resize((8, 8), Image.Resampling.BOX)).ravel() / 255
            for item in items
        ]
    )
