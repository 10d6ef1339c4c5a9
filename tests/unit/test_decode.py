import io
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from config.errors import DataError
from data.decode import jpeg
from data.decode.image import decode

FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True, "subsampling": 0}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {}),
    ("BMP", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("GIF", {}),
    ("AVIF", {}),
    ("JPEG2000", {}),
    ("PPM", {}),
]


def picture(height: int = 60, width: int = 91) -> Image.Image:
    """Smooth colours with some edges."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / 9 + k) + 37 * np.cos(y / (5 + k)) for k in range(3)]
    pixels = np.clip(np.stack(waves, -1), 0, 255).astype(np.uint8)
    pixels[10:20, 30:50] = (255, 0, 0)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    """The reference: turned by EXIF, over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(image.convert("RGB"))


def assert_close(found: np.ndarray, expected: np.ndarray, levels: int) -> None:
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= levels


@pytest.mark.parametrize(("form", "options"), FORMATS)
def test_every_format_gives_the_pixels_that_pillow_gives(form, options, tmp_path):
    data = encoded(picture(), form, **options)
    assert_close(decode(data), by_pillow(data), 2)
    (tmp_path / "any.name").write_bytes(data)
    np.testing.assert_array_equal(decode(tmp_path / "any.name"), decode(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), form, exif=exif)
    assert_close(decode(data), by_pillow(data), 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_jpeg_decoded_smaller_is_pillows_draft(factor, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(96, 160), "JPEG", quality=95, subsampling=0, exif=exif)
    asked = []
    found = decode(data, shrink=lambda *shape: asked.append(shape) or factor)
    draft = Image.open(io.BytesIO(data))
    draft.draft("RGB", (160 // factor, 96 // factor))
    expected = np.asarray(ImageOps.exif_transpose(draft))
    assert asked == [(96, 160) if orientation < 5 else (160, 96)]
    assert found.shape == expected.shape and np.abs(found.astype(int) - expected).max() <= 2


PLAIN = [
    ({}, "RGB"),
    ({}, "L"),
    ({"progressive": True, "optimize": True}, "RGB"),
    ({"subsampling": 0, "comment": b"a comment", "dpi": (72, 72)}, "RGB"),
    ({"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}, "RGB"),
    ({"restart_marker_rows": 1}, "RGB"),
]


@pytest.mark.parametrize(("options", "mode"), PLAIN)
def test_a_plain_jpegs_header_is_what_pillow_reads(options, mode, monkeypatch):
    data = encoded(picture().convert(mode), "JPEG", **options)
    assert jpeg.plain_sides(data) == Image.open(io.BytesIO(data)).size[::-1] == (60, 91)
    found = decode(data)
    monkeypatch.setattr("data.decode.image.plain_sides", lambda _: None)
    np.testing.assert_array_equal(found, decode(data))
    for kept in range(len(data) - 1):
        assert jpeg.plain_sides(data[:kept]) in (None, (60, 91))


def test_what_says_how_it_is_to_be_shown_is_not_plain():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    several = encoded(picture(), "MPO", save_all=True, append_images=[picture()])
    for data in (
        encoded(picture(), "JPEG", exif=exif),
        encoded(picture(), "JPEG", xmp=b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"),
        encoded(picture().convert("CMYK"), "JPEG"),
        encoded(picture(), "PNG"),
        several,
        b"",
    ):
        assert jpeg.plain_sides(data) is None


def test_what_cannot_be_decoded_smaller_does_not_ask():
    def never(*_):
        raise AssertionError

    for form in ("PNG", "WEBP", "GIF"):
        decode(encoded(picture(), form), shrink=never)
    decode(encoded(picture().convert("CMYK"), "JPEG"), shrink=never)
    grey = decode(encoded(picture(64, 96).convert("L"), "JPEG"), shrink=lambda *_: 2)
    assert grey.shape == (32, 48, 3) and (grey[..., 0] == grey[..., 2]).all()
    whole = encoded(picture(64, 96), "JPEG")
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(whole[: len(whole) // 2], shrink=lambda *_: 4)


@pytest.mark.parametrize("form", ["PNG", "GIF", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_grey_palette_and_transparent_images_decode_as_pillow_does(form, mode):
    image = picture()
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image = image.convert(mode)
    if mode == "LA" and form in ("GIF", "BMP", "WEBP"):
        image = image.convert("RGBA")
    data = encoded(image, form, **({"lossless": True} if form == "WEBP" else {}))
    assert_close(decode(data), by_pillow(data), 1)


@pytest.mark.parametrize(
    ("mode", "transparent"), [("P", 3), ("P", bytes(range(256))), ("L", 127), ("RGB", (255, 0, 0))]
)
def test_transparent_colours_of_a_png_are_white(mode, transparent):
    image = picture().quantize(256) if mode == "P" else picture().convert(mode)
    data = encoded(image, "PNG", transparency=transparent)
    assert (by_pillow(data) != by_pillow(encoded(image, "PNG"))).any()
    assert_close(decode(data), by_pillow(data), 1)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_to_8(suffix, channels):
    wide = np.linspace(0, 65535, 40 * 50 * channels).astype(np.uint16).reshape(40, 50, channels)
    data = cv2.imencode(suffix, wide[..., ::-1])[1].tobytes()
    expected = np.repeat(wide / 257, 3 // channels, axis=2)
    assert np.abs(decode(data) - expected).max() <= 1


def test_16_bits_with_transparency_lie_over_white():
    wide = np.full((4, 4, 4), 65535, dtype=np.uint16)
    wide[..., :3], wide[..., 3] = 0, 257 * 64
    np.testing.assert_array_equal(decode(cv2.imencode(".png", wide)[1].tobytes()), np.full((4, 4, 3), 191))


def test_cmyk_jpeg_has_its_own_colours():
    colours = {(255, 0, 0): (2, 4), (0, 160, 80): (6, 4), (250, 250, 250): (10, 4)}
    image = Image.new("RGB", (14, 8))
    for colour, (x, _) in colours.items():
        image.paste(colour, (x - 2, 0, x + 2, 8))
    found = decode(encoded(image.convert("CMYK"), "JPEG", quality=100, subsampling=0))
    for colour, (x, y) in colours.items():
        assert np.abs(found[y, x].astype(int) - colour).max() < 16


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
        np.testing.assert_array_equal(decode(data)[4, 4], by_pillow(data)[4, 4])
        assert decode(data)[4, 4, 0] > 250 and decode(data)[4, 4, 2] < 5


@pytest.mark.parametrize(("form", "options"), FORMATS)
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.1])
def test_a_truncated_file_is_an_error_that_names_it(form, options, kept, tmp_path):
    data = encoded(picture(), form, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"cut\.img: cannot be decoded \(.*; replace or remove"):
        decode(path)


def test_files_that_are_no_images_are_one_error_that_names_them(tmp_path):
    for content in (b"", b"hello", b"\xff\xd8\xff\xe0"):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.jpg: cannot be decoded"):
            decode(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=r"y\.jpg: cannot be read \(No such file"):
        decode(tmp_path / "y.jpg")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory"):
        decode(tmp_path)
    with pytest.raises(DataError, match="32 bits"):
        decode(encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"))


def test_a_bomb_is_refused_from_its_header_alone():
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = (60_000).to_bytes(4, "big") * 2  # claims 3.6 gigapixels
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"more pixels than"):
        decode(bytes(data))
    with pytest.raises(DataError, match=r"91 x 60 pixels, more than data.pixel_limit 5459"):
        decode(encoded(picture(), "JPEG"), pixel_limit=91 * 60 - 1)
    assert decode(encoded(picture(), "JPEG"), pixel_limit=91 * 60).shape == (60, 91, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(form=st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "WEBP"]), data=st.data())
def test_damage_gives_pixels_or_a_data_error_and_nothing_else(form, data):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = bytearray(encoded(picture(12, 16), form, **({} if form == "GIF" else {"exif": exif})))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(bytes(content), pixel_limit=10**6)
    except DataError:
        return
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3


def test_heic_without_its_library_is_one_line_that_names_the_install(monkeypatch):
    monkeypatch.setattr("data.decode.image.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(DataError, match=r"is HEIC, which needs pi-heif; run: pip install -e \"\.\[heif\]\""):
        decode(b"\0\0\0\x18ftypheic" + bytes(100))


def test_damaged_heic_is_told():
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(b"\0\0\0\x18ftypheic" + bytes(100))
