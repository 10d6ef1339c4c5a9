"""Thumbnails of image files, as pages hold them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from config.errors import TandemError
from data.decode.image import decode
from data.pixels import data_uri

WORST = 12  # mistakes that a page shows
_PIXELS = 112


def thumbnail(path: Path) -> str:
    """A JPEG of at most 112 pixels as a data URI; "" where the file can no longer be read."""
    try:
        return data_uri(small(decode(path)))
    except TandemError:
        return ""


def with_thumbnails(rows: Sequence[dict[str, Any]], path_of: dict[str, Path]) -> list[dict[str, Any]]:
    """Those of the rows whose `id` has an image file, each with its `picture`."""
    return [{**row, "picture": thumbnail(path_of[row["id"]])} for row in rows if row["id"] in path_of]


def small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 `[h, w, 3]` whose longer side has 112 pixels."""
    scale = _PIXELS / max(image.shape[:2])
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    resized: NDArray[np.uint8] = cv2.resize(
        image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    )
    return resized
