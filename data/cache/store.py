"""The file format of the cache: many images in one file, found by keys of 16 bytes. What is stored: `data.cache.disk`.

A store is a folder: `pixels`, the images one after another, and `index`, a record for each (little-endian: key, offset
and length in `pixels`, height, width). Pixels are on the disk before their records are, so a store whose writer died is
whole up to its last record. It names no file of the data set and may be copied or shared between machines.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from config.places import atomic_write
from data.pixels import Pixels, encode_jpeg

Encoding = Literal["raw", "jpeg"]
_RECORD = np.dtype([("key", "V16"), ("offset", "<u8"), ("length", "<u8"), ("height", "<u4"), ("width", "<u4")])
_QUALITY = 95


class Record(NamedTuple):
    """Where an image lies in `pixels`, and its sides."""

    offset: int
    length: int
    height: int
    width: int


def encode(image: Pixels, encoding: Encoding) -> bytes:
    """uint8 `[H, W, 3]` as it is stored: its bytes, or a JPEG of quality 95 with all of its colours."""
    if encoding == "raw":
        return image.tobytes()
    sampling = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    return encode_jpeg(image, _QUALITY, *sampling).tobytes()


class Packed:
    """The first `length` bytes of a `pixels` file, mapped into memory: `packed(record)` is an image, uint8 `[H, W, 3]`.

    It is pickled by its name, so that other processes map the file themselves.
    """

    def __init__(self, file: Path, length: int, encoding: Encoding):
        self._arguments = file, length, encoding
        self._raw, self._pixels = encoding == "raw", np.zeros(0, np.uint8)
        if length:
            with file.open("rb") as stream:
                self._pixels = np.frombuffer(mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ), np.uint8)

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, self._arguments

    def __call__(self, record: Record) -> Pixels:
        """The image that lies there, read-only."""
        data = self._pixels[record.offset : record.offset + record.length]
        if self._raw:
            return data.reshape(record.height, record.width, 3)
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), np.uint8)


class Store:
    """An open store: `packed(find(key))` is the image of a key; safe to share between threads.

    It holds what was there when it was opened; appending is for one process at a time, which opens it anew.
    """

    def __init__(self, folder: Path, encoding: Encoding):
        self.folder, self.encoding = folder, encoding
        folder.mkdir(parents=True, exist_ok=True)
        pixels = folder / "pixels"
        there = pixels.stat().st_size if pixels.exists() else 0
        index = (folder / "index").read_bytes() if (folder / "index").exists() else b""
        rows = np.frombuffer(index, _RECORD, len(index) // _RECORD.itemsize).tolist()
        self._records = {key: Record(*row) for key, *row in rows if row[0] + row[1] <= there}
        self._end = max((record.offset + record.length for record in self._records.values()), default=0)
        self.packed = Packed(pixels, self._end, encoding)

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    def __len__(self) -> int:
        return len(self._records)

    def find(self, key: bytes) -> Record | None:
        """Where the image of a key lies."""
        return self._records.get(key)

    def append(self, images: Iterable[tuple[bytes, tuple[int, int], bytes]]) -> None:
        """Write (key, sides, the image as `encode` gives it) behind what is there; a torn end is cut off first."""
        rows, end = list[tuple[bytes, int, int, int, int]](), self._end
        index = self.folder / "index"
        if index.exists() and index.stat().st_size != len(self._records) * _RECORD.itemsize:
            # Torn records, or ones whose pixels are gone, would point at the pixels of the next images.
            records = [(key, *record) for key, record in self._records.items()]
            atomic_write(index, np.array(records, _RECORD).tobytes())
        with (self.folder / "pixels").open("ab") as file:
            file.truncate(end)
            for key, (height, width), encoded in images:
                file.write(encoded)
                rows.append((key, end, len(encoded), height, width))
                end += len(encoded)
            file.flush()
            os.fsync(file.fileno())
        with index.open("ab") as file:
            file.write(np.array(rows, _RECORD).tobytes())
            file.flush()
            os.fsync(file.fileno())
        self._records |= {row[0]: Record(*row[1:]) for row in rows}
        self._end = end


def size(folder: Path) -> int:
    """Bytes of a store's files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder.is_dir() else 0
