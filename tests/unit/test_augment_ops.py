import io
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage, stats
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from data.augment import colour, documents, geometry, ops, tone, transforms
from data.resize import PAD
from tests.unit.pictures import PHOTO, chance, difference, photograph


def tinted(name):
    return lambda image, rng, strength: colour.tint(image, rng, {name: strength})


BLOCKS = {**geometry.FLIPS, **documents.OPS, **{name: tinted(name) for name in colour.MAPS}, **ops.OPS}
SWITCHES = {*geometry.FLIPS, *documents.SWITCHES, *ops.SWITCHES}


# The plain functions, against the public ones.


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("ours", "enhancer"),
    [
        (tone.adjust_brightness, ImageEnhance.Brightness),
        (tone.adjust_contrast, ImageEnhance.Contrast),
        (tone.adjust_saturation, ImageEnhance.Color),
        (tone.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_brightness_contrast_saturation_and_sharpness_are_pils(ours, enhancer, factor):
    expected = np.asarray(enhancer(Image.fromarray(PHOTO)).enhance(factor))
    assert difference(ours(PHOTO, factor), expected).max() <= 2  # PIL cuts off where cv2 rounds, once or twice


def test_maps_of_colour_in_one_pass_are_pils_one_after_another():
    mild = (PHOTO // 2 + 64).astype(np.uint8)  # nothing is cut off on the way
    expected = Image.fromarray(mild)
    for enhancer, factor in ((ImageEnhance.Brightness, 0.9), (ImageEnhance.Contrast, 0.8), (ImageEnhance.Color, 1.3)):
        expected = enhancer(expected).enhance(factor)
    drawn = iter([0.9, 0.8, 1.3])
    maps = {
        "brightness": lambda *_: colour.scaled(next(drawn)),
        "contrast": lambda light, *_: colour.spread(next(drawn), light),
        "saturation": lambda *_: colour.saturated(next(drawn)),
    }
    with mock.patch.dict(colour.MAPS, maps):
        found = colour.tint(mild, chance(), dict.fromkeys(maps, 1.0))
    assert difference(found, np.asarray(expected)).max() <= 3  # PIL cuts off three times where cv2 rounds once


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.05, 0.3])
def test_hue_is_torchvisions(turn):
    expected = np.asarray(tvf.adjust_hue(Image.fromarray(PHOTO), turn))
    found = difference(tone.adjust_hue(PHOTO, turn), expected)
    assert found.mean() < 1.5 and np.percentile(found, 99) <= 6


@pytest.mark.parametrize("gamma", [0.5, 1.0, 1.6])
def test_gamma_is_torchvisions(gamma):
    expected = tvf.adjust_gamma(torch.from_numpy(PHOTO).permute(2, 0, 1), gamma).permute(1, 2, 0).numpy()
    assert difference(tone.adjust_gamma(PHOTO, gamma), expected).max() <= 1


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_posterize_is_pils(bits):
    np.testing.assert_array_equal(
        tone.posterize_to(PHOTO, bits), np.asarray(ImageOps.posterize(Image.fromarray(PHOTO), bits))
    )


@pytest.mark.parametrize("threshold", [0, 100, 256])
def test_solarize_is_pils(threshold):
    expected = np.asarray(ImageOps.solarize(Image.fromarray(PHOTO), threshold))
    np.testing.assert_array_equal(tone.solarize_from(PHOTO, threshold), expected)


@pytest.mark.parametrize("amount", [0, 50, 110])
def test_solarize_add_is_timms(amount):
    expected = np.asarray(auto_augment.solarize_add(Image.fromarray(PHOTO), amount))
    np.testing.assert_array_equal(tone.solarize_add(PHOTO, amount), expected)


FLAT, TWO = np.full((9, 9, 3), 90, np.uint8), np.repeat(np.array([[10, 200]], np.uint8), 3).reshape(1, 2, 3)
DIM = (PHOTO // 4 + 60).astype(np.uint8)


@pytest.mark.parametrize("image", [PHOTO, DIM, FLAT, TWO], ids=["photo", "dim", "flat", "two pixels"])
def test_autocontrast_equalize_invert_and_grey_are_pils(image):
    pil = Image.fromarray(image)
    assert difference(tone.autocontrast(image), np.asarray(ImageOps.autocontrast(pil))).max() <= 1
    np.testing.assert_array_equal(tone.equalize(image), np.asarray(ImageOps.equalize(pil)))
    np.testing.assert_array_equal(tone.invert(image), np.asarray(ImageOps.invert(pil)))
    assert difference(tone.to_grey(image), np.asarray(pil.convert("L").convert("RGB"))).max() <= 1


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_blur_is_scipys(sigma):
    expected = ndimage.gaussian_filter(PHOTO.astype(float), (sigma, sigma, 0), mode="mirror")
    assert difference(ops.blur_by(PHOTO, sigma), np.rint(expected)).max() <= 2


def test_jpeg_damage_is_that_of_pils_encoder_at_the_same_quality():
    data = io.BytesIO()
    Image.fromarray(PHOTO).save(data, "JPEG", quality=30)
    assert difference(ops.compress(PHOTO, 30), np.asarray(Image.open(data))).max() <= 2


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("ours", "scipys"), [(documents.erode, ndimage.grey_erosion), (documents.dilate, ndimage.grey_dilation)]
)
def test_erosion_and_dilation_are_scipys_in_whole_steps_and_between_them_in_between(ours, scipys, side):
    # Beside the border, and in where the middle of an even square is, the two are free to differ.
    found = ours(PHOTO, side - 1)
    wanted = [np.roll(scipys(PHOTO, (side, side, 1)), (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert min(difference(found, w)[4:-4, 4:-4].max() for w in wanted) == 0
    half, next_one = ours(PHOTO, side - 0.5), ours(PHOTO, side)
    assert difference(half, np.rint((found.astype(float) + next_one) / 2)).max() <= 1


@pytest.mark.parametrize("quarters", range(4))
def test_quarter_turns_are_numpys_and_each_is_as_likely(quarters):
    turned = [documents.rotate90(PHOTO, chance(i)) for i in range(80)]
    wanted = np.rot90(PHOTO, quarters)
    assert 8 <= sum(t.shape == wanted.shape and (t == wanted).all() for t in turned) <= 32


def test_a_shadow_darkens_one_side_only_and_its_edge_lies_where_it_is_told():
    white = np.full((100, 200, 3), 200, np.uint8)
    shaded = documents.shade(white, degrees=0, position=0, softness=0.01, light=0.5)
    assert (shaded[:, :97] == 200).all() and (shaded[:, 103:] == 100).all()
    shaded = documents.shade(white, degrees=90, position=0, softness=0.01, light=0.5)
    assert (shaded[:47] == 200).all() and (shaded[53:] == 100).all()
    soft = documents.shade(white, degrees=180, position=0, softness=1.0, light=0.5)[50, :, 0].astype(int)
    assert (np.diff(soft) >= 0).all() and len(np.unique(soft)) > 40


def test_print_shows_through_mirrored_and_only_darkens():
    page = np.full((100, 200, 3), 250, np.uint8)
    page[20:40, 10:50] = 0
    seen = documents.show_through(page, page, 0.3, 0.5)
    assert (seen <= page).all() and (seen[20:40, 10:50] == 0).all()
    assert (seen[25:35, 155:185] < 185).all() and (seen[60:] > 240).all()


def test_brightening_never_wipes_out_a_white_page():
    page = np.full((100, 100, 3), 240, np.uint8)
    page[40:60, 20:80] = 180
    for i in range(60):
        found = BLOCKS["brightness"](page, chance(i), 1.0).astype(int)
        assert found[0, 0, 0] - found[50, 50, 0] > 20


# Moving pixels.


def test_motions_and_a_warp_are_torchvisions_affine():
    image = np.zeros((101, 121, 3), dtype=np.uint8)
    image[30:70, 40:90] = ndimage.zoom(photograph(10, 10), (4, 5, 1), order=1)
    quad = geometry.moved(geometry.corners(101, 121), degrees=20, shear=-12, zoom=1.1, shift=(9, -4))
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = tvf.affine(tensor, 20, [9, -4], 1.1, [-12, 0], interpolation=InterpolationMode.BILINEAR)
    found = difference(geometry.cover(image, quad), expected.permute(1, 2, 0).numpy())
    assert found.mean() < 0.3 and np.percentile(found, 99) <= 3


def test_a_perspective_warp_is_torchvisions():
    image = np.zeros((101, 121, 3), dtype=np.uint8)
    image[10:90, 10:110] = photograph(80, 100)
    start = [[0, 0], [121, 0], [121, 101], [0, 101]]
    end = [[12, 4], [110, 9], [117, 95], [3, 90]]
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    expected = tvf.perspective(tensor, start, end, interpolation=InterpolationMode.BILINEAR)
    found = difference(geometry.cover(image, np.array(end) - [60.5, 50.5]), expected.permute(1, 2, 0).numpy())
    assert found.mean() < 0.5 and np.percentile(found, 99) <= 4


def test_a_warp_by_nothing_changes_nothing():
    np.testing.assert_array_equal(geometry.cover(PHOTO, geometry.corners(*PHOTO.shape[:2])), PHOTO)


@pytest.mark.parametrize("motion", geometry.MOTIONS.values(), ids=geometry.MOTIONS)
def test_motions_grow_with_their_strength_and_keep_the_corners_in_order(motion):
    start = geometry.corners(60, 80)
    np.testing.assert_allclose(motion(start, chance(), 0.0), start, atol=1e-9)
    far = [np.abs(np.mean([np.abs(motion(start, chance(i), s) - start) for i in range(40)])) for s in (0.2, 0.6, 1)]
    assert far == sorted(far) and far[0] > 0.3
    for i in range(40):
        quad = motion(start, chance(i), 1.0)
        edges = np.roll(quad, -1, 0) - quad
        following = np.roll(edges, -1, 0)
        assert (edges[:, 0] * following[:, 1] - edges[:, 1] * following[:, 0] > 0).all()


def test_perspective_leaves_nothing_of_the_frame_uncovered():
    assert all(
        (np.abs(geometry.perspective(geometry.corners(64, 64), chance(i), 1.0)) >= 32 - 1e-9).all() for i in range(30)
    )


def test_a_uniform_background_goes_on_beyond_the_edge_and_a_photograph_is_mirrored():
    digit = np.zeros((32, 32, 3), np.uint8)
    digit[:, 14:18] = 255  # a stroke that reaches the edges
    quad = geometry.moved(geometry.corners(32, 32), shift=(0, 8))
    assert not geometry.cover(digit, quad)[:8].any()
    np.testing.assert_array_equal(
        geometry.cover(PHOTO, geometry.moved(geometry.corners(*PHOTO.shape[:2]), shift=(0, 20)))[:20], PHOTO[20:0:-1]
    )


@pytest.mark.parametrize("shape", [(40, 90), (120, 50), (33, 33), (2, 200)])
@pytest.mark.parametrize("size", [32, 64])
def test_a_kept_image_is_whole_on_clean_padding(shape, size):
    image = np.full((*shape, 3), 255, np.uint8)
    for i in range(12):
        quad = geometry.corners(*shape)
        for motion in geometry.MOTIONS.values():
            quad = motion(quad, chance(i), 1.0)
        area = chance(i).uniform(0.3, 1)
        placed = geometry.keep(image, quad, size, area, chance(i))
        assert (placed.image[placed.padding] < PAD + 70).all() and (placed.image[~placed.padding] > PAD + 50).all()
        x, y = quad.T
        share = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / np.ptp(quad, axis=0).max() ** 2
        assert abs((~placed.padding).mean() - share * area) < 0.02 + 1.5 / size  # nothing of it has been cut off


# Each block.


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_keeps_shape_input_and_promise(name):
    op, image = BLOCKS[name], PHOTO.copy()
    image.flags.writeable = False
    strongest = [op(image, chance(i), 1.0) for i in range(8)]
    shapes = {image.shape, image.transpose(1, 0, 2).shape} if name == "rotate90" else {image.shape}
    assert all(found.shape in shapes and found.dtype == np.uint8 for found in strongest)
    assert any(found.shape != image.shape or (found != image).any() for found in strongest)
    np.testing.assert_array_equal(op(image, chance(3), 1.0), strongest[3])
    np.testing.assert_array_equal(image, PHOTO)
    if name not in SWITCHES:
        assert difference(op(image, chance(), 0.0), image).mean() < 0.5  # hue rounds on its way to HSV and back


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_take_the_smallest_images(name):
    for shape in ((1, 1, 3), (1, 7, 3), (8, 8, 3)):
        for i in range(5):
            assert sorted(BLOCKS[name](np.full(shape, 90, dtype=np.uint8), chance(i), 1.0).shape) == sorted(shape)


def test_flips_are_numpys():
    np.testing.assert_array_equal(geometry.hflip(PHOTO, chance()), PHOTO[:, ::-1])
    np.testing.assert_array_equal(geometry.vflip(PHOTO, chance()), PHOTO[::-1])


def box_of(changed: np.ndarray) -> tuple[int, int]:
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def test_erasing_draws_the_rectangles_that_timms_random_erasing_draws():
    blank, theirs = np.full((80, 100, 3), 77, np.uint8), RandomErasing(1.0, mode="pixel", device="cpu")
    ours, wanted = [], []
    for i in range(400):
        ours.append(box_of((ops.random_erasing(blank, chance(i), 1.0) != 77).any(axis=-1)))
        wanted.append(box_of(theirs(torch.zeros(3, 80, 100)).abs().sum(0).numpy() > 0))
    for one, other in (
        (np.prod(ours, 1), np.prod(wanted, 1)),
        (np.divide(*np.transpose(ours)), np.divide(*np.transpose(wanted))),
    ):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


def test_every_block_has_a_switch_in_the_settings():
    names = {*BLOCKS, *geometry.MOTIONS} - set(geometry.FLIPS)
    assert names == set(transforms.STANDARD)
