"""RandAugment, TrivialAugment and 3-Augment against timm, torchvision and PIL."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, autoaugment

from data.augment import policies, tone
from data.resize import PAD
from tests.unit.pictures import PHOTO, chance, difference, photograph

SQUARE = photograph(160, 160)
TIMMS = dict(zip(policies.RAND, auto_augment.rand_augment_choices("", increasing=True), strict=True))


@pytest.mark.parametrize("magnitude", [0.0, 3.3, 6.0, 9.4])
@pytest.mark.parametrize("name", policies.RAND)
def test_rand_augments_operations_are_timms_at_equal_magnitude(name, magnitude, monkeypatch):
    theirs = auto_augment.AugmentOp(
        TIMMS[name], prob=1.0, magnitude=magnitude, hparams={"img_mean": (PAD,) * 3, "interpolation": Image.BILINEAR}
    )
    argument = policies.RAND[name]
    for sign, draw in ((-1, 0.9), (1, 0.1)):
        monkeypatch.setattr(auto_augment.random, "random", lambda draw=draw: draw)
        expected = np.asarray(theirs(Image.fromarray(PHOTO)))
        found = difference(
            policies.CHANGES[name](PHOTO, 0.0 if argument is None else argument(magnitude / 10, sign)), expected
        )
        # cv2 warps in steps of 1/32 pixel and colours round where PIL cuts off; edges of the warp blend with the grey.
        assert found.mean() < 0.8 and np.percentile(found, 99) <= 5


@pytest.mark.parametrize("level", [0, 7, 16, 30])  # at 15 float32 makes 15.999... of their 16 pixels
@pytest.mark.parametrize("name", policies.TRIVIAL)
def test_trivial_augments_operations_are_torchvisions_at_equal_magnitude(name, level):
    theirs = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    named = {key.lower().replace("shear", "shear_").replace("translate", "translate_"): key for key in theirs}
    magnitudes, signed = theirs[named[name]]
    argument = policies.TRIVIAL[name]
    for sign in (1, -1) if signed else (1,):
        value = sign * float(magnitudes[level]) if magnitudes.ndim else 0.0
        expected = autoaugment._apply_op(
            Image.fromarray(SQUARE), named[name], value, InterpolationMode.BILINEAR, [PAD] * 3
        )
        toward = -sign if name.startswith("translate") else sign  # PIL's matrix, as timm has it, moves the other way
        ours = 0.0 if argument is None else argument(level / 30, toward)
        found = difference(policies.CHANGES[name](SQUARE, ours), np.asarray(expected))
        assert found.mean() < 0.8 and np.percentile(found, 99) <= 5


def test_three_augments_blur_is_pils_at_its_size():
    image = photograph(224, 224)
    for sigma in (0.5, 2.0):
        expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
        found = difference(policies.ops.blur_by(image, sigma), expected)[4:-4, 4:-4]
        assert found.mean() < 1.0 and np.percentile(found, 99) <= 4  # PIL runs three box filters in place of a Gaussian


def test_three_augment_takes_each_of_its_three_as_often():
    grey, solarized = tone.to_grey(SQUARE), tone.solarize_from(SQUARE, 128)
    seen = Counter()
    for i in range(150):
        found = policies.three(SQUARE, chance(i), 1.0).astype(float)
        if np.abs(found - found.mean(-1, keepdims=True)).max() < 2:
            seen["grey"] += 1
        else:
            like = {name: np.corrcoef(found.ravel(), x.ravel())[0, 1] for name, x in (("s", solarized), ("b", SQUARE))}
            seen[max(like, key=like.get)] += 1
    assert all(32 <= seen[name] <= 68 for name in ("grey", "s", "b")) and len(np.unique(grey)) > 2


def drawn(monkeypatch, space: str, policy, count: int) -> Counter:
    """How often a policy applied each change."""
    seen: Counter = Counter()
    for name in getattr(policies, space):
        monkeypatch.setitem(policies.CHANGES, name, lambda image, _, name=name: seen.update([name]) or image)
    for i in range(count):
        policy(SQUARE, chance(i))
    return seen


def test_rand_augment_applies_half_of_the_operations_it_chooses_each_as_often_as_timm(monkeypatch):
    seen = drawn(monkeypatch, "RAND", lambda x, rng: policies.rand(x, rng, 1.0, operations=3), 1000)
    assert set(seen) == set(policies.RAND) and abs(seen.total() - 1500) < 110
    assert all(abs(n - 100) < 45 for n in seen.values())


def test_trivial_augment_applies_one_operation(monkeypatch):
    seen = drawn(monkeypatch, "TRIVIAL", lambda x, rng: policies.trivial(x, rng, 1.0), 1400)
    assert set(seen) == set(policies.TRIVIAL) and seen.total() == 1400
    assert all(abs(n - 100) < 45 for n in seen.values())


def test_magnitudes_follow_the_mean_and_deviation_and_stay_on_the_scale(monkeypatch):
    levels = []
    monkeypatch.setattr(policies, "RAND", {"rotate": lambda level, sign: levels.append(level * 10) or 0.0})
    for i in range(500):
        policies.rand(SQUARE[:8, :8], chance(i), 1.0, operations=2, magnitude=6.0, magnitude_std=1.0)
    assert abs(np.mean(levels) - 6) < 0.2 and abs(np.std(levels) - 1) < 0.15
    levels.clear()
    for i in range(50):
        policies.rand(SQUARE[:8, :8], chance(i), 1.0, operations=4, magnitude=10.0, magnitude_std=5.0)
    assert min(levels) >= 0 and max(levels) == 10


@pytest.mark.parametrize("policy", [policies.rand, policies.trivial, policies.three])
def test_a_policy_without_strength_changes_nothing_and_keeps_its_input(policy):
    image = np.minimum(SQUARE, 254)  # TrivialAugment inverts 255 at its weakest, as torchvision does
    given = image.copy()
    image.flags.writeable = False
    for i in range(60):
        found = difference(policy(image, chance(i), 1.0), image)
        weak = difference(policy(image, chance(i), 0.0), image)
        # What remains at no magnitude is what timm has there too: RandAugment's posterize keeps 4 bits.
        assert found.shape == image.shape and (weak.max() <= 2 or policy is policies.rand)
    np.testing.assert_array_equal(image, given)
