"""What a recipe makes, before anything is trained: model, cost, memory, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from jitkit.abilities import Weighted
from jitkit.conditions import null
from jitkit.denoiser import Denoiser, Diffusion
from jitkit.domain import Domain, domain_class, open_domain
from jitkit.errors import JitkitError
from jitkit.fields import Category, Grid, Layout, PerToken, Scalars
from jitkit.flow import auto_noise_scale
from jitkit.memory import free_bytes, held_before_training, largest_batch, training_bytes
from jitkit.recipe import Recipe
from jitkit.sections import DomainSection, TrainSection
from jitkit.transformer import Sizes, Transformer

GIB = 2**30


def assemble(recipe: Recipe, domain: Domain) -> Denoiser:
    """The model that a recipe describes for a domain's data, with fresh weights."""
    layout = layout_for(recipe, domain)
    numbers = recipe.diffusion
    diffusion = Diffusion(
        prediction=numbers.prediction,
        loss=numbers.loss,
        noise_scale=choose_noise_scale(recipe, domain),
        t_eps=numbers.t_eps,
    )
    denoiser = Denoiser(layout, domain.conditions, Sizes(**recipe.model.resolved()), diffusion)
    denoiser.domain = domain
    if isinstance(domain, Weighted) and domain.weights is not None:
        denoiser.weights = torch.from_numpy(domain.weights).float().to(denoiser.device)
    return denoiser


def layout_for(recipe: Recipe, domain: Domain) -> Layout:
    """A domain's layout with the recipe's patch, where it gives one."""
    patch = recipe.model.patch
    return domain.layout.with_patch(tuple(patch) if isinstance(patch, list) else patch)


def choose_noise_scale(recipe: Recipe, domain: Domain) -> float:
    """The recipe's noise scale, or the paper's rule for the domain's grid; sets do not count."""
    asked = recipe.diffusion.noise_scale
    cells = prod(axis.size for axis in domain.layout.axes if axis.kind != "set")
    return auto_noise_scale(cells) if asked == "auto" else asked


def choose_precision(asked: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The type of arithmetic inside the network (None for float32), and why it was chosen."""
    if asked == "float32":
        return None, "float32, as asked"
    if asked == "bfloat16":
        return torch.bfloat16, "bfloat16, as asked"
    if asked == "float16":
        return torch.float16, "float16, as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16: the GPU has it in hardware"
        return None, "float32: the GPU has no bfloat16 in hardware"
    if _processor_has_bfloat16():
        return torch.bfloat16, "bfloat16: the processor has it in hardware"
    return None, "float32: bfloat16 is emulated on this processor, many times slower"


def _processor_has_bfloat16() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Report:
    """What `jitkit check` prints; ``problems`` is empty where the recipe can be trained."""

    found: dict[str, Any]
    problems: list[str]


def check(recipe: Recipe, *, memory: int | None = None, processes: int = 1) -> Report:
    """Build a recipe's model without memory, count it, and list what stands in the way.

    Where the data are missing, the model's part is counted all the same if the recipe says enough.

    Args:
        recipe: what would be trained.
        memory: bytes for each process; the largest batch for them is found as well.
        processes: how many would train together.
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
        problems.append(f"evaluate.after_training: domain {recipe.domain.name!r} has no measures")
    found = {"recipe": recipe.name} | _count(recipe, domain, denoiser)
    found |= _memory(recipe.train, denoiser.network, memory, processes)
    return Report(found, problems)


def _without_data(section: DomainSection) -> Domain:
    """The adapter without its path, where the rest of its section says layout and conditions.

    Raises:
        DataError: it does not.
    """
    pathless = {"path": None} if "path" in type(section).model_fields else {}
    return domain_class(section.name)(section.model_copy(update=pathless))


def macs(denoiser: Denoiser) -> int:
    """Multiply-accumulates of one pass on one sample, wherever the model is.

    They are counted on a twin without memory: torch does not count the CPU's own attention.
    """
    grid, device = denoiser.layout.grid, torch.device("meta")
    z = torch.empty(1, len(denoiser.layout.channels), *grid, device=device)
    cond = {}
    for name, condition in denoiser.conditions.items():
        match condition:
            case Category():
                value = torch.empty(1, dtype=torch.long, device=device)
            case Scalars(names=names):
                value = torch.empty(1, len(names), device=device)
            case Grid(channels=channels):
                value = torch.empty(1, len(channels), *grid, device=device)
            case PerToken():
                value = torch.empty(1, *grid, dtype=torch.long, device=device)
        cond[name] = null(condition, value)
    with device:
        twin = Transformer(denoiser.layout, denoiser.conditions, denoiser.network.sizes).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        twin(z, torch.empty(1, device=device), cond)
    return counter.get_total_flops() // 2


def _count(recipe: Recipe, domain: Domain, denoiser: Denoiser) -> dict[str, Any]:
    layout, network = denoiser.layout, denoiser.network
    device = choose_device()
    auto = recipe.diffusion.noise_scale == "auto"
    rule = "auto: side of the grid over 256, at least 1" if auto else "as asked"
    return {
        "grid": list(layout.grid),
        "channels": list(layout.channels),
        "axes": [f"{axis.name} ({axis.kind})" for axis in layout.axes],
        "patch": list(layout.patch),
        "conditions": {name: type(c).__name__ for name, c in denoiser.conditions.items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmacs": macs(denoiser) / 1e9,
        "tokens": layout.num_tokens,
        "in_context_tokens": network.num_context,
        "patch_features": layout.patch_features,
        "noise_scale": denoiser.diffusion.noise_scale,
        "noise_scale_why": rule,
        "P_mean": recipe.diffusion.P_mean,
        "learning_rate": peak_rate(recipe),
        "device": str(device),
        "precision": choose_precision(recipe.train.precision, device)[1],
    }


def _memory(
    section: TrainSection, network: Transformer, memory: int | None, processes: int
) -> dict[str, Any]:
    """What training takes in each process, and the largest batch for ``memory`` bytes."""
    device = choose_device()
    free = free_bytes(device)
    how = memory_settings(section, network, device, processes=processes, free=memory or free)
    at_once = ceil(section.batch_size / (section.accumulate * processes))
    parts = {
        again: training_bytes(network, at_once, **how, checkpointing=again)
        for again in (False, True)
    }
    own = parts[section.checkpoint_activations]
    found = {
        "memory_gib": sum(own.values()) / GIB,
        "memory_parts_gib": {name: size / GIB for name, size in own.items()},
        "memory_without_checkpointing_gib": sum(parts[False].values()) / GIB,
        "memory_with_checkpointing_gib": sum(parts[True].values()) / GIB,
        "memory_free_gib": free / GIB,
    }
    if how["emas"] < _means(section):  # beside them a copy of the weights, from which they learn
        found["memory_means_on_cpu_gib"] = (1 + _means(section)) * own["weights"] / GIB
    return found if memory is None else found | _largest(section, network, memory, processes, how)


def _largest(
    section: TrainSection,
    network: Transformer,
    memory: int,
    processes: int,
    how: dict[str, Any],
) -> dict[str, Any]:
    """The largest ``train.batch_size`` for ``memory`` bytes in each process, and why."""
    before = held_before_training(choose_device())
    most, most_again = (
        largest_batch(network, memory - before, **how, checkpointing=again)
        for again in (False, True)
    )
    parts = section.accumulate * processes
    one = sum(training_bytes(network, 1, **how, checkpointing=True).values())
    text = f"{before / GIB:.2g} GiB are taken before there is a model, and a tenth is kept free"
    if not most_again:
        text = f"not even one sample fits: it takes {one / GIB:.2f} GiB with checkpointing; {text}"
    elif not most:
        text = f"one sample fits with checkpointing alone (train.checkpoint_activations); {text}"
    if parts > 1:
        text += f"; {section.accumulate} parts (train.accumulate) in each of {processes} processes"
    return {
        "memory_given_gib": memory / GIB,
        "largest_batch": most * parts,
        "largest_batch_checkpointing": most_again * parts,
        "largest_batch_why": text,
    }


def _means(section: TrainSection) -> int:
    """How many running means of the weights there are."""
    return len(section.ema) + len(section.ema_sigma_rel)


def memory_settings(
    section: TrainSection,
    network: Transformer,
    device: torch.device,
    *,
    processes: int = 1,
    free: int | None = None,
) -> dict[str, Any]:
    """What `training_bytes` must be told of a recipe, but for the batch and checkpointing.

    Args:
        section: the recipe's section ``train``.
        network: it may be on the device `meta`.
        device: where it would be trained.
        processes: how many train together.
        free: bytes of each; what is free now where not given. Half of them decide whether the model
            is shared out where ``train.parallel`` is auto.
    """
    away = section.ema_device == "cpu" and device.type != "cpu"
    settings: dict[str, Any] = {
        "emas": 0 if away else _means(section),
        "compute_bytes": 4 if choose_precision(section.precision, device)[0] is None else 2,
        "accumulate": section.accumulate,
        "optimizer": getattr(section, "optimizer", "adamw"),
        "device": device,
    }
    sharded = section.parallel == "fsdp"
    if section.parallel == "auto" and processes > 1:
        held = sum(training_bytes(network, 0, **settings).values())
        sharded = held >= (free_bytes(device) if free is None else free) / 2
    return settings | {"world": processes, "sharded": sharded and processes > 1}


def peak_rate(recipe: Recipe) -> float:
    """The learning rate after the warm-up: ``lr``, or blr x batch / 256."""
    section = recipe.train
    return section.lr or section.blr * section.batch_size / 256
