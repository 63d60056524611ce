"""Domain `images`: folders of image files, and the base class of image domains."""

from jitkit.domains.images.base import ImageDomain
from jitkit.domains.images.files import ImageItem

__all__ = ["ImageDomain", "ImageItem"]
