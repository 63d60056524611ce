"""The paper in small: its measures have known answers, and its pages say what the numbers say."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.paper import bottleneck, cost, noise, pairs, parts, precondition, toypage  # noqa: E402
from benchmarks.paper.changes import CHANGES, edm, linear  # noqa: E402
from benchmarks.paper.drawing import mosaic  # noqa: E402
from benchmarks.paper.features import (  # noqa: E402
    FEATURES,
    features,
    frechet_distance,
    frechet_with_deviation,
)
from benchmarks.paper.jobs import finished  # noqa: E402
from benchmarks.paper.measures import Mean, sliced_wasserstein  # noqa: E402
from benchmarks.paper.pages import Shown, grid, less, write  # noqa: E402
from benchmarks.paper.pictures import PictureSet, block  # noqa: E402
from benchmarks.paper.toy import (  # noqa: E402
    Toy,
    in_the_plane,
    mlp,
    orthogonal,
    out_of_the_plane,
    sampler_leaves,
    spiral,
)
from benchmarks.paper.trainings import RECIPES, Setup, Training  # noqa: E402
from jitkit.diffusion.denoiser import Denoiser, Diffusion  # noqa: E402
from jitkit.domains.images.files import read_pixels  # noqa: E402
from jitkit.errors import DataError  # noqa: E402
from jitkit.fields import Axis, Layout  # noqa: E402
from jitkit.nn.transformer import Sizes  # noqa: E402
from jitkit.recipe.load import load_recipe  # noqa: E402
from jitkit.training.dry_run import check  # noqa: E402

ROOT = Path(__file__).parents[1]
IMAGENET = "imagenet256-200epochs"
TABLES = (toypage, pairs, noise, bottleneck, parts, cost, precondition)
ENVIRONMENT = {
    "machine": {"processor": "an abacus"},
    "versions": {"torch": "2"},
    "commit": "c0ffee",
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    """Thirty pictures of two classes, at any size."""
    folder = tmp_path_factory.mktemp("paper")
    rng = np.random.default_rng(0)
    for name in ("flags", "faces"):
        (folder / "source" / name).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source" / name / f"{i}.png")
    return PictureSet(folder / "source", folder / "work")


def points(n: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n, 2))


# Measures


def test_a_shift_costs_its_length_in_sliced_wasserstein_distance() -> None:
    a = points(500, 0)
    assert sliced_wasserstein(a, a) == 0
    assert sliced_wasserstein(a, a[::-1] + [0.3, -0.4]) == pytest.approx(0.5)


def test_shifted_gaussians_are_as_far_apart_as_their_means_and_deviations_say() -> None:
    a, b = points(20_000, 1), 1.5 * points(20_000, 2) + [2.0, 0.0]
    # in each direction W2² = (shift along it)² + (difference of deviations)²; on average half of 2²
    assert sliced_wasserstein(a, b) == pytest.approx(sqrt(2 * (2.0 + 0.25)), rel=0.02)


def test_a_mean_over_seeds_has_students_interval() -> None:
    found = Mean.of([1.0, 2.0, 3.0])
    assert found.value == 2
    assert found.high == pytest.approx(2 + 4.30265 / sqrt(3), rel=1e-5)
    assert found.low == pytest.approx(2 - 4.30265 / sqrt(3), rel=1e-5)
    assert str(Mean.of([1.0, 2.0])) == "1.5 (1 to 2)"
    assert str(Mean.of([0.12345])) == "0.123"
    assert str(Mean.of([1.0], deviation=0.1)) == "1 (0.804 to 1.2)"


def test_random_features_tell_pictures_apart_and_not_from_themselves() -> None:
    rng = np.random.default_rng(3)
    smooth = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8).repeat(16, 1).repeat(16, 2)
    rough = rng.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    assert features(smooth).shape == (60, FEATURES)
    assert frechet_distance(smooth, smooth) == pytest.approx(0, abs=1e-6)
    halves = frechet_distance(smooth[:30], smooth[30:])
    assert frechet_distance(smooth, rough) > 3 * halves


def test_the_deviation_over_resamples_is_that_of_other_samples() -> None:
    rng = np.random.default_rng(4)
    real = rng.standard_normal((5000, 3))
    found = [frechet_with_deviation(rng.standard_normal((200, 3)) + 1, real) for _ in range(60)]
    values, deviations = map(np.array, zip(*found, strict=True))
    assert values.mean() == pytest.approx(3, rel=0.1)
    assert deviations.mean() == pytest.approx(values.std(ddof=1), rel=0.3)


def test_features_of_a_picture_are_those_of_the_same_picture_enlarged() -> None:
    grey = np.full((2, 16, 16, 3), 77, np.uint8)
    np.testing.assert_allclose(features(grey), features(grey.repeat(4, 1).repeat(4, 2)), atol=1e-6)


# The toy


def test_the_spiral_has_mean_zero_and_unit_variance() -> None:
    u = spiral(200_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(u.mean(dim=0), torch.zeros(2), atol=0.01, rtol=0)
    assert float(u.var(dim=0).mean()) == pytest.approx(1, abs=0.01)


def test_points_of_the_plane_come_back_and_do_not_leave_it() -> None:
    generator = torch.Generator().manual_seed(1)
    plane, u = orthogonal(40, generator), spiral(300, generator)
    x = u @ plane.T
    torch.testing.assert_close(in_the_plane(x, plane), u)
    assert out_of_the_plane(x, plane) == pytest.approx(0, abs=1e-5)
    normal = torch.linalg.qr(torch.cat((plane, torch.randn(40, 1, generator=generator)), 1)).Q[:, 2]
    assert out_of_the_plane(x + 0.7 * normal, plane) == pytest.approx(0.7, rel=1e-4)


def test_fifty_heun_steps_leave_a_seventeen_thousandth_of_the_noise() -> None:
    assert sampler_leaves(102) == pytest.approx(0.0171 * 10, rel=0.02)


def test_the_mlp_has_five_layers_of_width_256() -> None:
    shapes = [tuple(layer.weight.shape) for layer in mlp(16) if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(256, 17), (256, 256), (256, 256), (256, 256), (16, 256)]


def test_a_toy_is_trained_once_in_a_process_of_its_own(tmp_path: Path) -> None:
    jobs = [Toy(3, "x", seed, steps=20, samples=200) for seed in range(2)]
    found = finished(jobs, tmp_path, 1)["3-x"]
    assert len(found) == 2 and found[0]["found"] != found[1]["found"]
    assert found[0]["found"]["in"] > found[0]["found"]["floor"] > 0
    file = tmp_path / jobs[0].folder / "result.json"
    before = file.stat().st_mtime_ns
    assert finished(jobs, tmp_path, 1)["3-x"] == found
    assert file.stat().st_mtime_ns == before


# Changes of the model


@pytest.mark.parametrize("scales", [edm, linear])
def test_a_preconditioned_model_says_a_sum_of_z_and_of_the_network(
    scales: Callable[..., Any],
) -> None:
    denoiser = small()
    name = scales.__name__
    z, t = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    said = denoiser(z, t)
    CHANGES[name](denoiser)
    skip, out = (each.reshape(-1, 1, 1, 1) for each in scales(t))
    torch.testing.assert_close(denoiser(z, t), skip * z + out * said)


def test_what_is_left_for_the_network_of_edm_has_unit_variance() -> None:
    t = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    skip, out = edm(t)
    # x - skip z for x of deviation 0.5 and z = t x + (1 - t) eps
    variance = 0.25 * (1 - skip * t) ** 2 + (skip * (1 - t)) ** 2
    torch.testing.assert_close(variance, out**2)


def test_without_rope_only_the_fixed_code_tells_tokens_apart() -> None:
    denoiser = small()
    z, t = torch.randn(2, 1, 4, 4), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        denoiser.network.pos_embed.zero_()
    swapped = z.flip(2)  # a patch is one row and the full width, so this reverses the tokens
    assert not torch.allclose(denoiser(swapped, t), denoiser(z, t).flip(2), atol=1e-4)
    before = denoiser(z, t)
    CHANGES["without-rope"](denoiser)
    after = denoiser(z, t)
    torch.testing.assert_close(denoiser(swapped, t), after.flip(2))
    assert not torch.allclose(after, before, atol=1e-4)
    with torch.no_grad():  # no norm forgets how long queries are
        for block in denoiser.network.blocks:
            block.get_submodule("attn.qkv").get_parameter("weight")[:16] *= 3
    assert not torch.allclose(denoiser(z, t), after, atol=1e-4)


def small() -> Denoiser:
    """A model with random weights, where a fresh one would say zero; a patch is one row."""
    torch.manual_seed(0)
    layout = Layout((Axis("row", 4, 1), Axis("column", 4, 4)), ("grey",))
    sizes = Sizes(16, 2, 2, 8, in_context_tokens=0, in_context_start=0, mlp_hidden=16)
    denoiser = Denoiser(layout, {}, sizes, Diffusion())
    with torch.no_grad():
        for parameter in denoiser.network.parameters():
            parameter.normal_(std=0.5)
    return denoiser.eval()


# Pictures and recipes


def test_drawings_are_sorted_by_their_first_code_point() -> None:
    names = ("1F1E9-1F1EA", "1F3F4-200D-2620-FE0F", "1F3F3", "1F600", "E000", "00A9")
    assert [block(name) for name in names] == [
        "flags", "flags", "pictographs", "faces", "private", "other"
    ]  # fmt: skip


def test_pictures_are_scaled_once_and_keep_split_and_class(pictures: PictureSet) -> None:
    folder = pictures.sized(16)
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 30
    assert {file.relative_to(folder).parts[:2] for file in files} == {
        (split, name) for split in ("train", "val") for name in ("flags", "faces")
    }
    assert {read_pixels(str(file), 16, "RGB").shape for file in files} == {(16, 16, 3)}
    with Image.open(files[0]) as image:
        assert image.size == (16, 16)
    before = files[0].stat().st_mtime_ns
    assert pictures.sized(16) == folder and files[0].stat().st_mtime_ns == before


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        PictureSet(tmp_path / "none", tmp_path).sized(16)
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_can_be_trained_and_tells_its_command(path: Path, pictures: PictureSet) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"train recipes/paper/{path.name}" in text
    data = pictures.source if "imagenet" not in path.stem else None
    found = check(load_recipe(path, {"domain.path": str(data)} if data else {}))
    if data:
        assert not found.problems
    else:  # without ImageNet the model is counted all the same
        assert found.summary["tokens"] == 256 and "ImageNet" in found.problems[0]


def test_recipes_of_the_paper_are_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["jitkit.recipes"]
    files = list(RECIPES.iterdir())
    assert files
    for file in files:
        assert any(file.relative_to(ROOT / "recipes").match(pattern) for pattern in patterns)


def test_commands_of_the_imagenet_page_are_recipes_that_load() -> None:
    text = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"train8 ", line)]
    assert len(lines) >= 10
    recipe = f"recipes/paper/{IMAGENET}.yaml"
    assert f"P={recipe}" in text
    for line in lines:
        words = shlex.split(line.replace("$P", recipe), comments=True)[1:]
        source = ROOT / words[0] if words[0].endswith(".yaml") else words[0]
        overrides = [word for word in words[1:] if "=" in word]
        assert load_recipe(source, overrides).train.batch_size == 1024


def test_a_patch_has_as_many_features_as_its_recipe_says(pictures: PictureSet) -> None:
    for name, features_of_a_patch in (("patch32", 3072), ("patch16", 768), ("patch3", 27)):
        recipe = load_recipe(RECIPES / f"{name}.yaml", {"domain.path": str(pictures.source)})
        found = check(recipe).summary
        assert found["patch_features"] == features_of_a_patch
        assert found["in_context_tokens"] == 0 and recipe.model.width == 128


def test_a_changed_model_is_trained_sampled_and_scored(
    pictures: PictureSet, tmp_path: Path
) -> None:
    asked = ("train.steps=2", "train.batch_size=4", "model.depth=1", "model.width=16")
    setup = Setup(pictures, 1, (*asked, "model.heads=2", "evaluate.samples=5", "sample.steps=2"))
    plain = setup.trainings("a", "patch3")[0]
    changed = setup.trainings("b", "patch3", change="edm")[0]
    assert plain.folder != changed.folder
    found = [job.do(tmp_path / job.folder) for job in (plain, changed)]
    assert found[0]["frechet"] != found[1]["frechet"]
    assert found[0]["frechet_deviation"] > 0
    assert found[0]["parameters"] == found[1]["parameters"] > 0
    assert 0 < found[0]["floor"] and found[0]["gmacs"] > 0
    with np.load(tmp_path / changed.folder / "shown.npz") as arrays:
        assert arrays["samples"].shape == (5, 12, 12, 3) and arrays["real"].dtype == np.uint8


def test_trainings_differ_in_folder_where_anything_differs(pictures: PictureSet) -> None:
    setup = Setup(pictures, 2)
    one, other = setup.trainings("a", "patch3")
    shared = setup.trainings("another page's", "patch3", ["diffusion.P_mean=-0.8"])
    assert one.folder != other.folder and one.label == other.label
    assert [job.folder for job in shared] == [one.folder, other.folder]


# Pages


def canned(
    table: ModuleType, pictures: PictureSet, number: Callable[[str, str], float]
) -> tuple[dict[str, Any], dict[str, Shown]]:
    """Records of two seeds, and samples, for all that a page asks for."""
    records: dict[str, list[Any]] = {}
    shown = {}
    for job in table.jobs(Setup(pictures, 2)):
        keys = ("in", "out", "floor", "frechet", "gmacs", "step_milliseconds")
        found = {key: number(job.label, key) for key in keys}
        record = {"found": found, "seconds": 90, "environment": ENVIRONMENT}
        records.setdefault(job.label, []).append(record)
        picture = np.zeros((20, 8, 8, 3), np.uint8)
        drawn = points(50, 0) if isinstance(job, Toy) else picture
        shown[job.label] = Shown(drawn, drawn)
        assert isinstance(job, Toy | Training)
    return records, shown


def as_in_the_paper(label: str, key: str) -> float:
    """Numbers under which every claim holds."""
    if key == "floor":
        return 0.01
    if key == "gmacs":
        return 1.1 if label.startswith("128") else 1.0
    if label[0].isdigit() and "-" in label:  # the toy
        d, prediction = label.split("-")
        far = {"x": 1.0, "v": 40.0, "eps": 900.0}[prediction]
        return 0.05 if d == "2" or prediction == "x" else 0.05 * far
    for words, value in {
        "patch3 ": 0.3, "eps-prediction": 9.0, "v-prediction": 5.0, "mu 0 x": 0.9, "edm": 2.0,
        "linear": 3.0, "without RoPE": 0.8, "in-context": 0.5, "bottleneck 128": 0.9,
    }.items():  # fmt: skip
        if words in label:
            return value
    return 0.7


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__.split(".")[-1])
def test_a_page_is_written_from_its_numbers(
    table: ModuleType, pictures: PictureSet, tmp_path: Path
) -> None:
    records, shown = canned(table, pictures, as_in_the_paper)
    page = table.page(records, shown)
    assert [claim.text for claim in page.claims if not claim.holds] == []
    write(page, records, "python -m benchmarks.paper it", tmp_path, "Of drawings.")
    text = (tmp_path / f"{page.name}.md").read_text(encoding="utf-8")
    assert "Does not hold" not in text and "- Holds: " in text
    assert f"]({page.name}.png)" in text and "Of drawings." in text
    for origin in ("`python -m benchmarks.paper it`", "an abacus", "torch 2", "commit c0ffee"):
        assert origin in text
    assert f"{sum(map(len, records.values()))} trainings" in text
    with Image.open(tmp_path / f"{page.name}.png") as image:
        assert min(image.size) > 200
    assert json.loads((tmp_path / f"{page.name}.json").read_text())["claims"]
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__.split(".")[-1])
def test_a_trend_that_is_not_there_is_said_not_to_hold(
    table: ModuleType, pictures: PictureSet
) -> None:
    grows = {"32 pixels, patch 8": 1.0, "64 pixels, patch 16": 2.0, "128 pixels, patch 32": 4.0}
    records, shown = canned(table, pictures, lambda label, key: grows.get(label, 1.0))
    claims = table.page(records, shown).claims
    assert not all(claim.holds for claim in claims)
    for claim in claims:
        verdict = {True: "Holds", False: "**Does not hold**", None: "Not decided"}[claim.holds]
        assert str(claim) == f"- {verdict}: {claim.text}"


def test_what_lies_within_its_intervals_is_not_decided() -> None:
    one, near, far = Mean.of([1.0, 2.0]), Mean.of([1.9, 3.0]), Mean.of([2.5, 3.0])
    assert less(one, near) is None and less(near, one) is None
    assert less(one, far) is True and less(far, one) is False
    assert less(Mean.of([1.0]), Mean.of([1.1])) is True
    assert less(Mean.of([1.0]), Mean.of([1.0])) is None


def test_numbers_stand_in_their_row_and_column(pictures: PictureSet) -> None:
    records, shown = canned(pairs, pictures, lambda label, key: 1.0)
    label = pairs.label("patch32", "eps", "x")
    for record, value in zip(records[label], (3.0, 5.0), strict=True):
        record["found"] = {"frechet": value, "floor": 0.01}
    table = pairs.page(records, shown).table
    assert "| x | 1 (1 to 1) | 4 (3 to 5) | 1 (1 to 1) | 10.14 | 379.21 | 107.55 |" in table
    assert grid(["a", "b"], [[1, 2]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_mosaic_holds_its_pictures_side_by_side() -> None:
    tiles = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 3), np.uint8)
    drawn = mosaic(tiles, side=2)
    assert drawn.shape == (5, 7, 3)
    assert drawn[0, 0, 0] == 0 and drawn[0, 4, 0] == 1 and drawn[3, 0, 0] == 2
    assert (drawn[2] == 255).all() and (drawn[:, 3] == 255).all()
