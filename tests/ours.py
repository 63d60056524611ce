"""The adapters of this project, without other installed ones."""

from __future__ import annotations

from jitkit.registry import installed


def own_adapters() -> list[str]:
    """Names of the entry points of the distribution jitkit, in order."""
    points = installed().items()
    return [name for name, point in points if point.dist and point.dist.name == "jitkit"]
