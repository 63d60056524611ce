"""Key ``fid`` of a domain of images: the network, the reference and the protocol of FID."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jitkit.sections import Count, Section


class FidSection(Section):
    """Key ``domain.fid``: how FID and its like are computed."""

    protocol: Literal["jit"] | None = None
    """Score as the paper does (Li & He 2025): 50,000 samples, all classes equally often, 50 steps
    of Heun, the first EMA, Inception's features, the whole training set."""
    extractor: str | None = None
    """Network whose features are compared: one of torch-fidelity's (`vgg16`, `clip-vit-b-32`,
    `dinov2-vit-s-14`, ...), or `package.module:Class` of your own. Inception where not given, if
    its weights are at hand."""
    inception_weights: str | None = None
    """File with Inception's weights (.pth or .safetensors), or `download`; a copy in torch's cache
    is found without."""
    reference: Path | None = None
    """Real images that samples are compared with: a folder, or an .npz with `mu` and `sigma`,
    images `arr_0` (N, H, W, C), or both; the training split where not given."""
    reference_items: Count | Literal["all"] = 50_000
    """Images of the training split or the folder in the reference, evenly spread; all of them under
    `protocol: jit`."""

    @property
    def requested(self) -> list[str]:
        """The keys that ask for FID."""
        names = ("extractor", "inception_weights", "reference", "protocol")
        return [name for name in names if getattr(self, name) is not None]
