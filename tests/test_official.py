"""Agreement with the official code: tensors that it produced, in ``tests/data/jit_tiny.npz``, a
reference JiT written from the paper (benchmarks/referencemodel.py), and every form of its files."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import difference
from torch import Tensor

import jitkit
from jitkit.diffusion.sampler import draw_noise, sample
from jitkit.diffusion.solvers import Method
from jitkit.errors import CheckpointError, RecipeError
from jitkit.fields import Category, Conditioning
from jitkit.runs import checkpoint
from jitkit.runs.official import ENTRIES, _shapes, import_official, load_official, translate
from jitkit.sections import SIZES

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are not installed

from benchmarks.reference import randomise  # noqa: E402
from benchmarks.referencemodel import JiT, Jit  # noqa: E402

with np.load(Path(__file__).parent / "data" / "jit_tiny.npz") as _file:
    GOLDEN: dict[str, Any] = {
        key: torch.from_numpy(_file[key]) for key in _file.files if key != "meta"
    }
    META: dict[str, Any] = json.loads(str(_file["meta"]))
STATE: dict[str, Tensor] = {
    key.removeprefix("state."): value for key, value in GOLDEN.items() if key.startswith("state.")
}
BARE = {key.removeprefix("net."): value for key, value in STATE.items()}
START: int = META["in_context_start"]
Z, T, Y = GOLDEN["forward.z"], GOLDEN["forward.t"], GOLDEN["forward.y"]
TINY = Jit(
    width=META["hidden_size"],
    heads=META["num_heads"],
    depth=META["depth"],
    patch=META["patch_size"],
    side=META["input_size"] // META["patch_size"],
    classes=META["num_classes"],
    bottleneck=META["bottleneck_dim"],
    context=META["in_context_len"],
    context_start=START,
)


def save(content: Any, folder: Path) -> Path:
    path = folder / "checkpoint-last.pth"
    torch.save(content, path)
    return path


def predicts_as_official(source: Any, **given: Any) -> bool:
    denoiser = load_official(source, START, **given)
    with torch.no_grad():
        return difference(denoiser(Z, T, {"label": Y}), GOLDEN["forward.x_pred"]) < 1e-5


def random_state(jit: Jit) -> dict[str, Tensor]:
    """Parameters of the reference JiT under the official names, none of them zero."""
    model = JiT(jit)
    randomise(model)
    return dict(model.state_dict())


@torch.no_grad()
def forward(state: dict[str, Tensor], jit: Jit, z: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The prediction of the reference JiT with these parameters."""
    model = JiT(jit)
    model.load_state_dict(state)
    return model(z, t, y)


def refusal(source: Any, **given: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_official(source, given.pop("start", START), **given)
    return str(caught.value)


# Tensors of the official code


@pytest.mark.parametrize("label", [Y, 10, None], ids=["label", "null label", "no label"])
def test_the_prediction_matches_the_official_code(label: Any) -> None:
    denoiser = load_official(STATE, START)
    expected = GOLDEN["forward.x_pred" if label is Y else "forward.y_null_x_pred"]
    with torch.no_grad():
        assert difference(denoiser(Z, T, {"label": label}), expected) < 1e-5


def test_loss_and_gradients_match_the_official_code() -> None:
    denoiser = load_official(STATE, START)
    loss = denoiser.losses(GOLDEN["loss.x"], GOLDEN["loss.e"], T, Conditioning({"label": Y})).mean()
    torch.autograd.backward(loss)
    assert difference(loss, GOLDEN["loss.v_loss"]) < 1e-5
    gradients = {k.removeprefix("grad."): v for k, v in GOLDEN.items() if k.startswith("grad.")}
    assert len(gradients) == 4
    ours = dict(denoiser.network.named_parameters())
    for name, expected in translate(gradients).items():
        gradient = ours[name].grad
        assert gradient is not None and difference(gradient, expected) < 1e-5, name


@pytest.mark.parametrize("method", ["heun", "euler"])
def test_samples_match_the_official_code(method: Method) -> None:
    x = sample(
        load_official(STATE, START),
        noise=GOLDEN["sample.z0"],
        cond={"label": GOLDEN["sample.y"]},
        guidance=META["cfg"],
        guidance_interval=tuple(META["cfg_interval"]),
        steps=META["sampling_steps"],
        method=method,
    )
    assert difference(x, GOLDEN[f"sample.{method}"]) < 1e-5


def test_the_reference_jit_matches_the_official_code() -> None:
    for label, key in ((Y, "forward.x_pred"), (torch.full_like(Y, 10), "forward.y_null_x_pred")):
        assert difference(forward(BARE, TINY, Z, T, label), GOLDEN[key]) < 1e-5


# The reference JiT, for other sizes


@pytest.mark.parametrize(
    "jit",
    [
        Jit(width=24, heads=3),
        Jit(width=40, heads=5, depth=3, context_start=0),
        Jit(width=60, heads=3, depth=4, context_start=3),  # head_dim 20
        Jit(width=16, heads=1, patch=4, side=2, channels=1),
        Jit(width=32, heads=2, context=0),
        Jit(width=16, heads=4, patch=1, side=5, channels=4, classes=1, bottleneck=20),
        Jit(width=16, heads=2, patch=8, side=1, context=5),
        Jit(width=208, heads=2, depth=1, context_start=0),  # head_dim 104, as in G
    ],
    ids=lambda jit: f"{jit.width} wide, {jit.heads} heads, {jit.channels} channels",
)
def test_a_jit_of_any_size_predicts_as_the_reference(jit: Jit) -> None:
    state = random_state(jit)
    denoiser = load_official(state, jit.context_start)
    rng = torch.Generator().manual_seed(1)
    z = torch.randn(3, jit.channels, jit.input_size, jit.input_size, generator=rng)
    t = torch.tensor([0.0, 0.37, 0.98])
    for label in (torch.tensor([0, jit.classes - 1, 0]), torch.full((3,), jit.classes)):
        expected = forward(state, jit, z, t, label)
        with torch.no_grad():
            assert difference(denoiser(z, t, {"label": label}), expected) < 1e-5
    assert denoiser.layout.grid == (jit.input_size, jit.input_size)
    assert denoiser.layout.patch == (jit.patch, jit.patch)
    assert len(denoiser.layout.channels) == jit.channels
    assert denoiser.conditions == {"label": Category(jit.classes)}
    assert denoiser.network.sizes.heads == jit.heads


def test_the_block_of_in_context_tokens_changes_the_prediction() -> None:
    """Shapes cannot tell it: it must be given, or is a third of the depth."""
    assert load_official(STATE).network.sizes.in_context_start == META["depth"] // 3 == START
    later = load_official(STATE, START + 1)
    with torch.no_grad():
        assert difference(later(Z, T, {"label": Y}), GOLDEN["forward.x_pred"]) > 1e-3


def test_model_sizes_of_the_paper_have_its_in_context_start_and_dropout() -> None:
    for size, heads, dropout in (("B", 12, 0.0), ("L", 16, 0.0), ("H", 16, 0.2)):
        preset = SIZES[size]
        _, _, sizes = _shapes(tensors_for_sizes(preset["width"], heads, preset["depth"]), None)
        assert sizes.in_context_start == preset["in_context_start"]
        assert (sizes.heads, sizes.dropout) == (heads, dropout)
        assert (sizes.in_context_tokens, sizes.mlp_hidden) == (32, preset["width"] * 8 // 3)


def tensors_for_sizes(width: int, heads: int, depth: int) -> dict[str, Tensor]:
    """Large tensors only where sizes are inferred from them."""
    return random_state(Jit(width=16, heads=1)) | {
        "pos_embed": torch.empty(1, 4, width),
        "in_context_posemb": torch.empty(1, 32, width),
        "blocks.0.attn.q_norm.weight": torch.empty(width // heads),
        "blocks.0.mlp.w3.weight": torch.empty(width, width * 8 // 3),
        f"blocks.{depth - 1}.norm1.weight": torch.empty(width),
    }


# Noise scale


@pytest.mark.parametrize(
    ("arguments", "requested", "expected"),
    [
        (None, None, 1.0),
        ({"noise_scale": 2.0}, None, 2.0),
        ({"noise_scale": 2.0}, 4.0, 4.0),
        ({"img_size": 32}, None, 1.0),
    ],
)
def test_the_noise_scale_is_the_requested_one_or_that_of_the_file(
    tmp_path: Path, arguments: dict[str, Any] | None, requested: float | None, expected: float
) -> None:
    content: dict[str, Any] = {"model_ema1": STATE}
    if arguments is not None:
        content["args"] = argparse.Namespace(**arguments)
    denoiser = load_official(save(content, tmp_path), START, noise_scale=requested)
    assert denoiser.diffusion.noise_scale == expected


def test_large_images_have_more_noise_by_default() -> None:
    jit = Jit(width=16, heads=1, depth=1, patch=256, side=2, channels=1, context=0)
    assert load_official(random_state(jit)).diffusion.noise_scale == 2.0


def test_t_eps_is_that_of_the_file(tmp_path: Path) -> None:
    arguments = argparse.Namespace(t_eps=0.01)
    path = save({"model_ema1": STATE, "args": arguments}, tmp_path)
    assert load_official(path, START).diffusion.t_eps == 0.01
    assert load_official(STATE, START).diffusion.t_eps == META["t_eps"]


def test_the_noise_of_samples_has_the_noise_scale() -> None:
    denoiser = load_official(STATE, START, noise_scale=2.0)
    unit = load_official(STATE, START)
    assert torch.equal(draw_noise(denoiser, [3], 0), 2 * draw_noise(unit, [3], 0))


# Every form of official files


@pytest.mark.parametrize(
    "content",
    [STATE, BARE, {"model_ema1": STATE}, {"model": BARE}, {"model_ema2": STATE, "epoch": 3}],
    ids=["with net.", "without net.", "nested", "nested without net.", "with other entries"],
)
def test_a_file_or_its_contents_are_loaded(content: dict[str, Any], tmp_path: Path) -> None:
    assert predicts_as_official(content)
    path = save(content, tmp_path)
    assert predicts_as_official(path) and predicts_as_official(str(path))


def whole_file() -> dict[str, Any]:
    """Contents as the official training script writes them; the three entries differ."""
    shifted = [
        {key: value if key == "net.pos_embed" else value + i for key, value in STATE.items()}
        for i in (1, 2)
    ]
    return {
        "model": shifted[0],
        "model_ema1": STATE,
        "model_ema2": shifted[1],
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 599,
        "args": argparse.Namespace(model="JiT-B/16", noise_scale=1.0, cfg=2.9, resume=""),
    }


def test_the_ema_of_decay_0_9999_is_loaded_by_default(tmp_path: Path) -> None:
    assert predicts_as_official(save(whole_file(), tmp_path))


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_can_be_chosen(name: str, tmp_path: Path) -> None:
    content = whole_file()
    denoiser = load_official(save(content, tmp_path), START, weights=name)
    bias = dict(denoiser.network.named_parameters())["time.layer1.bias"]
    assert torch.equal(bias, content[name]["net.t_embedder.mlp.0.bias"])


def test_half_precision_is_loaded_as_float32() -> None:
    half = {key: value.bfloat16() for key, value in STATE.items()}
    half["net.pos_embed"] = STATE["net.pos_embed"]
    denoiser = load_official(half, START)
    assert {p.dtype for p in denoiser.parameters()} == {torch.float32}


def test_an_official_model_is_in_eval_mode_and_decodes_images() -> None:
    denoiser = load_official(STATE, START)
    assert not denoiser.training
    assert denoiser.domain.layout.grid == denoiser.layout.grid
    assert denoiser.domain.conditions == denoiser.conditions
    x = torch.zeros(3, 32, 32)
    image = denoiser.domain.decode(jitkit.Field(x, cond={"label": torch.tensor(3)}))
    assert image.pixels.shape == (32, 32, 3) and image.label == 3


def test_load_official_is_part_of_the_public_interface() -> None:
    assert jitkit.load_official is load_official


# Errors


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.touched}",)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"model": STATE, "args": evil}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, wrap: Callable[[Any], Any], legacy: bool
) -> None:
    path, touched = tmp_path / "checkpoint-last.pth", tmp_path / "touched"
    torch.save(wrap(Evil(touched)), path, _use_new_zipfile_serialization=not legacy)
    text = refusal(path)
    assert text.startswith(f"{path}: ")
    assert text.endswith("would run code (posix.system); refused")
    assert not touched.exists()
    torch.load(path, weights_only=False)  # proof that it would have
    assert touched.exists()


def test_a_file_in_the_older_format_of_torch_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-old.pth"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)
    loaded, expected = load_official(path), load_official({"model": STATE})
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    path, touched = tmp_path / "checkpoint-last.pth", tmp_path / "touched"
    path.write_bytes(pickle.dumps(Evil(touched)))
    assert refusal(path).startswith(f"{path}: ")
    assert not touched.exists()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, fraction: float) -> None:
    path = save(STATE, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(fraction * len(data))])
    assert f"{path}: not a checkpoint, or torn: " in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-lost.pth"
    assert refusal(path) == f"{path}: no such file"
    assert refusal(tmp_path) == f"{tmp_path}: no such file"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], ": holds a list, not a state dict"),
        ({}, ": not tensors: it is empty"),
        ({"model_ema1": {}}, ": not tensors: it is empty"),
        (BARE | {"norm": 3}, ": not tensors: norm"),
        ({"weight": torch.zeros(2)}, ": not an official JiT checkpoint: 'x_embedder.proj1.weight'"),
    ],
)
def test_a_file_with_other_contents_is_refused(tmp_path: Path, content: Any, text: str) -> None:
    assert text in refusal(save(content, tmp_path))


def test_a_missing_entry_is_refused() -> None:
    content = {"model": STATE, "model_ema1": STATE}
    expected = "state dict: no entry 'model_ema2'; it has model_ema1, model"
    assert refusal(content, weights="model_ema2") == expected
    assert refusal(STATE, weights="model") == "state dict: no entry 'model'; it has none"


def test_missing_keys_are_all_listed() -> None:
    removed = ("net.blocks.1.norm1.weight", "net.t_embedder.mlp.0.bias")
    text = refusal({key: value for key, value in STATE.items() if key not in removed})
    assert "missing: time.layer1.bias, blocks.1.norm1.weight" in text


@pytest.mark.parametrize(
    "key", ["pos_embed", "x_embedder.proj1.weight", "blocks.0.attn.q_norm.weight"]
)
def test_a_missing_key_that_sizes_are_inferred_from_is_named(key: str) -> None:
    text = refusal({k: v for k, v in BARE.items() if k != key})
    assert f"not an official JiT checkpoint: '{key}' is missing" in text


def test_extra_keys_are_all_listed() -> None:
    extra = {"net.repa.weight": torch.zeros(1), "net.blocks.0.attn.bias": torch.zeros(1)}
    text = refusal(STATE | extra)
    assert text.endswith("keys that a JiT does not have: repa.weight, blocks.0.attn.bias")


@pytest.mark.parametrize(
    ("key", "shape", "listed"),
    [
        ("blocks.1.attn.qkv.weight", (144, 47), "blocks.1.attn.qkv.weight (144, 47)"),
        ("blocks.1.norm1.weight", (47,), "blocks.1.norm1.weight (47,)"),
        ("final_layer.linear.weight", (100, 48), "final.linear.weight (100, 48)"),
        ("final_layer.linear.bias", (100,), "final.linear.bias (100,)"),
        ("x_embedder.proj2.weight", (48,), "embed.proj2.weight (48,)"),
        ("in_context_posemb", (2, 4, 48), "context (2, 4, 48)"),
        ("t_embedder.mlp.0.weight", (), "time.layer1.weight ()"),
    ],
)
def test_a_wrong_shape_is_listed_with_the_expected_one(
    key: str, shape: tuple[int, ...], listed: str
) -> None:
    text = refusal(BARE | {key: torch.zeros(shape), "blocks.2.norm2.weight": torch.zeros(1)})
    assert f"wrong shape: {listed} where the model has (" in text.replace(
        "blocks.2.norm2.weight (1,) where the model has (48,), ", ""
    )
    assert "blocks.2.norm2.weight (1,) where the model has (48,)" in text


@pytest.mark.parametrize("name", sorted(BARE))
def test_a_wrong_shape_of_any_key_is_refused(name: str) -> None:
    value = BARE[name]
    others = [value.sum(), value[None], value.flatten(), torch.cat([value, value], dim=-1)]
    for other in others:
        if other.shape != value.shape:
            assert refusal(BARE | {name: other}).startswith("state dict")


def test_another_fixed_position_embedding_is_refused() -> None:
    other = BARE["pos_embed"].roll(24, dims=-1)  # the row first
    text = refusal(BARE | {"pos_embed": other})
    expected = r"pos_embed differs by [\d.]+ from the fixed position embedding of a \(32, 32\) grid"
    assert re.search(expected, text)
    assert "pos_embed differs by nan" in refusal(BARE | {"pos_embed": other * torch.nan})
    text = refusal(BARE | {"pos_embed": torch.zeros(1, 15, 48)})
    assert text == "state dict: pos_embed has 15 tokens, which is not a square number"


@pytest.mark.parametrize("start", [-1, 4])
def test_an_in_context_start_beyond_the_last_block_is_refused(start: int) -> None:
    expected = f"state dict: in_context_start is {start}, but the network has blocks 0 to 3"
    assert refusal(STATE, start=start) == expected


# Import as a run


def test_an_imported_run_loads_as_the_official_model(tmp_path: Path) -> None:
    content = {"model_ema1": STATE, "args": argparse.Namespace(noise_scale=2.0, t_eps=0.04)}
    run = import_official(save(content, tmp_path), tmp_path / "run", in_context_start=START)
    direct = load_official(content, START)
    loaded = jitkit.load(run, device="cpu")
    assert loaded.describe() == direct.describe()
    assert loaded.diffusion.noise_scale == 2.0 and loaded.diffusion.t_eps == 0.04
    with torch.no_grad():
        for label in (Y, 10):
            assert torch.equal(loaded(Z, T, {"label": label}), direct(Z, T, {"label": label}))
    domain = checkpoint.load(run, device="cpu").domain
    assert domain.conditions == {"label": Category(10)}
    assert domain.layout.grid == (32, 32)
    assert jitkit.load_recipe(run / "recipe.yaml").model.in_context_start == START


def test_an_import_overwrites_nothing(tmp_path: Path) -> None:
    path = save(STATE, tmp_path)
    with pytest.raises(RecipeError, match="is not empty; choose another folder"):
        import_official(path, tmp_path, in_context_start=START)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
