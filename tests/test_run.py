"""A run's folder: its choice, atomic files, metrics, locks."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jitkit.errors import RecipeError
from jitkit.runs.run_dir import (
    append_lines,
    choose_folder,
    cut_metrics,
    environment,
    locked,
    skipped_at_end,
    write_text,
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(path: str) -> Path:
    write_text(Path(path) / "recipe.yaml", "name: x\n")
    return Path(path)


# Choice of the folder


def test_the_folder_of_a_run_is_runs_and_the_name_of_its_recipe_or_the_given_one() -> None:
    assert choose_folder("digits", None, new=False) == Path("runs/digits")
    assert choose_folder("digits", Path("elsewhere"), new=False) == Path("elsewhere")


def test_an_existing_run_is_used_and_with_new_another_folder() -> None:
    assert choose_folder("x", make_run("runs/x"), new=False) == Path("runs/x")
    assert choose_folder("x", None, new=True) == Path("runs/x-2")
    make_run("runs/x-2")
    assert choose_folder("x", None, new=True) == Path("runs/x-3")
    assert choose_folder("x", Path("runs/y"), new=True) == Path("runs/y")


def test_a_folder_with_other_files_is_refused_and_unchanged(here: Path) -> None:
    (here / "photos").mkdir()
    (here / "photos" / "cat.png").touch()
    with pytest.raises(RecipeError, match="photos holds files but no run; .* with --run DIR"):
        choose_folder("x", Path("photos"), new=False)
    assert choose_folder("x", Path("photos"), new=True) == Path("photos-2")
    assert [path.name for path in here.rglob("*")] == ["photos", "cat.png"]


def test_an_empty_folder_is_accepted_and_a_file_is_not(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "file").touch()
    assert choose_folder("x", Path("empty"), new=False) == Path("empty")
    with pytest.raises(RecipeError, match="file is a file; choose a folder with --run DIR"):
        choose_folder("x", Path("file"), new=False)


# Files


def test_text_files_are_written_atomically(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "new" / "note.txt"
    write_text(path, "größer\n")
    assert path.read_text(encoding="utf-8") == "größer\n"
    complete = Path.write_text

    def torn(self: Path, text: str, **keys: Any) -> int:
        complete(self, text[:3], **keys)
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", torn)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "something else\n")
    assert path.read_text(encoding="utf-8") == "größer\n"


def test_the_environment_has_versions_machine_and_commit() -> None:
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["started"])
    assert {"python", "jitkit", "torch", "numpy", "safetensors"} <= set(found["versions"])
    assert all(re.match(r"\d+\.\d+", text) for text in found["versions"].values())
    assert found["machine"]["cores"] >= 1 and found["machine"]["processor"]
    assert found["commit"] is None or re.fullmatch(r"\S+", found["commit"])


# Metrics

RECORDS = st.lists(st.fixed_dictionaries({"loss": st.floats(allow_nan=False)}), max_size=6)


@given(RECORDS, st.integers(-1, 7), st.integers(0, 40))
def test_metrics_after_a_step_and_torn_lines_are_removed(
    records: list[dict[str, float]], step: int, torn: int
) -> None:
    run = Path()
    Path("metrics.jsonl").unlink(missing_ok=True)
    numbered = [{"step": i} | record for i, record in enumerate(records, start=1)]
    for record in numbered:
        append_lines(run / "metrics.jsonl", [record])
    with Path("metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": 0.25, "loss_bins": [1'[:torn])
    cut_metrics(run, step)
    lines = Path("metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [r for r in numbered if r["step"] <= step]
    append_lines(run / "metrics.jsonl", [{"step": 99}])
    assert Path("metrics.jsonl").read_text().splitlines() == [*lines, '{"step": 99}']


def test_missing_metrics_become_an_empty_file() -> None:
    cut_metrics(Path(), 5)
    assert Path("metrics.jsonl").read_bytes() == b""


def test_lines_are_appended_completely_or_not_at_all_on_a_full_disk() -> None:
    path = Path("lines.jsonl")
    append_lines(path, [{"step": 1}])
    before = path.read_bytes()
    with small_files(len(before) + 5), pytest.raises(OSError):
        append_lines(path, [{"step": 2}])
    assert path.read_bytes() == before
    append_lines(path, [{"step": 2}])
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Limit the size of files of this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(
    ("lines", "count"),
    [([], 0), ([0], 0), ([1], 1), ([1, 0, 1, 1], 2), ([1, 1, 1], 3), ([1, 1, 0], 0)],
)
def test_skipped_steps_at_the_end_are_counted(lines: list[int], count: int) -> None:
    records = [{"step": i} | ({"skipped": "why"} if bad else {}) for i, bad in enumerate(lines)]
    append_lines(Path("metrics.jsonl"), records)
    assert skipped_at_end(Path()) == count


def test_two_processes_cannot_train_in_one_folder() -> None:
    run = make_run("run")
    with locked(run):
        other = subprocess.run(
            [
                sys.executable,
                "-c",
                "from pathlib import Path\nfrom jitkit.runs.run_dir import locked\n"
                "with locked(Path('run')): pass",
            ],
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert "another process trains in run; wait for it" in other.stderr
    with locked(run):
        pass


def test_the_folder_of_a_run_that_failed_before_it_started_is_removed() -> None:
    with pytest.raises(RecipeError), locked(Path("run")):
        raise RecipeError("no such thing")
    assert not Path("run").exists()
