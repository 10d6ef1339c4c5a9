"""Colours of an embedded ICC profile, such as Display P3 or Adobe RGB, as sRGB: by Little CMS, through Pillow."""

from __future__ import annotations

import functools
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The colour space that a profile must be of, by the mode of the pixels.
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_DIFFERENT = 16  # profiles whose transforms are kept


def to_srgb(pixels: NDArray[np.uint8], mode: str, profile: bytes | None) -> NDArray[np.uint8] | None:
    """uint8 `[H, W, 3]` sRGB of uint8 `[H, W]` (mode L) or `[H, W, C]` (RGB, CMYK), by the perceptual intent.

    None where there is no profile, or where it is damaged or of another colour space than the pixels: browsers then
    leave the colours as they are, and so do callers.
    """
    transform = _transform(profile, mode) if profile else None
    if transform is None:
        return None
    return np.array(ImageCms.applyTransform(Image.fromarray(pixels, mode), transform))


@functools.lru_cache(_DIFFERENT)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _SPACES[mode]:
            return None
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
