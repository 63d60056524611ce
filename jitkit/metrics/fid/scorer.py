"""FID, Inception score, KID, precision and recall of images, computed by torch-fidelity.

    fid               Fréchet inception distance: of Gaussians fitted to the features (Heusel et
                      al. 2017, arXiv:1706.08500); needs only statistics of real images
    inception_score   confidence and diversity of predicted classes (Salimans et al. 2016,
                      arXiv:1606.03498); needs only samples
    kid               kernel inception distance: squared MMD with a cubic kernel over 100 subsets
                      of 1,000, or of all if fewer (Binkowski et al. 2018, arXiv:1801.01401)
    precision         fraction of samples within the real manifold, and
    recall            of real images within the sample manifold: spheres with the distance to the
                      third neighbour as radius (Kynkäänniemi et al. 2019, arXiv:1904.06991)

With another network than Inception they are called frechet_distance, kernel_distance and
classifier_score: values are comparable only for the same network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jitkit.errors import DataError
from jitkit.metrics.fid.extractors import (
    INCEPTION,
    FeatureExtractor,
    cached_inception,
    inception_file,
    open_extractor,
    stack_pixels,
    torch_fidelity_installed,
)
from jitkit.metrics.fid.references import (
    ReferenceStatistics,
    mean_and_covariance,
    reference_from_file,
    reference_from_items,
)
from jitkit.metrics.fid.section import FidSection
from jitkit.metrics.frechet import frechet_from_statistics, symmetric_sqrt
from jitkit.metrics.metric import Best
from jitkit.utils.types import Array

KID_SUBSETS, KID_SUBSETS_QUICK, KID_SUBSET_SIZE = 100, 20, 1_000
NEIGHBOURS = 3
MAX_IN_MEMORY = 10_000  # images; with more, distances are computed in batches

Real = Callable[[str], Sequence[Any]]
"""Opens real images: of ``"train"``, or of the path of a folder."""


def scorer_for(
    section: FidSection, size: int, real: Real, *, by_default: bool
) -> tuple[FeatureScorer | None, list[str]]:
    """The scorer of a section and notes; None if FID is neither requested nor available.

    Args:
        section: key ``domain.fid``.
        size: height and width of the images.
        real: opens real images.
        by_default: compute FID without a request if Inception's weights are found and there is a
            GPU (without one it takes hours).

    Raises:
        DataError: requested weights or references are missing.
        RecipeError: no such network.
    """
    requested = section.requested
    if not requested and not (by_default and torch_fidelity_installed() and _is_fast()):
        return None, [_why_not()] if by_default else []
    if not torch_fidelity_installed():
        raise DataError(
            f"domain.fid.{requested[0]} needs torch-fidelity, which is not installed: "
            "pip install 'jitkit[fid]'"
        )
    _is_file(section.reference)  # check now, since it is read after sampling
    name = section.extractor or INCEPTION
    weights = inception_file(section.inception_weights) if name == INCEPTION else None
    extractor = open_extractor(name, size, weights)
    return FeatureScorer(extractor, section, real), []


def _is_fast() -> bool:
    return torch.cuda.is_available() and cached_inception() is not None


def _why_not() -> str:
    reason = "Inception's weights are missing (domain.fid.inception_weights)"
    if not torch_fidelity_installed():
        reason = "torch-fidelity is not installed (pip install 'jitkit[fid]')"
    elif cached_inception() is not None:
        reason = (
            "without a GPU it takes hours (domain.fid.inception_weights=FILE to compute it anyway)"
        )
    return f"FID was not computed: {reason}; frechet_8x8 measures only layout and colour"


class FeatureScorer:
    """Metrics on features of a network.

    Args:
        extractor: the network.
        section: key ``domain.fid``, for the reference.
        real: opens real images.
    """

    replaces = frozenset({"frechet_8x8"})

    def __init__(self, extractor: FeatureExtractor, section: FidSection, real: Real) -> None:
        self.extractor, self._section, self._real = extractor, section, real
        is_inception = extractor.name == INCEPTION
        self._names = {
            "fid": "fid" if is_inception else "frechet_distance",
            "isc": "inception_score" if is_inception else "classifier_score",
            "kid": "kid" if is_inception else "kernel_distance",
        }

    @property
    def best(self) -> dict[str, Best]:
        """Names of the available scores, and whether low or high is best."""
        best: dict[str, Best] = {self._names["fid"]: "low"}
        if "isc" in self.extractor.columns:
            best[self._names["isc"]] = "high"
        if self._reference.features is not None:
            if "kid" in self.extractor.columns:
                best[self._names["kid"]] = "low"
            if "prc" in self.extractor.columns:
                best |= {"precision": "high", "recall": "high"}
        return best

    def features(self, items: Sequence[Any]) -> Array:
        """Features of images, (items, D)."""
        return self.extractor(stack_pixels(items))

    def prepare(self) -> dict[str, Any]:
        """Read or compute the reference; returns its description for the record."""
        section, reference = self._section, self._reference
        from_train = section.reference is None
        whole = reference.items is None or (from_train and self._max_items == "all")
        description: dict[str, Any] = {
            "extractor": self.extractor.name,
            "from": "train" if from_train else str(section.reference),
            "items": reference.items,
            "features": 0 if reference.features is None else len(reference.features),
            "whole": whole,
        }
        if reference.features is None:
            description["notes"] = [
                f"{section.reference} has only statistics: KID, precision and recall need real "
                "images (arr_0 in the same file)"
            ]
        return description

    def scores(self, features: Array) -> dict[str, float]:
        """All scores, by torch-fidelity."""
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

        both = self._statistics(features)
        stats = [dict(zip(("mu", "sigma"), each, strict=True)) for each in both]
        fid = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
        return {self._names["fid"]: fid} | self._others(features, KID_SUBSETS)

    def resampled(self, features: Array) -> dict[str, float]:
        """All scores, faster: FID by its symmetric form (seconds, not a minute), fewer subsets."""
        (mu, sigma), (real_mu, real_sigma) = self._statistics(features)
        fid = frechet_from_statistics(mu, sigma, real_mu, real_sigma, self._root)
        return {self._names["fid"]: fid} | self._others(features, KID_SUBSETS_QUICK)

    @property
    def _max_items(self) -> int | str:
        """Maximum number of reference images."""
        return "all" if self._section.protocol else self._section.reference_items

    @cached_property
    def _reference(self) -> ReferenceStatistics:
        section = self._section
        if section.reference is not None and _is_file(section.reference):
            return reference_from_file(section.reference.expanduser(), self.extractor)
        items = self._real("train" if section.reference is None else str(section.reference))
        return reference_from_items(items, self.extractor, self._max_items)

    @cached_property
    def _root(self) -> Array:
        return symmetric_sqrt(self._reference.sigma)

    def _statistics(self, features: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Mean and covariance of samples and of real images, in the same dtype."""
        reference = self._reference
        mu, sigma = mean_and_covariance(features[:, self.extractor.columns["fid"]])
        if mu.dtype == reference.mu.dtype:
            return (mu, sigma), (reference.mu, reference.sigma)
        real = (reference.mu.astype(np.float64), reference.sigma.astype(np.float64))
        return (mu.astype(np.float64), sigma), real

    def _others(self, features: Array, kid_subsets: int) -> dict[str, float]:
        """All scores except FID."""
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
        from torch_fidelity.metric_prc import prc_features_to_metric

        scores, names, real = {}, self._names, self._reference.features
        if names["isc"] in self.best:
            logits, splits = self._part("isc", features), min(10, len(features))
            scores[names["isc"]] = isc_features_to_metric(logits, splits)[KEY_METRIC_ISC_MEAN]
        if real is None:
            return scores
        n = min(len(features), len(real))
        if names["kid"] in self.best:
            size = {"kid_subset_size": min(KID_SUBSET_SIZE, n), "kid_subsets": kid_subsets}
            both = self._part("kid", features), self._part("kid", real)
            kid = kid_features_to_metric(*both, **size, verbose=False)
            scores[names["kid"]] = kid[KEY_METRIC_KID_MEAN] if n > 1 else float("nan")
        if "precision" in self.best:
            both = self._part("prc", features), self._part("prc", real)
            options = {
                "prc_neighborhood": NEIGHBOURS,
                "save_cpu_ram": max(map(len, both)) > MAX_IN_MEMORY,
            }
            prc = prc_features_to_metric(*both, **options, verbose=False) if n > NEIGHBOURS else {}
            scores |= {k: prc.get(k, float("nan")) for k in ("precision", "recall")}
        return scores

    def _part(self, metric: str, features: Array) -> torch.Tensor:
        """The features used by a metric."""
        return torch.from_numpy(np.ascontiguousarray(features[:, self.extractor.columns[metric]]))


def _is_file(path: Path | None) -> bool:
    """Whether a reference is a file; False for a folder.

    Raises:
        DataError: the path does not exist.
    """
    if path is None:
        return False
    if not path.expanduser().exists():
        raise DataError(f"domain.fid.reference {path}: no such file or folder")
    return path.expanduser().is_file()
