"""Load official JiT checkpoints: convert parameter names and shapes, without running pickled code.

A file of the official code (github.com/LTH14/JiT) has entries ``model``, ``model_ema1`` (decay
.9999) and ``model_ema2`` (.9996), each a whole state dict whose keys may begin with ``net.``,
besides the optimizer and an argparse Namespace.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import entry_points
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.flow import auto_noise_scale
from jitkit.domain import Domain
from jitkit.errors import CheckpointError, RecipeError, listed
from jitkit.fields import Axis, Category, Layout
from jitkit.nn.transformer import Sizes
from jitkit.optim.ema import EMA
from jitkit.recipe.load import dump_recipe, load_recipe
from jitkit.runs.checkpoint import DomainRecord, load_weights, save_checkpoint
from jitkit.runs.run_dir import write_text
from jitkit.sections import SIZES, ModelSection
from jitkit.utils.console import warn

ENTRIES = {"model_ema1": 0.9999, "model_ema2": 0.9996, "model": None}
"""State dicts of an official checkpoint, the preferred one first, and the decay of each EMA."""

_LABEL = "label"
GROUP = "jitkit.official_weights"
"""Entry-point group of the function that makes the image domain of an official checkpoint."""
_CHANNELS = {
    1: ("grey",),
    3: ("red", "green", "blue"),
    4: ("red", "green", "blue", "alpha"),
}


# Tensors of unexpected shape are returned unchanged; `load_weights` lists them with the others.


def _same(value: Tensor, channels: int) -> Tensor:
    return value


def _flat(value: Tensor, channels: int) -> Tensor:
    """The kernel of a convolution over one patch, as a matrix."""
    return value.flatten(1) if value.ndim == 4 else value


def _first(value: Tensor, channels: int) -> Tensor:
    return value[0] if value.ndim == 3 and len(value) == 1 else value


def _channels_first(value: Tensor, channels: int) -> Tensor:
    """Reorder rows of the last layer from (row, column, channel) to (channel, row, column)."""
    rows = len(value) if value.ndim else 0
    side = isqrt(rows // channels)
    if not rows or side * side * channels != rows:
        return value
    return value.reshape(side, side, channels, *value.shape[1:]).movedim(2, 0).flatten(0, 2)


_NAMES: tuple[tuple[str, str, Callable[[Tensor, int], Tensor]], ...] = (
    (r"in_context_posemb", "context", _first),
    (r"t_embedder\.mlp\.0\.(weight|bias)", r"time.layer1.\1", _same),
    (r"t_embedder\.mlp\.2\.(weight|bias)", r"time.layer2.\1", _same),
    (r"y_embedder\.embedding_table\.weight", f"vectors.of_{_LABEL}.table.weight", _same),
    (r"x_embedder\.proj1\.weight", "embed.proj1.weight", _flat),
    (r"x_embedder\.proj2\.weight", "embed.proj2.weight", _flat),
    (r"x_embedder\.proj2\.bias", "embed.proj2.bias", _same),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.(weight|bias)", r"blocks.\1.adaLN.\2", _same),
    (r"blocks\.(\d+)\.((?:norm1|norm2|attn\.[qk]_norm)\.weight)", r"blocks.\1.\2", _same),
    (r"blocks\.(\d+)\.((?:attn\.(?:qkv|proj)|mlp\.w12|mlp\.w3)\.(?:weight|bias))", r"blocks.\1.\2", _same),  # noqa: E501
    (r"final_layer\.norm_final\.weight", "final.norm.weight", _same),
    (r"final_layer\.adaLN_modulation\.1\.(weight|bias)", r"final.adaLN.\1", _same),
    (r"final_layer\.linear\.(weight|bias)", r"final.linear.\1", _channels_first),
)  # fmt: skip


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert tensors (parameters, gradients, EMA) from the official names and layouts to ours.

    Raises:
        CheckpointError: keys that a JiT does not have; all are listed.
    """
    channels = state["x_embedder.proj1.weight"].shape[1] if _PROJ1 in state else 3
    ours, unknown = {}, []
    for key, value in state.items():
        for pattern, name, convert in _NAMES:
            if match := re.fullmatch(pattern, key):
                ours[match.expand(name)] = convert(value, channels)
                break
        else:
            if key != "pos_embed":
                unknown.append(key)
    if unknown:
        raise CheckpointError(f"keys that a JiT does not have: {listed(unknown)}")
    return ours


_PROJ1 = "x_embedder.proj1.weight"


def load_official(
    source: str | Path | Mapping[str, Any],
    in_context_start: int | None = None,
    *,
    weights: str | None = None,
    noise_scale: float | None = None,
) -> Denoiser:
    """An official JiT checkpoint as a `Denoiser`, in eval mode, on the CPU.

    All sizes are inferred from tensor shapes, every key is checked, and no code in the file is run.

    Args:
        source: a ``.pth`` file or its contents: a state dict, or a mapping of several.
        in_context_start: the block before which in-context tokens are inserted, counted from 0,
            which shapes cannot tell; by default the paper's value for the model size, else a third
            of the depth.
        weights: the entry to load; by default the first present of ``model_ema1``, ``model_ema2``,
            ``model``.
        noise_scale: standard deviation of the training noise; by default that recorded in the
            file, else side / 256 (at least 1).

    Raises:
        CheckpointError: the file is missing, torn or needs to run code, or keys are missing,
            unexpected or of the wrong shape; all are listed.
    """
    where = str(source) if isinstance(source, str | Path) else "state dict"
    content = _read(Path(source)) if isinstance(source, str | Path) else source
    state = _choose(content, weights, where)
    args = content.get("args")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    args = args if isinstance(args, Mapping) else {}

    try:
        layout, classes, sizes = _shapes(state, in_context_start)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{where}: not an official JiT checkpoint: {error} is missing or has a shape that "
            f"does not fit; found {listed(state)}"
        ) from error
    if (
        sizes.in_context_tokens
        and in_context_start is None
        and not _paper_preset((sizes.width, sizes.depth))
    ):
        warn(
            f"{where}: in-context tokens are assumed to be inserted before block "
            f"{sizes.in_context_start}, a third of the depth; set in_context_start if this is wrong"
        )
    scale = args.get("noise_scale") if noise_scale is None else noise_scale
    scale = auto_noise_scale(layout.grid[0] ** 2) if scale is None else scale
    drop = args.get("label_drop_prob")
    try:
        label = Category(classes, drop=0.1 if drop is None else float(drop))
        diffusion = Diffusion(noise_scale=float(scale), t_eps=float(args.get("t_eps") or 0.05))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: {error}") from None
    denoiser = Denoiser(layout, {_LABEL: label}, sizes, diffusion)

    difference = (state["pos_embed"][0] - denoiser.network.pos_embed).abs().max()
    if not difference < 1e-2:  # half precision alone changes it by 1e-3
        raise CheckpointError(
            f"{where}: pos_embed differs by {difference:.2g} from the fixed position embedding "
            f"of a {layout.grid} grid, so this model was built differently"
        )
    try:
        load_weights(denoiser.network, translate(state), "the checkpoint")
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if len(layout.channels) in _CHANNELS:
        denoiser.domain = _image_domain(denoiser)
    return denoiser.eval()


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    zipped = zipfile.is_zipfile(path)  # older torch files are not, and cannot be memory-mapped
    try:
        with (
            torch.serialization.safe_globals([argparse.Namespace]),
            warnings.catch_warnings(action="ignore"),  # about pickles that it then refuses
        ):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path}: it holds more than tensors and would run code ({code[1]}); refused"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint, or torn: no pickle of tensors") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a checkpoint, or torn: {text}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _entries(content: Mapping[str, Any]) -> list[str]:
    """Names of the state dicts in a file, the preferred one first; empty for a bare state dict."""
    return [name for name in ENTRIES if isinstance(content.get(name), Mapping)]


def _choose(content: Mapping[str, Any], weights: str | None, where: str) -> dict[str, Tensor]:
    """The requested state dict, in float32, without the prefix ``net.``."""
    entries = _entries(content)
    if weights is not None and weights not in entries:
        raise CheckpointError(f"{where}: no entry {weights!r}; it has {listed(entries) or 'none'}")
    chosen = content[weights or entries[0]] if entries else content
    state = {str(key).removeprefix("net."): value for key, value in chosen.items()}
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        raise CheckpointError(f"{where}: not tensors: {listed(wrong) or 'it is empty'}")
    return {key: value.float() for key, value in state.items()}


def _paper_preset(width_and_depth: tuple[int, int]) -> dict[str, Any]:
    """The paper's model size of this width and depth; empty if there is none."""
    presets = [s for s in SIZES.values() if (s["width"], s["depth"]) == width_and_depth]
    return presets[0] if presets else {}


def _shapes(state: Mapping[str, Tensor], in_context_start: int | None) -> tuple[Layout, int, Sizes]:
    """Layout, number of classes and sizes from the shapes of the tensors."""
    bottleneck, channels, patch, _ = state[_PROJ1].shape
    _, tokens, width = state["pos_embed"].shape
    side = isqrt(tokens) * patch
    if isqrt(tokens) ** 2 != tokens:
        raise CheckpointError(f"pos_embed has {tokens} tokens, which is not a square number")
    rows, columns = Axis("row", side, patch), Axis("column", side, patch)
    names = _CHANNELS.get(channels) or tuple(f"channel {i}" for i in range(channels))
    blocks = [re.match(r"blocks\.(\d+)\.", key) for key in state]
    depth = 1 + max(int(match[1]) for match in blocks if match)
    context = state.get("in_context_posemb")
    if context is not None and not 0 <= (in_context_start or 0) < depth:
        raise CheckpointError(
            f"in_context_start is {in_context_start}, but the network has blocks 0 to {depth - 1}"
        )
    preset = _paper_preset((width, depth))
    resolved = ModelSection(
        width=width,
        depth=depth,
        heads=width // len(state["blocks.0.attn.q_norm.weight"]),
        bottleneck=bottleneck,
        in_context_tokens=0 if context is None else context.shape[1],
        in_context_start=preset.get("in_context_start")
        if in_context_start is None
        else in_context_start,
        mlp_hidden=state["blocks.0.mlp.w3.weight"].shape[1],
        dropout=preset.get("dropout"),
    ).resolved()
    classes = len(state["y_embedder.embedding_table.weight"]) - 1
    return Layout((rows, columns), names), classes, Sizes(**resolved)


def import_official(
    source: Path,
    run: Path,
    *,
    in_context_start: int | None = None,
    weights: str | None = None,
    noise_scale: float | None = None,
) -> Path:
    """Import an official JiT checkpoint as a run, and return its folder.

    Raises:
        CheckpointError: as in `load_official`.
        RecipeError: the folder is not empty.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise RecipeError(f"{run} is not empty; choose another folder with --run DIR")
    denoiser = load_official(source, in_context_start, weights=weights, noise_scale=noise_scale)
    if len(denoiser.layout.channels) not in _CHANNELS:
        raise CheckpointError(
            f"{source}: {len(denoiser.layout.channels)} channels do not make an image; load it in "
            "Python with jitkit.load_official"
        )
    loaded = [weights] if weights else _entries(_read(source))[:1]
    decays = [decay for name in loaded if (decay := ENTRIES[name]) is not None]
    section = denoiser.domain.section
    assert section is not None
    recipe = load_recipe(
        {
            "name": run.name,
            "train": {"ema": decays} if decays else {},
            "domain": section.model_dump(mode="json"),
            "model": asdict(denoiser.network.sizes) | {"patch": denoiser.layout.patch[0]},
            "diffusion": {
                "noise_scale": denoiser.diffusion.noise_scale,
                "t_eps": denoiser.diffusion.t_eps,
            },
        }
    )
    ema = EMA(denoiser.network, decays)
    metadata = denoiser.domain.metadata()
    record = DomainRecord(recipe.domain.model_dump(mode="json"), metadata)
    save_checkpoint(run, 0, denoiser, ema, domain=record)
    write_text(run / "recipe.yaml", dump_recipe(recipe))
    return run


def _image_domain(denoiser: Denoiser) -> Domain:
    """The domain of the images that the model generates; its adapter registers in `GROUP`."""
    points = tuple(entry_points(group=GROUP))
    if len(points) != 1:
        raise CheckpointError(
            f"{len(points)} packages register a domain for the images of official weights in the "
            f"entry points {GROUP!r}, not one; install jitkit again: pip install -e ."
        )
    label = denoiser.conditions[_LABEL]
    assert isinstance(label, Category)
    domain: Domain = points[0].load()(
        size=denoiser.layout.grid[0],
        channels=len(denoiser.layout.channels),
        classes=label.n,
        label_drop=label.drop,
    )
    return domain
