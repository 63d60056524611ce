"""Recipes: values, extends, environment, overrides, all errors together, round trip."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import model_validator

from jitkit.errors import RecipeError, listed
from jitkit.recipe.load import Recipe, bundled, differences, dump_recipe, load_recipe
from jitkit.registry import domain_class
from jitkit.sections import SIZES, Count, DomainSection, Finite

ROOT = Path(__file__).parents[1]


class WindsSection(DomainSection):
    """A section with keys of all types that adapters use."""

    path: Path | None = None
    channels: list[str] = []
    since: date | None = None
    hours: Count | Literal["all"] = "all"
    scale: dict[str, Finite] = {}
    window: tuple[int, int] = (0, 6)
    label_drop: float = 0.1

    @model_validator(mode="after")
    def _forward(self) -> WindsSection:
        if self.window[0] >= self.window[1]:
            raise RecipeError(f"window {list(self.window)} runs backwards")
        return self


class GridsSection(DomainSection):
    """A section with a required key."""

    path: Path


class Winds:
    Section = WindsSection


class Grids:
    Section = GridsSection


@pytest.fixture(autouse=True, scope="module")
def _domains() -> Any:
    """Two domains, winds and grids, besides the installed ones."""
    fake: dict[str, Any] = {"winds": Winds, "grids": Grids}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "jitkit.recipe.load.domain_class", lambda name: fake.get(name) or domain_class(name)
        )
        yield


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


MINIMAL = "domain: winds\nmodel: {size: B}\n"


def write(text: str, name: str = "foo.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def refusal(source: Any, overrides: Any = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    return str(caught.value)


# Values


def test_a_short_recipe_has_every_default() -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.name == "foo"
    assert recipe.domain == WindsSection(name="winds")
    assert recipe.sample.guidance_interval == (0.1, 1.0)


def test_numbers_may_be_written_in_scientific_notation_and_with_underscores() -> None:
    recipe = load_recipe(write(MINIMAL + "train: {lr: 1e-4, steps: 1e5, batch_size: 1_000}"))
    assert (recipe.train.lr, recipe.train.steps, recipe.train.batch_size) == (1e-4, 100_000, 1000)


def test_words_that_yaml_1_1_would_convert_are_text() -> None:
    words = ["no", "on", "1:30", "007", "0o7", "0x1F", "2020-01-01"]
    text = f"model: {{size: B}}\ndomain: {{name: winds, channels: [{', '.join(words)}]}}"
    assert load_recipe(write(text)).domain.channels == words  # type: ignore[attr-defined]


@pytest.mark.parametrize("word", ["1__0", "1_", "1_.5", "-", "1e", "1" * 1001])
def test_what_is_almost_a_number_is_text(word: str) -> None:
    assert "is not a whole number" in refusal(write(MINIMAL), [f"train.steps={word}"])


def test_a_section_may_be_empty() -> None:
    assert load_recipe(write(MINIMAL + "train:\nsample: {}\n")) == load_recipe(write(MINIMAL))


def test_sections_may_be_given_in_python() -> None:
    sections = {
        "domain": {"name": "winds", "path": Path("/data"), "window": (1, 2)},
        "model": {"width": np.int64(64), "depth": 2},
        "train": {"steps": 1e3, "ema": np.array([0.5, 0.75])},
    }
    recipe = load_recipe(sections)
    assert recipe.name == "winds"
    assert recipe.domain.path == Path("/data")  # type: ignore[attr-defined]
    assert recipe.model.width == 64
    assert (recipe.train.steps, recipe.train.ema) == (1000, [0.5, 0.75])


def test_a_damaged_record_of_a_run_is_reported() -> None:
    path = write(MINIMAL + "sample: [times]\n")
    with pytest.raises(RecipeError, match="sample: "):
        load_recipe(path, recorded=True)

    path = write("domain: 3\nmodel: {size: B}\nevaluate: {protocol: adm}\n")
    with pytest.raises(RecipeError, match="domain.name: 3 is not a name"):
        load_recipe(path, recorded=True)


def test_opening_a_recipe_runs_no_code() -> None:
    path = write(MINIMAL + 'train:\n  steps: !!python/object/apply:os.system ["touch ran"]\n')
    assert refusal(path) == (
        "foo.yaml:4: train.steps: YAML tags are not allowed: !!python/object/apply:os.system"
    )
    assert not Path("ran").exists()


# Lookup


def test_a_bundled_recipe_is_found_by_its_name() -> None:
    assert load_recipe("digits") == load_recipe(ROOT / "recipes/digits.yaml")


def test_a_file_takes_precedence_over_a_bundled_recipe_of_the_same_name() -> None:
    write(MINIMAL, "digits")
    assert load_recipe("digits").domain.name == "winds"


def test_an_unknown_recipe_is_refused_with_the_most_similar_name() -> None:
    assert refusal("digist") == (
        f"no recipe 'digist': there is no such file; bundled: {listed(bundled())}"
        "; did you mean 'digits'?"
    )


def test_a_folder_is_not_a_recipe(folder: Path) -> None:
    assert f"no recipe '{folder}': it is a folder; bundled: digits" in refusal(folder)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_bundled_recipe_loads_and_begins_with_its_command(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert dump_recipe(recipe) == dump_recipe(load_recipe(path.stem))
    comment = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert comment and f"train recipes/{path.name}" in comment[0]


def test_the_reference_recipe_has_the_settings_of_the_paper() -> None:
    recipe = load_recipe("imagenet256")
    train, sample, diffusion = recipe.train, recipe.sample, recipe.diffusion
    assert recipe.model.resolved() == SIZES["B"] | {
        "in_context_tokens": 32,
        "mlp_hidden": 2048,
        "dropout": 0.0,
    }
    assert train.blr * train.batch_size / 256 == 2e-4
    assert (train.steps, train.warmup_steps) == (600 * 1251, 5 * 1251)
    assert (train.betas, train.weight_decay, train.ema) == ((0.9, 0.95), 0, [0.9999, 0.9996])
    assert (diffusion.P_mean, diffusion.P_std, diffusion.t_eps) == (-0.8, 0.8, 0.05)
    assert (sample.method, sample.steps, sample.guidance) == ("heun", 50, 3.0)


def test_larger_images_have_the_same_number_of_tokens() -> None:
    def tokens(name: str) -> float:
        recipe = load_recipe(name)
        return recipe.domain.size / recipe.model.patch  # type: ignore[attr-defined]

    assert tokens("imagenet512") == tokens("imagenet256") == tokens("imagenet64-1gpu") == 16


# Extends


def test_a_recipe_is_merged_into_the_one_it_extends() -> None:
    write("name: base\n" + MINIMAL + "train: {ema: [0.5, 0.75], lr: 1e-3}\n", "base.yaml")
    recipe = load_recipe(write("extends: base.yaml\ntrain: {ema: [0.9], steps: 7}\n"))
    assert recipe.name == "foo"
    assert (recipe.train.ema, recipe.train.lr, recipe.train.steps) == ([0.9], 1e-3, 7)


def test_extended_files_are_relative_to_the_file_and_may_extend_others() -> None:
    Path("deep").mkdir()
    write(MINIMAL, "deep/a.yaml")
    write("extends: a.yaml\nmodel: {patch: 4}", "deep/b.yaml")
    recipe = load_recipe(write("extends: deep/b.yaml\nmodel: {size: L}"))
    assert (recipe.model.size, recipe.model.patch) == ("L", 4)


@pytest.mark.parametrize("base", ["digits", "digits.yaml"])
def test_a_bundled_recipe_can_be_extended_from_anywhere(base: str) -> None:
    assert load_recipe(write(f"extends: {base}\ntrain: {{steps: 3}}")).train.steps == 3


def test_a_recipe_in_python_can_extend_one() -> None:
    assert load_recipe({"extends": "digits", "train": {"steps": 3}}).train.steps == 3


def test_recipes_that_extend_each_other_are_refused() -> None:
    write("extends: foo.yaml", "bar.yaml")
    text = refusal(write("model:\n  size: B\nextends: bar.yaml"))
    assert text == (
        "bar.yaml:1: extends: recipes extend each other in a cycle: "
        "foo.yaml -> bar.yaml -> foo.yaml"
    )


def test_a_missing_base_is_the_only_error_reported() -> None:
    text = refusal(write("extends: digitz\nsample: {step: 3}"))
    assert text.startswith("foo.yaml:1: extends: no recipe 'digitz': there is no such file")
    assert text.endswith("did you mean 'digits'?")


def test_errors_in_an_extended_file_name_that_file() -> None:
    write(MINIMAL + "train:\n  step: 5\n", "base.yaml")
    text = refusal(write("extends: base.yaml\nsample:\n  step: 5\n"))
    assert text == (
        "foo.yaml: 2 errors\n"
        "  line 3: sample.step: unknown; did you mean sample.steps?\n"
        "  base.yaml:4: train.step: unknown; did you mean train.steps?"
    )


# The environment


def test_the_environment_is_read_inside_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "/data")
    monkeypatch.setenv("STEPS", "70")
    monkeypatch.setenv("LOW", "0.25")
    monkeypatch.delenv("NOPE", raising=False)
    text = (
        "model: {size: B}\ndomain:\n  name: winds\n  path: ${env:HERE}/u-${env:NOPE:-none}.zarr\n"
    )
    text += "train:\n  steps: ${env:STEPS}\n  lr: ${env:NOPE:-1e-3}\n"
    recipe = load_recipe(write(text + "sample: {guidance_interval: ['${env:LOW}', 1]}"))
    assert recipe.domain.path == Path("/data/u-none.zarr")  # type: ignore[attr-defined]
    assert (recipe.train.steps, recipe.train.lr) == (70, 1e-3)
    assert recipe.sample.guidance_interval == (0.25, 1)


def test_an_unset_variable_is_an_error_unless_its_key_is_overridden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    path = write(MINIMAL + "train:\n  lr: ${env:NOPE}\n")
    assert refusal(path) == (
        "foo.yaml:4: train.lr: the environment variable NOPE is not set; "
        "set it, or write a default as ${env:NOPE:-default}"
    )
    assert load_recipe(path, ["train.lr=1"]).train.lr == 1


def test_a_doubled_dollar_is_not_a_reference() -> None:
    recipe = load_recipe(write("model: {size: B}\ndomain:\n  name: winds\n  path: a$${env:HOME}\n"))
    assert recipe.domain.path == Path("a${env:HOME}")  # type: ignore[attr-defined]


# Overrides


def test_overrides_are_yaml_and_the_last_one_wins() -> None:
    overrides = [
        "sample.guidance_interval=[0.2,0.9]",
        "train.lr=1e-4",
        "train.lr=",
        "domain.path=/x=y",
    ]
    recipe = load_recipe(write(MINIMAL + "train: {lr: 3}"), overrides)
    assert recipe.sample.guidance_interval == (0.2, 0.9)
    assert recipe.train.lr is None
    assert recipe.domain.path == Path("/x=y")  # type: ignore[attr-defined]


def test_overrides_in_python_keep_their_types() -> None:
    overrides = {"train.ema": (0.5,), "domain.path": Path("1"), "sample": {"steps": 3}}
    recipe = load_recipe(write(MINIMAL), overrides)
    assert (recipe.train.ema, recipe.sample.steps) == ([0.5], 3)
    assert recipe.domain.path == Path("1")  # type: ignore[attr-defined]


def test_an_override_can_change_the_domain() -> None:
    recipe = load_recipe(write(MINIMAL), ["domain=grids", "domain.path=here"])
    assert recipe.domain == GridsSection(name="grids", path=Path("here"))


def test_keys_unknown_to_the_new_domain_are_errors() -> None:
    path = write("domain:\n  name: winds\n  path: x\n  hours: 6\nmodel: {size: B}")
    assert refusal(path, ["domain.name=grids"]) == "foo.yaml:4: domain.hours: unknown"


def test_a_missing_key_of_the_new_domain_is_an_error_of_the_override() -> None:
    assert refusal(write(MINIMAL), ["domain=grids"]) == "override domain.path: missing"


def test_errors_in_overrides_are_labelled_as_such_in_the_order_given() -> None:
    overrides = ["sample.stepp=5", "train.lr", "train.ema=[0.9", "steps=3", "train.ema.0=1"]
    assert refusal(write(MINIMAL), overrides) == (
        "foo.yaml: 4 errors\n"
        "  override sample.stepp: unknown; did you mean sample.steps?\n"
        "  override train.lr: no value; write section.key=value\n"
        "  override train.ema: not YAML: expected ',' or ']', but got '<stream end>'\n"
        "  override steps: unknown; did you mean train.steps or sample.steps?"
    )


def test_an_override_without_a_value_hides_no_other_error() -> None:
    path = write(MINIMAL + "train:\n  lr: 1\n  lr: 2\n")
    assert refusal(path, ["train.lr"]).splitlines()[1:] == [
        "  line 5: train.lr: given twice, first on line 4",
        "  override train.lr: no value; write section.key=value",
    ]


def test_the_last_override_that_is_wrong_is_the_one_reported() -> None:
    overrides = ["train.lr=0", "sample.steps=0", "train.lr=-1"]
    assert refusal(write(MINIMAL), overrides).splitlines()[1:] == [
        "  override sample.steps: 0 is less than 1",
        "  override train.lr: -1 is not above 0",
    ]


def test_a_key_given_twice_in_an_override_is_refused() -> None:
    text = refusal(write(MINIMAL), ["train={lr: 1, lr: 2}"])
    assert text == "override train.lr: given twice"


# Errors


def test_all_errors_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    text = """\
domain:
  name: winds
  hours: some
  scale: {u: fast}
  chanels: [u]
model:
  size: b
  patch: [2, x]
  depth: 0
diffusion:
  noise_scale: atuo
  prediction: y
train:
  steps: many
  batch_size: 0
  betas: [0.9]
  ema: []
  workers: true
  compile: yes
  lr: '1'
  lr: 2
  P_mean: ${env:NOPE}
sample:
  step: 5
  guidance_interval: [0.1, 2, 3]
  guidance: .inf
sampel: 3
evaluate: soon
"""
    assert refusal(write(text), ["train.blr=0"]).splitlines() == [
        "foo.yaml: 22 errors",
        "  line 3: domain.hours: 'some' is not a whole number or all",
        "  line 4: domain.scale.u: 'fast' is not a number",
        "  line 5: domain.chanels: unknown; did you mean domain.channels?",
        "  line 7: model.size: 'b' is not one of B, L, H, G",
        "  line 8: model.patch[1]: 'x' is not a whole number",
        "  line 9: model.depth: 0 is less than 1",
        "  line 11: diffusion.noise_scale: 'atuo' is not auto or a number; did you mean 'auto'?",
        "  line 12: diffusion.prediction: 'y' is not one of x, eps, v",
        "  line 14: train.steps: 'many' is not a whole number",
        "  line 15: train.batch_size: 0 is less than 1",
        "  line 16: train.betas: [0.9] is too short",
        "  line 17: train.ema: [] has 0 values, not at least 1",
        "  line 18: train.workers: true is not a whole number",
        "  line 19: train.compile: 'yes' is not auto or true or false",
        "  line 21: train.lr: given twice, first on line 20",
        "  line 22: train.P_mean: the environment variable NOPE is not set; "
        "set it, or write a default as ${env:NOPE:-default}",
        "  line 24: sample.step: unknown; did you mean sample.steps?",
        "  line 25: sample.guidance_interval: [0.1, 2, 3] has 3 values, not at most 2",
        "  line 26: sample.guidance: inf is not a finite number",
        "  line 27: sampel: unknown; did you mean sample?",
        "  line 28: evaluate: 'soon' is not a mapping of keys",
        "  override train.blr: 0 is not above 0",
    ]


SINGLE = {
    MINIMAL + "sample:\n  step: 5": "4: sample.step: unknown; did you mean sample.steps?",
    MINIMAL + "sample: {P_mean: 5}": "3: sample.P_mean: unknown; did you mean diffusion.P_mean?",
    MINIMAL + "sample: {guidance_interval: [0.9, 0.2]}": (
        "3: sample: guidance_interval [0.9, 0.2] ends before it starts"
    ),
    MINIMAL + "diffusion: {noise_scale: 0}": "3: diffusion.noise_scale: 0 is not above 0",
    MINIMAL + "train: {ema: [0.5,\n 1.5]}": "4: train.ema[1]: 1.5 is not below 1",
    MINIMAL + "train: {[1]: 2}": "3: train: a key must be a word, not a list or a mapping",
    MINIMAL + "name: a/b": "3: name: 'a/b' cannot be the name of a folder",
    "domain: winds": " model: give model.size (B, L, H or G), or model.width and model.depth",
    "model: {size: B}\ndomain: {name: winds, window: [3, 2]}": (
        "2: domain: window [3, 2] runs backwards"
    ),
    "model: {size: B}\ndomain: {name: winds, since: soon}": (
        "2: domain.since: 'soon' is not a date such as 2020-12-31"
    ),
    "model: {size: B}\ndomain: {name: winds, path: 7}": "2: domain.path: 7 is not text",
    "extends: [a]": "1: extends: ['a'] is not the name of a recipe",
    "[1, 2]": " [1, 2] is not a mapping of sections",
    "a: *b": (
        "1:4: not YAML: aliases (*name) are not allowed; use `extends` to reuse a whole recipe"
    ),
    "a:\n\tb: 5": "2:1: not YAML: found character '\\t' that cannot start any token",
    "a: 1\n---\nb: 2": "2:1: not YAML: but found another document",
    "a: \x07": " not YAML: unacceptable character #x0007: special characters are not allowed",
}


@pytest.mark.parametrize(("text", "error"), SINGLE.items())
def test_a_single_error_is_one_line(text: str, error: str) -> None:
    assert refusal(write(text)) == f"foo.yaml:{error}"


def test_a_missing_domain_is_refused() -> None:
    text = refusal(write("model: {size: B}"))
    assert text.startswith("foo.yaml: domain.name: missing; installed: ")


def test_a_domain_that_is_not_installed_is_refused_with_its_line() -> None:
    text = refusal(write("model: {size: B}\ndomain:\n  name: digitz\n  other: 3\n"))
    assert re.fullmatch(
        r"foo\.yaml:3: domain\.name: no domain 'digitz'; installed: .*; did you mean 'digits'\?",
        text,
    )


def test_an_error_of_a_whole_section_names_the_override_that_caused_it() -> None:
    text = refusal(write(MINIMAL + "sample: {steps: 3}"), ["sample.guidance_interval=[0.9, 0.2]"])
    assert text == "override sample: guidance_interval [0.9, 0.2] ends before it starts"


def test_deeply_nested_lists_are_refused() -> None:
    text = refusal(write(MINIMAL + "train: {ema: " + "[" * 9999 + "}"))
    assert text.startswith("foo.yaml: not YAML: maximum recursion depth exceeded")


def test_a_file_that_is_not_text_is_refused() -> None:
    Path("foo.yaml").write_bytes(b"domain: \xff")
    assert refusal("foo.yaml").startswith("foo.yaml: cannot be read: 'utf-8' codec can't decode")


def test_errors_of_a_recipe_in_python_have_no_line_numbers() -> None:
    text = refusal({"domain": "winds", "model": {"size": "B", "depht": 3}, "train": {"steps": 1.5}})
    assert text == (
        "recipe: 2 errors\n"
        "  model.depht: unknown; did you mean model.depth?\n"
        "  train.steps: 1.5 is not a whole number"
    )


# Round trip

WORDS = st.one_of(
    st.text(),
    st.sampled_from(
        ["null", "~", "", "yes", "1e-4", "0x1", "1_0", "2020-01-01", ".inf", "- a", "a: b"]
    ),
    st.sampled_from(
        ["${env:HOME}", "$${env:HOME}", "a${env:X:-1}b", "$$${env:X", "'", '"', "#", "%"]
    ),
)
POSITIVE = st.floats(1e-300, 1e300)
RECIPES = st.fixed_dictionaries(
    {
        "domain": st.fixed_dictionaries(
            {"name": st.just("winds")},
            optional={
                "path": WORDS,
                "channels": st.lists(WORDS),
                "since": st.dates().map(str),
                "hours": st.one_of(st.integers(1), st.just("all")),
                "scale": st.dictionaries(WORDS, st.floats(allow_nan=False, allow_infinity=False)),
                "label_drop": st.floats(allow_nan=False),
            },
        ),
        "model": st.fixed_dictionaries(
            {"size": st.sampled_from([*SIZES])},
            optional={"patch": st.one_of(st.integers(1), st.lists(st.integers(1)))},
        ),
    },
    optional={
        "name": st.from_regex(r"[^/\\.][^/\\]*", fullmatch=True),
        "diffusion": st.fixed_dictionaries(
            {}, optional={"noise_scale": st.one_of(st.just("auto"), POSITIVE)}
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "steps": st.integers(0),
                "lr": st.one_of(st.none(), POSITIVE),
                "ema": st.lists(st.floats(0.1, 0.9), min_size=1),
                "compile": st.booleans(),
            },
        ),
        "sample": st.fixed_dictionaries(
            {}, optional={"guidance_interval": st.tuples(st.floats(0, 0.5), st.floats(0.6, 1))}
        ),
    },
)


@settings(deadline=None)
@given(RECIPES)
def test_reading_a_written_recipe_gives_an_equal_one(sections: dict[str, Any]) -> None:
    recipe = load_recipe(sections)
    text = dump_recipe(recipe)
    path = Path(write(text, "written.yaml"))
    assert load_recipe(path) == recipe
    assert differences(recipe, load_recipe(path)) == []


def test_a_written_recipe_has_every_key_in_order() -> None:
    recipe = load_recipe(write(MINIMAL))
    written = yaml.safe_load(dump_recipe(recipe))
    assert list(written) == [*Recipe.model_fields]
    for name in written.keys() - {"name"}:
        assert list(written[name]) == [*type(getattr(recipe, name)).model_fields]


def test_paths_are_written_as_text() -> None:
    assert "\n  path: /data/winds\n" in dump_recipe(
        load_recipe(write(MINIMAL), ["domain.path=/data/winds"])
    )


def test_differences_list_changed_keys() -> None:
    old = load_recipe(write(MINIMAL))
    new = load_recipe(
        "foo.yaml", ["train.lr=1e-3", "sample.guidance_interval=[0.2,1]", "train.schedule=cosine"]
    )
    assert differences(old, new) == [
        "train.lr: null -> 0.001",
        "train.schedule: constant -> cosine",
        "sample.guidance_interval: [0.1, 1.0] -> [0.2, 1.0]",
    ]
    other = load_recipe("foo.yaml", ["domain=grids", "domain.path=x"])
    assert differences(old, other)[:3] == [
        "domain.name: winds -> grids",
        "domain.path: null -> x",
        "domain.channels: [] -> absent",
    ]


def test_bundled_recipes_are_files() -> None:
    assert all(path.is_file() for path in bundled().values())
    assert os.path.samefile(bundled()["digits"], ROOT / "recipes/digits.yaml")
