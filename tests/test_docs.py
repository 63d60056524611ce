"""What the documents say is so: README's blocks run, and every key of a recipe is described."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard, get_args

import pytest
from ours import own_adapters
from pydantic_core import PydanticUndefined

from jitkit.domain import domain_class
from jitkit.recipe.load import SECTIONS
from jitkit.sections import Section

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KEYS = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: python tests/test_docs.py -->\n", "<!-- end of keys -->"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("block", blocks("python"))
def test_python_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    run([sys.executable, "-W", "error", "-c", block], tmp_path)


@pytest.mark.slow
def test_commands_of_the_readme_on_a_run_of_the_digits_work(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    lines = [line.split("  #")[0].split("&& ")[-1] for line in "".join(blocks("bash")).splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("jitkit ")]
    without_files_of_others = [
        words
        for words in commands
        if words[1] != "import" and not {"imagenet256", "sst.yaml", "runs/my"} & set(words)
    ]
    assert len(without_files_of_others) >= 4
    for words in without_files_of_others:
        short = ["train.steps=20", "evaluate.samples=50"] if words[1] == "train" else []
        run([sys.executable, "-m", *words, *short], tmp_path)
    assert len(list((tmp_path / "threes").glob("0*.png"))) == 20
    assert (tmp_path / "runs" / "digits" / "evaluation.json").is_file()


@pytest.mark.slow
def test_the_walk_from_a_strange_file_to_samples_works(tmp_path: Path) -> None:
    """The commands of docs/arrays.md, but for pip's, with fewer steps."""
    pytest.importorskip("iris_sample_data")
    text = (ROOT / "docs" / "arrays.md").read_text(encoding="utf-8")
    found = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in found for line in block.splitlines() if not line.startswith("pip ")]
    assert len(lines) >= 6
    short = {
        "train": " train.steps=20 train.preview_every_steps=20",
        "evaluate": " evaluate.samples=8",
    }
    for line in lines:
        words = line.split()
        more = short.get(words[1], "") if words[0] == "jitkit" else ""
        at = {"jitkit": f"{sys.executable} -m jitkit", "cp": "cp"}[words[0]]
        line = line.replace("$(python ", f"$({sys.executable} ").replace(words[0], at, 1)
        run(["bash", "-c", line + more], tmp_path)
    import xarray

    with xarray.open_dataset(tmp_path / "months" / "samples.nc") as samples:
        assert samples["surface_temperature"].attrs["units"] == "K"
        assert samples.sizes == {"sample": 8, "latitude": 18, "longitude": 432}
        assert bool(samples["surface_temperature"].isnull().any())
    assert (tmp_path / "runs/sst/samples/step-20.png").is_file()
    assert (tmp_path / "runs/sst/evaluation.json").is_file()


@pytest.mark.slow
def test_the_walk_from_molecules_to_samples_works(tmp_path: Path) -> None:
    """The commands of docs/molecules.md on 500 molecules, but for pip's, with fewer steps."""
    pytest.importorskip("rdkit")
    text = (ROOT / "docs" / "molecules.md").read_text(encoding="utf-8")
    found = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = [line for line in found.splitlines() if not line.startswith("pip ")]
    assert len(lines) >= 8
    data = f" domain.path={ROOT / 'tests' / 'data' / 'qm9.csv'}"
    short = {
        "check": data,
        "train": f"{data} train.steps=4 train.warmup_steps=0 sample.steps=2 evaluate.samples=8",
        "sample": " sample.steps=2",
    }
    for line in lines:
        words = shlex.split(line + short.get(line.split()[1], ""))
        run([sys.executable, "-m", *words], tmp_path)
    for name, sizes in (("sizes", list(range(9, 21))), ("methanol", [6])):
        written = (tmp_path / name / "samples.xyz").read_text(encoding="utf-8").splitlines()
        counts = [int(line) for line in written if line.isdecimal()]
        assert sorted(set(counts)) == sizes
    assert (tmp_path / "gap" / "grid.png").is_file()


@pytest.mark.slow
def test_the_walk_from_structures_to_samples_works(tmp_path: Path) -> None:
    """The commands of docs/proteins.md on real entries of tests/data, with fewer steps."""
    pytest.importorskip("biotite")
    text = (ROOT / "docs" / "proteins.md").read_text(encoding="utf-8")
    found = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = [line for line in found.splitlines() if not line.startswith("pip ")]
    assert len(lines) >= 7
    data = ROOT / "tests" / "data" / "proteins"
    models = f" domain.path={data / '2juy_backbone.pdb.gz'} domain.trajectory=null"
    short = " train.steps=4 train.warmup_steps=0 sample.steps=2 evaluate.samples=8"
    for line in lines:
        _, command, recipe = line.split()[:3]
        line = line.replace("package:MDAnalysisTests/data/dssp", str(data))
        line += models if recipe == "ensemble" else ""
        line += short if command == "train" else " sample.steps=2" if command == "sample" else ""
        line += " model.width=32 model.depth=2 model.heads=2" if recipe == "proteins" else ""
        run([sys.executable, "-m", *shlex.split(line)], tmp_path)
    conformations = (tmp_path / "conformations" / "samples.pdb").read_text(encoding="ascii")
    assert conformations.count("ENDMDL") == 20
    helices = [path.read_text(encoding="ascii") for path in (tmp_path / "helices").glob("pdb/*")]
    assert [text.count(" CA  UNK A") for text in helices] == [80] * 4
    assert (tmp_path / "runs/ensemble/evaluation.json").is_file()


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def tables() -> Iterator[str]:
    """A table of the keys of every section, in the order of a recipe."""
    sections: dict[str, type[Section]] = {
        f"domain ({name})": domain_class(name).Section for name in own_adapters()
    }
    for title, section in (sections | SECTIONS).items():
        about = (section.__doc__ or "").strip().split(": ", 1)[-1].splitlines()[0]
        yield f"### {title}\n\n{about[0].upper()}{about[1:]}\n\n"
        yield "| key | default | meaning |\n|---|---|---|\n"
        yield from rows(section, title)
        yield "\n"


def rows(section: type[Section], title: str, prefix: str = "") -> Iterator[str]:
    """A row for each key, those of a section inside it below its own."""
    for key, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        inside = [t for t in (field.annotation, *get_args(field.annotation)) if is_section(t)]
        shown = "required" if default is PydanticUndefined else json.dumps(default, default=str)
        shown = "" if inside or shown == "null" else shown.strip('"')
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        assert meaning, f"{title}.{prefix}{key} has no text under it"
        yield f"| `{prefix}{key}` | {shown} | {meaning} |\n"
        for other in inside:
            yield from rows(other, title, f"{prefix}{key}.")


def is_section(kind: object) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def test_every_key_of_a_recipe_is_described_as_in_the_code() -> None:
    written = KEYS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert written == "".join(tables()), "run: python tests/test_docs.py"


if __name__ == "__main__":
    text = KEYS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    KEYS.write_text(
        f"{before}{BEGIN}{''.join(tables())}{END}{rest.split(END)[1]}", encoding="utf-8"
    )
