"""`jitkit report`: one or several runs as one self-contained HTML page.

folders ─ folder, curves ─▶ Run ─┬ charts ─▶ charts   ┐
                                 ├ images ─▶ samples  ├─ page.html ─▶ page
                                 └ scores ─▶ scores   ┘
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from os.path import commonpath
from pathlib import Path

from jitkit import __version__
from jitkit.errors import RecipeError
from jitkit.report.charts import Chart, Line, chart
from jitkit.report.curves import BINS, Curve, smooth
from jitkit.report.folder import RecipeKey, Run, metrics_bytes, open_run, without_secrets
from jitkit.report.images import EmbeddedImage, embed_previews
from jitkit.report.scores import embed_figures, score_groups, sweep_views
from jitkit.report.text import key_figures, machine_info, model_summary, state_text
from jitkit.runs.run_dir import write_text
from jitkit.utils.console import Bar, bar

MARK = '<meta name="generator" content="jitkit report">'
IMAGE_BYTES = 3_000_000  # of all images of a page; 4 MB in base64
COLOURS = 6  # of runs; further runs reuse them with dashes


@dataclass(frozen=True, kw_only=True)
class PageView:
    """A run, and what the page shows of it."""

    run: Run
    label: str
    colour: str
    model_summary: str
    state: str
    state_text: str
    figures: dict[str, str]
    machine: dict[str, str]
    previews: list[EmbeddedImage]
    extra: list[tuple[str, EmbeddedImage]]
    notes: list[str]


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write a page on one run, or on several side by side, and return its path.

    Args:
        runs: folders of runs, running or not.
        out: the file; default ``report.html`` in the run's folder, or ``comparison.html`` in the
            first run's folder for several runs. An existing report is replaced.

    Raises:
        RecipeError: a folder is not a run or is given twice, or ``out`` is not a report.
    """
    if not runs:
        raise RecipeError("no run is given; name the folder of one, such as runs/digits")
    real = [run.resolve() for run in runs]
    for run, path in zip(runs, real, strict=True):
        if real.count(path) > 1:
            raise RecipeError(f"{run} is given twice")
    if out is not None:
        _check_free(out)
    with bar("reading", sum(map(metrics_bytes, runs)), unit="bytes") as show:
        done, opened = 0, []
        for run in runs:
            opened.append(open_run(run, partial(_show_progress, show, done)))
            done += metrics_bytes(run)
    name = "report.html" if len(opened) == 1 else "comparison.html"
    path = out or opened[0].folder / name
    _check_free(path)
    write_text(path, page(opened))
    return path


def _show_progress(show: Bar, before: int, done: int) -> None:
    """Show the bytes read of all runs, given those of the current one."""
    show(before + done)


def page(runs: Sequence[Run]) -> str:
    """The page on runs that have been read, as HTML."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script = (folder / "page.js").read_text(encoding="utf-8")
    views = [_view(run, k, label, len(runs)) for k, (run, label) in enumerate(_labelled(runs))]
    html = templates.get_template("page.html").render(
        mark=MARK,
        style=(folder / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),
        title=_title(views),
        views=views,
        figures=list(dict.fromkeys(name for view in views for name in view.figures)),
        machine=list(dict.fromkeys(name for view in views for name in view.machine)),
        scores=score_groups([(view.label, view.colour, view.run.evaluation) for view in views]),
        sweeps=[(view, sweep) for view in views for sweep in sweep_views(view.run.sweeps)],
        charts=list(_loss_charts(views)),
        more_charts=list(_other_charts(views)),
        differing=_differing(views) if len(views) > 1 else [],
        version=__version__,
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    return html.lstrip() + "\n"


def _check_free(path: Path) -> None:
    """Raise a RecipeError if a path exists and is not a report."""
    if path.is_dir():
        raise RecipeError(f"--out {path} is a folder; name a file, such as {path / 'report.html'}")
    if path.is_file():
        with path.open("rb") as file:
            ours = MARK.encode() in file.read(1000)
        if not ours:
            raise RecipeError(f"--out {path} exists and is not a report; choose another name")


def _title(views: Sequence[PageView]) -> str:
    if len(views) == 1:
        return views[0].label
    names = [view.label for view in views]
    return f"{len(names)} runs: {', '.join(names)}"


def _labelled(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    """Each run with its folder's name, or with as much of its path as makes it unique."""
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        yield from zip(runs, names, strict=True)
        return
    real = [run.folder.resolve() for run in runs]
    base = commonpath(real)
    for run, path in zip(runs, real, strict=True):
        yield run, str(path.relative_to(base)) if path != Path(base) else path.name


def _view(run: Run, index: int, label: str, total: int) -> PageView:
    lowest = run.losses.lowest.get("val_loss")
    budget = IMAGE_BYTES // total
    previews, notes = embed_previews(run.folder, lowest.step if lowest else None, budget * 3 // 4)
    extra, more_notes = embed_figures(run.folder, run.evaluation, budget // 4)
    state = str(run.status.get("state", "unknown"))
    return PageView(
        run=run,
        label=label,
        colour=f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else ""),
        model_summary=model_summary(run),
        state=state if state in ("done", "running", "stopped", "failed") else "unknown",
        state_text=state_text(run, state),
        figures=dict(key_figures(run)),
        machine=dict(machine_info(run)),
        previews=previews,
        extra=extra,
        notes=[without_secrets(note) for note in (*run.notes, *notes, *more_notes)],
    )


def _differing(views: Sequence[PageView]) -> list[tuple[str, str, list[str]]]:
    """Keys whose values differ between the runs: name, meaning, and the value of each run."""
    recipes = [{key.name: key for key in view.run.recipe} for view in views]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    rows = []
    for name in names:
        keys: list[RecipeKey | None] = [recipe.get(name) for recipe in recipes]
        values = ["absent" if key is None else key.value for key in keys]
        if len(set(values)) > 1:
            rows.append((name, next(key.meaning for key in keys if key), values))
    return rows


# Charts


def _loss_charts(views: Sequence[PageView]) -> Iterator[Chart]:
    """Validation and training loss of all runs, and validation loss against t."""
    smoothing: list[int] = []
    validation = [_measured(view, "val_loss") for view in views]
    training = [_smooth(view, "loss", smoothing) for view in views]
    profiles = _profiles(views[0]) if len(views) == 1 else [_profile(view) for view in views]
    yield from _present(
        chart(
            "Validation loss",
            validation,
            about="Of the first EMA of the weights, on fixed noise and times, "
            "so that runs can be compared",
        ),
        chart("Training loss", training, about=_smoothing(smoothing)),
        chart(
            "Validation loss against time",
            profiles,
            about="The last one of each run" if len(views) > 1 else "During training",
            x_label="t, from noise (0) to data (1)",
        ),
    )


def _other_charts(views: Sequence[PageView]) -> Iterator[Chart]:
    """Losses per time bin, gradient norm, learning rate and speed."""
    for view in views:
        of = f" of {view.label}" if len(views) > 1 else ""
        smoothing: list[int] = []
        bins = [(k, f"t {k / BINS:g} to {(k + 1) / BINS:g}") for k in range(BINS)]
        curve = view.run.losses.curves.curve
        validation = [_points(curve(f"val_loss_bins/{k}"), name, f"t{k}") for k, name in bins]
        training = [_line(view.run, f"loss_bins/{k}", name, f"t{k}", smoothing) for k, name in bins]
        about = "Time t is 0 for noise and 1 for data"
        yield from _present(
            chart(f"Validation loss per time bin{of}", validation, about=about),
            chart(
                f"Training loss per time bin{of}",
                training,
                about=f"{about}. {_smoothing(smoothing, faint=False)}",
            ),
        )
    smoothing = []
    gradients = [_smooth(view, "gradient", smoothing) for view in views]
    rates = [_unsmoothed(view, "lr") for view in views]
    speeds = [_unsmoothed(view, "samples_per_second", speed=True) for view in views]
    yield from _present(
        chart("Gradient norm", gradients, about=_smoothing(smoothing)),
        chart("Learning rate", rates, about="According to the schedule", log=False),
        chart("Speed", speeds, about="Samples per second", log=False),
    )


def _present(*charts: Chart | None) -> Iterator[Chart]:
    return (each for each in charts if each is not None)


def _smoothing(windows: Sequence[int], *, faint: bool = True) -> str:
    """How the lines of a chart were smoothed, from their windows."""
    if not windows or max(windows) == 1:
        return "Every step"
    low, high = min(windows), max(windows)
    steps = f"{high:,}" if low == high else f"{low:,} to {high:,}"
    behind = "; behind it, faint, the unsmoothed values" if faint else ""
    return f"Moving average over {steps} steps{behind}"


def _line(run: Run, name: str, label: str, colour: str, smoothing: list[int]) -> Line:
    """A smoothed series of the losses."""
    curve = run.losses.curves.curve(name)
    means, window = smooth(curve, run.losses.last_step)
    smoothing.append(window)
    return Line(label, colour, curve.step.tolist(), means.tolist())


def _points(curve: Curve, label: str, colour: str) -> Line:
    dots = len(curve.step) <= 60
    return Line(label, colour, curve.step.tolist(), curve.mean.tolist(), dots=dots)


def _measured(view: PageView, name: str) -> Line:
    return _points(view.run.losses.curves.curve(name), view.label, view.colour)


def _smooth(view: PageView, name: str, smoothing: list[int]) -> Line:
    """A smoothed series, with its unsmoothed means and its extremes behind it."""
    curve = view.run.losses.curves.curve(name)
    means, window = smooth(curve, view.run.losses.last_step)
    smoothing.append(window)
    band = (curve.low.tolist(), curve.high.tolist()) if (curve.count > 1).any() else ([], [])
    return Line(
        view.label,
        view.colour,
        curve.step.tolist(),
        means.tolist(),
        faint=curve.mean.tolist(),
        low=band[0],
        high=band[1],
    )


def _unsmoothed(view: PageView, name: str, *, speed: bool = False) -> Line:
    curve = (view.run.speed if speed else view.run.losses).curves.curve(name)
    return Line(view.label, view.colour, curve.step.tolist(), curve.mean.tolist())


def _profile(view: PageView) -> Line:
    """The last validation loss in each bin of t."""
    final = view.run.losses.final
    bins = [
        (k + 0.5, final[f"val_loss_bins/{k}"]) for k in range(BINS) if f"val_loss_bins/{k}" in final
    ]
    x, y = [k / BINS for k, _ in bins], [point.value for _, point in bins]
    return Line(view.label, view.colour, x, y, dots=True)


def _profiles(view: PageView) -> list[Line]:
    """Validation loss in each bin of t at the first, a middle and the last validation."""
    curves = [view.run.losses.curves.curve(f"val_loss_bins/{k}") for k in range(BINS)]
    shortest = min(len(curve.step) for curve in curves)
    x = [(k + 0.5) / BINS for k in range(BINS)]
    indices = sorted({0, shortest // 2, shortest - 1}) if shortest else []
    return [
        Line(
            f"step {curves[0].step[i]:,.0f}",
            colour,
            x,
            [float(curve.mean[i]) for curve in curves],
            dots=True,
        )
        for i, colour in zip(indices, ("t1", "t5", "t9")[3 - len(indices) :], strict=True)
    ]
