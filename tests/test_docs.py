"""Documentation: the commands and Python blocks run, and every recipe key is described."""

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

from jitkit.recipe.load import SECTIONS
from jitkit.registry import domain_class
from jitkit.sections import Section

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
METHOD = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
KEYS = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: python tests/test_docs.py -->\n", "<!-- end of keys -->"


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def run(command: list[str], folder: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("block", [*blocks("python"), *blocks("python", METHOD)])
def test_python_blocks_of_readme_and_method_run(block: str, tmp_path: Path) -> None:
    short = re.sub(r'(steps": |steps=)\d+', r"\g<1>2", block).replace(
        'samples": 100', 'samples": 10'
    )
    run([sys.executable, "-W", "error", "-c", short], tmp_path)


@pytest.mark.slow
def test_digits_commands_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    lines = [line.split("  #")[0].split("&& ")[-1] for line in "".join(blocks("bash")).splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("jitkit ")]
    self_contained = [
        words
        for words in commands
        if words[1] != "import" and not {"imagenet256", "sst.yaml", "runs/my"} & set(words)
    ]
    assert len(self_contained) >= 4
    for words in self_contained:
        short = ["train.steps=20", "evaluate.samples=50"] if words[1] == "train" else []
        run([sys.executable, "-m", *words, *short], tmp_path)
    assert len(list((tmp_path / "threes").glob("0*.png"))) == 20
    assert (tmp_path / "runs" / "digits" / "evaluation.json").is_file()


@pytest.mark.slow
def test_the_commands_of_the_arrays_page_run(tmp_path: Path) -> None:
    """The commands of docs/arrays.md except pip, with fewer steps."""
    pytest.importorskip("iris_sample_data")
    text = (ROOT / "docs" / "arrays.md").read_text(encoding="utf-8")
    shell_blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    lines = [
        line for block in shell_blocks for line in block.splitlines() if not line.startswith("pip ")
    ]
    assert len(lines) >= 6
    short = {
        "train": " train.steps=20 train.preview_every_steps=20",
        "evaluate": " evaluate.samples=8",
    }
    for line in lines:
        words = line.split()
        more = short.get(words[1], "") if words[0] == "jitkit" else ""
        program = {"jitkit": f"{sys.executable} -m jitkit", "cp": "cp"}[words[0]]
        line = line.replace("$(python ", f"$({sys.executable} ").replace(words[0], program, 1)
        run(["bash", "-c", line + more], tmp_path)
    import xarray

    with xarray.open_dataset(tmp_path / "months" / "samples.nc") as samples:
        assert samples["surface_temperature"].attrs["units"] == "K"
        assert samples.sizes == {"sample": 8, "latitude": 18, "longitude": 432}
        assert bool(samples["surface_temperature"].isnull().any())
    assert (tmp_path / "runs/sst/samples/step-20.png").is_file()
    assert (tmp_path / "runs/sst/evaluation.json").is_file()


@pytest.mark.slow
def test_the_commands_of_the_molecules_page_run(tmp_path: Path) -> None:
    """The commands of docs/molecules.md except pip, on 500 molecules with fewer steps."""
    pytest.importorskip("rdkit")
    text = (ROOT / "docs" / "molecules.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = [line for line in commands.splitlines() if not line.startswith("pip ")]
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
def test_the_commands_of_the_proteins_page_run(tmp_path: Path) -> None:
    """The commands of docs/proteins.md on real entries of tests/data, with fewer steps."""
    pytest.importorskip("biotite")
    text = (ROOT / "docs" / "proteins.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    lines = [line for line in commands.splitlines() if not line.startswith("pip ")]
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


def test_the_readme_is_short_and_its_links_resolve() -> None:
    assert len(README.splitlines()) < 150
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def tables() -> Iterator[str]:
    """A table of the keys of every section, in recipe order."""
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
    """A row for each key; keys of a nested section follow it."""
    for key, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        nested = [t for t in (field.annotation, *get_args(field.annotation)) if is_section(t)]
        shown = "required" if default is PydanticUndefined else json.dumps(default, default=str)
        shown = "" if nested or shown == "null" else shown.strip('"')
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        assert meaning, f"{title}.{prefix}{key} has no text under it"
        yield f"| `{prefix}{key}` | {shown} | {meaning} |\n"
        for inner in nested:
            yield from rows(inner, title, f"{prefix}{key}.")


def is_section(kind: object) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def test_the_documented_recipe_keys_are_those_of_the_code() -> None:
    written = KEYS.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert written == "".join(tables()), "run: python tests/test_docs.py"


if __name__ == "__main__":
    text = KEYS.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    KEYS.write_text(
        f"{before}{BEGIN}{''.join(tables())}{END}{rest.split(END)[1]}", encoding="utf-8"
    )
