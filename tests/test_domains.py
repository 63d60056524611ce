"""Every adapter of ours passes jitkit.testing, and jitkit.testing detects faulty adapters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from climate import sea
from ours import own_adapters
from weatherstores import weatherbench2

from jitkit import testing
from jitkit.domain import Domain
from jitkit.domains.digits import Digits, DigitsSection
from jitkit.domains.images.files import ImageItem
from jitkit.errors import BadItem, RecipeError
from jitkit.fields import Category, Condition, Field, Grid, Layout, PerToken, Scalars
from jitkit.registry import domain_class, installed

DIGITS = DigitsSection(name="digits")


def digits(folder: Path) -> dict[str, Any]:
    return {}


def images(folder: Path) -> dict[str, Any]:
    """Keys for a folder of images with classes, one of them unreadable."""
    domain = Digits(DIGITS)
    for item in domain.items("train")[:60]:
        path = folder / "train" / str(item.label) / f"{item.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        domain.preview([item]).resize((40, 30)).save(path)
    (folder / "train" / "0" / "0000.png").write_bytes(b"torn")
    return {"path": folder, "size": 16, "holdout": 0.2}


def molecules(folder: Path) -> dict[str, Any]:
    """Keys for 500 real molecules with all conditions."""
    names = ["HOMO_LUMO_gap_au", "Polarizability_bohr3"]
    path = str(Path(__file__).parent / "data" / "qm9.csv")
    return {"path": path, "properties": names, "composition": True}


def proteins(folder: Path) -> dict[str, Any]:
    """Keys for chains of real structures with missing atoms and all conditions."""
    path = str(Path(__file__).parent / "data" / "proteins")
    conditions = {"sequence": True, "secondary_structure": True}
    return {"path": path, "max_length": 150, "held_out": 0.3} | conditions


def weather(folder: Path) -> dict[str, Any]:
    """Keys for a forecast on a store in the format of WeatherBench 2."""
    variables = {"2m_temperature": None, "geopotential": [500, 850]}
    return {"path": str(weatherbench2(folder, 60)), "variables": variables, "task": "forecast"}


TOLERANCE = {
    "molecules": 1e-6,  # the mean of positions is removed again
    "proteins": 1e-6,  # as with molecules
    "weather": 1e-4,  # rounding of a state in physical units, relative to its small change
}
DATA = {
    "arrays": sea,
    "digits": digits,
    "images": images,
    "molecules": molecules,
    "proteins": proteins,
    "weather": weather,
}  # name -> keys of the section, given a folder for data


@pytest.mark.parametrize("name", own_adapters())
def test_every_adapter_of_ours_passes_all_checks(name: str, tmp_path: Path) -> None:
    cls = domain_class(name)
    if cls.in_memory:
        pytest.skip("its data are given in Python: tests/test_from_arrays.py")
    section = cls.Section.model_validate({"name": name} | DATA[name](tmp_path))
    for split in ("train", "val"):
        tolerance = TOLERANCE.get(name, 0)
        testing.check_domain(cls(section), section, split=split, tolerance=tolerance)


def test_an_adapter_of_a_third_party_is_installed_and_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "xray-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: xray\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[jitkit.domains]\nxray = xray:XRay\n")
    before = own_adapters()
    assert set(before) == {"arrays", "digits", "images"} | set(before)
    monkeypatch.syspath_prepend(tmp_path)
    assert "xray" in installed() and own_adapters() == before


@pytest.mark.parametrize("name", own_adapters())
def test_loading_an_adapter_does_not_load_torch(name: str) -> None:
    code = (
        "import sys; from jitkit.registry import domain_class\n"
        f"domain_class({name!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class Kelvin(Digits):
    """Forgets to scale."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        field = super().encode(item, rng)
        return replace(field, values=field.values + 273)

    def decode(self, field: Field) -> ImageItem:
        return super().decode(replace(field, values=field.values - 273))


class Blurred(Digits):
    """Loses information in each round trip."""

    def decode(self, field: Field) -> ImageItem:
        return super().decode(replace(field, values=field.values * 0.9))


class Patchy(Digits):
    """Has missing cells that its layout does not declare, and fills them."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        field = super().encode(item, rng)
        mask = torch.ones(8, 8, dtype=torch.bool)
        mask[0, 0] = False
        return replace(field, mask=mask)


class Holed(Digits):
    """Marks missing cells as observed."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        field = super().encode(item, rng)
        field.values[0, 3, 3] = float("nan")
        return field

    def decode(self, field: Field) -> ImageItem:
        return super().decode(replace(field, values=field.values.nan_to_num()))


class Flat(Digits):
    """Shape differs from its layout."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        field = super().encode(item, rng)
        return replace(field, values=field.values.reshape(1, 64))

    def decode(self, field: Field) -> ImageItem:
        return super().decode(replace(field, values=field.values.reshape(1, 8, 8)))


class Eleventh(Digits):
    """Counts its classes from 1."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        return replace(super().encode(item, rng), cond={"label": (item.label or 0) + 10})


class Unset(Digits):
    """Declares a condition and does not set it."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        return replace(super().encode(item, rng), cond={})


class Shuffled(Digits):
    """Random order at each call."""

    def items(self, split: Any) -> Sequence[ImageItem]:
        items = super().items(split)
        return [items[i] for i in np.random.default_rng().permutation(len(items))]


class Noisy(Digits):
    """Draws from the global generator."""

    def encode(self, item: ImageItem, rng: Any = None) -> Field:
        field = super().encode(item, rng)
        return replace(field, values=field.values + torch.rand(()) / 1000)


class Unportable(Digits):
    """Cannot be pickled."""

    def __getstate__(self) -> Any:
        raise TypeError("cannot pickle an open file")


class Forgetful(Digits):
    """Reads its classes from the data and does not store them in its metadata."""

    @classmethod
    def from_metadata(cls, section: Any, metadata: Mapping[str, Any]) -> Self:
        domain = super().from_metadata(section, metadata)
        domain.conditions = {}
        return domain


class Tupled(Digits):
    """Metadata that JSON changes."""

    def metadata(self) -> dict[str, Any]:
        return {"range": (0, 255)}


class Mute(Digits):
    """Returns files that it has not written."""

    def write(self, items: Iterable[ImageItem], path: Path) -> list[Path]:
        return [path / "0.png"]


class Blind(Digits):
    """Draws nothing."""

    def preview(self, items: Sequence[ImageItem]) -> Any:
        return None


class BlindMute(Blind, Mute):
    """Neither writes nor draws."""


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        (Kelvin, "values: the mean square of values is .*; encode to about 1"),
        (Blurred, "round trip: item 0: after decode and encode, values differ by 0.1"),
        (Patchy, "missing cells: item 0 has 1 missing cells, but layout.missing is False"),
        (Holed, "values: item 0: values are not finite where the mask is True"),
        (Flat, r"layout: item 0: values are \(1, 64\), the layout is \(1, 8, 8\)"),
        (Eleventh, "conditions: item 0: cond 'label' ranges from 10 to 10, not within 0 to 9"),
        (Unset, r"conditions: item 0: cond has \[\], conditions declare \['label'\]"),
        (Shuffled, r"order: item \d read again: .* differ"),
        (Noisy, "randomness: item 0: encoded twice without rng, values differ"),
        (Unportable, "pickling: TypeError: cannot pickle an open file"),
        (Forgetful, r"metadata: conditions from metadata are \{\}"),
        (Tupled, "metadata: metadata change when stored as JSON"),
        (Mute, "write: write returns 0.png, which does not exist"),
        (Blind, "preview: preview returns a NoneType"),
    ],
)
def test_a_faulty_adapter_is_detected(broken: type[Digits], text: str) -> None:
    domain: Domain = broken(DIGITS)
    with pytest.raises(AssertionError, match=text):
        testing.check_domain(domain, DIGITS)


class Sectionless(Digits):
    """Created without a section."""

    def __init__(self, section: Any = None) -> None:
        assert section is None
        super().__init__(DIGITS)
        del self.section


def test_a_domain_without_a_section_passes_the_checks_that_need_no_second_instance() -> None:
    testing.check_domain(Sectionless())


def test_the_section_of_a_domain_is_used_by_default() -> None:
    with pytest.raises(AssertionError, match=r"metadata: conditions from metadata are \{\}"):
        testing.check_domain(Forgetful(DIGITS))


def test_metadata_and_order_are_checked_without_a_section() -> None:
    class Wrong(Sectionless, Tupled, Shuffled):
        pass

    with pytest.raises(
        AssertionError, match="order: item . read again.*\n(?s:.*)metadata: metadata ch"
    ):
        testing.check_domain(Wrong())


def test_the_class_of_a_domain_is_refused_in_place_of_an_instance() -> None:
    with pytest.raises(RecipeError, match="domain=Digits is a class; .* domain=Digits"):
        testing.check_domain(Digits)  # type: ignore[arg-type]


def test_all_failed_checks_are_reported_together() -> None:
    with pytest.raises(
        AssertionError, match=r"Mute: 2 of \d+ checks failed\n  write.*\n  preview.*"
    ):
        testing.check_domain(BlindMute(DIGITS), DIGITS)


def test_unreadable_items_are_skipped_unless_all_are() -> None:
    class Torn(Digits):
        def items(self, split: Any) -> Any:
            return Broken()

    class Broken(Sequence[ImageItem]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: Any) -> Any:
            raise BadItem(f"{index}.png", "torn")

    with pytest.raises(AssertionError, match="none of 8 items of 'train' can be read"):
        testing.check_domain(Torn(DIGITS), DIGITS)


@pytest.mark.parametrize(
    ("condition", "value", "error"),
    [
        (Category(3), 2, ""),
        (Category(3), torch.tensor(3), "ranges from 3 to 3, not within 0 to 2"),
        (Category(3), torch.tensor([1]), r"has shape \(1,\), not \(\)"),
        (Category(3), 1.0, "is torch.float32, not an integer type"),
        (Scalars(("a", "b")), torch.tensor([0.5, float("nan")]), ""),
        (Scalars(("a", "b")), torch.tensor([0.5, float("inf")]), "is infinite"),
        (Scalars(("a", "b")), torch.tensor([1, 2]), "is torch.int64, not a float type"),
        (Grid(("u",)), torch.zeros(1, 8, 8), ""),
        (Grid(("u",)), torch.zeros(8, 8), r"has shape \(8, 8\), not \(1, 8, 8\)"),
        (PerToken(2), torch.ones(8, 8, dtype=torch.int64), ""),
        (PerToken(2), torch.ones(8, dtype=torch.int64), r"has shape \(8,\), not \(8, 8\)"),
    ],
)
def test_each_kind_of_condition_has_its_shape_and_range(
    condition: Condition, value: Any, error: str
) -> None:
    class Conditioned(Digits):
        def __init__(self, section: Any) -> None:
            super().__init__(section)
            self.conditions = {"some": condition}

        def encode(self, item: ImageItem, rng: Any = None) -> Field:
            return replace(super().encode(item, rng), cond={"some": value})

    domain = Conditioned(DIGITS)
    items = testing.spread_items(domain, "train", 1)
    if not error:
        testing.conditions_are_as_declared(domain, items)
        return
    with pytest.raises(AssertionError, match=f"cond 'some' {error}"):
        testing.conditions_are_as_declared(domain, items)


def test_a_line_may_be_shorter_than_the_layout_and_a_circle_may_not() -> None:
    class Short(Digits):
        def encode(self, item: ImageItem, rng: Any = None) -> Field:
            field = super().encode(item, rng)
            return replace(field, values=field.values[:, :, :5])

    domain = Short(DIGITS)
    items = testing.spread_items(domain, "train", 1)
    testing.encoded_fields_fit_the_layout(domain, items)
    row, column = domain.layout.axes
    domain.layout = Layout((row, replace(column, kind="circle")), ("grey",))
    with pytest.raises(AssertionError, match=r"values are \(1, 8, 5\), the layout is \(1, 8, 8\)"):
        testing.encoded_fields_fit_the_layout(domain, items)
