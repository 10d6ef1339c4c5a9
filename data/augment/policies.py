"""RandAugment, TrivialAugment and 3-Augment: published ways to choose operations and their magnitudes at random.

Each is `policy(image, rng, share)`: uint8 `[S, S, 3]` to the same shape; `share` (0 to 1) scales the magnitudes, and
how often what has no magnitude acts. Places that a movement uncovers are grey. Interpolation is bilinear throughout
(timm draws bilinear or bicubic, torchvision takes the nearest pixel).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from data.augment import geometry, ops, tone
from data.pixels import Pixels
from data.resize import PAD

Policy = Callable[[Pixels, np.random.Generator, float], Pixels]
Change = Callable[[Pixels, float], Pixels]
# From a level in [0, 1] and a sign to what the change of that name takes; None where it takes nothing.
Argument = Callable[[float, int], float] | None

_ACTS = 0.5  # timm's probability that an operation which RandAugment chose acts
_MAGNITUDES = 10.0  # timm's and the paper's scale
_BINS = 30  # TrivialAugment's magnitudes are 0/30 to 30/30


def shear_x(image: Pixels, factor: float) -> Pixels:
    """Each row moved left by `factor` of its distance from the top edge, as timm's ShearX."""
    return geometry.affine_by(image, np.array([[1, factor, 0], [0, 1, 0]], dtype=np.float64), PAD)


def shear_y(image: Pixels, factor: float) -> Pixels:
    """Each column moved up by `factor` of its distance from the left edge, as timm's ShearY."""
    return geometry.affine_by(image, np.array([[1, 0, 0], [factor, 1, 0]], dtype=np.float64), PAD)


def translate(image: Pixels, left: float, up: float) -> Pixels:
    """Moved left and up by so many pixels, as timm's TranslateXAbs and TranslateYAbs."""
    return geometry.affine_by(image, np.array([[1, 0, left], [0, 1, up]], dtype=np.float64), PAD)


def rotate(image: Pixels, degrees: float, fill: int = PAD) -> Pixels:
    """Turned counter-clockwise about the middle, as PIL's Image.rotate."""
    middle = np.array([image.shape[1], image.shape[0]]) / 2
    turn = np.radians(degrees)
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return geometry.affine_by(image, np.column_stack([linear, middle - linear @ middle]), fill)


CHANGES: dict[str, Change] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: tone.autocontrast(image),
    "equalize": lambda image, _: tone.equalize(image),
    "invert": lambda image, _: tone.invert(image),
    "rotate": rotate,
    "posterize": lambda image, bits: tone.posterize_to(image, int(bits)),
    "solarize": tone.solarize_from,
    "solarize_add": tone.solarize_add,
    "color": tone.adjust_saturation,
    "contrast": tone.adjust_contrast,
    "brightness": tone.adjust_brightness,
    "sharpness": tone.adjust_sharpness,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": lambda image, pixels: translate(image, pixels, 0),
    "translate_y": lambda image, pixels: translate(image, 0, pixels),
    "translate_x_share": lambda image, share: translate(image, share * image.shape[1], 0),
    "translate_y_share": lambda image, share: translate(image, 0, share * image.shape[0]),
}


def _up_to(reach: float, level: float, sign: int) -> float:
    return sign * reach * level


def _integer_up_to(reach: float, level: float, sign: int) -> float:
    return sign * int(reach * level)


def _around_1(reach: float, least: float, level: float, sign: int) -> float:
    return max(least, 1 + sign * reach * level)


# timm's `rand-...-inc1`: every operation grows stronger with the magnitude.
RAND: dict[str, Argument] = {
    **dict.fromkeys(("autocontrast", "equalize", "invert")),
    "rotate": partial(_up_to, 30),
    "posterize": lambda level, _: max(1, 4 - int(level * 4)),  # PIL, and so timm at magnitude 10, refuses 0
    "solarize": lambda level, _: 256 - int(level * 256),
    "solarize_add": lambda level, _: int(level * 110),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), partial(_around_1, 0.9, 0.1)),
    **dict.fromkeys(("shear_x", "shear_y"), partial(_up_to, 0.3)),
    **dict.fromkeys(("translate_x_share", "translate_y_share"), partial(_up_to, 0.45)),
}
# The "wide" space of the paper, as torchvision has it.
TRIVIAL: dict[str, Argument] = {
    "identity": None,
    **dict.fromkeys(("shear_x", "shear_y"), partial(_up_to, 0.99)),
    **dict.fromkeys(("translate_x", "translate_y"), partial(_integer_up_to, 32)),
    "rotate": partial(_up_to, 135),
    **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), partial(_around_1, 0.99, 0.0)),
    "posterize": lambda level, _: 8 - round(level * 6),
    "solarize": lambda level, _: 255 * (1 - level),
    **dict.fromkeys(("autocontrast", "equalize")),
}


def rand(
    image: Pixels,
    rng: np.random.Generator,
    share: float,
    operations: int = 2,
    magnitude: float = 9.0,
    magnitude_std: float = 0.5,
) -> Pixels:
    """RandAugment (Cubuk et al. 2020) as timm's `rand-m9-mstd0.5-n2-inc1`: each chosen operation acts half the time.

    Magnitudes, 0 to 10, are drawn from a normal distribution about `magnitude` for each operation.
    """
    for name in rng.choice(list(RAND), operations):
        drawn = np.clip(rng.normal(magnitude, magnitude_std), 0, _MAGNITUDES) / _MAGNITUDES
        if rng.random() < _ACTS:
            image = _change(image, str(name), RAND[name], float(drawn), share, rng)
    return image


def trivial(image: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """TrivialAugment (Müller and Hutter 2021), its wide space: one operation at a magnitude that is uniform."""
    name = str(rng.choice(list(TRIVIAL)))
    return _change(image, name, TRIVIAL[name], rng.integers(_BINS + 1) / _BINS, share, rng)


def three(image: Pixels, rng: np.random.Generator, share: float) -> Pixels:
    """3-Augment (Touvron et al. 2022, DeiT III): grey, solarized or blurred, each as likely; then colour jitter of 0.3.

    The blur is theirs at 224 pixels, 0.1 to 2 of standard deviation, and in proportion at other sizes.
    """
    if rng.random() < share:
        image = _THREE[rng.integers(len(_THREE))](image, rng)
    for i in rng.permutation(len(_JITTER)):
        image = _JITTER[i](image, 1 + 0.3 * share * rng.uniform(-1, 1))
    return image


_THREE: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (
    lambda image, _: tone.to_grey(image),
    lambda image, _: tone.solarize_from(image, 128),
    lambda image, rng: ops.blur_by(image, rng.uniform(0.1, 2) * min(image.shape[:2]) / 224),
)
_JITTER: tuple[Change, ...] = (tone.adjust_brightness, tone.adjust_contrast, tone.adjust_saturation)


def _change(
    image: Pixels, name: str, argument: Argument, level: float, share: float, rng: np.random.Generator
) -> Pixels:
    if argument is None:
        return CHANGES[name](image, 0.0) if rng.random() < share else image
    return CHANGES[name](image, argument(level * share, 1 if rng.random() < 0.5 else -1))
