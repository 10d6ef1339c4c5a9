"""The weight file of a Core ML package (`weight.bin`, "MIL blob storage" version 2), read without coremltools.

Layout, little-endian: a header of 64 bytes (count uint32, version uint32, reserved); each blob has a record of 64
bytes at the offset that the program names (sentinel uint32, type uint32, bytes uint64, data offset uint64, reserved).
Source: `MILBlob/Blob/StorageFormat.hpp` of coremltools.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import UnsupportedOperation, WeightsError
from infer.runtimes.mil import constexpr

_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQ40x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<f2"),
    2: np.dtype("<f4"),
    3: np.dtype("u1"),
    4: np.dtype("i1"),
    6: np.dtype("<i2"),
    7: np.dtype("<u2"),
    14: np.dtype("<i4"),
    15: np.dtype("<u4"),
}
# Unsigned integers of fewer bits than a byte, packed.
_PACKED = {11: 4, 13: 6}


def read(path: Path, offset: int, dtype: np.dtype, shape: tuple[int, ...], width: int | None = None) -> NDArray:
    """The array at `offset`, a copy; `WeightsError` when the file does not hold what the program declares.

    `width` is the number of bits of packed integers, which are returned as `dtype` uint8.
    """
    try:
        with path.open("rb") as file:
            _, version = _HEADER.unpack(_exactly(file.read(_HEADER.size), _HEADER.size))
            file.seek(offset)
            sentinel, kind, size, start = _RECORD.unpack(_exactly(file.read(_RECORD.size), _RECORD.size))
            if start + size > path.stat().st_size:
                raise EOFError(f"it would end at {start + size}, after the end of the file")
            file.seek(start)
            data = _exactly(file.read(size), size)
    except (OSError, EOFError, ValueError, OverflowError) as error:
        raise WeightsError(f"{path}: the blob at {offset} cannot be read ({error}); convert it again") from error
    if version != _VERSION:
        raise UnsupportedOperation(f"{path}: blob storage version {version}, only {_VERSION} is known")
    if sentinel != _SENTINEL:
        raise WeightsError(f"{path}: no blob begins at {offset}; the package is damaged, convert it again")
    if kind not in _TYPES and kind not in _PACKED:
        raise UnsupportedOperation(f"{path}: blob type {kind} at {offset} is not known")
    count = int(np.prod(shape, dtype=np.int64))
    held = _TYPES.get(kind, np.dtype("u1"))
    length = -(-count * width // 8) if width else count * dtype.itemsize
    if held != dtype or _PACKED.get(kind) != width or size != length:
        raise WeightsError(
            f"{path}: the blob at {offset} holds {size} bytes of {held}, "
            f"the program declares {dtype} {list(shape)}; convert it again"
        )
    if width:
        return constexpr.bits(np.frombuffer(data, np.uint8), width, count).reshape(shape)
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise EOFError(f"{len(data)} bytes where {size} belong")
    return data
