"""Operations that move pixels, and the random ways to a model's square. Fixed ways are `data.resize`.

A motion says where the four corners of an image go: `motion(quad, rng, strength, **limits)`, so that any number of them
is one warp. A quad is float64 `[4, 2]`, (x, y) in pixels from the middle, clockwise from the top left. `cover` then
fills the frame with the image and with what continues it; `keep` loses nothing of it. Warps are bilinear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augment.ops import Op
from data.pixels import Pixels
from data.resize import PAD, Colour, paste, resample, resize, shrink_blocks, shrink_to_fit
from models.card import Pad

Quad = NDArray[np.float64]
Motion = Callable[..., Quad]  # (quad, rng, strength, **limits)

_TRIES = 10
_RATIO = 3 / 4, 4 / 3  # of width to height, torchvision's defaults
_NEAR, _MOSTLY = 24, 0.6  # levels; share of the border


class Placed(NamedTuple):
    """An image on a square of one colour: uint8 `[S, S, 3]`, and where it is padding: bool `[S, S]`."""

    image: Pixels
    padding: NDArray[np.bool_]


def hflip(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """Left and right exchanged."""
    return cv2.flip(image, 1)


def vflip(image: Pixels, _rng: np.random.Generator, _strength: float = 1.0) -> Pixels:
    """Top and bottom exchanged."""
    return cv2.flip(image, 0)


FLIPS: dict[str, Op] = {"hflip": hflip, "vflip": vflip}


def corners(height: float, width: float) -> Quad:
    """The quad of an image that has not been moved."""
    return np.array([[-width, -height], [width, -height], [width, height], [-width, height]]) / 2


def moved(
    quad: Quad, degrees: float = 0.0, shear: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Quad:
    """Rotated (clockwise), sheared (degrees, along x), zoomed about the middle and shifted (right, down; pixels).

    The geometry of torchvision's `affine(angle, translate, scale, shear)`.
    """
    turn, slant = math.radians(degrees), math.tan(math.radians(shear))
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    return quad @ np.array([[cos, -cos * slant - sin], [sin, -sin * slant + cos]]).T + shift


def affine(
    quad: Quad,
    rng: np.random.Generator,
    strength: float,
    degrees: float = 30.0,
    shear: float = 15.0,
    scale: float = 0.25,
    translate: float = 0.15,
) -> Quad:
    """All small movements at once, each up to its limit: `scale` 0.25 zooms by a factor from 1 / 1.25 to 1.25."""
    turn, slant, zoom, right, down = rng.uniform(-1, 1, 5) * strength
    side = translate * float(np.ptp(quad, axis=0).min())
    return moved(quad, degrees * turn, shear * slant, (1 + scale) ** zoom, (side * right, side * down))


def rotate(quad: Quad, rng: np.random.Generator, strength: float, degrees: float = 30.0) -> Quad:
    """Turned by up to `degrees` either way."""
    return moved(quad, degrees=rng.uniform(-degrees, degrees) * strength)


def rotate_any(quad: Quad, rng: np.random.Generator, strength: float, degrees: float = 180.0) -> Quad:
    """Turned by up to `degrees` either way."""
    return rotate(quad, rng, strength, degrees)


def shear(quad: Quad, rng: np.random.Generator, strength: float, degrees: float = 20.0) -> Quad:
    """Sheared along x by up to `degrees` either way."""
    return moved(quad, shear=rng.uniform(-degrees, degrees) * strength)


def perspective(quad: Quad, rng: np.random.Generator, strength: float, distortion_scale: float = 0.4) -> Quad:
    """Each corner drawn outwards by up to half of `distortion_scale` of each of its two edges, so that a covered frame
    stays covered."""
    shares = rng.uniform(0, distortion_scale / 2, (4, 2, 1)) * strength
    onwards, backwards = np.roll(quad, -1, axis=0), np.roll(quad, 1, axis=0)
    return quad + shares[:, 0] * (quad - onwards) + shares[:, 1] * (quad - backwards)


# What the settings know of them; see `data.augment.ops`.
OPERATIONS = {
    "affine": (
        "rotate, shear, scale and translate at once",
        {
            "degrees": ("rotation either way", 0, 180),
            "shear": ("degrees along x, either way", 0, 60),
            "scale": ("at most 1 + scale and at least 1 / (1 + scale)", 0, 4),
            "translate": ("share of the short side, either way", 0, 1),
        },
        0.7,
        0.8,
    ),
    "rotate": ("rotate", {"degrees": ("either way", 0, 180)}, 0.5, 1.0),
    "rotate_any": ("rotate by any angle", {"degrees": ("either way", 0, 180)}, 1.0, 1.0),
    "shear": ("shear along x", {"degrees": ("either way", 0, 60)}, 0.3, 1.0),
    "perspective": (
        "seen from the side",
        {"distortion_scale": ("a corner moves by at most half of it times the edge", 0, 1)},
        0.3,
        1.0,
    ),
}
MOTIONS: dict[str, Motion] = {
    "affine": affine,
    "rotate": rotate,
    "rotate_any": rotate_any,
    "shear": shear,
    "perspective": perspective,
}


def cover(image: Pixels, quad: Quad) -> Pixels:
    """The image warped to `quad` in a frame of its own size; what that leaves uncovered is its background or, where it
    has none, its mirror image."""
    return _warp(image, quad, image.shape[0], image.shape[1], background(image))


def background(image: Pixels) -> Colour | None:
    """The colour of the border: the median of the outermost pixels, None where fewer than 60% of them are near it."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).T.copy()
    count = border.shape[1]
    ordered = np.sort(border, axis=1, kind="stable")  # of bytes that is a count, a tenth of np.median's time
    red, green, blue = ((a + b) / 2 for a, b in ordered[:, [(count - 1) // 2, count // 2]].tolist())
    least = [[max(0, math.ceil(value - _NEAR))] for value in (red, green, blue)]
    most = [[min(255, math.floor(value + _NEAR))] for value in (red, green, blue)]
    near = ((border >= np.array(least, np.uint8)) & (border <= np.array(most, np.uint8))).all(axis=0)
    return (red, green, blue) if np.count_nonzero(near) / count >= _MOSTLY else None


def fill(image: Pixels, pad: Pad) -> Colour:
    """The colour around a letterboxed image: grey, or its `background` where it has one."""
    return (background(image) if pad == "background" else None) or (PAD, PAD, PAD)


def keep(
    image: Pixels,
    quad: Quad,
    size: int,
    area: float,
    rng: np.random.Generator,
    colour: Colour = (PAD, PAD, PAD),
) -> Placed:
    """The whole image in the shape of `quad`, at a random position in a square of one colour.

    `area` is the share (0 to 1) of the square that the smallest square around the quad has.
    """
    low, extent = quad.min(axis=0), np.ptp(quad, axis=0)
    scale = size * math.sqrt(area) / float(extent.max())
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    middle = rng.uniform(-0.5, 0.5, 2) * np.maximum(size - extent * scale, 0)
    target = (quad - low - extent / 2) * scale + middle
    small = resize(image, height, width)
    placed = _warp(small, target, size, size, colour)
    shown = _warp(np.full(small.shape[:2], 255, dtype=np.uint8), target, size, size, (0, 0, 0))
    return Placed(placed, shown < 128)


def affine_by(image: Pixels, matrix: NDArray[np.float64], fill: int) -> Pixels:
    """`matrix` float64 `[2, 3]` takes a point (x, y, 1) of the result to its source, as PIL's Image.transform does.

    Points are counted from the corner of the first pixel; `fill` is the grey outside.
    """
    height, width = image.shape[:2]
    inward = matrix.copy()
    inward[:, 2] += 0.5 * inward[:, :2].sum(axis=1) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, inward, (width, height), None, flags, cv2.BORDER_CONSTANT, (fill, fill, fill))


def reduced(image: Pixels, side: int) -> Pixels:
    """The image shrunk by the largest whole factor that leaves its long side at least `side` pixels; that is fast.

    What fills no whole pixel is cut off evenly, at most half a pixel of the result on each side.
    """
    height, width = image.shape[:2]
    factor = min(max(height, width) // side, height, width)
    return shrink_blocks(image, factor, factor)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_box(height: int, width: int, rng: np.random.Generator, min_scale: float) -> Box:
    """A random box of at least `min_scale` of an image, as torchvision's RandomResizedCrop draws it."""
    for _ in range(_TRIES):
        area = rng.uniform(min_scale, 1) * height * width
        shape = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        rows, columns = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < rows <= height and 0 < columns <= width:
            break
    else:
        rows, columns = min(height, round(width / _RATIO[0])), min(width, round(height * _RATIO[1]))
    return _anywhere(height, width, rng, rows, columns)


def random_crop(image: Pixels, rng: np.random.Generator, size: int, min_scale: float) -> Pixels:
    """A random crop of at least `min_scale` of the image as `[size, size, 3]` (see `crop_box`)."""
    return _crop(image, crop_box(image.shape[0], image.shape[1], rng, min_scale), size)


def random_square(image: Pixels, rng: np.random.Generator, size: int) -> Pixels:
    """The largest square at a random position along the long side, as `[size, size, 3]`."""
    side = min(image.shape[:2])
    return _crop(image, _anywhere(image.shape[0], image.shape[1], rng, side, side), size)


def random_letterbox(
    image: Pixels, rng: np.random.Generator, size: int, area: float, colour: Colour = (PAD, PAD, PAD)
) -> Placed:
    """The whole image, its long side `sqrt(area)` of the square's, at a random position in a square of one colour."""
    small = shrink_to_fit(image, max(1, round(size * math.sqrt(area))))
    top, left = rng.integers(size - small.shape[0] + 1), rng.integers(size - small.shape[1] + 1)
    padding = np.ones((size, size), dtype=np.bool_)
    padding[top : top + small.shape[0], left : left + small.shape[1]] = False
    return Placed(paste(small, size, top, left, colour), padding)


def _anywhere(height: int, width: int, rng: np.random.Generator, rows: int, columns: int) -> Box:
    down, right = rng.random(2).tolist()  # a tenth of the time of two calls of integers
    return Box(int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns)


def _crop(image: Pixels, box: Box, size: int) -> Pixels:
    window = image[box.top : box.top + box.height, box.left : box.left + box.width]
    return resample(window, size, size)


def _warp(image: Pixels, quad: Quad, height: int, width: int, fill: Colour | None) -> Pixels:
    """The image with its corners at `quad`, from the middle of `height` x `width`; fill None mirrors."""
    from_middle = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    to_middle = np.array([[1, 0, (1 - image.shape[1]) / 2], [0, 1, (1 - image.shape[0]) / 2], [0, 0, 1]])
    matrix = from_middle @ _homography(quad, image.shape[0], image.shape[1]) @ to_middle
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    colour = fill or (0, 0, 0)
    if all(abs(value - expected) <= 1e-9 for value, expected in zip(matrix[2].tolist(), (0, 0, 1), strict=True)):
        return cv2.warpAffine(image, matrix[:2], (width, height), None, cv2.INTER_LINEAR, border, colour)
    return cv2.warpPerspective(image, matrix, (width, height), None, cv2.INTER_LINEAR, border, colour)


def _homography(quad: Quad, height: int, width: int) -> NDArray[np.float64]:
    """What takes the corners of a `height` x `width` image to `quad`: float64 `[3, 3]`, exactly affine where it is."""
    across, down = (quad[1] - quad[0]) / width, (quad[3] - quad[0]) / height
    if max(map(abs, (quad[0] + quad[2] - (quad[1] + quad[3])).tolist())) <= 1e-6:
        return np.array([[across[0], down[0], quad[:, 0].mean()], [across[1], down[1], quad[:, 1].mean()], [0, 0, 1]])
    return cv2.getPerspectiveTransform(corners(height, width).astype(np.float32), quad.astype(np.float32))
