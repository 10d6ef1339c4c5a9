import hashlib

import numpy as np

from data.loading.sampler import epoch_order, occurrences
from data.rng import philox


def test_an_order_is_a_permutation_that_only_its_key_decides():
    order = epoch_order(1000, seed=1, epoch=2)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, epoch_order(1000, seed=1, epoch=2))
    for other in (epoch_order(1000, 1, 3), epoch_order(1000, 2, 2)):
        assert np.abs(np.corrcoef(order, other)[0, 1]) < 0.15


def test_a_generator_is_numpys_philox_with_the_keys_digest():
    for key in ((), (3,), (2, 70000)):
        digest = hashlib.blake2b(f"7|augment|{'|'.join(map(str, key))}".encode(), digest_size=16).digest()
        public = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
        ours = philox(7, "augment", *key)
        np.testing.assert_array_equal(ours.random(9), public.random(9))
        np.testing.assert_array_equal(ours.permutation(50), public.permutation(50))


def test_the_order_does_not_touch_numpys_global_generator():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    epoch_order(10, 0, 0)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_occurrences_count_how_often_a_sample_stood_before():
    order = np.array([5, 2, 5, 5, 2, 9])
    np.testing.assert_array_equal(occurrences(order), [0, 0, 1, 2, 1, 0])
    assert not occurrences(epoch_order(50, 0, 0)).any()
    assert occurrences(order[:0]).shape == (0,)
