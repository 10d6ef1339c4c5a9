"""Operations for what happens to paper before it is photographed or scanned, and of how it lies on the glass.

The form is that of `data.augment.ops`. Sizes are in proportion to the short side, so that a page looks the same at any
resolution. They suit photographs too, where they act as a mild morphology, a shadow, and a reflection.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data.augment.ops import Op, blur_by
from data.pixels import Pixels

_QUARTERS = (None, cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)


def rotate90(image: Pixels, rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """Turned by 0, 90, 180 or 270 degrees, each as likely; height and width may change places."""
    quarter = _QUARTERS[rng.integers(4)]
    return image.copy() if quarter is None else cv2.rotate(image, quarter)


def erode(image: Pixels, reach: float) -> Pixels:
    """Each value the least in a square of side 1 + `reach` pixels: dark strokes grow, as scipy's grey_erosion.

    Between whole sides the two nearest results are blended, so that the effect grows evenly.
    """
    return _morph(image, cv2.MORPH_ERODE, reach)


def dilate(image: Pixels, reach: float) -> Pixels:
    """Each value the greatest in a square of side 1 + `reach` pixels: dark strokes thin out, as scipy's grey_dilation.

    Between whole sides the two nearest results are blended.
    """
    return _morph(image, cv2.MORPH_DILATE, reach)


def shade(image: Pixels, degrees: float, position: float, softness: float, light: float) -> Pixels:
    """One side of a straight edge times `light` (0 to 1).

    The edge runs across `degrees`, at `position` (-1 to 1) on the way from the middle to the farthest corner, and fades
    over `softness` of that way.
    """
    height, width = image.shape[:2]
    half = math.hypot(height, width) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across = ((np.arange(width) - (width - 1) / 2) * (cos / half)).astype(np.float32)
    down = ((np.arange(height) - (height - 1) / 2) * (sin / half)).astype(np.float32)
    covered = np.clip((across[None] + down[:, None] - position) / max(softness, 1e-3) + 0.5, 0, 1)
    return np.rint(image * (1 - (1 - light) * covered)[..., None]).astype(np.uint8)


def show_through(image: Pixels, back: Pixels, opacity: float, sigma: float) -> Pixels:
    """The page with the ink of `back` (same shape) seen through it: mirrored, blurred, `opacity` of its darkness."""
    ink = (255 - blur_by(cv2.flip(back, 1), sigma)).astype(np.float32)
    return np.rint(image * (1 - ink * (opacity / 255))).astype(np.uint8)


def erosion(image: Pixels, rng: np.random.Generator, strength: float, size: float = 0.008) -> Pixels:
    """Dark strokes grow by up to `size` of the short side."""
    return erode(image, rng.uniform(0, size) * strength * min(image.shape[:2]))


def dilation(image: Pixels, rng: np.random.Generator, strength: float, size: float = 0.005) -> Pixels:
    """Dark strokes thin out by up to `size` of the short side; more than 0.5% would wipe out print."""
    return dilate(image, rng.uniform(0, size) * strength * min(image.shape[:2]))


def shadow(image: Pixels, rng: np.random.Generator, strength: float, intensity: float = 0.5) -> Pixels:
    """A soft shadow from one side that takes up to `intensity` of the light."""
    degrees, position, softness = rng.uniform(0, 360), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.6)
    return shade(image, degrees, position, softness, 1 - rng.uniform(0.4 * intensity, intensity) * strength)


def bleed_through(image: Pixels, rng: np.random.Generator, strength: float, opacity: float = 0.35) -> Pixels:
    """The other side of the sheet shows with up to `opacity` of its ink; as its print the page's own stands in."""
    back = cv2.flip(image, 0) if rng.random() < 0.5 else image
    return show_through(image, back, rng.uniform(min(0.05, opacity), opacity) * strength, 0.003 * min(image.shape[:2]))


# What the settings know of them; see `data.augment.ops`.
OPERATIONS = {
    "rotate90": ("0, 90, 180 or 270 degrees, each as likely", {}, 1.0, 1.0),
    "bleed_through": (
        "the back of a page shows through",
        {"opacity": ("share of the ink on the back", 0, 1)},
        0.2,
        1.0,
    ),
    "erosion": ("dark strokes grow", {"size": ("share of the short side", 0, 0.1)}, 0.2, 1.0),
    "dilation": ("dark strokes thin out", {"size": ("share of the short side", 0, 0.1)}, 0.2, 1.0),
    "shadow": ("a soft shadow from one side", {"intensity": ("share of the light", 0, 1)}, 0.3, 1.0),
}
OPS: dict[str, Op] = {
    "rotate90": rotate90,
    "bleed_through": bleed_through,
    "erosion": erosion,
    "dilation": dilation,
    "shadow": shadow,
}
SWITCHES = frozenset({"rotate90"})


def _morph(image: Pixels, kind: int, reach: float) -> Pixels:
    steps = int(reach)
    sides = (steps + 1, steps + 2)
    lower, upper = (cv2.morphologyEx(image, kind, np.ones((side, side), dtype=np.uint8)) for side in sides)
    return cv2.addWeighted(lower, 1 - (reach - steps), upper, reach - steps, 0)
