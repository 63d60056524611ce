"""Reference statistics for FID: mean, covariance and features of real images.

They come from the training split, a folder, or an .npz: ``mu`` (D,) and ``sigma`` (D, D) of a
network's features, as in the paper's code; images ``arr_0`` (N, H, W, C) uint8; or both, as in
ADM's reference batches (Dhariwal & Nichol 2021): the statistics are then of all its real images,
and ``arr_0`` is a subset, for metrics on single images.

Features are cached under a hash of the network and the content of the images.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jitkit.errors import BadItem, DataError, listed
from jitkit.metrics.fid.extractors import FeatureExtractor, stack_pixels
from jitkit.utils import cache
from jitkit.utils.console import bar
from jitkit.utils.types import Array

MAX_FEATURES = 10_000  # real images whose features are kept, as in ADM; statistics use all
IMAGES_PER_BATCH = 256
THREADS = 8


@dataclass(frozen=True)
class ReferenceStatistics:
    """Feature statistics of real images.

    Attributes:
        mu, sigma: mean (D,) and covariance (D, D) of the features of FID.
        features: of at most 10,000 images, (N, all features); None if only statistics are known.
        items: number of images in the statistics; None if unknown.
    """

    mu: Array
    sigma: Array
    features: Array | None
    items: int | None


def reference_from_items(
    items: Sequence[Any], extractor: FeatureExtractor, max_items: int | str
) -> ReferenceStatistics:
    """Reference statistics of images read one by one; unreadable ones are skipped.

    Args:
        items: images with ``pixels``, from a split. If it has a method ``content(index)``, its
            bytes identify the image in the cache key without decoding.
        extractor: the network.
        max_items: at most this many, evenly spaced; or ``"all"``.

    Raises:
        DataError: fewer than two images can be read.
    """
    count = len(items) if max_items == "all" else min(len(items), int(max_items))
    indices = [i * len(items) // count for i in range(count)]
    content = getattr(items, "content", None) or (lambda i: items[i].pixels.tobytes())
    key = _hash_contents(indices, content, extractor.key)
    return _cached(key, extractor, lambda: _read(items, indices), count)


def reference_from_file(path: Path, extractor: FeatureExtractor) -> ReferenceStatistics:
    """Reference statistics from an .npz.

    Raises:
        DataError: it cannot be read, has neither statistics nor images, or statistics of another
            network.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            stats = {k: file[k] for k in ("mu", "sigma") if k in names}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"domain.fid.reference {path} cannot be read: {error}") from None
    images = _from_batch(path, extractor) if "arr_0" in names else None
    if len(stats) < 2:
        if images is None:
            raise DataError(
                f"domain.fid.reference {path} has {listed(sorted(names))}: expected mu and "
                "sigma, or images arr_0 (N, H, W, C)"
            )
        return images
    _check_statistics(path, stats["mu"], stats["sigma"], extractor)
    features = None if images is None else images.features
    return ReferenceStatistics(stats["mu"], stats["sigma"], features, None)


def mean_and_covariance(features: Array) -> tuple[Array, Array]:
    """Mean and unbiased covariance of features (N, D), by torch-fidelity."""
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics

    stats = fid_features_to_statistics(torch.from_numpy(np.ascontiguousarray(features)))
    return stats["mu"], np.atleast_2d(stats["sigma"])


class _Sums:
    """Streaming mean and covariance in float64, about the mean of the first batch."""

    def __init__(self, features: Array) -> None:
        self.count, self.origin = 0, features.mean(axis=0, dtype=np.float64)
        width = features.shape[1]
        self.total, self.products = np.zeros(width), np.zeros((width, width))

    def add(self, features: Array) -> None:
        centred = features - self.origin
        self.count += len(centred)
        self.total += centred.sum(axis=0)
        self.products += centred.T @ centred

    def mean_and_covariance(self) -> tuple[Array, Array]:
        shift = self.total / self.count
        cov = (self.products - self.count * np.outer(shift, shift)) / (self.count - 1)
        return self.origin + shift, cov


def _cached(
    key: str, extractor: FeatureExtractor, read: Callable[[], Iterator[Array]], count: int
) -> ReferenceStatistics:
    """Reference statistics of the images of `read`, from the cache if present."""
    entry = cache.load_entry("features", key)
    if entry is None:
        entry = _compute(read(), extractor, count)
        cache.save_entry("features", key, entry)
    return ReferenceStatistics(entry["mu"], entry["sigma"], entry["rows"], entry["items"])


def _compute(parts: Iterator[Array], extractor: FeatureExtractor, count: int) -> dict[str, Any]:
    """Statistics of all images, and features of some, evenly spaced."""
    kept, done, stride = [], 0, -(-count // MAX_FEATURES)
    sums: _Sums | None = None
    columns = extractor.columns["fid"]
    with bar("real images", count, unit="images") as progress:
        for pixels in parts:
            features = extractor(pixels)
            sums = sums or _Sums(features[:, columns])
            sums.add(features[:, columns])
            kept.append(features[-done % stride :: stride])
            done += len(features)
            progress(done)
    if sums is None or done < 2:
        raise DataError("fewer than two real images can be read; a reference needs at least two")
    features = np.concatenate(kept)
    # if all features are kept: identical to torch-fidelity
    mu, sigma = (
        mean_and_covariance(features[:, columns])
        if len(features) == done
        else sums.mean_and_covariance()
    )
    return {"mu": mu, "sigma": sigma, "rows": features, "items": done}


def _read(items: Sequence[Any], indices: Sequence[int]) -> Iterator[Array]:
    """Pixels in batches, decoded by several threads."""

    def one(index: int) -> Any:
        try:
            return items[index]
        except BadItem:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(indices), IMAGES_PER_BATCH):
            batch = indices[start : start + IMAGES_PER_BATCH]
            readable = [item for item in pool.map(one, batch) if item]
            if readable:
                yield stack_pixels(readable)


def _from_batch(path: Path, extractor: FeatureExtractor) -> ReferenceStatistics:
    """Reference statistics of the images ``arr_0`` of an .npz."""
    with _OpenBatch(path) as (shape, parts):
        key = _hash(chain([extractor.key.encode(), str(shape).encode()], parts))
    count = shape[0]

    def read() -> Iterator[Array]:
        with _OpenBatch(path) as (_, parts):
            for part in parts:
                yield np.frombuffer(part, np.uint8).reshape(-1, *shape[1:])

    return _cached(key, extractor, read, count)


class _OpenBatch:
    """``arr_0`` of an .npz, which may be large: its shape, and its images as bytes in batches."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[tuple[int, ...], Iterator[bytes]]:
        self.zip = zipfile.ZipFile(self.path)
        self.file = self.zip.open("arr_0.npy")
        version = np.lib.format.read_magic(self.file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = header(self.file)
        if fortran or dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4):
            self.__exit__()
            raise DataError(
                f"domain.fid.reference {self.path}: arr_0 is {dtype} {shape}; expected uint8 "
                "(N, H, W, C) of grey or colour"
            )
        return shape, self._parts(int(np.prod(shape[1:])) * IMAGES_PER_BATCH)

    def _parts(self, size: int) -> Iterator[bytes]:
        while part := self.file.read(size):
            yield part

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.zip.close()


def _check_statistics(path: Path, mu: Array, sigma: Array, extractor: FeatureExtractor) -> None:
    columns = extractor.columns["fid"]
    width = columns.stop - columns.start
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise DataError(
            f"domain.fid.reference {path}: mu {mu.shape} and sigma {sigma.shape} are not of "
            f"{extractor.name}, which has {width} features"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"domain.fid.reference {path}: mu or sigma is not finite")


def _hash_contents(indices: Sequence[int], content: Callable[[int], bytes], start: str) -> str:
    """A hash of the images' contents; unreadable images count as empty."""

    def one(index: int) -> bytes:
        try:
            return hashlib.blake2b(content(index), digest_size=20).digest()
        except (BadItem, OSError):
            return b""

    with (
        bar("contents", len(indices), unit="images") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        total = hashlib.blake2b(start.encode(), digest_size=20)
        for first in range(0, len(indices), IMAGES_PER_BATCH):
            for digest in pool.map(one, indices[first : first + IMAGES_PER_BATCH]):
                total.update(digest)
            progress(min(first + IMAGES_PER_BATCH, len(indices)))
    return total.hexdigest()


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
