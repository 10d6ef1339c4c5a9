"""The images to predict in one order, and how each is read. Decoding is done in the threads of `prepare`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from io import IOBase
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import IO, TypeGuard, cast

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from data.decode.image import Shrink, of_pillow
from data.names import of_path
from data.pixels import Pixels

# Pixels by the scale that is wanted and whether in sRGB: see `data.images.Picture`.
Pictured = Callable[[Shrink, bool], Pixels]
Source = Path | bytes | NDArray | Pictured
# An image for `Runner.predict`: a path, an encoded image, one of Pillow's, uint8 `[H, W, 3]` RGB.
Image = str | PathLike[str] | bytes | bytearray | memoryview | PIL.Image.Image | NDArray[np.uint8]
_TAKEN = "a path, encoded bytes, a PIL image or a uint8 array of shape (height, width, 3)"


@dataclass(frozen=True, eq=False)
class Inputs:
    """`ids` in their order; `read(n)` is the n-th image as a path, as encoded bytes, as uint8 `[H, W, 3]` pixels,
    or as a function that gives such.

    `ascending` says that `read` must be called one by one in order, as for archives.
    """

    ids: list[str]
    read: Callable[[int], Source]
    ascending: bool = False
    open_files: tuple[IO[bytes], ...] = field(default=(), repr=False)  # `read` needs them

    def __len__(self) -> int:
        return len(self.ids)


def of_paths(paths: Sequence[Path], ids: Sequence[str] | None = None) -> Inputs:
    """Files in their order, called by `ids` or else by their paths."""
    return Inputs(list(ids or (of_path(str(path)) for path in paths)), lambda number: paths[number])


def of_images(images: Image | Iterable[Image]) -> Inputs:
    """One image, or an iterable of images in any mixture, called by their positions; an array of four dimensions is
    an iterable, too. Raises `TypeError` for anything else."""
    if _is_image(images):
        listed = [images]
    elif isinstance(images, Iterable) and not isinstance(images, (Mapping, Set, IOBase)):
        listed = list(cast("Iterable[Image]", images))
    else:
        raise TypeError(f"predict takes {_TAKEN}, or a list or another iterable of these; not {_kind(images)}")
    for number, image in enumerate(listed):
        if not _is_image(image):
            raise TypeError(f"predict takes a list of images, each {_TAKEN}; image {number} is {_kind(image)}")
    lock = Lock()
    return Inputs([str(number) for number in range(len(listed))], lambda number: _source(listed[number], lock))


def _is_image(value: object) -> TypeGuard[Image]:
    if isinstance(value, np.ndarray):
        return value.ndim != 4 and value.dtype.kind not in "OSU"
    return isinstance(value, (str, PathLike, bytes, bytearray, memoryview, PIL.Image.Image))


def _source(image: Image, lock: Lock) -> Source:
    if isinstance(image, PIL.Image.Image):
        return _pictured(image, lock)
    if isinstance(image, (bytearray, memoryview)):
        return bytes(image)
    return Path(image) if isinstance(image, (str, PathLike)) else image


def _pictured(image: PIL.Image.Image, lock: Lock) -> Pictured:
    @functools.cache
    def pixels(to_srgb: bool) -> Pixels:
        with lock:  # a list may hold one image twice, and Pillow reads its file lazily
            return of_pillow(image, to_srgb)

    return lambda _shrink, to_srgb: pixels(to_srgb)


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
