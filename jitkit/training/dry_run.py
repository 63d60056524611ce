"""Dry run of a recipe (`jitkit check`): parameters, FLOPs, memory, largest batch, errors."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import torch

from jitkit.diffusion.build import assemble, choose_device, choose_precision
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.errors import JitkitError
from jitkit.nn.flops import macs
from jitkit.nn.memory import GIB, baseline_bytes, free_bytes, largest_batch, training_bytes
from jitkit.nn.transformer import Transformer
from jitkit.optim.optimizers import peak_learning_rate
from jitkit.recipe.load import Recipe
from jitkit.registry import domain_class, open_domain
from jitkit.sections import DomainSection, TrainSection
from jitkit.training.memory_plan import memory_settings, num_emas


@dataclass(frozen=True)
class Report:
    """What `jitkit check` prints; ``problems`` is empty if the recipe can be trained."""

    summary: dict[str, Any]
    problems: list[str]


def check(recipe: Recipe, *, memory: int | None = None, processes: int = 1) -> Report:
    """Build a recipe's model on the meta device, count it, and list the problems.

    Without the data the model is still counted if the recipe determines it.

    Args:
        recipe: what would be trained.
        memory: bytes for each process; adds the largest batch that fits.
        processes: number that would train together.
    """
    problems: list[str] = []
    domain: Domain | None = None
    try:
        domain = open_domain(recipe.domain)
    except JitkitError as error:
        problems.append(str(error))
        try:
            domain = _without_data(recipe.domain)
        except JitkitError:
            return Report({"recipe": recipe.name}, problems)
    try:
        with torch.device("meta"):
            denoiser = assemble(recipe, domain)
    except JitkitError as error:
        return Report({"recipe": recipe.name}, [*problems, str(error)])
    if recipe.evaluate.after_training and not domain.scores():
        problems.append(f"evaluate.after_training: domain {recipe.domain.name!r} has no metrics")
    summary = {"recipe": recipe.name} | _count(recipe, domain, denoiser)
    summary |= _memory(recipe.train, denoiser.network, memory, processes)
    return Report(summary, problems)


def _without_data(section: DomainSection) -> Domain:
    """The adapter without its path, if the rest of its section determines layout and conditions.

    Raises:
        DataError: the section does not.
    """
    pathless = {"path": None} if "path" in type(section).model_fields else {}
    domain = domain_class(section.name)(section.model_copy(update=pathless))
    domain.layout, domain.conditions  # noqa: B018  # raise
    return domain


def _count(recipe: Recipe, domain: Domain, denoiser: Denoiser) -> dict[str, Any]:
    layout, network = denoiser.layout, denoiser.network
    device = choose_device()
    auto = recipe.diffusion.noise_scale == "auto"
    why = "auto: side of the grid over 256, at least 1" if auto else "as requested"
    return {
        "grid": list(layout.grid),
        "channels": list(layout.channels),
        "axes": [f"{axis.name} ({axis.kind})" for axis in layout.axes],
        "patch": list(layout.patch),
        "conditions": {name: type(c).__name__ for name, c in denoiser.conditions.items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmacs": macs(denoiser.network) / 1e9,
        "tokens": layout.num_tokens,
        "in_context_tokens": network.num_context,
        "patch_features": layout.patch_features,
        "noise_scale": denoiser.diffusion.noise_scale,
        "noise_scale_why": why,
        "P_mean": recipe.diffusion.P_mean,
        "learning_rate": peak_learning_rate(recipe.train),
        "device": str(device),
        "precision": choose_precision(recipe.train.precision, device)[1],
    }


def _memory(
    section: TrainSection, network: Transformer, memory: int | None, processes: int
) -> dict[str, Any]:
    """Memory of training in each process, and the largest batch for ``memory`` bytes."""
    device = choose_device()
    free = free_bytes(device)
    settings = memory_settings(section, network, device, processes=processes, free=memory or free)
    part_size = ceil(section.batch_size / (section.accumulate * processes))
    parts = {
        checkpointing: training_bytes(network, part_size, **settings, checkpointing=checkpointing)
        for checkpointing in (False, True)
    }
    used = parts[section.checkpoint_activations]
    summary = {
        "memory_gib": sum(used.values()) / GIB,
        "memory_parts_gib": {name: size / GIB for name, size in used.items()},
        "memory_without_checkpointing_gib": sum(parts[False].values()) / GIB,
        "memory_with_checkpointing_gib": sum(parts[True].values()) / GIB,
        "memory_free_gib": free / GIB,
    }
    if settings["emas"] < num_emas(section):  # EMAs on the CPU need a copy of the weights there
        summary["memory_means_on_cpu_gib"] = (1 + num_emas(section)) * used["weights"] / GIB
    if memory is not None:
        summary |= _largest(section, network, memory, processes, settings)
    return summary


def _largest(
    section: TrainSection,
    network: Transformer,
    memory: int,
    processes: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """The largest ``train.batch_size`` for ``memory`` bytes in each process, and why."""
    before = baseline_bytes(choose_device())
    most, most_checkpointing = (
        largest_batch(network, memory - before, **settings, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    parts = section.accumulate * processes
    one = sum(training_bytes(network, 1, **settings, checkpointing=True).values())
    text = f"{before / GIB:.2g} GiB are used before the model, and a tenth is kept free"
    if not most_checkpointing:
        text = f"not even one sample fits: it takes {one / GIB:.2f} GiB with checkpointing; {text}"
    elif not most:
        text = f"one sample fits only with train.checkpoint_activations=true; {text}"
    if parts > 1:
        text += f"; {section.accumulate} parts (train.accumulate) in each of {processes} processes"
    return {
        "memory_given_gib": memory / GIB,
        "largest_batch": most * parts,
        "largest_batch_checkpointing": most_checkpointing * parts,
        "largest_batch_why": text,
    }
