"""The order of imports: a module of jitkit knows only those that stand below it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = """
    door         cli
    report       report.page report.scores report.words report.folder
    report       report.pictures report.charts report.curves
    runs         trainer resume sweep trained best evaluate
    runs         sweepmap choice scoring grid runlog previews
    training     learner validation check forecast generate
    borders      official posthoc checkpoint data testing facts run
    recipe       recipe mistakes written
    processes    tracking meter stop sampler solvers guidance optim ema parallel progress memory
    network      denoiser transformer conditions layers kernels
    mathematics  flow rope patches centring seeds
    words        abilities domain sections fields files processor errors
"""
"""From top to bottom, and from left to right: a module imports only from what follows it."""

ORDER = [module for floor in FLOORS.strip().splitlines() for module in floor.split()[1:]]
PURE = ORDER[ORDER.index("denoiser") :]
PURE_MAY_IMPORT = {"torch", "einops"}
BESIDES = {"sections": {"pydantic"}, "domain": {"numpy", "PIL"}, "abilities": {"numpy"}}  # types
DOMAINS_MAY_IMPORT = {
    f"jitkit.{name}"
    for name in ("abilities", "domain", "sections", "fields", "files", "errors")
    + ("processor", "progress")
}

MODULES = sorted(
    ".".join(path.relative_to(ROOT / "jitkit").with_suffix("").parts)
    for folder in ("", "report")
    for path in (ROOT / "jitkit" / folder).glob("*.py")
    if not path.stem.startswith("__")
)
ADAPTERS = sorted(p for p in (ROOT / "domains").rglob("*.py") if p.stem != "__init__")


def file_of(module: str) -> Path:
    """Where a module of jitkit is written."""
    return (ROOT / "jitkit").joinpath(*module.split(".")).with_suffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere: for types or inside functions as well."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write imports in full"
            source = str(node.module)
            inside = [f"{source}.{alias.name}" for alias in node.names]
            yield from inside if source in ("jitkit", "jitkit.domains") else [source]


def ours(path: Path) -> set[str]:
    """The modules of jitkit that a file imports; the package's version belongs to all."""
    names = {name for name in imports(path) if name.split(".")[0] == "jitkit"}
    return names - {"jitkit.__version__"}


def others(path: Path) -> set[str]:
    """The packages a file imports that are neither ours nor Python's own."""
    return {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"jitkit"}


def test_every_module_has_a_floor() -> None:
    missing = set(MODULES) - set(ORDER)
    assert not missing, f"no floor in tests/test_floors.py for {sorted(missing)}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below(module: str) -> None:
    below = {f"jitkit.{name}" for name in ORDER[ORDER.index(module) + 1 :]}
    above = ours(file_of(module)) - below
    assert not above, f"jitkit.{module} imports {sorted(above)}, which is not below it"


@pytest.mark.parametrize("module", [module for module in PURE if module in MODULES])
def test_network_and_mathematics_need_little_besides_torch(module: str) -> None:
    heavy = others(file_of(module)) - PURE_MAY_IMPORT - BESIDES.get(module, set())
    assert not heavy, f"jitkit.{module} imports {sorted(heavy)}"


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_an_adapter_knows_the_contract_and_other_adapters_alone(path: Path) -> None:
    beyond = {name for name in ours(path) if not name.startswith("jitkit.domains.")}
    assert beyond <= DOMAINS_MAY_IMPORT, f"{path.name} imports {sorted(beyond)}"
