"""Packaging: contents of the wheel, entry points, data files, and one version everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import jitkit
from jitkit.recipe.load import bundled
from jitkit.registry import installed
from jitkit.sections import DomainSection

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = ("domains", "recipes")  # folders beside jitkit/, and links in it
SOURCES = ("jitkit", *LINKED, "pyproject.toml", "README.md", "LICENSE")


def package_files() -> set[str]:
    """Modules and data files of the package, as paths from its parent folder."""
    folders = {ROOT / "jitkit": "jitkit"} | {ROOT / name: f"jitkit/{name}" for name in LINKED}
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for folder, package in folders.items()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and not (package == "jitkit" and path.relative_to(folder).parts[0] in LINKED)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources so that no build files are left beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        source, copy = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    result = subprocess.run([*command, str(folder / "source")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("jitkit-*.whl")
    return path


def test_the_wheel_has_exactly_the_modules_and_data_files_of_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == package_files()
    suffixes = {Path(name).suffix for name in names} | {Path(name).name for name in names}
    assert {".py", ".yaml", ".npz", ".md", ".css", ".js", ".html", "py.typed"} <= suffixes


def test_all_recipes_can_be_listed_and_loaded_from_an_unpacked_wheel(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "jitkit", "recipes", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    output = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    names = {Path(name).stem for name in json.loads(output)}
    assert names == {path.stem for path in (ROOT / "recipes").rglob("*.yaml")}
    assert f"site{os.sep}jitkit{os.sep}recipes{os.sep}paper" in output


def test_jitkit_can_be_imported_from_the_folder_that_contains_the_clone(tmp_path: Path) -> None:
    (tmp_path / "jitkit").symlink_to(ROOT)
    command = [sys.executable, "-c", "import jitkit; print(jitkit.train)"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("<function train at ")


@pytest.mark.parametrize("name", LINKED)
def test_a_folder_of_the_package_is_a_link_to_the_top_level(name: str) -> None:
    assert (ROOT / "jitkit" / name).readlink() == Path(f"../{name}")


def test_adapters_cannot_be_imported_by_the_name_of_their_folder() -> None:
    command = [sys.executable, "-c", "import domains"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ImportError: import jitkit.domains, not domains" in result.stderr


@pytest.mark.parametrize("point", installed().values(), ids=lambda point: point.name)
def test_an_entry_point_leads_to_an_adapter(point: EntryPoint) -> None:
    assert issubclass(point.load().Section, DomainSection)


def test_our_adapters_are_installed() -> None:
    assert set(PROJECT["project"]["entry-points"]["jitkit.domains"]) <= set(installed())


def test_installed_recipes_are_those_of_the_tree() -> None:
    assert set(bundled()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_project_package_and_changelog_have_the_same_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert PROJECT["project"]["version"] == jitkit.__version__ == newest[1]
