"""Autoregressive forecasts: closed forms, independent members, files that survive a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from models import sizes
from torch import Tensor

from jitkit.diffusion.denoiser import NONE, Denoiser
from jitkit.domains.weather.adapter import Weather
from jitkit.domains.weather.forecasts import Forecasts
from jitkit.domains.weather.section import WeatherSection
from jitkit.errors import JitkitError
from jitkit.fields import Conditioning
from jitkit.protocols import Autoregressive
from jitkit.recipe.renamed import RENAMED
from jitkit.runs.run_dir import locked
from jitkit.sampling.rollout import ForecastRequest, Rollout, _check_output, write_forecasts
from jitkit.sections import SampleSection
from jitkit.training.trainer import train
from jitkit.utils.types import Array


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JITKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six-hourly temperature at two levels and SST with land, on 6 x 8 cells."""
    rng = np.random.default_rng(0)
    time = np.datetime64("2001-01-01", "ns") + np.arange(80) * np.timedelta64(6, "h")
    sea = 290 + rng.standard_normal((80, 6, 8))
    sea[:, 2:4, 1:3] = np.nan
    data = xr.Dataset(
        {
            "t": (
                ("time", "level", "latitude", "longitude"),
                (250 + 10 * rng.standard_normal((80, 2, 6, 8))).astype("f4"),
                {"units": "K", "standard_name": "air_temperature"},
            ),
            "sst": (("time", "latitude", "longitude"), sea.astype("f4"), {"units": "K"}),
        },
        {
            "time": time,
            "level": ("level", [500, 850], {"units": "hPa"}),
            "latitude": ("latitude", np.linspace(75, -75, 6), {"units": "degrees_north"}),
            "longitude": ("longitude", np.arange(0, 360, 45.0), {"units": "degrees_east"}),
        },
    )
    path = tmp_path_factory.mktemp("store") / "small.zarr"
    data.to_zarr(path, zarr_format=2)
    return str(path)


def weather(**keys: Any) -> Weather:
    text = json.dumps({"name": "weather", "task": "forecast", "target": "state"} | keys)
    domain = Weather(WeatherSection.model_validate_json(text, strict=True))
    domain.opened()
    return domain


class Linear(Denoiser):
    """The exact denoiser of x = keep * (last state, one cell east) + share * first state
    + spread * noise."""

    keep, spread, share = 0.8, 0.0, 0.0

    def predict(self, z: Tensor, t: Tensor, conditioning: Conditioning = NONE) -> Tensor:
        """E[x | z] under z = t x + (1 - t) eps."""
        past = conditioning.cond["past"].nan_to_num()
        last, first = past[:, -z.shape[1] :], past[:, : z.shape[1]]
        mean = self.keep * last.roll(1, dims=-1) + self.share * first
        t = t.reshape(-1, 1, 1, 1)
        gain = self.spread**2 * t / (self.spread**2 * t**2 + (1 - t) ** 2)
        return mean + gain * (z - t * mean)


def linear(
    domain: Weather, *, keep: float = 0.8, spread: float = 0.0, share: float = 0.0
) -> Denoiser:
    denoiser = Linear(domain.layout, domain.conditions, sizes()).eval()
    denoiser.keep, denoiser.spread, denoiser.share = keep, spread, share
    denoiser.domain = domain
    return denoiser


def test_forecasts_of_a_linear_model_are_its_powers(store: str) -> None:
    domain = weather(path=store, variables={"t": [850, 500]}, lead="12h")
    rollout = Rollout(linear(domain), SampleSection(steps=4))
    (start,) = domain.init_times(["2001-01-05T06"])
    states = domain.states()
    first = states.read(17).astype(np.float64)
    train = np.stack([states.read(int(i)) for i in states.train]).astype(np.float64)
    mean = train.mean(axis=(0, 2, 3))[:, None, None]
    for step, (state,) in enumerate(rollout(start, [0], 5), 1):
        expected = mean + 0.8**step * np.roll(first - mean, step, axis=-1)
        assert np.allclose(state.values, expected, atol=2e-4)


def test_predicted_changes_are_accumulated(store: str) -> None:
    """A model that predicts the mean change adds it at every step."""
    domain = weather(path=store, variables={"t": [500]}, target="change")
    rollout = Rollout(linear(domain, keep=0.0), SampleSection(steps=4))
    states, (start,) = domain.states(), domain.init_times(["2001-01-03"])
    changes = [states.read(int(i)) - states.read(int(i) - 1) for i in states.train[1:]]
    (state,) = list(rollout(start, [0], 6))[-1]
    expected = states.read(8) + 6 * np.mean(changes, dtype=np.float64)
    assert np.allclose(state.values, expected, atol=1e-3)


def test_a_linear_gaussian_model_has_the_spread_of_its_process(store: str) -> None:
    """Variance of x_k = a x_(k-1) + s eps from a known state: s² (1 - a^2k) / (1 - a²)."""
    domain = weather(path=store, variables={"t": [500]})
    keep, spread = 0.8, 0.6
    section = SampleSection(steps=20, method="heun", batch_size=64)
    rollout = Rollout(linear(domain, keep=keep, spread=spread), section)
    (start,) = domain.init_times(["2001-01-05T06"])
    statistics = domain._arrays.fitted.statistics
    mean, scale = float(statistics.center[0]), float(statistics.spread[0])
    last, noises = domain.states().read(17)[None].repeat(64, axis=0), list[Array]()
    for step, states in enumerate(rollout(start, range(64), 4), 1):
        values = np.stack([state.values for state in states]).astype(np.float64)
        noises.append(((values - mean) - keep * np.roll(last - mean, 1, axis=-1)) / scale)
        last, values = values, values / scale
        variance = spread**2 * (1 - keep ** (2 * step)) / (1 - keep**2)
        # 64 x 48 values: 2.6 % standard error, and 20 steps of Heun
        assert values.var(axis=0, ddof=1).mean() == pytest.approx(variance, rel=0.09)
    correlation = np.corrcoef([noise.ravel() for noise in noises])
    assert np.abs(correlation - np.eye(4)).max() < 0.08  # independent steps: 4.4 standard errors


def test_a_member_depends_only_on_seed_initial_time_and_number(store: str) -> None:
    domain = weather(path=store, variables={"t": [500, 850]}, inputs=2, forcings=["cos_zenith"])
    denoiser = linear(domain, spread=0.5)
    starts = domain.init_times(["2001-01-05", "2001-01-07"])

    def member(start: str, number: int, members: list[int], **keys: Any) -> Array:
        rollout = Rollout(denoiser, SampleSection(**{"steps": 4, "batch_size": 2} | keys))
        last = list(rollout(start, members, 3))[-1]
        return np.asarray(last[members.index(number)].values)

    alone = member(starts[0], 3, [3])
    for members, size in (([0, 1, 2, 3], 2), ([3, 7], 1), ([5, 3, 0], 8)):
        assert np.allclose(member(starts[0], 3, members, batch_size=size), alone, atol=1e-3)
    others = [
        member(starts[0], 2, [2]),
        member(starts[1], 3, [3]),
        member(starts[0], 3, [3], seed=1),
    ]
    for other in others:
        assert np.abs(other - alone).max() > 1


def test_land_stays_missing_and_forcings_are_those_of_each_step(store: str) -> None:
    domain = weather(path=store, variables=["sst"], forcings=["cos_zenith", "hour"], target="state")
    rollout = Rollout(linear(domain, spread=0.5), SampleSection(steps=2))
    (start,) = domain.init_times(["2001-01-20T12"])  # beyond the last state after two steps
    states = [state.values for (state,) in rollout(start, [0], 4)]
    land = np.isnan(domain.states().read(0))
    assert all(np.array_equal(np.isnan(values), land) for values in states)
    field = domain.conditioning(start, 3, domain.history(start))
    hour = 12 + 18 - 24
    sine, cosine = (2**0.5 * f(2 * np.pi * hour / 24) for f in (np.sin, np.cos))
    assert np.allclose(field.cond["scalars"], [sine, cosine], atol=1e-6)


def test_an_initial_time_with_cells_missing_only_there_is_refused(
    store: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"variables": {"t": [500], "sst": None}, "val": 0.2}
    metadata = weather(path=store, **keys).metadata()
    with xr.open_zarr(store, chunks=None) as data:
        data.load()
    data["t"][10, 0, 4, 4:7] = data["sst"][11, 5, 5] = np.nan

    def history(at: int, metadata: Mapping[str, Any]) -> None:
        text = json.dumps({"name": "weather", "task": "forecast", "target": "state", **keys})
        section = WeatherSection.model_validate_json(text, strict=True)
        opened = section.model_copy(update={"path": str(path)})
        domain = Weather.from_metadata(opened, metadata)
        domain.history(domain.states().name(at))

    data.to_zarr(path := tmp_path / "holes.zarr", zarr_format=2)
    history(9, metadata)  # land is missing, as in training
    with pytest.raises(JitkitError, match=r"2001-01-03T12 3 cells of t.500 have no value.*never"):
        history(10, metadata)
    with pytest.raises(JitkitError, match=r"2001-01-03T18 1 cell of sst have no value"):
        history(11, metadata)
    history(11, weather(path=str(path), **keys).metadata())  # it was missing in training, too


def test_a_large_number_of_files_is_reported(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast_file(store, tmp_path / "few.zarr")
    assert "files" not in capsys.readouterr().err
    monkeypatch.setattr("jitkit.domains.weather.forecasts.MANY_FILES", 63)
    forecast_file(store, tmp_path / "many.zarr")
    expected = "64 files, one for each variable, initial time, member and lead time"
    assert expected in capsys.readouterr().err


def test_initial_times_are_times_ranges_or_held_out_ones(store: str) -> None:
    domain = weather(path=store, variables={"t": [500]}, lead="12h", inputs=2)
    assert isinstance(domain, Autoregressive)
    assert domain.init_times(["2001-01-02/2001-01-03/12h"]) == [
        "2001-01-02T00", "2001-01-02T12", "2001-01-03T00", "2001-01-03T12"
    ]  # fmt: skip
    assert domain.init_times(["2001-01-09", "2001-01-05T18"]) == ["2001-01-05T18", "2001-01-09T00"]
    held_out = domain.init_times(["val:3"])
    assert len(held_out) == 3 and held_out[0] > "2001-01-18"
    assert domain.steps("10d") == 20
    for words, text in (
        (["2001-01-05T07"], "no state at 2001-01-05T07; there are 80 values from 2001-01-01"),
        (["2001-01-01T06"], "needs 2 states up to 2001-01-01T06, and some are not in the data"),
        (["soon"], "'soon' is not a time; write it as 2001"),
        (["2001/2002"], "a range is first/last/every"),
        (["val:99"], "split val has 4 starts"),
    ):
        with pytest.raises(JitkitError, match=text):
            domain.init_times(words)
    with pytest.raises(JitkitError, match="--lead: 18h is not a multiple of the 12h"):
        domain.steps("18h")


def test_a_model_of_independent_items_cannot_forecast(store: str) -> None:
    domain = weather(path=store, variables={"t": [500]}, task="unconditional", target="change")
    denoiser = Denoiser(domain.layout, domain.conditions, sizes())
    denoiser.domain = domain
    with pytest.raises(JitkitError, match="independent items, not a sequence of states"):
        Rollout(denoiser, SampleSection())


# The file


def forecast_file(store: str, out: Path, **keys: Any) -> xr.Dataset:
    domain = weather(path=store, variables={"t": [850], "sst": None})
    section = SampleSection(**{"steps": 2, "batch_size": 3} | keys)
    request = ForecastRequest(("2001-01-05", "2001-01-09"), "1d", 4)
    write_forecasts(linear(domain, spread=0.5), section, request, out)
    return xr.open_zarr(out, chunks=None).load()


def test_the_file_has_the_names_of_weatherbench_and_the_units_of_the_data(
    store: str, tmp_path: Path
) -> None:
    found = forecast_file(store, tmp_path / "fc.zarr")
    dims = ("time", "number", "prediction_timedelta")
    assert found["t"].dims == (*dims, "level", "latitude", "longitude")
    assert found["sst"].dims == (*dims, "latitude", "longitude")
    assert dict(found.sizes) == dict(
        time=2, number=4, prediction_timedelta=4, level=1, latitude=6, longitude=8
    )
    assert found["t"].attrs == {"units": "K", "standard_name": "air_temperature"}
    assert found["level"].values.tolist() == [850] and found["level"].attrs == {"units": "hPa"}
    assert found["latitude"].attrs["units"] == "degrees_north"
    assert found["prediction_timedelta"].dtype.kind == "m"
    assert (found["valid_time"] == found["time"] + found["prediction_timedelta"]).all()
    assert np.isnan(found["sst"].values[..., 2, 1]).all() and not np.isnan(found["t"]).any()
    assert list(tmp_path.glob(".*")) == []


def test_the_file_holds_the_states_of_the_rollout(store: str, tmp_path: Path) -> None:
    found = forecast_file(store, tmp_path / "fc.zarr")
    domain = weather(path=store, variables={"t": [850], "sst": None})
    rollout = Rollout(linear(domain, spread=0.5), SampleSection(steps=2, batch_size=3))
    for step, states in enumerate(rollout("2001-01-09T00", range(4), 4)):
        for member, state in enumerate(states):
            written = found.isel(time=1, number=member, prediction_timedelta=step)
            assert np.allclose(written["t"].values, state.values[:1], atol=1e-3)


@pytest.mark.parametrize("inputs", [1, 2])
def test_a_resumed_forecast_is_bit_identical(
    store: str, tmp_path: Path, inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = weather(path=store, variables={"t": [850], "sst": None}, inputs=inputs)
    request = ForecastRequest(("2001-01-05", "2001-01-09"), "1d", 4)
    section = SampleSection(steps=2, batch_size=3)
    denoiser = linear(domain, spread=0.5, share=0.3)
    write_forecasts(denoiser, section, request, tmp_path / "unbroken.zarr")
    write, count = Forecasts.write, 0

    def write_and_fail(self: Forecasts, *of: Any) -> None:
        nonlocal count
        count += 1
        if count == 21:  # of a batch of three at its third step
            raise OSError("no space left on device")
        write(self, *of)

    with monkeypatch.context() as patch:
        patch.setattr(Forecasts, "write", write_and_fail)
        with pytest.raises(OSError):
            write_forecasts(denoiser, section, request, tmp_path / "broken.zarr")
    assert not (tmp_path / "broken.zarr").exists()
    write_forecasts(denoiser, section, request, tmp_path / "broken.zarr")
    a, b = (xr.open_zarr(tmp_path / f"{n}.zarr", chunks=None) for n in ("unbroken", "broken"))
    assert a.identical(b)


def test_a_file_is_not_resumed_with_other_settings(store: str, tmp_path: Path) -> None:
    forecast_file(store, tmp_path / "fc.zarr")
    with pytest.raises(JitkitError, match="other settings: sample.seed was 0, now 5; choose a new"):
        forecast_file(store, tmp_path / "fc.zarr", seed=5)
    (tmp_path / "other.zarr").mkdir()
    with pytest.raises(JitkitError, match="exists and is not a forecast"):
        forecast_file(store, tmp_path / "other.zarr")


def test_a_file_of_an_older_jitkit_has_renamed_keys_and_defaults_of_new_ones(
    tmp_path: Path,
) -> None:
    sample = SampleSection().model_dump(mode="json", exclude={"batch_size"})
    named = dict(sample)
    for old, new in RENAMED.items():
        if new.startswith("sample."):
            named[old.removeprefix("sample.")] = named.pop(new.removeprefix("sample."))
    _check_output(tmp_path, {"steps": 2, "sample": named}, {"steps": 2, "sample": sample})
    older = {key: value for key, value in sample.items() if key != "time_grid"}
    _check_output(tmp_path, {"steps": 2, "sample": older}, {"steps": 2, "sample": sample})
    with pytest.raises(JitkitError, match='sample.time_grid was "uniform", now "cosine"'):
        other = sample | {"time_grid": "cosine"}
        _check_output(tmp_path, {"steps": 2, "sample": older}, {"steps": 2, "sample": other})


def test_two_commands_cannot_write_the_same_file(store: str, tmp_path: Path) -> None:
    with locked(tmp_path / ".fc.zarr.lock"):
        with pytest.raises(JitkitError, match="another process writes .*fc.zarr; wait for it"):
            forecast_file(store, tmp_path / "fc.zarr")


# The command


@pytest.fixture(scope="module")
def run(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained for a few steps."""
    recipe = {
        "domain": {
            "name": "weather",
            "path": store,
            "variables": {"t": [500, 850], "sst": None},
            "task": "forecast",
            "inputs": 2,
            "forcings": ["cos_zenith", "dayofyear"],
            "condition_drop": {"past": 0.2},
        },
        "model": {"width": 16, "depth": 2, "heads": 2, "patch": 2},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-2, "ema": [0.5], "precision": "float32",
                  "preview_samples": 2, "validate_items": 4},
        "sample": {"steps": 2, "guidance": 1.5},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("run")
    os.environ["JITKIT_CACHE"] = str(folder / "cache")
    return train(recipe, run=folder / "weather")


REQUEST = ("--init", "val:2", "--lead", "1d", "--members", "3")

KILLED = """
import os, signal, sys
from jitkit.cli import main
from jitkit.domains.weather.forecasts import Forecasts
write, count = Forecasts.write, 0
def write_and_die(self, *of):
    global count
    count += 1
    write(self, *of)
    if count == 11:
        os.kill(os.getpid(), signal.SIGKILL)
Forecasts.write = write_and_die
main()
"""


def test_a_killed_command_resumes_and_writes_an_identical_file(
    run: Path, tmp_path: Path, jitkit: Callable[..., Any]
) -> None:
    out = tmp_path / "killed.zarr"
    words = ("forecast", run, "sample.batch_size=2", *REQUEST, "--out")
    command = [sys.executable, "-c", KILLED, *map(str, words), str(out)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not out.exists() and (tmp_path / ".killed.zarr.part").is_dir()
    for path in (out, tmp_path / "whole.zarr"):
        answer = jitkit(*words, path)
        assert answer.code == 0 and "2 starts x 3 members x 4 steps" in answer.out, answer.err
    a, b = (xr.open_zarr(tmp_path / f"{n}.zarr", chunks=None) for n in ("killed", "whole"))
    assert a.identical(b)
    again = jitkit(*words, out)
    assert again.code == 0 and "already complete" in again.out


def test_a_signal_stops_the_command_after_the_step_with_code_75(
    run: Path, tmp_path: Path, jitkit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance, steps = Rollout.advance, list[int]()

    def advance_and_signal(self: Rollout, members: Any, step: int, histories: Any) -> Any:
        steps.append(step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, members, step, histories)

    monkeypatch.setattr(Rollout, "advance", advance_and_signal)
    words = ("forecast", run, *REQUEST, "--out", tmp_path / "fc.zarr")
    first = jitkit(*words)
    assert first.code == 75 and "SIGTERM" in first.err and steps == [1, 2]
    assert jitkit(*words).code == 0 and steps == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--init", "1999-01-01", "--lead", "1d"), "no state at 1999-01-01"),
        (("--init", "val:2", "--lead", "7h"), "--lead: 7h is not a multiple of the 6h"),
        (
            ("--init", "val:2", "--lead", "1d", "--out", "fc.nc"),
            "fc.nc: forecasts are written as a Zarr store; name it fc.zarr",
        ),
        (("--init", "val:2", "--lead", "soon"), "'soon' is no duration"),
        (
            ("--init", "val:2", "--lead", "1d", "--members", "0"),
            "members is 0; it must be at least 1",
        ),
    ],
)
def test_an_invalid_command_gives_one_message_and_writes_nothing(
    words: tuple[str, ...],
    text: str,
    run: Path,
    tmp_path: Path,
    jitkit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in words else ("--out", tmp_path / "fc.zarr")
    answer = jitkit("forecast", run, *words, *out)
    assert answer.code == 2 and text in answer.err and "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []


def test_samples_of_a_forecast_model_are_states_in_physical_units(
    run: Path, tmp_path: Path, jitkit: Callable[..., Any]
) -> None:
    answer = jitkit("sample", run, "--n", 2, "--cond-from", "val:0-1", "--out", tmp_path / "out")
    assert answer.code == 0, answer.err
    with xr.open_zarr(tmp_path / "out/samples.zarr", chunks=None) as found:
        assert found["t"].dims == ("sample", "level", "latitude", "longitude")
        assert 150 < float(found["t"].mean()) < 350
        assert np.isnan(found["sst"].values[:, 2, 1]).all()
