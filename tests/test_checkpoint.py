"""Checkpoints: restored bit for bit, skipped if torn, and no code in them is run."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import layout, random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import jitkit
from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.domains.images.adapter import Images, ImagesSection
from jitkit.errors import CheckpointError
from jitkit.fields import Category, Condition, Conditioning, Grid, PerToken, Scalars
from jitkit.optim.ema import EMA
from jitkit.optim.optimizers import adamw
from jitkit.runs import checkpoint
from jitkit.runs.checkpoint import (
    DomainRecord,
    find_checkpoint,
    load,
    newest,
    open_checkpoint,
    prune,
    restore,
    save_checkpoint,
)

FILES = [
    "ema-0.5.safetensors",
    "ema-0.9999.safetensors",
    "model.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
]


class Model:
    """A small model in training, whose EMAs and optimizer have seen a few steps."""

    def __init__(self, seed: int = 0, steps: int = 3) -> None:
        self.denoiser = random_model(layout((4, 2), (6, 2)), {"label": Category(3)}, seed=seed)
        self.ema = EMA(self.denoiser.network, [0.5, 0.9999])
        self.optimizer = adamw(self.denoiser.network, betas=(0.9, 0.95), weight_decay=0.1)
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        x = torch.randn(2, 2, 4, 6, generator=torch.Generator().manual_seed(self.ema.updates))
        label = torch.tensor([0, 3])
        t, given = torch.tensor([0.2, 0.7]), Conditioning({"label": label})
        losses = self.denoiser.losses(x, -x, t, given)
        torch.autograd.backward(losses.mean())
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-2
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def save(self, run: Path, step: int) -> Path:
        return save_checkpoint(run, step, self.denoiser, self.ema, optimizer=self.optimizer)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that the next step depends on."""
        parameters = dict(self.denoiser.network.named_parameters())
        tensors = {f"weight/{name}": p.detach() for name, p in parameters.items()}
        for decay, average in self.ema.averages.items():
            tensors |= {f"{decay}/{name}": value for name, value in average.items()}
        for name, p in parameters.items():
            tensors |= {f"{key}/{name}": v for key, v in self.optimizer.state[p].items()}
        return {name: value.clone() for name, value in tensors.items()} | {
            "updates": torch.tensor(self.ema.updates)
        }


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of steps 3 and 4; tests that change it make a copy."""
    run, model = tmp_path_factory.mktemp("two"), Model()
    model.save(run, 3)
    model.step()
    model.save(run, 4)
    return run


@pytest.fixture
def run(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "run"))


def steps(run: Path) -> list[str]:
    """Names in a run's folder of checkpoints, including hidden ones."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# Save and load


def test_a_restored_model_is_bit_identical_and_continues_identically(tmp_path: Path) -> None:
    model = Model()
    path = model.save(tmp_path, 3)
    other = Model(seed=1, steps=1)
    assert not equal(model.tensors(), other.tensors())
    restore(open_checkpoint(path), other.denoiser, other.ema, other.optimizer)
    assert equal(model.tensors(), other.tensors())
    model.step()
    other.step()
    assert equal(model.tensors(), other.tensors())


def test_a_loaded_model_has_the_first_ema_and_predicts_the_same(two: Path) -> None:
    model = Model(steps=4)
    loaded = load(two)
    assert not loaded.training
    for name, p in loaded.network.named_parameters():
        assert torch.equal(p, model.ema.averages["0.5"][name]), name
    z, t = torch.randn(2, 2, 4, 6), torch.tensor([0.1, 0.9])
    prediction = load(two, ema="none")(z, t, {"label": torch.tensor([1, 2])})
    assert torch.equal(prediction, model.denoiser(z, t, {"label": torch.tensor([1, 2])}))


@pytest.mark.parametrize("ema", [0.9999, "0.9999"])
def test_another_ema_or_the_raw_parameters_can_be_loaded(two: Path, ema: Any) -> None:
    model = Model(steps=4)
    for name, p in load(two, ema=ema).network.named_parameters():
        assert torch.equal(p, model.ema.averages["0.9999"][name]), name
    raw = dict(load(two, ema="none").network.named_parameters())
    assert all(torch.equal(p, raw[n]) for n, p in model.denoiser.network.named_parameters())


def test_a_missing_ema_is_refused_and_the_existing_ones_are_listed(two: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"step-4: no EMA 0\.99; it has 0\.5, 0\.9999, and none for the raw"
    ):
        load(two, ema=0.99)


def test_a_model_with_every_kind_of_axis_and_condition_is_rebuilt(tmp_path: Path) -> None:
    conditions: dict[str, Condition] = {
        "label": Category(3, drop=0.25),
        "a.b": Scalars(("energy", "day")),
        "past": Grid(("u", "v"), drop=0.0),
        "residue": PerToken(20),
    }
    diffusion = Diffusion("v", "eps", noise_scale=2.5, t_eps=0.01)
    saved = random_model(
        layout((5, 2), (6, 3, "circle"), (2, 1, "set")), conditions, diffusion, heads=1
    )
    save_checkpoint(tmp_path, 0, saved, EMA(saved.network, [0.9]))
    loaded = jitkit.load(tmp_path)
    assert (loaded.layout, loaded.conditions) == (saved.layout, conditions)
    assert (loaded.diffusion, loaded.network.sizes) == (diffusion, saved.network.sizes)


def test_a_run_loads_its_newest_checkpoint_and_an_older_one_by_its_folder(two: Path) -> None:
    assert find_checkpoint(two).step == 4
    assert find_checkpoint(two / "checkpoints" / "step-3").step == 3
    first = dict(load(two / "checkpoints" / "step-3", ema="none").network.named_parameters())
    model = Model(steps=3)
    assert all(torch.equal(p, first[n]) for n, p in model.denoiser.network.named_parameters())


def test_samples_are_decoded_without_the_training_data(tmp_path: Path, image_folder: Path) -> None:
    section = ImagesSection(name="images", path=image_folder, size=8)
    domain = Images(section)
    saved = random_model(domain.layout.with_patch(4), domain.conditions)
    record = DomainRecord(section.model_dump(mode="json"), domain.metadata())
    save_checkpoint(tmp_path, 1, saved, EMA(saved.network, [0.9]), domain=record)
    shutil.rmtree(image_folder)
    loaded = load(tmp_path)
    assert loaded.domain.metadata() == {"num_classes": 2, "class_names": ["cat", "dog"]}
    assert loaded.domain.layout == domain.layout


def test_a_model_saved_without_its_domain_has_no_domain(two: Path) -> None:
    with pytest.raises(jitkit.JitkitError, match="no domain; .* set denoiser.domain"):
        load(two).domain  # noqa: B018


# Contents


def test_a_checkpoint_consists_of_safetensors_and_json_only(two: Path) -> None:
    folder = two / "checkpoints" / "step-4"
    assert sorted(file.name for file in folder.iterdir()) == FILES
    for file in folder.iterdir():
        if file.suffix == ".json":
            assert isinstance(json.loads(file.read_text()), dict)
        else:
            with safe_open(file, "pt") as tensors:
                assert len(tensors.keys()) > 10
    state = json.loads((folder / "state.json").read_text())
    assert state["files"] == {
        name: (folder / name).stat().st_size for name in FILES if name != "state.json"
    }


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save_as", [pickle.dump, torch.save])
def test_a_pickle_instead_of_parameters_is_refused_and_not_run(
    run: Path, tmp_path: Path, save_as: Any
) -> None:
    created = tmp_path / "created"
    for name in ("model", "ema-0.5", "optimizer"):
        with (run / f"checkpoints/step-4/{name}.safetensors").open("wb") as file:
            save_as(Bomb(created), file)
    update_sizes(run / "checkpoints/step-4")
    with pytest.raises(CheckpointError, match=r"ema-0.5.safetensors: torn or not safetensors"):
        load(run)
    model = Model()
    with pytest.raises(CheckpointError, match=r"model.safetensors: torn or not safetensors"):
        restore(find_checkpoint(run), model.denoiser, model.ema, model.optimizer)
    assert not created.exists()
    pickle.loads(pickle.dumps(Bomb(created)))
    assert created.exists()


def update_sizes(folder: Path) -> None:
    """Write the current file sizes into state.json."""
    state = json.loads((folder / "state.json").read_text())
    state["files"] = {name: (folder / name).stat().st_size for name in state["files"]}
    (folder / "state.json").write_text(json.dumps(state))


# Torn


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_a_missing_file_is_skipped_with_a_warning(
    run: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "checkpoints/step-4" / name).unlink()
    previous = newest(run)
    assert previous is not None and previous.step == 3
    warning = capsys.readouterr().err
    assert warning.startswith("warning: ")
    assert warning.endswith("; trying the previous checkpoint\n")
    assert "step-4: torn: " in warning and name in warning


@given(st.sampled_from(FILES), st.floats(0, 1, exclude_max=True))
@settings(max_examples=40, deadline=None)
def test_a_checkpoint_with_a_truncated_file_is_torn(two: Path, name: str, part: float) -> None:
    file = two / "checkpoints/step-4" / name
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointError, match="step-4: torn: "):
            open_checkpoint(file.parent)
        assert find_checkpoint(two).step == 3
    finally:
        file.write_bytes(whole)
    assert find_checkpoint(two).step == 4


def test_a_checkpoint_with_a_file_that_is_too_long_is_torn(run: Path) -> None:
    with (run / "checkpoints/step-4/model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=r"model.safetensors has \d+ bytes of \d+"):
        open_checkpoint(run / "checkpoints/step-4")


def test_a_run_whose_checkpoints_are_all_torn_is_not_restarted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (3, 4):
        (run / f"checkpoints/step-{step}/model.json").unlink()
    for read in (newest, load):
        with pytest.raises(CheckpointError, match="none of 2 checkpoints is whole; start another"):
            read(run)
        assert capsys.readouterr().err.count("trying the previous checkpoint") == 2


def test_a_newer_format_is_not_treated_as_torn(run: Path) -> None:
    path = run / "checkpoints/step-4/model.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    for read in (newest, load):
        with pytest.raises(
            CheckpointError,
            match=r"step-4: format 2 is newer than this jitkit reads \(1\); update jitkit",
        ):
            read(run)


# Tensors that do not fit


def replace_tensors(run: Path, name: str, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, run / f"checkpoints/step-4/{name}.safetensors")
    update_sizes(run / "checkpoints/step-4")


def test_all_parameters_that_do_not_fit_are_listed_in_one_error(run: Path) -> None:
    tensors = load_file(run / "checkpoints/step-4/ema-0.5.safetensors")
    del tensors["final.norm.weight"], tensors["context"]
    tensors["final.nrom.weight"] = torch.zeros(3)
    tensors["time.layer1.bias"] = torch.zeros(2, 3)
    replace_tensors(run, "ema-0.5", tensors)
    with pytest.raises(CheckpointError) as caught:
        load(run)
    path = run / "checkpoints/step-4/ema-0.5.safetensors"
    assert str(caught.value) == (
        f"{path} does not fit the model; missing: context, final.norm.weight; "
        "unexpected: final.nrom.weight; "
        "wrong shape: time.layer1.bias (2, 3) where the model has (16,)"
    )


@pytest.mark.parametrize("name", ["model", "ema-0.9999"])
def test_a_run_is_not_resumed_from_parameters_that_do_not_fit(run: Path, name: str) -> None:
    tensors = load_file(run / f"checkpoints/step-4/{name}.safetensors")
    del tensors["context"]
    replace_tensors(run, name, tensors)
    model = Model()
    with pytest.raises(CheckpointError, match=rf"{name}.safetensors .*; missing: context$"):
        restore(find_checkpoint(run), model.denoiser, model.ema, model.optimizer)


def test_a_run_is_not_resumed_from_an_incomplete_optimizer(run: Path) -> None:
    tensors = load_file(run / "checkpoints/step-4/optimizer.safetensors")
    del tensors["exp_avg_sq/context"]
    replace_tensors(run, "optimizer", tensors)
    model = Model()
    with pytest.raises(CheckpointError, match="optimizer.safetensors: no exp_avg_sq/context"):
        restore(find_checkpoint(run), model.denoiser, model.ema, model.optimizer)


def test_an_invalid_model_description_is_refused(run: Path) -> None:
    path = run / "checkpoints/step-4/model.json"
    model = json.loads(path.read_text())
    model["sizes"]["wdith"] = model["sizes"].pop("width")
    path.write_text(json.dumps(model))
    update_sizes(path.parent)
    with pytest.raises(CheckpointError, match=r"model.json: not a model: .*wdith"):
        load(run)


def test_a_folder_that_is_no_run_is_refused_and_the_nearest_name_suggested(
    two: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=rf"{two}s: no such folder; did you mean"):
        load(f"{two}s")
    with pytest.raises(CheckpointError, match=r"nowhere/at all: no such folder$"):
        load(two / "nowhere" / "at all")
    with pytest.raises(CheckpointError, match="no checkpoint in it; expected a run's folder"):
        load(tmp_path)


# Write errors


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Limit the file size of this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(run: Path) -> dict[str, bytes]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("size", [0, 1000, 40_000])
def test_a_full_disk_leaves_existing_checkpoints_untouched(run: Path, size: int) -> None:
    model, before = Model(), contents(run)
    with (
        files_of_at_most(size),
        pytest.raises(
            CheckpointError,
            match=r"step-5 cannot be written: .*large.*; earlier checkpoints are untouched",
        ),
    ):
        model.save(run, 5)
    assert contents(run) == before and steps(run) == ["step-3", "step-4"]
    model.save(run, 5)
    assert find_checkpoint(run).step == 5


@pytest.mark.parametrize("call", range(8))
def test_a_failed_flush_leaves_no_partial_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls, fsync = iter(range(100)), os.fsync

    def full(handle: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        Model().save(run, 5)
    monkeypatch.undo()
    newest_step = find_checkpoint(run).step
    assert newest_step == (5 if call == 7 else 4)  # the last flush is that of the rename
    assert not list((run / "checkpoints").glob(".*"))
    load(run)


def test_an_interruption_leaves_no_partial_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Model().save(run, 5)
    assert steps(run) == ["step-3", "step-4"]


def test_saving_a_step_again_replaces_its_checkpoint(run: Path) -> None:
    (run / "checkpoints/step-4/model.safetensors").unlink()
    Model(steps=4).save(run, 4)
    assert sorted(file.name for file in (run / "checkpoints/step-4").iterdir()) == FILES
    assert find_checkpoint(run).step == 4


# Pruning


def test_pruning_keeps_the_newest_by_step_not_by_name(tmp_path: Path) -> None:
    model = Model()
    for step in (100, 9, 20, 3):
        model.save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-best").mkdir()  # made by a user
    prune(tmp_path, 2)
    assert steps(tmp_path) == ["step-100", "step-20", "step-best"]
    prune(tmp_path, 5)
    assert steps(tmp_path) == ["step-100", "step-20", "step-best"]


def test_pruning_does_not_count_torn_checkpoints(run: Path) -> None:
    Model().save(run, 9)
    (run / "checkpoints/step-9/model.safetensors").unlink()
    prune(run, 1)
    assert find_checkpoint(run).step == 4
    assert steps(run) == ["step-4", "step-9"]


def test_leftovers_of_a_killed_save_are_never_loaded_and_are_pruned(run: Path) -> None:
    shutil.copytree(run / "checkpoints/step-4", run / "checkpoints/.step-7.part")
    assert find_checkpoint(run).step == 4
    prune(run, 2)
    assert steps(run) == ["step-3", "step-4"]


def test_a_model_is_loaded_to_the_requested_device(two: Path) -> None:
    loaded: Denoiser = load(two, device="meta")
    assert loaded.device.type == "meta"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"width": 16', '"width": -16'),
        ('"prediction": "x"', '"prediction": "q"'),
        ('"noise_scale": 1.0', '"noise_scale": 0'),
    ],
)
def test_a_model_description_with_invalid_values_is_refused(run: Path, old: str, new: str) -> None:
    path = run / "checkpoints/step-4/model.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    state = run / "checkpoints/step-4/state.json"
    size = f'"model.json": {len(text)}'
    assert size in state.read_text()
    state.write_text(state.read_text().replace(size, f'"model.json": {path.stat().st_size}'))
    with pytest.raises(CheckpointError, match="model.json: not a model"):
        load(run)


def test_parameters_that_are_not_finite_are_refused(run: Path) -> None:
    path = run / "checkpoints/step-4/model.safetensors"
    tensors = load_file(path)
    tensors["final.linear.bias"][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match="not finite: final.linear.bias"):
        load(run, ema="none")
