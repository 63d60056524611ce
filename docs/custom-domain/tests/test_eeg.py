"""The EEG domain passes the domain checks, and its metrics have known values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from jitkit_eeg import EEG, EEGSection, Epoch, frequency_distance, lag_error, rhythm
from simulated_eeg import FREQUENCY, LAG, simulate

from jitkit import DataError
from jitkit.domain import Split
from jitkit.registry import check_has_items
from jitkit.testing import check_domain


@pytest.fixture
def section(tmp_path: Path) -> EEGSection:
    eeg, subject = simulate(per_subject=50)
    np.savez(tmp_path / "recordings.npz", eeg=eeg, subject=subject)
    return EEGSection(name="eeg", path=tmp_path / "recordings.npz")


def simulated(**options: int) -> list[Epoch]:
    return [Epoch(*pair) for pair in zip(*simulate(**options), strict=True)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_domain_passes_all_checks(section: EEGSection, split: Split) -> None:
    check_domain(EEG(section), section, split=split)


def test_missing_recordings_are_reported_with_the_key_of_the_path(tmp_path: Path) -> None:
    domain = EEG(EEGSection(name="eeg", path=tmp_path / "no.npz"))
    with pytest.raises(DataError, match=r"no.npz: no such file; it is set by domain.path"):
        check_has_items(domain, "eeg")


def test_written_samples_can_be_read_as_recordings(section: EEGSection, tmp_path: Path) -> None:
    domain = EEG(section)
    files = domain.write(domain.items("train"), tmp_path / "samples")
    again = EEG(EEGSection(name="eeg", path=files[0]))
    assert len(again.items("train")) == len(domain.items("train")) * 9 // 10


def test_the_rhythm_of_every_subject_is_measured_correctly() -> None:
    epochs = simulated()
    frequency, phase = rhythm(epochs)
    for subject, (hz, lag) in enumerate(zip(FREQUENCY, LAG, strict=True)):
        mask = np.array([epoch.subject == subject for epoch in epochs])
        assert frequency[mask].mean() == pytest.approx(hz, abs=0.05)
        assert frequency[mask].std() == pytest.approx(0.25, abs=0.03)
        assert -np.angle(phase[mask].mean(), deg=True) == pytest.approx(lag, abs=0.5)


def test_scores_of_more_recordings_are_near_zero() -> None:
    real, more = simulated(), simulated(seed=1)
    assert frequency_distance(more, real) < 0.05
    assert lag_error(more, real) < 0.2


def test_reversing_the_channels_gives_an_error_of_twice_the_lag() -> None:
    real = simulated()
    mirrored = [Epoch(epoch.eeg[::-1], epoch.subject) for epoch in real]
    assert frequency_distance(mirrored, real) == 0
    assert lag_error(mirrored, real) == pytest.approx(2 * LAG.mean(), abs=0.5)


def test_relabelled_subjects_give_an_error_of_the_difference_between_subjects() -> None:
    real = [epoch for epoch in simulated() if epoch.subject < 3]
    others = [epoch for epoch in simulated(seed=1) if epoch.subject > 0]
    wrong = [Epoch(epoch.eeg, epoch.subject - 1) for epoch in others]
    assert frequency_distance(wrong, real) == pytest.approx(1.5, abs=0.05)
    assert lag_error(wrong, real) == pytest.approx(30, abs=0.5)
