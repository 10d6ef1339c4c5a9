"""Predicts uncertain images again, deskewed and with restored contrast, and averages both predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from data.augment.restore import restored
from data.decode.image import whole
from data.pixels import Pixels
from infer.io.inputs import Inputs, Pictured, Source
from infer.prepare import opened

_AT_ONCE = 64  # restored images in memory


def retry_deskewed(
    predict: Callable[[Inputs], NDArray[np.float32]],
    images: Sequence[Source],
    probabilities: NDArray[np.float32],
    below: float,
    partial: bool = False,
) -> tuple[NDArray[np.float32], int]:
    """The probabilities float32 `[N, C]` of `images` with unsure images predicted again, and how many these are.

    An image is unsure where its likeliest class has less than `below`; its new prediction is the mean of those of the
    image and of its `data.augment.restore.restored` form, so that a harmful restoration does not decide alone.
    With `partial`, what remains of truncated files is taken.
    """
    unsure = np.flatnonzero(probabilities.max(axis=1) < below)
    updated = probabilities.copy()
    for start in range(0, len(unsure), _AT_ONCE):
        rows = unsure[start : start + _AT_ONCE]
        taken = [_restored(images[row], partial) for row in rows.tolist()]
        again = predict(Inputs([str(row) for row in rows], taken.__getitem__))
        updated[rows] = (updated[rows] + again) / 2
    return updated, len(unsure)


def _restored(source: Source, partial: bool) -> Pictured:
    image = opened(source, (lambda _text: None) if partial else None)

    @functools.cache
    def pixels(to_srgb: bool) -> Pixels:
        return restored(image(whole, to_srgb))

    return lambda _shrink, to_srgb: pixels(to_srgb)
