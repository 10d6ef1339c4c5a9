"""The runner as Python programs use it: one image or many, in every form they have it in, and after a fork."""

import io
import multiprocessing
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
from config.errors import BackendUnavailable, DataError
from tests.unit import members
from tests.unit.test_runner import TOLERANCE


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A runner, the paths of its images, their pixels, and the rows that it gives for the list of them."""
    root = tmp_path_factory.mktemp("python")
    paths, pixels = members.photographs(root / "images")
    with infer.load(members.checkpoint(root / "a")) as model:
        yield model, paths, pixels, model.predict(paths).probabilities


FORMS = {
    "text": str,
    "path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "pillow": Image.open,
    "array": lambda path: np.asarray(Image.open(path)),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_image_is_one_row_and_a_list_as_many_as_it_has(opened, form):
    model, paths, _, rows = opened
    assert len(np.unique(rows, axis=0)) == len(rows)
    one = model.predict(FORMS[form](paths[2])).probabilities
    assert one.shape == (1, 3)
    assert np.allclose(one, rows[2:3], atol=TOLERANCE)
    assert np.array_equal(model.predict([FORMS[form](path) for path in paths]).probabilities, rows)


def test_any_iterable_of_images_is_a_batch(opened):
    model, paths, pixels, rows = opened
    image = Image.open(paths[0])
    for many in (tuple(paths), iter(paths), np.array([str(path) for path in paths]), pixels):
        assert np.array_equal(model.predict(many).probabilities, rows)
    assert np.allclose(model.predict([image] * 7).probabilities, rows[[0] * 7], atol=TOLERANCE)
    assert model.predict([]).probabilities.shape == model.predict(iter(())).probabilities.shape == (0, 3)


def test_images_of_pillow_are_read_as_their_files_are(opened, tmp_path):
    model, *_ = opened
    draw = np.random.default_rng(0)
    turned = Image.fromarray(draw.integers(0, 256, (32, 40, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    glass = Image.fromarray(draw.integers(0, 256, (32, 32, 4), dtype=np.uint8))
    grey = Image.fromarray(draw.integers(0, 65536, (32, 32), dtype=np.uint16))
    for name, image, more in (("turned", turned, {"exif": exif}), ("glass", glass, {}), ("grey", grey, {})):
        path = tmp_path / f"{name}.png"
        image.save(path, **more)
        expected = model.predict(path).probabilities
        assert np.array_equal(model.predict(Image.open(path)).probabilities, expected), name


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (None, "not NoneType"),
        (7, "not int"),
        ({"a.jpg": 1}, "not dict"),
        ({"a.jpg"}, "not set"),
        (io.BytesIO(b"x"), r"not _io\.BytesIO"),
        ([None], "image 0 is NoneType"),
        (["a.jpg", 3.5], "image 1 is float"),
        ([["a.jpg"]], "image 0 is list"),
    ],
)
def test_anything_else_is_a_type_error_that_says_what_is_taken(opened, wrong, reason):
    with pytest.raises(
        TypeError, match=rf"predict takes .*a path, encoded bytes, a PIL image or a uint8 array.*{reason}"
    ):
        opened[0].predict(wrong)


def test_images_that_cannot_be_read_are_data_errors(opened, tmp_path):
    model, paths, *_ = opened
    (tmp_path / "short.png").write_bytes(paths[0].read_bytes()[:-900])
    with pytest.raises(DataError, match="cannot be decoded"):
        model.predict(Image.open(tmp_path / "short.png"))
    with pytest.raises(DataError, match="32-bit"):
        model.predict(Image.fromarray(np.zeros((8, 8), np.int32)))
    for array in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(DataError, match="give uint8"):
            model.predict(array)


def _in_child(model, path, pipe):
    try:
        pipe.send(model.predict(path).names)
    except BackendUnavailable as error:
        model.close()  # ends, too
        pipe.send(str(error))


@pytest.mark.skipif(sys.platform == "darwin", reason="nothing may fork there after Metal's libraries were loaded")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_of_an_opened_runner_says_so_at_once(opened):
    model, paths, _, rows = opened
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(model, paths[0], theirs))
    child.start()
    try:
        assert ours.poll(60), "the child never answers"
        assert "opened in process" in (said := ours.recv())
        assert "after the fork" in said
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert np.allclose(model.predict(paths[0]).probabilities, rows[:1], atol=TOLERANCE), "and the parent is as it was"
