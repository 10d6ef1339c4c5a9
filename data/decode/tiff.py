"""What a TIFF says of its samples, and whether they make an RGB picture without guessing.

TIFF 6.0 (Adobe, 1992), sections 8 and 18 to 23. Pillow opens a file of samples that it misreads, or calls it unknown;
this looks at the tags of the first picture ahead of it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import TiffImagePlugin

_STARTS = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0")
_EXTRA, _FORMAT, _PLANAR = TiffImagePlugin.EXTRASAMPLES, TiffImagePlugin.SAMPLEFORMAT, 284
_INVERTED, _GREY, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
# Samples that make the colour, by photometric interpretation.
_COLOURS = {_INVERTED: 1, _GREY: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}
_KINDS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_NAMES = {4: "a transparency mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a raw photograph"}
_ALPHA = (1, 2)  # associated and unassociated
_SAVE = "save it as 8- or 16-bit grey or RGB"


def refused(data: bytes) -> str | None:
    """Why the first picture of a TIFF is no picture of known colours; None for one that is, and for other files."""
    tags = _tags(data)
    if not tags:
        return None
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    bits = tuple(int(value) for value in _each(tags, TiffImagePlugin.BITSPERSAMPLE, 1))
    kind = _KINDS.get(_each(tags, _FORMAT, 1)[0])
    if kind:
        return f"its samples are {kind} of {bits[0]} bits and no known range; {_SAVE}"
    if photometric not in _COLOURS:
        return f"its colours are {_NAMES.get(photometric, f'photometric interpretation {photometric}')}; {_SAVE}"
    if len(set(bits)) > 1 or bits[0] not in (1, 2, 4, 8, 12, 16):
        return f"its samples have {', '.join(map(str, dict.fromkeys(bits)))} bits; {_SAVE}"
    if photometric == _INVERTED and bits[0] > 8 and (data[:2] == b"MM" or bits[0] == 12):
        return f"white is zero in its grey samples of {bits[0]} bits, high bytes first; {_SAVE}"
    return _bands(photometric, tags, bits)


def inverted(header: Any) -> bool:
    """Whether white is zero in deep grey samples, which Pillow leaves as they are."""
    return bool(header.format == "TIFF" and header.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _INVERTED)


def most(header: Any) -> int:
    """The largest value that a deep grey sample can have."""
    return 4095 if header.format == "TIFF" and header.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535


def _bands(photometric: int, tags: Mapping[int, Any], bits: tuple[int, ...]) -> str | None:
    """Grey may have one band more, if that is declared as transparency; RGB any, of which the first counts if it is."""
    samples, extra = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)), _each(tags, _EXTRA, 0)
    colours = _COLOURS[photometric]
    if samples < colours:
        return f"it has {samples} bands where its colours need {colours}; {_SAVE}"
    if colours == 1 and samples > 1:
        readable = samples == 2 and extra == (2,) and bits[0] == 8 and photometric == _GREY
        if not readable or tags.get(_PLANAR, 1) != 1:
            return f"it has {samples} bands that are no colours; save three of them as RGB or one as grey"
    if photometric != _RGB and any(sample in _ALPHA for sample in extra) and colours > 1:
        return f"its colours of print have transparency; {_SAVE}"
    return None


def _each(tags: Mapping[int, Any], tag: int, default: int) -> tuple[Any, ...]:
    value = tags.get(tag, default)
    return value if isinstance(value, tuple) else (value,)


def _tags(data: bytes) -> Mapping[int, Any]:
    """The tags of the first picture; none where they cannot be read, of which Pillow then says why."""
    if data[:4] not in _STARTS:
        return {}
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if data[2] == 0x2B else 8])
        stream = io.BytesIO(data)
        stream.seek(directory.next)
        directory.load(stream)
        return dict(directory)
    except Exception:  # whatever a damaged directory makes Pillow raise
        return {}
