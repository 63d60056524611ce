"""Recipe key ``domain.fid``: network, reference statistics and protocol of FID."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jitkit.sections import Count, Section


class FidSection(Section):
    """Key ``domain.fid``: settings of FID and related metrics."""

    protocol: Literal["jit"] | None = None
    """Evaluate as in the paper (Li & He 2025): 50,000 samples, balanced classes, 50 steps of Heun,
    the first EMA, Inception features, the whole training set."""
    extractor: str | None = None
    """Feature extractor: one of torch-fidelity's (`vgg16`, `clip-vit-b-32`, `dinov2-vit-s-14`,
    ...), or `package.module:Class` of your own. Default: Inception, if its weights are found."""
    inception_weights: str | None = None
    """File with Inception's weights (.pth or .safetensors), or `download`; a copy in torch's cache
    is found automatically."""
    reference: Path | None = None
    """Real images to compare with: a folder, or an .npz with `mu` and `sigma`, images `arr_0`
    (N, H, W, C), or both. Default: the training split."""
    reference_items: Count | Literal["all"] = 50_000
    """Number of evenly spaced images of the training split or folder in the reference; all of them
    with `protocol: jit`."""

    @property
    def requested(self) -> list[str]:
        """The keys that request FID."""
        names = ("extractor", "inception_weights", "reference", "protocol")
        return [name for name in names if getattr(self, name) is not None]
