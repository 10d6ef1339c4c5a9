"""The TTA views of `ensemble.views` as torch functions of pixels `[N, 3, S, S]`, so that they can stand inside a graph.

Warps and crops use cv2's fixed-point arithmetic: positions and fractions are constants of the graph, since sizes are
fixed, and all sums are exact in fp32. So a graph gives exactly the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ensemble import views

_SHIFT = 16  # as in ensemble.views: a shift moves the image by 1/16 of its size


def apply(name: str, pixels: Tensor) -> Tensor:
    """One view; the same shape and values as `ensemble.views.apply` of the same image."""
    return VIEWS[name](pixels)


def _flip(*dims: int) -> Callable[[Tensor], Tensor]:
    return lambda pixels: torch.flip(pixels, dims)


def _turned(pixels: Tensor) -> Tensor:
    """A quarter turn counter-clockwise, from operations that every format has."""
    return torch.flip(pixels, (3,)).transpose(2, 3)


def _turned_back(pixels: Tensor) -> Tensor:
    return torch.flip(pixels.transpose(2, 3), (3,))


def _shift(dim: int, sign: int) -> Callable[[Tensor], Tensor]:
    def moved(pixels: Tensor) -> Tensor:
        size = pixels.shape[dim]
        places = torch.arange(size) - sign * max(1, round(size / _SHIFT))
        return pixels.index_select(dim, places.clamp(0, size - 1))

    return moved


def _warp(degrees: float, scale: float) -> Callable[[Tensor], Tensor]:
    """Each pixel from the four around its position, which the table of `ensemble.views` gives in 32nds of a pixel."""

    def warped(pixels: Tensor) -> Tensor:
        size = pixels.shape[-1]
        places, fractions = views.warp_map(size, degrees, scale)
        x, y = places[..., 0].astype(np.int64), places[..., 1].astype(np.int64)
        right, below = (_constant(steps / 32, pixels) for steps in (fractions & 31, fractions >> 5))
        flat = pixels.flatten(2)

        def taken(down: int, across: int) -> Tensor:
            index = _mirrored(y + down, size) * size + _mirrored(x + across, size)
            return flat.index_select(2, torch.tensor(index.reshape(-1)))

        above = _between(taken(0, 0), taken(0, 1), right)
        under = _between(taken(1, 0), taken(1, 1), right)
        return _rounded(_between(above, under, below)).reshape(pixels.shape)

    return warped


def _crop(down: float, across: float) -> Callable[[Tensor], Tensor]:
    """A crop enlarged as `cv2.INTER_LINEAR_EXACT` does: first along the rows, then along the columns."""

    def cropped(pixels: Tensor) -> Tensor:
        size = pixels.shape[-1]
        side, top, left = views.crop_box(size, down, across)
        for dim, start in ((3, left), (2, top)):
            # For each of `size` pixels the one of `side` on its left, and how many 256ths of a pixel it is right of it.
            position = side / size * (np.arange(size) + 0.5) - 0.5
            near = np.floor(position).astype(np.int64)
            fraction = np.rint((position - near) * 256)
            shape = [-1, 1] if dim == 2 else [-1]
            first, second = (
                pixels.index_select(dim, torch.tensor(start + np.clip(places, 0, side - 1)))
                for places in (near, near + 1)
            )
            pixels = _between(first, second, _constant(fraction / 256, pixels).reshape(shape))
        return _rounded(pixels)

    return cropped


def _mirrored(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Positions outside [0, size) reflected at the border pixels, as `cv2.BORDER_REFLECT_101`."""
    period = 2 * (size - 1)
    inside = np.abs(places) % period
    return np.where(inside < size, inside, period - inside)


def _between(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
    return first + (second - first) * fraction


def _constant(values: NDArray[np.float64], like: Tensor) -> Tensor:
    """One-dimensional, which no compression of weights touches."""
    return torch.tensor(values.reshape(-1), dtype=like.dtype)


def _rounded(pixels: Tensor) -> Tensor:
    """The nearest whole levels, halves up."""
    return torch.floor(pixels + 0.5)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "original": lambda pixels: pixels,
    "hflip": _flip(3),
    "vflip": _flip(2),
    "hvflip": _flip(2, 3),
    "rot90": _turned,
    "rot180": _flip(2, 3),
    "rot270": _turned_back,
    "hflip_rot90": lambda pixels: _turned(torch.flip(pixels, (3,))),
    "hflip_rot270": lambda pixels: _turned_back(torch.flip(pixels, (3,))),
    "shift_left": _shift(3, -1),
    "shift_right": _shift(3, 1),
    "shift_up": _shift(2, -1),
    "shift_down": _shift(2, 1),
    **{name: _warp(*how) for name, how in views.WARPS.items()},
    **{name: _crop(*where) for name, where in views.CROPS.items()},
}
