"""Plain functions of an image and one number that change tone and colour, as PIL and torchvision define them.

Nothing here is random: `data.augment.ops` and `data.augment.policies` draw the numbers. All take and return uint8 `[H,
W, 3]` RGB and leave their input alone.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data.pixels import Pixels

_LEVELS = np.arange(256, dtype=np.float64)
_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], dtype=np.float32) / 13  # PIL's ImageFilter.SMOOTH


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """Values times `factor`, as PIL's ImageEnhance.Brightness."""
    return _look_up(image, factor * _LEVELS)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Distance from the mean luminance times `factor`, as PIL's ImageEnhance.Contrast."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return _look_up(image, mean + factor * (_LEVELS - mean))


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Distance from the grey image times `factor`, as PIL's ImageEnhance.Color."""
    return cv2.addWeighted(image, factor, to_grey(image), 1 - factor, 0)


def adjust_sharpness(image: Pixels, factor: float) -> Pixels:
    """Distance from the smoothed image times `factor`, as PIL's ImageEnhance.Sharpness; the outermost pixels stay."""
    smooth = image.copy()
    smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, _SMOOTH)[1:-1, 1:-1]
    return cv2.addWeighted(image, factor, smooth, 1 - factor, 0)


def adjust_hue(image: Pixels, turn: float) -> Pixels:
    """Hue moved by `turn` of the colour circle (-0.5 to 0.5), as torchvision's adjust_hue."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def adjust_gamma(image: Pixels, gamma: float) -> Pixels:
    """Values in [0, 1] to the power `gamma`, as torchvision's adjust_gamma."""
    return _look_up(image, 255 * (_LEVELS / 255) ** gamma + 0.5)


def to_grey(image: Pixels) -> Pixels:
    """The luminance in all three channels, as PIL's convert("L")."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def invert(image: Pixels) -> Pixels:
    """The negative, as PIL's ImageOps.invert."""
    return cv2.bitwise_not(image)


def posterize_to(image: Pixels, bits: int) -> Pixels:
    """Only the `bits` highest bits of each value (1 to 8), as PIL's ImageOps.posterize."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def solarize_from(image: Pixels, threshold: float) -> Pixels:
    """Values at or above `threshold` inverted, as PIL's ImageOps.solarize."""
    return _look_up(image, np.where(np.less(_LEVELS, threshold), _LEVELS, 255 - _LEVELS))


def solarize_add(image: Pixels, amount: float) -> Pixels:
    """Values below 128 raised by `amount`, as timm's SolarizeAdd."""
    return _look_up(image, np.where(np.less(_LEVELS, 128), _LEVELS + amount, _LEVELS))


def autocontrast(image: Pixels) -> Pixels:
    """Each channel stretched to the range 0 to 255, as PIL's ImageOps.autocontrast."""

    def stretched(counts: np.ndarray) -> np.ndarray:
        low, high = np.flatnonzero(counts)[[0, -1]]
        return _LEVELS if low == high else (_LEVELS - low) * (255 / (high - low))

    return _each_channel(image, stretched)


def equalize(image: Pixels) -> Pixels:
    """Each channel's histogram made flat, as PIL's ImageOps.equalize."""

    def equalized(counts: np.ndarray) -> np.ndarray:
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        return _LEVELS if step == 0 else (step // 2 + np.cumsum(counts) - counts) // step

    return _each_channel(image, equalized)


def _each_channel(image: Pixels, table: Callable[[np.ndarray], np.ndarray]) -> Pixels:
    """Each channel looked up in what `table` makes of its histogram."""
    planes = [_look_up(plane, table(np.bincount(plane.ravel(), minlength=256))) for plane in cv2.split(image)]
    return cv2.merge(planes)


def _look_up(image: Pixels, table: np.ndarray) -> Pixels:
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))
