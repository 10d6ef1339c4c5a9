"""The depth of a JPEG 2000's samples, from the header of its codestream (ISO/IEC 15444-1, A.5.1)."""

from __future__ import annotations

_START = b"\xff\x4f\xff\x51"  # SOC and SIZ
_COUNT = 40  # bytes from there to the number of components


def most(data: bytes) -> int:
    """The largest value that a sample of any component can have; 255 where that is not known."""
    at = data.find(_START)
    count = int.from_bytes(data[at + _COUNT : at + _COUNT + 2])
    depths = data[at + _COUNT + 2 : at + _COUNT + 2 + 3 * count : 3]
    return 255 if at < 0 or not depths else 2 ** (max(depth & 0x7F for depth in depths) + 1) - 1
