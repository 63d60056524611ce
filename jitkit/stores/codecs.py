"""Bytes of a chunk into numbers: the codecs of Zarr v2, Zarr v3 and HDF5 that are in common use.

zarr-python decodes every chunk through one event loop, and h5py under one lock; here threads decode
side by side (measured 1.7 times zarr-python's rate on chunks of 3 MB, and twice that on two cores).
What is not known here gives None, and the caller falls back on those libraries.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from jitkit.utils.types import Array

IN_PLACE = frozenset({"blosc", "zstd", "lz4"})
"""Codecs that decode into memory they are given. NumPy's large arrays lie in huge pages, which
makes this 1.4 times as fast as the bytes object that they would allocate."""

BYTES_TO_BYTES = frozenset(
    "numcodecs." + name
    for name in "blosc zstd lz4 zlib gzip bz2 lzma crc32 adler32 fletcher32".split()
)
"""Extensions of Zarr v3 under which numcodecs' codecs go by their own names."""


@dataclass(frozen=True)
class Inflate:
    """zlib and gzip; NumPy's and HDF5's chunks say how long they will be."""

    size: int
    codec_id: str = "inflate"

    def decode(self, data: Any) -> Any:
        return zlib.decompress(data, wbits=47, bufsize=self.size)  # 47: either header


@dataclass(frozen=True)
class Unshuffle:
    """HDF5's shuffle: the first bytes of all numbers, then the second, and so on."""

    itemsize: int
    codec_id: str = "unshuffle"

    def decode(self, data: Any) -> Any:
        shuffled = np.frombuffer(data, np.uint8)
        count = len(shuffled) // self.itemsize
        out = np.empty(len(shuffled), np.uint8)
        numbers = out[: count * self.itemsize].reshape(count, self.itemsize)
        for i in range(self.itemsize):
            numbers[:, i] = shuffled[i * count : (i + 1) * count]
        out[count * self.itemsize :] = shuffled[count * self.itemsize :]  # left as they are
        return out


@dataclass(frozen=True)
class Checked:
    """A checksum at the end of the bytes: CRC32C, as in Zarr v3 and its shard indices."""

    codec_id: str = "checked"

    def decode(self, data: Any) -> Any:
        import google_crc32c

        body, found = memoryview(data)[:-4], int.from_bytes(memoryview(data)[-4:], "little")
        if google_crc32c.value(bytes(body)) != found:
            raise ValueError("its checksum is wrong")
        return body


@dataclass(frozen=True)
class Decoder:
    """How the bytes of a chunk become an array.

    Attributes:
        shape: of the array.
        dtype: as stored, with its byte order.
        steps: codecs with a ``decode``, in the order in which they are undone.
        axes: the order of axes in which the numbers lie; None is that of ``shape``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    steps: tuple[Any, ...] = ()
    axes: tuple[int, ...] | None = None

    def __call__(self, data: Any, skip: int = 0) -> Array:
        """The chunk in ``data``; bit i of ``skip`` says that step i (from the last) was not taken.

        Raises:
            ValueError, RuntimeError: the bytes are not what the codecs expect.
        """
        steps = self.steps
        if skip:
            steps = tuple(s for i, s in enumerate(reversed(steps)) if not skip >> i & 1)[::-1]
        for number, step in enumerate(steps, 1):
            if number == len(steps) and step.codec_id in IN_PLACE:
                data = self._decode_in_place(step, data)
            else:
                data = step.decode(data)
        numbers = np.asarray(data).reshape(-1) if isinstance(data, np.ndarray) else data
        return self._shaped(np.frombuffer(numbers, self.dtype))

    def _decode_in_place(self, step: Any, data: Any) -> Array:
        out = np.empty(prod(self.shape), self.dtype)
        step.decode(data, out=out.view(np.uint8))
        return out

    def _shaped(self, numbers: Array) -> Array:
        if numbers.size != prod(self.shape):
            raise ValueError(f"{numbers.size} numbers, not the {prod(self.shape)} of a chunk")
        if self.axes is None:
            return numbers.reshape(self.shape)
        lying = numbers.reshape([self.shape[axis] for axis in self.axes])
        return lying.transpose(np.argsort(self.axes))


def _codec(settings: Mapping[str, Any]) -> Any:
    """numcodecs' codec of some settings.

    Raises:
        ValueError: there is none.
    """
    from numcodecs import get_codec

    return get_codec(dict(settings))


def of_zarr_v2(meta: Mapping[str, Any], dtype: np.dtype[Any]) -> Decoder | None:
    """The decoder of an array's ``.zarray``."""
    shape = tuple(meta["chunks"])
    stored = [*(meta["filters"] or []), *([meta["compressor"]] if meta["compressor"] else [])]
    size = prod(shape) * dtype.itemsize
    try:
        steps = [_inflate(c, size) or _codec(c) for c in reversed(stored)]
    except (ValueError, ImportError):  # a codec that is not installed: zarr-python will say so
        return None
    axes = tuple(reversed(range(len(shape)))) if meta["order"] == "F" else None
    return Decoder(shape, dtype, tuple(steps), axes)


def of_zarr_v3(
    codecs: Sequence[Mapping[str, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Decoder | None:
    """The decoder of a chunk of ``shape`` under the ``codecs`` of a ``zarr.json``."""
    axes: tuple[int, ...] | None = None
    steps: list[Any] = []
    seen_bytes = False
    for codec in codecs:
        name, settings = codec["name"], codec.get("configuration") or {}
        if name == "transpose" and axes is None and not seen_bytes:
            axes = tuple(settings["order"])
        elif name == "bytes":
            seen_bytes = True
            dtype = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
        elif seen_bytes and (step := _bytes_codec(name, settings, shape, dtype)) is not None:
            steps.insert(0, step)
        else:
            return None
    return Decoder(shape, dtype, tuple(steps), axes) if seen_bytes else None


def _bytes_codec(
    name: str, settings: Mapping[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Any:
    if name == "crc32c":
        return Checked()
    plain = name.removeprefix("numcodecs.")
    if name not in ("blosc", "zstd", "gzip") and name not in BYTES_TO_BYTES:
        return None
    inflate = _inflate({"id": plain}, prod(shape) * dtype.itemsize)
    return inflate or _codec({"id": plain} | ({} if plain in IN_PLACE else dict(settings)))


def _inflate(codec: Mapping[str, Any], size: int) -> Inflate | None:
    return Inflate(size) if codec["id"] in ("zlib", "gzip") else None


def of_hdf5(
    filters: Sequence[tuple[int, Sequence[int]]], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Decoder | None:
    """The decoder of a chunk under HDF5's filters, each its number and settings, as applied."""
    steps: list[Any] = []
    for number, settings in filters:
        step = _hdf5_filter(number, settings, prod(shape) * dtype.itemsize)
        if step is None:
            return None
        steps.insert(0, step)
    return Decoder(shape, dtype, tuple(steps))


def _hdf5_filter(number: int, settings: Sequence[int], size: int) -> Any:
    """Deflate, shuffle, Fletcher's checksum, Blosc and Zstandard by their registered numbers."""
    if number == 1:
        return Inflate(size)
    if number == 2:
        return Unshuffle(settings[0])
    names = {3: "fletcher32", 32001: "blosc", 32015: "zstd"}
    return _codec({"id": names[number]}) if number in names else None
