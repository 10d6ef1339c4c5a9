"""Which samples an epoch draws: counts, repetition, hard samples and suspects."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from config.errors import ConfigError
from config.sections.data import Sampling
from training.policy import sampling
from training.policy.mining import Mining

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def counts(drawn: np.ndarray) -> list[int]:
    return np.bincount(LABELS[drawn], minlength=3).tolist()


def test_a_plain_epoch_draws_every_image_once() -> None:
    order = sampling.order(sampling.pool(LABELS, "plain", {}, 0, 0), np.zeros(0, np.int64), 0, 0)
    assert sorted(order.tolist()) == list(range(100))
    other = sampling.order(sampling.pool(LABELS, "plain", {}, 0, 1), np.zeros(0, np.int64), 0, 1)
    assert order.tolist() != other.tolist()


def test_a_class_is_raised_to_its_count_and_its_images_share_the_repetitions() -> None:
    drawn = sampling.pool(LABELS, "plain", {2: 35}, 0, 0)
    assert counts(drawn) == [60, 30, 35]
    repeats = np.bincount(drawn, minlength=100)[90:]
    assert repeats.sum() == 35
    assert set(repeats.tolist()) <= {3, 4}


def test_a_class_that_is_large_enough_is_left_alone() -> None:
    assert counts(sampling.pool(LABELS, "plain", {0: 35}, 0, 0)) == [60, 30, 10]


def test_balanced_and_square_root_keep_the_length_and_shift_the_shares() -> None:
    balanced = counts(sampling.pool(LABELS, "balanced", {}, 0, 0))
    assert sum(balanced) == 100
    assert max(balanced) - min(balanced) <= 1
    root = counts(sampling.pool(LABELS, "square_root", {}, 0, 0))
    assert sum(root) == 100
    expected = np.sqrt([60, 30, 10]) / np.sqrt([60, 30, 10]).sum() * 100
    assert np.abs(np.array(root) - expected).max() < 1


def test_a_class_to_raise_must_be_there() -> None:
    wish = Sampling(oversample_classes=("b", "x"), oversample_to=5)
    with pytest.raises(ConfigError, match="no class 'x'"):
        sampling.raise_to(wish, ["a", "b"])
    assert sampling.raise_to(Sampling(oversample_classes=("b",), oversample_to=5), ["a", "b"]) == {1: 5}


def test_effective_number_weights_lie_between_none_and_balanced() -> None:
    balanced = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    near = sampling.effective_number_weights(LABELS, 3, beta=0.9999999)
    np.testing.assert_allclose(near, balanced / balanced.mean(), rtol=1e-3)
    np.testing.assert_allclose(sampling.effective_number_weights(LABELS, 3, beta=0.0), np.ones(3), rtol=1e-6)


def mined(noise_share: float = 0.05) -> Mining:
    mining = Mining(100, start=2, ramp=4, cap=0.4, hard_share=0.2, noise_share=noise_share)
    mining.observe(np.arange(100), np.arange(100, dtype=np.float32) / 100)
    mining.close_epoch()
    return mining


def test_the_mined_share_grows_from_the_start_to_the_cap() -> None:
    mining = mined()
    assert [round(mining.share(epoch), 3) for epoch in range(8)] == [0, 0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4]


def test_hard_samples_are_drawn_and_suspects_are_not() -> None:
    mining = mined()
    assert mining.suspects().tolist() == [99, 98, 97, 96, 95]
    drawn = mining.draw(100, 0, 5)
    assert len(drawn) == 40
    assert set(drawn.tolist()) == set(range(75, 95))
    assert not set(mining.suspects().tolist()) & set(drawn.tolist())


def test_mining_keeps_the_length_of_the_epoch() -> None:
    mining = mined()
    drawn = sampling.pool(LABELS, "plain", {}, 0, 5)
    order = sampling.order(drawn, mining.draw(len(drawn), 0, 5), 0, 5)
    assert len(order) == 100
    assert np.bincount(order, minlength=100)[75:95].sum() >= 40


def test_nothing_is_mined_before_anything_was_seen() -> None:
    assert len(Mining(10, start=0, ramp=1, cap=0.5).draw(10, 0, 3)) == 0
