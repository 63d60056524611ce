"""Scores in the features of a network are torch-fidelity's, from pictures, statistics, or both."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("torch_fidelity")

import torch_fidelity  # noqa: E402
from extractors import Small  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402

import jitkit as package  # noqa: E402
from jitkit.domains.digits import Digits, DigitsSection  # noqa: E402
from jitkit.domains.images.adapter import Images, ImagesSection  # noqa: E402
from jitkit.domains.images.files import ImageItem  # noqa: E402
from jitkit.errors import DataError, RecipeError  # noqa: E402
from jitkit.evaluation.evaluate import evaluate  # noqa: E402
from jitkit.metrics.fid import (
    extractors,  # noqa: E402
    references,  # noqa: E402
    scorer,  # noqa: E402
)
from jitkit.metrics.fid.extractors import Extractor, open_extractor  # noqa: E402
from jitkit.metrics.fid.references import of_file, of_items  # noqa: E402
from jitkit.metrics.fid.scorer import FeatureScorer  # noqa: E402
from jitkit.metrics.fid.section import FidSection  # noqa: E402
from jitkit.sections import EvaluateSection, SampleSection  # noqa: E402

SMALL, NARROW = "extractors:Small", "extractors:Narrow"
SIZE = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing that another run has kept."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JITKIT_CACHE", str(folder))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return folder


def write_pictures(folder: Path, n: int, seed: int, *, channels: int = 3) -> Path:
    """Smooth coloured noise, darker for other seeds, as PNG files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        waves = np.cumsum(rng.normal(0, 30, (SIZE, SIZE, channels)), axis=1)
        pixels = np.clip(waves + 140 - 20 * seed, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        image.save(folder / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Real pictures, and others that stand for samples."""
    root = tmp_path_factory.mktemp("pictures")
    return write_pictures(root / "real", 150, 1), write_pictures(root / "made", 110, 2)


def opened(path: Path, **fid: Any) -> Images:
    section = ImagesSection(name="images", path=path, size=SIZE, holdout=0.2, fid=FidSection(**fid))
    return Images(section)


def pictures(path: Path) -> list[ImageItem]:
    domain = Images(ImagesSection(name="images", path=path, size=SIZE, holdout=0))
    return list(domain.items("train"))


def scorer_of(path: Path, **fid: Any) -> FeatureScorer:
    found, notes = opened(path, **{"extractor": SMALL} | fid).scorer()
    assert found is not None and notes == []
    found.prepare()
    return found


def theirs(real: Path, made: Path, **given: Any) -> dict[str, float]:
    """What torch-fidelity itself says of two folders."""
    if "test-small" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("test-small", Small)
    subsets = {"kid_subset_size": min(len(list(p.iterdir())) for p in (real, made))}
    return torch_fidelity.calculate_metrics(
        input1=str(made),
        input2=str(real),
        feature_extractor="test-small",
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        **subsets | given,
    )


NAMES = {
    "frechet_distance": "frechet_inception_distance",
    "classifier_score": "inception_score_mean",
    "kernel_distance": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


def test_all_scores_are_torch_fidelitys_own_of_the_same_folders(
    folders: tuple[Path, Path],
) -> None:
    real, made = folders
    ours = scorer_of(made, reference=real)
    found = ours.scores(ours.features(pictures(made)))
    wanted = theirs(real, made)
    assert list(ours.best) == list(found) == list(NAMES)
    for name, key in NAMES.items():
        assert found[name] == pytest.approx(wanted[key], rel=1e-6, abs=1e-9), name
    assert 0 < found["precision"] < 1 and 0 < found["recall"] < 1  # neither is trivial here
    assert found["frechet_distance"] > 0.01


def test_a_registered_network_goes_by_its_name(folders: tuple[Path, Path]) -> None:
    real, made = folders
    wanted = theirs(real, made)["frechet_inception_distance"]
    ours = scorer_of(made, reference=real, extractor="test-small")
    found = ours.scores(ours.features(pictures(made)))
    assert found["frechet_distance"] == pytest.approx(wanted, rel=1e-6)


def test_the_quick_form_is_the_same_distance(folders: tuple[Path, Path]) -> None:
    real, made = folders
    ours = scorer_of(made, reference=real)
    rows = ours.features(pictures(made))
    exact, quick = ours.scores(rows), ours.resampled(rows)
    for name in ("frechet_distance", "classifier_score", "precision", "recall"):
        assert quick[name] == pytest.approx(exact[name], rel=1e-6)
    assert quick["kernel_distance"] == pytest.approx(exact["kernel_distance"], rel=0.1)


def test_rows_do_not_hang_on_how_many_pictures_are_seen_at_once(
    folders: tuple[Path, Path],
) -> None:
    items = pictures(folders[1])
    ours = scorer_of(folders[1])
    one_by_one = np.concatenate([ours.features([item]) for item in items[:70]])
    np.testing.assert_allclose(ours.features(items)[:70], one_by_one, rtol=1e-5, atol=1e-5)


def stats_of(path: Path, extractor: Extractor) -> dict[str, Any]:
    rows = extractor(extractors.stacked(pictures(path)))
    mu, sigma = references.statistics(rows[:, extractor.columns["fid"]])
    return {"mu": mu, "sigma": sigma}


def test_statistics_of_an_npz_are_those_of_its_pictures(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The paper's kind (mu, sigma), ADM's kind (arr_0), and ADM's own with both."""
    real, made = folders
    extractor = open_extractor(SMALL, SIZE)
    stats = stats_of(real, extractor)
    batch = extractors.stacked(pictures(real))
    np.savez(tmp_path / "paper.npz", **stats)
    np.savez_compressed(tmp_path / "batch.npz", arr_0=batch, arr_1=np.zeros(150, np.int64))
    np.savez(tmp_path / "adm.npz", arr_0=batch[::3], **stats, mu_s=0, sigma_s=0)
    domain = opened(made)
    direct = scorer_of(domain, reference=real)
    rows = direct.features(pictures(made))
    wanted = direct.scores(rows)
    for name, same in {"paper": 1, "batch": 5, "adm": 2}.items():
        ours = scorer_of(domain, reference=tmp_path / f"{name}.npz")
        found = ours.scores(rows)
        assert list(found)[:same] == list(wanted)[:same]
        for score in list(wanted)[:same]:
            assert found[score] == pytest.approx(wanted[score], rel=1e-9), (name, score)
    assert list(scorer_of(domain, reference=tmp_path / "paper.npz").best) == [
        "frechet_distance",
        "classifier_score",
    ]
    told = FeatureScorer(
        extractor, FidSection(reference=tmp_path / "paper.npz"), lambda _: []
    ).prepare()
    assert "holds statistics alone: KID, precision and recall" in told["notes"][0]
    assert told["whole"] and told["items"] is None
    both = of_file(tmp_path / "adm.npz", extractor)
    assert both.rows is not None and len(both.rows) == 50  # of a third of the pictures


def test_statistics_in_float64_are_taken_as_they_are(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    extractor = open_extractor(SMALL, SIZE)
    stats = stats_of(folders[0], extractor)
    np.savez(tmp_path / "stats.npz", **{k: v.astype(np.float64) for k, v in stats.items()})
    ours = scorer_of(folders[1], reference=tmp_path / "stats.npz")
    direct = scorer_of(folders[1], reference=folders[0])
    rows = direct.features(pictures(folders[1]))
    found, wanted = (each.scores(rows)["frechet_distance"] for each in (ours, direct))
    assert found == pytest.approx(wanted, rel=1e-5)  # means in float32 there


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "are not of extractors:Small, which has 12"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "mu or sigma is not finite"),
        ({"mu": np.zeros(12)}, "holds mu: expected mu and sigma, or pictures arr_0"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64 .* expected uint8"),
        ({"arr_0": np.zeros((3, 4, 4, 7), np.uint8)}, "expected uint8"),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, "fewer than two real pictures"),
    ],
)
def test_an_npz_of_something_else_is_refused(
    arrays: dict[str, Any], text: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(DataError, match=text):
        of_file(tmp_path / "odd.npz", open_extractor(SMALL, SIZE))


def test_no_code_is_run_from_a_reference_or_from_weights(tmp_path: Path) -> None:
    class Sprung:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "bad.npz", mu=np.array([Sprung()], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        of_file(tmp_path / "bad.npz", open_extractor(SMALL, SIZE))
    torch.save({"weight": Sprung()}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Sprung(), protocol=2))
    (tmp_path / "torn.npz").write_bytes(b"PK torn")
    for name in ("bad", "plain"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            open_extractor("inception-v3-compat", SIZE, tmp_path / f"{name}.pth")
    with pytest.raises(DataError, match="cannot be read"):
        of_file(tmp_path / "torn.npz", open_extractor(SMALL, SIZE))
    assert not (tmp_path / "sprung").exists()


def test_the_reference_is_kept_under_the_contents_of_pictures_and_network(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counted(self: Extractor, pixels: Any) -> Any:
        seen.append(len(pixels))
        return original(self, pixels)

    original = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", counted)
    items = opened(folders[0]).items("train")
    first = of_items(items, open_extractor(SMALL, SIZE), "all")
    assert sum(seen) == len(items)
    again = of_items(items, open_extractor(SMALL, SIZE), "all")
    assert sum(seen) == len(items) and again.items == first.items
    assert first.rows is not None and again.rows is not None
    assert np.array_equal(first.rows, again.rows) and np.array_equal(first.sigma, again.sigma)

    copied = tmp_path / "copied"  # the same pictures elsewhere, with other dates
    copied.mkdir()
    for path in folders[0].iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    of_items(opened(copied).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(seen) == len(items)
    of_items(opened(copied, channels=1).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(seen) == 2 * len(items)
    of_items(items, open_extractor(NARROW, SIZE), "all")
    assert sum(seen) == 3 * len(items)
    Image.new("RGB", (SIZE, SIZE)).save(copied / items[0].name)  # one picture changes
    of_items(opened(copied).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(seen) == 4 * len(items)


def test_another_network_of_the_same_name_is_told_apart() -> None:
    one, other = Small("small", ["features"]), Small("small", ["features"])
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    keys = [Extractor("small", each, {"fid": "features"}, 8).key for each in (one, other)]
    assert keys[0] != keys[1]


def test_of_more_pictures_than_are_kept_statistics_are_of_all(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = open_extractor(SMALL, SIZE)
    items = pictures(folders[0])
    wanted = of_items(items, extractor, "all")
    monkeypatch.setattr(references, "KEPT", 40)
    monkeypatch.setattr(references, "AT_ONCE", 32)
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "another"))
    found = of_items(items, extractor, "all")
    assert found.rows is not None and wanted.rows is not None
    assert np.array_equal(found.rows, wanted.rows[::4])  # of 150, every fourth makes at most 40
    np.testing.assert_allclose(found.mu, wanted.mu, rtol=1e-5)
    np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-5, atol=1e-8)
    assert of_items(items, extractor, 30).items == 30


def test_broken_pictures_are_left_out_of_a_reference(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "some", 9, 0)
    (folder / "0003.png").write_bytes(b"no picture")
    items = Images(ImagesSection(name="images", path=folder, size=SIZE, holdout=0)).items("train")
    assert of_items(items, open_extractor(SMALL, SIZE), "all").items == 8


def test_grey_pictures_are_seen_as_colour_and_opacity_is_dropped() -> None:
    extractor = open_extractor(SMALL, SIZE)
    grey = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 1), np.uint8)
    colour = grey.repeat(3, axis=3)
    clear = np.concatenate((colour, 255 - grey), axis=3)
    assert np.array_equal(extractor(grey), extractor(colour))
    assert np.array_equal(extractor(clear), extractor(colour))


def test_a_network_without_logits_has_no_score_of_classes(folders: tuple[Path, Path]) -> None:
    ours = scorer_of(folders[0], extractor=NARROW)
    names = ["frechet_distance", "kernel_distance", "precision", "recall"]
    assert list(ours.best) == names == list(ours.scores(ours.features(pictures(folders[1]))))


def test_of_a_few_pictures_what_cannot_be_taken_says_nothing(folders: tuple[Path, Path]) -> None:
    ours = scorer_of(folders[0])
    found = ours.scores(ours.features(pictures(folders[1])[:3]))
    assert np.isnan(found["precision"]) and np.isnan(found["recall"])
    assert np.isfinite(found["frechet_distance"]) and np.isfinite(found["kernel_distance"])


# Asked by name, or found


@pytest.mark.parametrize(
    ("extractor", "text"),
    [
        ("inception", "not registered with torch-fidelity.*did you mean 'inception-v3-compat'"),
        ("nowhere.at.all:Net", "'nowhere.at.all:Net' cannot be imported: No module"),
        ("extractors:Large", "cannot be imported: .*no attribute 'Large'"),
        ("pathlib:Path", "no subclass of torch_fidelity's FeatureExtractorBase"),
    ],
)
def test_a_network_that_is_not_there_is_told_of(extractor: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        open_extractor(extractor, SIZE)


def test_without_weights_pictures_have_a_coarse_distance_and_a_note(
    folders: tuple[Path, Path],
) -> None:
    found, notes = opened(folders[0]).scorer()
    assert found is None
    assert "no FID was taken: Inception's weights are not at hand" in notes[0]
    assert Digits(DigitsSection(name="digits")).scorer() == (None, [])


def test_what_needs_inception_says_how_to_get_its_weights(folders: tuple[Path, Path]) -> None:
    for asked in ({"protocol": "jit"}, {"reference": folders[1]}):
        with pytest.raises(DataError, match="not at hand; fetch github.com.*FILE, or let it be"):
            opened(folders[0], **asked).scorer()


def test_what_is_missing_for_the_scores_is_found_before_training(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    asked = {"evaluate.after_training": True, "domain.fid.extractor": "extractors:Large"}
    with pytest.raises(RecipeError, match="no attribute 'Large'"):
        package.train(tiny, asked, run=tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_keys_of_fid_are_unknown_where_there_are_no_images() -> None:
    asked = {"domain.fid.extractor": SMALL}
    recipe = {"domain": "molecules", "model": {"width": 16, "depth": 2}}
    with pytest.raises(RecipeError, match="override domain.fid: unknown"):
        package.load_recipe(recipe, asked)


def test_weights_and_references_that_are_not_there_are_told_of(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    real = folders[0]
    with pytest.raises(DataError, match="inception_weights nothing.pth: no such file"):
        opened(real, inception_weights="nothing.pth").scorer()
    with pytest.raises(DataError, match="none.npz: no such file or folder"):
        opened(real, extractor=SMALL, reference=tmp_path / "none.npz").scorer()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="cannot be loaded by .*other.pth: .*Missing key"):
        opened(real, inception_weights=str(tmp_path / "other.pth")).scorer()


def test_a_download_that_fails_says_what_to_do(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError, match="cannot be fetched: no network; fetch github.com"):
        opened(folders[0], inception_weights="download").scorer()


def test_without_torch_fidelity_the_extra_is_named(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "is_installed", lambda: False)
    with pytest.raises(
        DataError, match=r"domain.fid.extractor needs torch-fidelity.*jitkit\[fid\]"
    ):
        opened(folders[0], extractor=SMALL).scorer()
    assert "torch-fidelity is not installed" in opened(folders[0]).scorer()[1][0]


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception with random weights, in the form of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        place = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(place, lambda *_, **__: {})
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inceptions_weights_come_from_a_file_of_either_kind(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = tmp_path / "inception.safetensors"
    tensors = torch.load(inception, weights_only=True)
    save_file({name: value.clone() for name, value in tensors.items()}, safe)
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    one, other = (open_extractor(extractors.INCEPTION, 8, path) for path in (inception, safe))
    assert one.key == other.key and one.columns["fid"].stop == 2048
    rows = one(grey)
    assert rows.shape == (2, 2048 + 1008) and np.array_equal(rows, other(grey))
    hub = tmp_path / "hub" / "checkpoints"  # where torch-fidelity itself would have put them
    hub.mkdir(parents=True)
    (hub / extractors.INCEPTION_FILE).symlink_to(inception)
    assert extractors.inception_file(None) == hub / extractors.INCEPTION_FILE
    found, notes = opened(write_pictures(tmp_path / "few", 5, 0)).scorer()
    if not torch.cuda.is_available():
        assert found is None and "without a GPU it takes hours" in notes[0]


@pytest.mark.slow
def test_a_run_has_its_fid_by_inception(inception: Path, trained: Path, tmp_path: Path) -> None:
    section = EvaluateSection(samples=8)
    fid = FidSection(inception_weights=str(inception), reference_items=12)
    denoiser = package.load(trained, domain=Digits(DigitsSection(name="digits", fid=fid)))
    denoiser.domain.items = lambda split: Digits.items(denoiser.domain, split)[:12]  # type: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "jitkit.evaluation.scoring.RESAMPLES", 3
        )  # each takes Inception's 2,048 squared
        result = evaluate(denoiser, SampleSection(steps=1), section, tmp_path)
    names = ["fid", "inception_score", "kid", "precision", "recall"]
    assert list(result["scores"])[:5] == names
    assert result["scores"]["fid"]["value"] > 0
    assert result["reference"]["extractor"] == "inception-v3-compat"


# From a run


def test_a_run_is_scored_without_a_picture_on_disk(
    trained: Path, jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    asked = (f"domain.fid.extractor={SMALL}", "evaluate.samples=30")
    shown = jitkit("evaluate", trained, *asked, "--json")
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)
    own = ["label_agreement", "nearest_distance", "frechet_pixels"]
    assert list(result["scores"]) == [*NAMES, *own]
    assert result["reference"] == {
        "extractor": SMALL,
        "from": "train",
        "items": 1500,
        "features": 1500,
        "whole": False,
        "items_measured": 1500,
    }
    assert not list((trained / "samples").glob("**/0*.png"))
    distance = result["scores"]["frechet_distance"]
    low, high = distance["interval"]
    assert low < distance["value"] < high and distance["floor"] < distance["value"]

    out = tmp_path / "files"  # the same samples as files, by torch-fidelity
    seed = ("sample.seed=1", "sample.batch_size=256")
    assert jitkit("sample", trained, "--n", "30", "--out", out, *seed).code == 0
    (out / "grid.png").unlink()
    real = tmp_path / "real"
    real.mkdir()
    for item in Digits(DigitsSection(name="digits")).items("train"):
        Image.fromarray(item.pixels[..., 0]).save(real / f"{item.name}.png")
    wanted = theirs(real, out, kid_subset_size=30)
    for name, key in NAMES.items():
        assert result["scores"][name]["value"] == pytest.approx(wanted[key], rel=1e-6), name
    (trained / "evaluation.json").unlink()


def test_the_protocol_stands_in_table_and_record(
    trained: Path, jitkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitkit.evaluation.scoring.RESAMPLES", 4)
    asked = ("domain.fid.protocol=jit", f"domain.fid.extractor={SMALL}")
    shown = jitkit("evaluate", trained, *asked, "--samples", "20")
    assert shown.code == 0, shown.err
    last = shown.out.splitlines()[-1]
    assert last.startswith("note: protocol jit, but for: 20 samples, not 50,000; features of")
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["protocol"]["name"] == "jit"
    assert (result["sample"]["steps"], result["sample"]["method"]) == (50, "heun")
    assert result["reference"]["whole"]
    (trained / "evaluation.json").unlink()
