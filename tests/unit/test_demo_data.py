import csv

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from config.errors import DataError
from data import demo, sources
from data.decode.image import decode


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return demo.write(tmp_path_factory.mktemp("demo") / "digits")


def column(path, name):
    with path.open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_it_is_the_whole_set_in_the_layout_of_a_competition(root):
    train, test = sources.load(root), sources.load_test(root)
    assert train.class_names == tuple("0123456789")
    assert len(train.ids) + len(test.ids) == 1797 and not set(train.ids) & set(test.ids)
    assert len(test.ids) == 450
    assert column(root / "sample_submission.csv", "ID") == test.ids == column(root / "hidden_answers.csv", "ID")
    answers = np.array(column(root / "hidden_answers.csv", "target"), dtype=int)
    assert np.abs(np.bincount(answers) / 450 - np.bincount(train.labels) / 1347).max() < 0.003
    assert sorted(path.name for path in root.iterdir()) == [
        "hidden_answers.csv",
        "sample_submission.csv",
        "test",
        "test.csv",
        "train",
        "train.csv",
    ]


def test_the_images_are_the_digits_enlarged(root):
    digits = load_digits()
    train = sources.load(root)
    for i in (0, 500, 1000):
        original = int(train.ids[i].removeprefix("digit_").removesuffix(".png"))
        assert train.labels[i] == digits.target[original]
        assert Image.open(train.paths[i]).mode == "L"
        pixels = decode(train.paths[i])
        assert pixels.shape == (32, 32, 3)
        small = pixels[..., 0].reshape(8, 4, 8, 4).mean(axis=(1, 3))
        assert np.corrcoef(small.ravel(), digits.images[original].ravel())[0, 1] > 0.98


def test_writing_again_changes_nothing_and_repairs_what_is_missing(root):
    images = sorted((root / "test").iterdir())
    images[0].write_bytes(b"half an ima")
    images[1].unlink()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path not in images[:2] and path.is_file()}
    assert demo.main([str(root)]) == 0
    assert decode(images[0]).shape == decode(images[1]).shape == (32, 32, 3)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_data_set_is_left_alone(tmp_path, capsys):
    (tmp_path / "train.csv").write_text("ID,target\nmine.png,1\n")
    with pytest.raises(DataError, match="holds another data set"):
        demo.write(tmp_path)
    assert demo.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["train.csv"]
    (tmp_path / "other/train").mkdir(parents=True)
    with pytest.raises(DataError, match="holds another data set"):
        demo.write(tmp_path / "other")
