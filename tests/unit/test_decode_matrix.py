"""Files of every kind that a data set may hold: the pixels that a reference gives, or one line that refuses.

The samples of a TIFF are what tifffile writes and reads again; of other formats what Pillow or cv2 reads. What becomes
of them is docs/reference/data.md: scaled to 8 bits, white for what is transparent.
"""

from __future__ import annotations

import io
import itertools
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from config.errors import DataError
from data.decode.image import decode

H, W = 40, 56


def samples(bands: int, most: int, dtype: type = np.uint8) -> np.ndarray:
    """Smooth bands that differ, from 0 to `most`, the last never transparent throughout."""
    y, x = np.mgrid[:H, :W]
    waves = np.stack([0.5 + 0.35 * np.sin(x / 9 + k) + 0.15 * np.cos(y / (5 + k)) for k in range(bands)], -1)
    return np.rint(np.clip(waves, 0, 1) * most).astype(dtype)


def over_white(colours: np.ndarray, alpha: np.ndarray, premultiplied: bool = False) -> np.ndarray:
    return colours * (1 if premultiplied else alpha) + 1 - alpha


def colours(pixels: np.ndarray, photometric: str, extra: str | None, most: int) -> np.ndarray:
    """0 to 255, `[H, W, 3]`: what samples mean by the TIFF specification."""
    part = pixels / most
    if photometric == "miniswhite":
        part = 1 - part
    if part.ndim == 2:
        part = part[..., None]
    if photometric == "separated":
        part = (1 - part[..., :3]) * (1 - part[..., 3:])
    elif extra in ("unassalpha", "assocalpha"):
        part = over_white(part[..., :-1], part[..., -1:], extra == "assocalpha")
    return np.broadcast_to(part[..., :3], (H, W, 3)) * 255


def tiff(pixels: np.ndarray, planar: str = "contig", **options) -> bytes:
    stream = io.BytesIO()
    if pixels.ndim == 3:
        options["planarconfig"] = planar
        pixels = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    tifffile.imwrite(stream, pixels, metadata=None, **options)
    return stream.getvalue()


# Photometric interpretation, number of samples, and what the last of them is beyond the colours.
LAYOUTS = [
    ("minisblack", 1, None),
    ("miniswhite", 1, None),
    ("minisblack", 2, "unassalpha"),
    ("rgb", 3, None),
    ("rgb", 4, "unassalpha"),
    ("rgb", 4, "assocalpha"),
    ("rgb", 4, "unspecified"),
    ("separated", 4, None),
]
STORED = [
    {"compression": compression, "predictor": predictor, "tile": tile, "planar": planar, "byteorder": order}
    for compression, predictor, tile, planar, order in itertools.product(
        (None, "deflate"), (None, True), (None, (16, 16)), ("contig", "separate"), "<>"
    )
    if compression or not predictor
]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("photometric", "bands", "extra"), LAYOUTS)
def test_a_tiff_has_the_colours_of_its_samples_or_is_refused(photometric, bands, extra, bits):
    most = 2**bits - 1
    pixels = samples(bands, most, np.uint16 if bits == 16 else np.uint8)
    if extra == "assocalpha":
        pixels[..., :3] = np.rint(pixels[..., :3] * (pixels[..., 3:] / most))
    pixels = pixels[..., 0] if bands == 1 else pixels
    expected = colours(pixels, photometric, extra, most)
    read = 0
    for stored in STORED:
        options = {"photometric": photometric, **stored}
        if extra:
            options["extrasamples"] = [extra]
        data = tiff(pixels, **options)
        reference = tifffile.imread(io.BytesIO(data))
        planes = stored["planar"] == "separate" and bands > 1
        np.testing.assert_array_equal(np.moveaxis(reference, 0, -1) if planes else reference, pixels)
        try:
            found = decode(data)
        except DataError as error:
            if photometric == "miniswhite":
                assert "white is zero in its grey samples of 16 bits, high bytes first; save it" in str(error)
                assert (bits, stored["byteorder"]) == (16, ">")
                continue
            assert "it has 2 bands that are no colours; save three of them as RGB or one as grey" in str(error)
            assert bands == 2 and (bits == 16 or planes)
            continue
        read += 1
        # Premultiplied samples of 16 bits lose their lower ones before and after the division.
        assert np.abs(found - expected).max() <= (3 if (bits, extra) == (16, "assocalpha") else 2), stored
    assert read == len(STORED) or bands == 2 or (photometric, bits) == ("miniswhite", 16)


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_tiffs_of_other_depths(bits, photometric):
    most, width = 2**bits - 1, W
    grey = samples(1, most, np.uint16)[..., 0]
    rows = np.unpackbits(grey.astype(">u2").view(np.uint8).reshape(H, width, 2), axis=2)[..., 16 - bits :]
    packed = np.packbits(rows.reshape(H, -1), axis=1).tobytes()
    data = _directory(packed, width, bits, 0 if photometric == "miniswhite" else 1)
    try:
        assert np.abs(decode(data) - colours(grey, photometric, None, most)).max() <= 1
    except DataError as error:
        assert (bits, photometric) == (12, "miniswhite") and "white is zero" in str(error)


def _directory(packed: bytes, width: int, bits: int, photometric: int) -> bytes:
    """A little-endian TIFF of one strip of grey samples."""
    tags = [(256, width), (257, H), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, H), (279, 0)]
    start = 8 + 2 + 12 * len(tags) + 4
    values = {273: start, 279: len(packed)}
    entries = [
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + values.get(tag, value).to_bytes(4, "little")
        for tag, value in tags
    ]
    count = len(tags).to_bytes(2, "little")
    return b"II\x2a\0\x08\0\0\0" + count + b"".join(entries) + bytes(4) + packed


@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        (np.int16, {}, "signed integers of 16 bits"),
        (np.int8, {}, "signed integers of 8 bits"),
        (np.float16, {}, "floating-point numbers of 16 bits"),
        (np.float32, {}, "floating-point numbers of 32 bits"),
        (np.float64, {}, "floating-point numbers of 64 bits"),
        (np.uint32, {}, "samples have 32 bits"),
        (np.complex64, {}, "complex numbers of 64 bits"),
        (np.float32, {"photometric": "rgb", "bands": 3}, "floating-point numbers of 32 bits"),
        (np.uint32, {"photometric": "rgb", "bands": 3}, "samples have 32 bits"),
        (np.uint8, {"photometric": "cielab", "bands": 3}, "CIE L*a*b*"),
        (np.uint8, {"bands": 4}, "4 bands that are no colours"),
        (np.uint16, {"bands": 13}, "13 bands that are no colours"),
        (np.uint16, {"bands": 13, "planar": "separate"}, "13 bands that are no colours"),
    ],
)
def test_samples_without_known_colours_are_refused_in_one_line(dtype, options, reason):
    bands = options.pop("bands", 1)
    pixels = samples(bands, 127, dtype)
    data = tiff(pixels if bands > 1 else pixels[..., 0], **{"photometric": "minisblack", **options})
    with pytest.raises(DataError) as found:
        decode(data)
    assert reason in str(found.value) and "; save " in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg", "zstd"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "YCbCr"])
def test_tiffs_of_other_compressions(mode, compression):
    if compression == "jpeg" and mode in ("P", "RGBA"):
        pytest.skip("JPEG has neither")
    image = Image.fromarray(samples(4, 255)[..., :4] if mode in ("RGBA", "CMYK") else samples(3, 255))
    if mode in ("RGBA", "CMYK"):
        image = Image.merge(mode, image.split())
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, "TIFF", compression=compression)
    expected = image.convert("RGB")
    if mode == "RGBA":
        expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    difference = np.abs(decode(stream.getvalue()) - np.asarray(expected, np.float64))
    assert difference.max() <= 2 if compression != "jpeg" else difference.mean() < 6


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_compressed_tiffs_decode_as_they_were_saved(compression):
    page = Image.fromarray(samples(1, 255)[..., 0]).convert("1")
    stream = io.BytesIO()
    page.save(stream, "TIFF", compression=compression)
    np.testing.assert_array_equal(decode(stream.getvalue()), np.asarray(page.convert("RGB")))


@pytest.mark.parametrize("big", [False, True])
def test_the_first_page_of_a_tiff_and_one_beyond_4_gigabytes(big):
    stream, pixels = io.BytesIO(), samples(3, 255)
    with tifffile.TiffWriter(stream, bigtiff=big) as writer:
        writer.write(pixels, photometric="rgb")
        writer.write(255 - pixels, photometric="rgb")
    np.testing.assert_array_equal(decode(stream.getvalue()), pixels)


def saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_pngs_of_every_depth(depth, bands, interlaced):
    if depth < 8 and bands > 1:
        pytest.skip("PNG has none")
    most = 2**depth - 1
    pixels = samples(bands, most, np.uint16)
    data = png(pixels, depth, {1: 0, 2: 4, 3: 2, 4: 6}[bands], interlaced)
    part = pixels / most
    if bands in (2, 4):
        part = over_white(part[..., :-1], part[..., -1:])
    assert np.abs(decode(data) - np.broadcast_to(part, (H, W, 3)) * 255).max() <= 1
    with Image.open(io.BytesIO(data)) as reference:
        assert reference.size == (W, H)


@pytest.mark.parametrize(("depth", "bands"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_transparent_colour_of_a_png_of_any_depth_is_white(depth, bands):
    most = 2**depth - 1
    pixels = samples(bands, most, np.uint16)
    key = pixels[20, 30].copy()
    colour = chunk(b"tRNS", key.astype(">u2").tobytes())
    plain = png(pixels, depth, {1: 0, 3: 2}[bands], 0)
    data = plain[:33] + colour + plain[33:]
    part = np.where((pixels == key).all(-1, keepdims=True), 1, pixels / most)
    assert np.abs(decode(data) - np.broadcast_to(part, (H, W, 3)) * 255).max() <= 1


def chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def png(pixels: np.ndarray, depth: int, colour: int, interlaced: int) -> bytes:
    """A PNG without filters (W3C, 8.2 for the seven passes)."""

    def packed(part: np.ndarray) -> bytes:
        bits = np.unpackbits(part.astype(">u2").view(np.uint8).reshape(*part.shape[:2], -1, 2), axis=3)
        rows = np.packbits(bits[..., 16 - depth :].reshape(part.shape[0], -1), axis=1)
        return b"".join(b"\0" + row.tobytes() for row in rows)

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[a::c, b::d] for a, b, c, d in passes] if interlaced else [pixels]
    header = W.to_bytes(4, "big") + H.to_bytes(4, "big") + bytes([depth, colour, 0, 0, interlaced])
    stored = zlib.compress(b"".join(map(packed, parts)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", stored) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGB stored", "CMYK", "YCCK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
def test_jpegs_of_every_colour_space(mode, progressive, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 98, "subsampling": 0, "progressive": progressive, "exif": exif}
    rgb = Image.fromarray(samples(3, 255))
    if mode in ("CMYK", "YCCK"):
        ink = Image.merge("CMYK", [*ImageOps.invert(rgb).split(), Image.new("L", rgb.size, 40)])
        expected = ink.convert("RGB")
        if mode == "CMYK":
            data = saved(ink, "JPEG", **options)
        else:  # C, M and Y become Y, Cb and Cr, which Adobe's marker says with a 2
            *_, black = ink.split()
            ycc = Image.merge("CMYK", [*map(ImageOps.invert, ImageOps.invert(rgb).convert("YCbCr").split()), black])
            data = saved(ycc, "JPEG", **options)
            at = data.index(b"Adobe") + 11
            data = data[:at] + b"\2" + data[at + 1 :]
    else:
        image = rgb.convert(mode.split()[0])
        expected = image.convert("RGB")
        data = saved(image, "JPEG", keep_rgb=mode == "RGB stored", **options)
    assert b"Adobe" in data or mode not in ("CMYK", "YCCK", "RGB stored")
    expected = expected.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else expected
    assert np.abs(decode(data) - np.asarray(expected, np.float64)).mean() < 2


@pytest.mark.parametrize("most", [1, 15, 255, 1023, 65535])
@pytest.mark.parametrize("bands", [1, 3])
def test_pnms_of_every_depth(bands, most):
    pixels = samples(bands, most, np.uint16)
    data = f"P{5 if bands == 1 else 6}\n{W} {H}\n{most}\n".encode()
    data += pixels.astype(">u2" if most > 255 else "u1").tobytes()
    assert np.abs(decode(data) - np.broadcast_to(pixels / most, (H, W, 3)) * 255).max() <= 1


@pytest.mark.parametrize("form", ["AVIF", "WEBP", "JPEG2000", "GIF", "BMP", "TGA"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_other_formats_are_what_pillow_reads(form, mode):
    if (form, mode) == ("GIF", "RGBA"):
        pytest.skip("GIF has no shades of transparency")
    image = Image.fromarray(samples(4, 255)).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)
    options = {"lossless": True} if form == "WEBP" else {"quality": 95} if form == "AVIF" else {}
    data = saved(image, form, **options)
    with Image.open(io.BytesIO(data)) as reference:
        rgba = reference.convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    assert np.abs(decode(data) - np.asarray(expected, np.float64)).max() <= 1


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_first_of_several_frames(form):
    frames = [Image.fromarray(samples(3, 255)), Image.fromarray(255 - samples(3, 255))]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as reference:
        assert reference.n_frames == 2
        expected = np.asarray(reference.convert("RGB"), np.float64)
    assert np.abs(decode(data) - expected).max() <= 2


def test_mpo_is_its_first_picture_under_either_name(tmp_path):
    frames = [Image.fromarray(samples(3, 255)), Image.fromarray(255 - samples(3, 255))]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=98)
    for name in ("a.mpo", "a.jpg"):
        (tmp_path / name).write_bytes(data)
        assert np.abs(decode(tmp_path / name) - samples(3, 255).astype(np.float64)).mean() < 2


def test_16_bits_as_cv2_writes_them():
    pixels = samples(3, 65535, np.uint16)
    for suffix in (".png", ".tiff", ".jp2"):
        data = cv2.imencode(suffix, pixels[..., ::-1])[1].tobytes()
        assert np.abs(decode(data) - pixels / 257).max() <= 1, suffix
