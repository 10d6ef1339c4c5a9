"""The one check of what a predictor is given. Decoding and resizing happen before, in `data`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.card import Card


def check(images: NDArray[np.uint8], card: Card) -> None:
    """`ValueError` unless `images` is uint8 `[N, S, S, 3]` with S the card's size: a mistake of the caller."""
    size = card.preprocessing.size
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
        raise ValueError(f"images must be uint8 [N, {size}, {size}, 3], got {images.dtype} {list(images.shape)}")
