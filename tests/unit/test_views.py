import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from config.errors import ConfigError
from ensemble import views

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
# Smooth, so that interpolation of one library stays near another's.
SMOOTH = np.stack([ndimage.gaussian_filter(i.astype(float), (2, 2, 0)) for i in IMAGES]).clip(0, 255).astype(np.uint8)

PIL_NAMES = {
    "hflip": Image.Transpose.FLIP_LEFT_RIGHT,
    "vflip": Image.Transpose.FLIP_TOP_BOTTOM,
    "rot90": Image.Transpose.ROTATE_90,
    "rot180": Image.Transpose.ROTATE_180,
    "rot270": Image.Transpose.ROTATE_270,
    "hvflip": Image.Transpose.ROTATE_180,
    "hflip_rot90": Image.Transpose.TRANSPOSE,
    "hflip_rot270": Image.Transpose.TRANSVERSE,
}


@pytest.mark.parametrize("name", PIL_NAMES)
def test_flips_and_turns_are_pils(name):
    expected = np.stack([np.asarray(Image.fromarray(image).transpose(PIL_NAMES[name])) for image in IMAGES])
    assert np.array_equal(views.apply(name, IMAGES), expected)


@pytest.mark.parametrize(("name", "degrees"), [("rotate+10", 10), ("rotate-10", -10)])
def test_small_rotations_are_scipys(name, degrees):
    turn = {"axes": (0, 1), "reshape": False, "order": 1, "mode": "mirror"}
    expected = np.stack([ndimage.rotate(image.astype(float), degrees, **turn) for image in SMOOTH])
    assert np.abs(views.apply(name, SMOOTH) - expected).max() < 1.5
    assert np.abs(SMOOTH - expected).max() > 10


def test_rotations_turn_the_same_way_as_quarter_turns():
    image = np.zeros((1, 33, 33, 3), np.uint8)
    image[0, 16, 28] = 255  # right of the centre: counter-clockwise takes it up
    for name in ("rot90", "rotate+10"):
        assert np.argwhere(views.apply(name, image)[0, :, :, 0] > 30)[:, 0].mean() < 15


def test_zoom_is_scipys():
    matrix = np.diag([1 / 1.1, 1 / 1.1, 1.0])
    centre = np.array([15.5, 15.5, 0.0])
    warp = {"offset": centre - matrix @ np.array([15.5, 15.5, 0.0]), "order": 1}
    expected = np.stack([ndimage.affine_transform(image.astype(float), matrix, **warp) for image in SMOOTH])
    assert np.abs(views.apply("zoom_1.1", SMOOTH) - expected).max() < 1.5


@pytest.mark.parametrize(
    ("name", "move"),
    [("shift_left", (0, -2)), ("shift_right", (0, 2)), ("shift_up", (-2, 0)), ("shift_down", (2, 0))],
)
def test_shifts_move_a_sixteenth_and_repeat_the_edge(name, move):
    expected = ndimage.shift(IMAGES, (0, *move, 0), order=0, mode="nearest")
    assert np.array_equal(views.apply(name, IMAGES), expected)


def test_d4_has_all_eight_flips_and_turns():
    seen = {views.apply(name, IMAGES[:1]).tobytes() for name in views.PRESETS["d4"]}
    flips = [IMAGES[:1], IMAGES[:1, :, ::-1]]
    group = {np.rot90(image, k, (1, 2)).tobytes() for image in flips for k in range(4)}
    assert seen == group and len(group) == 8


@pytest.mark.parametrize("name", views.VIEWS)
def test_views_keep_shape_and_dtype_and_leave_their_input_alone(name):
    before = IMAGES.copy()
    seen = views.apply(name, IMAGES)
    assert seen.shape == IMAGES.shape and seen.dtype == np.uint8 and seen.flags.c_contiguous
    assert np.array_equal(IMAGES, before)


def test_presets_and_views_mix_without_doubling_a_view():
    assert views.expand(["flip", "rot90", "hflip"]) == ("original", "hflip", "rot90")
    assert all(set(names) <= set(views.VIEWS) for names in views.PRESETS.values())
    assert views.PRESETS["rotate"] == ("original", "hflip", "rotate+10")  # three, as the document pipeline has them


def test_an_unknown_view_names_the_nearest():
    with pytest.raises(ConfigError, match="'hflp' is not known; did you mean hflip"):
        views.expand(["hflp"])
    with pytest.raises(ConfigError, match="empty"):
        views.expand([])
