"""The memory of training is counted part by part, and what is counted is what steps then take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import layout, sizes
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.errors import JitkitError
from jitkit.fields import Category, Condition, Grid
from jitkit.nn.memory import largest_batch, parse_bytes, peak_of, training_bytes
from jitkit.nn.transformer import Sizes, Transformer

ROOT = Path(__file__).parents[1]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB, GIB = 2**20, 2**30
SPREAD = ("weights", "gradients", "optimizer", "ema")


@cache
def network(**given: Any) -> Transformer:
    """A transformer without memory, on 8 x 8 cells in 16 tokens."""
    numbers = {"width": 64, "depth": 4, "heads": 4, "mlp_hidden": 170} | given
    with torch.device("meta"):
        return Transformer(layout((8, 2), (8, 2)), {}, sizes(**numbers))


def count(batch_size: int = 4, /, **settings: Any) -> dict[str, int]:
    """`training_bytes` of that network, with two running means."""
    return training_bytes(network(), batch_size, **{"emas": 2} | settings)


SETTINGS = st.fixed_dictionaries(
    {
        "emas": st.integers(1, 4),
        "checkpointing": st.booleans(),
        "compute_bytes": st.sampled_from([2, 4]),
        "accumulate": st.integers(1, 4),
        "world": st.integers(1, 16),
        "sharded": st.booleans(),
        "optimizer": st.sampled_from(["adamw", "muon"]),
        "device": st.sampled_from([CPU, GPU]),
    }
)


# Laws


@hypothesis.settings(deadline=None)
@given(SETTINGS, st.integers(1, 64))
def test_activations_are_linear_in_the_batch_and_nothing_else_knows_it(
    settings: dict[str, Any], batch_size: int
) -> None:
    one, many = count(1, **settings), count(batch_size, **settings)
    for part in ("activations", "holes"):
        assert many.pop(part, 0) == batch_size * one.pop(part, 0)
    assert many == one


@hypothesis.settings(deadline=None)
@given(SETTINGS, st.sampled_from([1, 2, 3]))
def test_more_of_anything_takes_more(settings: dict[str, Any], factor: int) -> None:
    def total(**given: Any) -> int:
        return sum(training_bytes(network(**given), 4, **settings).values())

    assert total() < total(depth=4 + factor)
    assert total() < total(width=64 + 16 * factor)
    assert total() < total(mlp_hidden=170 + factor)


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("compute_bytes", [2, 4])
def test_what_is_made_again_is_not_held(device: torch.device, compute_bytes: int) -> None:
    kept, again = (
        count(device=device, compute_bytes=compute_bytes, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert again["activations"] < kept["activations"] / 2
    assert [again[part] for part in SPREAD] == [kept[part] for part in SPREAD]


def test_two_processes_hold_a_half_each_and_the_whole_of_their_activations() -> None:
    alone, half = count(), count(world=2, sharded=True)
    for part in SPREAD:
        assert half[part] == alone[part] // 2
    assert half["activations"] == alone["activations"]
    assert count(world=2) == alone  # each holds all of the model


def test_gradients_stay_whole_between_the_parts_of_a_step_even_where_weights_are_spread() -> None:
    alone, shared = count(), count(world=4, sharded=True, accumulate=2)
    assert shared["gradients"] == alone["gradients"] and (
        shared["weights"] == alone["weights"] // 4
    )


def test_every_part_is_the_weights_times_what_it_holds_of_them() -> None:
    parameters = sum(p.numel() for p in network().parameters())
    vectors = sum(p.numel() for p in network().parameters() if p.ndim != 2)
    parts = count(emas=3, device=CPU)
    assert [parts[part] for part in SPREAD] == [4 * n * parameters for n in (1, 1, 2, 3)]
    assert count(optimizer="muon")["optimizer"] == 4 * (parameters + vectors)


@hypothesis.settings(deadline=None)
@given(SETTINGS, st.integers(0, 200))
def test_the_largest_batch_fits_with_its_reserve_and_one_more_does_not(
    settings: dict[str, Any], mebibytes: int
) -> None:
    memory = mebibytes * MIB

    def fits(batch_size: int) -> bool:
        needed = sum(count(batch_size, **settings).values())
        return needed <= int(memory / 1.1)

    most = largest_batch(network(), memory, **settings)
    assert most == 0 or fits(most)
    assert not fits(most + 1)


def test_large_tensors_leave_no_holes_and_the_largest_batch_knows_it() -> None:
    one = count(1)
    edge = 32 * MIB // (4 * 16 * 64)  # samples whose residual stream has 32 MiB
    assert "holes" in count(edge - 1) and "holes" not in count(edge)
    fixed = sum(one.values()) - one["activations"] - one["holes"]
    needed = fixed + edge * one["activations"]
    assert sum(count(edge - 1).values()) > needed  # fewer samples take more
    assert largest_batch(network(), int(1.1 * needed) + 2, emas=2) == edge


# Against what autograd keeps


def saved(
    net: Denoiser, x: Tensor, cond: dict[str, Tensor], compute: torch.dtype | None
) -> tuple[int, int]:
    """Bytes that one forward pass keeps for the backward pass: weights' narrow copies, and others.

    The model's own tensors are not counted. A copy of a weight is known by its shape.
    """
    net.autocast = compute
    own = {tensor.untyped_storage().data_ptr() for tensor in [*net.parameters(), *net.buffers()]}
    shapes = {shape for p in net.parameters() for shape in (p.shape, p.shape[::-1])}
    found: dict[int, tuple[int, bool]] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in own:
            copied = tensor.shape in shapes and tensor.dtype is not torch.float32
            found[place.data_ptr()] = (place.nbytes(), copied)
            kept.append(tensor)  # so that no other comes to its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net.losses(x, torch.randn_like(x), torch.rand(len(x)), cond).mean()
    del loss
    copies = sum(size for size, copied in found.values() if copied)
    return copies, sum(size for size, _ in found.values()) - copies


@pytest.mark.parametrize(
    ("dropout", "places"), [(0.0, ()), (0.2, ()), (0.0, ("channel 0", "channel 1"))]
)
@pytest.mark.parametrize("patch", [2, 4])  # 96 tokens, and few
@pytest.mark.parametrize("compute", [None, torch.bfloat16])
def test_what_is_counted_is_what_autograd_keeps(
    compute: torch.dtype | None, patch: int, dropout: float, places: tuple[str, ...]
) -> None:
    numbers: dict[str, Any] = {"width": 64, "depth": 6, "heads": 4, "mlp_hidden": 170}
    numbers |= {"in_context_tokens": 3, "in_context_start": 2, "dropout": dropout}
    conditions: dict[str, Condition] = {"label": Category(5), "past": Grid(("u",))}
    data = replace(layout((24, patch), (16, patch)), positions=places)
    model = Denoiser(data, conditions, sizes(**numbers))
    x = torch.randn(7, 2, 24, 16)
    cond = {"label": torch.zeros(7, dtype=torch.long), "past": torch.randn(7, 1, 24, 16)}
    copies, others = saved(model, x, cond, compute)
    size = 4 if compute is None else 2
    parts = training_bytes(model.network, 7, emas=1, compute_bytes=size)
    # the rest are tensors that only the loss and the backward pass hold for a moment
    assert 0 <= parts["activations"] - others < 0.08 * others
    # biases are copied as well, but no backward pass needs them
    assert 0 <= parts.get("half_weights", 0) - copies < 0.06 * copies + 1


# Against real steps


STEPS = """
import json, sys
from benchmarks.memory import Case, measure
print(*measure(Case(**json.loads(sys.argv[1]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        '{"width": 192, "depth": 4, "batch": 8}',
        '{"width": 192, "depth": 4, "batch": 8, "checkpointing": true}',
        '{"width": 384, "depth": 4, "batch": 2, "accumulate": 2}',
    ],
)
def test_real_steps_take_what_is_counted_within_a_fifth(case: str) -> None:
    command = [sys.executable, "-c", STEPS, case]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    estimate, peak = (int(number) for number in answer.stdout.split())
    assert estimate == pytest.approx(peak, rel=0.2)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells it")
def test_a_peak_is_that_of_the_block_alone() -> None:
    def hold(mebibytes: int) -> None:
        torch.ones(mebibytes * MIB // 4).sum()

    hold(256)
    with peak_of(CPU) as peak:
        hold(64)
    assert 63 * MIB < peak.bytes < 96 * MIB


@pytest.mark.gpu
def test_steps_on_a_gpu_take_what_is_counted_within_a_fifth() -> None:
    with peak_of(GPU) as peak:
        model = Denoiser(layout((64, 4), (64, 4)), {}, Sizes(384, 8, 6, 128, 0, 0, 1024)).to(GPU)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            x = torch.randn(32, 2, 64, 64, device=GPU)
            losses = model.losses(x, torch.randn_like(x), torch.rand(32, device=GPU), {})
            torch.autograd.backward(losses.mean())
            optimizer.step()
            optimizer.zero_grad()
    parts = training_bytes(model.network, 32, emas=0)
    assert sum(parts.values()) == pytest.approx(peak.bytes, rel=0.2)


# Sizes as people write them


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24GiB", 24 * GIB),
        ("24GB", 24_000_000_000),
        ("800 MiB", 800 * MIB),
        (" 1.5 gib ", 3 * GIB // 2),
        (".5KiB", 512),
        ("1TB", 10**12),
        ("7B", 7),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("24", r"'24': the unit is missing \(did you mean 24GiB\?\); write it as 24GiB"),
        ("24 QB", "'QB' is no unit; there are B, KiB, KB, MiB, MB, GiB, GB, TiB, TB"),
        ("much", "not a number above zero with a unit"),
        ("-3GiB", "not a number above zero with a unit"),
        ("0GiB", "not a number above zero with a unit"),
        ("nanGiB", "not a number above zero with a unit"),
        ("", "not a number above zero with a unit"),
    ],
)
def test_a_size_that_cannot_be_read_is_told_in_words(text: str, why: str) -> None:
    with pytest.raises(JitkitError, match=why):
        parse_bytes(text)
