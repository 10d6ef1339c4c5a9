"""Brightness, contrast and saturation: maps of the colours of which any number is one pass over the pixels.

Values are cut off at 0 and 255 once, at the end, not after each map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from data.pixels import Pixels

_LUMINANCE = np.array([[0.299, 0.587, 0.114, 0.0]] * 3, np.float32)  # of PIL's convert("L")
_EACH, _ALL = np.eye(3, 4, dtype=np.float32), np.eye(1, 4, 3, dtype=np.float32)
_BRIGHTEST = 235.0
_ROWS = 56


class Map(NamedTuple):
    """Each value becomes `scale` times itself, plus `grey` times its pixel's luminance, plus `shift`."""

    scale: float
    grey: float = 0.0
    shift: float = 0.0

    def then(self, other: Map) -> Map:
        """This map, and `other` after it."""
        luminance = self.scale + self.grey  # what this one makes of a luminance, beside its shift
        return Map(
            other.scale * self.scale,
            other.scale * self.grey + other.grey * luminance,
            (other.scale + other.grey) * self.shift + other.shift,
        )

    def __call__(self, image: Pixels) -> Pixels:
        """uint8 `[H, W, 3]`."""
        if not self.grey:  # a diagonal matrix would take cv2.transform six times longer than a full one
            return cv2.addWeighted(image, self.scale, image, 0.0, self.shift)
        return cv2.transform(image, self.scale * _EACH + self.grey * _LUMINANCE + self.shift * _ALL)


# (mean luminance of the image, rng, strength, limit) to a map; strength 0 changes nothing, 1 goes up to the limit
Draw = Callable[..., Map]


def scaled(factor: float) -> Map:
    """Values times `factor`, as PIL's ImageEnhance.Brightness."""
    return Map(factor)


def spread(factor: float, light: float) -> Map:
    """Distance from the mean luminance `light` times `factor`, as PIL's ImageEnhance.Contrast."""
    return Map(factor, shift=(1 - factor) * light)


def saturated(factor: float) -> Map:
    """Distance from the grey image times `factor`, as PIL's ImageEnhance.Color."""
    return Map(factor, grey=1 - factor)


def brightness(light: float, rng: np.random.Generator, strength: float, limit: float = 0.6) -> Map:
    """Brightness by a factor up to 1 + `limit` or down to 1 / (1 + `limit`), but not beyond a mean of 235: print would
    vanish."""
    return scaled(min(factor(rng, limit * strength), max(1.0, _BRIGHTEST / max(light, 1.0))))


def contrast(light: float, rng: np.random.Generator, strength: float, limit: float = 0.6) -> Map:
    """Contrast by a factor up to 1 + `limit` or down to 1 / (1 + `limit`)."""
    return spread(factor(rng, limit * strength), light)


def saturation(_light: float, rng: np.random.Generator, strength: float, limit: float = 0.8) -> Map:
    """Saturation by a factor up to 1 + `limit` or down to 1 / (1 + `limit`)."""
    return saturated(factor(rng, limit * strength))


# What the settings know of them; see `data.augment.ops`.
OPERATIONS = {
    "brightness": ("brightness", {"limit": ("a factor from 1 / (1 + limit) to 1 + limit", 0, 10)}, 0.5, 1.0),
    "contrast": ("contrast", {"limit": ("a factor from 1 / (1 + limit) to 1 + limit", 0, 10)}, 0.5, 1.0),
    "saturation": ("saturation", {"limit": ("a factor from 1 / (1 + limit) to 1 + limit", 0, 10)}, 0.5, 1.0),
}
MAPS: dict[str, Draw] = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


def tint(
    image: Pixels,
    rng: np.random.Generator,
    acting: Mapping[str, float],
    limits: Mapping[str, Mapping[str, float]] | None = None,
) -> Pixels:
    """The maps named in `acting`, with their strengths, drawn in its order and applied at once to uint8 `[H, W, 3]`.

    `limits` has the parameters of those that do not take their defaults, by name.
    """
    some = image[:: max(1, len(image) // _ROWS)]  # rows enough for a mean
    light, combined = float(cv2.mean(cv2.cvtColor(some, cv2.COLOR_RGB2GRAY))[0]), Map(1.0)
    for name, strength in acting.items():
        drawn = MAPS[name](light, rng, strength, **(limits or {}).get(name, {}))
        combined, light = combined.then(drawn), (drawn.scale + drawn.grey) * light + drawn.shift
    return combined(image)


def factor(rng: np.random.Generator, reach: float) -> float:
    """1 at its middle, as often above as below, between 1 / (1 + reach) and 1 + reach."""
    return float((1 + reach) ** rng.uniform(-1, 1))
