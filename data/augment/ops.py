"""Operations that change pixels where they are: hue, tone, and what a camera and a file format do to an image.

`OPS` maps a name to `op(image, rng, strength, **limits)`: uint8 `[H, W, 3]` RGB to a new array of the same shape.
Strength 0 changes nothing; 1 goes up to the limits, whose defaults are the strongest that is still sensible.
`SWITCHES` have no strength: they act or they do not. The plain functions are `data.augment.tone`; what moves pixels is
`data.augment.geometry`, damage to paper `data.augment.documents`, brightness, contrast and saturation
`data.augment.colour`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from data.augment import tone
from data.augment.colour import factor
from data.pixels import Pixels, encode_jpeg

Op = Callable[..., Pixels]  # (image, rng, strength, **limits)

_TRIES = 10


def hue(image: Pixels, rng: np.random.Generator, strength: float, limit: float = 0.1) -> Pixels:
    """Hue by up to `limit` of the colour circle either way."""
    return tone.adjust_hue(image, rng.uniform(-limit, limit) * strength)


def gamma(image: Pixels, rng: np.random.Generator, strength: float, limit: float = 0.7) -> Pixels:
    """Gamma up to 1 + `limit` or down to 1 / (1 + `limit`)."""
    return tone.adjust_gamma(image, factor(rng, limit * strength))


def grayscale(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """The colour taken away."""
    return tone.to_grey(image)


def posterize(image: Pixels, rng: np.random.Generator, strength: float, bits: float = 3.0) -> Pixels:
    """Down to as few as `bits` bits."""
    return tone.posterize_to(image, 8 - round(rng.uniform(0, 8 - bits) * strength))


def solarize(image: Pixels, rng: np.random.Generator, strength: float, threshold: float = 128.0) -> Pixels:
    """Inverted from a threshold on that is as low as `threshold`."""
    return tone.solarize_from(image, 256 - rng.uniform(0, 256 - threshold) * strength)


def blur_by(image: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur of `sigma` pixels, mirrored at the borders."""
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image.copy()


def compress(image: Pixels, quality: int) -> Pixels:
    """What a JPEG of `quality` (1 to 100) leaves of the image."""
    return cv2.cvtColor(cv2.imdecode(encode_jpeg(image, quality), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def gaussian_blur(image: Pixels, rng: np.random.Generator, strength: float, sigma: float = 0.01) -> Pixels:
    """Blur by up to `sigma` of the short side."""
    return blur_by(image, rng.uniform(0, sigma) * strength * min(image.shape[:2]))


def gaussian_noise(image: Pixels, rng: np.random.Generator, strength: float, std: float = 25.0) -> Pixels:
    """Gaussian noise of up to `std` levels of standard deviation, drawn for each value."""
    deviation = rng.uniform(0, std) * strength
    drawn = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


def jpeg(image: Pixels, rng: np.random.Generator, strength: float, quality: float = 20.0) -> Pixels:
    """JPEG damage of quality 95 down to `quality`; none at strength 0."""
    lowest = 95 - (95 - quality) * strength
    return compress(image, round(rng.uniform(lowest, 95))) if strength > 0 else image.copy()


def random_erasing(image: Pixels, rng: np.random.Generator, strength: float, scale: float = 1 / 3) -> Pixels:
    """A rectangle of 2% to `scale` of the area becomes noise (random erasing, Zhong et al. 2017).

    At strength 1 the rectangle is drawn as timm's RandomErasing draws it: aspect ratio 0.3 to 1 / 0.3, ten tries to
    find one that fits.
    """
    height, width = image.shape[:2]
    erased = image.copy()
    for _ in range(_TRIES):
        area = rng.uniform(min(0.02, scale), scale) * strength * height * width
        shape = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        rows, columns = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if rows < height and columns < width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            drawn = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
            erased[top : top + rows, left : left + columns] = drawn
            break
    return erased


# What the settings know of them: description, {parameter: (meaning, least, most)}, and how often and how strongly one
# acts that the level has not. `config.sections.augment` reads it from here.
OPERATIONS = {
    "hue": ("hue", {"limit": ("share of the colour circle, either way", 0, 0.5)}, 0.5, 0.7),
    "gamma": ("gamma", {"limit": ("gamma from 1 / (1 + limit) to 1 + limit", 0, 10)}, 0.3, 0.8),
    "grayscale": ("the colour is removed", {}, 0.1, 1.0),
    "posterize": ("fewer bits for each channel", {"bits": ("fewest bits", 1, 8)}, 0.1, 0.8),
    "solarize": ("bright values are inverted", {"threshold": ("lowest threshold", 0, 256)}, 0.1, 0.8),
    "gaussian_blur": ("Gaussian blur", {"sigma": ("share of the short side", 0, 0.1)}, 0.2, 1.0),
    "gaussian_noise": ("Gaussian noise", {"std": ("standard deviation in levels of 0 to 255", 0, 255)}, 0.2, 0.8),
    "jpeg": ("JPEG compression", {"quality": ("lowest quality; the highest is 95", 1, 95)}, 0.2, 0.8),
    "random_erasing": ("a rectangle becomes noise", {"scale": ("largest share of the area", 0, 1)}, 0.25, 1.0),
}
OPS: dict[str, Op] = {
    "hue": hue,
    "gamma": gamma,
    "grayscale": grayscale,
    "posterize": posterize,
    "solarize": solarize,
    "gaussian_blur": gaussian_blur,
    "gaussian_noise": gaussian_noise,
    "jpeg": jpeg,
    "random_erasing": random_erasing,
}
SWITCHES = frozenset({"grayscale"})
