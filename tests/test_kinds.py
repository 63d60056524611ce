"""All kinds of conditions, variable-size items and missing cells, from training to samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jitkit
from jitkit.domain import Domain
from jitkit.fields import Axis, Category, Condition, Field, Grid, Layout, PerToken, Scalars
from jitkit.sampling.generate import sample_items
from jitkit.sampling.requests import conditioning_for
from jitkit.sections import SampleSection

RECIPE = {
    "domain": "digits",  # the adapter is passed separately
    "model": {"width": 16, "depth": 2, "heads": 2, "bottleneck": 8},
    "train": {"steps": 3, "batch_size": 4, "lr": 1e-3, "preview_every_steps": 2}
    | {"validate_every_steps": 2, "preview_samples": 3},
    "sample": {"steps": 2, "guidance": 2.0},
}


class Chains(Domain):
    """Two channels along one axis of at most 11 cells; items of 5 to 9 cells, or with gaps."""

    def __init__(self, kind: str, missing: bool, *, val: int = 3) -> None:
        patch = 1 if kind == "set" else 2
        axis = Axis("residue", 11, patch, kind)  # type: ignore[arg-type]
        self.layout = Layout((axis,), ("a", "b"), missing=missing)
        self.conditions: Mapping[str, Condition] = {
            "class": Category(3),
            "state": Scalars(("energy", "charge")),
            "past": Grid(("before",)),
            "type": PerToken(4),
        }
        self.val = val

    def items(self, split: str) -> Sequence[int]:
        return range(10) if split == "train" else range(10, 10 + self.val)

    def encode(self, item: int, rng: np.random.Generator | None = None) -> Field:
        full = self.layout.axes[0].kind == "circle"
        size = 11 if full else 5 + item % 5
        numbers = np.random.default_rng(item)
        values = torch.from_numpy(numbers.standard_normal((2, size)).astype(np.float32))
        if self.layout.missing:
            values[0, item % 3] = torch.nan
        cond = {
            "class": item % 3,
            "state": torch.tensor([0.1 * item, torch.nan]),
            "past": torch.full((1, size), 0.5),
            "type": torch.arange(size) % 4,
        }
        return Field(values, cond=cond)

    def decode(self, field: Field) -> Field:
        return field

    def write(self, items: Iterable[Field], path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        file = path / "items.npy"
        np.save(file, np.array([float(item.values.nanmean()) for item in items]))
        return [file]

    def preview(self, items: Sequence[Field]) -> Image.Image:
        return Image.new("L", (8, 8))


@pytest.mark.parametrize("val", [3, 0])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", ["line", "circle", "set"])
def test_train_preview_and_sample_with_every_kind(
    kind: str, missing: bool, val: int, tmp_path: Path
) -> None:
    domain = Chains(kind, missing, val=val)
    run = jitkit.train(RECIPE, run=tmp_path / "run", domain=domain)
    denoiser = jitkit.load(run)
    denoiser.domain = domain
    cond = conditioning_for(denoiser, 4, source=("train", [0, 1, 2]))
    samples = list(sample_items(denoiser, 4, cond, SampleSection(steps=2, guidance=2.0)))
    real = [domain.encode(item) for item in (0, 1, 2, 0)]
    for sample, item in zip(samples, real, strict=True):
        size = item.values.shape[1]
        assert sample.values.isfinite().all()
        assert int(sample.cond["class"]) == item.cond["class"]
        if sample.mask is None:
            assert sample.values.shape[1] == size
            continue
        assert torch.equal(sample.mask[:, :size], item.values.isfinite())
        assert not sample.mask[:, size:].any()
        assert (sample.values[~sample.mask] == 0).all()
        assert (sample.values[sample.mask] != 0).all()


def test_changed_data_are_refused_when_a_run_is_resumed(tmp_path: Path) -> None:
    domain = Chains("set", False)
    run = jitkit.train(RECIPE, run=tmp_path / "run", domain=domain)
    domain.metadata = lambda: {"elements": ["H"]}  # type: ignore[method-assign]
    with pytest.raises(jitkit.DataError, match=r'metadata.elements: null -> \["H"\]'):
        jitkit.train(RECIPE, {"train.steps": 4}, run=run, domain=domain)
    fewer = Chains("set", False)
    fewer.items = lambda split: range(9)  # type: ignore[method-assign]
    with pytest.raises(jitkit.DataError, match="num_items: 10 -> 9"):
        jitkit.train(RECIPE, {"train.steps": 4}, run=run, domain=fewer)


def swapped_channels(domain: Chains) -> None:
    domain.layout = replace(domain.layout, channels=("b", "a"))


def fewer_classes(domain: Chains) -> None:
    domain.conditions = dict(domain.conditions) | {"class": Category(2)}


def shorter(domain: Chains) -> None:
    domain.layout = Layout((Axis("residue", 9, 2),), ("a", "b"))


def without_past(domain: Chains) -> None:
    domain.conditions = {k: v for k, v in domain.conditions.items() if k != "past"}


def with_holes(domain: Chains) -> None:
    domain.layout = replace(domain.layout, missing=True)


def other_patch(domain: Chains) -> None:
    domain.layout = domain.layout.with_patch(3)


def other_drop(domain: Chains) -> None:
    domain.conditions = dict(domain.conditions) | {"class": Category(3, drop=0.2)}


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the domain Chains along a line."""
    folder = tmp_path_factory.mktemp("runs") / "chains"
    return jitkit.train(RECIPE, run=folder, domain=Chains("line", False))


CHANGES = [
    (swapped_channels, 'layout.channels.0: "a" -> "b"\n  layout.channels.1: "b" -> "a"'),
    (fewer_classes, "conditions.class.n: 3 -> 2"),
    (shorter, "layout.axes.0.size: 11 -> 9"),
    (without_past, "conditions.past: .*before.* -> null"),
    (with_holes, "layout.missing: false -> true"),
]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *CHANGES,
        (other_patch, "layout.axes.0.patch: 2 -> 3"),
        (other_drop, "conditions.class.drop: 0.1 -> 0.2"),
    ],
)
def test_a_changed_domain_is_refused_with_the_difference_when_a_run_is_resumed(
    chains: Path, change: Callable[[Chains], None], text: str
) -> None:
    domain = Chains("line", False)
    change(domain)
    before = sorted((path, path.stat().st_mtime_ns) for path in chains.rglob("*.json*"))
    with pytest.raises(jitkit.DataError, match=f"was trained on:\n  {text}"):
        jitkit.train(RECIPE, {"train.steps": 4}, run=chains, domain=domain)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in chains.rglob("*.json*"))


def test_the_patch_of_the_recipe_overrides_that_of_the_domain(tmp_path: Path) -> None:
    given = {"model.patch": 3}
    run = jitkit.train(RECIPE, given, run=tmp_path / "run", domain=Chains("line", False))
    jitkit.train(RECIPE, given | {"train.steps": 4}, run=run, domain=Chains("line", False))


@pytest.mark.parametrize(("change", "text"), CHANGES)
def test_a_model_is_not_loaded_with_a_domain_of_other_samples(
    chains: Path, change: Callable[[Chains], None], text: str
) -> None:
    domain = Chains("line", False)
    change(domain)
    with pytest.raises(jitkit.JitkitError, match=f"Chains does not fit the model (?s:.*){text}"):
        jitkit.load(chains, domain=domain)


@pytest.mark.parametrize("change", [other_patch, other_drop])
def test_a_loaded_model_keeps_its_patch_and_drop(
    chains: Path, change: Callable[[Chains], None]
) -> None:
    domain = Chains("line", False)
    change(domain)
    denoiser = jitkit.load(chains, domain=domain)
    assert denoiser.domain is domain and denoiser.layout.patch == (2,)


def test_an_empty_training_split_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    domain = Chains("line", False)
    domain.items = lambda split: range(0)  # type: ignore[method-assign]
    with pytest.raises(jitkit.DataError, match="'digits': the training split has no items"):
        jitkit.train(RECIPE, run=tmp_path / "run", domain=domain)
    assert not (tmp_path / "run").exists()


def test_after_training_without_metrics_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(jitkit.JitkitError, match="has no metrics"):
        jitkit.train(
            RECIPE,
            {"evaluate.after_training": True},
            run=tmp_path / "run",
            domain=Chains("set", False),
        )
    assert not (tmp_path / "run").exists()


def test_a_run_with_a_domain_given_in_python_requires_it_again(tmp_path: Path) -> None:
    run = jitkit.train(RECIPE, run=tmp_path / "run", domain=Chains("set", False))
    with pytest.raises(jitkit.JitkitError, match=r"jitkit\.load\(run, domain=\.\.\.\)"):
        jitkit.load(run).domain  # noqa: B018
    with pytest.raises(jitkit.JitkitError, match="is at step 3, past train.steps=2"):
        jitkit.train(RECIPE, {"train.steps": 2}, run=run, domain=Chains("set", False))


def test_a_corrupt_record_of_the_domain_is_refused(tmp_path: Path) -> None:
    run = jitkit.train(RECIPE | {"domain": "digits"}, {"train.steps": 1}, run=tmp_path / "run")
    path = run / "checkpoints/step-1"
    for key, text in (("facts", "KeyError"), ("name", "no domain 'nomes'; installed")):
        original = (path / "model.json").read_text(encoding="utf-8")
        broken = original.replace(f'"{key}": ' + ("{}" if key == "facts" else '"digits"'), "@")
        assert broken.count("@") == 1
        new = '"fatcs": {}' if key == "facts" else '"name": "nomes"'
        (path / "model.json").write_text(broken.replace("@", new), encoding="utf-8")
        state = (path / "state.json").read_text(encoding="utf-8")
        size = (path / "model.json").stat().st_size
        changed = state.replace(f'"model.json": {len(original)}', f'"model.json": {size}')
        (path / "state.json").write_text(changed, encoding="utf-8")
        with pytest.raises(jitkit.JitkitError, match=text):
            jitkit.load(run).domain  # noqa: B018
        (path / "model.json").write_text(original, encoding="utf-8")
        (path / "state.json").write_text(state, encoding="utf-8")
