"""Settings of a recipe that determine its training memory, for `jitkit.nn.memory`."""

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
    """Keyword arguments of `training_bytes`, except batch size and checkpointing.

    Args:
        section: the recipe's section ``train``.
        network: may be on the device `meta`.
        device: where it would be trained.
        processes: number that train together.
        free: bytes of each; default: those free now. With ``train.parallel`` auto, a model that
            takes at least half of them is sharded.
    """
    on_cpu = section.ema_device == "cpu" and device.type != "cpu"
    settings: dict[str, Any] = {
        "emas": 0 if on_cpu else num_emas(section),
        "compute_bytes": 4 if choose_precision(section.precision, device)[0] is None else 2,
        "accumulate": section.accumulate,
        "optimizer": getattr(section, "optimizer", "adamw"),
        "device": device,
    }
    sharded = section.parallel == "fsdp"
    if section.parallel == "auto" and processes > 1:
        needed = sum(training_bytes(network, 0, **settings).values())
        sharded = needed >= (free_bytes(device) if free is None else free) / 2
    return settings | {"world": processes, "sharded": sharded and processes > 1}


def num_emas(section: TrainSection) -> int:
    """Number of EMAs of the weights."""
    return len(section.ema) + len(section.ema_sigma_rel)
