"""What samples of pictures are compared with: statistics and features of real ones.

They come from the training split, a folder, or an .npz: ``mu`` (D,) and ``sigma`` (D, D) of a
network's features, as the paper's code ships them; pictures ``arr_0`` (N, H, W, C) uint8; or both,
as ADM's reference batches have them (Dhariwal & Nichol 2021): its statistics are then of all its
real pictures, and ``arr_0`` is a part of them, for scores that look at single pictures.

What a network saw is kept in the cache under the contents of network and pictures.
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
from jitkit.metrics.fid.extractors import Extractor, stacked
from jitkit.utils import cache
from jitkit.utils.console import bar
from jitkit.utils.types import Array

KEPT = 10_000  # real pictures whose features are kept, ADM's number; statistics are of all
AT_ONCE = 256
THREADS = 8


@dataclass(frozen=True)
class Reference:
    """Real pictures as a network sees them.

    Attributes:
        mu, sigma: mean (D,) and covariance (D, D) of the features of FID.
        rows: features of at most 10,000 pictures, (N, all features); None where there are only
            statistics.
        items: how many pictures the statistics are of; None where that is not known.
    """

    mu: Array
    sigma: Array
    rows: Array | None
    items: int | None


def of_items(items: Sequence[Any], extractor: Extractor, how_many: int | str) -> Reference:
    """The reference of pictures that are read one by one, those that cannot be read left out.

    Args:
        items: pictures with ``pixels``, from a split; with a method ``content(index)``, its bytes
            stand for a picture in the key of the cache, and it need not be decoded.
        extractor: the network.
        how_many: at most, evenly spread; or ``"all"``.

    Raises:
        DataError: fewer than two can be read.
    """
    count = len(items) if how_many == "all" else min(len(items), int(how_many))
    where = [i * len(items) // count for i in range(count)]
    content = getattr(items, "content", None) or (lambda i: items[i].pixels.tobytes())
    key = _contents(where, content, extractor.key)
    return _remembered(key, extractor, lambda: _read(items, where), count)


def of_file(path: Path, extractor: Extractor) -> Reference:
    """The reference in an .npz.

    Raises:
        DataError: it cannot be read, holds neither, or its statistics are of another network.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            stats = {k: file[k] for k in ("mu", "sigma") if k in names}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"domain.fid.reference {path} cannot be read: {error}") from None
    pictures = _of_batch(path, extractor) if "arr_0" in names else None
    if len(stats) < 2:
        if pictures is None:
            raise DataError(
                f"domain.fid.reference {path} holds {listed(sorted(names))}: expected mu and "
                "sigma, or images arr_0 (N, H, W, C)"
            )
        return pictures
    _check_statistics(path, stats["mu"], stats["sigma"], extractor)
    rows = None if pictures is None else pictures.rows
    return Reference(stats["mu"], stats["sigma"], rows, None)


def statistics(features: Array) -> tuple[Array, Array]:
    """Mean and covariance (unbiased) of features (N, D), as torch-fidelity has them."""
    import torch
    from torch_fidelity.metric_fid import fid_features_to_statistics

    found = fid_features_to_statistics(torch.from_numpy(np.ascontiguousarray(features)))
    return found["mu"], np.atleast_2d(found["sigma"])


class _Sums:
    """Mean and covariance of more features than are held, in float64 about the first ones' mean."""

    def __init__(self, features: Array) -> None:
        self.count, self.origin = 0, features.mean(axis=0, dtype=np.float64)
        width = features.shape[1]
        self.total, self.products = np.zeros(width), np.zeros((width, width))

    def add(self, features: Array) -> None:
        far = features - self.origin
        self.count += len(far)
        self.total += far.sum(axis=0)
        self.products += far.T @ far

    def statistics(self) -> tuple[Array, Array]:
        shift = self.total / self.count
        cov = (self.products - self.count * np.outer(shift, shift)) / (self.count - 1)
        return self.origin + shift, cov


def _remembered(
    key: str, extractor: Extractor, read: Callable[[], Iterator[Array]], count: int
) -> Reference:
    """The reference of pictures that `read` gives in parts, from the cache where it is there."""
    found = cache.load("features", key)
    if found is None:
        found = _seen(read(), extractor, count)
        cache.save("features", key, found)
    return Reference(found["mu"], found["sigma"], found["rows"], found["items"])


def _seen(parts: Iterator[Array], extractor: Extractor, count: int) -> dict[str, Any]:
    """Statistics of all pictures, and the rows of some, evenly spread."""
    kept, done, every = [], 0, -(-count // KEPT)
    sums: _Sums | None = None
    columns = extractor.columns["fid"]
    with bar("real pictures", count, unit="pictures") as show:
        for pixels in parts:
            rows = extractor(pixels)
            sums = sums or _Sums(rows[:, columns])
            sums.add(rows[:, columns])
            kept.append(rows[-done % every :: every])
            done += len(rows)
            show(done)
    if sums is None or done < 2:
        raise DataError("fewer than two real pictures can be read; a reference needs more")
    held = np.concatenate(kept)
    # where all are held: as torch-fidelity has it, to the last digit
    mu, sigma = statistics(held[:, columns]) if len(held) == done else sums.statistics()
    return {"mu": mu, "sigma": sigma, "rows": held, "items": done}


def _read(items: Sequence[Any], where: Sequence[int]) -> Iterator[Array]:
    """Pixels in parts, decoded by several threads."""

    def one(index: int) -> Any:
        try:
            return items[index]
        except BadItem:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(where), AT_ONCE):
            found = [item for item in pool.map(one, where[start : start + AT_ONCE]) if item]
            if found:
                yield stacked(found)


def _of_batch(path: Path, extractor: Extractor) -> Reference:
    """The reference of the pictures ``arr_0`` of an .npz."""
    with _opened_batch(path) as (shape, parts):
        key = _hashed(chain([extractor.key.encode(), str(shape).encode()], parts))
    count = shape[0]

    def read() -> Iterator[Array]:
        with _opened_batch(path) as (_, parts):
            for part in parts:
                yield np.frombuffer(part, np.uint8).reshape(-1, *shape[1:])

    return _remembered(key, extractor, read, count)


class _opened_batch:
    """``arr_0`` of an .npz: its shape, and its pictures as bytes, some at once; it may be large."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> tuple[tuple[int, ...], Iterator[bytes]]:
        self.zip = zipfile.ZipFile(self.path)
        self.file = self.zip.open("arr_0.npy")
        version = np.lib.format.read_magic(self.file)
        header = {(1, 0): np.lib.format.read_array_header_1_0}.get(
            version, np.lib.format.read_array_header_2_0
        )
        shape, by_column, dtype = header(self.file)
        if by_column or dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3, 4):
            self.__exit__()
            raise DataError(
                f"domain.fid.reference {self.path}: arr_0 is {dtype} {shape}; expected uint8 "
                "(N, H, W, C) of grey or colour"
            )
        return shape, self._parts(int(np.prod(shape[1:])) * AT_ONCE)

    def _parts(self, size: int) -> Iterator[bytes]:
        while part := self.file.read(size):
            yield part

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.zip.close()


def _check_statistics(path: Path, mu: Array, sigma: Array, extractor: Extractor) -> None:
    columns = extractor.columns["fid"]
    width = columns.stop - columns.start
    if mu.shape != (width,) or sigma.shape != (width, width):
        raise DataError(
            f"domain.fid.reference {path}: mu {mu.shape} and sigma {sigma.shape} are not of "
            f"{extractor.name}, which has {width} features"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise DataError(f"domain.fid.reference {path}: mu or sigma is not finite")


def _contents(where: Sequence[int], content: Callable[[int], bytes], start: str) -> str:
    """A hash of what pictures hold; those that cannot be read count as nothing."""

    def one(index: int) -> bytes:
        try:
            return hashlib.blake2b(content(index), digest_size=20).digest()
        except (BadItem, OSError):
            return b""

    with (
        bar("contents", len(where), unit="pictures") as show,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        found = hashlib.blake2b(start.encode(), digest_size=20)
        for start_at in range(0, len(where), AT_ONCE):
            for digest in pool.map(one, where[start_at : start_at + AT_ONCE]):
                found.update(digest)
            show(min(start_at + AT_ONCE, len(where)))
    return found.hexdigest()


def _hashed(parts: Iterable[bytes]) -> str:
    found = hashlib.blake2b(digest_size=20)
    for part in parts:
        found.update(part)
    return found.hexdigest()
