"""Decoded images, cached in memory where the set is small. The cache on disk is `data.cache.disk`."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2

from config.errors import DataError
from config.sections.data import Data
from data.cache.store import Record
from data.decode.image import PIXEL_LIMIT, Shrink, decode, whole
from data.pixels import Pixels
from data.sources import packed

CACHE_BYTES = 512 * 2**20
_SAMPLE = 16  # images that tell how large those of a data set are
# From a file to its pixels, where `shrink` allows smaller ones, as `Images` and `data.cache` give them.
Source = Callable[[Path, Shrink], Pixels]


class Shared(Protocol):
    """A source that worker processes can read from: what they need is pickled once, and each image has an address."""

    def __call__(self, path: Path, shrink: Shrink) -> Pixels:
        """The pixels of a file, in this process."""
        ...

    def reader(self, workers: int) -> Callable[..., Pixels]:
        """What gives the pixels of an address in one of so many processes; it can be pickled."""
        ...

    def address(self, path: Path) -> packed.Address | Record:
        """Where the reader finds a file's pixels: by its path, or in a store."""
        ...


class Picture:
    """One encoded image, decoded once for each scale that is asked for; `turn` is a code of OpenCV's rotate.

    `picture(shrink, to_srgb)` is uint8 `[H, W, 3]`, read-only; see `decode` for `shrink`, `to_srgb` and `truncated`,
    and for what is raised.
    """

    def __init__(
        self,
        source: Path | bytes,
        pixel_limit: int = PIXEL_LIMIT,
        turn: int | None = None,
        truncated: Callable[[str], None] | None = None,
    ):
        self._source, self._pixel_limit, self._turn, self._truncated = source, pixel_limit, turn, truncated
        self._shape: tuple[int, int] | None = None  # of a JPEG, the only kind that can be decoded smaller
        self._decoded: dict[tuple[int, bool], Pixels] = {}

    def __call__(self, shrink: Shrink = whole, to_srgb: bool = False) -> Pixels:
        """The pixels in the size that `shrink` wants."""
        factor = 1
        if self._decoded:
            factor = shrink(*self._shape) if self._shape else 1
            image = self._decoded.get((factor, to_srgb))
            if image is not None:
                return image
            factor = 1

        def asked(height: int, width: int) -> int:
            nonlocal factor
            sideways = self._turn in (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_90_COUNTERCLOCKWISE)
            self._shape = (width, height) if sideways else (height, width)
            factor = shrink(*self._shape)
            return factor

        image = decode(self._source, self._pixel_limit, asked, to_srgb, self._truncated)
        if self._turn is not None:
            image = cv2.rotate(image, self._turn)
        image.flags.writeable = False
        return self._decoded.setdefault((factor, to_srgb), image)

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels that are kept."""
        return sum(image.nbytes for image in list(self._decoded.values()))  # a thread may add one


class Images:
    """`images(path, shrink)` is the decoded file, uint8 `[H, W, 3]`, read-only. Safe to share between threads and
    loaders.

    Decoded pixels are cached until they exceed `cache_bytes` in all; then the cache is cleared for good, and every call
    decodes. `cache_bytes=0` suits a single pass. `turns` maps a file to OpenCV's rotate code for it. `shrink`,
    `to_srgb` and errors are as in `decode`. With `partial`, what remains of a truncated file is decoded, and
    `truncated` has a line about it, by its path.
    """

    def __init__(
        self,
        cache_bytes: int = CACHE_BYTES,
        pixel_limit: int = PIXEL_LIMIT,
        turns: Mapping[Path, int] | None = None,
        to_srgb: bool = False,
        partial: bool = False,
    ):
        self._pictures: dict[Path, Picture] = {}
        self._cache_bytes = self._room = cache_bytes
        self.pixel_limit = pixel_limit
        self.turns = turns or {}
        self.to_srgb, self.partial = to_srgb, partial
        self.truncated: dict[Path, str] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, data: Data, turns: Mapping[Path, int] | None = None, cache_bytes: int = CACHE_BYTES) -> Images:
        """Files decoded as the settings say."""
        return cls(cache_bytes, data.pixel_limit, turns, data.icc_to_srgb, data.on_bad_image == "partial")

    def reader(self, workers: int) -> Callable[..., Pixels]:
        """The same by address, for one of so many processes."""
        return self.share(workers).at

    def share(self, workers: int) -> Images:
        """The same for one of so many processes, which keep as much between them as this one would."""
        return Images(self._cache_bytes // workers, self.pixel_limit, self.turns, self.to_srgb, self.partial)

    def address(self, path: Path) -> packed.Address:
        """The path."""
        return packed.address(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Images, (self._cache_bytes, self.pixel_limit, dict(self.turns), self.to_srgb, self.partial)

    def __call__(self, path: Path, shrink: Shrink = whole) -> Pixels:
        """The pixels of one file, from memory where they are cached."""
        picture = self._pictures.get(path)
        if picture is None:
            truncated = (lambda text: self.truncated.__setitem__(path, text)) if self.partial else None
            picture = Picture(path, self.pixel_limit, self.turns.get(path), truncated)
        before = picture.nbytes
        image = picture(shrink, self.to_srgb)
        more = picture.nbytes - before
        if self._room > 0 and more > 0:
            with self._lock:
                if self._room > 0 and self._pictures.setdefault(path, picture) is picture:
                    self._room -= more
                if self._room < 0:
                    self._pictures.clear()
        return image

    def at(self, address: packed.Address, shrink: Shrink = whole) -> Pixels:
        """The pixels of the file at an address."""
        return self(packed.of_address(address), shrink)


def median_side(images: Callable[[Path], Pixels], paths: Sequence[Path]) -> int:
    """The median shorter side, in pixels, of a few images that are spread over `paths`; 0 where none can be read."""
    sides = []
    for path in paths[:: max(len(paths) // _SAMPLE, 1)][:_SAMPLE]:
        try:
            sides.append(min(images(path).shape[:2]))
        except DataError:
            continue
    return int(statistics.median(sides)) if sides else 0
