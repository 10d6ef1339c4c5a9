"""Test-time-augmentation views: functions on whole batches of uint8 images `[N, S, S, 3]`, and presets of them.

Views take images that are already decoded and resized, so that they cost no decoding; crops are enlarged to the
model's size again. `merge` merges the predictions of the views. Flips and turns are those of ttach's `HorizontalFlip`,
`VerticalFlip` and `Rotate90`, crops its `crop_lt` and the like, zooms its `scale`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError

Images = NDArray[np.uint8]
View = Callable[[Images], Images]

_SHIFT = 16  # a shift moves the image by 1/16 of its size
_CROP = 7 / 8  # what a crop keeps of each side, as torchvision's and timm's usual 224 of 256
_UNIT = 1024  # cv2 adds coordinates up in 1024ths of a pixel, and rounds the sum to 32nds

# Degrees and scale of the warps; how far down and across the image each crop lies.
WARPS = {
    "rotate+10": (10.0, 1.0),
    "rotate-10": (-10.0, 1.0),
    "zoom_0.8": (0.0, 0.8),
    "zoom_1.1": (0.0, 1.1),
    "zoom_1.25": (0.0, 1.25),
}
CROPS = {
    "crop_center": (0.5, 0.5),
    "crop_lt": (0.0, 0.0),
    "crop_rt": (0.0, 1.0),
    "crop_lb": (1.0, 0.0),
    "crop_rb": (1.0, 1.0),
}


def _warp(images: Images, degrees: float, scale: float) -> Images:
    """Rotate counter-clockwise and enlarge about the centre, bilinear, mirrored at the border."""
    places, fractions = warp_map(images.shape[1], degrees, scale)
    warp = partial(cv2.remap, map1=places, map2=fractions, interpolation=cv2.INTER_LINEAR)
    moved = [warp(np.ascontiguousarray(image), borderMode=cv2.BORDER_REFLECT_101) for image in images]
    return np.stack([np.asarray(image, dtype=np.uint8) for image in moved])


@lru_cache(maxsize=16)
def warp_map(size: int, degrees: float, scale: float) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """The source positions of the pixels of a warped image of that size: `[S, S, 2]` (x, y), and `[S, S]` 32 * fy + fx.

    fx and fy are 32nds of a pixel right of and below that position: cv2's fixed-point maps. They are the same on every
    machine, so that a graph can repeat the view, and on x86-64 they are those of `cv2.warpAffine`.
    """
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, scale)
    back = cv2.invertAffineTransform(matrix) * _UNIT
    steps = np.arange(size)
    along, down = np.rint(back[:, :1] * steps), np.rint(back[:, 1:2] * steps + back[:, 2:])
    fixed = (along[:, None, :] + down[:, :, None]).astype(np.int64) + 16 >> 5
    x, y = fixed
    return np.stack([x >> 5, y >> 5], axis=-1).astype(np.int16), ((y & 31) * 32 + (x & 31)).astype(np.uint16)


def _crop(images: Images, down: float, across: float) -> Images:
    """A crop of the image, enlarged to its size: 0 is the upper or left edge, 1 the lower or right one, 0.5 centred."""
    size = images.shape[1]
    side, top, left = crop_box(size, down, across)
    crops = images[:, top : top + side, left : left + side]
    # Bilinear, with pixel centres at half integers: torch's interpolate without align_corners.
    return np.stack([cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR_EXACT) for crop in crops])


def crop_box(size: int, down: float, across: float) -> tuple[int, int, int]:
    """The side, the first row and the first column of what a crop keeps of an image of that size."""
    side = round(size * _CROP)
    return side, int((size - side) * down), int((size - side) * across)


def _shift(images: Images, axis: int, sign: int) -> Images:
    """Move the content along an axis (1 down, 2 right), repeating the edge that is uncovered."""
    size = images.shape[axis]
    pixels = max(1, round(size / _SHIFT))
    source = np.clip(np.arange(size) - sign * pixels, 0, size - 1)
    return images.take(source, axis=axis)


VIEWS: dict[str, View] = {
    "original": lambda images: images,
    "hflip": partial(np.flip, axis=2),
    "vflip": partial(np.flip, axis=1),
    "hvflip": partial(np.flip, axis=(1, 2)),
    "rot90": partial(np.rot90, k=1, axes=(1, 2)),
    "rot180": partial(np.rot90, k=2, axes=(1, 2)),
    "rot270": partial(np.rot90, k=3, axes=(1, 2)),
    "hflip_rot90": lambda images: np.rot90(np.flip(images, 2), 1, axes=(1, 2)),
    "hflip_rot270": lambda images: np.rot90(np.flip(images, 2), 3, axes=(1, 2)),
    **{name: partial(_warp, degrees=degrees, scale=scale) for name, (degrees, scale) in WARPS.items()},
    "shift_left": partial(_shift, axis=2, sign=-1),
    "shift_right": partial(_shift, axis=2, sign=1),
    "shift_up": partial(_shift, axis=1, sign=-1),
    "shift_down": partial(_shift, axis=1, sign=1),
    **{name: partial(_crop, down=down, across=across) for name, (down, across) in CROPS.items()},
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
    names_of: dict[str, None] = {}
    for name in names:
        if name not in PRESETS and name not in VIEWS:
            near = difflib.get_close_matches(name, [*PRESETS, *VIEWS], n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            known = f"presets: {', '.join(PRESETS)}; views: {', '.join(VIEWS)}"
            raise ConfigError(f"view {name!r} is not known; {hint}{known}")
        names_of.update(dict.fromkeys(PRESETS.get(name, (name,))))
    if not names_of:
        raise ConfigError("views: the list is empty; write `original` for no test-time augmentation")
    return tuple(names_of)


def apply(name: str, images: Images) -> Images:
    """One view of uint8 `[N, S, S, 3]`: a contiguous array of the same shape and dtype."""
    return np.ascontiguousarray(VIEWS[name](images))
