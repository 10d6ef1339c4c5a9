"""`data.icc_to_srgb`: colours of an embedded profile as sRGB, in training, in the cache and in inference alike."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import infer
from config.sections.data import Data
from data.augment.transforms import EvalTransform
from data.cache import disk
from data.cache.images import Images
from data.decode.image import decode
from models.card import Card, Preprocessing
from tests.unit import members

ADOBE = (((0.6400, 0.3300), (0.2100, 0.7100), (0.1500, 0.0600)), 2.19921875)
P3 = (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), 2.2)


def profile(primaries: tuple[tuple[float, float], ...], gamma: float, space: bytes = b"RGB ") -> bytes:
    """A display profile of version 2 (ICC.1:2001-04) with three primaries, white D65 adapted to D50, and a gamma."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    columns = xyz * np.linalg.solve(xyz, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1, 0.8249])
    columns = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford @ columns

    def point(values: np.ndarray) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78 + 3)
    parts = {b"desc": text, b"cprt": b"text" + bytes(8), b"wtpt": point(d50)}
    if space == b"GRAY":
        parts[b"kTRC"] = curve
    else:
        parts |= {name + b"XYZ": point(columns[:, k]) for k, name in enumerate((b"r", b"g", b"b"))}
        parts |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    at, table, body = 128 + 4 + 12 * len(parts), struct.pack(">I", len(parts)), b""
    for name, part in parts.items():
        part += bytes(-len(part) % 4)
        table += name + struct.pack(">II", at + len(body), len(part))
        body += part
    head = struct.pack(">I4sI4s4s4s", 128 + len(table) + len(body), bytes(4), 0x02100000, b"mntr", space, b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(struct.pack(">i", round(v * 65536)) for v in d50.tolist())
    return head + bytes(128 - len(head)) + table + body


def ink_profile() -> bytes:
    """A printer's profile of version 2: the colours of 16 mixtures of four inks, and between them a straight line."""
    corners = np.array([[c, m, y, k] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)])
    paper = np.rint(255 * (1 - 0.8 * corners[:, :3]) * (1 - 0.9 * corners[:, 3:])).astype(np.uint8)[None]
    lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    table = np.asarray(ImageCms.applyTransform(Image.fromarray(paper), lab)).astype(np.int8).view(np.uint8)[0].copy()
    table[:, 1:] += 128
    straight = bytes(range(256))
    unit = b"".join(struct.pack(">i", 65536 * (k % 4 == 0)) for k in range(9))
    part = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + 4 * straight + table.tobytes() + 3 * straight
    part += bytes(-len(part) % 4)
    table_of_tags = struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", 128 + 16, len(part))
    head = struct.pack(">I4sI4s4s4s", 144 + len(part), bytes(4), 0x02100000, b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1, 0.8249))
    return head + bytes(128 - len(head)) + table_of_tags + part


def colours(mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([x * 4, y * 5, 255 - x * 3], -1).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, form: str, icc: bytes | None, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **({"icc_profile": icc} if icc else {}), **options)
    return stream.getvalue()


def by_pillow(image: Image.Image, icc: bytes) -> np.ndarray:
    """The reference: Little CMS by Pillow's own function."""
    return np.asarray(
        ImageCms.profileToProfile(image, io.BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB")
    )


@pytest.mark.parametrize(
    ("form", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 98})]
)
@pytest.mark.parametrize("kind", [ADOBE, P3])
def test_colours_of_a_profile_become_srgb_on_request(form, options, kind):
    icc = profile(*kind)
    data = encoded(colours(), form, icc, **options)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    expected = by_pillow(stored, icc).astype(int)
    assert np.abs(expected - np.asarray(stored)).max() > 20
    assert np.abs(decode(data, to_srgb=True) - expected).max() <= (4 if form == "JPEG" else 1)
    assert np.abs(decode(data).astype(int) - np.asarray(stored)).max() <= 2


def test_pure_green_of_adobe_rgb_is_clipped_green_and_grey_stays_grey():
    """IEC 61966-2-1 and Adobe's specification: a value of its green that sRGB has, and any grey, by their formulas."""
    swatch = Image.new("RGB", (4, 4), (144, 238, 144))
    found = decode(encoded(swatch, "PNG", profile(*ADOBE)), to_srgb=True)[0, 0].astype(int)
    assert found[0] < 110 and abs(found[1] - 239) <= 2 and abs(found[2] - 141) <= 4
    grey = decode(encoded(Image.new("RGB", (4, 4), (120, 120, 120)), "PNG", profile(*ADOBE)), to_srgb=True)[0, 0]
    assert np.ptp(grey) <= 1 and abs(int(grey[0]) - 120) <= 3


def test_inks_become_what_their_profile_says():
    icc = ink_profile()
    for form, options in (("TIFF", {}), ("JPEG", {"quality": 98, "subsampling": 0})):
        data = encoded(colours("CMYK"), form, icc, **options)
        stored = Image.open(io.BytesIO(data))
        assert stored.mode == "CMYK"
        expected = by_pillow(stored, icc).astype(int)
        assert np.abs(decode(data, to_srgb=True) - expected).max() <= 1
        assert np.abs(decode(data).astype(int) - expected).mean() > 10


def test_grey_transparent_deep_and_turned_images_with_profiles():
    grey = profile(ADOBE[0], 1.0, b"GRAY")
    for form in ("PNG", "JPEG", "TIFF"):
        data = encoded(colours("L"), form, grey)
        stored = Image.open(io.BytesIO(data)).convert("L")
        assert np.abs(decode(data, to_srgb=True) - by_pillow(stored, grey).astype(int)).max() <= 2
    icc = profile(*ADOBE)
    image = colours()
    converted = Image.fromarray(by_pillow(image, icc))
    for one in (image, converted):
        one.putalpha(Image.linear_gradient("L").resize(image.size))
    expected = decode(encoded(converted, "PNG", None)).astype(int)
    assert np.abs(decode(encoded(image, "PNG", icc), to_srgb=True) - expected).max() <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(colours(), "JPEG", icc, exif=exif, quality=98), to_srgb=True)
    upright = decode(encoded(colours(), "JPEG", icc, quality=98), to_srgb=True)
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))


def test_a_profile_that_does_not_fit_or_is_damaged_changes_nothing():
    plain = decode(encoded(colours(), "PNG", None))
    for icc in (profile(ADOBE[0], 1.0, b"GRAY"), b"no profile at all", profile(*ADOBE)[:150]):
        np.testing.assert_array_equal(decode(encoded(colours(), "PNG", icc), to_srgb=True), plain)
    np.testing.assert_array_equal(decode(encoded(colours(), "PNG", None), to_srgb=True), plain)


def test_a_jpeg_is_decoded_smaller_with_its_profile(tmp_path: Path):
    icc = profile(*ADOBE)
    data = encoded(colours().resize((640, 480)), "JPEG", icc, quality=95)
    found = decode(data, shrink=lambda *_: 4, to_srgb=True)
    assert found.shape == (120, 160, 3)
    whole = Image.fromarray(decode(data, to_srgb=True)).resize((160, 120), Image.Resampling.BOX)
    assert np.abs(found - np.asarray(whole).astype(int)).mean() < 3


def test_a_card_carries_it_and_older_cards_have_it_off():
    card = Card("convnext_atto", ("a", "b"), Preprocessing(32, icc_to_srgb=True))
    assert Card.from_json(card.to_json(), "x").preprocessing.icc_to_srgb
    plain = Card("convnext_atto", ("a", "b"), Preprocessing(32)).to_json()
    assert "icc_to_srgb" not in plain and not Card.from_json(plain, "x").preprocessing.icc_to_srgb
    assert json.loads(card.to_json())["preprocessing"]["icc_to_srgb"] is True


def test_inference_does_as_the_card_says_for_each_member(tmp_path: Path):
    icc = profile(*ADOBE)
    image = colours().resize((32, 32))
    data = encoded(image, "PNG", icc)
    (tmp_path / "x.png").write_bytes(data)
    shown = by_pillow(image, icc)
    converting = members.checkpoint(tmp_path / "srgb", seed=1, sharpness=1, of=members.card(icc_to_srgb=True))
    plain = members.checkpoint(tmp_path / "plain", seed=1, sharpness=1)
    with infer.load(plain) as model:
        as_stored, in_srgb = model.predict([np.asarray(image), shown]).probabilities
    assert np.abs(as_stored - in_srgb).max() > 0.01
    with infer.load(converting) as model:
        opened = Image.open(io.BytesIO(data))
        found = model.predict([tmp_path / "x.png", data, opened, shown]).probabilities
    assert np.abs(found - in_srgb).max() < 1e-3
    from infer.explain.report import explain

    ensemble = tmp_path / "two.yaml"
    ensemble.write_text(f"members:\n- {{path: {plain}}}\n- {{path: {converting}}}\n")
    with infer.load(ensemble) as both:
        alone = explain(both, data, 10**6).members
        assert np.abs(np.stack([*alone.values()]) - [as_stored, in_srgb]).max() < 1e-3
        mixed = both.predict(tmp_path / "x.png").probabilities[0]
    assert np.abs(mixed - (as_stored + in_srgb) / 2).max() < 1e-3


def test_the_cache_keeps_both_kinds_of_colours_apart(tmp_path: Path):
    icc, path = profile(*ADOBE), tmp_path / "x.png"
    path.write_bytes(encoded(colours(), "PNG", icc))
    found = {}
    for to_srgb in (False, True, False):
        data = Data(root=tmp_path, cache_gb=1, cache_dir=tmp_path / "cache", icc_to_srgb=to_srgb, workers=1)
        prep = Preprocessing(32, icc_to_srgb=to_srgb)
        made = disk.sources(data, prep, [path], Images.of(data), lambda: False)
        assert made.judged is not None
        expected = EvalTransform(prep)(decode(path, to_srgb=to_srgb))
        np.testing.assert_array_equal(made.judged(path, lambda *_: 1), expected)
        found[to_srgb] = made.train(path, lambda *_: 1)
    assert np.abs(found[True].astype(int) - found[False]).max() > 20
