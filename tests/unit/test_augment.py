import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import v2 as tv

from config.sections.augment import OPERATIONS, Augment
from data import resize
from data.augment import geometry, transforms
from data.decode.image import decode
from models.card import Preprocessing
from tests.unit.pictures import PHOTO, chance, difference, photograph

LEVELS = ["none", "minimal", "moderate", "hard"]
FITS = ["crop", "squash", "letterbox"]
POLICIES = ["rand", "trivial", "three"]


def section(**settings):
    """The settings, those that are named as an operation under `ops`."""
    ops = {name: settings.pop(name) for name in OPERATIONS if name in settings}
    return Augment(**settings, ops=ops)


def training(level="none", size=48, fit="crop", share=1.0, **settings):
    return transforms.train_transform(section(level=level, **settings), Preprocessing(size=size, fit=fit), share)


# To the square of a model.


@pytest.mark.parametrize("shape", [(150, 211), (211, 150), (97, 97), (40, 50), (500, 333)])
@pytest.mark.parametrize(("size", "share"), [(64, 0.875), (64, 1.0), (96, 0.9)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_centre_crop_shows_what_torchvisions_shows(shape, size, share, interpolation):
    image = photograph(*shape)
    found = transforms.EvalTransform(Preprocessing(size=size, crop_pct=share, interpolation=interpolation))(image)
    reference = tv.Compose(
        [tv.Resize(math.floor(size / share), interpolation=InterpolationMode(interpolation)), tv.CenterCrop(size)]
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
    squashed = transforms.EvalTransform(Preprocessing(size=48, fit="squash"))(image)
    assert squashed.shape == (48, 48, 3) and (squashed == 200).all()
    boxed = transforms.EvalTransform(Preprocessing(size=48, fit="letterbox"))(image)
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


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory):
    path = tmp_path_factory.mktemp("jpeg") / "large.jpg"
    Image.fromarray(photograph(700, 1000)).save(path, quality=95, subsampling=0)
    return path


def both(path, transform, number):
    """What a transform makes of a JPEG that is decoded as small as it allows, and of the whole one."""
    small = decode(path, shrink=lambda height, width: transform.shrink(height, width, lambda: chance(number)))
    assert small.shape[0] < 700
    return transform(small, chance(number)), transform(decode(path), chance(number))


@pytest.mark.parametrize("fit", FITS)
def test_evaluation_sees_the_same_of_a_jpeg_decoded_smaller(fit, jpeg):
    found, wanted = both(jpeg, transforms.EvalTransform(Preprocessing(size=48, fit=fit, crop_pct=0.9)), 0)
    assert difference(found, wanted).mean() < 0.2 * difference(np.roll(wanted, 1, 0), wanted).mean()


@pytest.mark.parametrize("shape", [(375, 500), (700, 1000), (301, 449), (640, 480)])
@pytest.mark.parametrize("size", [31, 48, 93])
def test_a_jpeg_is_decoded_smaller_only_where_the_crop_stays_in_its_place(shape, size, tmp_path):
    path, transform = tmp_path / "x.jpg", transforms.EvalTransform(Preprocessing(size=size))
    Image.fromarray(photograph(*shape)).save(path, quality=95, subsampling=0)
    whole = decode(path)
    reference = tv.Compose([tv.Resize(size, interpolation=InterpolationMode.BILINEAR), tv.CenterCrop(size)])
    expected = np.asarray(reference(Image.fromarray(whole)))
    near, small = (
        difference(transform(image), expected)[2:-2, 2:-2].mean()
        for image in (whole, decode(path, shrink=transform.shrink))
    )
    assert small < 1.15 * near


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("level", ["minimal", "moderate"])
def test_training_sees_the_same_of_a_jpeg_decoded_smaller_within_a_pixel(fit, level, jpeg):
    transform = training(level, fit=fit, min_scale=0.3, affine=False, random_erasing=False)
    for i in range(6):
        found, wanted = both(jpeg, transform, i)
        shifts = [np.roll(wanted, step, axis) for step in (1, -1) for axis in (0, 1)]
        nearest = min(difference(found, one).mean() for one in (wanted, *shifts))  # a letterbox may lie a pixel off
        assert nearest < 0.8 * difference(shifts[0], wanted).mean()


# The levels.


@pytest.mark.parametrize("settings", [*({"level": level} for level in LEVELS), *({"policy": p} for p in POLICIES)])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(150, 211), (32, 32), (1, 300), (300, 1), (5, 4)])
def test_everything_takes_every_image_and_only_its_key_decides(settings, fit, shape):
    image = photograph(*shape)
    given = image.copy()
    image.flags.writeable = False
    transform = training(fit=fit, rotate_any=True, perspective=True, rotate90=True, erosion=True, **settings)
    found = transform(image, chance(7))
    assert found.shape == (48, 48, 3) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, transform(image, chance(7)))
    np.testing.assert_array_equal(image, given)


def test_none_is_what_evaluation_sees_and_the_levels_grow_stronger():
    for fit in FITS:
        plain = transforms.EvalTransform(Preprocessing(size=64, fit=fit))(PHOTO)
        np.testing.assert_array_equal(training("none", 64, fit)(PHOTO, chance()), plain)
    square = photograph(64, 64)
    change = [
        np.mean([difference(training(level, 64, hflip=False)(square, chance(i)), square).mean() for i in range(60)])
        for level in LEVELS
    ]
    assert change[0] == 0 and change == sorted(change) and change[1] > 1


def test_minimal_keeps_a_digit_whole():
    digit = np.zeros((32, 32, 3), dtype=np.uint8)
    digit[5:27, 10:22] = 255
    found = [training("minimal", 32, hflip=False)(digit, chance(i)) for i in range(100)]
    assert all(0.7 < image.sum() / digit.sum() < 1.4 for image in found)
    assert all(not image[0].any() and not image[-1].any() for image in found)
    assert len({image.tobytes() for image in found}) > 95


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True), (False, False)])
def test_flips_act_on_half_of_the_images_and_only_where_asked(flips):
    image = np.zeros((48, 48, 3), dtype=np.uint8)
    image[8:20, 8:20] = 255
    transform = training("minimal", hflip=flips[0], vflip=flips[1])
    found = [transform(image, chance(i))[..., 0].astype(float) for i in range(200)]
    right = np.mean([image[:, 24:].sum() > image[:, :24].sum() for image in found])
    down = np.mean([image[24:].sum() > image[:24].sum() for image in found])
    for share, wanted in ((right, flips[0]), (down, flips[1])):
        assert 0.38 < share < 0.62 if wanted else share == 0


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("shape", [(60, 140), (140, 60), (90, 90)])
def test_letterboxing_loses_nothing_and_its_padding_stays_as_evaluation_has_it(level, shape):
    # A white sheet with a black line around it: the line must be seen on all four sides, and grey beyond it.
    page = np.full((*shape, 3), 255, np.uint8)
    page[:8] = page[-8:] = page[:, :8] = page[:, -8:] = 0
    blocks = {"random_erasing": False, "solarize": False, "bleed_through": False, "dilation": False}
    transform = training(level, 96, "letterbox", rotate_any=True, perspective=True, **blocks)
    for i in range(40):
        image = transform(page, chance(i)).astype(int)
        padding = (np.abs(image - resize.PAD) <= 1).all(axis=-1)
        assert padding.mean() > 0.02
        for side in (image, image[::-1], image.transpose(1, 0, 2), image.transpose(1, 0, 2)[::-1]):
            content = (np.abs(side - resize.PAD) > 30).any(axis=-1)
            first = np.argmax(content.any(axis=1))
            assert side[first : first + 3][content[first : first + 3]].min() < 110  # the line, not the white inside it


def test_mirrored_slivers_are_gone_from_letterboxed_images():
    stripe = np.zeros((40, 80, 3), np.uint8)
    stripe[..., 0] = 255
    for i in range(40):
        image = training(
            "moderate", 64, "letterbox", brightness=False, hue=False, random_erasing=False, contrast=False
        )(stripe, chance(i))
        red = np.argwhere(image[..., 0].astype(int) - image[..., 1] > 60)
        hull = np.abs(np.diff(red[np.lexsort(red.T[::-1])][:, 1]))
        assert (hull[np.diff(red[np.lexsort(red.T[::-1])][:, 0]) == 0] == 1).all()  # one piece in each row


# Switches, policies and the ramp.


def acting(**settings):
    return set(transforms.alone(section(**settings), Preprocessing(size=32)))


def test_an_entry_of_ops_adds_or_removes_its_operation_alone():
    usual = acting(level="hard", hflip=False)
    assert usual == set(transforms.LEVELS["hard"].operations)
    assert acting(level="hard", hflip=False, erosion=False) == usual - {"erosion"}
    assert acting(level="hard", hflip=False, rotate90=True, jpeg=True) == usual | {"rotate90"}
    assert acting(level="none", shadow=True) == {"shadow"}


@pytest.mark.parametrize("name", transforms.STANDARD)
def test_each_operation_can_be_switched_on_by_itself_and_then_acts(name):
    image = photograph(64, 64)
    plain = transforms.EvalTransform(Preprocessing(size=64))(image)
    found = [training("none", 64, **{name: True})(image, chance(i)) for i in range(40)]
    assert any((x != plain).any() for x in found)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_takes_the_place_of_the_levels_operations_but_not_of_erasing_and_ops(policy):
    assert acting(level="hard", policy=policy, hflip=False, gaussian_blur=True) == {"random_erasing", "gaussian_blur"}


def test_the_smallest_area_can_be_set():
    y, x = np.mgrid[:120, :120]
    place = np.stack([x * 2, y * 2, x], -1).astype(np.uint8)
    widths = [
        np.ptp(training("none", 32, min_scale=0.1)(place, chance(i))[..., 0].astype(int)) / 238 for i in range(60)
    ]
    assert min(widths) < 0.45 and max(widths) > 0.85
    filled = [
        (training("minimal", 32, "letterbox", min_scale=0.2, affine=False)(place * 0, chance(i)) < 100).mean()
        for i in range(60)
    ]
    assert 0.15 < min(filled) < 0.4 and max(filled) > 0.85


def test_the_ramp_is_a_function_of_the_epoch():
    def shares(ramp, off):
        asked = Augment(ramp=ramp, off_epochs=off)
        return [round(transforms.share_at(asked, epoch, 6), 4) for epoch in range(6)]

    assert shares("constant", 0) == [1] * 6
    assert shares("constant", 2) == [1, 1, 1, 1, 0, 0]
    assert shares("up", 2) == [0.25, 0.5, 0.75, 1, 0, 0]
    assert shares("down", 1) == [1, 0.8, 0.6, 0.4, 0.2, 0]
    assert shares("up", 6) == [0] * 6


@pytest.mark.parametrize(
    "settings", [{"level": "hard", "random_erasing": False}, {"policy": "rand"}, {"policy": "three"}, {"rotate": True}]
)
def test_a_smaller_share_changes_less_and_none_is_evaluation(settings):
    square = photograph(64, 64)
    change = [
        np.mean(
            [
                difference(training(size=64, share=share, hflip=False, **settings)(square, chance(i)), square).mean()
                for i in range(80)
            ]
        )
        for share in (0.0, 0.3, 0.6, 1.0)
    ]
    assert change[0] == 0 and all(one < other for one, other in pairwise(change))
    epochs = transforms.by_epoch(section(**settings, off_epochs=1), Preprocessing(size=64), 3)
    np.testing.assert_array_equal(
        epochs.at(2)(PHOTO, chance()), transforms.EvalTransform(Preprocessing(size=64))(PHOTO)
    )
