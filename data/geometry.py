"""Augmentations that move pixels: flips, turns, warps, and the random ways to a model's square.

`OPS` are blocks as in `data.ops`, which is about pixels in place. Warps are bilinear and mirrored at the borders.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from data.decode import Pixels
from data.ops import Op
from data.resize import place, resize, shrink_to_fit

_TRIES = 10


def hflip(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """Left and right exchanged."""
    return cv2.flip(image, 1)


def vflip(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """Top and bottom exchanged."""
    return cv2.flip(image, 0)


def warp(
    image: Pixels,
    degrees: float = 0.0,
    shear: float = 0.0,
    zoom: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
) -> Pixels:
    """Rotated (clockwise), sheared (degrees, along x), zoomed about the middle and shifted (right, down; pixels).

    The geometry of torchvision's `affine(angle, translate, scale, shear)`.
    """
    height, width = image.shape[:2]
    turn, slant = math.radians(degrees), math.tan(math.radians(shear))
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    linear = np.array([[cos, -cos * slant - sin], [sin, -sin * slant + cos]])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    offset = middle + shift - linear @ middle
    matrix = np.column_stack([linear, offset])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def affine(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """All small movements in one warp: 30 degrees, 15 of shear, 25% of zoom, 15% of shift, each at most."""
    degrees, shear, zoom, right, down = rng.uniform(-1, 1, 5) * strength
    side = 0.15 * min(image.shape[:2])
    return warp(image, 30 * degrees, 15 * shear, 1.25**zoom, (side * right, side * down))


def rotate(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Turned by up to 30 degrees either way."""
    return warp(image, degrees=rng.uniform(-30, 30) * strength)


def shear(image: Pixels, rng: np.random.Generator, strength: float) -> Pixels:
    """Sheared along x by up to 20 degrees either way."""
    return warp(image, shear=rng.uniform(-20, 20) * strength)


def random_crop(
    image: Pixels,
    rng: np.random.Generator,
    size: int,
    least_area: float,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Pixels:
    """A random part of at least `least_area` of the image as `[size, size, 3]` (torchvision's RandomResizedCrop)."""
    height, width = image.shape[:2]
    for _ in range(_TRIES):
        area = rng.uniform(least_area, 1) * height * width
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            return _part(image, rng, size, rows, columns)
    return _part(image, rng, size, min(height, round(width / ratio[0])), min(width, round(height * ratio[1])))


def random_square(image: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """The largest square at a random place along the long side, as `[size, size, 3]`."""
    side = min(image.shape[:2])
    return _part(image, rng, size, side, side)


def random_letterbox(image: Pixels, rng: np.random.Generator, size: int, least_area: float) -> Pixels:
    """The whole image, at `least_area` to all of the area it could have, at a random place of a grey square."""
    side = max(1, round(size * math.sqrt(rng.uniform(least_area, 1))))
    small = shrink_to_fit(image, side)
    top, left = rng.integers(size - small.shape[0] + 1), rng.integers(size - small.shape[1] + 1)
    return place(small, size, top, left)


def _part(image: Pixels, rng: np.random.Generator, size: int, rows: int, columns: int) -> Pixels:
    top, left = rng.integers(image.shape[0] - rows + 1), rng.integers(image.shape[1] - columns + 1)
    return resize(image[top : top + rows, left : left + columns], size, size)


OPS: dict[str, Op] = {"hflip": hflip, "vflip": vflip, "affine": affine, "rotate": rotate, "shear": shear}
