"""What is counted for many GPUs: known answers, what processes really send, and the document."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks import scaling  # noqa: E402
from jitkit.nn.memory import training_bytes  # noqa: E402

B, G = 131_123_712, 2_007_130_000  # parameters of B/16 and G/16, Li & He 2025


@pytest.mark.parametrize(
    ("name", "count", "gmacs"),
    [("B", B, 25.22), ("L", 458_877_664, 87.94), ("H", 952_514_368, 181.95), ("G", G, 383.74)],
)
def test_models_have_the_weights_and_the_work_of_the_paper(
    name: str, count: int, gmacs: float
) -> None:
    denoiser = scaling.pictures(name)
    assert scaling.parameters(denoiser.network) == count
    assert scaling.forward_macs(denoiser) / 1e9 == pytest.approx(gmacs, abs=0.006)
    assert scaling.step_flops(denoiser) == 6 * scaling.forward_macs(denoiser)


def test_bytes_of_ddp_are_those_of_a_ring_by_hand() -> None:
    network = scaling.pictures("B").network
    # 8 parts of 65,561,856 bytes; each goes 7 times to a neighbour to be summed and 7 to be known
    assert scaling.ddp_bytes(network, 8) == 14 * 65_561_856 == 917_865_984
    assert scaling.ddp_bytes(network, 1) == 0
    assert scaling.ddp_bytes(network, 2) == 4 * B


def test_bytes_of_fsdp_are_three_gathers_of_blocks_and_two_of_the_rest() -> None:
    network = scaling.pictures("B").network
    # of a block: norms 2 W, and 2 x 64; qkv, proj, w12, w3, adaLN, with biases
    w, h = 768, 2048
    block = 2 * w + 128 + 4 * w * (w + 1) + 2 * h * (w + 1) + w * (h + 1) + 6 * w * (w + 1)
    rest = B - 12 * block
    assert scaling.fsdp_bytes(network, 8) == 7 / 8 * 4 * (3 * 12 * block + 2 * rest)
    in_four = scaling.fsdp_bytes(network, 8, parts=4)
    assert in_four == 7 / 8 * 4 * ((8 + 1) * 12 * block + (4 + 1) * rest)


def test_what_is_spread_shrinks_with_the_processes_and_activations_do_not() -> None:
    network = scaling.pictures("G").network
    whole, spread = (
        training_bytes(network, 3, **scaling.settings(n, sharded=n > 1, checkpointing=False))
        for n in (1, 64)
    )
    for key, bytes_each in {"weights": 4, "gradients": 4, "optimizer": 8, "ema": 8}.items():
        assert whole[key] == bytes_each * G
        assert spread[key] == pytest.approx(bytes_each * G / 64, rel=1e-6)
    assert whole["activations"] == spread["activations"]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_fewest_parts_fit_and_fewer_do_not(sharded: bool) -> None:
    network = scaling.pictures("G").network

    def fits(parts: int) -> bool:
        most = scaling.most_samples(network, 8, sharded=sharded, checkpointing=False, parts=parts)
        return most >= 128 // parts

    parts = scaling.fewest_parts(network, 8, sharded=sharded)
    assert parts > 1 and 128 % parts == 0
    assert fits(parts) and not fits(parts // 2)


COUNT = '''
"""What is sent in one step, in numbers by kind: of DDP, and of FSDP2 in 1 and 2 parts."""
import json
import os
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jitkit.diffusion.denoiser import Denoiser
from jitkit.fields import Axis, Category, Conditioning, Layout
from jitkit.utils.distributed import DistributedLoss, shard, team
from jitkit.nn.transformer import Sizes


class Watch(TorchDispatchMode):
    """Notes the larger of a collective's tensors: what is whole before or after it."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            kind = func.__name__.split(".")[0].strip("_")
            flat = torch.utils._pytree.tree_leaves(args)
            size = max(x.numel() for x in flat if isinstance(x, torch.Tensor))
            self.seen[kind] = self.seen.get(kind, 0) + size
        return func(*args, **(kwargs or {}))


class Losses(torch.nn.Module):
    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x, label):
        given = Conditioning({"label": label})
        return self.denoiser.losses(x, torch.ones_like(x), torch.full((2,), 0.5), given)


def step(shared, parts):
    for i in range(parts):
        with shared.gradient_sync(last=i == parts - 1):
            shared(torch.ones(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)).sum().backward()
    shared.network.zero_grad(set_to_none=True)


os.environ["JITKIT_COMMAND"] = "1"  # leaves as a command does, see `cli.main`


def main():
    found = {}
    with team() as ours:
        for how, checkpointing, parts in (("ddp", False, 2), ("fsdp", False, 1), ("fsdp", True, 2)):
            layout = Layout((Axis("row", 8, 4), Axis("column", 8, 4)), ("a",))
            sizes = Sizes(32, 3, 2, 8, in_context_tokens=4, in_context_start=1, mlp_hidden=64)
            denoiser = Denoiser(layout, {"label": Category(9)}, sizes)
            network = denoiser.network
            network.checkpoint_activations = checkpointing
            found["all"] = sum(p.numel() for p in network.parameters())
            found["blocks"] = sum(p.numel() for p in network.blocks.parameters())
            if how == "fsdp":
                shard(network, list(network.blocks), ours, torch.device("cpu"))
            shared = DistributedLoss(Losses(denoiser), network, how, ours, torch.device("cpu"))
            for _ in range(2):  # the first two also make buckets
                step(shared, parts)
            with Watch() as watch:
                step(shared, parts)
            found[f"{how} {parts}"] = watch.seen
        if ours.is_main:
            print("found:", json.dumps(found))


main()
sys.stdout.flush()
os._exit(0)
'''


@pytest.mark.slow
def test_two_processes_send_what_is_counted(tmp_path: Path) -> None:
    script = tmp_path / "count.py"
    script.write_text(COUNT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    ended = subprocess.run([*command, script], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.split("found: ")[1])
    every, blocks = found["all"], found["blocks"]
    assert found["ddp 2"] == {"allreduce": every}
    for parts in (1, 2):
        gathered = parts * (2 * blocks + every - blocks)
        sent = {"allgather_base": gathered, "reduce_scatter_base": every}
        assert found[f"fsdp {parts}"] == sent


def test_the_tables_of_the_document_are_those_that_are_counted() -> None:
    text = scaling.DOCUMENT.read_text(encoding="utf-8")
    for name in scaling.TABLES:
        assert f"<!-- table: {name} -->" in text
    assert text == scaling.filled(text), "run: python -m benchmarks.scaling --write"
