"""The layers of the code: a folder imports only from folders below it, and files never in a circle.

CONTRIBUTING.md shows the same folders with a line each.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = """
cli
training report
evaluation
sampling
runs
testing data
diffusion optim
nn recipe
registry
protocols
domain
plots
metrics stores
fields sections
utils
errors
"""
"""From top to bottom: folders of ``jitkit/`` and modules that stand directly in it. Each imports
only from lines below its own, and from itself."""

DEPTH = {unit: i for i, line in enumerate(LAYERS.split("\n")) for unit in line.split()}
ADAPTERS_MAY_IMPORT = {"errors", "utils", "fields", "sections", "domain", "protocols"}
ADAPTERS_MAY_IMPORT |= {"stores", "metrics", "plots"}
PURE = {"errors", "fields", "sections", "domain", "protocols", "nn", "diffusion"}
PURE_MAY_IMPORT = {"torch", "einops"}
BESIDES = {"sections": {"pydantic"}, "domain": {"numpy", "PIL"}, "protocols": {"numpy"}}  # types
MOST_MODULES = 20  # directly in jitkit/


def module_of(path: Path) -> str:
    """The import name of a file: ``domains/`` is imported as ``jitkit.domains``."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "jitkit" else ["jitkit", *parts])


def files_in(folder: str) -> Iterator[Path]:
    """Python files of a folder; `jitkit/domains` is a link and not followed."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if not {"domains", "recipes"} & set(path.relative_to(ROOT / folder).parts[:-1]):
            yield path


FILES = {module_of(path): path for top in ("jitkit", "domains") for path in files_in(top)}
FACE = ("jitkit", "jitkit.__main__")
CORE = [name for name in FILES if not name.startswith("jitkit.domains") and name not in FACE]
ADAPTERS = [name for name in FILES if name.startswith("jitkit.domains.")]


def imports(module: str) -> set[str]:
    """Every module that a file imports anywhere, for types and inside functions as well."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else str(node.module) for name in inside}
    return found


def ours(module: str) -> set[str]:
    """The modules of jitkit that a module imports, but for the package's version."""
    return {name for name in imports(module) if name in FILES} - {module, "jitkit"}


def unit_of(module: str) -> str:
    """The folder of a module, or its name where it stands directly in ``jitkit/``."""
    return module.split(".")[1]


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, none where there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_layer() -> None:
    missing = {unit_of(name) for name in CORE} - DEPTH.keys()
    assert not missing, f"no layer in tests/test_layers.py for {sorted(missing)}"
    assert DEPTH.keys() <= {unit_of(name) for name in CORE}


@pytest.mark.parametrize("module", CORE)
def test_a_module_imports_only_from_layers_below(module: str) -> None:
    unit = unit_of(module)
    allowed = {name for name, depth in DEPTH.items() if depth > DEPTH[unit]} | {unit}
    above = {name for name in ours(module) if unit_of(name) not in allowed}
    assert not above, f"{module} imports {sorted(above)}, which is not below {unit}"


def test_files_never_import_in_a_circle() -> None:
    circle = cycle_in({module: ours(module) for module in FILES})
    assert not circle, " -> ".join(circle)


def test_a_turned_arrow_is_a_circle() -> None:
    graph = {module: ours(module) for module in FILES}
    for above, below in pairwise(["jitkit.diffusion.sampler", "jitkit.diffusion.solvers"]):
        assert below in graph[above]
        circle = cycle_in(graph | {below: graph[below] | {above}})
        assert {above, below} <= set(circle)


@pytest.mark.parametrize("module", [name for name in CORE if unit_of(name) in PURE])
def test_network_and_diffusion_need_little_besides_torch(module: str) -> None:
    others = {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names
    heavy = others - {"jitkit"} - PURE_MAY_IMPORT - BESIDES.get(unit_of(module), set())
    assert not heavy, f"{module} imports {sorted(heavy)}"


@pytest.mark.parametrize("module", ADAPTERS)
def test_an_adapter_imports_the_contract_libraries_and_faces_of_other_adapters(module: str) -> None:
    own = module.split(".")[2]
    for name in ours(module):
        if name.startswith("jitkit.domains."):
            face = name.split(".")[2]
            assert face == own or name == f"jitkit.domains.{face}", f"{module} imports {name}"
        else:
            assert unit_of(name) in ADAPTERS_MAY_IMPORT, f"{module} imports {name}"


def test_few_modules_stand_directly_in_the_package() -> None:
    direct = [path for path in (ROOT / "jitkit").glob("*.py")]
    assert len(direct) <= MOST_MODULES


def test_contributing_shows_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"<!-- tree -->\n```\n(.*?)```", text, re.DOTALL)
    assert tree is not None
    shown, top = set(), Path()
    for line in tree[1].splitlines():
        if found := re.match(r"( *)([\w./]+)/ ", line + " "):
            top = top if found[1] else Path()
            shown.add((top / found[2]).as_posix())
            top = top if found[1] else Path(found[2])
    folders = {path.parent.relative_to(ROOT).as_posix() for path in FILES.values()}
    assert shown & {"jitkit", "domains"} == {"jitkit", "domains"}
    assert folders <= shown, sorted(folders - shown)
    assert all((ROOT / name).is_dir() for name in shown), shown


def public_names(module: str) -> Iterator[str]:
    """Public classes, functions and type aliases that a module defines; constants are its own."""
    for node in ast.parse(FILES[module].read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_") and not name.isupper())


def test_no_two_public_things_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for module in FILES:
        if module != "jitkit.cli":  # its functions are named as the commands
            for name in public_names(module):
                homes.setdefault(name, []).append(module)
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert not shared, shared
