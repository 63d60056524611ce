"""EEG as a kind of data for jitkit: one second of four channels, and whose brain it is.

`EEG` is the contract; how an epoch is drawn and what the scores measure stands below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jitkit import Axis, Category, DataError, DomainSection, Field, Layout
from jitkit.domain import Metric, Split

HZ, NUM_SAMPLES = 128, 128
CHANNELS = ("Fz", "Cz", "Pz", "Oz")  # from the forehead to the back of the head
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")


@dataclass(frozen=True, eq=False)
class Epoch:
    """One second of EEG.

    Attributes:
        microvolts: (4, 128) float32.
        subject: whose, counted from 0; the number of subjects stands for nobody in particular.
    """

    microvolts: np.ndarray[Any, Any]
    subject: int


class EEGSection(DomainSection):
    """Section ``domain`` of a recipe for EEG."""

    path: Path = Path("recordings.npz")
    """File with ``eeg`` (N, 4, 128) in microvolts and ``subject`` (N,) counted from 0; the last
    tenth is held out."""


class EEG:
    """EEG of several subjects: four channels, 128 Hz, epochs of one second."""

    Section = EEGSection

    def __init__(self, section: EEGSection, metadata: Mapping[str, Any] | None = None) -> None:
        self.path = section.path
        self.found = self.measured() if metadata is None else dict(metadata)
        self.layout = Layout((Axis("time", NUM_SAMPLES, patch=8),), CHANNELS)
        self.conditions = {"subject": Category(self.found["num_subjects"], drop=0.1)}

    def measured(self) -> dict[str, Any]:
        epochs = self.items("train")
        eeg = np.stack([epoch.microvolts for epoch in epochs])  # (N, 4, 128)
        num_subjects = 1 + max(epoch.subject for epoch in epochs)
        mean, std = eeg.mean(axis=(0, 2))[:, None], eeg.std(axis=(0, 2))[:, None]  # (4, 1)
        return {"mean": mean, "std": std, "num_subjects": num_subjects}

    def metadata(self) -> dict[str, Any]:
        return self.found

    def items(self, split: Split) -> Sequence[Epoch]:
        if not self.path.is_file():
            raise DataError(f"{self.path}: no such file; domain.path=FILE points elsewhere")
        with np.load(self.path, allow_pickle=False) as file:
            pairs = zip(file["eeg"].astype(np.float32), file["subject"].tolist(), strict=True)
            epochs = [Epoch(eeg, subject) for eeg, subject in pairs]
        cut = len(epochs) * 9 // 10
        return epochs[:cut] if split == "train" else epochs[cut:]

    def encode(self, item: Epoch, rng: np.random.Generator | None = None) -> Field:
        import torch

        values = (item.microvolts - self.found["mean"]) / self.found["std"]
        return Field(torch.from_numpy(values), cond={"subject": torch.tensor(item.subject)})

    def decode(self, field: Field) -> Epoch:
        microvolts = field.values.cpu().numpy() * self.found["std"] + self.found["mean"]
        return Epoch(microvolts, int(field.cond["subject"]))

    def write(self, items: Iterable[Epoch], path: Path) -> list[Path]:
        path.mkdir(parents=True, exist_ok=True)
        kept, file = list(items), path / "samples.npz"
        eeg, subject = np.stack([item.microvolts for item in kept]), [item.subject for item in kept]
        np.savez(file, eeg=eeg, subject=np.array(subject))  # as the recordings are stored
        return [file]

    def preview(self, items: Sequence[Epoch]) -> Image.Image:
        return drawn(items)

    def scores(self) -> Mapping[str, Metric]:
        return {"frequency_distance_hz": frequency_distance, "lag_error_degrees": lag_error}


def drawn(items: Sequence[Epoch]) -> Image.Image:
    """Each epoch in a box of its own, a trace for each channel, a colour for each subject."""
    columns, width, height = ceil(sqrt(len(items))), 200, 140
    rows = ceil(len(items) / columns)
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(picture)
    for i, item in enumerate(items):
        left, top = i % columns * width, i // columns * height
        pen.rectangle((left, top, left + width, top + height), outline="#dddddd")
        x = left + np.linspace(10, width - 10, NUM_SAMPLES)
        for channel, trace in enumerate(item.microvolts):
            y = top + 25 + 30 * channel - trace.clip(-100, 100) / 2  # 2 microvolts a pixel
            pen.line(list(zip(x, y, strict=True)), fill=COLOURS[item.subject % len(COLOURS)])
    return picture


def frequency_distance(samples: Sequence[Epoch], train: Sequence[Epoch]) -> float:
    """How far apart the peak frequencies of samples and recordings are, Hz, mean over subjects.

    Of each subject, the mean distance of equal quantiles (Wasserstein's): it sees a wrong mean and
    a wrong spread.
    """
    (frequency, _), (real, _) = rhythm(samples), rhythm(train)
    levels = np.linspace(0.05, 0.95, 19)
    apart = [
        np.abs(np.quantile(frequency[own], levels) - np.quantile(real[theirs], levels)).mean()
        for own, theirs in by_subject(samples, train)
    ]
    return float(np.mean(apart))


def lag_error(samples: Sequence[Epoch], train: Sequence[Epoch]) -> float:
    """How far the mean lag from a channel to the next is off, degrees, mean over subjects."""
    (_, turn), (_, real) = rhythm(samples), rhythm(train)
    off = [
        abs(np.angle(turn[own].mean() / real[theirs].mean(), deg=True))
        for own, theirs in by_subject(samples, train)
    ]
    return float(np.mean(off))


def rhythm(items: Sequence[Epoch]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where the power of all channels is greatest, Hz, and the turn there from one to the next.

    Both (N,); a turn is a complex number of length 1, exp(-i lag).
    """
    eeg = np.stack([item.microvolts for item in items]) * np.hanning(NUM_SAMPLES)
    waves = np.fft.rfft(eeg, 16 * HZ)  # padded with zeros: (N, 4, 1 + 8 * HZ) in steps of 1/16 Hz
    peak = (np.abs(waves) ** 2).sum(axis=1).argmax(axis=1)
    at_peak = np.take_along_axis(waves, peak[:, None, None], axis=2)[..., 0]  # (N, 4)
    turn = (at_peak[:, 1:] * at_peak[:, :-1].conj()).sum(axis=1)
    return peak / 16, turn / np.abs(turn)


def by_subject(
    samples: Sequence[Epoch], train: Sequence[Epoch]
) -> Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Which samples and which recordings are of the same subject, for every subject of both."""
    own, theirs = (np.array([item.subject for item in items]) for items in (samples, train))
    return [(own == s, theirs == s) for s in np.intersect1d(own, theirs)]
