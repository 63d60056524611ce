"""The command line. It loads torch only where a command needs it, after the recipe is checked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from jitkit.errors import ConditionError, JitkitError, RecipeError, Stopped, listed
from jitkit.utils.cpu import settle

Overrides = Annotated[str, Parameter(allow_leading_hyphen=False)]

app = App(
    name="jitkit",
    help="Diffusion models of raw scientific arrays: train, sample and score from a recipe.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` tells of it
)


@app.command
def train(recipe: str, *overrides: Overrides, run: Path | None = None, new: bool = False) -> None:
    """Train what a recipe describes, or go on with it.

    SIGTERM, SIGINT and SIGUSR1 end the run after the step that it is in, saved, with exit code 75.
    On several GPUs or machines: torchrun --nproc-per-node 8 -m jitkit -- train RECIPE.

    Parameters
    ----------
    recipe
        A file, or the bare name of a bundled recipe such as digits.
    overrides
        Keys of the recipe, as train.steps=100.
    run
        The run's folder; runs/NAME of the recipe where not given.
    new
        Start another run beside one that is there.
    """
    from jitkit.domain import open_domain
    from jitkit.recipe.load import load_recipe

    checked = load_recipe(recipe, overrides)
    domain = None
    if os.environ.get("RANK", "0") == "0":  # before torch, which takes seconds
        domain = open_domain(checked.domain)
    from jitkit.training.trainer import train as train_run

    train_run(checked, run=run, new=new, domain=domain)


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
) -> None:
    """Draw samples of a trained model, in the files that its field uses.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample and domain, as sample.guidance=2.0.
    n
        How many.
    out
        Folder for the files, new or empty; one in the run's samples/ where not given.
    cond
        A condition, as label=3, label=0,1,2, label=0-9 or label=none; once for each.
    cond_from
        Real items whose conditions are taken, as val:0-15.
    size
        Cells of samples, where they differ from one to the next: 12, or 9-20 or 5,7,9 in turn; as
        training items had where not given.
    ema
        Decay of the running mean of the weights, or none for the weights themselves.
    first
        Index of the first sample; sample i is the same whatever else is drawn.
    """
    if n < 1:
        raise RecipeError(f"--n {n} must be at least 1")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"--out {out} holds something already; choose a new folder")
    if first < 0:
        raise RecipeError(f"--first {first} must be at least 0")
    pairs = [_pair(word, "--cond") for word in cond or []]
    told = dict(pairs)
    if len(told) < len(pairs):
        raise ConditionError(f"--cond is given twice for {listed(_repeated(pairs))}")
    from jitkit.runs.load import asked, ready
    from jitkit.runs.run_dir import choose_folder
    from jitkit.sampling.generate import generate
    from jitkit.sampling.requests import conditioning_for
    from jitkit.utils.distributed import team

    found, own, recipe, mean = asked(run, overrides, ema)
    near = own / "samples" / f"step-{found.step}-seed-{recipe.sample.seed}"
    folder = out or choose_folder(near.name, near, new=True)
    with team() as ours:
        denoiser, section = ready(recipe, found, mean), recipe.sample
        values = conditioning_for(
            denoiser,
            n,
            told,
            _source(cond_from),
            sizes=_sizes(size),
            seed=section.seed,
            first=first,
        )
        items = generate(denoiser, n, values, section, first=first, progress=True, team=ours)
        if not ours.is_main:
            list(items)  # none, but the samples that rank 0 collects
            return
        files = denoiser.domain.write(items, folder)
    print(f"{n} samples of step {found.step}: {len(files)} files in {folder}")


@app.command
def forecast(
    run: Path,
    *overrides: Overrides,
    init: Annotated[list[str], Parameter(negative="")],
    lead: str,
    out: Path,
    members: int = 1,
    ema: str | None = None,
) -> None:
    """Roll out ensembles: each state that is sampled is what the next one is told.

    States are written as they are made. SIGTERM, SIGINT and SIGUSR1 end the command after the step
    that it is in, with exit code 75; the same command goes on from there, also after a kill.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample and domain, as sample.seed=1.
    init
        Where forecasts start, as the domain names it: 2020-01-01T00, or 2020-01/2020-12/24h (first,
        last, every), or val:16 (so many held-out ones, evenly spread); once for each.
    lead
        How far they go, as 10d.
    out
        The file; it grows as .NAME.part beside its place.
    members
        Of each start. Member m is the same whatever else is asked.
    ema
        Decay of the running mean of the weights, or none for the weights themselves.
    """
    if members < 1:
        raise RecipeError(f"--members {members} must be at least 1")
    from jitkit.runs.checkpoint import mean_named
    from jitkit.runs.load import asked, ready
    from jitkit.sampling.rollout import ForecastRequest
    from jitkit.sampling.rollout import forecast as roll_out
    from jitkit.utils.distributed import team

    found, _, recipe, mean = asked(run, overrides, ema)
    model = {
        "checkpoint": str(found.path),
        "ema": mean or mean_named(found, None),
        "domain": recipe.domain.model_dump(mode="json"),
    }
    with team() as ours:
        denoiser = ready(recipe, found, mean)
        wanted = ForecastRequest(tuple(init), lead, members, model)
        file = roll_out(denoiser, recipe.sample, wanted, out, team=ours)
    if ours.is_main:
        print(file)


@app.command
def evaluate(
    run: Path,
    *overrides: Overrides,
    ema: str | None = None,
    samples: int | None = None,
    sweep: Annotated[list[str] | None, Parameter(negative="")] = None,
    by: str | None = None,
    json: bool = False,
) -> None:
    """Score samples of a trained model with its domain's measures, under one setting or many.

    A sweep may be stopped at any time, and goes on when it is asked for again. The best setting
    that it finds is the run's default from then on (best.yaml in its folder).

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample, evaluate and domain; domain.path=FOLDER says where the
        data lie now.
    ema
        Decay of the running mean of the weights, or none for the weights themselves.
    samples
        How many, in place of evaluate.samples.
    sweep
        A key of section sample, or ema, and its values, as sample.guidance=1:4:0.3 (from, to, step)
        or ema=0.9996,0.9999; once for each key.
    by
        The score by which a sweep chooses; the first distance of the table where not given.
    json
        Print the scores as JSON and nothing else.
    """
    if samples is not None and samples < 1:
        raise RecipeError(f"--samples {samples} must be at least 1")
    if by is not None and not sweep:
        raise RecipeError("--by chooses among the settings of a --sweep, and there is none")
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


def _sweep(run: Path, words: list[str], overrides: Any, *, json: bool, **asked: Any) -> None:
    """Score every setting of a sweep, and print what came of it."""
    from jitkit.evaluation.sweep import score_table, sweep
    from jitkit.utils.console import remark, say

    result = sweep(run, words, overrides, tell=remark if json else say, **asked)
    if os.environ.get("RANK", "0") != "0":
        return
    if json:
        _print_json(result)
        return
    print(score_table(result))
    print(f"table, picture and settings in {result['folder']}; the best is now this run's default "
          f"({result['default']}; delete it to go back to recipe.yaml)")  # fmt: skip


@app.command
def report(*runs: Path, out: Path | None = None) -> None:
    """Write one page of HTML on a run, or on several beside each other.

    What was trained on what, samples, scores, sweeps, curves, recipe and machine. The page needs no
    network and no other file.

    Parameters
    ----------
    runs
        Folders of runs, at work or not.
    out
        File for the page; report.html in the run's folder where not given, or comparison.html in
        the first one's where there are several.
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
    """Say what a recipe makes and what it costs, take two real steps, and train nothing.

    Parameters
    ----------
    recipe
        A file, or the bare name of a bundled recipe.
    overrides
        Keys of the recipe, as model.size=L.
    memory
        Memory of each process, as 24GiB: the largest batch that fits is named.
    processes
        How many would train together.
    step
        Take two real steps where the data are there and the memory is enough.
    json
        Print one JSON object and nothing else.
    """
    from jitkit.recipe.load import dump_recipe, load_recipe

    checked = load_recipe(recipe, overrides)
    from jitkit.nn.memory import parse_bytes
    from jitkit.training.dry_run import check as look

    report = look(checked, memory=parse_bytes(memory) if memory else None, processes=processes)
    found = dict(report.found)
    if step and not report.problems and processes == 1:
        found |= _rehearsed(checked, found)
    if json:
        _print_json(found | {"problems": report.problems})
    else:
        print(dump_recipe(checked))
        for key, value in found.items():
            print(f"{key}: {_shown(value)}")
    if report.problems:
        raise RecipeError("\n".join(report.problems))


def _rehearsed(recipe: Any, found: dict[str, Any]) -> dict[str, Any]:
    """What two real steps took; why there were none where memory is short."""
    from jitkit.domain import open_domain
    from jitkit.training.step import rehearse

    if found["memory_gib"] > found["memory_free_gib"]:
        return {"step": "none was taken: it needs more memory than is free"}
    return rehearse(recipe, open_domain(recipe.domain))


@app.command
def ema(run: Path, *, sigma_rel: float, step: int | None = None) -> None:
    """Make the mean of the weights of any width after training (Karras et al. 2023, post-hoc EMA).

    The run must have kept power-function means: train.ema_sigma_rel=[0.05, 0.1]. Use the mean with
    --ema sigma-0.1 of sample and evaluate.

    Parameters
    ----------
    run
        A run's folder.
    sigma_rel
        Width of the mean, as a share of the training that it averages over.
    step
        The last step that it may hold; the newest snapshot's where not given.
    """
    from jitkit.optim.posthoc_ema import describe, write_reconstructed

    print(describe(write_reconstructed(run, sigma_rel, step)))


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
    """Look at a file or store of arrays, and propose a recipe that trains on it.

    Parameters
    ----------
    data
        Zarr store, NetCDF file or a pattern of them in quotes, HDF5, .npy, .npz, or an address.
    out
        File for the recipe; it must not be there yet.
    group
        Group inside a Zarr store or an HDF5 file.
    option
        For addresses, as anonymous=true; once for each.
    domain
        The adapter that looks.
    json
        Print one JSON object and nothing else.
    """
    import yaml

    from jitkit.domain import domain_class
    from jitkit.runs.run_dir import write_text

    if out is not None and out.exists():
        raise RecipeError(f"--out {out} exists already; choose another name")
    look = getattr(domain_class(domain), "inspect", None)
    if look is None:
        raise RecipeError(f"domain {domain!r} cannot inspect data; arrays can")
    pairs = [_pair(word, "--option") for word in option or []]
    options = {key: yaml.safe_load(value) for key, value in pairs}
    found = look(data, group=group, options=options)
    if out is not None:
        write_text(out, found.text())
    if json:
        _print_json(found.plain())
        return
    _show_proposal(found)
    if out is not None:
        print(f"\nrecipe in {out}; train with: jitkit train {out}")


def _show_proposal(found: Any) -> None:
    """A table of the variables, then what was guessed."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("variable", "dimensions", "chunks", "type", "units", "missing", "range", "role"):
        shown.add_column(title, overflow="fold")
    for row in found.rows:
        dims = " x ".join(f"{name} {size}" for name, size in row.dims.items())
        chunks = " x ".join(map(str, row.chunks))
        missing = "" if row.missing is None else f"{100 * row.missing:.3g} %"
        low_high = "" if row.low is None else f"{row.low:.4g} to {row.high:.4g}"
        shown.add_row(row.name, dims, chunks, row.dtype, row.units, missing, low_high, row.role)
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    print()
    for line in found.reasons:
        print(line)
    for warning in found.warnings:
        print(f"warning: {warning}")
    if found.unsure:
        print("\nunsure of:")
        for what, override in found.unsure:
            print(f"  {what}: {override}")


@app.command
def fetch(recipe: str, *overrides: Overrides, to: Path) -> None:
    """Copy what a recipe reads of a bucket, or of any other store, to disk.

    Variables, levels, times and maps of the recipe and no more, in chunks that suit training. A
    copy that was stopped goes on with the same command; one that is whole is checked, and parts of
    it that are damaged are fetched again.

    Parameters
    ----------
    recipe
        A file, or the bare name of a bundled recipe.
    overrides
        Keys of the recipe, as domain.lead=12h.
    to
        Folder for the copy, new or begun by this command.
    """
    from jitkit.domain import domain_class
    from jitkit.protocols import Fetchable
    from jitkit.recipe.load import load_recipe

    section = load_recipe(recipe, overrides).domain
    domain = domain_class(section.name)(section)
    if not isinstance(domain, Fetchable):
        raise RecipeError(
            f"domain {section.name!r} copies no data; put them where its keys point by other means"
        )
    found = domain.fetch(to)
    print(f"copied to {to}; train on it with: jitkit train {recipe} {' '.join(found)}")


@app.command
def domains() -> None:
    """List the kinds of data that are installed."""
    from jitkit.domain import domain_class, installed

    for name, point in installed().items():
        about = (domain_class(name).__doc__ or "").strip().splitlines()[0]
        print(f"{name:12} {about} ({point.value})")


@app.command(name="import")
def import_(
    checkpoint: Path,
    *,
    run: Path | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
    noise_scale: float | None = None,
) -> None:
    """Write a checkpoint of the authors' code (JiT) as a run that sample and evaluate use.

    Parameters
    ----------
    checkpoint
        A .pth file of the authors' code; no code in it is run.
    run
        The run's folder; runs/NAME of the file where not given.
    in_context_start
        The block before which in-context tokens join; by the model's size where not given.
    weights
        Entry of the file: model_ema1, model_ema2 or model; the first there where not given.
    noise_scale
        Standard deviation of the noise it was trained on; by the size of its pictures where not
        given.
    """
    from jitkit.runs.official import import_official

    folder = import_official(
        checkpoint,
        run or Path("runs") / checkpoint.stem,
        in_context_start=in_context_start,
        weights=weights,
        noise_scale=noise_scale,
    )
    print(f"imported into {folder}; draw pictures with: jitkit sample {folder} --cond label=0-9")


def main() -> None:
    """Run the command line: exit code 0 when done, 2 for a user's mistake, 1 for ours.

    75 after a signal, when all is saved and the same command goes on (EX_TEMPFAIL).
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
    os._exit(code)  # threads of gloo abort a process that takes itself apart, now and then


def _run() -> None:
    settle()
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (JitkitError, CycloptsError, OSError) as error:  # OSError: a full disk, no permission
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
    name, sign, value = word.partition("=")
    if not sign or not name or not value:
        raise ConditionError(f"{option} {word!r}: expected name=value, such as label=3")
    return name, value


def _source(text: str | None) -> tuple[str, list[int]] | None:
    """``val:0-15`` as (split, indices)."""
    if text is None:
        return None
    from jitkit.sampling.requests import parse_indices

    split, _, words = text.partition(":")
    indices = parse_indices(words) if words else []
    if split not in ("train", "val") or indices is None:
        raise ConditionError(
            f"--cond-from {text!r}: expected a split and indices, such as val:0-15"
        )
    return split, indices


def _sizes(text: str | None) -> list[int] | None:
    """``9-20`` as sizes of samples."""
    if text is None:
        return None
    from jitkit.sampling.requests import parse_indices

    sizes = parse_indices(text)
    if sizes is None:
        raise ConditionError(f"--size {text!r}: expected cells of samples, such as 12 or 9-20")
    return sizes


def _shown(value: Any) -> str:
    match value:
        case int() if not isinstance(value, bool):
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{key} {_shown(v)}" for key, v in value.items()) or "none"
        case list():
            return ", ".join(_shown(v) for v in value)
    return str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


if __name__ == "__main__":
    main()
