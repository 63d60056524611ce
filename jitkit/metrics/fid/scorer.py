"""Scores of pictures in the features of a network, by torch-fidelity's formulas.

    fid               Fréchet distance of Gaussians fitted to the features (Heusel et al. 2017,
                      arXiv:1706.08500); needs statistics of real pictures alone
    inception_score   how sure, and of how many classes, the network is (Salimans et al. 2016,
                      arXiv:1606.03498); looks at samples alone
    kid               squared maximum mean discrepancy under a cubic kernel, over 100 subsets of
                      1,000, or of all where there are fewer (Binkowski et al. 2018,
                      arXiv:1801.01401)
    precision         share of samples that lie among real pictures, and
    recall            of real pictures that lie among samples: within the distance to the third
                      neighbour (Kynkäänniemi et al. 2019, arXiv:1904.06991)

By another network than Inception they are called frechet_distance, kernel_distance and
classifier_score: their values compare with those of that network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jitkit.domain import Best
from jitkit.errors import DataError
from jitkit.metrics.fid.extractors import (
    INCEPTION,
    Extractor,
    cached_inception,
    inception_file,
    is_installed,
    open_extractor,
    stacked,
)
from jitkit.metrics.fid.references import Reference, of_file, of_items, statistics
from jitkit.metrics.fid.section import FidSection
from jitkit.metrics.frechet import frechet_of, square_root
from jitkit.utils.types import Array

KID_SUBSETS, KID_SUBSETS_QUICK, KID_SUBSET_SIZE = 100, 20, 1_000
NEIGHBOURS = 3
IN_PARTS = 10_000  # pictures above which distances are not all held at once

Real = Callable[[str], Sequence[Any]]
"""Where real pictures come from: ``"train"``, or the path of a folder."""


def scorer_for(
    section: FidSection, size: int, real: Real, *, unasked: bool
) -> tuple[FeatureScorer | None, list[str]]:
    """The scores of pictures that a section asks for.

    Args:
        section: key ``domain.fid``.
        size: height and width of the pictures.
        real: opens real pictures.
        unasked: take FID where it is not asked for, if Inception's weights are at hand and there is
            a GPU (without one it takes hours).

    Raises:
        DataError: what is asked for is not there.
        RecipeError: there is no such network.
    """
    asked = section.requested
    if not asked and not (unasked and is_installed() and _can_be_quick()):
        return None, [_why_not()] if unasked else []
    if not is_installed():
        raise DataError(
            f"domain.fid.{asked[0]} needs torch-fidelity, which is not installed: "
            "pip install 'jitkit[fid]'"
        )
    _is_file(section.reference)  # or hours may pass before it is found missing
    name = section.extractor or INCEPTION
    weights = inception_file(section.inception_weights) if name == INCEPTION else None
    extractor = open_extractor(name, size, weights)
    return FeatureScorer(extractor, section, real), []


def _can_be_quick() -> bool:
    return torch.cuda.is_available() and cached_inception() is not None


def _why_not() -> str:
    lacking = "Inception's weights are not at hand (domain.fid.inception_weights)"
    if not is_installed():
        lacking = "torch-fidelity is not installed (pip install 'jitkit[fid]')"
    elif cached_inception() is not None:
        lacking = (
            "without a GPU it takes hours (domain.fid.inception_weights=FILE to take it anyway)"
        )
    return f"no FID was taken: {lacking}; frechet_8x8 sees layout and colour alone"


class FeatureScorer:
    """Scores on rows of features.

    Args:
        extractor: the network.
        section: key ``domain.fid``: where the reference comes from.
        real: opens real pictures.
    """

    replaces = frozenset({"frechet_8x8"})

    def __init__(self, extractor: Extractor, section: FidSection, real: Real) -> None:
        self.extractor, self._section, self._real = extractor, section, real
        is_inception = extractor.name == INCEPTION
        self._names = {
            "fid": "fid" if is_inception else "frechet_distance",
            "isc": "inception_score" if is_inception else "classifier_score",
            "kid": "kid" if is_inception else "kernel_distance",
        }

    @property
    def best(self) -> dict[str, Best]:
        """Names of the scores that can be taken, and which value of each is the best."""
        found: dict[str, Best] = {self._names["fid"]: "low"}
        if "isc" in self.extractor.columns:
            found[self._names["isc"]] = "high"
        if self._reference.rows is not None:
            if "kid" in self.extractor.columns:
                found[self._names["kid"]] = "low"
            if "prc" in self.extractor.columns:
                found |= {"precision": "high", "recall": "high"}
        return found

    def features(self, items: Sequence[Any]) -> Array:
        """Features of pictures, (items, D)."""
        return self.extractor(stacked(items))

    def prepare(self) -> dict[str, Any]:
        """Read the reference, or compute it; what it is."""
        section, reference = self._section, self._reference
        from_train = section.reference is None
        whole = reference.items is None or (from_train and self._how_many == "all")
        found: dict[str, Any] = {
            "extractor": self.extractor.name,
            "from": "train" if from_train else str(section.reference),
            "items": reference.items,
            "features": 0 if reference.rows is None else len(reference.rows),
            "whole": whole,
        }
        if reference.rows is None:
            found["notes"] = [
                f"{section.reference} holds statistics alone: KID, precision and recall need real "
                "pictures (arr_0 in the same file)"
            ]
        return found

    def scores(self, rows: Array) -> dict[str, float]:
        """All scores, by torch-fidelity."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        stats = [dict(zip(("mu", "sigma"), each, strict=True)) for each in self._statistics(rows)]
        fid = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
        return {self._names["fid"]: fid} | self._others(rows, KID_SUBSETS)

    def resampled(self, rows: Array) -> dict[str, float]:
        """The same by the symmetric form of FID, a second and not a minute, and fewer subsets."""
        (mu, sigma), (real_mu, real_sigma) = self._statistics(rows)
        fid = frechet_of(mu, sigma, real_mu, real_sigma, self._root)
        return {self._names["fid"]: fid} | self._others(rows, KID_SUBSETS_QUICK)

    @property
    def _how_many(self) -> int | str:
        """Images of the reference, at most."""
        return "all" if self._section.protocol else self._section.reference_items

    @cached_property
    def _reference(self) -> Reference:
        section = self._section
        if section.reference is not None and _is_file(section.reference):
            return of_file(section.reference.expanduser(), self.extractor)
        items = self._real("train" if section.reference is None else str(section.reference))
        return of_items(items, self.extractor, self._how_many)

    @cached_property
    def _root(self) -> Array:
        return square_root(self._reference.sigma)

    def _statistics(self, rows: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Mean and covariance of samples and of real pictures, in one type of numbers."""
        reference = self._reference
        mu, sigma = statistics(rows[:, self.extractor.columns["fid"]])
        if mu.dtype == reference.mu.dtype:
            return (mu, sigma), (reference.mu, reference.sigma)
        real = (reference.mu.astype(np.float64), reference.sigma.astype(np.float64))
        return (mu.astype(np.float64), sigma), real

    def _others(self, rows: Array, kid_subsets: int) -> dict[str, float]:
        """All scores but FID."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric

        found, names, real = {}, self._names, self._reference.rows
        if names["isc"] in self.best:
            logits, splits = self._part("isc", rows), min(10, len(rows))
            found[names["isc"]] = isc_features_to_metric(logits, splits)[KEY_METRIC_ISC_MEAN]
        if real is None:
            return found
        n = min(len(rows), len(real))
        if names["kid"] in self.best:
            size = {"kid_subset_size": min(KID_SUBSET_SIZE, n), "kid_subsets": kid_subsets}
            both = self._part("kid", rows), self._part("kid", real)
            kid = kid_features_to_metric(*both, **size, verbose=False)
            found[names["kid"]] = kid[KEY_METRIC_KID_MEAN] if n > 1 else float("nan")
        if "precision" in self.best:
            both = self._part("prc", rows), self._part("prc", real)
            how = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": max(map(len, both)) > IN_PARTS}
            near = prc_features_to_metric(*both, **how, verbose=False) if n > NEIGHBOURS else {}
            found |= {k: near.get(k, float("nan")) for k in ("precision", "recall")}
        return found

    def _part(self, metric: str, rows: Array) -> torch.Tensor:
        """The features that a metric looks at."""
        return torch.from_numpy(np.ascontiguousarray(rows[:, self.extractor.columns[metric]]))


def _is_file(path: Path | None) -> bool:
    """Whether a reference is an archive, and not a folder.

    Raises:
        DataError: there is nothing at the path.
    """
    if path is None:
        return False
    if not path.expanduser().exists():
        raise DataError(f"domain.fid.reference {path}: no such file or folder")
    return path.expanduser().is_file()
