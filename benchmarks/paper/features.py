"""Features of a random convolutional network, and the Fréchet distance on them.

An untrained network also distinguishes distributions of images, whatever they show (Naeem et al.
2020, arXiv:2002.09797), and needs no downloaded weights. The values are not the FID and can only be
compared with one another.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jitkit.metrics.frechet import frechet_distance as distance_of_features
from jitkit.utils.seeding import mix
from jitkit.utils.types import Array

SIDE = 64  # pixels that every picture is scaled to, as the FID scales to 299
WIDTHS = (3, 32, 48, 64)
FEATURES = 2 * sum(WIDTHS[1:])
RESAMPLES = 20


def frechet_distance(a: Array, b: Array) -> float:
    """Fréchet distance of two sets of images on random features, (N, H, W, 3) uint8 each."""
    return distance_of_features(features(a), features(b))


def frechet_with_deviation(samples: Array, real: Array) -> tuple[float, float]:
    """Fréchet distance of two sets of features, and its standard deviation over resamples.

    The mean over resamples is not used as the value: repeated samples always increase the distance.
    """
    rng, n = np.random.default_rng(0), len(samples)
    again = [distance_of_features(samples[rng.integers(n, size=n)], real) for _ in range(RESAMPLES)]
    return distance_of_features(samples, real), float(np.std(again, ddof=1))


def features(pictures: Array) -> Array:
    """Spatial mean and standard deviation of each channel of three layers, (N, 288) float64."""
    parts = [_of(pictures[i : i + 256]) for i in range(0, len(pictures), 256)]
    return np.concatenate(parts)


@torch.no_grad()
def _of(pictures: Array) -> Array:
    scaled = np.stack([_scaled(picture) for picture in pictures])
    x = torch.from_numpy(scaled).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = []
    for kernel in _kernels():
        x = F.relu(F.conv2d(x, kernel, stride=2, padding=1))
        found += [x.mean(dim=(2, 3)), x.std(dim=(2, 3))]
    return torch.cat(found, dim=1).double().numpy()


@cache
def _kernels() -> tuple[Tensor, ...]:
    """3 x 3 kernels of the layers, normal with the scale-preserving deviation (He 2015)."""
    generator = torch.Generator().manual_seed(mix(0, "random features"))
    return tuple(
        torch.randn(outputs, inputs, 3, 3, generator=generator) * (2 / (9 * inputs)) ** 0.5
        for inputs, outputs in zip(WIDTHS, WIDTHS[1:], strict=False)
    )


def _scaled(picture: Array) -> Array:
    if picture.shape[0] == SIDE:
        return picture
    image = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)
