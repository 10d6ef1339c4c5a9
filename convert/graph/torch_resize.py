"""Computes the forms that several networks want from one image, inside a graph: smaller ones, or crops of it.

Each form is resized as its card says, with Pillow's filters or by means of areas as in `data.resize`, but from the
pixels of the one image, not of the file: near, not equal. Pixels are not rounded to levels of 255: that would turn a
small error of a sum into a whole level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.card import Interpolation, Preprocessing


class Resized:
    """Float NCHW pixels of the `full` image in [0, 255] to each of `forms`.

    No form may show more of the image than `full`, nor be sharper, but for rounding.
    """

    def __init__(self, full: Preprocessing, forms: Sequence[Preprocessing]):
        self._full, self._forms = full, tuple(forms)

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        """All forms of `[N, 3, S, S]`, in their order."""
        return [self._resize(pixels, form) for form in self._forms]

    def _resize(self, pixels: Tensor, form: Preprocessing) -> Tensor:
        size, cropped = self._full.size, _cropped(self._full, form)
        filtered = form.resampling == "pillow" and (size, *cropped) != (form.size, 0.0, float(size))
        taps = (
            _filter_taps(size, form.size, *cropped, form.interpolation)
            if filtered
            else _taps(size, form.size, *cropped)
        )
        for dim in (3, 2):
            shape = [-1, 1] if dim == 2 else [-1]
            terms = [
                pixels.index_select(dim, torch.tensor(indices))
                * torch.tensor(weights, dtype=pixels.dtype).reshape(shape)
                for indices, weights in taps
            ]
            pixels = sum(terms[1:], terms[0])
        return pixels


def _cropped(full: Preprocessing, form: Preprocessing) -> tuple[float, float]:
    """Where the crop of `form` begins, and how long its side is, in pixels of `full`.

    Both crop at whole pixels (see `data.resize.crop`): this is exact for the short side of the file's image, and at
    most half a pixel beside it for the long one.
    """
    if form.fit != "crop":
        return 0.0, float(full.size)
    shorter, side = (math.floor(prep.size / prep.crop_pct) for prep in (form, full))
    unit = side / shorter
    start = round((shorter - form.size) / 2) * unit - round((side - full.size) / 2)
    length = min(form.size * unit, float(full.size))
    return min(max(start, 0.0), full.size - length), length


def _taps(size: int, wanted: int, start: float, length: float) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Indices and weights `[wanted]` each, whose sum of products is the mean of each of `wanted` equal sections of the
    `length` pixels from `start` on, of `size` pixels."""
    edges = start + length / wanted * np.arange(wanted + 1)
    first = np.floor(edges[:-1]).astype(np.int64)
    taps = []
    for step in range(math.ceil(length / wanted) + 1):
        position = first + step
        covered = np.minimum(edges[1:], position + 1) - np.maximum(edges[:-1], position)
        taps.append((np.minimum(position, size - 1), np.maximum(covered, 0) * wanted / length))
    return taps


def _filter_taps(
    size: int, wanted: int, start: float, length: float, interpolation: Interpolation
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Indices and weights as in `_taps`, of Pillow's resize of the `length` pixels from `start` on: its filter,
    widened by the factor that it shrinks by, and cut off at the border of the `size` pixels."""
    scale = length / wanted
    wider, (radius, weight) = max(scale, 1.0), _FILTERS[interpolation]
    centre = start + (np.arange(wanted) + 0.5) * scale
    first = np.maximum(np.floor(centre - radius * wider + 0.5), 0).astype(np.int64)
    last = np.minimum(np.floor(centre + radius * wider + 0.5), size).astype(np.int64)
    places = first + np.arange((last - first).max())[:, None]
    weights = np.where(places < last, weight(np.abs(places - centre + 0.5) / wider), 0.0)
    return list(zip(np.minimum(places, size - 1), weights / weights.sum(axis=0), strict=True))


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5."""
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0))


# How far each filter reaches, in pixels that it does not shrink, and its weight at a distance.
_FILTERS = {"bilinear": (1.0, lambda x: np.maximum(1 - x, 0)), "bicubic": (2.0, _cubic)}
