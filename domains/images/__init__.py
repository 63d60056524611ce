"""Images: folders of PNG, JPEG, WebP and the like, and what other adapters of images share."""

from jitkit.domains.images.base import ImageDomain
from jitkit.domains.images.files import ImageItem

__all__ = ["ImageDomain", "ImageItem"]
