"""Augmentations that change pixels where they are: colour, tone, damage. Those that move pixels are `data.geometry`.

`OPS` maps a name to `op(image, rng, strength)`: uint8 `[H, W, 3]` RGB to a new array of the same shape; strength 0
changes nothing, 1 is the strongest that is still sensible. Beneath each stands the plain function of what it draws.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from data.decode import Pixels

Op = Callable[[Pixels, np.random.Generator, float], Pixels]

_LEVELS = np.arange(256, dtype=np.float64)


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """Values times `factor`, as PIL's ImageEnhance.Brightness."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Distance from the mean luminance times `factor`, as PIL's ImageEnhance.Contrast."""
    mean = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0]
    return _blend(image, float(int(mean + 0.5)), factor)


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Distance from the grey image times `factor`, as PIL's ImageEnhance.Color."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def adjust_hue(image: Pixels, turn: float) -> Pixels:
    """Hue moved by `turn` of the colour circle (-0.5 to 0.5), as torchvision's adjust_hue."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def adjust_gamma(image: Pixels, gamma: float) -> Pixels:
    """Values in [0, 1] to the power `gamma`, as torchvision's adjust_gamma."""
    return _look_up(image, 255 * (_LEVELS / 255) ** gamma + 0.5)


def posterize_to(image: Pixels, bits: int) -> Pixels:
    """Only the `bits` highest bits of each value, as PIL's ImageOps.posterize."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def solarize_from(image: Pixels, threshold: float) -> Pixels:
    """Values at or above `threshold` inverted, as PIL's ImageOps.solarize."""
    return _look_up(image, np.where(np.less(_LEVELS, threshold), _LEVELS, 255 - _LEVELS))


def blur_by(image: Pixels, sigma: float) -> Pixels:
    """A Gaussian blur of `sigma` pixels, mirrored at the borders."""
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image.copy()


def compress(image: Pixels, quality: int) -> Pixels:
    """What a JPEG of `quality` (1 to 100) leaves of the image."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def brightness(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Brightness by a factor up to 1.6 or down to 1 / 1.6."""
    return adjust_brightness(image, _factor(rng, 0.6 * strength))


def contrast(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Contrast by a factor up to 1.6 or down to 1 / 1.6."""
    return adjust_contrast(image, _factor(rng, 0.6 * strength))


def saturation(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Saturation by a factor up to 1.8 or down to 1 / 1.8."""
    return adjust_saturation(image, _factor(rng, 0.8 * strength))


def hue(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Hue by up to a tenth of the colour circle either way."""
    return adjust_hue(image, rng.uniform(-0.1, 0.1) * strength)


def gamma(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Gamma up to 1.7 or down to 1 / 1.7."""
    return adjust_gamma(image, _factor(rng, 0.7 * strength))


def posterize(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Down to as few as 3 bits."""
    return posterize_to(image, 8 - round(rng.uniform(0, 5) * strength))


def solarize(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Inverted from a threshold on that is as low as 128."""
    return solarize_from(image, 256 - rng.uniform(0, 128) * strength)


def noise(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Gaussian noise of up to 25 levels of standard deviation, drawn for each value."""
    deviation = rng.uniform(0, 25) * strength
    drawn = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(deviation)
    return np.clip(np.rint(image + drawn), 0, 255).astype(np.uint8)


def blur(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Blur by up to 1% of the short side."""
    return blur_by(image, rng.uniform(0, 0.01) * strength * min(image.shape[:2]))


def jpeg(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """JPEG damage of quality 95 down to 20; none at strength 0."""
    lowest = 95 - 75 * strength
    return compress(image, round(rng.uniform(lowest, 95))) if strength > 0 else image.copy()


def erase(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """A rectangle of up to a third of the area becomes noise (random erasing, Zhong et al. 2017)."""
    height, width = image.shape[:2]
    share, ratio = rng.uniform(0.02, 0.33) * strength, np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    rows = min(height, int((share * height * width * ratio) ** 0.5))
    columns = min(width, int((share * height * width / ratio) ** 0.5))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    erased = image.copy()
    erased[top : top + rows, left : left + columns] = rng.integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return erased


OPS: dict[str, Op] = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "gamma": gamma,
    "posterize": posterize,
    "solarize": solarize,
    "noise": noise,
    "blur": blur,
    "jpeg": jpeg,
    "erase": erase,
}


def _factor(rng: np.random.Generator, reach: float) -> float:
    """1 at its middle, as often above as below, between 1 / (1 + reach) and 1 + reach."""
    return float((1 + reach) ** rng.uniform(-1, 1))


def _blend(image: Pixels, grey: float, factor: float) -> Pixels:
    return _look_up(image, grey + factor * (_LEVELS - grey))


def _look_up(image: Pixels, table: np.ndarray) -> Pixels:
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))
