"""How an ensemble compares with the trajectory: fluctuations, distances, nearest frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jitkit.domain import Best, Metric
from jitkit.domains.proteins.backbone import Backbone
from jitkit.utils.rotations import superposed
from jitkit.utils.types import Array

FrameSequence = Sequence[Backbone]

PAIRS = 2_000  # pairs of residues whose distances are compared, spread over all
LEVELS = (np.arange(50) + 0.5) / 50  # of quantiles


def ensemble_measures(reference: Array) -> dict[str, Metric]:
    """The measures of ensembles, by name; ``reference`` is the mean conformation, (L, 4, 3)."""
    compared = Compared(reference[:, 1])
    return {
        "fluctuation_correlation": _best(compared.fluctuation_correlation, "high"),
        "fluctuation_error": _best(compared.fluctuation_error, "low"),
        "pair_distance_error": _best(compared.pair_distance_error, "low"),
        "nearest_tm_score": compared.nearest_tm_score,
        "nearest_lddt": compared.nearest_lddt,
    }


def _best(measure: Metric, best: Best) -> Metric:
    """A measure that says which of its values is the best; a method has no place to say it."""

    def made(samples: FrameSequence, train: FrameSequence) -> float:
        return measure(samples, train)

    made.best = best  # type: ignore[attr-defined]
    return made


def fluctuations(alphas: Array) -> Array:
    """Root mean square distance of each residue from its mean place, (frames, L, 3) to (L,)."""
    away = alphas - alphas.mean(axis=0)
    return np.sqrt((away**2).sum(axis=2).mean(axis=0))


class Compared:
    """Scores of frames against those of a trajectory, superposed on one reference by their CA.

    What is known of the trajectory is kept, since scores are asked for again for intervals.
    """

    def __init__(self, reference: Array) -> None:
        self._reference = reference
        count = len(reference)
        i, j = np.triu_indices(count, 2)
        some = np.linspace(0, len(i) - 1, min(PAIRS, len(i))).round().astype(int)
        self._pairs = i[some], j[some]
        self._last: tuple[FrameSequence, Array, Array, Array] | None = None

    def _placed(self, frames: FrameSequence) -> Array:
        """CA of frames, superposed, (frames, L, 3)."""
        for frame in frames:
            if "placed" not in frame.kept:
                frame.kept["placed"] = superposed(frame.alphas, self._reference)
        return np.stack([frame.kept["placed"] for frame in frames])

    def _train(self, train: FrameSequence) -> tuple[Array, Array, Array]:
        """CA of the trajectory, its fluctuations, and the quantiles of its distances."""
        if self._last is None or self._last[0] is not train:
            placed = self._placed(train[:])
            self._last = (train, placed, fluctuations(placed), self._quantiles(placed))
        return self._last[1:]

    def _quantiles(self, alphas: Array) -> Array:
        i, j = self._pairs
        apart = np.sqrt(((alphas[:, i] - alphas[:, j]) ** 2).sum(axis=2))
        return np.quantile(apart, LEVELS, axis=0)

    def fluctuation_correlation(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Pearson correlation over residues of fluctuations with those of the trajectory."""
        own, other = fluctuations(self._placed(samples)), self._train(train)[1]
        return float(np.corrcoef(own, other)[0, 1]) if own.std() and other.std() else np.nan

    def fluctuation_error(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Root mean square difference of fluctuations over residues, angstrom."""
        own, other = fluctuations(self._placed(samples)), self._train(train)[1]
        return float(np.sqrt(((own - other) ** 2).mean()))

    def pair_distance_error(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Wasserstein distance of the distributions of the distance of two CA, angstrom, the mean
        over pairs."""
        off = self._quantiles(self._placed(samples)) - self._train(train)[2]
        return float(np.abs(off).mean())

    def nearest_tm_score(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Mean TM-score with the nearest frame of the trajectory (Zhang & Skolnick 2004)."""
        return self._mean_over_nearest("tm", samples, train, _tm_score)

    def nearest_lddt(self, samples: FrameSequence, train: FrameSequence) -> float:
        """Mean lDDT of CA with the nearest frame of the trajectory (Mariani et al. 2013)."""
        return self._mean_over_nearest("lddt", samples, train, _lddt)

    def _mean_over_nearest(
        self, name: str, samples: FrameSequence, train: FrameSequence, score: Any
    ) -> float:
        frames = self._train(train)[0]
        for frame, own in zip(samples, self._placed(samples), strict=True):
            if "nearest" not in frame.kept:  # and itself laid upon it
                nearest = frames[((frames - own) ** 2).sum(axis=(1, 2)).argmin()]
                frame.kept["nearest"] = nearest, superposed(own, nearest)
            if name not in frame.kept:
                frame.kept[name] = score(*map(_alphas_of, frame.kept["nearest"]))
        return float(np.mean([frame.kept[name] for frame in samples]))


def _tm_score(fixed: Any, moving: Any) -> float:
    from biotite.structure import tm_score

    own = np.arange(len(fixed))
    return float(tm_score(fixed, moving, own, own))


def _lddt(fixed: Any, moving: Any) -> float:
    from biotite.structure import lddt

    return float(lddt(fixed, moving))


def _alphas_of(places: Array) -> Any:
    """CA alone as biotite's ``AtomArray``; a position that is no number would be scored falsely."""
    from biotite.structure import AtomArray

    assert np.isfinite(places).all()
    atoms = AtomArray(len(places))
    atoms.coord = places.astype(np.float32)
    atoms.res_id = np.arange(len(places)) + 1
    atoms.atom_name[:], atoms.res_name[:], atoms.element[:] = "CA", "ALA", "C"
    return atoms
