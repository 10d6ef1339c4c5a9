"""Damaged files: decoded in full where no pixel is damaged, refused otherwise, or taken as far as they go."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from config.errors import DataError
from data.cache.images import Images
from data.decode.image import decode
from tests.unit.test_decode_matrix import chunk, png, samples

H, W = 40, 56


def saved(form: str, size: tuple[int, int] = (W, H), mode: str = "RGB", **options) -> bytes:
    image = Image.fromarray(samples(3, 255)).resize(size).convert(mode)
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


JPEGS = [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0, "optimize": True}]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(options, mode):
    data = saved("JPEG", (160, 96), mode, quality=90, **options)
    assert data.endswith(b"\xff\xd9")
    expected = decode(data).astype(int)
    for ending in (b"", b"\xff", b"\0" * 700):
        found = decode(data[:-2] + ending)
        assert found.shape == expected.shape and np.abs(found - expected).max() <= 2
    for cut in (6, 12, 40, len(data) // 3):
        with pytest.raises(DataError, match="cannot be decoded"):
            decode(data[:-cut])


def test_a_progressive_jpeg_without_its_last_scans_is_truncated():
    data = saved("JPEG", (160, 96), quality=90, progressive=True)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    tables = data.rindex(b"\xff\xc4", 0, scans[-1])
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data[:tables])  # nothing is cut off within a scan


def broken(name: bytes, content: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return chunk(name, content)[:-4] + b"\1\2\3\4"


def with_chunks(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def test_a_png_is_whole_whatever_its_texts_and_profiles_are():
    data = saved("PNG")
    expected = decode(data)
    long = zlib.compress(b"x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK))
    many = [chunk(b"tEXt", b"key\0" + b"y" * 2**20) for _ in range(70)]
    for extra in (
        [broken(b"tEXt", b"key\0text")],
        [broken(b"gAMA", b"\0\0\xb1\x8f")],
        [broken(b"iCCP", b"name\0\0" + zlib.compress(b"no profile"))],
        [broken(b"eXIf", b"MM\0*\0\0\0\x08\0\0")],
        [chunk(b"zTXt", b"key\0\0" + long)],
        [chunk(b"iTXt", b"key\0\1\0\0\0" + long)],
        [chunk(b"iCCP", b"name\0\0" + long)],
        [chunk(b"iCCP", b"name\0\0not packed")],
        many,
    ):
        np.testing.assert_array_equal(decode(with_chunks(data, *extra)), expected)
    for end in (12, 16):  # no end, nor the checksum of the last pixels
        np.testing.assert_array_equal(decode(data[:-end]), expected)
    turned = Image.Exif()
    turned[0x0112] = 6
    other = decode(with_chunks(saved("PNG", exif=turned), broken(b"tEXt", b"a\0b")))
    np.testing.assert_array_equal(other, np.rot90(expected, -1))


def test_a_png_whose_pixels_are_damaged_is_refused():
    for mode in ("RGB", "P"):
        data = saved("PNG", mode=mode)
        for at in range(data.index(b"IDAT") + 4, data.index(b"IEND") - 8, 31):
            flipped = bytearray(data)
            flipped[at] ^= 0x55
            with pytest.raises(DataError, match="cannot be decoded"):
                decode(bytes(flipped))
        wrong = data.index(b"IEND") - 8  # the checksum of the pixels alone, which have another of their own
        np.testing.assert_array_equal(decode(data[:wrong] + bytes(4) + data[wrong + 4 :]), decode(data))


def taken(data: bytes) -> tuple[np.ndarray, list[str]]:
    """What remains of a file, and what was said."""
    said: list[str] = []
    return decode(data, truncated=said.append), said


@pytest.mark.parametrize("options", JPEGS)
def test_what_remains_of_a_jpeg_is_as_it_was_and_the_rest_grey(options):
    data = saved("JPEG", (320, 480), quality=90, **options)
    full = decode(data).astype(int)
    found, said = taken(data[: len(data) * 6 // 10])
    assert said == [f"image of {len(data) * 6 // 10} bytes: is truncated; what is missing is grey"]
    if options.get("progressive"):  # all rows are there, with less detail
        assert np.abs(found - full).mean() < 8
    else:
        assert (found[:160] == full[:160]).all() and (found[-32:] == 128).all()
    assert taken(data)[1] == taken(data[:-2])[1] == []


@pytest.mark.parametrize(("depth", "bands"), [(1, 1), (4, 1), (8, 1), (8, 2), (8, 3), (8, 4), (16, 1), (16, 3)])
def test_what_remains_of_a_png_is_as_it_was_and_the_rest_grey(depth, bands):
    most = 2**depth - 1
    noise = np.random.default_rng(0).integers(0, most + 1, (H, W, bands))
    data = png(noise.astype(np.uint16), depth, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0)
    full = decode(data)
    found, said = taken(data[: len(data) // 2])
    assert len(said) == 1 and (found[: H // 3] == full[: H // 3]).all()
    assert (np.abs(found[-H // 3 :].astype(int) - 128) <= (0 if depth >= 8 else 127)).all()
    assert len(np.unique(found[-H // 3 :])) == 1


def test_what_remains_of_formats_with_plain_rows_and_of_a_palette():
    for form in ("BMP", "PPM"):
        data = saved(form)
        full, (found, said) = decode(data), taken(data[: len(data) // 2])
        rows = slice(H * 2 // 3, None) if form == "BMP" else slice(0, H // 3)  # a BMP begins with the last row
        rest = slice(0, H // 3) if form == "BMP" else slice(H * 2 // 3, None)
        assert len(said) == 1 and (found[rows] == full[rows]).all() and (found[rest] == 128).all()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)).quantize(64)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    found, said = taken(stream.getvalue()[: len(stream.getvalue()) // 2])
    assert len(said) == 1 and (found[:5] == np.asarray(image.convert("RGB"))[:5]).all()
    assert np.abs(found[-1].astype(int) - 128).max() < 80


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "GIF", "WEBP", "TIFF", "AVIF"])
def test_a_file_of_which_nothing_remains_is_still_refused(form):
    data = saved(form)
    with pytest.raises(DataError, match="cannot be decoded"):
        taken(data[:12])
    if form == "JPEG":
        with pytest.raises(DataError, match="cannot be decoded"):
            taken(data[: data.index(b"\xff\xda") + 14])  # its header is whole
    with pytest.raises(DataError, match=r"more than data\.pixel_limit 100"):
        decode(data[: len(data) * 3 // 4] if form in ("JPEG", "PNG", "BMP", "PPM") else data, 100, truncated=print)


def test_images_remember_which_files_are_truncated(tmp_path):
    whole, cut = tmp_path / "a.jpg", tmp_path / "b.jpg"
    data = saved("JPEG", (160, 96))
    whole.write_bytes(data)
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError):
        Images()(cut)
    partial = Images(partial=True)
    for _ in range(2):
        for path in (whole, cut):
            assert partial(path, lambda *_: 4).shape[2] == 3
    assert partial.truncated == {cut: f"{cut}: is truncated; what is missing is grey"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!DOCTYPE html><html>", "is a web page, as a failed download leaves it; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer; run: git lfs pull"),
        (b"<?xml version='1.0'?>\n<svg xmlns=''>", "is an SVG drawing; save it as PNG"),
        (b"\xff\x0a\x00\x10" + bytes(20), "is JPEG XL; save it as PNG"),
        (bytes(128) + b"DICM" + bytes(9), "is DICOM; save it as PNG"),
        (bytes(5000), "holds nothing but zeros, as a broken copy leaves it; replace or remove the file"),
        (b"", "is empty; replace or remove the file"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(content, reason, tmp_path: Path):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError) as found:
        decode(tmp_path / "x.jpg")
    assert str(found.value) == f"{tmp_path / 'x.jpg'}: cannot be decoded: {reason}"
