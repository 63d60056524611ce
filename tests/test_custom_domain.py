"""A domain of one's own, as docs/custom-domain.md tells it: in Python, and as an installed package.

The package is built as a wheel and installed into an environment in which nothing else is; there a
line of a .pth file lets it see what is installed here, jitkit and torch among it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import yaml
from conftest import Answer
from PIL import Image

import jitkit
from jitkit import testing
from jitkit.domain import Metric, Split
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.fields import Axis, Condition, Field, Layout, Scalars
from jitkit.sections import DomainSection
from jitkit.training.resume import domain_record
from jitkit.training.trainer import train

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = DOCS / "custom-domain"
TEXT = (DOCS / "custom-domain.md").read_text(encoding="utf-8")

Array = np.ndarray[Any, np.dtype[np.float32]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def of_package(block: str) -> bool:
    """Whether a block is, word for word, a part of the package."""
    files = ("jitkit_eeg.py", "pyproject.toml")
    return any(block in (PACKAGE / file).read_text(encoding="utf-8") for file in files)


def run(command: Sequence[object], folder: Path) -> str:
    """What a command prints; a path of Python's, by which it would find this tree, is not set."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment | {"OMP_WAIT_POLICY": "PASSIVE", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a picture, in pixels."""
    with Image.open(picture) as image:
        return image.size


# What the page says


def test_blocks_of_the_page_are_parts_of_the_package_or_of_its_script() -> None:
    python, toml = blocks("python"), blocks("toml")
    assert [of_package(block) for block in python] == [True, True, False, False]
    assert [of_package(block) for block in toml] == [True]


def test_the_class_of_the_page_has_thirty_lines() -> None:
    (cls,) = (
        node
        for node in ast.parse((PACKAGE / "jitkit_eeg.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "EEG"
    )
    lines = set()
    for node in cls.body[1:]:  # after the docstring
        for part in node.body if isinstance(node, ast.FunctionDef) else [node]:
            assert part.end_lineno is not None
            lines |= {*range(part.lineno, part.end_lineno + 1)}
    assert len(lines) == 30


def test_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert links and not [link for link in links if not (DOCS / link).exists()]


def test_the_script_of_the_page_checks_trains_samples_writes_and_scores(tmp_path: Path) -> None:
    for name in ("jitkit_eeg.py", "simulated_eeg.py"):
        shutil.copy(PACKAGE / name, tmp_path)
    run([sys.executable, "-m", "simulated_eeg", "recordings.npz"], tmp_path)
    script = "".join(block for block in blocks("python") if not of_package(block))
    assert script.count('"steps": 800, "batch_size": 64') == 1
    short = script.replace('"steps": 800, "batch_size": 64', '"steps": 3, "batch_size": 8')
    printed = run([sys.executable, "-W", "error", "-c", short], tmp_path)
    assert "frequency_distance_hz" in printed.splitlines()[-1]
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        assert file["eeg"].shape == (16, 4, 128) and file["subject"].tolist()[::4] == [0, 1, 2, 3]
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (800, 560)


# A class in a script, made from arrays at hand


class Spectra:
    """Two lines on 24 wavelengths, their heights told; without a section, from arrays."""

    conditions: ClassVar[dict[str, Condition]] = {"heights": Scalars(("first", "second"))}

    def __init__(self, heights: Array, scale: Array) -> None:
        """Made from heights (N, 2), and from the scale of each wavelength (24,)."""
        self.heights, self.scale = heights, scale
        self.layout = Layout((Axis("wavelength", 24, patch=4),), ("flux",))

    def metadata(self) -> dict[str, Any]:
        return {"scale": self.scale}

    def items(self, split: Split) -> Sequence[Array]:
        return list(self.heights[:-8] if split == "train" else self.heights[-8:])

    def encode(self, item: Array, rng: np.random.Generator | None = None) -> Field:
        wavelength = np.arange(24, dtype=np.float32)
        lines = np.exp(-(((wavelength - np.array([[6], [15]], np.float32)) / 2) ** 2))
        flux = (item @ lines * self.scale).astype(np.float32)
        return Field(torch.from_numpy(flux)[None], cond={"heights": torch.from_numpy(item)})

    def decode(self, field: Field) -> Array:
        flux = field.values[0].numpy() / self.scale
        return np.asarray(flux[[6, 15]], np.float32)

    def write(self, items: Iterable[Array], path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        np.savetxt(path / "heights.csv", np.stack(list(items)), delimiter=",")
        return [path / "heights.csv"]

    def preview(self, items: Sequence[Array]) -> Image.Image:
        return Image.fromarray((np.stack(items) * 50).clip(0, 255).astype(np.uint8))

    def scores(self) -> dict[str, Metric]:
        return {"mean_height": lambda samples, train: float(abs(np.mean(samples)))}


class NamedSpectra(Spectra):
    """The same with a section of keys that were never asked for."""

    class Section(DomainSection):
        path: Path = Path("spectra.csv")
        """Where they would lie."""


class StoredSection(DomainSection):
    """A section with a key without a default."""

    path: Path
    """Where they lie."""
    width: Literal[1, 2] = 2
    """Of a line."""


class StoredSpectra(Spectra):
    """Has a section, and is made from arrays all the same."""

    Section = StoredSection


class OpenedSpectra(Spectra):
    """Made from a section, which it says."""

    Section = StoredSection

    def __init__(self, section: StoredSection, metadata: Mapping[str, Any] | None = None) -> None:
        heights = np.random.default_rng(0).uniform(0, 4, (40, 2)).astype(np.float32)
        super().__init__(
            heights, np.full(24, 1.5, np.float32) if metadata is None else metadata["scale"]
        )
        self.section = section


RECIPE: dict[str, Any] = {
    "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8},
    "train": {"steps": 6, "batch_size": 8, "lr": 1e-2, "ema": [0.5], "precision": "float32"}
    | {"preview_samples": 2, "save_every_steps": 3},
    "sample": {"steps": 2},
    "evaluate": {"samples": 8, "after_training": True},
}


def spectra(cls: type[Spectra] = Spectra, scale: float = 1.5) -> Any:
    heights = np.random.default_rng(0).uniform(0, 4, (40, 2)).astype(np.float32)
    return cls(heights, np.full(24, scale, np.float32))


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a domain that was given in Python, under a recipe without section domain."""
    folder = tmp_path_factory.mktemp("runs") / "spectra"
    return jitkit.train(RECIPE, run=folder, domain=spectra())


def test_a_domain_in_python_needs_neither_a_section_nor_a_name(by_hand: Path) -> None:
    written = jitkit.load_recipe(by_hand / "recipe.yaml", domain=Spectra)
    assert (written.name, written.domain.name) == ("spectra", "spectra")
    scored = json.loads((by_hand / "evaluation.json").read_text())
    assert set(scored["scores"]) == {"mean_height"}
    assert (by_hand / "samples" / "step-0.png").is_file()


def test_a_model_is_loaded_with_its_domain_sampled_decoded_and_written(
    by_hand: Path, tmp_path: Path
) -> None:
    domain = spectra()
    denoiser = jitkit.load(by_hand, domain=domain)
    assert denoiser.domain is domain
    heights = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    x = jitkit.sample(denoiser, n=2, cond={"heights": heights}, steps=2)
    items = [denoiser.domain.decode(Field(values)) for values in x]
    (file,) = denoiser.domain.write(items, tmp_path / "new")
    assert np.loadtxt(file, delimiter=",").shape == (2, 2)


def test_a_run_of_a_domain_in_python_goes_on_as_if_unbroken(by_hand: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for steps in (3, 6):
        jitkit.train(RECIPE, {"train.steps": steps}, run=broken, domain=spectra())
    whole, mended = (jitkit.load(path, domain=spectra()) for path in (by_hand, broken))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, mended.state_dict()[name]), name


def test_facts_that_are_arrays_are_compared_when_a_run_goes_on(by_hand: Path) -> None:
    with pytest.raises(jitkit.DataError, match="metadata.scale: array"):
        jitkit.train(RECIPE, {"train.steps": 7}, run=by_hand, domain=spectra(scale=2.0))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_command_on_such_a_run_is_refused_with_what_to_do(
    command: str, by_hand: Path, jitkit: Callable[..., Answer]
) -> None:
    answer = jitkit(command, by_hand)
    assert answer.code == 2
    assert "was trained with a domain that was given in Python" in answer.err
    assert f"jitkit.load({str(by_hand)!r}, domain=...)" in answer.err


def test_a_class_with_a_section_of_its_own_may_be_given_too(tmp_path: Path) -> None:
    domain = spectra(NamedSpectra)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=domain)
    written = jitkit.load_recipe(run / "recipe.yaml", domain=NamedSpectra)
    assert written.domain.model_dump() == {"name": "namedspectra", "path": Path("spectra.csv")}


def recorded(run: Path) -> dict[str, Any]:
    """Section domain of the recipe that a run keeps."""
    section: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())["domain"]
    return section


def test_keys_of_the_section_are_not_demanded_of_a_recipe_beside_a_domain(tmp_path: Path) -> None:
    domain = spectra(StoredSpectra)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=domain)
    assert recorded(run) == {"name": "storedspectra"}
    jitkit.train(RECIPE, {"train.steps": 2}, run=run, domain=domain)
    said = {"domain.width": 1, "train.steps": 1}
    other = jitkit.train(RECIPE, said, run=tmp_path / "other", domain=domain)
    assert recorded(other) == {"name": "storedspectra", "width": 1}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"domain.width": 3}, "domain.width: 3 is not"),
        ({"domain.widht": 2}, "domain.widht: unknown; did you mean domain.width"),
        ({"domain": 3}, "domain: 3 is not"),
        ({"domain.name": 3}, "domain.name: 3 is not"),
    ],
)
def test_what_a_recipe_says_beside_a_domain_is_checked_all_the_same(
    said: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(jitkit.JitkitError, match=text):
        jitkit.train(RECIPE, said, run=tmp_path / "run", domain=spectra(StoredSpectra))
    assert not (tmp_path / "run").exists()


def test_the_section_that_a_domain_says_is_recorded(tmp_path: Path) -> None:
    section = StoredSection(name="opened", path=Path("here.csv"))
    testing.check_domain(OpenedSpectra(section))
    opened = OpenedSpectra(section)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=opened)
    assert recorded(run) == {"name": "opened", "path": "here.csv", "width": 2}
    narrow = OpenedSpectra(section.model_copy(update={"width": 1}))
    with pytest.raises(jitkit.JitkitError, match="domain.width: 2 -> 1"):
        jitkit.train(RECIPE, {"train.steps": 2}, run=run, domain=narrow)


def test_an_installed_domain_that_is_given_keeps_its_section_for_the_commands(
    tmp_path: Path, jitkit: Callable[..., Answer]
) -> None:
    digits = Digits(DigitsSection(name="digits", label_drop=0.25))
    run = train(RECIPE, {"evaluate.after_training": False}, run=tmp_path / "run", domain=digits)
    assert recorded(run) == {"name": "digits", "label_drop": 0.25}
    answer = jitkit("sample", run, "--n", 2, "--out", tmp_path / "two")
    assert answer.code == 0, answer.err
    lacking = DomainSection(name="digits")  # with which no command could open it
    assert domain_record(digits, lacking, 1500).section is None


def test_the_class_in_place_of_a_domain_is_refused_in_words(by_hand: Path, tmp_path: Path) -> None:
    cls: Any = Spectra
    with pytest.raises(jitkit.JitkitError, match=r"domain=Spectra is the class; .*a\(\.\.\.\)"):
        jitkit.train(RECIPE, run=tmp_path / "run", domain=cls)
    assert not (tmp_path / "run").exists()
    for use in (jitkit.load, jitkit.evaluate):
        with pytest.raises(jitkit.JitkitError, match="domain=Spectra is the class"):
            use(by_hand, domain=cls)


def test_a_run_of_a_domain_in_python_is_scored_again(by_hand: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_hand, run)
    result = jitkit.evaluate(run, {"evaluate.samples": 4}, domain=spectra())
    assert (result["samples"], set(result["scores"])) == (4, {"mean_height"})
    with pytest.raises(jitkit.JitkitError, match=r"given in Python; use it there.*domain=\.\.\."):
        jitkit.evaluate(run)
    with pytest.raises(jitkit.JitkitError, match="'domain.path=x': .* takes keys of sample, eval"):
        jitkit.evaluate(run, ["domain.path=x"], domain=spectra())


def test_a_domain_without_a_section_is_asked_all_that_needs_none() -> None:
    testing.check_domain(spectra())


NATURAL = """
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

import jitkit
from jitkit import Axis, Category, DomainSection, Field, Layout
from jitkit.domain import Measure, Split
from jitkit.testing import check_domain


class HeightSection(DomainSection):
    path: Path


class Plain:
    \"\"\"Made from numbers at hand.\"\"\"

    def __init__(self, heights: list[float]) -> None:
        self.heights = heights
        self.layout = Layout((Axis("x", 4),), ("height",))
        self.conditions = {"kind": Category(3)}

    def metadata(self) -> dict[str, Any]:
        return {}

    def items(self, split: Split) -> list[float]:
        return self.heights

    def encode(self, item: float, rng: np.random.Generator | None = None) -> Field:
        raise NotImplementedError

    def decode(self, field: Field) -> float:
        raise NotImplementedError

    def write(self, items: Iterable[float], path: Path) -> list[Path]:
        return []

    def preview(self, items: Sequence[float]) -> Image.Image:
        raise NotImplementedError

    def scores(self) -> dict[str, Measure]:
        return {}


class Assigned(Plain):
    Section = HeightSection

    def __init__(self, section: HeightSection, metadata: Mapping[str, Any] | None = None) -> None:
        super().__init__([])
        self.section = section


class Nested(Plain):
    class Section(DomainSection):
        path: Path


class Annotated(Plain):
    Section: ClassVar[type[DomainSection]] = HeightSection


section = HeightSection(name="heights", path=Path("heights.csv"))
plain, assigned = Plain([1.0]), Assigned(section)
jitkit.train({}, domain=plain)
jitkit.train({}, domain=assigned)
jitkit.train({}, domain=Nested([1.0]))
jitkit.train({}, domain=Annotated([1.0]))
jitkit.load("run", domain=assigned).domain.preview([1.0])
scores: dict[str, Any] = jitkit.evaluate("run", domain=assigned)
check_domain(plain)
check_domain(assigned, section)
"""


@pytest.mark.slow
def test_a_strict_type_checker_takes_the_ways_to_write_a_domain(tmp_path: Path) -> None:
    """And refuses one that lacks a method, or it would take anything."""
    lacking = NATURAL.replace("def preview", "def show")
    for name, text in (("natural", NATURAL), ("lacking", lacking)):
        (tmp_path / f"{name}.py").write_text(text)
    answer = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "."],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "natural.py" not in answer.stdout, answer.stdout
    assert '"Plain" is missing following "Domain" protocol member' in answer.stdout


# The package

PACKAGED = pytest.mark.xdist_group("package")  # tests of one environment, built once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the page, built from a copy, with the setuptools that torch brings."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", folder, folder / "source"], folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel, and sees what is installed here."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    places = run([python, "-c", "import site; print(site.getsitepackages()[0])"], folder)
    here = "".join(f"; site.addsitedir({place!r})" for place in site.getsitepackages())
    (Path(places.strip()) / "here.pth").write_text(f"import site{here}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run([*pip, wheel], folder)  # that jitkit, which it needs, is there is for pip to find
    return python


@pytest.fixture(scope="module")
def work(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe and recordings, and a short run of it: 200 steps."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(PACKAGE / "eeg.yaml", folder)
    run([clean, "-m", "simulated_eeg", "recordings.npz"], folder)
    few = ["train.steps=200", "evaluate.samples=80", "train.preview_every_steps=200"]
    run([clean, "-m", "jitkit", "train", "eeg.yaml", *few], folder)
    return folder


@pytest.mark.slow
@PACKAGED
def test_the_wheel_holds_two_modules_and_an_entry_point(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == {
        "jitkit_eeg.py",
        "simulated_eeg.py",
    }
    (points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"[jitkit.domains]\neeg = jitkit_eeg:EEG" in zipfile.ZipFile(wheel).read(points)


@pytest.mark.slow
@PACKAGED
def test_the_installed_package_is_found_by_its_entry_point(clean: Path, tmp_path: Path) -> None:
    lines = run([clean, "-m", "jitkit", "domains"], tmp_path).splitlines()
    (line,) = (line for line in lines if line.startswith("eeg "))
    assert "EEG of several subjects" in line and "(jitkit_eeg:EEG)" in line
    code = "import jitkit_eeg, sys; print(jitkit_eeg.__file__, 'torch' in sys.modules)"
    file, has_torch = run([clean, "-c", code], tmp_path).split()
    assert Path(file).is_relative_to(clean.parents[1]) and has_torch == "False"


@pytest.mark.slow
@PACKAGED
def test_jitkit_train_of_the_package_learns_rhythm_and_lag(work: Path) -> None:
    """Untrained, frequency_distance_hz is 10 and lag_error_degrees 45."""
    scored = json.loads((work / "runs" / "eeg" / "evaluation.json").read_text())["scores"]
    assert scored["frequency_distance_hz"]["value"] < 2
    assert scored["lag_error_degrees"]["value"] < 10
    assert scored["frequency_distance_hz"]["floor"] < 0.1
    assert scored["lag_error_degrees"]["floor"] < 0.1
    with Image.open(work / "runs" / "eeg" / "samples" / "step-200.png") as opened:
        assert opened.size == (800, 560)


@pytest.mark.slow
@PACKAGED
def test_jitkit_sample_of_the_package_needs_no_recordings(
    work: Path, clean: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "runs", tmp_path / "runs")
    command = [clean, "-m", "jitkit", "sample", "runs/eeg", "--n", "8", "--out", "eight"]
    told = run([*command, "--cond", "subject=2"], tmp_path)
    assert "8 samples of step 200: 1 files in eight" in told
    with np.load(tmp_path / "eight" / "samples.npz") as file:
        assert file["eeg"].shape == (8, 4, 128) and file["subject"].tolist() == [2] * 8
        assert 5 < file["eeg"].std() < 30  # microvolts


@pytest.mark.slow
@PACKAGED
def test_jitkit_evaluate_of_the_package_scores_the_run_again(work: Path, clean: Path) -> None:
    command = [clean, "-m", "jitkit", "evaluate", "runs/eeg", "evaluate.samples=40", "--json"]
    result = json.loads(run(command, work))
    assert set(result["scores"]) == {"frequency_distance_hz", "lag_error_degrees"}
    assert (result["samples"], result["held_out"]) == (40, 160)


@pytest.mark.slow
@PACKAGED
def test_the_package_passes_its_own_tests_where_it_is_installed(
    clean: Path, tmp_path: Path
) -> None:
    shutil.copytree(PACKAGE / "tests", tmp_path / "tests")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    told = run([clean, "-m", "pytest", "-q", "tests"], tmp_path)
    assert re.search(r"^8 passed", told, re.MULTILINE), told
