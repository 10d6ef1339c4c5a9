import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv
from torchvision.transforms.v2 import functional as tvf

from config.errors import ConfigError
from data import augment, geometry, keyed, ops, resize
from models.card import Preprocessing

LEVELS = ["none", "minimal", "moderate", "hard"]
FITS = ["crop", "squash", "letterbox"]


def photograph(height: int = 150, width: int = 211) -> np.ndarray:
    """Textures from coarse to fine, as photographs have them (spectrum 1 / f), in colour."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]) + 1 / width
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(3)]
    image = np.stack(planes, -1) @ np.array([[1, 0.8, 0.6], [0, 0.6, 0.3], [0.1, 0, 0.7]])
    image = (image - image.mean()) / image.std() * 55 + 120
    return np.clip(image, 0, 255).astype(np.uint8)


PHOTO = photograph()


def chance(number: int = 0) -> np.random.Generator:
    return keyed.rng(0, "augment", 0, number)


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    assert one.dtype == np.uint8 and one.shape == other.shape
    return np.abs(one.astype(int) - np.asarray(other).astype(int))


# The plain functions, against the public ones.


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "enhancer"),
    [
        (ops.adjust_brightness, ImageEnhance.Brightness),
        (ops.adjust_contrast, ImageEnhance.Contrast),
        (ops.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_brightness_contrast_and_saturation_are_pils(ours, enhancer, factor):
    expected = np.asarray(enhancer(Image.fromarray(PHOTO)).enhance(factor))
    assert difference(ours(PHOTO, factor), expected).max() <= 2


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.05, 0.3])
def test_hue_is_torchvisions(turn):
    expected = np.asarray(tvf.adjust_hue(Image.fromarray(PHOTO), turn))
    found = difference(ops.adjust_hue(PHOTO, turn), expected)
    assert found.mean() < 1.5 and np.percentile(found, 99) <= 6


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.6])
def test_gamma_is_torchvisions(gamma):
    expected = tvf.adjust_gamma(torch.from_numpy(PHOTO).permute(2, 0, 1), gamma).permute(1, 2, 0).numpy()
    assert difference(ops.adjust_gamma(PHOTO, gamma), expected).max() <= 1


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_posterize_is_pils(bits):
    np.testing.assert_array_equal(
        ops.posterize_to(PHOTO, bits), np.asarray(ImageOps.posterize(Image.fromarray(PHOTO), bits))
    )


@pytest.mark.parametrize("threshold", [0, 100, 256])
def test_solarize_is_pils(threshold):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(PHOTO), threshold))
    np.testing.assert_array_equal(ops.solarize_from(PHOTO, threshold), expected)


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_blur_is_scipys(sigma):
    expected = ndimage.gaussian_filter(PHOTO.astype(float), (sigma, sigma, 0), mode="mirror")
    assert difference(ops.blur_by(PHOTO, sigma), np.rint(expected)).max() <= 2


def test_jpeg_damage_is_that_of_pils_encoder_at_the_same_quality():
    data = io.BytesIO()
    Image.fromarray(PHOTO).save(data, "JPEG", quality=30)
    assert difference(ops.compress(PHOTO, 30), np.asarray(Image.open(data))).max() <= 2


def test_a_warp_moves_pixels_as_torchvision_does():
    image = np.zeros((101, 121, 3), dtype=np.uint8)
    image[30:70, 40:90] = ndimage.zoom(photograph(10, 10), (4, 5, 1), order=1)
    found = geometry.warp(image, degrees=20, shear=-12, zoom=1.1, shift=(9, -4))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = tvf.affine(tensor, 20, [9, -4], 1.1, [-12, 0], interpolation=InterpolationMode.BILINEAR)
    found_differences = difference(found, expected.permute(1, 2, 0).numpy())
    assert found_differences.mean() < 0.3 and np.percentile(found_differences, 99) <= 3


def test_a_warp_by_nothing_changes_nothing():
    np.testing.assert_array_equal(geometry.warp(PHOTO), PHOTO)


# Each block.


@pytest.mark.parametrize("name", augment.OPS)
def test_a_block_keeps_shape_input_and_promise(name):
    op, image = augment.OPS[name], PHOTO.copy()
    image.flags.writeable = False
    strongest = [op(image, chance(i), 1.0) for i in range(8)]
    assert all(found.shape == image.shape and found.dtype == np.uint8 for found in strongest)
    assert any((found != image).any() for found in strongest)
    np.testing.assert_array_equal(op(image, chance(3), 1.0), strongest[3])
    np.testing.assert_array_equal(image, PHOTO)
    if name not in ("hflip", "vflip"):
        assert difference(op(image, chance(), 0.0), image).mean() < 0.5  # hue rounds on its way to HSV and back


@pytest.mark.parametrize("name", augment.OPS)
def test_blocks_take_the_smallest_images(name):
    for shape in ((1, 1, 3), (1, 7, 3), (8, 8, 3)):
        for i in range(5):
            assert augment.OPS[name](np.full(shape, 90, dtype=np.uint8), chance(i), 1.0).shape == shape


def test_flips_are_numpys():
    np.testing.assert_array_equal(augment.OPS["hflip"](PHOTO, chance(), 1.0), PHOTO[:, ::-1])
    np.testing.assert_array_equal(augment.OPS["vflip"](PHOTO, chance(), 1.0), PHOTO[::-1])


def test_erasing_takes_a_rectangle_of_the_promised_size():
    blank = np.full((80, 100, 3), 77, dtype=np.uint8)
    shares = []
    for i in range(100):
        changed = (ops.erase(blank, chance(i), 1.0) != 77).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        shares.append(changed.mean())
    assert min(shares) < 0.05 and 0.25 < max(shares) <= 0.34


# To the square of a model.


@pytest.mark.parametrize("shape", [(150, 211), (211, 150), (97, 97), (40, 50), (500, 333)])
@pytest.mark.parametrize(("size", "share"), [(64, 0.875), (64, 1.0), (96, 0.9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_centre_crop_shows_what_torchvisions_shows(shape, size, share, interpolation):
    image = photograph(*shape)
    found = augment.eval_transform(Preprocessing(size=size, crop_pct=share, interpolation=interpolation))(image)
    reference = tv.Compose(
        [tv.Resize(round(size / share), interpolation=InterpolationMode(interpolation)), tv.CenterCrop(size)]
    )
    expected = np.asarray(reference(Image.fromarray(image)))
    fit = difference(found, expected)[2:-2, 2:-2].mean()
    for moved in (np.roll(expected, step, axis) for step in (1, -1) for axis in (0, 1)):
        assert fit < 0.5 * difference(found, moved)[2:-2, 2:-2].mean()


@pytest.mark.parametrize("shape", [(150, 211), (40, 50), (700, 601)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (200, 30), (30, 400), (37, 53), (96, 97)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resizing_is_nearer_to_pillows_filter_than_pillows_box_is(shape, height, width, interpolation):
    image = photograph(*shape)
    wanted, box = (
        np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling[name]))
        for name in (interpolation.upper(), "BOX")
    )
    found = resize.resize(image, height, width, interpolation)
    assert difference(found, wanted).mean() < difference(box, wanted).mean()


@pytest.mark.parametrize(("height", "width"), [(16, 16), (11, 25), (18, 13)])
def test_shrinking_gives_the_mean_of_the_area_under_each_pixel(height, width):
    image = photograph(37, 53)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    fine = tensor.repeat_interleave(height, 2).repeat_interleave(width, 3)
    expected = torch.nn.functional.avg_pool2d(fine, image.shape[:2])[0].permute(1, 2, 0).numpy()
    found = resize.resize(image, height, width)
    assert np.abs(found - expected).max() <= 1


def test_a_fine_pattern_does_not_alias():
    stripes = np.zeros((400, 403, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    for size in (50, 60, 80, 110, 150, 190):
        small = resize.resize(stripes, size, size)
        assert np.abs(small[:, 2:-2].astype(int) - 128).max() <= 40


def test_squash_shows_all_and_letterbox_keeps_the_aspect_ratio():
    image = np.full((60, 120, 3), 200, dtype=np.uint8)
    squashed = augment.eval_transform(Preprocessing(size=48, fit="squash"))(image)
    assert squashed.shape == (48, 48, 3) and (squashed == 200).all()
    boxed = augment.eval_transform(Preprocessing(size=48, fit="letterbox"))(image)
    assert boxed.shape == (48, 48, 3)
    assert (boxed[12:36] == 200).all() and (boxed[:12] == resize.PAD).all() and (boxed[36:] == resize.PAD).all()


def test_a_random_crop_is_a_part_of_the_promised_area_and_shape():
    y, x = np.mgrid[:150, :200]
    place = np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)
    areas, shapes, lefts = [], [], []
    for i in range(300):
        found = geometry.random_crop(place, chance(i), 32, 0.25).astype(float)
        width, height = np.ptp(found[..., 0]) * 32 / 31, np.ptp(found[..., 1]) * 32 / 31
        areas.append(width * height / (150 * 200))
        shapes.append(width / height)
        lefts.append(found[..., 0].min())
    assert 0.22 < min(areas) < 0.35 and 0.85 < max(areas) <= 1.03
    assert 0.70 < min(shapes) < 0.85 and 1.2 < max(shapes) < 1.40
    torch.manual_seed(0)
    drawn = np.array(
        [
            tv.RandomResizedCrop.make_params(tv.RandomResizedCrop(32, (0.25, 1)), [torch.empty(3, 150, 200)])
            for _ in range(300)
        ]
    )
    expected = [d["height"] * d["width"] / (150 * 200) for d in drawn]
    assert abs(np.mean(areas) - np.mean(expected)) < 0.04
    assert abs(np.mean(lefts) - np.mean([d["left"] for d in drawn])) < 5


# The levels.


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(150, 211), (32, 32), (1, 300), (300, 1), (5, 4)])
def test_every_level_takes_every_image_and_only_its_key_decides(level, fit, shape):
    image = photograph(*shape)
    image.flags.writeable = False
    transform = augment.train_transform(level, 48, fit)
    found = transform(image, chance(7))
    assert found.shape == (48, 48, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, transform(image, chance(7)))


def test_none_is_what_evaluation_sees_and_the_levels_grow_stronger():
    for fit in FITS:
        plain = augment.eval_transform(Preprocessing(size=64, fit=fit))(PHOTO)
        np.testing.assert_array_equal(augment.train_transform("none", 64, fit)(PHOTO, chance()), plain)
    square = photograph(64, 64)
    change = [
        np.mean(
            [
                difference(augment.train_transform(level, 64, hflip=False)(square, chance(i)), square).mean()
                for i in range(60)
            ]
        )
        for level in LEVELS
    ]
    assert change[0] == 0 and change == sorted(change) and change[1] > 1


def test_minimal_keeps_a_digit_whole():
    digit = np.zeros((32, 32, 3), dtype=np.uint8)
    digit[5:27, 10:22] = 255
    transform = augment.train_transform("minimal", 32, hflip=False)
    found = [transform(digit, chance(i)) for i in range(100)]
    assert all(0.7 < image.sum() / digit.sum() < 1.4 for image in found)
    assert all(not image[0].any() and not image[-1].any() for image in found)
    assert len({image.tobytes() for image in found}) > 95


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True), (False, False)])
def test_flips_act_on_half_of_the_images_and_only_where_asked(flips):
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    image[8:20, 8:20] = 255
    transform = augment.train_transform("minimal", 48, hflip=flips[0], vflip=flips[1])
    found = [transform(image, chance(i))[..., 0].astype(float) for i in range(200)]
    right = np.mean([image[:, 24:].sum() > image[:, :24].sum() for image in found])
    down = np.mean([image[24:].sum() > image[:24].sum() for image in found])
    for share, wanted in ((right, flips[0]), (down, flips[1])):
        assert 0.38 < share < 0.62 if wanted else share == 0


def test_an_unknown_level_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'moderat': choose one of none, minimal, moderate, hard.*'moderate'"):
        augment.train_transform("moderat", 32)
