"""Networks that see pictures, by torch-fidelity (Obukhov et al. 2020), and where weights come from.

A file of weights is read as tensors alone: torch-fidelity itself would unpickle it, which may run
what is in it, and so is given a copy that we wrote.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.console import say
from jitkit.utils.types import Array

INCEPTION = "inception-v3-compat"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # its name in torch's cache
METRICS = ("fid", "kid", "prc", "isc")  # as torch-fidelity calls them
BATCH = 64  # pictures seen at once, torch-fidelity's own number


class Extractor:
    """A network that turns pictures into rows of features.

    Args:
        name: for the record.
        module: a torch-fidelity feature extractor; uint8 (N, 3, H, W) to a tuple of (N, D).
        layers: which of its features each of `METRICS` looks at; a metric that has none is left
            out.
        size: height and width of the pictures that will come.

    Attributes:
        columns: where each metric's features stand in a row.
        key: tells it from any other: its name, its code and every one of its weights.
    """

    def __init__(self, name: str, module: Any, layers: Mapping[str, str], size: int) -> None:
        self.name, self.key = name, _key(name, module)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module = module.to(self.device).eval().requires_grad_(False)
        blank = self._seen(np.zeros((1, size, size, 3), np.uint8))
        ends = np.cumsum([0, *(part.shape[1] for part in blank)]).tolist()
        names = module.get_requested_features_list()
        places = dict(zip(names, map(slice, ends, ends[1:]), strict=False))
        self.columns = {metric: places[layer] for metric, layer in layers.items()}

    def __call__(self, pixels: Array) -> Array:
        """Pictures (N, H, W, C) uint8, grey or colour, as rows of features (N, D)."""
        parts = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        return np.concatenate([np.concatenate(self._seen(part), axis=1) for part in parts])

    @torch.inference_mode()
    def _seen(self, pixels: Array) -> list[Array]:
        colours = pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels[..., :3]
        batch = torch.from_numpy(np.ascontiguousarray(colours.transpose(0, 3, 1, 2)))
        return [features.cpu().numpy() for features in self._module(batch.to(self.device))]


def is_installed() -> bool:
    """Whether torch-fidelity is there, found out without the seconds that its import takes."""
    return find_spec("torch_fidelity") is not None


def cached_inception() -> Path | None:
    """Inception's weights where torch-fidelity would have put them; None where they are not."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return path if path.is_file() else None


def inception_file(asked: str | None) -> Path:
    """The file of Inception's weights that ``domain.fid.inception_weights`` says.

    Args:
        asked: a file, ``"download"``, or None for the copy in torch's cache.

    Raises:
        DataError: it is not there, or cannot be downloaded.
    """
    found = cached_inception()
    if asked not in (None, "download"):
        found = Path(asked).expanduser()
        if not found.is_file():
            raise DataError(f"domain.fid.inception_weights {asked}: no such file; {_how_to_get()}")
    if found is None and asked == "download":
        return _downloaded()
    if found is None:
        raise DataError(
            f"Inception's weights are not at hand; {_how_to_get()}. Or compare by another network: "
            "domain.fid.extractor"
        )
    return found


def _how_to_get() -> str:
    return (
        "fetch github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        f"{INCEPTION_FILE} (91 MB) where there is internet and name it by "
        "domain.fid.inception_weights=FILE, or let it be fetched: "
        "domain.fid.inception_weights=download"
    )


def _downloaded() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"fetching {URL_INCEPTION_V3}")
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), "6726825d", progress=False)
    except (OSError, RuntimeError) as error:  # no network, or another content than the known one
        raise DataError(
            f"Inception's weights cannot be fetched: {error}; {_how_to_get()}"
        ) from None
    return path


def open_extractor(name: str, size: int, weights: Path | None = None) -> Extractor:
    """The network of a name.

    Args:
        name: one that is registered with torch-fidelity, or ``package.module:Class`` of a class
            like those (a subclass of its FeatureExtractorBase).
        size: height and width of the pictures that will come.
        weights: file of its weights; only Inception is given one.

    Raises:
        RecipeError: there is no such network.
        DataError: its weights cannot be had, or are another network's.
    """
    cls = _own_class(name) if ":" in name else _registered(name)
    layers = dict(_layers(cls))
    if "fid" not in layers:
        raise RecipeError(f"domain.fid.extractor {name!r} names no layer for fid")
    wanted = list(dict.fromkeys(layers.values()))
    try:
        with _as_tensors_alone(weights) as path:
            given = {} if path is None else {"feature_extractor_weights_path": str(path)}
            module = cls(name.rpartition(":")[2], wanted, verbose=False, **given)
    except (OSError, RuntimeError) as error:
        where = f" by {weights}" if weights else ""
        why = " ".join(str(error).split())[:300]
        raise DataError(f"network {name!r} cannot be loaded{where}: {why}") from None
    return Extractor(name, module, layers, size)


def _registered(name: str) -> Any:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known

    if name not in known:
        raise RecipeError(
            f"domain.fid.extractor {name!r} is not registered with torch-fidelity, which has "
            f"{listed(known, 20)}{nearest(name, known)}; one of your own is package.module:Class"
        )
    return known[name]


def _own_class(name: str) -> Any:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    place, _, title = name.partition(":")
    try:
        cls = getattr(importlib.import_module(place), title)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"domain.fid.extractor {name!r} cannot be imported: {error}; it must be installed, or "
            "its folder in PYTHONPATH"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, FeatureExtractorBase)):
        raise RecipeError(
            f"domain.fid.extractor {name!r} is no subclass of torch_fidelity's FeatureExtractorBase"
        )
    return cls


def _layers(cls: Any) -> Iterator[tuple[str, str]]:
    """The layer of each metric. Scores of classes need classes: a layer of their own, as logits."""
    found = {}
    for metric in METRICS:
        try:
            found[metric] = str(cls.get_default_feature_layer_for_metric(metric))
        except (KeyError, NotImplementedError):
            continue
    if found.get("isc") == found.get("fid"):
        found.pop("isc", None)
    yield from found.items()


@contextmanager
def _as_tensors_alone(weights: Path | None) -> Iterator[Path | None]:
    """A copy of a file of weights that holds nothing but tensors, for as long as it is read.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    if weights is None:
        yield None
        return
    try:
        if weights.suffix == ".safetensors":
            tensors = load_file(weights)
        else:
            tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        why = str(error).splitlines()[0]
        raise DataError(f"{weights} cannot be read as weights: {why}") from None
    with tempfile.TemporaryDirectory(prefix="jitkit-") as folder:
        path = Path(folder) / "weights.pth"
        torch.save(tensors, path)
        yield path


def _key(name: str, module: Any) -> str:
    """A hash of a network: name, code, weights."""
    found = hashlib.blake2b(name.encode(), digest_size=20)
    try:
        found.update(inspect.getsource(type(module)).encode())
    except (OSError, TypeError):  # a class that was typed in has no file
        found.update(type(module).__qualname__.encode())
    for key, value in sorted(module.state_dict().items()):
        found.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        found.update(_bytes(value))
    return found.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stacked(items: Sequence[Any]) -> Array:
    """Pixels of pictures of one size, (N, H, W, C) uint8."""
    return np.stack([item.pixels for item in items])
