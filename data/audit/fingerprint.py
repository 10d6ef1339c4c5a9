"""Fingerprints of pictures: a 64-bit DCT hash to search copies by, and a small grey picture to verify them.

How the pairs are found among many is `data.audit.duplicates`.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from data.pixels import Pixels
from data.resize import shrink_blocks

SIDE = 64  # of the small grey picture
_DCT, _KEPT = 32, 8
_BITS = (np.uint64(1) << np.arange(64, dtype=np.uint64)).reshape(_KEPT, _KEPT)
_ODD = np.where(np.arange(_KEPT) % 2, -1.0, 1.0).astype(np.float32)


class Turn(NamedTuple):
    """One of the eight ways to lay a picture: transposed first, then mirrored left to right, then top to bottom."""

    transpose: bool
    across: bool
    down: bool

    @property
    def name(self) -> str:
        """For people: what was done to the other picture."""
        return _NAMES[self]


_NAMES = {
    Turn(False, False, False): "as it is",
    Turn(False, True, False): "mirrored left to right",
    Turn(False, False, True): "mirrored top to bottom",
    Turn(False, True, True): "turned by 180 degrees",
    Turn(True, False, False): "mirrored along the diagonal",
    Turn(True, True, False): "turned by 90 degrees clockwise",
    Turn(True, False, True): "turned by 90 degrees counter-clockwise",
    Turn(True, True, True): "mirrored along the other diagonal",
}
TURNS: tuple[Turn, ...] = tuple(_NAMES)
# Where a copy may have been cropped by 5%: the shares of that cut at the top and the left.
CROPS = ((0.5, 0.5), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
_CUT = 0.05


def small(image: Pixels) -> Pixels:
    """The picture in grey, squashed to uint8 `[SIDE, SIDE]` by means of areas."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    factor = min(grey.shape) // (2 * SIDE)  # what whole factors cut off is less than half a pixel of the result
    return cv2.resize(shrink_blocks(grey, factor, factor), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def hashes(picture: Pixels) -> NDArray[np.uint64]:
    """The 64-bit perceptual hash of `small` laid in each of `TURNS`: uint64 `[8]`.

    A bit is whether one of the 8 x 8 lowest frequencies of the 32 x 32 discrete cosine transform (DCT-II) is above
    their median without the mean brightness, as pHash and imagehash have it. A mirrored picture changes the sign of the
    odd frequencies and a transposed one exchanges their axes, so one transform gives all eight.
    """
    low = _lowest(picture)
    return np.array([_bits(_oriented(low, turn)) for turn in TURNS], dtype=np.uint64)


def laid(picture: Pixels, turn: Turn) -> Pixels:
    """`picture` `[S, S]` laid in another way."""
    picture = picture.T if turn.transpose else picture
    return picture[:: -1 if turn.down else 1, :: -1 if turn.across else 1]


def cropped(picture: Pixels, crop: tuple[float, float]) -> Pixels:
    """`picture` `[S, S]` without 5% of its height and width, `crop` of `CROPS`, enlarged to `[S, S]` again."""
    scale = 1 - _CUT
    down, right = (scale / 2 - 0.5 + SIDE * _CUT * share for share in crop)  # of the first pixel's centre
    motion = np.array([[scale, 0, right], [0, scale, down]], dtype=np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture, motion, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=np.uint8)


def crop_hashes(picture: Pixels) -> NDArray[np.uint64]:
    """The hash of `picture` cropped in each of `CROPS`: uint64 `[5]`."""
    return np.array([_bits(_lowest(cropped(picture, crop))) for crop in CROPS], dtype=np.uint64)


def _lowest(picture: Pixels) -> NDArray[np.float32]:
    """The 8 x 8 lowest frequencies, without the mean brightness."""
    reduced = cv2.resize(picture, (_DCT, _DCT), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(reduced)[:_KEPT, :_KEPT], dtype=np.float32)
    low[0, 0] = 0
    return low


def _oriented(low: NDArray[np.float32], turn: Turn) -> NDArray[np.float32]:
    low = low.T if turn.transpose else low
    low = low * _ODD[None] if turn.across else low
    return low * _ODD[:, None] if turn.down else low


def _bits(low: NDArray[np.float32]) -> np.uint64:
    above = low > np.median(low.ravel()[1:])
    above[0, 0] = False
    return np.uint64(_BITS[above].sum(dtype=np.uint64))
