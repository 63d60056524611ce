"""A small feature extractor for tests of FID without Inception's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase


class Small(FeatureExtractorBase):  # type: ignore[misc]
    """Fixed random convolutions: twelve features and logits of five classes."""

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(0)
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.head = nn.Linear(12, 5)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype is torch.uint8 and images.shape[1] == 3
        x = self.conv1(images.float() / 64 - 2).relu()
        features = self.conv2(x).relu().mean(dim=(2, 3))
        outputs = {"features": features, "logits": 3 * self.head(features)}
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        layers = dict.fromkeys(("fid", "kid", "prc"), "features") | {"isc": "logits"}
        return layers[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class Narrow(Small):
    """The same network without logits."""

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": "features", "kid": "features", "prc": "features"}[metric]
