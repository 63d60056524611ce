"""Simulated EEG with a known distribution, for which the exact scores are known.

    python -m simulated_eeg recordings.npz

A travelling alpha wave plus white noise. Channel c = 0..3 of a subject at time t is

    A cos(2 pi f t + p - c lag) + noise,    noise ~ N(0, (2 microvolts)²),

f ~ N(frequency, (0.25 Hz)²), p uniform, A = 20 microvolts times exp of N(0, 0.2²), independent for
every epoch; frequency and lag are fixed per subject.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jitkit_eeg import HZ, NUM_SAMPLES

FREQUENCY = np.array([8.0, 9.5, 11.0, 12.5])  # Hz, of four subjects
LAG = np.array([0.0, 30.0, 60.0, 90.0])  # degrees from one channel to the next


def simulate(
    per_subject: int = 400, seed: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """EEG (N, 4, 128) float32 in microvolts, and subjects (N,), cycling through 0, 1, 2, 3."""
    rng = np.random.default_rng(seed)
    subject = np.tile(np.arange(len(FREQUENCY)), per_subject)
    frequency = rng.normal(FREQUENCY[subject], 0.25)[:, None, None]
    phase = rng.uniform(0, 2 * np.pi, len(subject))[:, None, None]
    amplitude = 20 * np.exp(rng.normal(0, 0.2, len(subject)))[:, None, None]
    lag = np.radians(LAG[subject])[:, None, None] * np.arange(4)[:, None]
    time = np.arange(NUM_SAMPLES) / HZ
    wave = amplitude * np.cos(2 * np.pi * frequency * time + phase - lag)
    eeg = wave + rng.normal(0, 2, wave.shape)
    return eeg.astype(np.float32), subject


if __name__ == "__main__":
    eeg, subject = simulate()
    np.savez(sys.argv[1], eeg=eeg, subject=subject)
