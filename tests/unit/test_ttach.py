"""Views and merges against ttach, the library that most people know them from."""

from typing import get_args

import numpy as np
import pytest
import torch
import ttach
from scipy import ndimage
from ttach import functional

import infer
from config.errors import ConfigError
from ensemble import merge, views
from ensemble.weighting.average import Merge
from tests.unit import members

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
SMOOTH = np.stack([ndimage.gaussian_filter(i.astype(float), (2, 2, 0)) for i in IMAGES]).clip(0, 255).astype(np.uint8)
WEIGHTS = torch.from_numpy(RNG.normal(size=(3 * 32 * 32, 5)) * 4e-3)
FLIPS = [ttach.HorizontalFlip(), ttach.VerticalFlip()]
PRESETS = {
    "none": ttach.Compose([]),
    "flip": ttach.Compose([ttach.HorizontalFlip()]),
    "flips": ttach.Compose(FLIPS),
    "d4": ttach.Compose([ttach.HorizontalFlip(), ttach.Rotate90(angles=[0, 90, 180, 270])]),
}


def channels_first(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float64))


def back(images):
    return images.numpy().transpose(0, 2, 3, 1)


def linear(images):
    """A network for both: logits of float64 `[N, 3, 32, 32]`."""
    return (images - 127).flatten(1) @ WEIGHTS


def answers(images):
    return torch.softmax(linear(images), 1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("how", "theirs"), [("probabilities", "mean"), ("geometric", "gmean"), ("max", "max")])
def test_presets_merge_as_ttachs_wrapper_does(preset, how, theirs):
    wrapped = ttach.ClassificationTTAWrapper(answers, PRESETS[preset], merge_mode=theirs)
    expected = wrapped(channels_first(IMAGES)).numpy()
    expected /= expected.sum(axis=1, keepdims=True)
    merged = merge.start(how)
    for view in views.PRESETS[preset]:
        merged.add(linear(channels_first(views.apply(view, IMAGES))).numpy())
    assert np.allclose(np.exp(merged.log_probabilities()), expected, atol=1e-12)
    assert len(set(expected.argmax(1))) > 1


def test_the_mean_of_logits_is_ttachs_mean_over_a_model_that_gives_logits():
    wrapped = ttach.ClassificationTTAWrapper(linear, PRESETS["flips"], merge_mode="mean")
    expected = torch.softmax(wrapped(channels_first(IMAGES)), 1).numpy()
    merged = merge.start("logits")
    for view in views.PRESETS["flips"]:
        merged.add(linear(channels_first(views.apply(view, IMAGES))).numpy())
    assert np.allclose(np.exp(merged.log_probabilities()), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["crop_lt", "crop_rt", "crop_lb", "crop_rb", "crop_center"])
def test_crops_are_ttachs_enlarged_by_torch(name):
    cut = {"crop_center": functional.center_crop}.get(name) or getattr(functional, name)
    resized = functional.resize(cut(channels_first(IMAGES), 28, 28), (32, 32), "bilinear", align_corners=False)
    assert np.abs(views.apply(name, IMAGES) - back(resized)).max() <= 1


def test_zooming_in_is_ttachs_scale_and_centre_crop():
    scaled = functional.scale(channels_first(SMOOTH), 1.25, "bilinear", align_corners=False)
    expected = back(functional.center_crop(scaled, 32, 32))
    assert np.abs(views.apply("zoom_1.25", SMOOTH) - expected).max() < 1.5


def test_zooming_out_is_ttachs_scale_with_a_mirrored_border():
    image = np.kron(SMOOTH[:, :20, :20], np.ones((1, 2, 2, 1), np.uint8))  # 40 pixels, so that 0.8 of it are whole
    scaled = functional.scale(channels_first(image), 0.8, "bilinear", align_corners=False)
    seen = views.apply("zoom_0.8", image)
    assert np.abs(seen[:, 4:-4, 4:-4] - back(scaled)).max() <= 2
    border, inside = seen[:, :4, 4:-4].astype(int), seen[:, 8:4:-1, 4:-4].astype(int)
    assert np.abs(border - inside).mean() < 2 < np.abs(border - inside[:, ::-1]).mean()  # mirrored, and not repeated


def test_a_merge_is_chosen_and_an_unknown_one_is_refused(tmp_path):
    folder = members.checkpoint(tmp_path / "a")
    _, pixels = members.photographs(tmp_path / "images")
    said = {}
    for how in get_args(Merge):
        with infer.load(folder, views=["five"], merge=how) as model:
            said[how] = model.predict(list(pixels)).probabilities
    assert np.allclose(said["geometric"], said["logits"], atol=1e-7)
    assert np.abs(said["max"] - said["probabilities"]).max() > 1e-3
    assert np.abs(said["logits"] - said["probabilities"]).max() > 1e-3
    with pytest.raises(ConfigError, match="'median' is not known; there are probabilities, logits, geometric, max"):
        infer.load(folder, merge="median")
