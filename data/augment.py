"""What the loader does to each decoded image: one fixed way to evaluate, and four levels of chance to train.

A level is a table of blocks from `OPS`; how each block works is `data.ops` and `data.geometry`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from config.errors import ConfigError
from data import geometry, ops, resize
from data.decode import Pixels
from models.card import Fit, Preprocessing

OPS: dict[str, ops.Op] = {**geometry.OPS, **ops.OPS}


class EvalTransform(Protocol):
    """A transform without chance; it takes the loader's generator and leaves it alone."""

    def __call__(self, image: Pixels, rng: np.random.Generator | None = None) -> Pixels:
        """uint8 `[H, W, 3]` to `[S, S, 3]`."""


class Block(NamedTuple):
    """A block of a level: its name in `OPS`, how often it acts, and how strongly (0 to 1)."""

    name: str
    probability: float
    strength: float


@dataclass(frozen=True)
class Level:
    """`least_area` is the smallest share of an image that training may see (crop) or fill (letterbox)."""

    least_area: float
    blocks: tuple[Block, ...]


LEVELS = {
    "none": Level(1.0, ()),
    "minimal": Level(1.0, (Block("affine", 1.0, 0.35),)),
    "moderate": Level(
        0.5,
        (
            Block("affine", 0.5, 0.4),
            Block("brightness", 0.5, 0.5),
            Block("contrast", 0.5, 0.5),
            Block("saturation", 0.5, 0.5),
            Block("hue", 0.3, 0.5),
            Block("erase", 0.1, 0.5),
        ),
    ),
    "hard": Level(
        0.25,
        (
            Block("affine", 0.7, 0.8),
            Block("brightness", 0.5, 1.0),
            Block("contrast", 0.5, 1.0),
            Block("saturation", 0.5, 1.0),
            Block("hue", 0.5, 0.7),
            Block("gamma", 0.3, 0.8),
            Block("posterize", 0.1, 0.8),
            Block("solarize", 0.1, 0.8),
            Block("blur", 0.2, 1.0),
            Block("noise", 0.2, 0.8),
            Block("jpeg", 0.2, 0.8),
            Block("erase", 0.3, 0.8),
        ),
    ),
}


def eval_transform(prep: Preprocessing) -> EvalTransform:
    """How `prep` has an image prepared to be evaluated: uint8 `[H, W, 3]` to `[prep.size, prep.size, 3]`."""

    def transform(image: Pixels, rng: np.random.Generator | None = None) -> Pixels:  # noqa: ARG001
        if prep.fit == "squash":
            return resize.squash(image, prep.size, prep.interpolation)
        if prep.fit == "letterbox":
            return resize.letterbox(image, prep.size, prep.interpolation)
        return resize.crop(image, prep.size, prep.crop_pct, prep.interpolation)

    return transform


def train_transform(
    level: str, size: int, fit: Fit = "crop", hflip: bool = True, vflip: bool = False
) -> Callable[[Pixels, np.random.Generator], Pixels]:
    """How an image is prepared to be trained on: uint8 `[H, W, 3]` and a generator to `[size, size, 3]`.

    Flips act on half of the images. Level `none` has no chance at all, so no flips. Raises `ConfigError` for a level
    that is not in `LEVELS`.
    """
    if level not in LEVELS:
        near = difflib.get_close_matches(level, LEVELS, n=1)
        hint = f", perhaps you mean {near[0]!r}" if near else ""
        raise ConfigError(f"augment.level {level!r}: choose one of {', '.join(LEVELS)}{hint}")
    if level == "none":
        return eval_transform(Preprocessing(size=size, fit=fit))
    flips = [Block(name, 0.5, 1.0) for name, wanted in (("hflip", hflip), ("vflip", vflip)) if wanted]
    blocks = (*flips, *LEVELS[level].blocks)

    def transform(image: Pixels, rng: np.random.Generator) -> Pixels:
        image = _to_square(image, rng, size, fit, LEVELS[level].least_area)
        for block in blocks:
            if rng.random() < block.probability:
                image = OPS[block.name](image, rng, block.strength)
        return image

    return transform


def _to_square(image: Pixels, rng: np.random.Generator, size: int, fit: Fit, least_area: float) -> Pixels:
    if fit == "squash":
        return resize.squash(image, size)
    if fit == "letterbox":
        return geometry.random_letterbox(image, rng, size, least_area)
    if least_area == 1.0:
        return geometry.random_square(image, rng, size)
    return geometry.random_crop(image, rng, size, least_area)
