"""Image folders: listing, reading, cropping, encoding, writing, and error messages."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jitkit.domain import Domain
from jitkit.domains.images.adapter import Images, ImagesSection
from jitkit.domains.images.base import frechet_8x8
from jitkit.domains.images.files import ImageItem, centre_crop, read_pixels
from jitkit.errors import BadItem, ConditionError, DataError
from jitkit.fields import Category, Field
from jitkit.protocols import Threaded

RNG = np.random.default_rng(0)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray[Any, Any]:
    return RNG.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def save(path: Path, pixels: np.ndarray[Any, Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(8, 8) if pixels is None else pixels).save(path)
    return path


def images(path: Path | None, *, metadata: dict[str, Any] | None = None, **keys: Any) -> Images:
    section = ImagesSection.model_validate({"name": "images", "path": path, "size": 8} | keys)
    return Images(section) if metadata is None else Images.from_metadata(section, metadata)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three classes of four images, created out of order."""
    for name in ("cat", "zebra", "ant"):
        for i in (3, 1, 2, 0):
            save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


# Listing a folder


def test_class_folders_are_labelled_in_name_order_and_their_images_sorted(classes: Path) -> None:
    domain: Domain = images(classes, holdout=0)
    items = domain.items("train")
    assert [item.label for item in items] == [0] * 4 + [1] * 4 + [2] * 4
    assert [item.name for item in items[:5]] == [*(f"ant/{i}.png" for i in range(4)), "cat/0.png"]
    assert domain.conditions == {"label": Category(3, 0.1)}
    assert domain.metadata() == {"num_classes": 3, "class_names": ["ant", "cat", "zebra"]}


def test_a_folder_without_class_folders_is_unconditional(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "c.webp", ".hidden.png", "read me.txt"):
        (tmp_path / name).write_bytes(b"") if name.endswith("txt") else save(tmp_path / name)
    domain = images(tmp_path, holdout=0)
    assert [item.name for item in domain.items("train")] == ["a.jpeg", "b.PNG", "c.webp"]
    assert domain.items("train")[-1].label is None
    assert domain.conditions == {}
    assert domain.metadata() == {"num_classes": None, "class_names": []}
    assert dict(domain.encode(domain.items("train")[0]).cond) == {}


def test_train_and_val_folders_are_the_splits_and_share_class_labels(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/0.png", "train/b/1.png", "val/b/7.png"):
        save(tmp_path / name)
    domain = images(tmp_path, holdout=0.5)
    assert [item.name for item in domain.items("train")] == ["a/0.png", "b/0.png", "b/1.png"]
    assert [(item.name, item.label) for item in domain.items("val")] == [("b/7.png", 1)]


def test_train_may_be_one_of_the_class_names(tmp_path: Path) -> None:
    for name in ("train/0.png", "plane/0.png"):
        save(tmp_path / name)
    assert images(tmp_path).metadata()["class_names"] == ["plane", "train"]


def test_validation_images_stay_the_same_when_files_are_added(tmp_path: Path) -> None:
    for i in range(0, 200, 2):
        (tmp_path / f"{i:03}.png").touch()
    before = held_out(tmp_path)
    for i in range(1, 200, 2):
        (tmp_path / f"{i:03}.png").touch()
    after = held_out(tmp_path)
    assert {name for name in after if int(name[:3]) % 2 == 0} == before
    assert 30 < len(after) < 70  # a quarter of 200


def held_out(folder: Path) -> set[str]:
    """Names of the images in val, none of which can be opened."""
    files = images(folder, holdout=0.25).items("val")
    names = set()
    for i in range(len(files)):
        with pytest.raises(BadItem) as caught:
            files[i]
        names.add(Path(caught.value.name).name)
    return names


def test_no_image_is_opened_and_torch_is_not_imported_before_an_item_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty.png").touch()
    code = (
        "import sys; from jitkit.domains.images.adapter import Images, ImagesSection\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(args[0]).endswith('.png')"
        " and sys.exit('opened'))\n"
        f"domain = Images(ImagesSection(name='images', path={str(tmp_path)!r}, holdout=0))\n"
        "assert len(domain.items('train')) == 1\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_files_with_names_outside_unicode_are_read(tmp_path: Path) -> None:
    name = "sch\udcf6n.png"  # latin-1 on disk
    try:
        save(tmp_path / "a.png").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes unicode names only")
    assert images(tmp_path, holdout=0).items("train")[0].name == name


# Error messages about folders


def test_a_missing_path_names_the_download_and_the_key() -> None:
    with pytest.raises(DataError, match=r"domain.path is not set.*ILSVRC2012.*image-net.org") as e:
        images(None).items("train")
    assert "1000 class folders" in str(e.value) and "domain.path=FOLDER" in str(e.value)


def test_a_path_that_is_not_a_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder\. For ImageNet download"):
        images(tmp_path / "nowhere").items("train")
    with pytest.raises(DataError, match=r"file\.png: a file, not a folder"):
        images(save(tmp_path / "file.png")).items("train")


@pytest.mark.parametrize(
    ("files", "keys", "text"),
    [
        (["notes.txt"], {}, "has no images and no class folders"),
        (["a/0.png", "b/0.txt"], {}, "class folder .*b has no images; fill or remove it"),
        (["a/0.png", "1.png"], {}, r"both class folders \(a\) and unsorted images \(1.png\)"),
        (["a/b/0.png"], {}, r"class folder .*a has subfolders \(b\)"),
        (["a/0.png", "b/0.png"], {"classes": 1}, "asked for 1 classes, but .* has 2 .* at least 2"),
        (["0.png"], {"classes": 2}, "asked for 2 classes, but .* has no class folders"),
        (["train/a/0.png", "val/b/0.png"], {}, r"not among the 1 known classes \(a\): b"),
        (
            ["train/a/0.png", "val/0.png"],
            {},
            "val has images but no class folders, .*train has class folders",
        ),
    ],
)
def test_an_ambiguous_folder_raises_one_clear_error(
    tmp_path: Path, files: list[str], keys: dict[str, Any], text: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=text):
        images(tmp_path, **keys).items("train")


def test_the_model_may_have_more_classes_than_the_folder(classes: Path) -> None:
    assert images(classes, classes=10).conditions == {"label": Category(10, 0.1)}


def test_with_classes_or_metadata_no_data_are_needed_before_items_are_read(
    classes: Path,
) -> None:
    gone = Path("/nowhere")
    for domain in (images(None, classes=3), images(gone, metadata=images(classes).metadata())):
        assert domain.conditions == {"label": Category(3, 0.1)}
        with pytest.raises(DataError, match="domain.path"):
            domain.items("train")


def test_metadata_keep_class_labels_when_the_folder_has_fewer_classes(classes: Path) -> None:
    metadata = {"num_classes": 4, "class_names": ["zebra", "yak", "cat", "ant"]}
    items = images(classes, metadata=metadata, holdout=0).items("train")
    assert [items[i].label for i in (0, 4, 8)] == [3, 2, 0]
    with pytest.raises(DataError, match=r"not among the 1 known classes \(cat\): ant, zebra"):
        images(classes, metadata={"num_classes": 1, "class_names": ["cat"]}).items("train")


# Reading a file

GREY = np.array([[0, 128], [200, 255]], np.uint8)


def as_16_bit() -> Image.Image:
    return Image.fromarray(GREY.astype(np.uint16) * 257)


def as_palette() -> Image.Image:
    """Two by two cells of four colours, the second of which is transparent."""
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    image.info["transparency"] = bytes([255, 0, 255, 255])
    return image


def as_rgba() -> Image.Image:
    return Image.fromarray(np.stack([GREY, GREY, GREY, 255 - GREY], axis=-1))


PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]
GREYS = [0, 128, 200, 255]


@pytest.mark.parametrize(
    ("make", "suffix", "mode", "wanted"),
    [
        (lambda: Image.fromarray(GREY), "png", "RGB", [[g] * 3 for g in GREYS]),
        (lambda: Image.fromarray(GREY), "png", "L", [[g] for g in GREYS]),
        (lambda: Image.fromarray(GREY), "png", "RGBA", [[g, g, g, 255] for g in GREYS]),
        (lambda: Image.fromarray(GREY > 150), "png", "L", [[0], [0], [255], [255]]),
        (as_16_bit, "png", "RGB", [[g] * 3 for g in GREYS]),
        (as_16_bit, "pgm", "L", [[g] for g in GREYS]),
        (as_16_bit, "tif", "RGBA", [[g, g, g, 255] for g in GREYS]),
        (as_palette, "png", "RGB", PALETTE),
        (as_palette, "png", "RGBA", [[*c, a] for c, a in zip(PALETTE, (255, 0, 255, 255))]),  # noqa: B905
        (as_palette, "png", "L", [[76], [150], [29], [9]]),  # ITU-R 601 luma
        (as_rgba, "png", "RGB", [[g] * 3 for g in GREYS]),
        (as_rgba, "webp", "RGBA", None),
        (lambda: as_rgba().convert("LA"), "png", "RGB", [[g] * 3 for g in GREYS]),
        (lambda: Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "tif", "RGB", [[255, 0, 0]] * 4),
        (lambda: Image.new("CMYK", (2, 2), (0, 0, 0, 0)), "jpg", "RGBA", [[255] * 4] * 4),
        (lambda: Image.new("CMYK", (2, 2), (0, 0, 0, 255)), "jpg", "L", [[0]] * 4),
    ],
)
def test_every_mode_is_converted_to_the_requested_one(
    tmp_path: Path,
    make: Callable[[], Image.Image],
    suffix: str,
    mode: str,
    wanted: list[list[int]] | None,
) -> None:
    path = tmp_path / f"image.{suffix}"
    make().save(path)
    pixels = read_pixels(str(path), 2, mode)
    assert pixels.shape == (2, 2, len(Image.new(mode, (1, 1)).getbands()))
    if wanted is not None:
        np.testing.assert_array_equal(pixels.reshape(4, -1), wanted)


def test_exif_orientation_is_ignored_as_in_the_reference_code(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    pixels = noise(8, 8)
    Image.fromarray(pixels).save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(read_pixels(str(tmp_path / "rotated.png"), 8, "RGB"), pixels)


def half_a_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()[: buffer.tell() // 2]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("half.jpg", half_a_jpeg(), "truncated"),
        ("page.png", b"<html>404</html>", "cannot identify image file"),
        ("empty.webp", b"", "cannot identify image file"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
        ("bomb.ppm", b"P6 20000 20000 255\n", "exceeds limit"),
        ("large.ppm", b"P6 10000 10000 255\n", "exceeds limit"),
        ("strip.pgm", b"P5 1000 1 255\n" + bytes(1000), "1000 x 1 is a strip"),
        ("floats.pfm", b"Pf 1 1 -1.0\n" + bytes(4), "no known range"),
    ],
)
def test_an_unreadable_file_raises_bad_item_with_its_name(
    tmp_path: Path, name: str, content: bytes, why: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadItem, match=f"{name}.*{why}") as caught:
        read_pixels(str(tmp_path / name), 8, "RGB")
    assert caught.value.name == str(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_file_is_refused_at_the_size_where_pillow_warns(tmp_path: Path) -> None:
    (tmp_path / "large.ppm").write_bytes(b"P6 10000 10000 255\n")
    with pytest.raises(BadItem, match=r"10000 x 10000 exceeds limit of \d+ pixels"):
        read_pixels(str(tmp_path / "large.ppm"), 8, "RGB")


def test_a_deleted_file_raises_bad_item(classes: Path) -> None:
    items = images(classes, holdout=0).items("train")
    (classes / "ant" / "1.png").unlink()
    with pytest.raises(BadItem, match="ant/1.png: .*No such file"):
        items[1]
    assert items[2].name == "ant/2.png"
    with pytest.raises(IndexError):
        items[12]


def test_reading_threads_are_divided_among_the_processes_of_a_machine(
    classes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for processes, threads in ((1, 16), (8, 8), (100, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        items = images(classes).items("train")
        assert isinstance(items, Threaded) and items.threads == threads
    items = images(classes, threads=5).items("train")
    assert isinstance(items, Threaded) and items.threads == 5


# Cropping


def adm_crop(image: Image.Image, size: int) -> np.ndarray[Any, Any]:
    """The crop of guided-diffusion's `center_crop_arr` (ADM), on arrays for its last step."""
    while min(*image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = size / min(*image.size)
    width, height = (round(side * scale) for side in image.size)
    array = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_the_crop_equals_the_reference_code_at_every_size(
    height: int, width: int, size: int
) -> None:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([y * 37 % 256, x * 91 % 256, (y * x * 13) % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.array(centre_crop(image, size)), adm_crop(image, size))


def test_an_image_of_the_right_height_is_cropped_and_not_resampled() -> None:
    pixels = noise(8, 13)
    np.testing.assert_array_equal(
        np.array(centre_crop(Image.fromarray(pixels), 8)), pixels[:, 2:10]
    )


def test_an_image_of_twice_the_size_is_averaged_in_boxes() -> None:
    pixels = noise(8, 8, 1)
    boxes = pixels.reshape(4, 2, 4, 2).mean(axis=(1, 3))
    assert (
        np.abs(np.array(centre_crop(Image.fromarray(pixels), 4)) - boxes).max() <= 1
    )  # rounded twice


# Encoding and decoding


@given(st.sampled_from([1, 3, 4]), st.none() | st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_decode_undoes_encode_exactly(channels: int, label: int | None, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, channels), dtype=np.uint8)
    domain = images(None, classes=5, channels=channels, size=16)
    again = domain.decode(domain.encode(ImageItem(pixels, label)))
    np.testing.assert_array_equal(again.pixels, pixels)
    assert again.label == label


def test_values_are_pixels_scaled_to_minus_one_to_one_with_channels_first() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    field = images(None, classes=5, size=16).encode(ImageItem(pixels, 3))
    levels = torch.arange(256, dtype=torch.float32) / 255 * 2 - 1
    assert torch.equal(field.values, levels.reshape(1, 16, 16).expand(3, 16, 16))
    assert field.cond["label"].item() == 3 and field.cond["label"].shape == ()


def test_values_out_of_range_are_clipped() -> None:
    values = torch.tensor([-1.5, -1.0, 0.0, 1.2]).reshape(1, 2, 2)
    image = images(None, classes=5, size=2, channels=1).decode(Field(values))
    assert image.pixels.ravel().tolist() == [0, 0, 128, 255]


def test_half_of_the_images_are_mirrored_in_training_unless_flip_is_off() -> None:
    item = ImageItem(noise(8, 8), 0)
    domain, plain = images(None, classes=1), images(None, classes=1, flip=False)
    straight = domain.encode(item).values
    mirrored = 0
    for seed in range(100):
        values = domain.encode(item, np.random.default_rng(seed)).values
        is_mirrored = torch.equal(values, straight.flip(-1))
        assert is_mirrored or torch.equal(values, straight)
        mirrored += is_mirrored
        assert torch.equal(plain.encode(item, np.random.default_rng(seed)).values, straight)
    assert 35 < mirrored < 65


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 2), (32, 2), (64, 4), (256, 16)])
def test_the_default_patch_makes_16_by_16_tokens_of_large_images(size: int, patch: int) -> None:
    layout = images(None, classes=1, size=size).layout
    assert layout.grid == (size, size) and layout.patch == (patch, patch)
    assert [axis.name for axis in layout.axes] == ["row", "column"]


def test_channels_are_named_by_their_colours() -> None:
    names = {c: images(None, classes=1, channels=c).layout.channels for c in (1, 3, 4)}
    rgb = ("red", "green", "blue")
    assert names == {1: ("grey",), 3: rgb, 4: (*rgb, "alpha")}


# Writing and previews


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_files_hold_the_images_and_the_archive_has_the_adm_layout(
    tmp_path: Path, channels: int
) -> None:
    domain = images(None, classes=5, channels=channels)
    items = [ImageItem(noise(8, 8, channels).reshape(8, 8, channels), i % 5) for i in range(3)]
    files = domain.write(items, tmp_path / "new" / "folder")
    names = ["00000.png", "00001.png", "00002.png", "grid.png", "samples.npz"]
    assert [file.name for file in files] == names
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == names
    for file, item in zip(files[:3], items, strict=True):
        with Image.open(file) as image:
            np.testing.assert_array_equal(np.array(image).reshape(8, 8, -1), item.pixels)
    with np.load(files[-1]) as archive:
        assert archive["arr_0"].shape == (3, 8, 8, channels) and archive["arr_0"].dtype == np.uint8
        assert archive["arr_1"].tolist() == [0, 1, 2] and archive["arr_1"].dtype == np.int64


def test_without_labels_the_archive_has_images_only(tmp_path: Path) -> None:
    domain = images(None, classes=5)
    with np.load(domain.write([ImageItem(noise(8, 8))], tmp_path)[-1]) as archive:
        assert archive.files == ["arr_0"]


def test_the_preview_enlarges_small_images_in_order() -> None:
    items = [ImageItem(np.full((8, 8, 1), 10 * i, np.uint8)) for i in range(5)]
    grid = np.array(images(None, classes=1, channels=1).preview(items))
    cell = 8 * 22 + 2  # three columns: 512 / 24 rounded up, and the gap
    assert grid.shape == (2 * cell - 2, 3 * cell - 2)
    assert [grid[cell * (i // 3) + 50, cell * (i % 3) + 50] for i in range(6)] == [
        0, 10, 20, 30, 40, 128,
    ]  # fmt: skip


def test_equal_runs_of_classes_get_one_preview_row_each() -> None:
    items = [ImageItem(np.zeros((8, 8, 3), np.uint8), label) for label in (4, 4, 4, 2, 2, 2)]
    width, height = images(None, classes=5).preview(items).size
    assert round(width / height, 1) == 1.5  # 3 columns, 2 rows


def test_the_preview_of_many_images_shows_the_first_400() -> None:
    items = [ImageItem(np.zeros((64, 64, 3), np.uint8))] * 1000
    assert images(None, classes=5).preview(items).size == (20 * 66 - 2, 20 * 66 - 2)


def test_frechet_8x8_of_shifted_pixels_is_the_squared_shift() -> None:
    rng = np.random.default_rng(0)
    dark = [ImageItem(rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)) for _ in range(40)]
    light = [ImageItem(item.pixels + np.uint8(51)) for item in dark]
    assert frechet_8x8(dark, dark) == pytest.approx(0, abs=1e-9)
    assert frechet_8x8(light, dark) == pytest.approx(64 * 3 * 0.2**2, rel=1e-3)


@pytest.mark.parametrize(
    ("names", "value", "index"),
    [
        (["ant", "cat", "zebra"], "cat", 1),
        (["ant", "cat", "zebra"], 1, 1),
        (["ant", "cat", "zebra"], "cow", "no such class; classes are ant, cat, zebra"),
        (["7", "8", "9"], 8, 1),
        (["7", "8", "9"], 1, "no such class; classes are 7, 8, 9"),
        ([], 2, 2),
        ([], "cat", "no such class; classes are known by number only"),
    ],
)
def test_classes_have_the_names_of_their_folders(names: list[str], value: Any, index: Any) -> None:
    domain = images(None, metadata={"num_classes": 3, "class_names": names})
    if isinstance(index, int):
        assert domain.encode_condition("label", value) == index
        return
    with pytest.raises(ConditionError, match=index):
        domain.encode_condition("label", value)
