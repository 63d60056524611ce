"""Public weather stores: read from buckets, trained on, forecast, scored and downloaded."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import weatherstores
import xarray as xr
from conftest import Result
from test_docs import ROOT, run
from test_download import check_same_items
from test_remote import WebServer
from weatherstores import ANEMOI, ARCO, BUCKETS, WEATHERBENCH

from jitkit.recipe.load import load_recipe
from jitkit.registry import open_domain
from jitkit.stores import remote

KEYS: dict[str, dict[str, Any]] = {
    WEATHERBENCH: {
        "lead": "6h",
        "variables": {"2m_temperature": None, "temperature": [500, 850]},
        "static": ["land_sea_mask", "geopotential_at_surface"],
        "forcings": ["cos_zenith", "dayofyear", "hour"],
    },
    ARCO: {
        "every": "6h",
        "lead": "6h",
        "variables": {"temperature": [500, 850], "sea_surface_temperature": None},
        "static": ["land_sea_mask"],
    },
    ANEMOI: {"lead": "6h", "variables": {"2t": None, "t_850": None}, "static": ["lsm"]},
}
NAMES = [pytest.param(name, id=BUCKETS[name]) for name in KEYS]
CHANNELS = {
    WEATHERBENCH: ("2m_temperature", "temperature.500", "temperature.850"),
    ARCO: ("temperature.500", "temperature.850", "sea_surface_temperature"),
    ANEMOI: ("2t", "t_850"),
}
UNITS = {"2m_temperature": "K", "temperature": "K", "sea_surface_temperature": "K"}


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder per bucket."""
    folder = tmp_path_factory.mktemp("buckets")
    weatherstores.weatherbench2(folder / "weatherbench2")
    weatherstores.arco(folder / "gcp-public-data-arco-era5")
    weatherstores.anemoi(folder / "anemoi")
    return folder


@pytest.fixture(scope="module")
def google(buckets: Path) -> Iterator[WebServer]:
    """Google's object store, as far as reading needs its XML API: objects by name and range."""
    with WebServer(buckets) as server:
        yield server
        server.shutdown()


def recipe(folder: Path, name: str, **keys: Any) -> Path:
    """A small forecast model of a store, as a user would write it."""
    domain = {"name": "weather", "task": "forecast", "val": 0.25, **KEYS[name], **keys}
    domain["verify"] = {"lead": "12h", "members": 2, "inits": 2}
    sections = {
        "domain": domain,
        "model": {"width": 16, "depth": 1, "heads": 2, "patch": 8, "in_context_tokens": 0},
        "train": {
            "steps": 2,
            "batch_size": 2,
            "ema": [0.5],
            "preview_samples": 1,
            "validate_items": 2,
            "precision": "float32",
        },
        "sample": {"steps": 2},
    }
    path = folder / "small.yaml"
    path.write_text(json.dumps(sections), encoding="utf-8")
    return path


def in_bucket(google: WebServer, name: str) -> dict[str, Any]:
    """Keys with the public address of a store and the test server as its endpoint."""
    options = {"anonymous": True, "endpoint": google.url, "allow_http": True}
    return {"path": f"gs://{BUCKETS[name]}/{name}", "options": options}


def opened(path: Path | str, *overrides: str) -> Any:
    return open_domain(load_recipe(path, overrides).domain)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_trained_on_forecast_and_scored_from_its_bucket(
    name: str,
    google: WebServer,
    jitkit: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, name, **in_bucket(google, name))
    for words in (
        ("train", path),
        ("forecast", "runs/small", "--init", "val:1", "--lead", "12h", "--members", "2"),
        ("evaluate", "runs/small"),
    ):
        more = ("--out", "fc.zarr") if words[0] == "forecast" else ()
        answer = jitkit(*words, *more)
        assert answer.code == 0, f"{words}\n{answer.out}\n{answer.err}"
    with xr.open_zarr("fc.zarr") as forecast:
        assert forecast.sizes["number"] == 2 and forecast.sizes["prediction_timedelta"] == 2
        leads = forecast["prediction_timedelta"].values / np.timedelta64(1, "h")
        assert leads.tolist() == [6, 12]
        for variable in forecast.data_vars:
            assert forecast[variable].attrs.get("units", "K") == UNITS.get(str(variable), "K")
    assert (tmp_path / "runs/small/evaluation.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_items_equal_the_store_for_any_order_of_dimensions(
    name: str, buckets: Path, tmp_path: Path
) -> None:
    """Against xarray and numpy, latitude in front of longitude."""
    path = buckets / BUCKETS[name] / name
    domain = opened(recipe(tmp_path, name, path=str(path)))
    assert tuple(domain.layout.channels) == CHANNELS[name]
    item, first = domain.items("train")[3], 3 + 1  # its past state is one step before
    with xr.open_zarr(path) as store:
        if name == ANEMOI:
            values = store["data"].values[first, [0, 3], 0].reshape(2, 9, 18)
        else:
            at = store.isel(time=first * (6 if name == ARCO else 1))
            parts = {
                channel: at[channel.split(".")[0]].sel(level=int(channel.split(".")[1]))
                if "." in channel
                else at[channel]
                for channel in CHANNELS[name]
            }
            order = ("latitude", "longitude")
            values = np.stack([v.transpose(*order).values for v in parts.values()])
    np.testing.assert_array_equal(item.values, values)


@pytest.mark.parametrize("name", NAMES)
def test_a_download_of_a_bucket_has_the_same_items_and_needs_no_network(
    name: str,
    google: WebServer,
    jitkit: Callable[..., Result],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = recipe(tmp_path, name, **in_bucket(google, name))
    answer = jitkit("fetch", path, "--to", tmp_path / "copy")
    assert answer.code == 0, answer.err
    ours, theirs = opened(path), opened(path, f"domain.path={tmp_path / 'copy'}")
    google.requests.clear()
    assert theirs.layout.channels == CHANNELS[name] and not google.requests
    check_same_items(ours, theirs)


def test_latitudes_may_rise_or_fall(tmp_path: Path) -> None:
    up = weatherstores.weatherbench2(tmp_path / "up", 40)
    down = weatherstores.weatherbench2(tmp_path / "down", 40, upside_down=True)
    a, b = (opened(recipe(tmp_path, WEATHERBENCH, path=str(path))) for path in (up, down))
    x, y = a.items("train")[5], b.items("train")[5]
    np.testing.assert_array_equal(x.values, y.values[:, ::-1])
    np.testing.assert_allclose(a.weights, b.weights[::-1], rtol=1e-6)


def test_no_item_spans_a_gap_in_time(tmp_path: Path) -> None:
    whole = weatherstores.weatherbench2(tmp_path / "whole", 60)
    with_gap = weatherstores.weatherbench2(tmp_path / "with_gap", 60, hole=2)
    a, b = (opened(recipe(tmp_path, WEATHERBENCH, path=str(path))) for path in (whole, with_gap))
    count = [len(d.items("train")) + len(d.items("val")) for d in (a, b)]
    assert count == [60 - 2, 60 - 3]  # one more pair is lost


def test_a_missing_date_of_anemoi_is_in_no_item(buckets: Path, tmp_path: Path) -> None:
    domain = opened(recipe(tmp_path, ANEMOI, path=str(buckets / "anemoi" / ANEMOI)))
    items = [*domain.items("train"), *domain.items("val")]
    assert len(items) == 120 - 2 - 2  # neither as a target nor as a past state
    assert all(np.isfinite(item.values).all() for item in items)


def test_a_reduced_grid_is_refused_with_exit_code_2(
    jitkit: Callable[..., Result], tmp_path: Path
) -> None:
    path = weatherstores.anemoi(tmp_path, 8, reduced=True)
    answer = jitkit("train", recipe(tmp_path, ANEMOI, path=str(path)))
    assert answer.code == 2 and "Reduced Gaussian grids" in answer.err


def test_a_store_is_read_over_plain_http(google: WebServer, tmp_path: Path) -> None:
    address = f"{google.url}/weatherbench2/{WEATHERBENCH}"
    near, far = in_bucket(google, WEATHERBENCH), {"path": address}
    a, b = (opened(recipe(tmp_path, WEATHERBENCH, **keys)) for keys in (near, far))
    np.testing.assert_array_equal(a.items("val")[1].values, b.items("val")[1].values)


def test_a_store_is_read_from_s3(buckets: Path, tmp_path: Path) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    secrets: Any = dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "any")
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **secrets)
    client.create_bucket(Bucket="weatherbench2", ACL="public-read")
    folder = buckets / "weatherbench2"
    for path in (path for path in folder.rglob("*") if path.is_file()):
        key = path.relative_to(folder).as_posix()
        data = path.read_bytes()
        client.put_object(Bucket="weatherbench2", Key=key, Body=data, ACL="public-read")
    client.close()
    options = {"anonymous": True, "endpoint": url, "allow_http": True}
    far = opened(
        recipe(tmp_path, WEATHERBENCH, path=f"s3://weatherbench2/{WEATHERBENCH}", options=options)
    )
    near = opened(recipe(tmp_path, WEATHERBENCH, path=str(folder / WEATHERBENCH)))
    np.testing.assert_array_equal(far.items("val")[1].values, near.items("val")[1].values)
    server.stop()


# The walk-through of docs/weather.md, and the recipes for real data


@pytest.mark.slow
def test_the_walkthrough_from_a_bucket_to_a_scored_ensemble_works(tmp_path: Path) -> None:
    """All commands of docs/weather.md except pip, with fewer steps; the bucket
    has ten days of 2018 and of 2020."""
    folder = tmp_path / "buckets" / "weatherbench2"
    weatherstores.weatherbench2(folder, 96, start="2018-12-22", hole=365)
    text = (ROOT / "docs" / "weather.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", text, flags=re.DOTALL)
    short = {
        "train": [
            *("train.steps=4", "train.batch_size=2", "model.width=16", "model.depth=1"),
            *("model.heads=2", "train.preview_every_steps=4", "train.preview_samples=1"),
        ],
        "evaluate": ["domain.verify={lead: 2d, members: 2, inits: 3}"],
    }
    with WebServer(tmp_path / "buckets") as server:
        options = f"{{anonymous: true, endpoint: '{server.url}', allow_http: true}}"
        short["fetch"] = [f"domain.options={options}"]
        for language, block in blocks:
            if language == "python":
                run([sys.executable, "-W", "error", "-c", block], tmp_path)
                continue
            for words in map(shlex.split, block.splitlines()):
                if words[0] == "jitkit":
                    run([sys.executable, "-m", *words, *short.get(words[1], [])], tmp_path)
        server.shutdown()
    assert (tmp_path / "runs/era5-cpu/verification/scores.nc").is_file()


@pytest.mark.slow
def test_sampled_sea_surface_temperature_is_periodic_and_keeps_land_and_units(
    tmp_path: Path,
) -> None:
    """The bundled recipe on its real file, after a few hundred steps."""
    samples = pytest.importorskip("iris_sample_data")
    shutil.copy(Path(samples.path) / "ostia_monthly.nc", tmp_path / "sst.nc")
    jitkit = [sys.executable, "-m", "jitkit"]
    recipe = str(ROOT / "recipes" / "sst.yaml")
    run([*jitkit, "train", recipe, "--run", "run", "train.steps=200"], tmp_path)
    asked = ["--init", "val:2", "--lead", "1 steps", "--members", "4", "--out", "fc.zarr"]
    run([*jitkit, "forecast", "run", *asked], tmp_path)
    with xr.open_dataset(tmp_path / "sst.nc") as real, xr.open_zarr(tmp_path / "fc.zarr") as fc:
        analysis, found = real["surface_temperature"].load(), fc["surface_temperature"].load()
    assert found.attrs["units"] == "K" and found.attrs["standard_name"] == "surface_temperature"
    for name in ("latitude", "longitude"):
        np.testing.assert_array_equal(found[name].values, analysis[name].values)
        assert found[name].attrs == analysis[name].attrs
    land = analysis.isnull().all("time").values
    assert np.array_equal(found.isnull().values, np.broadcast_to(land, found.shape))
    assert (
        float(analysis.min()) - 5
        < float(found.min())
        < float(found.max())
        < float(analysis.max()) + 5
    )
    steps = np.abs(np.roll(found.values, -1, axis=-1) - found.values)
    steps = np.moveaxis(steps, -1, 0).reshape(analysis.sizes["longitude"], -1)
    edges = [float(np.nanmean(steps[i])) for i in range(11, 432, 12) if np.isfinite(steps[i]).any()]
    assert edges[-1] < np.quantile(edges, 0.9)  # the periodic edge, among the edges of patches


# No network


@pytest.mark.parametrize("bundled", ["era5", "era5-1deg", "era5-cpu"])
def test_without_a_network_a_bundled_recipe_stops_at_once_with_a_remedy(
    bundled: str, jitkit: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens at the endpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    began = time.monotonic()
    nowhere = "domain.options={anonymous: true, endpoint: http://127.0.0.1:9, allow_http: true}"
    answer = jitkit("train", bundled, nowhere)
    assert time.monotonic() - began < 5
    assert answer.code == 2 and not answer.out
    for expected in (
        "gs://weatherbench2/datasets/era5/",
        "cannot be reached: failed 3 times",
        "jitkit fetch RECIPE --to FOLDER",
        "domain.path=FOLDER",
    ):
        assert expected in answer.err
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_busy_at_first_is_retried(
    google: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.002)
    google.faults["json"] = ["busy", 5]  # more failures than an unreachable host is granted
    opened(recipe(tmp_path, WEATHERBENCH, **in_bucket(google, WEATHERBENCH)))
    assert google.faults.pop("json")[1] == 0


def test_a_bundled_recipe_reads_the_store_it_names(tmp_path: Path) -> None:
    weatherstores.weatherbench2(tmp_path, 24, every_variable=True)
    for bundled, channels in (("era5", 24), ("era5-cpu", 3)):
        assert load_recipe(bundled).domain.path == f"gs://weatherbench2/{WEATHERBENCH}"  # type: ignore[attr-defined]
        here = f"domain.path={tmp_path / WEATHERBENCH}"
        domain = opened(bundled, here, "domain.splits=null", "domain.val=0.3")
        assert len(domain.items("train")) and len(domain.items("val"))
        assert domain.layout.grid == (32, 64) and len(domain.layout.channels) == channels
