"""The domain answers what every domain is asked, and its scores have known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jitkit_eeg import EEG, EEGSection, Epoch, frequency_distance, lag_error, rhythm
from simulated_eeg import FREQUENCY, LAG, simulate

from jitkit import DataError
from jitkit.domain import Split
from jitkit.testing import check_domain


@pytest.fixture
def section(tmp_path: Path) -> EEGSection:
    eeg, subject = simulate(per_subject=50)
    np.savez(tmp_path / "recordings.npz", eeg=eeg, subject=subject)
    return EEGSection(name="eeg", path=tmp_path / "recordings.npz")


def simulated(**how: int) -> list[Epoch]:
    return [Epoch(*pair) for pair in zip(*simulate(**how), strict=True)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_question_of_jitkit_is_answered(section: EEGSection, split: Split) -> None:
    check_domain(EEG(section), section, split=split)


def test_missing_recordings_are_named_with_the_key_that_points_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no.npz: no such file; domain.path=FILE"):
        EEG(EEGSection(name="eeg", path=tmp_path / "no.npz"))


def test_samples_can_be_opened_as_recordings(section: EEGSection, tmp_path: Path) -> None:
    domain = EEG(section)
    files = domain.write(domain.items("train"), tmp_path / "samples")
    again = EEG(EEGSection(name="eeg", path=files[0]))
    assert len(again.items("train")) == len(domain.items("train")) * 9 // 10


def test_the_rhythm_of_every_subject_is_found() -> None:
    epochs = simulated()
    frequency, turn = rhythm(epochs)
    for subject, (hz, lag) in enumerate(zip(FREQUENCY, LAG, strict=True)):
        own = np.array([epoch.subject == subject for epoch in epochs])
        assert frequency[own].mean() == pytest.approx(hz, abs=0.05)
        assert frequency[own].std() == pytest.approx(0.25, abs=0.03)
        assert -np.angle(turn[own].mean(), deg=True) == pytest.approx(lag, abs=0.5)


def test_the_scores_of_more_recordings_are_near_zero() -> None:
    real, more = simulated(), simulated(seed=1)
    assert frequency_distance(more, real) < 0.05
    assert lag_error(more, real) < 0.2


def test_a_rhythm_played_backwards_in_space_is_as_far_off_as_twice_its_lag() -> None:
    real = simulated()
    turned = [replace(epoch, microvolts=epoch.microvolts[::-1]) for epoch in real]
    assert frequency_distance(turned, real) == 0
    assert lag_error(turned, real) == pytest.approx(2 * LAG.mean(), abs=0.5)


def test_the_rhythm_of_the_next_subject_is_off_by_the_step_between_them() -> None:
    real = [epoch for epoch in simulated() if epoch.subject < 3]
    others = [epoch for epoch in simulated(seed=1) if epoch.subject > 0]
    wrong = [replace(epoch, subject=epoch.subject - 1) for epoch in others]
    assert frequency_distance(wrong, real) == pytest.approx(1.5, abs=0.05)
    assert lag_error(wrong, real) == pytest.approx(30, abs=0.5)
