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
    from jitkit.recipe import load_recipe

    checked = load_recipe(recipe, overrides)
    domain = None
    if os.environ.get("RANK", "0") == "0":  # before torch, which takes seconds
        domain = open_domain(checked.domain)
    from jitkit.trainer import train as train_run

    train_run(checked, run=run, new=new, domain=domain)


@app.command
def sample(
    run: Path,
    *overrides: Overrides,
    n: int = 16,
    out: Path | None = None,
    cond: Annotated[list[str] | None, Parameter(negative="")] = None,
    cond_from: str | None = None,
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
    from jitkit.generate import conditions_for, generate
    from jitkit.parallel import team
    from jitkit.run import choose_folder

    found = _found(run)
    recipe = _settings(_folder_of(found.path), overrides)
    near = _folder_of(found.path) / "samples" / f"step-{found.step}-seed-{recipe.sample.seed}"
    folder = out or choose_folder(near.name, near, new=True)
    with team() as ours:
        denoiser, section = _ready(recipe, found, ema), recipe.sample
        values = conditions_for(denoiser, n, told, _source(cond_from))
        items = generate(denoiser, n, values, section, first=first, progress=True, team=ours)
        if not ours.leads:
            list(items)  # none, but the samples that rank 0 collects
            return
        files = denoiser.domain.write(items, folder)
    print(f"{n} samples of step {found.step}: {len(files)} files in {folder}")


@app.command
def evaluate(run: Path, *overrides: Overrides, ema: str | None = None, json: bool = False) -> None:
    """Score samples of a trained model with its domain's measures.

    Parameters
    ----------
    run
        A run's folder, or one of its checkpoints/step-N.
    overrides
        Keys of the recipe's sections sample, evaluate and domain; domain.path=FOLDER says where the
        data lie now.
    ema
        Decay of the running mean of the weights, or none for the weights themselves.
    json
        Print the scores as JSON and nothing else.
    """
    from jitkit.evaluate import evaluate as score
    from jitkit.evaluate import table
    from jitkit.parallel import team

    found = _found(run)
    folder = _folder_of(found.path)
    recipe = _settings(folder, overrides)
    model = {"step": found.step, "ema": ema or [*found.means, "none"][0]}
    with team() as ours:
        denoiser = _ready(recipe, found, ema)
        sampling, section = recipe.sample, recipe.evaluate
        result = score(denoiser, sampling, section, folder, model=model, team=ours)
    if not ours.leads:
        return
    if json:
        _print_json(result)
    else:
        print(table(result))


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
    from jitkit.recipe import dump_recipe, load_recipe

    checked = load_recipe(recipe, overrides)
    from jitkit.check import check as look
    from jitkit.memory import parse_bytes

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
    from jitkit.learner import rehearse

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
    from jitkit.posthoc import describe, write_reconstructed

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
    from jitkit.run import write_text

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
    from jitkit.official import import_official

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
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "1000"  # long spins starve a shared machine (docs/log.md)
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


def _found(run: Path) -> Any:
    """The checkpoint that is asked for, of a domain that can be found by its name."""
    from jitkit.checkpoint import find

    found = find(run)
    if not found.has_domain:
        raise RecipeError(
            f"{found.path} was trained with a domain that was given in Python; use it there: "
            f"jitkit.load({str(run)!r}, domain=...)"
        )
    return found


def _folder_of(checkpoint: Path) -> Path:
    """The run of a checkpoint's folder; the folder itself where it stands alone."""
    parent = checkpoint.parent.parent
    return parent if (parent / "recipe.yaml").is_file() else checkpoint


def _settings(folder: Path, overrides: tuple[str, ...]) -> Any:
    """The run's recipe with sections domain, sample and evaluate overridden."""
    from jitkit.recipe import load_recipe

    for word in overrides:
        if not word.startswith(("domain.", "sample.", "evaluate.")):
            raise RecipeError(
                f"override {word!r}: a trained model takes keys of domain, sample, evaluate"
            )
    if not (folder / "recipe.yaml").is_file():
        raise RecipeError(f"{folder} has no recipe.yaml beside its checkpoints, so it is no run")
    return load_recipe(folder / "recipe.yaml", overrides)


def _ready(recipe: Any, found: Any, ema: str | None) -> Any:
    """A loaded model, with the arithmetic and the data that the recipe asks for."""
    from jitkit.check import choose_precision
    from jitkit.checkpoint import load

    denoiser = load(found.path, ema=ema)
    denoiser.autocast = choose_precision(recipe.train.precision, denoiser.device)[0]
    denoiser.domain = found.open_domain(recipe.domain)
    return denoiser


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
    from jitkit.generate import numbers

    split, _, words = text.partition(":")
    indices = numbers(words) if words else []
    if split not in ("train", "val") or indices is None:
        raise ConditionError(
            f"--cond-from {text!r}: expected a split and indices, such as val:0-15"
        )
    return split, indices


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
