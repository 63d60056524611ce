"""Which variables and entries of its stores a weather recipe reads, for `jitkit fetch`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jitkit.domains.arrays import needed_positions
from jitkit.domains.weather.anemoi import DATA, DATES, LATITUDES, LONGITUDES, Anemoi
from jitkit.domains.weather.derived import Need
from jitkit.domains.weather.open import OpenedWeather
from jitkit.stores.download import DownloadRequest
from jitkit.stores.store import Store
from jitkit.utils.types import Array


def weather_reads(opened: OpenedWeather) -> list[DownloadRequest]:
    """One `DownloadRequest` for each store; a copy of them gives the same items under the recipe.

    Of anemoi-datasets all variables are read, as they share one array and are named by index.
    """
    plan, view = opened.data.plan, opened.view
    kept = {dim: np.unique(plan.entries[dim]) for dim in (opened.dims.y, opened.dims.x)}
    kept[view.time] = np.unique(plan.entries[view.time][needed_positions(opened.data)])
    found: dict[int, tuple[Store, dict[str, dict[str, list[Array]]]]] = {}
    for source in view.sources.values():
        for need in source.needs(kept):
            for store, name, entries in _real(need):
                assert isinstance(store, Store)
                _, variables = found.setdefault(id(store), (store, {}))
                wanted = variables.setdefault(name, {})
                for dim, chosen in entries.items():
                    wanted.setdefault(dim, []).append(chosen)
    first = opened.store.store if isinstance(opened.store, Anemoi) else opened.store
    keys = {key: "path" if key == id(first) else "coarse.path" for key in found}
    return [
        DownloadRequest(
            keys[key],
            store,
            {
                name: {dim: np.unique(np.concatenate(parts)) for dim, parts in wanted.items()}
                for name, wanted in variables.items()
            },
            (view.time,),
        )
        for key, (store, variables) in found.items()
    ]


def _real(need: Need) -> Iterator[Need]:
    """A need in terms of the store on disk or in a bucket."""
    store, _, entries = need
    if not isinstance(store, Anemoi):
        yield need
        return
    times = {dim: chosen for dim, chosen in entries.items() if dim == store.time}
    for name in (DATA, DATES, LATITUDES, LONGITUDES):
        if name in store.store.variables:
            dims = store.store.variables[name].dims
            yield store.store, name, {dim: e for dim, e in times.items() if dim in dims}
