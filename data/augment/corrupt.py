"""What a careless scan or photograph does to a page: turned, skewed, blurred, noisy, shaded, faded.

For validation that is scored beside the clean one, for offline copies of small classes, and for the demonstration's
test pages. Made of the operations of augmentation, but with a draw of its own: no training image is changed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from data.augment import documents, geometry, ops
from data.augment.transforms import EvalTransform
from data.pixels import Pixels
from models.card import Preprocessing

_LARGEST_SKEW = 12.0  # degrees


@dataclass(frozen=True)
class Corrupted:
    """The transform of images that are damaged, then prepared as `prep` says."""

    prep: Preprocessing

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        """uint8 `[H, W, 3]` to `[prep.size, prep.size, 3]`."""
        return EvalTransform(self.prep)(corrupt(image, rng))


def corrupt(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A damaged copy of uint8 `[H, W, 3]`; every second one is turned by a quarter or half.

    Always skewed by up to 12 degrees either way; blur, noise, a shadow, fading and JPEG damage each come by chance.
    """
    if rng.random() < 0.5:
        image = cv2.rotate(image, int(rng.integers(3)))
    image = skewed(image, rng.uniform(-_LARGEST_SKEW, _LARGEST_SKEW))
    for chance, damage in _DAMAGE:
        if rng.random() < chance:
            image = damage(image, rng)
    return image


def skewed(image: Pixels, degrees: float) -> Pixels:
    """Turned clockwise about its middle in a frame that holds all of it; the rest has the background's colour."""
    quad = geometry.moved(geometry.corners(*image.shape[:2]), degrees)
    width, height = np.ptp(quad, axis=0)
    down, across = (
        max(0, round((outer - inner) / 2)) for outer, inner in ((height, image.shape[0]), (width, image.shape[1]))
    )
    colour = geometry.background(image) or (255.0, 255.0, 255.0)
    wide = cv2.copyMakeBorder(image, down, down, across, across, cv2.BORDER_CONSTANT, value=colour)
    return geometry.cover(wide, geometry.moved(geometry.corners(*wide.shape[:2]), degrees))


def _faded(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Less contrast, around a darker or a lighter grey."""
    share, level = rng.uniform(0.35, 0.8), rng.uniform(90, 200)
    return cv2.convertScaleAbs(image, alpha=share, beta=(1 - share) * level)


_DAMAGE: tuple[tuple[float, Callable[[Pixels, np.random.Generator], Pixels]], ...] = (
    (0.4, lambda image, rng: documents.shadow(image, rng, 1.0)),
    (0.4, _faded),
    (0.5, lambda image, rng: ops.blur_by(image, rng.uniform(0.002, 0.008) * min(image.shape[:2]))),
    (0.5, lambda image, rng: ops.gaussian_noise(image, rng, 1.0)),
    (0.3, lambda image, rng: ops.jpeg(image, rng, 1.0)),
)
