"""What can be read of a file that a decoder refuses: all of it where only what says nothing of pixels is damaged, or,
where that is asked for, the part that a truncated file still has.

JPEG (ITU-T T.81), PNG (W3C, third edition), and formats of plain rows.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.decode import jpeg

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_END = b"\xff\xd9"
# Two tails without a marker: what is decoded of them shows where the file has none of its own.
_TAILS = (b"\x5a\x3c\x91\xc6" * 512, b"\xa7\x0e\x6b\xd1" * 512)
# Chunks of a PNG that its pixels need, then those that say how they are shown.
_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_SHOWN = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_ROWS = (b"BM", b"P4", b"P5", b"P6")  # BMP and PNM
_STEP, _PIECE = 4096, 2**20


def completed(data: bytes) -> bytes | None:
    """The same picture as a file that decoders take; None where more is missing.

    A JPEG gets the end marker that it lacks, a PNG loses texts, colour profiles and damaged chunks that no pixel needs.
    """
    if data.startswith(_JPEG):
        return _ended(data)
    if data.startswith(_PNG):
        return _essential(data)
    return None


def rest(data: bytes, limit: int) -> bytes | None:
    """A truncated JPEG, PNG, BMP or PNM as a file that decoders take, what is missing grey; None where nothing is left.

    A PNG of more than `limit` pixels is left alone, as is an interlaced one.
    """
    if data.startswith(_JPEG):
        return _started(data)
    if data.startswith(_PNG):
        return _filled(data, limit)
    if data[:2] not in _ROWS:
        return None
    with Image.open(io.BytesIO(data)) as image:  # at least as many bytes as its rows can lack
        return data + b"\x80" * (8 * math.prod(image.size) + 4 * image.size[1])


def _ended(data: bytes) -> bytes | None:
    """A JPEG with its end marker, if what follows its last byte changes no pixel and no scan is missing."""
    stored = data.removesuffix(_END[:1])
    if stored.endswith(_END) or not jpeg.all_scans(stored):
        return None
    pixels, others = _pixels(stored + _END), (_pixels(stored + tail + _END) for tail in _TAILS)
    complete = pixels is not None and all(other is not None and np.array_equal(pixels, other) for other in others)
    return stored + _END if complete else None


def _started(data: bytes) -> bytes | None:
    """A JPEG cut short with an end marker: decoders give mid-grey for what is missing."""
    stored = data.rstrip(b"\0").removesuffix(_END[:1])  # a broken copy may end in zeros
    pixels = None if stored.endswith(_END) else _pixels(stored + _END)
    return None if pixels is None or pixels.min() == pixels.max() else stored + _END


def _pixels(data: bytes) -> NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name, content and whether the checksum is right, of each chunk of a PNG; the last may be cut short."""
    at = len(_PNG)
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        sound = zlib.crc32(data[at + 4 : end]).to_bytes(4) == data[end : end + 4]
        yield data[at + 4 : at + 8], data[at + 8 : end], sound
        at = end + 4


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)


def damaged_pixels(data: bytes) -> bool:
    """Whether a PNG's pixels are not as they were written, which Pillow sees in most cases and not in all."""
    if not data.startswith(_PNG):
        return False
    chunks = [(name, content, sound) for name, content, sound in _chunks(data) if name in _NEEDED]
    if all(sound for _, _, sound in chunks):
        return False
    packed, left = zlib.decompressobj(), b"".join(content for name, content, _ in chunks if name == b"IDAT")
    try:
        while left and not packed.eof:
            packed.decompress(left, _PIECE)
            left = packed.unconsumed_tail
    except zlib.error:
        return True
    return not packed.eof or any(not sound for name, _, sound in chunks if name in (b"IHDR", b"PLTE"))


def _essential(data: bytes) -> bytes | None:
    """A PNG without the chunks that no pixel needs; None where there are none, or a needed one is damaged."""
    chunks = list(_chunks(data))
    useful = [(name, content) for name, content, sound in chunks if name in _NEEDED or (sound and name in _SHOWN)]
    if len(useful) == len(chunks) or not all(sound for name, _, sound in chunks if name in _NEEDED):
        return None
    return _PNG + b"".join(_chunk(name, content) for name, content in useful)


def _filled(data: bytes, limit: int) -> bytes | None:
    """A PNG with its whole rows, those that are missing in grey."""
    chunks = list(_chunks(data))
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        return None
    header = chunks[0][1]
    width, height, depth, colour = int.from_bytes(header[:4]), int.from_bytes(header[4:8]), header[8], header[9]
    if header[12] or colour not in _CHANNELS or not 0 < width * height <= limit:
        return None
    palette = next((content for name, content, _ in chunks if name == b"PLTE"), b"")
    row = b"\0" + _grey_row(width, depth, colour, palette)
    stored = b"".join(content for name, content, _ in chunks if name == b"IDAT")
    pixels = _inflated(stored, len(row) * height)
    rows = len(pixels) // len(row)
    if not rows:
        return None
    packed = zlib.compress(pixels[: rows * len(row)] + row * (height - rows), 1)
    shown = [(name, content) for name, content, sound in chunks if sound and name in (b"PLTE", b"tRNS", b"eXIf")]
    completed = [(b"IHDR", header), *shown, (b"IDAT", packed), (b"IEND", b"")]
    return _PNG + b"".join(_chunk(name, content) for name, content in completed)


def _grey_row(width: int, depth: int, colour: int, palette: bytes) -> bytes:
    """The bytes of a row in mid-grey, opaque; with a palette in the colour of it that is nearest to that."""
    if colour == 3:
        entries = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3).astype(np.int64)
        value = int(np.square(entries - 128).sum(1).argmin()) if len(entries) else 0
        bits = np.unpackbits(np.array([value], np.uint8))[8 - depth :]
        return np.packbits(np.tile(bits, width)).tobytes()
    grey = np.zeros(depth, np.uint8)
    grey[0] = 1
    opaque = [np.ones(depth, np.uint8)] if colour in (4, 6) else []
    pixel = np.concatenate([*[grey] * (_CHANNELS[colour] - len(opaque)), *opaque])
    return np.packbits(np.tile(pixel, width)).tobytes()


def _inflated(stored: bytes, most: int) -> bytes:
    """As many bytes as can be unpacked, at most `most`."""
    packed, pieces, size = zlib.decompressobj(), [], 0
    for start, end in pairwise([*range(0, len(stored), _STEP), len(stored)]):
        try:
            pieces.append(packed.decompress(stored[start:end], most - size))
        except zlib.error:
            break
        size += len(pieces[-1])
        if size >= most:
            break
    return b"".join(pieces)
