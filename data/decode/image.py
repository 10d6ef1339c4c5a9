"""From a file to RGB pixels, whatever the format. Resizing is `data.resize`, caching pixels `data.cache`.

cv2 reads JPEG, PNG and WebP, Pillow the header of everything and the pixels of the rest: palettes, CMYK, TIFF, GIF,
AVIF, HEIC (by pi-heif), animations. One EXIF rule holds for both: the orientation is applied here, by what Pillow reads
from the header. Which files are looked at is `data.formats`, what is left of damaged ones `data.repair`;
docs/reference/data.md has the rule for each conversion.
"""

from __future__ import annotations

import importlib.util
import io
import math
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from config.errors import DataError
from data.decode import formats, icc, jpeg2000, repair, tiff
from data.decode.jpeg import plain_sides
from data.pixels import Pixels

# From the height and width of an image to how many times smaller (1, 2, 4 or 8) it may be decoded.
Shrink = Callable[[int, int], int]

PIXEL_LIMIT = 178_956_970
_CV2_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
_CV2_MODES = ("1", "L", "LA", "RGB", "RGBA", "I;16")
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_WIDE_MODES = ("I", "F")
_PROFILE = b"ICC_PROFILE\0"  # as a JPEG has it
_SHALLOW = {"L;2": 85, "L;4": 17}  # what a sample of these becomes 255 by
_SCALABLE = ("JPEG", "MPO")
_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_FLAGS = {1: _RGB, **{factor: flag | cv2.IMREAD_IGNORE_ORIENTATION for factor, flag in _REDUCED.items()}}
_ON_THEIR_SIDE = (5, 6, 7, 8)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"mif1")
# What Pillow's readers raise for damaged files.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    struct.error,
)

cv2.setNumThreads(0)  # the loader's threads share the cores
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it would print is raised as a DataError
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # likewise
TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader takes 16-bit planes for 8-bit ones


def whole(_height: int, _width: int) -> int:
    """Decode every pixel."""
    return 1


def shrinkage(side: float, least: float) -> int:
    """The largest factor that a JPEG decoder knows (1, 2, 4, 8) by which `side` pixels stay at least `least`."""
    return next((factor for factor in (8, 4, 2) if side >= factor * least), 1)


class _Refused(Exception):
    """A file whose header says why it is not decoded."""


@dataclass(frozen=True)
class _Options:
    """How a file is decoded."""

    pixel_limit: int
    shrink: Shrink = whole
    to_srgb: bool = False


def decode(
    source: Path | bytes,
    pixel_limit: int = PIXEL_LIMIT,
    shrink: Shrink = whole,
    to_srgb: bool = False,
    truncated: Callable[[str], None] | None = None,
) -> Pixels:
    """The image as uint8 `[H, W, 3]` RGB: EXIF orientation applied, transparency over white, 16 bits scaled to 8.

    `shrink` gets the height and the width of a JPEG as it is shown, and may have it decoded at a half, a quarter or an
    eighth, sides rounded up, which is faster the larger it is. Other formats do not ask. With `to_srgb` the colours of
    an embedded ICC profile become those of sRGB. The first frame of an animation counts. Raises `DataError` for a file
    that is missing, damaged, truncated, of an unknown format, of samples without known colours or range, or of more
    than `pixel_limit` pixels (seen in the header, before decoding). Damage that no pixel needs is no fault. With
    `truncated`, what remains of a truncated JPEG, PNG, BMP or PNM is decoded, the rest grey, and that is called with a
    line about it.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise DataError(f"{source!s}: cannot be read ({error.strerror}); check the path and its permissions") from error
    name = f"image of {len(data)} bytes" if isinstance(source, bytes) else str(source)
    options = _Options(pixel_limit, shrink, to_srgb)
    try:
        return _decoded(data, options)
    except _Refused as error:
        raise DataError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: has more pixels than Pillow opens; scale it down or remove it") from error
    except DAMAGED as error:
        image = _repaired(data, options, name, truncated)
        if image is not None:
            return image
        mistaken = formats.mistaken(data)
        if mistaken:
            raise DataError(f"{name}: cannot be decoded: {mistaken}") from error
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise DataError(f"{name}: cannot be decoded ({reason}); replace or remove the file") from error


def of_pillow(image: Image.Image, to_srgb: bool = False) -> Pixels:
    """The pixels of an image that Pillow has opened, as `decode` gives those of its file; `DataError` likewise."""
    if image.mode in _WIDE_MODES:
        raise DataError(f"Pillow image of mode {image.mode}: has 32-bit pixels and no known range; convert it to RGB")
    try:
        return _with_pillow(image, image.info.get("icc_profile") if to_srgb else None)
    except DAMAGED as error:
        raise DataError(f"Pillow image {image!r}: cannot be decoded ({error}); replace or remove it") from error


def _decoded(data: bytes, options: _Options) -> Pixels:
    plain = plain_sides(data)
    if plain and math.prod(plain) <= options.pixel_limit and not (options.to_srgb and _PROFILE in data):
        image = _with_cv2(data, _FLAGS[options.shrink(*plain)])
        if image is not None:
            return image
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        if importlib.util.find_spec("pi_heif"):
            import pi_heif

            pi_heif.register_heif_opener()
        elif data[8:12] != b"mif1":  # which may be AVIF as well
            raise _Refused('is HEIC, which needs pi-heif; run: pip install -e ".[heif]"')
    reason = tiff.refused(data)
    if reason:
        raise _Refused(reason)
    with Image.open(io.BytesIO(data)) as header:
        width, height = header.size
        if width * height > options.pixel_limit:
            limit = f"data.pixel_limit {options.pixel_limit}"
            raise _Refused(f"{width} x {height} pixels, more than {limit}; scale it down or raise that")
        if header.mode in _WIDE_MODES and not _is_deep_pgm(header):
            raise _Refused("its pixels have 32 bits and no known range; save it with 8 or 16 bits a channel")
        profile = header.info.get("icc_profile") if options.to_srgb else None
        deep = jpeg2000.most(data) if header.format == "JPEG2000" and header.mode != "I;16" else 255
        if deep > 255:
            return _deep_jpeg2000(data, deep, profile)
        if not _suits_cv2(header):
            return _sound(data, header, profile)
        scaled = header.format in _SCALABLE
        flags = _FLAGS[options.shrink(*_shown_sides(header))] if scaled else cv2.IMREAD_UNCHANGED
        image = _with_cv2(data, flags, profile)
        return _sound(data, header, profile) if image is None else _orient(image, orientation(header))


def _sound(data: bytes, header: Image.Image, profile: bytes | None) -> Pixels:
    if repair.damaged_pixels(data):
        raise OSError("its pixels are damaged or truncated")
    return _with_pillow(header, profile)


def _repaired(data: bytes, options: _Options, name: str, truncated: Callable[[str], None] | None) -> Pixels | None:
    """The pixels of a damaged file where no pixel is damaged, or, if `truncated` is given, where some are left."""
    options = replace(options, shrink=whole)
    try:
        sound = repair.completed(data)
        if sound is not None:
            return _decoded(sound, options)
    except (*DAMAGED, _Refused, Image.DecompressionBombError):
        pass
    if truncated is None:
        return None
    try:
        left = repair.rest(data, options.pixel_limit)
        image = None if left is None else _decoded(left, options)
    except (*DAMAGED, _Refused, Image.DecompressionBombError):
        return None
    if image is not None:
        truncated(f"{name}: is truncated; what is missing is grey")
    return image


def sides(data: bytes) -> tuple[int, int] | None:
    """Height and width of an encoded image as it is shown, from its header alone; None where that is damaged."""
    if plain := plain_sides(data):
        return plain
    try:
        with Image.open(io.BytesIO(data)) as header:
            return _shown_sides(header)
    except (*DAMAGED, Image.DecompressionBombError):
        return None


def _shown_sides(header: Image.Image) -> tuple[int, int]:
    width, height = header.size
    return (width, height) if orientation(header) in _ON_THEIR_SIDE else (height, width)


def _is_deep_pgm(header: Image.Image) -> bool:
    """A PGM of 16 bits, which Pillow opens as 32."""
    return header.format == "PPM" and header.mode == "I"


def _suits_cv2(header: Image.Image) -> bool:
    return (
        header.format in _CV2_FORMATS
        and header.mode in _CV2_MODES
        and ("transparency" not in header.info or _stored(header) == "RGB;16B")
        and (header.format == "MPO" or not getattr(header, "is_animated", False))
    )


def _stored(header: Image.Image) -> str:
    """How Pillow names the samples of a PNG, such as `L;4` and `RGB;16B`."""
    return str(header.tile[0][3]) if header.format == "PNG" and header.tile else ""  # type: ignore[attr-defined]


def orientation(header: Image.Image) -> int:
    """The EXIF orientation (1 to 8) of an opened image; 1 where it has none or one that cannot be read."""
    try:
        return int(header.getexif().get(ExifTags.Base.Orientation, 1))
    except DAMAGED:  # unreadable EXIF beside good pixels
        return 1


def _with_cv2(data: bytes, flags: int = cv2.IMREAD_UNCHANGED, profile: bytes | None = None) -> Pixels | None:
    """RGB pixels as they are stored, or None where cv2 finds the file damaged: Pillow then says how."""
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error:
        return None
    if image is None or (flags == _RGB and profile is None):
        return image
    if image.ndim == 3 and image.shape[2] == 4:
        return _over_white(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA), profile)
    eight = _to_8_bits(image)
    if flags != _RGB:
        eight = cv2.cvtColor(eight, cv2.COLOR_GRAY2RGB if eight.ndim == 2 else cv2.COLOR_BGR2RGB)
    return _coloured(eight, profile)


def _deep_jpeg2000(data: bytes, most: int, profile: bytes | None) -> Pixels:
    """Colours of more than 8 bits, of which Pillow's reader turns the brightest into black."""
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim == 2 or image.dtype != np.uint16:
        raise _Refused("its samples of more than 8 bits are not grey, RGB or RGBA; save it as 8- or 16-bit PNG")
    deep = ((image.astype(np.uint32) * 65535 + most // 2) // most).astype(np.uint16)
    if deep.shape[2] == 4:
        return _over_white(cv2.cvtColor(deep, cv2.COLOR_BGRA2RGBA), profile)
    return _coloured(cv2.cvtColor(_to_8_bits(deep), cv2.COLOR_BGR2RGB), profile)


def _with_pillow(image: Image.Image, profile: bytes | None = None) -> Pixels:
    if _stored(image) in _SHALLOW and "transparency" in image.info:
        image.info["transparency"] *= _SHALLOW[_stored(image)]  # Pillow scales the samples and leaves this one
    turn = 1 if image.format == "TIFF" else orientation(image)  # Pillow itself turns a TIFF when it loads it
    if image.mode in _DEEP_MODES or _is_deep_pgm(image):
        deep = np.asarray(image)
        eight = _to_8_bits(tiff.most(image) - deep if tiff.inverted(image) else deep, tiff.most(image))
        eight[deep == image.info.get("transparency", -1)] = 255
        return _orient(_coloured(cv2.cvtColor(eight, cv2.COLOR_GRAY2RGB), profile), turn)
    if image.has_transparency_data:
        return _orient(_over_white(np.array(image.convert("RGBA")), profile), turn)
    if image.mode == "CMYK":
        coloured = icc.to_srgb(np.asarray(image), "CMYK", profile)
        return _orient(np.array(image.convert("RGB")) if coloured is None else coloured, turn)
    return _orient(_coloured(np.array(image.convert("RGB")), profile), turn)


def _coloured(rgb: Pixels, profile: bytes | None) -> Pixels:
    """The same in sRGB, by a profile of RGB or, for what has no colours, of grey."""
    if profile is None:
        return rgb
    converted = icc.to_srgb(rgb, "RGB", profile)
    if converted is None and (rgb == rgb[..., :1]).all():
        converted = icc.to_srgb(np.ascontiguousarray(rgb[..., 0]), "L", profile)
    return rgb if converted is None else converted


def _to_8_bits(image: NDArray[np.integer], most: int = 65535) -> Pixels:
    if image.dtype == np.uint8:
        return image.astype(np.uint8, copy=False)
    return ((image.astype(np.uint32) * 255 + most // 2) // most).astype(np.uint8)


def _over_white(rgba: NDArray[np.uint8] | NDArray[np.uint16], profile: bytes | None = None) -> Pixels:
    if profile is not None:
        eight = _to_8_bits(rgba)
        rgba = np.dstack([_coloured(np.ascontiguousarray(eight[..., :3]), profile), eight[..., 3]])
    most = int(np.iinfo(rgba.dtype).max)
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = (rgba[..., :3] * alpha + most * (most - alpha) + most // 2) // most
    return _to_8_bits(mixed.astype(rgba.dtype))


def _orient(image: Pixels, orientation: int) -> Pixels:
    """EXIF 2.32, tag 0x0112: how the stored rows and columns lie."""
    if orientation in _ON_THEIR_SIDE:
        image = cv2.transpose(image)
    if orientation in (2, 3, 6, 7):
        image = cv2.flip(image, 1)
    if orientation in (3, 4, 7, 8):
        image = cv2.flip(image, 0)
    return image
