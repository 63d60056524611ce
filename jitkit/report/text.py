"""Text of a report: model and data, state, key figures and machine of a run."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from jitkit.report.charts import compact_number
from jitkit.report.curves import get_list, get_mapping, smooth
from jitkit.report.folder import Run, without_secrets


def model_summary(run: Run) -> str:
    """The model and its training data, in a sentence."""
    domain = next((key.value for key in run.recipe if key.name == "domain.name"), "unknown")
    layout, sizes = get_mapping(run.model, "layout"), get_mapping(run.model, "sizes")
    items = get_mapping(run.model, "domain").get("num_items")
    if not run.model:
        return f"Domain {domain}; no checkpoint yet."
    text = f"A model of {run.parameters:,} parameters" if run.parameters else "A model"
    if "width" in sizes and "depth" in sizes:
        text += f" (width {sizes['width']}, depth {sizes['depth']})"
    text += f", trained on {f'{items:,} items' if isinstance(items, int) else 'items'}"
    text += f" of domain {domain}"
    axes = [axis for axis in get_list(layout, "axes") if isinstance(axis, dict)]
    if axes:
        cells = " × ".join(f"{axis.get('size')}" for axis in axes)
        axis_names = ", ".join(f"{axis.get('name')}" for axis in axes)
        channels = len(get_list(layout, "channels"))
        text += f": {channels} channel{'s' * (channels != 1)} on {cells} cells ({axis_names})"
    conditions = get_mapping(run.model, "conditions")
    return text + (f"; conditions: {', '.join(map(str, conditions))}" if conditions else "") + "."


def state_text(run: Run, state: str) -> str:
    """``done at step 1,200 of 1,200``, with the reason if it ended early."""
    step, steps = run.status.get("step"), run.status.get("steps")
    if state == "running":
        step = max(run.losses.last_step, step if isinstance(step, int) else 0)
    at_step = f" at step {step:,}" if isinstance(step, int) else ""
    at_step += f" of {steps:,}" if isinstance(steps, int) and at_step else ""
    why = run.status.get("why")
    text = {"unknown": "state unknown", "running": "running, or killed"}.get(state, state) + at_step
    return text + (f": {without_secrets(str(why))}" if why else "")


def key_figures(run: Run) -> Iterator[tuple[str, str]]:
    """Name and value of the most important metrics."""
    final, lowest = run.losses.final, run.losses.lowest
    if "val_loss" in final:
        yield (
            "validation loss",
            f"{compact_number(final['val_loss'].value)} at step {final['val_loss'].step:,}",
        )
        least = lowest["val_loss"]
        yield "lowest validation loss", f"{compact_number(least.value)} at step {least.step:,}"
    if "loss" in final:
        means, window = smooth(run.losses.curves.curve("loss"), run.losses.last_step)
        yield (
            "training loss",
            f"{compact_number(float(means[-1]))}, mean of the last {window // 2 + 1:,} steps",
        )
    if run.losses.skipped:
        yield "steps skipped", f"{run.losses.skipped:,}"
    speeds = run.speed.curves.curve("samples_per_second")
    if len(speeds.mean):
        yield "speed", f"{compact_number(median(speeds.mean.tolist()))} samples/s"
    for name, label in (("peak_share", "MFU"), ("waiting_share", "waiting for data")):
        values = run.speed.curves.curve(name).mean
        if len(values):
            yield label, f"{100 * median(values.tolist()):.0f} %"
    memory = run.speed.curves.curve("memory_gib").high
    if len(memory):
        yield "peak memory", f"{compact_number(float(memory.max()))} GiB"


def machine_info(run: Run) -> Iterator[tuple[str, str]]:
    """Machine, versions, commit and times of a run."""
    environment = run.environment
    machine, versions = get_mapping(environment, "machine"), get_mapping(environment, "versions")
    for key, label in (
        ("gpu", "GPU"),
        ("processor", "CPU"),
        ("cores", "cores"),
        ("system", "system"),
    ):
        if machine.get(key) is not None:
            yield label, str(machine[key])
    if versions:
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    if environment.get("commit"):
        yield "commit", str(environment["commit"])
    if environment.get("started"):
        yield "started", str(environment["started"]).replace("T", " ").replace("+00:00", " UTC")
    yield "last written", run.written.strftime("%Y-%m-%d %H:%M:%S UTC")
