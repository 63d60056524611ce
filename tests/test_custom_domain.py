"""Custom domains as in docs/custom-domain.md: in Python, and as an installed package.

The package is built as a wheel and installed into an empty environment; a .pth file there adds the
packages of this environment, including jitkit and torch.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import yaml
from conftest import Result
from PIL import Image

import jitkit
from jitkit import registry, testing
from jitkit.domain import Domain, Metric, Split
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.fields import Axis, Condition, Field, Layout, Scalars
from jitkit.metrics.fid.section import FidSection
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
    """Whether a block is literally part of the package."""
    files = ("jitkit_eeg.py", "pyproject.toml")
    return any(block in (PACKAGE / file).read_text(encoding="utf-8") for file in files)


def run(command: Sequence[object], folder: Path) -> str:
    """Output of a command, run without PYTHONPATH so that it does not import from this tree."""
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


# The page


def test_code_blocks_of_the_page_are_from_the_package_or_form_a_script() -> None:
    found = [of_package(block) for block in blocks("python")]
    assert found == [False, True, True, False, False]
    assert [of_package(block) for block in blocks("toml")] == [True]


def test_class_and_recipe_of_the_page_have_thirty_lines() -> None:
    code, (recipe,) = blocks("python")[1], blocks("yaml")
    classes = code[code.index("class Epoch") :]
    lines = [line for line in (classes + recipe).splitlines() if line.strip()]
    assert len(lines) <= 30


def test_links_of_the_page_are_valid() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    assert links and not [link for link in links if not (DOCS / link).exists()]


@pytest.mark.slow
def test_the_class_of_the_page_runs_when_copied(tmp_path: Path) -> None:
    shutil.copy(PACKAGE / "simulated_eeg.py", tmp_path)
    (tmp_path / "jitkit_eeg.py").write_text(blocks("python")[1] + "HZ, NUM_SAMPLES = 128, 128\n")
    recipe = blocks("yaml")[0].replace("steps: 800, batch_size: 64", "steps: 2, batch_size: 8")
    (tmp_path / "eeg.yaml").write_text(recipe)
    simulate, train, sample = (line.split("#")[0] for line in blocks("bash")[0].splitlines())
    run([sys.executable, *simulate.split()[1:]], tmp_path)
    for command in (train, sample):
        run([sys.executable, "-m", *command.split(), "sample.steps=2"], tmp_path)
    with np.load(tmp_path / "eight" / "samples.npz") as file:
        assert file["eeg"].shape == (8, 4, 128) and file["subject"].tolist() == [2] * 8


def test_the_script_of_the_page_trains_on_arrays_in_memory(tmp_path: Path) -> None:
    script = blocks("python")[0] + "print(items[0].values.shape, len(scores))"
    script = script.replace('"steps": 20', '"steps": 2').replace('samples": 50', 'samples": 8')
    printed = run([sys.executable, "-W", "error", "-c", script], tmp_path)
    assert printed.splitlines()[-1].startswith("(1, 8, 16) ")


def test_the_script_of_the_page_checks_trains_samples_writes_and_scores(tmp_path: Path) -> None:
    for name in ("jitkit_eeg.py", "simulated_eeg.py"):
        shutil.copy(PACKAGE / name, tmp_path)
    run([sys.executable, "-m", "simulated_eeg", "recordings.npz"], tmp_path)
    script = "".join(blocks("python")[3:])
    assert script.count('"steps": 800, "batch_size": 64') == 1
    short = script.replace('"steps": 800, "batch_size": 64', '"steps": 3, "batch_size": 8')
    printed = run([sys.executable, "-W", "error", "-c", short], tmp_path)
    assert "frequency_distance_hz" in printed.splitlines()[-1]
    with np.load(tmp_path / "samples" / "samples.npz") as file:
        assert file["eeg"].shape == (16, 4, 128) and file["subject"].tolist()[::4] == [0, 1, 2, 3]
    with Image.open(tmp_path / "samples.png") as image:
        assert image.size == (800, 560)


# A class in a script, made from arrays in memory


class Spectra(Domain):
    """Two lines on 24 wavelengths, conditioned on their heights; without a section, from arrays."""

    conditions: ClassVar[dict[str, Condition]] = {"heights": Scalars(("first", "second"))}

    def __init__(self, heights: Array, scale: Array) -> None:
        """Made from heights (N, 2) and the scale of each wavelength (24,)."""
        self.heights, self.scale = heights, scale
        self.layout = Layout((Axis("wavelength", 24, patch=4),), ("flux",))

    def measure(self) -> dict[str, Any]:
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
    """With a section that is not used."""

    class Section(DomainSection):
        path: Path = Path("spectra.csv")
        """Path of the file."""


class StoredSection(DomainSection):
    """A section with a required key."""

    path: Path
    """Path of the file."""
    width: Literal[1, 2] = 2
    """Width of a line."""


class StoredSpectra(Spectra):
    """Has a section, but is made from arrays."""

    Section = StoredSection


class OpenedSpectra(Spectra):
    """Made from a section, kept as attribute ``section``."""

    Section = StoredSection

    def __init__(self, section: StoredSection) -> None:
        heights = np.random.default_rng(0).uniform(0, 4, (40, 2)).astype(np.float32)
        super().__init__(heights, np.full(24, 1.5, np.float32))
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
def in_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a domain passed in Python, with a recipe without section domain."""
    folder = tmp_path_factory.mktemp("runs") / "spectra"
    return jitkit.train(RECIPE, run=folder, domain=spectra())


def test_a_domain_in_python_needs_no_section_and_no_name(in_python: Path) -> None:
    written = jitkit.load_recipe(in_python / "recipe.yaml", domain=Spectra)
    assert (written.name, written.domain.name) == ("spectra", "spectra")
    scored = json.loads((in_python / "evaluation.json").read_text())
    assert set(scored["scores"]) == {"mean_height"}
    assert (in_python / "samples" / "step-0.png").is_file()


def test_a_loaded_model_samples_decodes_and_writes_with_its_domain(
    in_python: Path, tmp_path: Path
) -> None:
    domain = spectra()
    denoiser = jitkit.load(in_python, domain=domain)
    assert denoiser.domain is domain
    heights = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    x = jitkit.sample(denoiser, n=2, cond={"heights": heights}, steps=2)
    items = [denoiser.domain.decode(Field(values)) for values in x]
    (file,) = denoiser.domain.write(items, tmp_path / "new")
    assert np.loadtxt(file, delimiter=",").shape == (2, 2)


def test_a_resumed_run_of_a_domain_in_python_is_bit_identical(
    in_python: Path, tmp_path: Path
) -> None:
    interrupted = tmp_path / "interrupted"
    for steps in (3, 6):
        jitkit.train(RECIPE, {"train.steps": steps}, run=interrupted, domain=spectra())
    whole, resumed = (jitkit.load(path, domain=spectra()) for path in (in_python, interrupted))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_arrays_in_the_metadata_are_compared_when_a_run_resumes(in_python: Path) -> None:
    with pytest.raises(jitkit.DataError, match="metadata.scale: array"):
        jitkit.train(RECIPE, {"train.steps": 7}, run=in_python, domain=spectra(scale=2.0))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_a_command_on_a_run_of_a_python_domain_is_refused_with_instructions(
    command: str, in_python: Path, jitkit: Callable[..., Result]
) -> None:
    result = jitkit(command, in_python)
    assert result.code == 2
    assert "was trained with a domain that was given in Python" in result.err
    assert f"jitkit.load({str(in_python)!r}, domain=...)" in result.err


def test_a_class_with_an_unused_section_may_be_passed(tmp_path: Path) -> None:
    domain = spectra(NamedSpectra)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=domain)
    written = jitkit.load_recipe(run / "recipe.yaml", domain=NamedSpectra)
    assert written.domain.model_dump() == {"name": "namedspectra", "path": Path("spectra.csv")}


def recorded(run: Path) -> dict[str, Any]:
    """Section domain of the recipe in a run folder."""
    section: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())["domain"]
    return section


def test_required_keys_of_the_section_may_be_missing_if_a_domain_is_passed(tmp_path: Path) -> None:
    domain = spectra(StoredSpectra)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=domain)
    assert recorded(run) == {"name": "storedspectra"}
    jitkit.train(RECIPE, {"train.steps": 2}, run=run, domain=domain)
    overrides = {"domain.width": 1, "train.steps": 1}
    other = jitkit.train(RECIPE, overrides, run=tmp_path / "other", domain=domain)
    assert recorded(other) == {"name": "storedspectra", "width": 1}


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"domain.width": 3}, "domain.width: 3 is not"),
        ({"domain.widht": 2}, "domain.widht: unknown; did you mean domain.width"),
        ({"domain": 3}, "domain: 3 is not"),
        ({"domain.name": 3}, "domain.name: 3 is not"),
    ],
)
def test_domain_keys_of_the_recipe_are_checked_if_a_domain_is_passed(
    overrides: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(jitkit.JitkitError, match=text):
        jitkit.train(RECIPE, overrides, run=tmp_path / "run", domain=spectra(StoredSpectra))
    assert not (tmp_path / "run").exists()


def test_the_section_attribute_of_a_domain_is_recorded(tmp_path: Path) -> None:
    section = StoredSection(name="opened", path=Path("here.csv"))
    testing.check_domain(OpenedSpectra(section))
    opened = OpenedSpectra(section)
    run = jitkit.train(RECIPE, {"train.steps": 1}, run=tmp_path / "run", domain=opened)
    assert recorded(run) == {"name": "opened", "path": "here.csv", "width": 2}
    narrow = OpenedSpectra(section.model_copy(update={"width": 1}))
    with pytest.raises(jitkit.JitkitError, match="domain.width: 2 -> 1"):
        jitkit.train(RECIPE, {"train.steps": 2}, run=run, domain=narrow)


def test_a_passed_installed_domain_keeps_its_section_for_the_commands(
    tmp_path: Path, jitkit: Callable[..., Result]
) -> None:
    digits = Digits(DigitsSection(name="digits", label_drop=0.25))
    run = train(RECIPE, {"evaluate.after_training": False}, run=tmp_path / "run", domain=digits)
    fid = FidSection().model_dump(mode="json")
    assert recorded(run) == {"name": "digits", "label_drop": 0.25, "fid": fid}
    result = jitkit("sample", run, "--n", 2, "--out", tmp_path / "two")
    assert result.code == 0, result.err
    incomplete = DomainSection(name="digits")  # no command could open it
    assert domain_record(digits, incomplete, 1500).section is None


def test_passing_the_class_in_place_of_an_instance_is_refused(
    in_python: Path, tmp_path: Path
) -> None:
    cls: Any = Spectra
    with pytest.raises(jitkit.JitkitError, match=r"domain=Spectra is a class; .*a\(\.\.\.\)"):
        jitkit.train(RECIPE, run=tmp_path / "run", domain=cls)
    assert not (tmp_path / "run").exists()
    for use in (jitkit.load, jitkit.evaluate):
        with pytest.raises(jitkit.JitkitError, match="domain=Spectra is a class"):
            use(in_python, domain=cls)


def test_a_run_of_a_domain_in_python_can_be_evaluated_again(
    in_python: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(in_python, run)
    result = jitkit.evaluate(run, {"evaluate.samples": 4}, domain=spectra())
    assert (result["samples"], set(result["scores"])) == (4, {"mean_height"})
    with pytest.raises(jitkit.JitkitError, match=r"given in Python; use it there.*domain=\.\.\."):
        jitkit.evaluate(run)
    with pytest.raises(jitkit.JitkitError, match="'domain.path=x': .* takes keys of sample, eval"):
        jitkit.evaluate(run, ["domain.path=x"], domain=spectra())


def test_a_domain_without_a_section_passes_the_other_checks() -> None:
    testing.check_domain(spectra())


# Members that jitkit would ignore


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("weight", "meant as Weighted.weights, name it weights and derive the class from jitkit.p"),
        ("weights", "meant as Weighted.weights, derive the class from jitkit.protocols.Weighted;"),
        ("outlines", "meant as VariableSize.template, name it template and derive the class"),
        ("Metrics", "meant as Domain.scores, name it scores; else give it another name"),
        ("score", "meant as Domain.scores, name it scores"),
        ("preveiw", "meant as Domain.preview, name it preview"),
        ("condition", "meant as Domain.conditions, name it conditions"),
        ("fetch", "meant as Fetchable.fetch, derive the class from jitkit.protocols.Fetchable"),
    ],
)
def test_members_that_would_be_ignored_are_refused(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Spectra, name, lambda self: None, raising=False)
    with pytest.raises(AssertionError, match=rf"members: Spectra.{name} is never used.*{text}"):
        testing.check_domain(spectra())
    with pytest.raises(jitkit.JitkitError, match=rf"Spectra.{name} is never used.*{text}"):
        jitkit.train(RECIPE, domain=spectra(), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["steps", "history", "encoder", "height", "channel", "_weight"])
def test_other_members_are_allowed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spectra, name, lambda self: None, raising=False)
    testing.check_domain(spectra())


def test_an_attribute_that_resembles_the_weights_is_refused() -> None:
    domain = spectra()
    domain.weight = np.ones(24)
    with pytest.raises(AssertionError, match="Spectra.weight is never used"):
        testing.check_domain(domain)


class Sized(list[Any]):
    """Items with sizes, without the protocol."""

    sizes = np.ones(32)


def test_items_that_do_not_derive_from_their_protocol_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Spectra.items
    monkeypatch.setattr(Spectra, "items", lambda self, split: Sized(read(self, split)))
    domain = spectra()
    text = "Sized.sizes is never used; derive the class from jitkit.protocols.HasSizes"
    with pytest.raises(AssertionError, match=text):
        testing.check_domain(domain)
    with pytest.raises(jitkit.JitkitError, match=text):
        jitkit.train(RECIPE, domain=domain, run=tmp_path / "run")


def test_an_object_that_is_no_domain_is_refused(tmp_path: Path) -> None:
    other: Any = object()
    with pytest.raises(jitkit.JitkitError, match="is not a domain; derive the class from jitkit.D"):
        jitkit.train(RECIPE, domain=other, run=tmp_path / "run")


# A class of the user's own, named in a recipe

OWN = """
from pathlib import Path
import numpy as np
import torch
from jitkit import Axis, Domain, Field, Layout

Path("imported.txt").touch()

class Waves(Domain):
    layout = Layout((Axis("x", 8),), ("y",))

    def items(self, split):
        return list(np.random.default_rng(0).normal(size=(20, 1, 8)).astype("f4"))

    def encode(self, item, rng=None):
        return Field(torch.from_numpy(item))

    def decode(self, field):
        return field.values.cpu().numpy()
"""
OWN_RECIPE = """
domain: own_waves:Waves
model: {width: 16, depth: 1}
train: {steps: 2, batch_size: 4, ema: [0.5]}
sample: {steps: 2}
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module and a recipe that names its class."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_waves.py").write_text(OWN)
    (tmp_path / "own" / "waves.yaml").write_text(OWN_RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own"


@pytest.fixture
def command(
    jitkit: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command line as in a process of its own: what it imports is forgotten after it."""

    def run(*words: object) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "path", list(sys.path))
            patch.setattr(registry, "_imported", {})
            try:
                return jitkit(*words)
            finally:
                sys.modules.pop("own_waves", None)

    return run


def test_a_recipe_may_name_a_class_beside_it(own: Path, command: Callable[..., Result]) -> None:
    assert command("train", own / "waves.yaml", "--run", "run").code == 0
    imported = Path("imported.txt")
    imported.unlink()
    refused = command("sample", "run")
    assert refused.code == 2 and "'own_waves:Waves' is code of its own" in refused.err
    assert "--domain own_waves:Waves" in refused.err
    refused = command("train", "run/recipe.yaml")
    assert refused.code == 2 and "which is imported only if you name it" in refused.err
    assert command("report", "run").code == 0
    assert not imported.exists()  # a run's folder may come from elsewhere
    refused = command("sample", "run", "--domain", "own_waves:Waves")
    assert refused.code == 2 and "no module 'own_waves' in" in refused.err
    shutil.copy(own / "own_waves.py", ".")
    answer = command("sample", "run", "--domain", "own_waves:Waves", "--n", 3, "--out", "three")
    assert answer.code == 0, answer.err
    with np.load("three/samples.npz") as file:
        assert file["x"].shape == (3, 1, 8)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            ("own_waves:Waves", "own_waves:Wave"),
            "no subclass of jitkit.Domain of that name; it has",
        ),
        (("own_waves:Waves", "own_wave:Waves"), "waves.yaml:2: domain.name: domain 'own_wave:W"),
        (("own_waves:Waves", "json:Waves"), "no module 'json' in"),
    ],
)
def test_a_class_that_is_not_there_is_an_error_of_the_recipe(
    own: Path, change: tuple[str, str], text: str, command: Callable[..., Result]
) -> None:
    (own / "waves.yaml").write_text(OWN_RECIPE.replace(*change))
    refused = command("train", own / "waves.yaml")
    assert refused.code == 2 and text in refused.err


def test_a_module_that_fails_is_named_with_its_line(
    own: Path, command: Callable[..., Result]
) -> None:
    (own / "own_waves.py").write_text(OWN + "\n1 / 0\n")
    refused = command("train", own / "waves.yaml")
    assert refused.code == 2
    assert "importing own_waves fails: ZeroDivisionError: division by zero" in refused.err
    assert re.search(r"own_waves\.py:\d+", refused.err)


VALID = """
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import jitkit
from jitkit import Axis, Category, Domain, DomainSection, Field, Layout
from jitkit.domain import Split
from jitkit.testing import check_domain


class HeightSection(DomainSection):
    path: Path


class Plain(Domain):
    \"\"\"Made from a list in memory.\"\"\"

    def __init__(self, heights: list[float]) -> None:
        self.heights = heights
        self.layout = Layout((Axis("x", 4),), ("height",))
        self.conditions = {"kind": Category(3)}

    def items(self, split: Split) -> list[float]:
        return self.heights

    def encode(self, item: float, rng: np.random.Generator | None = None) -> Field:
        raise NotImplementedError

    def decode(self, field: Field) -> float:
        raise NotImplementedError


class Assigned(Plain):
    Section = HeightSection

    def __init__(self, section: HeightSection) -> None:
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
def test_strict_mypy_accepts_the_ways_to_write_a_domain(tmp_path: Path) -> None:
    """And rejects a domain with a missing method."""
    incomplete = VALID.replace("def decode", "def undo")
    for name, text in (("valid", VALID), ("incomplete", incomplete)):
        (tmp_path / f"{name}.py").write_text(text)
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "."],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "valid.py" not in result.stdout, result.stdout
    assert 'Cannot instantiate abstract class "Plain"' in result.stdout


# The package

PACKAGED = pytest.mark.xdist_group("package")  # tests of one environment, built once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel of the example package, built from a copy with the installed setuptools."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", folder, folder / "source"], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel, which also sees the packages installed here."""
    folder = tmp_path_factory.mktemp("clean")
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder)
    python = folder / "bin" / "python"
    packages = run([python, "-c", "import site; print(site.getsitepackages()[0])"], folder)
    here = "".join(f"; site.addsitedir({path!r})" for path in site.getsitepackages())
    (Path(packages.strip()) / "here.pth").write_text(f"import site{here}\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run([*pip, wheel], folder)  # pip must find its dependency jitkit
    return python


@pytest.fixture(scope="module")
def work(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipe, recordings and a short run of 200 steps."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(PACKAGE / "eeg.yaml", folder)
    run([clean, "-m", "simulated_eeg", "recordings.npz"], folder)
    short = ["train.steps=200", "evaluate.samples=80", "train.preview_every_steps=200"]
    run([clean, "-m", "jitkit", "train", "eeg.yaml", *short], folder)
    return folder


@pytest.mark.slow
@PACKAGED
def test_the_wheel_has_two_modules_and_an_entry_point(wheel: Path) -> None:
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
    assert "EEG of four subjects" in line and "(jitkit_eeg:EEG)" in line
    code = "import jitkit_eeg, sys; print(jitkit_eeg.__file__, 'torch' in sys.modules)"
    file, has_torch = run([clean, "-c", code], tmp_path).split()
    assert Path(file).is_relative_to(clean.parents[1]) and has_torch == "False"


@pytest.mark.slow
@PACKAGED
def test_jitkit_train_with_the_package_learns_rhythm_and_lag(work: Path) -> None:
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
def test_jitkit_sample_with_the_package_needs_no_recordings(
    work: Path, clean: Path, tmp_path: Path
) -> None:
    shutil.copytree(work / "runs", tmp_path / "runs")
    command = [clean, "-m", "jitkit", "sample", "runs/eeg", "--n", "8", "--out", "eight"]
    printed = run([*command, "--cond", "subject=2"], tmp_path)
    assert "8 samples of step 200: 1 files in eight" in printed
    with np.load(tmp_path / "eight" / "samples.npz") as file:
        assert file["eeg"].shape == (8, 4, 128) and file["subject"].tolist() == [2] * 8
        assert 5 < file["eeg"].std() < 30  # microvolts


@pytest.mark.slow
@PACKAGED
def test_jitkit_evaluate_with_the_package_scores_the_run_again(work: Path, clean: Path) -> None:
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
    printed = run([clean, "-m", "pytest", "-q", "tests"], tmp_path)
    assert re.search(r"^8 passed", printed, re.MULTILINE), printed
