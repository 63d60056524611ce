"""FID, Inception score, KID, precision and recall match torch-fidelity; references; weights."""

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
from jitkit.evaluation.evaluate import evaluate_model  # noqa: E402
from jitkit.metrics.fid import (
    extractors,  # noqa: E402
    references,  # noqa: E402
    scorer,  # noqa: E402
)
from jitkit.metrics.fid.extractors import FeatureExtractor, open_extractor  # noqa: E402
from jitkit.metrics.fid.references import reference_from_file, reference_from_items  # noqa: E402
from jitkit.metrics.fid.scorer import FeatureScorer  # noqa: E402
from jitkit.metrics.fid.section import FidSection  # noqa: E402
from jitkit.sections import EvaluateSection, SampleSection  # noqa: E402

SMALL, NARROW = "extractors:Small", "extractors:Narrow"
SIZE = 12


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("JITKIT_CACHE", str(folder))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return folder


def write_images(folder: Path, n: int, seed: int, *, channels: int = 3) -> Path:
    """Write smooth coloured noise, darker for higher seeds, as PNG files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        noise = np.cumsum(rng.normal(0, 30, (SIZE, SIZE, channels)), axis=1)
        pixels = np.clip(noise + 140 - 20 * seed, 0, 255).astype(np.uint8)
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        image.save(folder / f"{i:04}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of real images and of generated ones."""
    root = tmp_path_factory.mktemp("images")
    return write_images(root / "real", 150, 1), write_images(root / "generated", 110, 2)


def image_domain(path: Path, **fid: Any) -> Images:
    section = ImagesSection(name="images", path=path, size=SIZE, holdout=0.2, fid=FidSection(**fid))
    return Images(section)


def images_in(path: Path) -> list[ImageItem]:
    domain = Images(ImagesSection(name="images", path=path, size=SIZE, holdout=0))
    return list(domain.items("train"))


def scorer_of(path: Path, **fid: Any) -> FeatureScorer:
    prepared, notes = image_domain(path, **{"extractor": SMALL} | fid).scorer()
    assert prepared is not None and notes == []
    prepared.prepare()
    return prepared


def torch_fidelity_scores(real: Path, generated: Path, **options: Any) -> dict[str, float]:
    """Scores of two folders by torch-fidelity."""
    if "test-small" not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor("test-small", Small)
    subsets = {"kid_subset_size": min(len(list(p.iterdir())) for p in (real, generated))}
    return torch_fidelity.calculate_metrics(
        input1=str(generated),
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
        **subsets | options,
    )


NAMES = {
    "frechet_distance": "frechet_inception_distance",
    "classifier_score": "inception_score_mean",
    "kernel_distance": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


def test_all_scores_match_torch_fidelity_on_the_same_folders(
    folders: tuple[Path, Path],
) -> None:
    real, generated = folders
    ours = scorer_of(generated, reference=real)
    scores = ours.scores(ours.features(images_in(generated)))
    expected = torch_fidelity_scores(real, generated)
    assert list(ours.best) == list(scores) == list(NAMES)
    for name, key in NAMES.items():
        assert scores[name] == pytest.approx(expected[key], rel=1e-6, abs=1e-9), name
    assert 0 < scores["precision"] < 1 and 0 < scores["recall"] < 1  # neither is trivial here
    assert scores["frechet_distance"] > 0.01


def test_a_registered_extractor_is_found_by_name(folders: tuple[Path, Path]) -> None:
    real, generated = folders
    expected = torch_fidelity_scores(real, generated)["frechet_inception_distance"]
    ours = scorer_of(generated, reference=real, extractor="test-small")
    scores = ours.scores(ours.features(images_in(generated)))
    assert scores["frechet_distance"] == pytest.approx(expected, rel=1e-6)


def test_the_fast_form_gives_the_same_distance(folders: tuple[Path, Path]) -> None:
    real, generated = folders
    ours = scorer_of(generated, reference=real)
    features = ours.features(images_in(generated))
    exact, fast = ours.scores(features), ours.resampled(features)
    for name in ("frechet_distance", "classifier_score", "precision", "recall"):
        assert fast[name] == pytest.approx(exact[name], rel=1e-6)
    assert fast["kernel_distance"] == pytest.approx(exact["kernel_distance"], rel=0.1)


def test_features_do_not_depend_on_the_batch_size(
    folders: tuple[Path, Path],
) -> None:
    items = images_in(folders[1])
    ours = scorer_of(folders[1])
    one_by_one = np.concatenate([ours.features([item]) for item in items[:70]])
    np.testing.assert_allclose(ours.features(items)[:70], one_by_one, rtol=1e-5, atol=1e-5)


def statistics_of(path: Path, extractor: FeatureExtractor) -> dict[str, Any]:
    features = extractor(extractors.stack_pixels(images_in(path)))
    mu, sigma = references.mean_and_covariance(features[:, extractor.columns["fid"]])
    return {"mu": mu, "sigma": sigma}


def test_statistics_in_an_npz_give_the_same_scores_as_its_images(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The paper's format (mu, sigma), images (arr_0), and ADM's reference batches with both."""
    real, generated = folders
    extractor = open_extractor(SMALL, SIZE)
    stats = statistics_of(real, extractor)
    batch = extractors.stack_pixels(images_in(real))
    np.savez(tmp_path / "paper.npz", **stats)
    np.savez_compressed(tmp_path / "batch.npz", arr_0=batch, arr_1=np.zeros(150, np.int64))
    np.savez(tmp_path / "adm.npz", arr_0=batch[::3], **stats, mu_s=0, sigma_s=0)
    direct = scorer_of(generated, reference=real)
    features = direct.features(images_in(generated))
    expected = direct.scores(features)
    for name, same in {"paper": 1, "batch": 5, "adm": 2}.items():
        ours = scorer_of(generated, reference=tmp_path / f"{name}.npz")
        scores = ours.scores(features)
        assert list(scores)[:same] == list(expected)[:same]
        for score in list(expected)[:same]:
            assert scores[score] == pytest.approx(expected[score], rel=1e-9), (name, score)
    assert list(scorer_of(generated, reference=tmp_path / "paper.npz").best) == [
        "frechet_distance",
        "classifier_score",
    ]
    description = FeatureScorer(
        extractor, FidSection(reference=tmp_path / "paper.npz"), lambda _: []
    ).prepare()
    assert "has only statistics: KID, precision and recall" in description["notes"][0]
    assert description["whole"] and description["items"] is None
    both = reference_from_file(tmp_path / "adm.npz", extractor)
    assert both.features is not None and len(both.features) == 50  # of a third of the images


def test_statistics_in_float64_are_supported(folders: tuple[Path, Path], tmp_path: Path) -> None:
    extractor = open_extractor(SMALL, SIZE)
    stats = statistics_of(folders[0], extractor)
    np.savez(tmp_path / "stats.npz", **{k: v.astype(np.float64) for k, v in stats.items()})
    ours = scorer_of(folders[1], reference=tmp_path / "stats.npz")
    direct = scorer_of(folders[1], reference=folders[0])
    features = direct.features(images_in(folders[1]))
    distance, expected = (each.scores(features)["frechet_distance"] for each in (ours, direct))
    assert distance == pytest.approx(expected, rel=1e-5)  # its means are float32


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"mu": np.zeros(7), "sigma": np.eye(7)}, "are not of extractors:Small, which has 12"),
        ({"mu": np.full(12, np.nan), "sigma": np.eye(12)}, "mu or sigma is not finite"),
        ({"mu": np.zeros(12)}, "has mu: expected mu and sigma, or images arr_0"),
        ({"arr_0": np.zeros((3, 4, 4, 3))}, "arr_0 is float64 .* expected uint8"),
        ({"arr_0": np.zeros((3, 4, 4, 7), np.uint8)}, "expected uint8"),
        ({"arr_0": np.zeros((1, 4, 4, 3), np.uint8)}, "fewer than two real images"),
    ],
)
def test_an_npz_with_other_content_is_refused(
    arrays: dict[str, Any], text: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match=text):
        reference_from_file(tmp_path / "other.npz", open_extractor(SMALL, SIZE))


def test_no_code_in_references_or_weights_is_executed(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    np.savez(tmp_path / "bad.npz", mu=np.array([Payload()], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        reference_from_file(tmp_path / "bad.npz", open_extractor(SMALL, SIZE))
    torch.save({"weight": Payload()}, tmp_path / "bad.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(), protocol=2))
    (tmp_path / "torn.npz").write_bytes(b"PK torn")
    for name in ("bad", "plain"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            open_extractor("inception-v3-compat", SIZE, tmp_path / f"{name}.pth")
    with pytest.raises(DataError, match="cannot be read"):
        reference_from_file(tmp_path / "torn.npz", open_extractor(SMALL, SIZE))
    assert not (tmp_path / "executed").exists()


def test_the_reference_is_cached_by_the_content_of_images_and_network(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processed: list[int] = []

    def counted(self: FeatureExtractor, pixels: Any) -> Any:
        processed.append(len(pixels))
        return original(self, pixels)

    original = FeatureExtractor.__call__
    monkeypatch.setattr(FeatureExtractor, "__call__", counted)
    items = image_domain(folders[0]).items("train")
    first = reference_from_items(items, open_extractor(SMALL, SIZE), "all")
    assert sum(processed) == len(items)
    again = reference_from_items(items, open_extractor(SMALL, SIZE), "all")
    assert sum(processed) == len(items) and again.items == first.items
    assert first.features is not None and again.features is not None
    assert np.array_equal(first.features, again.features) and np.array_equal(
        first.sigma, again.sigma
    )

    copied = tmp_path / "copied"  # the same images in another folder, with other times
    copied.mkdir()
    for path in folders[0].iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    reference_from_items(image_domain(copied).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(processed) == len(items)
    grey = ImagesSection(name="images", path=copied, size=SIZE, holdout=0.2, channels=1)
    reference_from_items(Images(grey).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(processed) == 2 * len(items)
    reference_from_items(items, open_extractor(NARROW, SIZE), "all")
    assert sum(processed) == 3 * len(items)
    Image.new("RGB", (SIZE, SIZE)).save(copied / items[0].name)  # one image changes
    reference_from_items(image_domain(copied).items("train"), open_extractor(SMALL, SIZE), "all")
    assert sum(processed) == 4 * len(items)


def test_the_key_of_an_extractor_depends_on_its_weights() -> None:
    one, other = Small("small", ["features"]), Small("small", ["features"])
    with torch.no_grad():
        other.head.bias[0] += 1e-6
    keys = [FeatureExtractor("small", each, {"fid": "features"}, 8).key for each in (one, other)]
    assert keys[0] != keys[1]


def test_statistics_use_all_images_when_features_are_kept_of_some(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = open_extractor(SMALL, SIZE)
    items = images_in(folders[0])
    expected = reference_from_items(items, extractor, "all")
    monkeypatch.setattr(references, "MAX_FEATURES", 40)
    monkeypatch.setattr(references, "IMAGES_PER_BATCH", 32)
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "another"))
    reference = reference_from_items(items, extractor, "all")
    assert reference.features is not None and expected.features is not None
    # every fourth of 150 makes at most 40
    assert np.array_equal(reference.features, expected.features[::4])
    np.testing.assert_allclose(reference.mu, expected.mu, rtol=1e-5)
    np.testing.assert_allclose(reference.sigma, expected.sigma, rtol=1e-5, atol=1e-8)
    assert reference_from_items(items, extractor, 30).items == 30


def test_unreadable_images_are_skipped_in_a_reference(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "some", 9, 0)
    (folder / "0003.png").write_bytes(b"no picture")
    items = Images(ImagesSection(name="images", path=folder, size=SIZE, holdout=0)).items("train")
    assert reference_from_items(items, open_extractor(SMALL, SIZE), "all").items == 8


def test_grey_images_become_colour_and_alpha_is_dropped() -> None:
    extractor = open_extractor(SMALL, SIZE)
    grey = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 1), np.uint8)
    colour = grey.repeat(3, axis=3)
    transparent = np.concatenate((colour, 255 - grey), axis=3)
    assert np.array_equal(extractor(grey), extractor(colour))
    assert np.array_equal(extractor(transparent), extractor(colour))


def test_an_extractor_without_logits_has_no_inception_score(folders: tuple[Path, Path]) -> None:
    ours = scorer_of(folders[0], extractor=NARROW)
    names = ["frechet_distance", "kernel_distance", "precision", "recall"]
    assert list(ours.best) == names == list(ours.scores(ours.features(images_in(folders[1]))))


def test_scores_that_need_more_images_are_nan(folders: tuple[Path, Path]) -> None:
    ours = scorer_of(folders[0])
    scores = ours.scores(ours.features(images_in(folders[1])[:3]))
    assert np.isnan(scores["precision"]) and np.isnan(scores["recall"])
    assert np.isfinite(scores["frechet_distance"]) and np.isfinite(scores["kernel_distance"])


# Extractors and weights by name or by default


@pytest.mark.parametrize(
    ("extractor", "text"),
    [
        ("inception", "not registered with torch-fidelity.*did you mean 'inception-v3-compat'"),
        ("nowhere.at.all:Net", "'nowhere.at.all:Net' cannot be imported: No module"),
        ("extractors:Large", "cannot be imported: .*no attribute 'Large'"),
        ("pathlib:Path", "does not subclass torch_fidelity's FeatureExtractorBase"),
    ],
)
def test_an_unknown_extractor_is_reported(extractor: str, text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        open_extractor(extractor, SIZE)


def test_without_weights_there_is_a_note_and_no_fid(
    folders: tuple[Path, Path],
) -> None:
    default, notes = image_domain(folders[0]).scorer()
    assert default is None
    assert "FID was not computed: Inception's weights are missing" in notes[0]
    assert Digits(DigitsSection(name="digits")).scorer() == (None, [])


def test_the_error_for_missing_weights_says_how_to_get_them(folders: tuple[Path, Path]) -> None:
    for requested in ({"protocol": "jit"}, {"reference": folders[1]}):
        with pytest.raises(DataError, match="missing; download github.com.*FILE, or download it"):
            image_domain(folders[0], **requested).scorer()


def test_an_unknown_extractor_is_reported_before_training(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    overrides = {"evaluate.after_training": True, "domain.fid.extractor": "extractors:Large"}
    with pytest.raises(RecipeError, match="no attribute 'Large'"):
        package.train(tiny, overrides, run=tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_keys_of_fid_are_unknown_without_images() -> None:
    overrides = {"domain.fid.extractor": SMALL}
    recipe = {"domain": "molecules", "model": {"width": 16, "depth": 2}}
    with pytest.raises(RecipeError, match="override domain.fid: unknown"):
        package.load_recipe(recipe, overrides)


def test_missing_weights_and_references_are_reported(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    real = folders[0]
    with pytest.raises(DataError, match="inception_weights nothing.pth: no such file"):
        image_domain(real, inception_weights="nothing.pth").scorer()
    with pytest.raises(DataError, match="none.npz: no such file or folder"):
        image_domain(real, extractor=SMALL, reference=tmp_path / "none.npz").scorer()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="cannot be loaded from .*other.pth: .*Missing key"):
        image_domain(real, inception_weights=str(tmp_path / "other.pth")).scorer()


def test_the_error_of_a_failed_download_says_what_to_do(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(DataError, match="cannot be downloaded: no network; download github.com"):
        image_domain(folders[0], inception_weights="download").scorer()


def test_without_torch_fidelity_the_extra_is_named(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer, "torch_fidelity_installed", lambda: False)
    with pytest.raises(
        DataError, match=r"domain.fid.extractor needs torch-fidelity.*jitkit\[fid\]"
    ):
        image_domain(folders[0], extractor=SMALL).scorer()
    assert "torch-fidelity is not installed" in image_domain(folders[0]).scorer()[1][0]


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inception with random weights, in the format of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        loader = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
        patch.setattr(loader, lambda *_, **__: {})
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


def test_inception_weights_are_read_from_pth_and_safetensors(
    inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = tmp_path / "inception.safetensors"
    tensors = torch.load(inception, weights_only=True)
    save_file({name: value.clone() for name, value in tensors.items()}, safe)
    grey = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    one, other = (open_extractor(extractors.INCEPTION, 8, path) for path in (inception, safe))
    assert one.key == other.key and one.columns["fid"].stop == 2048
    features = one(grey)
    assert features.shape == (2, 2048 + 1008) and np.array_equal(features, other(grey))
    hub = tmp_path / "hub" / "checkpoints"  # where torch-fidelity stores them
    hub.mkdir(parents=True)
    (hub / extractors.INCEPTION_FILE).symlink_to(inception)
    assert extractors.inception_file(None) == hub / extractors.INCEPTION_FILE
    default, notes = image_domain(write_images(tmp_path / "few", 5, 0)).scorer()
    if not torch.cuda.is_available():
        assert default is None and "without a GPU it takes hours" in notes[0]


@pytest.mark.slow
def test_a_run_is_scored_by_inception(inception: Path, trained: Path, tmp_path: Path) -> None:
    section = EvaluateSection(samples=8)
    fid = FidSection(inception_weights=str(inception), reference_items=12)
    denoiser = package.load(trained, domain=Digits(DigitsSection(name="digits", fid=fid)))
    denoiser.domain.items = lambda split: Digits.items(denoiser.domain, split)[:12]  # type: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "jitkit.evaluation.scoring.RESAMPLES", 3
        )  # each uses a 2,048 x 2,048 covariance
        result = evaluate_model(denoiser, SampleSection(steps=1), section, tmp_path)
    names = ["fid", "inception_score", "kid", "precision", "recall"]
    assert list(result["scores"])[:5] == names
    assert result["scores"]["fid"]["value"] > 0
    assert result["reference"]["extractor"] == "inception-v3-compat"


# Evaluation of a run


def test_a_run_is_scored_without_images_on_disk(
    trained: Path, jitkit: Callable[..., Any], tmp_path: Path
) -> None:
    overrides = (f"domain.fid.extractor={SMALL}", "evaluate.samples=30")
    shown = jitkit("evaluate", trained, *overrides, "--json")
    assert shown.code == 0, shown.err
    result = json.loads(shown.out)
    of_digits = ["label_agreement", "nearest_distance", "frechet_pixels"]
    assert list(result["scores"]) == [*NAMES, *of_digits]
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

    out = tmp_path / "files"  # the same samples as files, scored by torch-fidelity
    seed = ("sample.seed=1", "sample.batch_size=256")
    assert jitkit("sample", trained, "--n", "30", "--out", out, *seed).code == 0
    (out / "grid.png").unlink()
    real = tmp_path / "real"
    real.mkdir()
    for item in Digits(DigitsSection(name="digits")).items("train"):
        Image.fromarray(item.pixels[..., 0]).save(real / f"{item.name}.png")
    expected = torch_fidelity_scores(real, out, kid_subset_size=30)
    for name, key in NAMES.items():
        assert result["scores"][name]["value"] == pytest.approx(expected[key], rel=1e-6), name
    (trained / "evaluation.json").unlink()


def test_the_protocol_is_named_in_table_and_record(
    trained: Path, jitkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jitkit.evaluation.scoring.RESAMPLES", 4)
    overrides = ("domain.fid.protocol=jit", f"domain.fid.extractor={SMALL}")
    shown = jitkit("evaluate", trained, *overrides, "--samples", "20")
    assert shown.code == 0, shown.err
    last = shown.out.splitlines()[-1]
    assert last.startswith("note: protocol jit, except: 20 samples, not 50,000; features of")
    result = json.loads((trained / "evaluation.json").read_text())
    assert result["protocol"]["name"] == "jit"
    assert (result["sample"]["steps"], result["sample"]["method"]) == (50, "heun")
    assert result["reference"]["whole"]
    (trained / "evaluation.json").unlink()
