"""The page of `jitkit report`: valid HTML, self-contained, correct for runs in any state."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import html5lib
import pytest
from reportruns import GUIDANCE, SCORES, make_run, write_json, write_scores, write_sweep

from jitkit.errors import RecipeError
from jitkit.report.page import write_report
from jitkit.report.scores import score_groups, sweep_views
from jitkit.runs.defaults import write_best

Command = Callable[..., Any]
NAMES = {"html": "http://www.w3.org/1999/xhtml"}
ATTACK = '"><img src=x onerror=alert(1)><script>alert(2)</script></title>'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "digits")


def parsed(path: Path) -> Any:
    """The page's tree by a strict parser; ids are unique and references resolve."""
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    tree = parser.parse(path.read_text(encoding="utf-8"))
    ids = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    referenced = [i for e in tree.iter() for i in (e.get("aria-labelledby") or "").split()]
    assert set(referenced) <= set(ids)
    return tree


def text(tree: Any) -> str:
    parts = [t for e in tree.iter() if e.tag not in ("script", "style") for t in (e.text, e.tail)]
    return " ".join(" ".join(filter(None, parts)).split())


def report_text(*runs: Path, out: Path | None = None) -> str:
    return text(parsed(write_report(runs, out)))


# The page


def test_a_report_of_a_trained_run_is_valid_small_and_self_contained(
    trained: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "tiny"))
    path = write_report([run])
    assert path == run / "report.html" and path.stat().st_size < 5e6
    tree = parsed(path)
    assert "done at step 12 of 12" in text(tree)
    assert re.search(
        r"A model of [\d,]+ parameters \(width 16, depth 2\), trained on 1,500 items of "
        r"domain digits: 1 channel on 8 × 8 cells \(row, column\)",
        text(tree),
    )
    addresses = [e.get(k) for e in tree.iter() for k in ("src", "href") if e.get(k) is not None]
    assert addresses and all(address.startswith("data:") for address in addresses)
    style = "".join(e.text or "" for e in tree.iter("style"))
    assert "url(" not in style and "@import" not in style
    assert all(e.get("alt") for e in tree.iter("img"))


def test_key_figures_are_those_of_the_run(run: Path) -> None:
    shown = report_text(run)
    assert "validation loss 2 at step 400" in shown
    assert "lowest validation loss 1 at step 300" in shown
    assert "speed 500 samples/s" in shown and "waiting for data 2 %" in shown
    assert "started 2026-01-02 03:04:05 UTC" in shown and "commit abc1234" in shown
    assert "step 300, nearest to the lowest validation loss" in shown


def test_the_reported_number_of_parameters_is_that_of_the_model(
    trained: Path, tmp_path: Path
) -> None:
    import jitkit

    network = jitkit.load(trained).network
    count = sum(p.numel() for p in network.parameters())
    assert f"A model of {count:,} parameters" in report_text(trained, out=tmp_path / "page.html")


def test_charts_hold_the_metrics_of_the_run(run: Path) -> None:
    charts = {}
    for figure in parsed(write_report([run])).iter("figure"):
        for script in figure.iter("script"):
            charts[next(figure.iter("strong")).text] = json.loads(script.text)
    assert charts["Validation loss"]["x"] == [[50, 100, 150, 200, 250, 300, 350, 400]]
    assert charts["Validation loss"]["lines"][0]["y"] == [3.5, 3, 2.5, 2, 1.5, 1, 1.5, 2]
    against = charts["Validation loss against time"]["lines"]
    assert [line["name"] for line in against] == ["step 50", "step 250", "step 400"]
    assert against[2]["y"][:3] == [2, 3, 4.5]
    assert len(charts["Training loss per time bin"]["lines"]) == 10
    assert charts["Speed"]["lines"][0]["y"][0] == 500


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a<b>&'c", {"name": "x<script>"})
    shutil.copy(run / "recipe.yaml", tmp_path)
    recipe = (run / "recipe.yaml").read_text().replace("domain:", f"domain:\n  note: '{ATTACK}'", 1)
    (run / "recipe.yaml").write_text(recipe)
    write_json(run / "status.json", {"state": ATTACK, "step": 3, "why": ATTACK})
    write_json(run / "environment.json", {"machine": {"processor": ATTACK}, "commit": ATTACK})
    scores = {ATTACK: {"value": 1.0, "best": ATTACK, "unit": ATTACK, "baselines": {ATTACK: {}}}}
    write_json(run / "evaluation.json", {"scores": scores, "notes": [ATTACK]})
    write_sweep(run, "a", {"sample.guidance": [1.0, 2.0], ATTACK: [ATTACK]})
    clean = parsed(write_report([make_run(tmp_path / "clean")]))
    tree = parsed(write_report([run]))
    assert not [e for e in tree.iter() for name in e.attrib if str(name).startswith("on")]
    assert {e.get("src", "")[:5] for e in tree.iter("img")} == {"data:"}
    code = [e.text for e in tree.iter("script") if e.get("type") is None]
    assert code == [e.text for e in clean.iter("script") if e.get("type") is None]
    assert text(tree).count(ATTACK) >= 8


def test_secrets_are_not_shown(run: Path) -> None:
    lines = [
        "domain:",
        "  path: s3://me:word1@bucket/data.zarr?sig=word2",
        "  options: {secret_access_key: word3, token: word4, region: here}",
        "  more: [{account_key: word5}]",
    ]
    recipe = (run / "recipe.yaml").read_text().replace("domain:", "\n".join(lines), 1)
    (run / "recipe.yaml").write_text(recipe)
    write_json(run / "status.json", {"state": "failed", "why": "https://me:word6@host/?t=word7"})
    page = unescape(write_report([run]).read_text())
    assert not re.findall(r"word\d", page)
    assert "s3://bucket/data.zarr?..." in page and "https://host/?..." in page
    assert "in_context_tokens" in page and "here" in page


# Runs in any state


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "unheard of"])
def test_the_state_of_a_run_is_shown(run: Path, state: str) -> None:
    write_json(run / "status.json", {"state": state, "step": 90, "steps": 500, "why": "the reason"})
    shown = report_text(run)
    expected = {"running": "running, or killed at step 400 of 500"}
    assert expected.get(state, f"{state} at step 90 of 500") in shown and "the reason" in shown


@pytest.mark.parametrize(
    "name",
    [
        "status.json",
        "environment.json",
        "evaluation.json",
        "speed.jsonl",
        "metrics.jsonl",
        "samples",
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty", "torn", "strange"])
def test_missing_and_broken_files_are_left_out(run: Path, name: str, how: str) -> None:
    write_scores(run)
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir() if how == "empty" else None
    elif how == "missing":
        path.unlink()
    else:
        data = {"empty": b"", "torn": path.read_bytes()[:30], "strange": b"[[], 1, null]\n" * 2}
        path.write_bytes(data[how])
    shown = report_text(run)
    assert "Machine" in shown
    is_noted = name.endswith(".json") and how != "missing"
    is_noted |= how == "strange" and name != "samples"
    assert (name in shown.split("Key figures")[0]) == is_noted


def test_a_run_with_only_a_recipe_has_a_page(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "recipe.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shown = report_text(run)
    assert "Domain digits; no checkpoint yet." in shown
    assert "Nothing is logged yet." in shown and "Not scored yet: jitkit evaluate" in shown
    assert "No sample images yet." in shown
    written = datetime.fromtimestamp((run / "recipe.yaml").stat().st_mtime, UTC)
    assert f"last written {written:%Y-%m-%d %H:%M:%S} UTC" in shown


def test_skipped_steps_are_shown_with_their_reason(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        for step in range(401, 408):
            line = {"step": step, "loss": None, "skipped": f"reason {step}", "items": [1]}
            file.write(json.dumps(line) + "\n")
    shown = report_text(run)
    assert "7 steps were skipped step 401: reason 401" in shown and "and 2 more" in shown


def test_a_domain_that_is_not_installed_is_reported_all_the_same(run: Path) -> None:
    text = (run / "recipe.yaml").read_text().replace("name: digits\n  ", "name: quarks\n  ")
    (run / "recipe.yaml").write_text(text)
    assert "quarks" in report_text(run)


# Scores and sweeps


def test_scores_are_shown_with_interval_floor_baselines_and_evaluation_settings(run: Path) -> None:
    write_scores(run)
    shown = report_text(run)
    assert "frechet pixels lower is better, ink²" in shown
    assert "0.25 (0.15 to 0.35), 2 seeds" in shown  # the wider interval
    assert "climatology 0.5 (0.45 to 0.55)" in shown and "real items 0.34" in shown
    assert "label agreement digits not defined here" in shown
    assert "protocol jit except: 1000 samples, not 50000" in shown
    assert "1,000 samples, of step 400, EMA 0.99, by heun, 20 steps" in shown
    assert "FID was not computed: it needs weights." in shown and "spectra of ink" in shown


def test_scores_of_several_runs_share_an_axis_and_an_equal_floor() -> None:
    other = {
        "scores": {"frechet_pixels": {"value": 0.75, "interval": [0.7, 0.8], "floor": 0.34000001}}
    }
    score = score_groups([("a", "c0", SCORES), ("b", "c1", other)])["scores"][0]
    assert [mark.label for mark in score.marks] == ["a", "climatology", "b", "real items"]
    at = {mark.label: mark.at for mark in score.marks}
    assert at["b"] - at["climatology"] == pytest.approx(at["climatology"] - at["a"], abs=0.02)
    assert at["a"] < at["real items"] < at["climatology"]
    assert all(mark.low <= mark.at <= mark.high for mark in score.marks if mark.low is not None)


def test_figures_outside_the_run_are_not_opened(run: Path, tmp_path: Path) -> None:
    write_scores(run)
    shutil.copy(run / "spectra-of-ink.png", tmp_path / "private.png")
    (run / "link.png").symlink_to(tmp_path / "private.png")
    names = ["../private.png", str(tmp_path / "private.png"), "link.png"]
    write_json(run / "evaluation.json", SCORES | {"pictures": names})
    shown = report_text(run)
    assert shown.count("of evaluation.json is outside the run") == 3 and "private ," not in shown


def test_the_best_setting_of_a_sweep_is_marked_and_cells_are_shaded_by_rank(run: Path) -> None:
    axes: dict[str, Any] = {"sample.guidance": GUIDANCE, "ema": ["0.99", "0.995"]}
    write_sweep(run, "a", axes)
    (sweep,) = sweep_views([json.loads((run / "sweeps" / "a" / "sweep.json").read_text())])
    assert sweep.header == ["sample.guidance \\ ema", "0.99", "0.995"]
    assert [row[0].text for row in sweep.rows] == ["1", "1.5", "2", "2.5"]
    best = [(row[0].text, k) for row in sweep.rows for k, cell in enumerate(row) if cell.best]
    assert best == [("2", 1)]
    assert (sweep.rows[2][1].shade, sweep.rows[0][2].shade) == (100, 0)
    shown = report_text(run)
    assert "Best: sample.guidance=2, ema=0.99, fid 3 (2.9 to 3.1)" in shown
    assert (
        "the best in 80 % of resamples; no worse within the noise: sample.guidance=1, ema=0.99. It "
        "is at an end of ema, so a better one may be beyond." in shown
    )


@pytest.mark.parametrize(("best", "order"), [("low", "abc"), ("high", "cba"), ("real", "bac")])
def test_points_of_a_sweep_are_ranked_by_the_direction_of_the_score(best: str, order: str) -> None:
    points = [
        {"set": {"k": name}, "scores": {"s": {"value": value, "floor": 2.2, "best": best}}}
        for name, value in (("a", 1.0), ("b", 2.0), ("c", 4.0))
    ]
    (sweep,) = sweep_views([{"axes": {"k": ["a", "b", "c"]}, "by": "s", "points": points}])
    assert "".join(row[0].text for row in sweep.rows) == order
    assert [row[1].shade for row in sweep.rows] == [100, 50, 0]


def test_sampling_settings_from_a_sweep_are_shown(run: Path) -> None:
    write_best(run, {"sample.guidance": 2.2, "ema": "0.99"}, {"by": "fid"})
    assert "( best.yaml ): sample.guidance=2.2 , ema=0.99 ." in report_text(run)
    (run / "best.yaml").write_text("sample: [")
    assert "best.yaml cannot be read" in report_text(run)


def test_a_recipe_with_a_control_character_is_noted(run: Path) -> None:
    (run / "recipe.yaml").write_text("name: a\x07b")
    assert "special characters are not allowed" in report_text(run)


def test_sweeps_of_one_axis_and_of_three_are_shown_and_unfinished_ones_marked(run: Path) -> None:
    write_sweep(run, "one", {"sample.guidance": GUIDANCE}, done=3)
    axes: dict[str, Any] = {
        "sample.guidance": GUIDANCE,
        "ema": ["0.9", "0.99"],
        "sample.method": ["heun", "euler"],
    }
    write_sweep(run, "three", axes)
    one, three = sweep_views(
        [
            json.loads((run / "sweeps" / name / "sweep.json").read_text())
            for name in ("one", "three")
        ]
    )
    assert one.chart is not None and one.chart.values["lines"][0]["y"] == [4, 3.25, 3]
    assert one.best == "" and one.state == "3 of 4 points so far, 800 samples each"
    assert three.header == ["sample.guidance", "ema", "sample.method", "score"]
    assert [cell.text for cell in three.rows[0]] == ["2", "0.9", "heun", "3"]
    assert len(three.rows) == 12
    report_text(run)


# Recipes


def test_differences_from_the_bundled_recipe_are_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", {"train.lr": 5e-4, "model.depth": 2})
    shown = report_text(run)
    assert "It differs from the bundled recipe digits in model.depth=2 , train.lr=0.0005" in shown
    assert "bundled: 0.002" in shown
    assert "It is the bundled recipe digits ." in report_text(make_run(tmp_path / "theirs"))


def test_only_keys_that_differ_between_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", {"train.lr": 5e-4}),
        make_run(tmp_path / "b", {"train.ema": [0.9]}, seed=1),
    ]
    path = write_report(runs)
    assert path == tmp_path / "a" / "comparison.html"
    table = next(
        e
        for e in parsed(path).iter("div")
        if e.get("aria-label", "").startswith("Keys that differ")
    )
    rows = [[text(cell) for cell in row] for row in table.iter("tr")]
    assert [row[0].split()[0] for row in rows] == ["key", "train.lr", "train.ema"]
    assert rows[1][1:] == ["0.0005", "0.002"] and rows[2][1:] == ["[0.99, 0.995]", "[0.9]"]


def test_runs_of_the_same_name_are_labelled_by_their_folders(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / where / "digits") for where in ("monday", "tuesday")]
    shown = report_text(*runs, out=tmp_path / "both.html")
    assert "2 runs monday/digits" in shown and "tuesday/digits" in shown


# The command


def test_the_command_writes_into_the_run_or_to_a_given_file(
    run: Path, tmp_path: Path, jitkit: Command
) -> None:
    for arguments, path in (((), run / "report.html"), (("--out", tmp_path / "x.html"), None)):
        path = path or tmp_path / "x.html"
        for _ in range(2):  # a report may be replaced
            answer = jitkit("report", run, *arguments)
            assert (answer.code, answer.err) == (0, "")
            assert re.fullmatch(rf"report in {re.escape(str(path))} \(0\.\d MB\)\n", answer.out)
        assert parsed(path) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no run is given; name the folder of one, such as runs/digits"),
        (
            ("nowhere",),
            "nowhere is not a run: there is no such folder; give the folder that jitkit",
        ),
        (("empty",), "empty is not a run: it holds no recipe.yaml"),
        (("digits/recipe.yaml",), "digits/recipe.yaml is not a run: it is a file"),
        (("digits", "./digits"), "digits is given twice"),
        (
            ("digits", "--out", "digits/recipe.yaml"),
            "exists and is not a report; choose another",
        ),
        (("digits", "--out", "empty"), "empty is a folder; name a file, such as empty/report.html"),
    ],
)
def test_invalid_arguments_are_refused_and_nothing_is_written(
    run: Path,
    jitkit: Command,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(run.parent)
    Path("empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}
    answer = jitkit("report", *arguments)
    assert (answer.code, answer.out) == (2, "") and message in answer.err
    assert before == {path: path.stat().st_mtime_ns for path in run.parent.rglob("*")}


def test_a_file_that_is_no_report_is_not_replaced(run: Path) -> None:
    (run / "report.html").write_text("<!doctype html><title>notes</title>")
    with pytest.raises(RecipeError, match="exists and is not a report"):
        write_report([run])


def test_a_report_takes_under_three_seconds_without_torch_and_matplotlib(run: Path) -> None:
    code = (
        "import sys; from jitkit.cli import app; "
        f"app(['report', {str(run)!r}], result_action='return_value'); "
        "assert not {'torch', 'matplotlib', 'xarray'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3
