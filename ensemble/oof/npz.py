"""Reads an `.npz` without copying it: large arrays of an uncompressed file are memory-mapped, after their checksum.

`np.load` ignores `mmap_mode` for `.npz`; but `np.savez` stores arrays uncompressed, so that each is an ordinary `.npy`
at some offset of the file. Compressed and small arrays are read.
"""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_SMALL = 1 << 16  # bytes; mapping less costs more than reading it
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of name and extra field end a zip's local header


def read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays by name, read-only where mapped. Raises what NumPy and zipfile raise for a damaged file."""
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if info.compress_type == zipfile.ZIP_STORED and info.file_size >= _SMALL:
                arrays[name] = _mapped(path, info)
            else:
                with archive.open(info) as member:
                    arrays[name] = npy.read_array(member, allow_pickle=False)
    return arrays


def _mapped(path: Path, info: zipfile.ZipInfo) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        file.seek(sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))), 1)
        start = file.tell()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view, memoryview(view) as content:
            checksum = zlib.crc32(content[start : start + info.file_size])
        if checksum != info.CRC:
            raise zipfile.BadZipFile(f"bad checksum of {info.filename}")
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format version {version} of its arrays is not known")
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("holds Python objects")
        offset = file.tell()
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
