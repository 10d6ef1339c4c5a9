"""Decoded images, kept in memory where the whole set is small. Batches are `data.loader`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import cv2

from data.decode import PIXEL_LIMIT, Pixels, decode

CACHE_BYTES = 512 * 2**20


class Images:
    """`images(path)` is the decoded file, uint8 `[H, W, 3]`, read-only. Safe to share between threads and loaders.

    Decoded pixels are kept until they exceed `cache_bytes` in all; then the set is taken for a large one, the memory
    is given back and every call decodes. `cache_bytes=0` suits a single pass. Files in `turns` are turned by that code
    of OpenCV's. Raises `DataError` as `decode` does.
    """

    def __init__(
        self, cache_bytes: int = CACHE_BYTES, pixel_limit: int = PIXEL_LIMIT, turns: Mapping[Path, int] | None = None
    ):
        self._cache: dict[Path, Pixels] = {}
        self._room = cache_bytes
        self._pixel_limit = pixel_limit
        self._turns = turns or {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Pixels:
        """The pixels of one file, from memory where they are kept."""
        image = self._cache.get(path)
        if image is None:
            image = decode(path, self._pixel_limit)
            if path in self._turns:
                image = cv2.rotate(image, self._turns[path])
            image.flags.writeable = False
            self._keep(path, image)
        return image

    def _keep(self, path: Path, image: Pixels) -> None:
        with self._lock:
            if self._room <= 0 or path in self._cache:
                return
            self._room -= image.nbytes
            self._cache[path] = image
            if self._room < 0:
                self._cache.clear()
