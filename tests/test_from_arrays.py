"""Arrays in memory and torch Datasets as a domain: `jitkit.from_arrays`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from torch.utils.data import Dataset, TensorDataset

import jitkit
from jitkit.fields import Category, Grid, PerToken, Scalars
from jitkit.testing import check_domain

RECIPE: dict[str, Any] = {
    "model": {"width": 16, "depth": 1},
    "train": {"steps": 4, "batch_size": 8, "ema": [0.5], "save_every_steps": 2},
    "sample": {"steps": 2, "seed": 3},
    "evaluate": {"samples": 4},
}
AXES: list[Any] = ["line", "circle", "line", "line"]


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(5, 3, shape)


@pytest.mark.parametrize("num_axes", [1, 2, 3, 4])
def test_random_fields_of_any_number_of_axes_train_sample_and_score(
    num_axes: int, tmp_path: Path
) -> None:
    x = normal(40, *[6, 4, 3, 2][:num_axes])
    domain = jitkit.from_arrays(x, {"label": np.arange(40) % 3}, AXES[:num_axes])
    check_domain(domain)
    run = jitkit.train(RECIPE, domain=domain, run=tmp_path / "run")
    items = jitkit.generate(run, 3, {"label": [0, 1, 2]})
    assert [item.values.shape for item in items] == [(1, *x.shape[1:])] * 3
    assert [item.cond["label"] for item in items] == [0, 1, 2]
    assert "spread.value" in jitkit.evaluate(run, domain=domain)["scores"]


def test_a_dataset_trains_like_the_arrays_in_it(tmp_path: Path) -> None:
    x, y = normal(30, 2, 8).astype(np.float32), np.arange(30) % 2
    dataset = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    runs = []
    for name, domain in (
        ("dataset", jitkit.from_arrays(dataset, axes=["line"])),
        ("arrays", jitkit.from_arrays(x, {"label": y}, ["line"])),
    ):
        check_domain(domain)
        runs.append(jitkit.train(RECIPE, domain=domain, run=tmp_path / name))
    of_dataset, of_arrays = (jitkit.load(run).state_dict() for run in runs)
    assert all(torch.equal(value, of_arrays[name]) for name, value in of_dataset.items())


class Rows(Dataset[Any]):
    """Mappings, as many libraries return them."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return {"x": normal(2, 4, seed=index), "age": float(index), "name": "ab"[index % 2]}


def test_a_dataset_may_return_mappings() -> None:
    domain = jitkit.from_arrays(Rows(), axes=["line"], val_fraction=0.2)
    check_domain(domain)
    assert domain.conditions == {"age": Scalars(("age",)), "name": Category(2)}
    assert (len(domain.items("train")), len(domain.items("val"))) == (16, 4)


def test_moments_are_those_of_the_training_split_in_float64() -> None:
    x = 1e6 + normal(50, 2, 30)
    x[3, 1, 4] = np.nan
    domain = jitkit.from_arrays(x, axes=["line"])
    train = np.stack([item.values for item in domain.items("train")])
    statistics = domain.statistics
    np.testing.assert_allclose(statistics.mean, np.nanmean(train, axis=(0, 2)), rtol=1e-12)
    np.testing.assert_allclose(statistics.std, np.nanstd(train, axis=(0, 2)), rtol=1e-8)
    assert domain.layout.missing
    item = domain.items("train")[3]
    decoded = domain.decode(domain.encode(item)).values
    np.testing.assert_allclose(decoded, item.values, rtol=1e-7)


def test_every_kind_of_condition_is_recognised_and_undone() -> None:
    maps = normal(20, 2, 4, 3, seed=1).astype(np.float32)
    cond = {
        "word": np.array(["cat", "dog"] * 10),
        "number": np.array([7, 3, 7, 9] * 5),
        "height": normal(20, seed=2).astype(np.float32),
        "wind": normal(20, 2, seed=3).astype(np.float32),
        "map": maps,
        "cell": np.random.default_rng(0).integers(0, 5, (20, 4, 3)),
    }
    domain = jitkit.from_arrays(normal(20, 4, 3), cond, ["line", "circle"])
    check_domain(domain)
    assert domain.conditions == {
        "word": Category(2),
        "number": Category(3),
        "height": Scalars(("height",)),
        "wind": Scalars(("wind 0", "wind 1")),
        "map": Grid(("map 0", "map 1")),
        "cell": PerToken(5),
    }
    for item in domain.items("train")[:3]:
        decoded = domain.decode(domain.encode(item))
        for name, value in item.cond.items():
            if name == "word":
                assert decoded.cond[name] == value
            else:
                np.testing.assert_allclose(decoded.cond[name], value, rtol=1e-5, atol=1e-5)


def test_conditions_are_asked_for_in_the_units_of_the_data(tmp_path: Path) -> None:
    cond = {"word": ["cat", "dog"] * 20, "height": normal(40, seed=2)}
    domain = jitkit.from_arrays(normal(40, 8), cond, ["line"])
    run = jitkit.train(RECIPE, domain=domain, run=tmp_path / "run")
    items = jitkit.generate(run, 2, {"word": "dog", "height": 4.5})
    assert [(item.cond["word"], round(item.cond["height"], 4)) for item in items] == [
        ("dog", 4.5),
        ("dog", 4.5),
    ]
    each = jitkit.generate(run, 2, {"word": ["dog", "cat"], "height": [1.0, 2.0]})
    assert [(item.cond["word"], round(item.cond["height"], 4)) for item in each] == [
        ("dog", 1.0),
        ("cat", 2.0),
    ]
    with pytest.raises(jitkit.JitkitError, match="word='cow': no such class; classes are cat, dog"):
        jitkit.generate(run, 2, {"word": "cow"})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "bool", "float32", "float64"])
def test_samples_have_the_dtype_of_the_data(dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (30, 6)).astype(dtype)
    domain = jitkit.from_arrays(x)
    item = domain.items("train")[0]
    decoded = domain.decode(domain.encode(item)).values
    assert decoded.dtype == x.dtype
    np.testing.assert_allclose(decoded.astype(float), item.values.astype(float), rtol=1e-6)


def test_files_have_the_names_and_shapes_of_the_arrays(
    tmp_path: Path, jitkit: Callable[..., Result]
) -> None:
    import jitkit as api

    x, y = normal(30, 6, 4), np.array(["a", "b"] * 15)
    run = api.train(RECIPE, domain=api.from_arrays(x, {"y": y}, AXES[:2]), run=tmp_path / "run")
    result = jitkit("sample", run, "--n", 4, "--cond", "y=b", "--out", tmp_path / "four")
    assert result.code == 0, result.err
    with np.load(tmp_path / "four" / "samples.npz") as file:
        assert file["x"].shape == (4, 6, 4) and file["y"].tolist() == ["b"] * 4
        samples = api.generate(run, 4, {"y": "b"})
        np.testing.assert_array_equal(file["x"], np.stack([item.values[0] for item in samples]))
    result = jitkit("evaluate", run)
    assert result.code == 2 and "give them again in Python" in result.err


def test_validation_items_are_drawn_at_random_or_the_last() -> None:
    x = normal(40, 3)
    mixed, last = jitkit.from_arrays(x), jitkit.from_arrays(x, shuffle=False, val_fraction=0.25)
    names = [item.name for item in last.items("val")]
    assert names == [str(i) for i in range(30, 40)]
    drawn = [int(item.name) for item in mixed.items("val")]
    assert len(drawn) == 4 and drawn != [36, 37, 38, 39]
    again = pickle.loads(pickle.dumps(mixed)).items("val")
    assert [int(item.name) for item in again] == drawn
    both = [*mixed.items("train"), *mixed.items("val")]
    assert sorted(int(item.name) for item in both) == list(range(40))


@pytest.mark.parametrize(
    ("x", "given", "text"),
    [
        (normal(9, 3, 4), {}, r"axes: items have shape \(3, 4\); give the kind of each axis"),
        (normal(9, 3), {"axes": ["ring"]}, "axes: kind 'ring' is not line, circle or set"),
        (normal(9, 3), {"axes": ["line"] * 3}, r"axes: 3 kinds .* for items of shape \(3,\)"),
        (normal(9), {}, r"x has shape \(9,\); expected items along a first axis"),
        (normal(9, 3) * 1j, {}, "x is complex128, not real numbers; split it into real and imag"),
        (np.array([["a"], ["b"]]), {}, "not real numbers; give an array of numbers"),
        (normal(9, 3), {"cond": {"y": [1, 2]}}, r"cond 'y' has shape \(2,\), but there are 9 it"),
        (normal(9, 3), {"cond": [1]}, "cond of arrays is a mapping from names to values"),
        (normal(9, 2, 3), {"axes": ["line"], "channels": ["u"]}, "channels: 1 names for items of"),
        (TensorDataset(torch.zeros(3, 2), torch.zeros(3), torch.zeros(3)), {}, "cond names 1: lab"),
        (TensorDataset(torch.zeros(0, 2)), {}, "the Dataset has no items"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: Any, given: dict[str, Any], text: str) -> None:
    with pytest.raises(jitkit.JitkitError, match=text):
        jitkit.from_arrays(x, **given)


def test_a_condition_of_no_kind_is_refused() -> None:
    domain = jitkit.from_arrays(normal(9, 3), {"y": normal(9, 2, 5)})
    with pytest.raises(jitkit.JitkitError, match=r"cond 'y' has shape \(9, 2, 5\) of float64; exp"):
        domain.metadata()


def test_infinite_values_and_constant_channels_are_refused_by_name() -> None:
    for value, text in ((np.inf, "infinite"), (None, "heat")):
        x = normal(40, 2, 3)
        x[:, 1] = 2.0 if value is None else np.where(np.arange(40)[:, None] == 7, value, 1.0)
        domain = jitkit.from_arrays(x, axes=["line"], channels=["wind", "heat"], val_fraction=0)
        with pytest.raises(jitkit.DataError, match=text):
            domain.metadata()


def test_other_data_do_not_resume_a_run(tmp_path: Path) -> None:
    jitkit.train(RECIPE, {"train.steps": 2}, domain=jitkit.from_arrays(normal(30, 6)), run=tmp_path)
    with pytest.raises(jitkit.DataError, match=r"metadata.statistics\.\w+"):
        jitkit.train(RECIPE, domain=jitkit.from_arrays(normal(30, 6, seed=1)), run=tmp_path)


def test_a_run_goes_on_with_the_same_arrays_in_a_new_domain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(run: Path, steps: int) -> Path:
        domain = jitkit.from_arrays(normal(40, 6, 4), {"label": np.arange(40) % 3}, AXES[:2])
        return jitkit.train(RECIPE, {"train.steps": steps}, domain=domain, run=run)

    whole = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 2)
    capsys.readouterr()
    parts = trained(tmp_path / "parts", 4)
    assert "resuming from step 2 of 4" in capsys.readouterr().out
    weights = [run / "checkpoints" / "step-4" / "model.safetensors" for run in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
