"""Brightness, contrast and saturation: each a linear map of RGB, so that any number of them is one pass.

A map is float64 `[4, 4]` on (R, G, B, 1). Values are cut off at 0 and 255 once, at the end, not after each map.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from data.decode import Pixels

Map = NDArray[np.float64]
# (mean luminance of the image, rng, strength) to a map; strength 0 is the identity, 1 the strongest that is sensible
Draw = Callable[[float, np.random.Generator, float], Map]

_LUMINANCE = np.array([0.299, 0.587, 0.114])  # of PIL's convert("L")
_BRIGHTEST = 235.0


def scaled(factor: float) -> Map:
    """Values times `factor`, as PIL's ImageEnhance.Brightness."""
    return np.diag([factor, factor, factor, 1.0])


def spread(factor: float, light: float) -> Map:
    """Distance from the mean luminance `light` times `factor`, as PIL's ImageEnhance.Contrast."""
    found = scaled(factor)
    found[:3, 3] = (1 - factor) * light
    return found


def saturated(factor: float) -> Map:
    """Distance from the grey image times `factor`, as PIL's ImageEnhance.Color."""
    found = scaled(factor)
    found[:3, :3] += (1 - factor) * _LUMINANCE
    return found


def brightness(light: float, rng: np.random.Generator, strength: float) -> Map:
    """Brightness by a factor up to 1.6 or down to 1 / 1.6, but not beyond a mean of 235: print would vanish."""
    return scaled(min(factor(rng, 0.6 * strength), max(1.0, _BRIGHTEST / max(light, 1.0))))


def contrast(light: float, rng: np.random.Generator, strength: float) -> Map:
    """Contrast by a factor up to 1.6 or down to 1 / 1.6."""
    return spread(factor(rng, 0.6 * strength), light)


def saturation(_light: float, rng: np.random.Generator, strength: float) -> Map:
    """Saturation by a factor up to 1.8 or down to 1 / 1.8."""
    return saturated(factor(rng, 0.8 * strength))


MAPS: dict[str, Draw] = {"brightness": brightness, "contrast": contrast, "saturation": saturation}


def luminance(image: Pixels) -> float:
    """The mean luminance of uint8 `[H, W, 3]`, 0 to 255."""
    return float(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])


def tint(image: Pixels, rng: np.random.Generator, acting: dict[str, float]) -> Pixels:
    """The maps named in `acting`, with their strengths, drawn in its order and applied at once to uint8 `[H, W, 3]`."""
    light, whole = luminance(image), np.eye(4)
    for name, strength in acting.items():
        drawn = MAPS[name](light, rng, strength)
        whole = drawn @ whole
        light = float(_LUMINANCE @ (drawn[:3, :3].sum(axis=1) * light + drawn[:3, 3]))  # of a grey of that light
    return cv2.transform(image, whole[:3].astype(np.float32))


def factor(rng: np.random.Generator, reach: float) -> float:
    """1 at its middle, as often above as below, between 1 / (1 + reach) and 1 + reach."""
    return float((1 + reach) ** rng.uniform(-1, 1))
