"""One look at one file: whether it can be read, what it is, and a few numbers about its pixels."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from config.errors import DataError
from data.audit import fingerprint
from data.decode.image import DAMAGED, PIXEL_LIMIT, decode, orientation
from data.pixels import Pixels

_SIDE = 256  # sharpness and tilt are measured at this long side, so that they compare across sizes
_AGAIN = 11  # pixels of the box that an image is blurred with again, as in Crete et al.
_LEAST_SIDE = 3 * _AGAIN


@dataclass(frozen=True)
class ImageStats:
    """What is known of a file. `fault` is "" where it can be read, else the reason; then the rest may be unknown.

    `width` and `height` are as the image is shown, after its EXIF orientation. `brightness` and `contrast` (standard
    deviation) are levels of grey, `saturation` is 0 to 255, `sharpness` the standard deviation of the Laplacian, `tilt`
    the angle in degrees (-45 to 45) by which the strongest edges leave the horizontal and the vertical. `blur` is the
    share of all differences between neighbours that is left when the image is blurred again, 0 for the sharpest edges
    (and for images too small to tell) to 1; `highlights` the level of grey that 5% of the pixels exceed.
    """

    sha256: str
    bytes: int
    fault: str = ""
    format: str = ""
    mode: str = ""
    frames: int = 1
    orientation: int = 1
    width: int = 0
    height: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    sharpness: float = 0.0
    tilt: float = 0.0
    blur: float = 0.0
    highlights: float = 255.0


@dataclass(frozen=True, eq=False)
class Look:
    """The facts of one file, its small grey picture uint8 `[S, S]` and the eight hashes of that, uint64 `[8]`."""

    facts: ImageStats
    picture: Pixels
    hashes: NDArray[np.uint64]


def look(path: Path, pixel_limit: int = PIXEL_LIMIT) -> Look:
    """Read, decode and measure one file; an unreadable one is a fact and no error."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _unreadable(ImageStats("", 0, f"cannot be read ({error.strerror})"))
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return _unreadable(ImageStats(digest, 0, "is empty"))
    head = _header(content)
    try:
        image = decode(content, pixel_limit)
    except DataError as error:
        reason = str(error).removeprefix(f"image of {len(content)} bytes: ").partition(";")[0]
        return _unreadable(ImageStats(digest, len(content), reason, *head))
    picture = fingerprint.small(image)
    facts = ImageStats(digest, len(content), "", *head, image.shape[1], image.shape[0], *_measured(image))
    return Look(facts, picture, fingerprint.hashes(picture))


def _unreadable(facts: ImageStats) -> Look:
    return Look(
        facts,
        np.zeros((fingerprint.SIDE, fingerprint.SIDE), dtype=np.uint8),
        np.zeros(len(fingerprint.TURNS), dtype=np.uint64),
    )


def _header(content: bytes) -> tuple[str, str, int, int]:
    """Format, mode, frames and EXIF orientation, as Pillow reads them."""
    try:
        with Image.open(io.BytesIO(content)) as header:
            frames = 1 if header.format == "MPO" else int(getattr(header, "n_frames", 1))
            return header.format or "", header.mode, frames, orientation(header)
    except (*DAMAGED, Image.DecompressionBombError):
        return "", "", 1, 1


def _measured(image: Pixels) -> tuple[float, ...]:
    """Brightness, contrast, saturation, sharpness, tilt, blur and highlights."""
    factor = max(image.shape[:2]) / _SIDE
    if factor > 1:
        height, width = (max(1, round(side / factor)) for side in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(grey)
    saturation = (image.max(axis=2) - image.min(axis=2)).mean()
    sharpness = cv2.Laplacian(grey, cv2.CV_32F).std()
    highlights = np.searchsorted(np.bincount(grey.ravel(), minlength=256).cumsum(), 0.95 * grey.size)
    numbers = (mean[0, 0], deviation[0, 0], saturation, sharpness, _tilt(grey), _blur(grey), highlights)
    return tuple(round(float(number), 2) for number in numbers)


def _blur(grey: Pixels) -> float:
    """The no-reference blur metric of Crete et al. 2007, "The blur effect", along the axis that it is greater on.

    It is about how wide edges are, not how many there are: a drawing of few lines is as sharp as a wood.
    """
    if min(grey.shape) < _LEAST_SIDE:
        return 0.0
    shares = []
    image, inner = grey.astype(np.float32), slice(2, -2)
    for size, order in (((_AGAIN, 1), (1, 0)), ((1, _AGAIN), (0, 1))):
        once = np.abs(cv2.Sobel(image, cv2.CV_32F, *order))[inner, inner]
        twice = np.abs(cv2.Sobel(cv2.blur(image, size), cv2.CV_32F, *order))[inner, inner]
        total = float(once.sum(dtype=np.float64))
        shares.append(1 - float(np.maximum(once - twice, 0).sum(dtype=np.float64)) / total if total > 0 else 0.0)
    return max(shares)


def _tilt(grey: Pixels) -> float:
    """The mean direction of the gradients modulo 90 degrees, each weighted by its squared length."""
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    length = across**2 + down**2
    # (x + iy)^4 turns four times as fast, so that the four directions of a square's edges agree.
    turned = ((across + 1j * down) ** 4 / np.maximum(length, 1e-6)).sum()
    return float(np.degrees(np.angle(turned)) / 4) if abs(turned) > 1e-6 else 0.0
