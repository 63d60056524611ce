"""The memory that training a recipe takes, in the terms of `jitkit.nn.memory`."""

from __future__ import annotations

from typing import Any

import torch

from jitkit.diffusion.build import choose_precision
from jitkit.nn.memory import free_bytes, training_bytes
from jitkit.nn.transformer import Transformer
from jitkit.sections import TrainSection


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
        "emas": 0 if away else num_emas(section),
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


def num_emas(section: TrainSection) -> int:
    """How many running means of the weights there are."""
    return len(section.ema) + len(section.ema_sigma_rel)
