"""How an image of any size becomes the square of a model: the deterministic ways. Random ones are `data.augment`."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image

from data.pixels import Pixels
from models.card import Interpolation, Resampling

# The grey that fills what an image does not cover.
PAD = 128
Colour = tuple[float, float, float]
_LINEAR = cv2.INTER_LINEAR_EXACT  # the same result on every CPU, and no crash on arm64 macOS (opencv#29794)
_ENLARGE = {"bilinear": _LINEAR, "bicubic": cv2.INTER_CUBIC}
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize(
    image: Pixels,
    height: int,
    width: int,
    interpolation: Interpolation = "bilinear",
    resampling: Resampling = "area",
) -> Pixels:
    """uint8 `[H, W, 3]` to `[height, width, 3]`, as `Preprocessing` says.

    `pillow` is Pillow's own resize, which widens the filter of `interpolation` by the factor it shrinks by. `area`
    shrinks by means of areas and takes half the time. Of what cv2 has, areas come nearest to Pillow's filters: on 66
    photographs at 224 pixels the mean difference is 0.8 of 255 levels from its bilinear and 1.1 from its bicubic one;
    interpolating has 1.7 and 2.2.
    """
    if resampling == "pillow":
        return np.array(Image.fromarray(image).resize((width, height), _PILLOW[interpolation]))
    image = shrink_blocks(image, image.shape[0] // (4 * height), image.shape[1] // (4 * width))
    rows, columns = min(image.shape[0], height), min(image.shape[1], width)
    if image.shape[:2] != (rows, columns):
        image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    if (rows, columns) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=_ENLARGE[interpolation])
    return image


def resample(image: Pixels, height: int, width: int) -> Pixels:
    """uint8 `[H, W, 3]` to `[height, width, 3]`, twice as fast as `resize` and less smooth: for training.

    Means of whole blocks of pixels, as large as leave enough of them, and bilinear between these.
    """
    image = shrink_blocks(image, image.shape[0] // height, image.shape[1] // width)
    if image.shape[:2] == (height, width):
        return image
    # The same bits in five sixths of the time, conversions included: OpenCV's loop over four channels is vectorised.
    four = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), (width, height), interpolation=_LINEAR)
    return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)


def crop(
    image: Pixels,
    size: int,
    crop_pct: float = 1.0,
    interpolation: Interpolation = "bilinear",
    resampling: Resampling = "area",
) -> Pixels:
    """The short side to `floor(size / crop_pct)`, as timm's transforms do, then the centre `[size, size, 3]`.

    Sides and offsets are rounded as torchvision's Resize and CenterCrop round them.
    """
    image = resize(image, *cropped_from(image.shape[0], image.shape[1], size, crop_pct), interpolation, resampling)
    top, left = round((image.shape[0] - size) / 2), round((image.shape[1] - size) / 2)
    return image[top : top + size, left : left + size]


def cropped_from(height: int, width: int, size: int, crop_pct: float) -> tuple[int, int]:
    """The sides to which `crop` resizes an image of `height` x `width` before it cuts the centre out."""
    short = math.floor(size / crop_pct)
    return (short, int(short * width / height)) if height <= width else (int(short * height / width), short)


def squash(
    image: Pixels, size: int, interpolation: Interpolation = "bilinear", resampling: Resampling = "area"
) -> Pixels:
    """`[size, size, 3]` whatever the aspect ratio was."""
    return resize(image, size, size, interpolation, resampling)


def letterbox(
    image: Pixels,
    size: int,
    interpolation: Interpolation = "bilinear",
    colour: Colour = (PAD, PAD, PAD),
    resampling: Resampling = "area",
) -> Pixels:
    """The whole image, its aspect ratio kept, in the middle of a `[size, size, 3]` of one colour."""
    small = shrink_to_fit(image, size, interpolation, resampling)
    return paste(small, size, (size - small.shape[0]) // 2, (size - small.shape[1]) // 2, colour)


def shrink_to_fit(
    image: Pixels, side: int, interpolation: Interpolation = "bilinear", resampling: Resampling = "area"
) -> Pixels:
    """The image scaled so that its long side is `side` pixels; the short one is at least 1."""
    return resize(image, *fitted(image.shape[0], image.shape[1], side), interpolation, resampling)


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """The sides that an image of `height` x `width` has when its long one is `side`."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def paste(image: Pixels, size: int, top: int, left: int, colour: Colour) -> Pixels:
    """A `[size, size, 3]` of one colour with `image` at (top, left)."""
    canvas = np.full((size, size, 3), np.rint(colour), dtype=np.uint8)
    canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def shrink_blocks(image: Pixels, down: int, across: int) -> Pixels:
    """Means of `down` x `across` blocks of uint8 `[H, W]` or `[H, W, 3]`: three times faster on large photographs.

    What fills no block is cut off evenly: less than half a block on each side.
    """
    down, across = max(down, 1), max(across, 1)
    if down == across == 1:
        return image
    rows, columns = image.shape[0] // down, image.shape[1] // across
    top, left = image.shape[0] % down // 2, image.shape[1] % across // 2
    window = image[top : top + rows * down, left : left + columns * across]
    return cv2.resize(window, (columns, rows), interpolation=cv2.INTER_AREA)
