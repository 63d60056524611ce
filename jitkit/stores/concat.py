"""Concatenation of files along a dimension into one store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed
from jitkit.stores.variables import Contents, Variable
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

SAMPLE = "sample"  # dimension of The Well: simulations are concatenated, without a coordinate
COMPARED = 2**22  # cells up to which a variable without the dimension is compared between files


def concatenate(parts: Sequence[Contents], path: str) -> Contents:
    """One store of several files, ordered along the one dimension whose coordinate differs.

    Raises:
        DataError: none or several dimensions differ, files overlap or differ in anything else.
    """
    _check_names(parts)
    dim, key = _concat_dim(parts, path)
    parts = _sorted(parts, key)
    _check_equal(parts, dim)
    first = parts[0]
    return Contents(
        path,
        first.attrs,
        _coords(parts, dim).drop_vars([dim] if key not in (None, dim) else [], errors="ignore"),
        {name: _join([p.variables[name] for p in parts], dim, name) for name in first.variables},
        {
            name: _join([p.coord_variables[name] for p in parts], dim, name)
            for name in first.coord_variables
        },
    )


def _check_names(parts: Sequence[Contents]) -> None:
    first = parts[0]
    for part in parts[1:]:
        for kind in ("variables", "coord_variables"):
            ours, theirs = getattr(first, kind), getattr(part, kind)
            if unmatched := set(ours) ^ set(theirs):
                raise DataError(
                    f"{first.path} and {part.path} differ: only one of them has "
                    f"{listed(sorted(unmatched))}; files to join must have the same variables; "
                    "else use xarray.open_mfdataset(paths).to_zarr('new.zarr')"
                )
            for name, variable in ours.items():
                _check_dims_and_units(name, first.path, variable, part.path, theirs[name])


def _check_dims_and_units(
    name: str, path: str, ours: Variable, other: str, theirs: Variable
) -> None:
    a, b = ours.info, theirs.info
    if a.dims != b.dims:
        raise DataError(
            f"{name!r} has dimensions {listed(a.dims)} in {path} and {listed(b.dims)} in {other}"
        )
    units = [d.attrs.get("units") for d in (a, b)]
    if units[0] != units[1]:
        raise DataError(f"{name!r} is in {units[0]} in {path} and in {units[1]} in {other}")


def _concat_dim(parts: Sequence[Contents], path: str) -> tuple[str, str | None]:
    """The dimension to concatenate along, and the coordinate that orders the files.

    The dimension's own coordinate or, if that is the same in all files, another along it.
    Simulations of The Well have none and are ordered by name.
    """
    first = parts[0].coords
    differing: dict[str, list[str]] = {}
    for name, coordinate in first.coords.items():
        if coordinate.ndim == 1 and not all(_same(p.coords[name], coordinate) for p in parts[1:]):
            differing.setdefault(str(coordinate.dims[0]), []).append(str(name))
    if len(differing) == 1:
        ((dim, names),) = differing.items()
        return dim, dim if dim in names else names[0]
    sampled = [any(SAMPLE in v.info.dims for v in p.variables.values()) for p in parts]
    if not differing and all(sampled):
        return SAMPLE, None
    raise DataError(
        f"{path}: {len(parts)} files are joined along the one dimension whose coordinate differs "
        f"between them, but {_what_differs(first, differing)}"
    )


def _what_differs(first: xarray.Dataset, differing: Mapping[str, Sequence[str]]) -> str:
    if differing:
        return f"those of {listed(differing)} differ here; give a glob of fewer files"
    scalars = [str(name) for name, c in first.coords.items() if not c.ndim]
    if not scalars:
        return "none differs here"
    return (
        f"none differs here; if {listed(scalars)} differs: xarray.open_mfdataset(paths, "
        f"combine='nested', concat_dim={scalars[0]!r}).to_zarr('new.zarr')"
    )


def _same(a: xarray.DataArray, b: xarray.DataArray) -> bool:
    """Whether two coordinates are equal, floats up to float32 rounding."""
    if a.shape != b.shape:
        return False
    x, y = a.values, b.values
    if x.dtype.kind == "f" and y.dtype.kind == "f":
        return bool(
            np.allclose(x, y, rtol=1e-6, atol=1e-6 * np.abs(x).max(initial=0), equal_nan=True)
        )
    return bool(np.array_equal(x, y))


def _sorted(parts: Sequence[Contents], key: str | None) -> list[Contents]:
    """Files ordered by a coordinate, ascending or descending as within the files.

    Raises:
        DataError: two files overlap, or one is not monotonic.
    """
    if key is None:
        return sorted(parts, key=lambda part: part.path)
    values = {part.path: part.coords[key].values for part in parts if part.coords[key].size}
    descending = any(v[0] > v[-1] for v in values.values())
    for path, v in values.items():
        if not np.all(v[1:] < v[:-1] if descending else v[1:] > v[:-1]):
            raise DataError(
                f"{path}: {key!r} does not {'fall' if descending else 'rise'} throughout"
            )
    kept = [part for part in parts if part.path in values]
    kept.sort(key=lambda part: values[part.path][0], reverse=descending)
    for before, after in pairwise(kept):
        last, first = values[before.path][-1], values[after.path][0]
        if last <= first if descending else last >= first:
            raise DataError(
                f"{before.path} and {after.path} overlap: {key!r} ends at {last} in the first and "
                f"starts at {first} in the second; give a glob of files that do not overlap"
            )
    return kept


def _check_equal(parts: Sequence[Contents], dim: str) -> None:
    """Check that everything without the dimension is the same in every file."""
    first = parts[0]
    for part in parts[1:]:
        for name, coordinate in first.coords.variables.items():
            other = part.coords.variables[name]
            if dim in coordinate.dims or not coordinate.ndim:
                continue
            if not _same(first.coords[name], part.coords[name]):
                raise DataError(
                    f"{name!r} differs between {first.path} ({_summary(coordinate.values)}) and "
                    f"{part.path} ({_summary(other.values)}); files are joined along {dim!r} alone"
                )
        for name, variable in first.variables.items():
            _check_static(name, variable, part.variables[name], dim)


def _summary(values: Array) -> str:
    return f"{values.size} of {values.flat[0]} to {values.flat[-1]}" if values.size else "empty"


def _check_static(name: str, ours: Variable, theirs: Variable, dim: str) -> None:
    a, b = ours.info, theirs.info
    for axis, size, other in zip(a.dims, a.shape, b.shape, strict=True):
        if size != other and axis != dim:
            raise DataError(
                f"{name!r} has {size} cells along {axis!r} in {ours.pieces[0].path} and {other} in "
                f"{theirs.pieces[0].path}; files are joined along {dim!r} alone"
            )
    if dim in a.dims or np.prod(a.shape, dtype=int) > COMPARED:
        return
    x, y = ours.pieces[0].whole(), theirs.pieces[0].whole()
    same = np.array_equal(x, y, equal_nan=True) if x.dtype.kind in "fc" else np.array_equal(x, y)
    if not same:
        raise DataError(
            f"{name!r} does not vary along {dim!r} but differs between {ours.pieces[0].path} and "
            f"{theirs.pieces[0].path}"
        )


def _coords(parts: Sequence[Contents], dim: str) -> xarray.Dataset:
    """Concatenated coordinates; scalars that differ between files get dimension ``dim``."""
    import xarray

    variable: Any = xarray.Variable
    first = parts[0].coords
    sizes = [_size(part, dim) for part in parts]
    out: dict[Any, Any] = {}
    for name, coordinate in first.variables.items():
        each = [part.coords.variables[name] for part in parts]
        if dim in coordinate.dims:
            out[name] = variable.concat(each, dim)
        elif not coordinate.ndim and any(not _same_scalar(e, coordinate) for e in each):
            expanded = [variable.set_dims(e, {dim: n}) for e, n in zip(each, sizes, strict=True)]
            out[name] = variable.concat(expanded, dim)
        else:
            out[name] = coordinate
    return xarray.Dataset(coords=out, attrs=first.attrs)


def _same_scalar(a: Any, b: Any) -> bool:
    return bool(np.array_equal(a.values, b.values, equal_nan=a.dtype.kind == "f"))


def _size(part: Contents, dim: str) -> int:
    variables = [*part.variables.values(), *part.coord_variables.values()]
    return next(v.info.shape[v.info.dims.index(dim)] for v in variables if dim in v.info.dims)


def _join(each: Sequence[Variable], dim: str, name: str) -> Variable:
    """Concatenate a variable; without ``dim``, the first file's variable."""
    first = each[0].info
    if dim not in first.dims:
        return each[0]
    axis = first.dims.index(dim)
    shape = list(first.shape)
    shape[axis] = sum(v.info.shape[axis] for v in each)
    dtypes = {v.info.dtype for v in each}
    info = replace(
        first,
        shape=tuple(shape),
        dtype=np.result_type(*dtypes) if len(dtypes) > 1 else first.dtype,
        chunks=tuple(max(sizes) for sizes in zip(*(v.info.chunks for v in each), strict=True)),
        missing=True if any(v.info.missing for v in each) else first.missing,
    )
    return Variable(info, tuple(piece for v in each for piece in v.pieces), axis)
