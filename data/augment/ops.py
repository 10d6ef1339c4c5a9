"""Blocks that change pixels where they are: hue, tone, and what a camera and a file format do to an image.

`OPS` maps a name to `op(image, rng, strength)`: uint8 `[H, W, 3]` RGB to a new array of the same shape; strength 0
changes nothing, 1 is the strongest that is still sensible. `SWITCHES` have no strength: they act or they do not. The
plain functions beneath are `data.augment.tone`; what moves pixels is `data.augment.geometry`, damage to paper
`data.augment.documents`, brightness, contrast and saturation `data.augment.colour`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from data.augment import tone
from data.augment.colour import factor
from data.pixels import Pixels

Op = Callable[[Pixels, np.random.Generator, float], Pixels]

_TRIES = 10


def hue(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Hue by up to a tenth of the colour circle either way."""
    return tone.adjust_hue(image, rng.uniform(-0.1, 0.1) * strength)


def gamma(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Gamma up to 1.7 or down to 1 / 1.7."""
    return tone.adjust_gamma(image, factor(rng, 0.7 * strength))


def greyscale(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """The colour taken away."""
    return tone.to_grey(image)


def posterize(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Down to as few as 3 bits."""
    return tone.posterize_to(image, 8 - round(rng.uniform(0, 5) * strength))


def solarize(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Inverted from a threshold on that is as low as 128."""
    return tone.solarize_from(image, 256 - rng.uniform(0, 128) * strength)


def blur_by(image: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur of `sigma` pixels, mirrored at the borders."""
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image.copy()


def compress(image: Pixels, quality: int) -> Pixels:
    """What a JPEG of `quality` (1 to 100) leaves of the image."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def blur(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Blur by up to 1% of the short side."""
    return blur_by(image, rng.uniform(0, 0.01) * strength * min(image.shape[:2]))


def noise(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Gaussian noise of up to 25 levels of standard deviation, drawn for each value."""
    deviation = rng.uniform(0, 25) * strength
    drawn = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


def jpeg(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """JPEG damage of quality 95 down to 20; none at strength 0."""
    lowest = 95 - 75 * strength
    return compress(image, round(rng.uniform(lowest, 95))) if strength > 0 else image.copy()


def erase(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """A rectangle of 2% to a third of the area becomes noise (random erasing, Zhong et al. 2017).

    At strength 1 the rectangle is drawn as timm's RandomErasing draws it: aspect ratio 0.3 to 1 / 0.3, ten tries to
    find one that fits.
    """
    height, width = image.shape[:2]
    erased = image.copy()
    for _ in range(_TRIES):
        area = rng.uniform(0.02, 1 / 3) * strength * height * width
        shape = math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        rows, columns = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if rows < height and columns < width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            drawn = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
            erased[top : top + rows, left : left + columns] = drawn
            break
    return erased


OPS: dict[str, Op] = {
    "hue": hue,
    "gamma": gamma,
    "greyscale": greyscale,
    "posterize": posterize,
    "solarize": solarize,
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "erase": erase,
}
SWITCHES = frozenset({"greyscale"})
