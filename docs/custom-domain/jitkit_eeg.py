"""EEG domain for jitkit: one-second, four-channel epochs labelled by subject.

Class `EEG` implements the domain; below it are drawing and metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from jitkit import Axis, Category, Domain, DomainSection, Field, Layout
from jitkit.domain import Metric, Split


class Epoch(NamedTuple):
    eeg: np.ndarray[Any, Any]  # microvolts, (4, 128)
    subject: int


class EEGSection(DomainSection):
    path: Path = Path("recordings.npz")
    """File with ``eeg`` (N, 4, 128) in microvolts and ``subject`` (N,), 0 to 3."""


class EEG(Domain):
    """EEG of four subjects: four channels, 128 Hz, epochs of one second."""

    Section = EEGSection
    layout = Layout((Axis("time", 128, patch=8),), ("Fz", "Cz", "Pz", "Oz"))
    conditions = {"subject": Category(4)}

    def items(self, split: Split) -> list[Epoch]:
        with np.load(self.section.path) as file:
            pairs = zip(file["eeg"], file["subject"].tolist(), strict=True)
            epochs = [Epoch(*pair) for pair in pairs]
        cut = len(epochs) * 9 // 10
        return epochs[:cut] if split == "train" else epochs[cut:]

    def measure(self) -> dict[str, Any]:
        eeg = np.stack([epoch.eeg for epoch in self.items("train")])  # (N, 4, 128)
        return {"mean": eeg.mean((0, 2))[:, None], "std": eeg.std((0, 2))[:, None]}  # (4, 1)

    def encode(self, item: Epoch, rng: np.random.Generator | None = None) -> Field:
        import torch

        values = (item.eeg - self.metadata()["mean"]) / self.metadata()["std"]
        return Field(torch.from_numpy(values), cond={"subject": torch.tensor(item.subject)})

    def decode(self, field: Field) -> Epoch:
        eeg = field.values.cpu().numpy() * self.metadata()["std"] + self.metadata()["mean"]
        return Epoch(eeg, int(field.cond["subject"]))

    def preview(self, items: Sequence[Epoch]) -> Image.Image:
        return draw_traces(items)

    def scores(self) -> Mapping[str, Metric]:
        return {"frequency_distance_hz": frequency_distance, "lag_error_degrees": lag_error}


HZ, NUM_SAMPLES = 128, 128
COLOURS = ("#1f77b4", "#d95f02", "#1b9e77", "#7570b3")


def draw_traces(items: Sequence[Epoch]) -> Image.Image:
    """Grid of epochs, with one trace per channel and one colour per subject."""
    columns, width, height = ceil(sqrt(len(items))), 200, 140
    rows = ceil(len(items) / columns)
    image = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(image)
    for i, item in enumerate(items):
        left, top = i % columns * width, i // columns * height
        pen.rectangle((left, top, left + width, top + height), outline="#dddddd")
        x = left + np.linspace(10, width - 10, NUM_SAMPLES)
        for channel, trace in enumerate(item.eeg):
            y = top + 25 + 30 * channel - trace.clip(-100, 100) / 2  # 2 microvolts per pixel
            pen.line(list(zip(x, y, strict=True)), fill=COLOURS[item.subject % len(COLOURS)])
    return image


def frequency_distance(samples: Sequence[Epoch], train: Sequence[Epoch]) -> float:
    """Wasserstein distance between peak frequencies of samples and recordings, Hz, mean over
    subjects.

    It is the mean distance of equal quantiles, sensitive to errors of both mean and spread.
    """
    (frequency, _), (real, _) = rhythm(samples), rhythm(train)
    levels = np.linspace(0.05, 0.95, 19)
    distances = [
        np.abs(np.quantile(frequency[i], levels) - np.quantile(real[j], levels)).mean()
        for i, j in by_subject(samples, train)
    ]
    return float(np.mean(distances))


def lag_error(samples: Sequence[Epoch], train: Sequence[Epoch]) -> float:
    """Error of the mean phase lag from one channel to the next, degrees, mean over subjects."""
    (_, phase), (_, real) = rhythm(samples), rhythm(train)
    errors = [
        abs(np.angle(phase[i].mean() / real[j].mean(), deg=True))
        for i, j in by_subject(samples, train)
    ]
    return float(np.mean(errors))


def rhythm(items: Sequence[Epoch]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Peak frequency of the power summed over channels, Hz, and the phase factor at it between
    neighbouring channels.

    Both (N,); the phase factor is exp(-i lag), complex.
    """
    eeg = np.stack([item.eeg for item in items]) * np.hanning(NUM_SAMPLES)
    spectrum = np.fft.rfft(eeg, 16 * HZ)  # zero-padded: (N, 4, 1 + 8 * HZ), steps of 1/16 Hz
    peak = (np.abs(spectrum) ** 2).sum(axis=1).argmax(axis=1)
    at_peak = np.take_along_axis(spectrum, peak[:, None, None], axis=2)[..., 0]  # (N, 4)
    phase = (at_peak[:, 1:] * at_peak[:, :-1].conj()).sum(axis=1)
    return peak / 16, phase / np.abs(phase)


def by_subject(
    samples: Sequence[Epoch], train: Sequence[Epoch]
) -> Iterable[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Masks of the samples and recordings of each subject that is in both."""
    a, b = (np.array([item.subject for item in items]) for items in (samples, train))
    return [(a == s, b == s) for s in np.intersect1d(a, b)]
