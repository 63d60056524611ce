"""Feature extractors for FID: Inception and other networks of torch-fidelity (Obukhov et al. 2020).

Weight files are read as tensors only. torch-fidelity would unpickle them, which can run code, so it
reads a copy written here.
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
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # file name in torch's cache
METRICS = ("fid", "kid", "prc", "isc")  # torch-fidelity's names
BATCH = 64  # images, as in torch-fidelity


class FeatureExtractor:
    """A network that maps images to feature vectors.

    Args:
        name: recorded with the results.
        module: a torch-fidelity feature extractor; uint8 (N, 3, H, W) to a tuple of (N, D).
        layers: the layer used by each of `METRICS`; metrics without a layer are left out.
        size: height and width of the images.

    Attributes:
        columns: slice of each metric's features in a feature vector.
        key: hash of name, code and all weights.
    """

    def __init__(self, name: str, module: Any, layers: Mapping[str, str], size: int) -> None:
        self.name, self.key = name, _key(name, module)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._module = module.to(self.device).eval().requires_grad_(False)
        blank = self._extract(np.zeros((1, size, size, 3), np.uint8))
        ends = np.cumsum([0, *(part.shape[1] for part in blank)]).tolist()
        names = module.get_requested_features_list()
        slices = dict(zip(names, map(slice, ends, ends[1:]), strict=False))
        self.columns = {metric: slices[layer] for metric, layer in layers.items()}

    def __call__(self, pixels: Array) -> Array:
        """Features (N, D) of images (N, H, W, C) uint8, grey or colour."""
        parts = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        return np.concatenate([np.concatenate(self._extract(part), axis=1) for part in parts])

    @torch.inference_mode()
    def _extract(self, pixels: Array) -> list[Array]:
        colours = pixels.repeat(3, axis=3) if pixels.shape[3] == 1 else pixels[..., :3]
        batch = torch.from_numpy(np.ascontiguousarray(colours.transpose(0, 3, 1, 2)))
        return [features.cpu().numpy() for features in self._module(batch.to(self.device))]


def torch_fidelity_installed() -> bool:
    """Whether torch-fidelity is installed, without its import, which takes seconds."""
    return find_spec("torch_fidelity") is not None


def cached_inception() -> Path | None:
    """Inception's weights in torch's cache, where torch-fidelity stores them; None if absent."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    return path if path.is_file() else None


def inception_file(setting: str | None) -> Path:
    """The file of Inception's weights by ``domain.fid.inception_weights``.

    Args:
        setting: a file, ``"download"``, or None for the copy in torch's cache.

    Raises:
        DataError: the file does not exist or cannot be downloaded.
    """
    path = cached_inception()
    if setting not in (None, "download"):
        path = Path(setting).expanduser()
        if not path.is_file():
            raise DataError(
                f"domain.fid.inception_weights {setting}: no such file; {_how_to_get()}"
            )
    if path is None and setting == "download":
        return _download()
    if path is None:
        raise DataError(
            f"Inception's weights are missing; {_how_to_get()}. Or use another network: "
            "domain.fid.extractor"
        )
    return path


def _how_to_get() -> str:
    return (
        "download github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        f"{INCEPTION_FILE} (91 MB) and set domain.fid.inception_weights=FILE, or download it "
        "automatically: domain.fid.inception_weights=download"
    )


def _download() -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"downloading {URL_INCEPTION_V3}")
    try:
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), "6726825d", progress=False)
    except (OSError, RuntimeError) as error:  # no network, or a wrong checksum
        raise DataError(
            f"Inception's weights cannot be downloaded: {error}; {_how_to_get()}"
        ) from None
    return path


def open_extractor(name: str, size: int, weights: Path | None = None) -> FeatureExtractor:
    """Load the feature extractor of a name.

    Args:
        name: registered with torch-fidelity, or ``package.module:Class`` of a subclass of its
            FeatureExtractorBase.
        size: height and width of the images.
        weights: weight file; for Inception only.

    Raises:
        RecipeError: no such network.
        DataError: its weights cannot be loaded or do not fit.
    """
    cls = _own_class(name) if ":" in name else _registered(name)
    layers = dict(_layers(cls))
    if "fid" not in layers:
        raise RecipeError(f"domain.fid.extractor {name!r} has no layer for fid")
    requested = list(dict.fromkeys(layers.values()))
    try:
        with _tensors_only(weights) as path:
            options = {} if path is None else {"feature_extractor_weights_path": str(path)}
            module = cls(name.rpartition(":")[2], requested, verbose=False, **options)
    except (OSError, RuntimeError) as error:
        source = f" from {weights}" if weights else ""
        why = " ".join(str(error).split())[:300]
        raise DataError(f"network {name!r} cannot be loaded{source}: {why}") from None
    return FeatureExtractor(name, module, layers, size)


def _registered(name: str) -> Any:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as registry

    if name not in registry:
        raise RecipeError(
            f"domain.fid.extractor {name!r} is not registered with torch-fidelity, which has "
            f"{listed(registry, 20)}{nearest(name, registry)}; your own is package.module:Class"
        )
    return registry[name]


def _own_class(name: str) -> Any:
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    module, _, title = name.partition(":")
    try:
        cls = getattr(importlib.import_module(module), title)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"domain.fid.extractor {name!r} cannot be imported: {error}; install it or add "
            "its folder to PYTHONPATH"
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, FeatureExtractorBase)):
        raise RecipeError(
            f"domain.fid.extractor {name!r} does not subclass torch_fidelity's FeatureExtractorBase"
        )
    return cls


def _layers(cls: Any) -> Iterator[tuple[str, str]]:
    """The layer of each metric. The Inception score needs logits, a layer other than FID's."""
    layers = {}
    for metric in METRICS:
        try:
            layers[metric] = str(cls.get_default_feature_layer_for_metric(metric))
        except (KeyError, NotImplementedError):
            continue
    if layers.get("isc") == layers.get("fid"):
        layers.pop("isc", None)
    yield from layers.items()


@contextmanager
def _tensors_only(weights: Path | None) -> Iterator[Path | None]:
    """A temporary copy of a weight file with tensors only.

    Raises:
        DataError: the file cannot be read or has other content.
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
    digest = hashlib.blake2b(name.encode(), digest_size=20)
    try:
        digest.update(inspect.getsource(type(module)).encode())
    except (OSError, TypeError):  # a class defined interactively has no file
        digest.update(type(module).__qualname__.encode())
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def stack_pixels(items: Sequence[Any]) -> Array:
    """Pixels of images of the same size, (N, H, W, C) uint8."""
    return np.stack([item.pixels for item in items])
