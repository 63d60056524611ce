"""Peak memory of training steps beside the estimate of `jitkit check`.

    python -m benchmarks.memory

Each case runs in its own process, on the CPU with one thread: three steps with AdamW and two EMAs,
on images of 256 x 256 cells in patches of 16. The measured value is the peak resident set of the
process minus its resident set after torch and jitkit were imported and the batch was made. It
includes the model, everything that training adds, and memory that the C library does not return.
Cases in bfloat16 are skipped if the CPU does not support it in hardware.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass

from jitkit.utils.cpu import configure_process

GIB = 2**30
STEPS = 3  # the first makes the optimizer's means; after the third the peak grows by less than 5 %


@dataclass(frozen=True)
class Case:
    """One model and one way to train it."""

    width: int
    depth: int
    batch: int
    checkpointing: bool = False
    half: bool = False
    accumulate: int = 1

    def __str__(self) -> str:
        again = "yes" if self.checkpointing else "no"
        kind = "bfloat16" if self.half else "float32"
        parts = f" x {self.accumulate}" if self.accumulate > 1 else ""
        return f"| {self.width} x {self.depth} | {self.batch}{parts} | {again} | {kind} |"


CASES = (
    Case(192, 6, 1),
    Case(192, 6, 16),
    Case(192, 6, 16, checkpointing=True),
    Case(192, 6, 16, half=True),
    Case(192, 6, 16, checkpointing=True, half=True),
    Case(384, 8, 1, checkpointing=True, half=True),
    Case(384, 8, 4),
    Case(384, 8, 4, checkpointing=True),
    Case(384, 8, 4, half=True, accumulate=2),
    Case(768, 12, 1),
    Case(768, 12, 4),
    Case(768, 12, 4, half=True),
    Case(768, 12, 4, checkpointing=True, half=True),
)


def measure(case: Case) -> tuple[int, int]:
    """Estimate and peak in bytes."""
    configure_process()  # as the command line does, before torch
    import torch

    from jitkit.diffusion.denoiser import Denoiser
    from jitkit.fields import Axis, Category, Conditioning, Layout
    from jitkit.nn.memory import measure_peak, training_bytes
    from jitkit.nn.transformer import Sizes
    from jitkit.optim.ema import EMA
    from jitkit.optim.optimizers import adamw
    from jitkit.sections import ModelSection

    torch.set_num_threads(1)
    layout = Layout((Axis("row", 256, 16), Axis("column", 256, 16)), ("red", "green", "blue"))
    x, t = torch.randn(case.batch, 3, 256, 256), torch.rand(case.batch)
    given = Conditioning({"label": torch.zeros(case.batch, dtype=torch.long)})
    sizes = Sizes(**ModelSection(width=case.width, depth=case.depth).resolved())
    with measure_peak(torch.device("cpu")) as peak:
        denoiser = Denoiser(layout, {"label": Category(1000)}, sizes)
        denoiser.network.checkpoint_activations = case.checkpointing
        denoiser.network.autocast = torch.bfloat16 if case.half else None
        optimizer = adamw(denoiser.network, betas=(0.9, 0.95), weight_decay=0.0)
        ema = EMA(denoiser.network, [0.9999, 0.9996])
        for _ in range(STEPS):
            for _ in range(case.accumulate):
                torch.autograd.backward(denoiser.losses(x, torch.randn_like(x), t, given).mean())
            optimizer.step()
            optimizer.zero_grad()
            ema.update()
    parts = training_bytes(
        denoiser.network,
        case.batch,
        emas=2,
        checkpointing=case.checkpointing,
        compute_bytes=2 if case.half else 4,
        accumulate=case.accumulate,
    )
    return sum(parts.values()), peak.bytes


def measure_aside(case: Case) -> tuple[int, int]:
    """The same in a separate process."""
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(case))]
    calm = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=calm)
    estimate, peak = done.stdout.split()
    return int(estimate), int(peak)


def main() -> None:
    """Print a table with a line for each case, then the machine and the commit."""
    if len(sys.argv) > 1:
        print(*measure(Case(**json.loads(sys.argv[1]))))
        return
    import torch

    from jitkit.diffusion.build import choose_precision
    from jitkit.runs.run_dir import environment

    narrow = choose_precision("auto", torch.device("cpu"))[0] is not None
    print("| width x depth | batch | checkpointing | arithmetic | estimate | measured | error |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        if case.half and not narrow:
            continue
        estimate, peak = measure_aside(case)
        numbers = f"{estimate / GIB:.2f} GiB | {peak / GIB:.2f} GiB | {estimate / peak - 1:+.0%}"
        print(f"{case} {numbers} |", flush=True)
    where = environment()
    machine, version = where["machine"], torch.__version__
    print(f"\n{machine['processor']}, {machine['cores']} cores, torch {version}, {where['commit']}")


if __name__ == "__main__":
    main()
