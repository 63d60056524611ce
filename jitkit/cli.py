"""Command line. Commands load torch only if they need it, after the recipe is validated."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from jitkit.errors import ConditionError, JitkitError, RecipeError, Stopped, listed
from jitkit.utils.cpu import configure_process

Overrides = Annotated[str, Parameter(allow_leading_hyphen=False)]

app = App(
    name="jitkit",
    help="Diffusion models of raw scientific arrays: train, sample and score from a recipe.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # handled in `_run`
)


@app.command
def train(recipe: str, *overrides: Overrides, run: Path | None = None, new: bool = False) -> None:
    """Train a model from a recipe, or resume its run.

    SIGTERM, SIGINT and SIGUSR1 save the run after the current step and end it with exit code 75.
    On several GPUs or machines: torchrun --nproc-per-node 8 -m jitkit -- train RECIPE.

    Parameters
    ----------
    recipe
        A file, or the name of a bundled recipe such as digits.
    overrides
        Keys of the recipe, as train.steps=100.
    run
        Folder of the run; runs/NAME of the recipe by default.
    new
        Start another run in a new folder if one exists.
    """
    from jitkit.recipe.load import load_recipe
    from jitkit.registry import open_domain

    loaded = load_recipe(recipe, overrides)
    domain = None
    if os.environ.get("RANK", "0") == "0":  # before importing torch, which takes seconds
        domain = open_domain(loaded.domain)
    from jitkit.training.trainer import train as train_run

    train_run(loaded, run=run, new=new, domain=domain)


@app.command
def sample(
    run: Path,
    *overrides: Overrides,
    n: int = 16,
    out: Path | None = None,
    cond: Annotated[list[str] | None, Parameter(negative="")] = None,
    cond_from: str | None = None,
    size: str | None = None,
    ema: str | None = None,
    first: int = 0,
    domain: str | None = None,
) -> None:
    """Generate samples from a trained model, in the file format of its domain.

    Parameters
    ----------
    run
        Folder of a run, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample and domain, as sample.guidance=2.0.
    n
        Number of samples.
    out
        Folder for the files, new or empty; a folder in the run's samples/ by default.
    cond
        A condition, as label=3, label=0,1,2, label=0-9 or label=none; may be repeated.
    cond_from
        Real items whose conditions are used, as val:0-15.
    size
        Cells of variable-size samples: 12, or 9-20 or 5,7,9 in turn; by default drawn from the
        sizes of training items.
    ema
        Decay of the EMA of the weights, or none for the weights without EMA.
    first
        Index of the first sample; sample i does not depend on n or first.
    domain
        Class my_module:MyDomain in the working folder, if the recipe of the run named it.
    """
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out {out} is not an empty folder; choose a new folder")
    pairs = [_pair(word, "--cond") for word in cond or []]
    if len(dict(pairs)) < len(pairs):
        raise ConditionError(f"--cond is given twice for {listed(_repeated(pairs))}")
    _import_code(domain)
    from jitkit.runs.run_dir import choose_folder
    from jitkit.sampling.run import OpenedRun, SampleRequest
    from jitkit.utils.distributed import team

    request = SampleRequest(n, dict(pairs), cond_from, size, first)
    opened = OpenedRun.open(run, overrides, ema)
    step, seed = opened.checkpoint.step, opened.recipe.sample.seed
    default = opened.folder / "samples" / f"step-{step}-seed-{seed}"
    folder = out or choose_folder(default.name, default, new=True)
    with team() as group:
        denoiser = opened.load()
        items = opened.samples(denoiser, request, ranks=group)
        if not group.is_main:
            list(items)  # yields nothing here, but generates the samples that rank 0 collects
            return
        files = denoiser.domain.write(items, folder)
    print(f"{n} samples of step {step}: {len(files)} files in {folder}")


@app.command
def forecast(
    run: Path,
    *overrides: Overrides,
    init: Annotated[list[str], Parameter(negative="")],
    lead: str,
    out: Path,
    members: int = 1,
    ema: str | None = None,
    domain: str | None = None,
) -> None:
    """Autoregressive ensemble forecasts: each sampled state conditions the next.

    States are written as they are generated. SIGTERM, SIGINT and SIGUSR1 end the command after the
    current step with exit code 75; the same command resumes the forecast, also after a kill.

    Parameters
    ----------
    run
        Folder of a run, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample and domain, as sample.seed=1.
    init
        Initialization times in the domain's notation: 2020-01-01T00, or 2020-01/2020-12/24h (first,
        last, interval), or val:16 (16 evenly spaced validation times); may be repeated.
    lead
        Lead time, as 10d.
    out
        Output file; written as .NAME.part in the same folder until it is complete.
    members
        Ensemble members per start; member m does not depend on their number.
    ema
        Decay of the EMA of the weights, or none for the weights without EMA.
    domain
        Class my_module:MyDomain in the working folder, if the recipe of the run named it.
    """
    _import_code(domain)
    from jitkit.sampling.run import OpenedRun
    from jitkit.utils.distributed import team

    opened = OpenedRun.open(run, overrides, ema)
    with team() as group:
        summary = opened.forecast(init, lead, members, out, ranks=group)
    if group.is_main:
        print(summary)


@app.command
def evaluate(
    run: Path,
    *overrides: Overrides,
    ema: str | None = None,
    samples: int | None = None,
    sweep: Annotated[list[str] | None, Parameter(negative="")] = None,
    by: str | None = None,
    domain: str | None = None,
    json: bool = False,
) -> None:
    """Score samples of a trained model with the metrics of its domain, for one setting or a sweep.

    A sweep may be stopped at any time; the same command resumes it. Its best setting becomes the
    default of the run (best.yaml in its folder).

    Parameters
    ----------
    run
        Folder of a run, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample, evaluate and domain, as domain.path=FOLDER for data
        that have moved.
    ema
        Decay of the EMA of the weights, or none for the weights without EMA.
    samples
        Number of samples, in place of evaluate.samples.
    sweep
        A key of section sample, or ema, and its values, as sample.guidance=1:4:0.3 (from, to, step)
        or ema=0.9996,0.9999; may be repeated for more keys.
    by
        Metric that selects the best setting; by default the first distance of the table.
    domain
        Class my_module:MyDomain in the working folder, if the recipe of the run named it.
    json
        Print the scores as JSON and nothing else.
    """
    if samples is not None and samples < 1:
        raise RecipeError(f"--samples {samples} must be at least 1")
    if by is not None and not sweep:
        raise RecipeError("--by chooses among the settings of a --sweep, and there is none")
    _import_code(domain)
    if sweep:
        _sweep(run, sweep, overrides, ema=ema, samples=samples, by=by, json=json)
        return
    from jitkit.evaluation.evaluate import score_table
    from jitkit.evaluation.run import evaluate as score

    result = score(run, overrides, ema=ema, samples=samples)
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        _print_json(result)
    else:
        print(score_table(result))


def _sweep(run: Path, axes: list[str], overrides: Any, *, json: bool, **options: Any) -> None:
    """Score every setting of a sweep, and print the results."""
    from jitkit.evaluation.sweep import sweep, sweep_table
    from jitkit.utils.console import remark, say

    result = sweep(run, axes, overrides, show=remark if json else say, **options)
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        _print_json(result)
        return
    print(sweep_table(result))
    print(f"table, plot and settings in {result['folder']}; the best is now this run's default "
          f"({result['default']}; delete it to return to recipe.yaml)")  # fmt: skip


@app.command
def report(*runs: Path, out: Path | None = None) -> None:
    """Write an HTML report of one run, or of several side by side.

    It shows model, data, samples, scores, sweeps, curves, recipe and machine. The page is a single
    file and needs no network.

    Parameters
    ----------
    runs
        Folders of runs, also of unfinished ones.
    out
        Output file; by default report.html in the run's folder, or comparison.html in the folder
        of the first of several.
    """
    from jitkit.report.page import write_report

    path = write_report(runs, out)
    print(f"report in {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command
def check(
    recipe: str,
    *overrides: Overrides,
    memory: str | None = None,
    processes: int = 1,
    step: bool = True,
    json: bool = False,
) -> None:
    """Dry run of a recipe: model size, cost, memory and two real steps, without training.

    Parameters
    ----------
    recipe
        A file, or the name of a bundled recipe.
    overrides
        Keys of the recipe, as model.size=L.
    memory
        Memory per process, as 24GiB; the largest batch that fits is printed.
    processes
        Number of processes that would train together.
    step
        Take two real steps if the data are available and the memory suffices.
    json
        Print one JSON object and nothing else.
    """
    from jitkit.recipe.load import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides)
    from jitkit.nn.memory import parse_bytes
    from jitkit.training.dry_run import check as dry_run

    report = dry_run(loaded, memory=parse_bytes(memory) if memory else None, processes=processes)
    summary = dict(report.summary)
    if step and not report.problems and processes == 1:
        summary |= _two_steps(loaded, summary)
    if json:
        _print_json(summary | {"problems": report.problems})
    else:
        print(dump_recipe(loaded))
        for key, value in summary.items():
            print(f"{key}: {_formatted(value)}")
    if report.problems:
        raise RecipeError("\n".join(report.problems))


def _two_steps(recipe: Any, summary: dict[str, Any]) -> dict[str, Any]:
    """Time and memory of two real steps, or the reason why they were not taken."""
    from jitkit.registry import open_domain
    from jitkit.training.step import run_two_steps

    if summary["memory_gib"] > summary["memory_free_gib"]:
        return {"step": "not taken: it needs more memory than is free"}
    return run_two_steps(recipe, open_domain(recipe.domain))


@app.command
def ema(run: Path, *, sigma_rel: float, step: int | None = None) -> None:
    """Reconstruct an EMA of any width after training (post-hoc EMA, Karras et al. 2023).

    The run must have stored power-function EMAs: train.ema_sigma_rel=[0.05, 0.1]. Use the result
    with --ema sigma-0.1 of sample and evaluate.

    Parameters
    ----------
    run
        Folder of a run.
    sigma_rel
        Width of the EMA, relative to the length of the training.
    step
        Last step of the EMA; by default that of the newest snapshot.
    """
    from jitkit.optim.posthoc_ema import reconstruction_summary, write_reconstructed

    print(reconstruction_summary(write_reconstructed(run, sigma_rel, step)))


@app.command
def inspect(
    data: str,
    *,
    out: Path | None = None,
    group: str | None = None,
    option: Annotated[list[str] | None, Parameter(negative="")] = None,
    domain: str = "arrays",
    json: bool = False,
) -> None:
    """Inspect a file or store of arrays, and propose a recipe to train on it.

    Parameters
    ----------
    data
        Zarr store, NetCDF file or a quoted pattern of files, HDF5, .npy, .npz, or a URL.
    out
        File for the recipe; it must not exist yet.
    group
        Group inside a Zarr store or an HDF5 file.
    option
        Option of a remote store, as anonymous=true; may be repeated.
    domain
        Adapter that inspects the data.
    json
        Print one JSON object and nothing else.
    """
    import yaml

    from jitkit.registry import inspect as inspect_data
    from jitkit.runs.run_dir import write_text

    if out is not None and out.exists():
        raise RecipeError(f"--out {out} exists already; choose another name")
    pairs = [_pair(word, "--option") for word in option or []]
    options = {key: yaml.safe_load(value) for key, value in pairs}
    proposal = inspect_data(data, group=group, options=options, domain=domain)
    if out is not None:
        write_text(out, proposal.text())
    if json:
        _print_json(proposal.plain())
        return
    _show_proposal(proposal)
    if out is not None:
        print(f"\nrecipe in {out}; train with: jitkit train {out}")


def _show_proposal(proposal: Any) -> None:
    """Print a table of the variables, then the guesses."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("variable", "dimensions", "chunks", "type", "units", "missing", "range", "role"):
        table.add_column(title, overflow="fold")
    for row in proposal.rows:
        dims = " x ".join(f"{name} {size}" for name, size in row.dims.items())
        chunks = " x ".join(map(str, row.chunks))
        missing = "" if row.missing is None else f"{100 * row.missing:.3g} %"
        low_high = "" if row.low is None else f"{row.low:.4g} to {row.high:.4g}"
        table.add_row(row.name, dims, chunks, row.dtype, row.units, missing, low_high, row.role)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print()
    for line in proposal.reasons:
        print(line)
    for warning in proposal.warnings:
        print(f"warning: {warning}")
    if proposal.unsure:
        print("\nunsure of:")
        for what, override in proposal.unsure:
            print(f"  {what}: {override}")


@app.command
def fetch(recipe: str, *overrides: Overrides, to: Path) -> None:
    """Download the data of a recipe from a bucket or another store to disk.

    Only the variables, levels, times and maps of the recipe are copied, chunked for training. The
    same command resumes an interrupted copy; a complete one is verified, and damaged parts are
    downloaded again.

    Parameters
    ----------
    recipe
        A file, or the name of a bundled recipe.
    overrides
        Keys of the recipe, as domain.lead=12h.
    to
        Folder for the copy, new or created by this command.
    """
    from jitkit.protocols import Fetchable
    from jitkit.recipe.load import load_recipe
    from jitkit.registry import domain_class

    section = load_recipe(recipe, overrides).domain
    domain = domain_class(section.name)(section)
    if not isinstance(domain, Fetchable):
        raise RecipeError(
            f"domain {section.name!r} cannot copy data; place them where its keys point"
        )
    local = domain.fetch(to)
    print(f"copied to {to}; train on it with: jitkit train {recipe} {' '.join(local)}")


@app.command
def domains() -> None:
    """List the installed domains (kinds of data)."""
    from jitkit.registry import domain_class, installed

    for name, point in installed().items():
        about = (domain_class(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:12} {about} ({point.value})")


@app.command
def recipes(*, json: bool = False) -> None:
    """List the bundled recipes by the name or path that other commands take.

    Parameters
    ----------
    json
        Print one JSON object and nothing else.
    """
    from jitkit.recipe.load import recipe_titles

    titles = recipe_titles()
    if json:
        _print_json(titles)
        return
    names = [name for name in titles if not name.endswith(".yaml")]
    for group in (names, [path for path in titles if path not in names]):
        width = max(map(len, group), default=0)
        for name in group:
            print(f"{name:{width}} {titles[name]}")


@app.command(name="import")
def import_(
    checkpoint: Path,
    *,
    run: Path | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
    noise_scale: float | None = None,
) -> None:
    """Convert a checkpoint of the official JiT code to a run for sample and evaluate.

    Parameters
    ----------
    checkpoint
        A .pth file of the official code; no code in it is run.
    run
        Folder of the run; runs/NAME of the file by default.
    in_context_start
        Block before which in-context tokens are added; by default that of the model's size.
    weights
        Entry of the file: model_ema1, model_ema2 or model; by default the first that exists.
    noise_scale
        Standard deviation of the noise in training; by default that of the image size.
    """
    from jitkit.runs.official import import_official

    folder = import_official(
        checkpoint,
        run or Path("runs") / checkpoint.stem,
        in_context_start=in_context_start,
        weights=weights,
        noise_scale=noise_scale,
    )
    print(f"imported into {folder}; generate images with: jitkit sample {folder} --cond label=0-9")


def main() -> None:
    """Run the command line. Exit codes: 0 success, 2 user error, 1 internal error.

    75 (EX_TEMPFAIL) after a signal: everything is saved and the same command resumes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        _run()
        return
    os.environ["JITKIT_COMMAND"] = "1"
    code = 0
    try:
        _run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # on normal exit gloo's threads sometimes abort the process


def _run() -> None:
    configure_process()
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (JitkitError, CycloptsError, OSError) as error:  # OSError: disk full, no permission
        print(f"jitkit: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"jitkit: {stopped}", file=sys.stderr)
        sys.exit(75)
    except KeyboardInterrupt:
        print("jitkit: interrupted", file=sys.stderr)
        sys.exit(130)


def _repeated(pairs: list[tuple[str, str]]) -> list[str]:
    names = [name for name, _ in pairs]
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def _pair(word: str, option: str) -> tuple[str, str]:
    """``label=3`` as (name, value)."""
    name, sign, value = word.partition("=")
    if not sign or not name or not value:
        raise ConditionError(f"{option} {word!r}: expected name=value, such as label=3")
    return name, value


def _import_code(domain: str | None) -> None:
    """Import a domain's class that the user names, so that a run may use it."""
    if domain is not None:
        from jitkit.registry import import_domain

        import_domain(domain, [Path.cwd()])


def _formatted(value: Any) -> str:
    match value:
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{key} {_formatted(v)}" for key, v in value.items()) or "none"
        case list():
            return ", ".join(_formatted(v) for v in value)
    return str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
