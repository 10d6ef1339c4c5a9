"""The TTA views of `infer.views` as torch functions of pixels `[N, 3, S, S]`, so that they can stand inside a graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from config.errors import ConvertError

_SHIFT = 16  # as in infer.views: a shift moves the image by 1/16 of its size


def apply(name: str, pixels: Tensor) -> Tensor:
    """One view; the same shape and values as `infer.views.apply` of the same image."""
    return VIEWS[name](pixels)


def check(names: tuple[str, ...]) -> None:
    """`ConvertError` for a view that has no form inside a graph."""
    lacking = [name for name in names if name not in VIEWS]
    if lacking:
        raise ConvertError(
            f"view {lacking[0]!r} resamples the image in 8 bits, which no graph repeats exactly; "
            f"inside a file there are {', '.join(VIEWS)}"
        )


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
}
