"""What is installed, under which names, and the version that all places agree on."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import jitkit
from jitkit.domain import installed
from jitkit.recipe.load import bundled
from jitkit.sections import DomainSection

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def test_every_folder_with_python_files_is_installed() -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix()
        for top in ("jitkit", "domains", "recipes")
        for path in (ROOT / top).rglob("*.py")
        if not path.is_relative_to(ROOT / "jitkit/domains")
        and not path.is_relative_to(ROOT / "jitkit/recipes")
    }
    assert found == set(FOLDERS.values())
    assert sorted(FOLDERS) == sorted(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize("name", ["domains", "recipes"])
def test_a_link_leads_to_its_folder_or_is_an_inert_file(name: str) -> None:
    link, target = ROOT / "jitkit" / name, f"../{name}"
    if link.is_symlink():
        assert link.readlink() == Path(target)
    else:  # a clone without symbolic links holds their text
        assert link.read_text(encoding="utf-8") == target


def test_data_files_of_the_folders_are_installed() -> None:
    patterns: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    for package, folder in FOLDERS.items():
        data = [
            p for p in (ROOT / folder).iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")
        ]
        missed = [p.name for p in data if not any(p.match(glob) for glob in patterns[package])]
        assert not missed, f"{missed} of {folder}/ would not be installed"


def test_adapters_are_refused_under_the_name_of_their_folder() -> None:
    command = [sys.executable, "-c", "import domains"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "ImportError: import jitkit.domains, not domains" in result.stderr


@pytest.mark.parametrize("point", installed().values(), ids=lambda point: point.name)
def test_an_entry_point_leads_to_an_adapter(point: EntryPoint) -> None:
    assert issubclass(point.load().Section, DomainSection)


def test_our_own_adapters_are_installed() -> None:
    assert set(PROJECT["project"]["entry-points"]["jitkit.domains"]) <= set(installed())


def test_recipes_are_found_where_they_are_installed() -> None:
    assert set(bundled()) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_project_package_and_changelog_name_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.MULTILINE)
    assert newest is not None
    assert PROJECT["project"]["version"] == jitkit.__version__ == newest[1]
