"""Ensemble metrics: RMSF, pair distances, and TM-score and lDDT of the nearest frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jitkit.domain import Best, Metric
from jitkit.domains.proteins.backbone import Backbone
from jitkit.utils.rotations import superpose
from jitkit.utils.types import Array

FrameSequence = Sequence[Backbone]

MAX_PAIRS = 2_000  # pairs of residues whose distances are compared, evenly spread
LEVELS = (np.arange(50) + 0.5) / 50  # quantile levels


def ensemble_metrics(reference: Array) -> dict[str, Metric]:
    """Ensemble metrics by name; ``reference`` is the mean conformation, (L, 4, 3)."""
    comparison = EnsembleComparison(reference[:, 1])
    return {
        "fluctuation_correlation": _best(comparison.fluctuation_correlation, "high"),
        "fluctuation_error": _best(comparison.fluctuation_error, "low"),
        "pair_distance_error": _best(comparison.pair_distance_error, "low"),
        "nearest_tm_score": comparison.nearest_tm_score,
        "nearest_lddt": comparison.nearest_lddt,
    }


def _best(metric: Metric, best: Best) -> Metric:
    """A metric with attribute ``best``, which a bound method cannot have."""

    def wrapper(samples: FrameSequence, train: FrameSequence) -> float:
        return metric(samples, train)

    wrapper.best = best  # type: ignore[attr-defined]
    return wrapper


def fluctuations(alphas: Array) -> Array:
    """Root mean square fluctuation (RMSF) of each residue, (frames, L, 3) to (L,)."""
    displacement = alphas - alphas.mean(axis=0)
    return np.sqrt((displacement**2).sum(axis=2).mean(axis=0))


class EnsembleComparison:
    """Compares frames with those of a trajectory after superposition of CA on one reference.

    Statistics of the trajectory are cached, because bootstrap intervals evaluate metrics again.
    """

    def __init__(self, reference: Array) -> None:
        self._reference = reference
        count = len(reference)
        i, j = np.triu_indices(count, 2)
        subset = np.linspace(0, len(i) - 1, min(MAX_PAIRS, len(i))).round().astype(int)
        self._pairs = i[subset], j[subset]
        self._last: tuple[FrameSequence, Array, Array, Array] | None = None

    def _superposed(self, frames: FrameSequence) -> Array:
        """CA of frames, superposed, (frames, L, 3)."""
        for frame in frames:
            if "superposed" not in frame.cache:
                frame.cache["superposed"] = superpose(frame.alphas, self._reference)
        return np.stack([frame.cache["superposed"] for frame in frames])

    def _train(self, train: FrameSequence) -> tuple[Array, Array, Array]:
        """CA of the trajectory, their RMSF, and quantiles of pair distances."""
        if self._last is None or self._last[0] is not train:
            frames = self._superposed(train[:])
            self._last = (train, frames, fluctuations(frames), self._quantiles(frames))
        return self._last[1:]

    def _quantiles(self, alphas: Array) -> Array:
        i, j = self._pairs
        distances = np.sqrt(((alphas[:, i] - alphas[:, j]) ** 2).sum(axis=2))
        return np.quantile(distances, LEVELS, axis=0)

    def fluctuation_correlation(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Pearson correlation over residues between RMSF of samples and of the trajectory."""
        rmsf, target = fluctuations(self._superposed(samples)), self._train(train)[1]
        return float(np.corrcoef(rmsf, target)[0, 1]) if rmsf.std() and target.std() else np.nan

    def fluctuation_error(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Root mean square difference of RMSF over residues, angstrom."""
        rmsf, target = fluctuations(self._superposed(samples)), self._train(train)[1]
        return float(np.sqrt(((rmsf - target) ** 2).mean()))

    def pair_distance_error(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Wasserstein distance between distributions of CA-CA distances, angstrom, mean over
        pairs."""
        difference = self._quantiles(self._superposed(samples)) - self._train(train)[2]
        return float(np.abs(difference).mean())

    def nearest_tm_score(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Mean TM-score to the nearest frame of the trajectory (Zhang & Skolnick 2004)."""
        return self._mean_over_nearest("tm", samples, train, _tm_score)

    def nearest_lddt(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Mean CA lDDT to the nearest frame of the trajectory (Mariani et al. 2013)."""
        return self._mean_over_nearest("lddt", samples, train, _lddt)

    def _mean_over_nearest(
        self, name: str, samples: FrameSequence, train: FrameSequence, score: Any
    ) -> float:
        frames = self._train(train)[0]
        for frame, alphas in zip(samples, self._superposed(samples), strict=True):
            if "nearest" not in frame.cache:  # and the sample superposed on it
                nearest = frames[((frames - alphas) ** 2).sum(axis=(1, 2)).argmin()]
                frame.cache["nearest"] = nearest, superpose(alphas, nearest)
            if name not in frame.cache:
                frame.cache[name] = score(*map(_ca_atoms, frame.cache["nearest"]))
        return float(np.mean([frame.cache[name] for frame in samples]))


def _tm_score(fixed: Any, moving: Any) -> float:
    from biotite.structure import tm_score

    residues = np.arange(len(fixed))
    return float(tm_score(fixed, moving, residues, residues))


def _lddt(fixed: Any, moving: Any) -> float:
    from biotite.structure import lddt

    return float(lddt(fixed, moving))


def _ca_atoms(positions: Array) -> Any:
    """CA atoms as biotite's ``AtomArray``; positions must be finite for correct scores."""
    from biotite.structure import AtomArray

    assert np.isfinite(positions).all()
    atoms = AtomArray(len(positions))
    atoms.coord = positions.astype(np.float32)
    atoms.res_id = np.arange(len(positions)) + 1
    atoms.atom_name[:], atoms.res_name[:], atoms.element[:] = "CA", "ALA", "C"
    return atoms
