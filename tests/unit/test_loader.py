import gc
import threading
import time
from contextlib import closing

import cv2
import numpy as np
import pytest
from PIL import Image

from config.errors import DataError
from config.sections.augment import Augment
from data.augment import transforms
from data.cache import images
from data.loading import loader
from data.loading.sampler import epoch_order
from models.card import Preprocessing
from tests.unit.pictures import photograph

COUNT, SIZE = 23, 16


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return sorted(folder.iterdir())


def training(paths, workers=2, batch_size=5, seed=1, **options):
    transform = transforms.train_transform(Augment(level="hard"), Preprocessing(size=SIZE))
    return loader.Loader(paths, transform, SIZE, batch_size, workers, seed, **options)


def copies(batches):
    return [(b.images.copy(), b.index.copy(), b.weight.copy()) for b in batches]


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def running():
    return [t.name for t in threading.enumerate() if t.name.startswith("tandem-loader")]


def test_batches_are_the_same_for_any_number_of_workers_and_from_any_batch(paths):
    order = epoch_order(COUNT, 1, 4)
    expected = copies(training(paths, workers=1).epoch(order, 4))
    for workers in (2, 5):
        assert_same(copies(training(paths, workers=workers).epoch(order, 4)), expected)
    for first in (1, 4, 5):
        assert_same(copies(training(paths).epoch(order, 4, first_batch=first)), expected[first:])
    changed = copies(training(paths, seed=2).epoch(order, 4))
    assert (changed[0][0] != expected[0][0]).any()
    changed = copies(training(paths).epoch(order, 5))
    assert (changed[0][0] != expected[0][0]).any()


def test_a_sample_is_augmented_alike_wherever_it_stands_in_the_order(paths):
    forward = {
        i: x for b in copies(training(paths).epoch(np.arange(COUNT), 0)) for i, x in zip(b[1], b[0], strict=True)
    }
    for batch in training(paths, batch_size=7).epoch(np.arange(COUNT)[::-1], 0):
        for index, image in zip(batch.index, batch.images, strict=True):
            np.testing.assert_array_equal(image, forward[index])


def test_evaluation_gives_every_image_once_in_order_and_pads_the_last_batch(paths):
    transform = transforms.EvalTransform(Preprocessing(size=SIZE))
    made = loader.Loader(paths, transform, SIZE, 10)
    batches = copies(made.epoch(np.arange(COUNT)))
    assert len(batches) == made.batches(COUNT) == 3
    assert all(x.shape == (10, SIZE, SIZE, 3) and x.dtype == np.uint8 for x, _, _ in batches)
    assert all(i.dtype == np.int64 and w.dtype == np.float32 for _, i, w in batches)
    real = np.concatenate([i[w > 0] for _, i, w in batches])
    np.testing.assert_array_equal(real, np.arange(COUNT))
    last_images, last_index, last_weight = batches[-1]
    np.testing.assert_array_equal(last_weight, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(last_index, [20, 21, 22, 20, 21, 22, 20, 21, 22, 20])
    np.testing.assert_array_equal(last_images[3:6], last_images[:3])
    for i, image in enumerate(np.concatenate([x for x, _, _ in batches])[:COUNT]):
        np.testing.assert_array_equal(image, transform(np.asarray(Image.open(paths[i]))))


def test_an_order_may_be_a_part_repeat_samples_or_be_empty(paths):
    made = training(paths, batch_size=4)
    batches = copies(made.epoch(np.array([3, 3, 9]), 0))
    assert batches[0][1].tolist() == [3, 3, 9, 3]
    assert list(made.epoch(np.array([], dtype=np.int64), 0)) == []


def test_a_sample_that_stands_several_times_is_augmented_differently_each_time_wherever_a_run_resumes(paths):
    order = np.array([3, 9, 3, 3, 1, 9, 3, 2])
    batches = copies(training(paths, batch_size=3).epoch(order, 0))
    threes = [x for images, index, weight in batches for x in images[(index == 3) & (weight > 0)]]
    assert len({image.tobytes() for image in threes}) == len(threes) == 4
    for workers in (1, 5):
        again = copies(training(paths, workers=workers, batch_size=3).epoch(order, 0, first_batch=2))
        assert_same(again, batches[2:])
    np.testing.assert_array_equal(threes[0], copies(training(paths, batch_size=1).epoch(np.array([3]), 0))[0][0][0])


def test_a_transform_may_change_with_the_epoch(paths):
    section, prep = Augment(level="hard", off_epochs=1), Preprocessing(size=SIZE)
    made = loader.Loader(paths, transforms.by_epoch(section, prep, 3), SIZE, 5, 2, seed=1)
    plain = copies(loader.Loader(paths, transforms.EvalTransform(prep), SIZE, 5).epoch(np.arange(COUNT)))
    for epoch in (0, 1):
        assert_same(copies(made.epoch(np.arange(COUNT), epoch)), copies(training(paths).epoch(np.arange(COUNT), epoch)))
    assert_same(copies(made.epoch(np.arange(COUNT), 2)), plain)


def test_a_batch_stays_as_it_is_while_any_piece_of_it_is_held(paths):
    order = np.arange(COUNT).repeat(4)
    expected = copies(training(paths).epoch(order, 0))
    held, slices = [], []
    for i, batch in enumerate(training(paths).epoch(order, 0)):
        held.append(batch) if i % 3 == 0 else slices.append((i, batch.images[2:4, ::2]))
    for i, batch in zip(range(0, len(expected), 3), held, strict=True):
        np.testing.assert_array_equal(batch.images, expected[i][0])
    for i, piece in slices:
        np.testing.assert_array_equal(piece, expected[i][0][2:4, ::2])


def test_memory_of_batches_that_are_let_go_is_used_again(paths):
    places = set()
    for batch in training(paths).epoch(np.arange(COUNT).repeat(10), 0):
        places.add(batch.images.ctypes.data)
        del batch
    assert len(places) <= 4


def test_an_unreadable_image_is_an_error_of_the_consumer_with_its_name(paths, tmp_path):
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:200])
    batches = training([*paths, tmp_path / "bad.png"], batch_size=4).epoch(np.arange(COUNT + 1), 0)
    with pytest.raises(DataError, match=r"bad\.png: cannot be decoded"):
        list(batches)
    assert not running()


@pytest.mark.parametrize("fault", ["raises", "wrong shape"])
def test_a_fault_of_a_transform_keeps_its_type_and_says_which_image(paths, fault):
    def transform(image, rng):
        if image.shape[0] != 20 + 7:
            return np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        if fault == "raises":
            raise ZeroDivisionError("here")
        return np.zeros((SIZE, SIZE + 1, 3), dtype=np.uint8)

    with pytest.raises((ZeroDivisionError, ValueError)) as caught:
        list(loader.Loader(paths, transform, SIZE, 5, 2).epoch(np.arange(COUNT)))
    assert any("07.png" in note for note in caught.value.__notes__)
    assert not running()


def test_ending_early_leaves_no_thread_behind(paths):
    with closing(training(paths).epoch(np.arange(COUNT), 0)) as batches:
        next(batches)
        assert running()
    assert not running()
    batches = training(paths).epoch(np.arange(COUNT), 0)
    next(batches)
    del batches
    gc.collect()
    assert not running()
    with pytest.raises(KeyboardInterrupt):
        for _ in training(paths).epoch(np.arange(COUNT), 0):
            raise KeyboardInterrupt
    gc.collect()
    assert not running()


def test_batches_are_prepared_while_the_consumer_is_busy(paths):
    done = []

    def transform(image, rng):
        done.append(1)
        return np.zeros((SIZE, SIZE, 3), dtype=np.uint8)

    with closing(loader.Loader(paths, transform, SIZE, 5, 2).epoch(np.arange(COUNT))) as batches:
        next(batches)
        deadline = time.monotonic() + 20
        while len(done) < 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(done) == 15  # this batch and two ahead, no more


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in order."""
    seen, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda path, *rest: seen.append(path) or decode(path, *rest))
    return seen


def test_a_small_set_is_decoded_once_and_shared(paths, decoded):
    shared = images.Images()
    for epoch in range(2):
        list(training(paths, images=shared).epoch(np.arange(COUNT), epoch))
        list(training(paths[:9], images=shared).epoch(np.arange(9), epoch))
    assert sorted(decoded) == paths
    with pytest.raises(ValueError, match="read-only"):
        shared(paths[0])[0] = 0


def test_a_set_that_does_not_fit_is_decoded_each_time_and_keeps_no_memory(paths, decoded):
    small = images.Images(cache_bytes=10 * 20 * 24 * 3)
    once = copies(training(paths, images=small).epoch(np.arange(COUNT), 0))
    assert_same(copies(training(paths, images=small).epoch(np.arange(COUNT), 0)), once)
    assert len(decoded) == 2 * COUNT and not small._pictures
    list(training(paths, images=images.Images(cache_bytes=0)).epoch(np.arange(COUNT), 0))
    assert len(decoded) == 3 * COUNT


def test_what_is_kept_in_memory_changes_no_pixel(tmp_path):
    shapes = [(90, 200), (200, 90), (64, 64), (150, 151), (70, 64), (16, 16)]
    paths = [tmp_path / f"{i}.jpg" for i in range(len(shapes))]
    for path, shape in zip(paths, shapes, strict=True):
        Image.fromarray(photograph(*shape)).save(path)
    turns = {paths[0]: cv2.ROTATE_90_CLOCKWISE, paths[3]: cv2.ROTATE_180}
    kept, none = images.Images(turns=turns), images.Images(cache_bytes=0, turns=turns)
    for path in paths:
        kept(path)  # whole, as a look before training leaves them
    for epoch in range(8):
        some, others = (copies(training(paths, images=held).epoch(np.arange(6), epoch)) for held in (kept, none))
        assert_same(some, others)
    assert {factor for path in paths for factor in kept._pictures[path]._decoded} == {
        (factor, False) for factor in (1, 2, 4, 8)
    }


def test_the_pixel_limit_reaches_the_decoder(paths):
    with pytest.raises(DataError, match=r"00\.png: 24 x 20 pixels, more than data.pixel_limit 400"):
        list(training(paths, images=images.Images(pixel_limit=400)).epoch(np.arange(COUNT), 0))


def test_no_workers_means_one_for_each_core_and_no_batch_is_too_small_for_them(paths):
    expected = copies(training(paths, workers=1, batch_size=2).epoch(np.arange(COUNT), 0))
    assert_same(copies(training(paths, workers=0, batch_size=2).epoch(np.arange(COUNT), 0)), expected)
    assert_same(copies(training(paths, workers=16, batch_size=2).epoch(np.arange(COUNT), 0)), expected)
