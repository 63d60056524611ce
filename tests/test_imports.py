"""What importing jitkit loads, and how fast the command line starts."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys

import pytest

import jitkit

LOADED = """
import sys
before = set(sys.modules)
{code}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
known = {{"jitkit", *sys.stdlib_module_names}}
print(*[name for name in loaded - known if not name.startswith("_")])
"""
RUN_HELP = """
import runpy
sys.argv, stdout, sys.stdout = ["jitkit", "--help"], sys.stdout, sys.stderr
try:
    runpy.run_module("jitkit", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
sys.stdout = stdout
"""

PYDANTIC = {
    "annotated_types",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}
YAML = {"yaml", "cython_runtime"}
HEAVY = {"torch", "numpy", "PIL", "einops", "safetensors"}

needs_cli = pytest.mark.skipif(
    importlib.util.find_spec("jitkit.cli") is None, reason="jitkit.cli is missing"
)


def loaded_by(code: str) -> set[str]:
    """The packages that ``code`` loads, without the standard library and jitkit."""
    command = [sys.executable, "-c", LOADED.format(code=code)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_jitkit_loads_nothing_else() -> None:
    assert loaded_by("import jitkit") == set()


def test_the_contract_of_an_adapter_loads_only_pydantic() -> None:
    assert loaded_by("import jitkit.domain, jitkit.fields") <= PYDANTIC


def test_a_recipe_is_validated_without_torch_and_other_adapters() -> None:
    code = "import jitkit.recipe.load; assert not any('jitkit.domains' in m for m in sys.modules)"
    assert loaded_by(code) <= PYDANTIC | YAML


@pytest.mark.parametrize("name", ["digits", "imagenet256"])
def test_opening_a_recipe_does_not_load_torch(name: str) -> None:
    assert "torch" not in loaded_by(f"from jitkit import load_recipe; load_recipe({name!r})")


@needs_cli
def test_help_loads_no_heavy_library() -> None:
    assert not loaded_by(RUN_HELP) & HEAVY


@needs_cli
def test_help_takes_less_than_a_second() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "jitkit", "--help"]
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 1  # CPU time, independent of machine load


@pytest.mark.parametrize("name", jitkit.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(jitkit, name) is not None


def test_an_unknown_name_raises_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'jitkit' has no attribute 'smaple'"):
        jitkit.smaple  # noqa: B018
