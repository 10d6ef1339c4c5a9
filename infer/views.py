"""Test-time-augmentation views: functions on whole batches of uint8 images `[N, S, S, 3]`, and presets of them.

A view is given an image that is already decoded and resized, so that views cost no decoding; crops are enlarged to
the model's size again. How the views' answers merge is `merge`. Flips and turns are those of ttach's `HorizontalFlip`,
`VerticalFlip` and `Rotate90`, crops its `crop_lt` and the like, zooms its `scale`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError

Images = NDArray[np.uint8]
View = Callable[[Images], Images]

_SHIFT = 16  # a shift moves the image by 1/16 of its size
_CROP = 7 / 8  # what a crop keeps of each side, as torchvision's and timm's usual 224 of 256


def _flip(images: Images, axes: tuple[int, ...]) -> Images:
    return np.flip(images, axes)


def _turn(images: Images, quarters: int) -> Images:
    return np.rot90(images, quarters, axes=(1, 2))


def _warp(images: Images, degrees: float = 0.0, scale: float = 1.0) -> Images:
    """Rotate counter-clockwise and enlarge about the centre, bilinear, mirrored at the border."""
    height, width = images.shape[1:3]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    warp = partial(cv2.warpAffine, M=matrix, dsize=(width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.stack([np.asarray(warp(np.ascontiguousarray(image)), dtype=np.uint8) for image in images])


def _crop(images: Images, down: float, across: float) -> Images:
    """A part of the image, enlarged to its size: 0 is the upper or left edge, 1 the lower or right one, 0.5 centred."""
    height, width = images.shape[1:3]
    rows, columns = round(height * _CROP), round(width * _CROP)
    top, left = int((height - rows) * down), int((width - columns) * across)
    parts = images[:, top : top + rows, left : left + columns]
    # Bilinear, with pixel centres at half integers: torch's interpolate without align_corners.
    return np.stack([cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR_EXACT) for part in parts])


def _shift(images: Images, axis: int, sign: int) -> Images:
    """Move the content along an axis (1 down, 2 right), repeating the edge that is uncovered."""
    size = images.shape[axis]
    pixels = max(1, round(size / _SHIFT))
    source = np.clip(np.arange(size) - sign * pixels, 0, size - 1)
    return images.take(source, axis=axis)


VIEWS: dict[str, View] = {
    "original": lambda images: images,
    "hflip": partial(_flip, axes=(2,)),
    "vflip": partial(_flip, axes=(1,)),
    "hvflip": partial(_flip, axes=(1, 2)),
    "rot90": partial(_turn, quarters=1),
    "rot180": partial(_turn, quarters=2),
    "rot270": partial(_turn, quarters=3),
    "hflip_rot90": lambda images: _turn(_flip(images, (2,)), 1),
    "hflip_rot270": lambda images: _turn(_flip(images, (2,)), 3),
    "rotate+10": partial(_warp, degrees=10.0),
    "rotate-10": partial(_warp, degrees=-10.0),
    "zoom_0.8": partial(_warp, scale=0.8),
    "zoom_1.1": partial(_warp, scale=1.1),
    "zoom_1.25": partial(_warp, scale=1.25),
    "shift_left": partial(_shift, axis=2, sign=-1),
    "shift_right": partial(_shift, axis=2, sign=1),
    "shift_up": partial(_shift, axis=1, sign=-1),
    "shift_down": partial(_shift, axis=1, sign=1),
    "crop_center": partial(_crop, down=0.5, across=0.5),
    "crop_lt": partial(_crop, down=0.0, across=0.0),
    "crop_rt": partial(_crop, down=0.0, across=1.0),
    "crop_lb": partial(_crop, down=1.0, across=0.0),
    "crop_rb": partial(_crop, down=1.0, across=1.0),
}

PRESETS: dict[str, tuple[str, ...]] = {
    "none": ("original",),
    "flip": ("original", "hflip"),
    "flips": ("original", "hflip", "vflip", "hvflip"),
    "five": ("original", "hflip", "vflip", "hvflip", "rot90"),
    "rotate": ("original", "hflip", "rotate+10"),
    "d4": ("original", "hflip", "vflip", "rot90", "rot180", "rot270", "hflip_rot90", "hflip_rot270"),
    "five_crop": ("crop_center", "crop_lt", "crop_rt", "crop_lb", "crop_rb"),
    "multi_scale": ("original", "zoom_0.8", "zoom_1.25"),
    "shifts": ("original", "shift_left", "shift_right", "shift_up", "shift_down"),
}


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Views and presets to the views they stand for, in order, each once; `ConfigError` for an unknown name."""
    found: dict[str, None] = {}
    for name in names:
        if name not in PRESETS and name not in VIEWS:
            raise ConfigError(_unknown(name))
        found.update(dict.fromkeys(PRESETS.get(name, (name,))))
    if not found:
        raise ConfigError("views: the list is empty; write `original` for no test-time augmentation")
    return tuple(found)


def apply(name: str, images: Images) -> Images:
    """One view of uint8 `[N, S, S, 3]`: a contiguous array of the same shape and dtype."""
    return np.ascontiguousarray(VIEWS[name](images))


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, [*PRESETS, *VIEWS], n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"view {name!r} is not known; {hint}presets: {', '.join(PRESETS)}; views: {', '.join(VIEWS)}"
