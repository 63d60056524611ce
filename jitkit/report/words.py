"""What a page says of a run in words: what was trained on what, how it stands, its key figures."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from jitkit.report.charts import short
from jitkit.report.curves import mapping, sequence, smoothed
from jitkit.report.folder import Run, without_secrets


def sentence(run: Run) -> str:
    """What was trained on what."""
    domain = next((key.value for key in run.recipe if key.name == "domain.name"), "unknown")
    layout, sizes = mapping(run.model, "layout"), mapping(run.model, "sizes")
    items = mapping(run.model, "domain").get("num_items")
    if not run.model:
        return f"Domain {domain}; no checkpoint is there yet to say more."
    told = f"A model of {run.weights:,} weights" if run.weights else "A model"
    if "width" in sizes and "depth" in sizes:
        told += f" (width {sizes['width']}, depth {sizes['depth']})"
    told += f", trained on {f'{items:,} items' if isinstance(items, int) else 'items'}"
    told += f" of domain {domain}"
    axes = [axis for axis in sequence(layout, "axes") if isinstance(axis, dict)]
    if axes:
        cells = " × ".join(f"{axis.get('size')}" for axis in axes)
        named = ", ".join(f"{axis.get('name')}" for axis in axes)
        channels = len(sequence(layout, "channels"))
        told += f": {channels} channel{'s' * (channels != 1)} on {cells} cells ({named})"
    conditions = mapping(run.model, "conditions")
    return told + (f"; conditions: {', '.join(map(str, conditions))}" if conditions else "") + "."


def state_text(run: Run, state: str) -> str:
    """``done at step 1,200 of 1,200``, with the reason where it ended early."""
    step, steps = run.status.get("step"), run.status.get("steps")
    if state == "running":
        step = max(run.losses.last_step, step if isinstance(step, int) else 0)
    where = f" at step {step:,}" if isinstance(step, int) else ""
    where += f" of {steps:,}" if isinstance(steps, int) and where else ""
    why = run.status.get("why")
    told = {"unknown": "state not known", "running": "running, or killed"}.get(state, state) + where
    return told + (f": {without_secrets(str(why))}" if why else "")


def figures(run: Run) -> Iterator[tuple[str, str]]:
    """The numbers that matter most, each with what it is."""
    final, lowest = run.losses.final, run.losses.lowest
    if "val_loss" in final:
        yield (
            "held-out loss",
            f"{short(final['val_loss'].value)} at step {final['val_loss'].step:,}",
        )
        least = lowest["val_loss"]
        yield "lowest held-out loss", f"{short(least.value)} at step {least.step:,}"
    if "loss" in final:
        means, window = smoothed(run.losses.curves.curve("loss"), run.losses.last_step)
        yield (
            "training loss",
            f"{short(float(means[-1]))}, mean of the last {window // 2 + 1:,} steps",
        )
    if run.losses.skipped:
        yield "steps passed over", f"{run.losses.skipped:,}"
    speeds = run.speed.curves.curve("samples_per_second")
    if len(speeds.mean):
        yield "speed", f"{short(median(speeds.mean.tolist()))} samples/s"
    for name, what in (("peak_share", "share of peak"), ("waiting_share", "waiting for data")):
        values = run.speed.curves.curve(name).mean
        if len(values):
            yield what, f"{100 * median(values.tolist()):.0f} %"
    memory = run.speed.curves.curve("memory_gib").high
    if len(memory):
        yield "memory, at most", f"{short(float(memory.max()))} GiB"


def machine_facts(run: Run) -> Iterator[tuple[str, str]]:
    machine, versions = mapping(run.environment, "machine"), mapping(run.environment, "versions")
    for key in ("gpu", "processor", "cores", "system"):
        if machine.get(key) is not None:
            yield key, str(machine[key])
    if versions:
        yield "versions", ", ".join(f"{name} {number}" for name, number in versions.items())
    if run.environment.get("commit"):
        yield "commit", str(run.environment["commit"])
    if run.environment.get("started"):
        yield "started", str(run.environment["started"]).replace("T", " ").replace("+00:00", " UTC")
    yield "last written", run.written.strftime("%Y-%m-%d %H:%M:%S UTC")
