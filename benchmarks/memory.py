"""Peak memory of a training step beside what `jitkit check` estimates.

    python -m benchmarks.memory

Each case runs in a process of its own, on the CPU and in float32: two steps with AdamW and two
running means. What the process held before the model was made is taken off.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from typing import Any

CASES: list[tuple[dict[str, Any], int, bool]] = [
    ({"size": "B"}, 4, False),
    ({"size": "B"}, 8, False),
    ({"size": "B"}, 8, True),
    ({"width": 384, "depth": 8}, 16, False),
]
GIB = 2**30


def held() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: dict[str, Any], batch_size: int, checkpointing: bool) -> tuple[float, float]:
    """Estimate and peak in GiB."""
    import torch

    from jitkit.denoiser import Denoiser
    from jitkit.ema import EMA
    from jitkit.fields import Axis, Category, Layout
    from jitkit.memory import training_bytes
    from jitkit.optim import adamw
    from jitkit.sections import ModelSection
    from jitkit.transformer import Sizes

    layout = Layout((Axis("row", 256, 16), Axis("column", 256, 16)), ("red", "green", "blue"))
    x, t = torch.randn(batch_size, 3, 256, 256), torch.rand(batch_size)
    label = {"label": torch.zeros(batch_size, dtype=torch.long)}
    before = held()
    sizes = Sizes(**ModelSection(**model).resolved())
    denoiser = Denoiser(layout, {"label": Category(1000)}, sizes)
    denoiser.network.checkpoint_activations = checkpointing
    optimizer = adamw(denoiser.network, betas=(0.9, 0.95), weight_decay=0.0)
    ema = EMA(denoiser.network, [0.9999, 0.9996])
    for _ in range(2):
        torch.autograd.backward(denoiser.losses(x, torch.randn_like(x), t, label).mean())
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    parts = training_bytes(denoiser.network, batch_size, emas=2, checkpointing=checkpointing)
    return sum(parts.values()) / GIB, (held() - before) / GIB


def main() -> None:
    """Print a line for each case."""
    if len(sys.argv) > 1:
        model, batch_size, checkpointing = json.loads(sys.argv[1])
        print(*measure(model, batch_size, checkpointing))
        return
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(case)]
        answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        estimate, peak = (float(number) for number in answer.split())
        model, batch_size, checkpointing = case
        how = ", checkpointing" if checkpointing else ""
        print(f"{model}, batch {batch_size}{how}: estimate {estimate:.2f} GiB, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
