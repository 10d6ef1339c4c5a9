from pathlib import Path

import numpy as np
import pytest

from config.errors import DataError
from data import folds
from data.sources import Table

LABELS = np.repeat(np.arange(3), [50, 20, 7])


def table(labels=LABELS) -> Table:
    names = [f"{i}.png" for i in range(len(labels))]
    return Table(names, [Path(name) for name in names], np.asarray(labels, dtype=np.int64), ("a", "b", "c"), Path())


def test_stratified_folds_hold_every_image_once_and_every_class_evenly():
    made = folds.make(LABELS, "stratified", count=5, seed=3)
    assert made.dtype == np.int64 and set(made) == set(range(5))
    for label, total in enumerate([50, 20, 7]):
        shares = np.bincount(made[label == LABELS], minlength=5)
        assert shares.min() >= total // 5 and shares.max() <= -(-total // 5)


def test_a_holdout_validates_the_asked_share_of_every_class():
    made = folds.make(LABELS, "holdout", val_fraction=0.2, seed=3)
    assert set(made) == {-1, 0} and (made == 0).sum() == np.ceil(0.2 * len(LABELS))
    assert np.abs(np.bincount(LABELS[made == 0]) - 0.2 * np.bincount(LABELS)).max() < 1


@pytest.mark.parametrize("kind", ["stratified", "holdout"])
def test_the_seed_alone_decides(kind):
    one, same, other = (folds.make(LABELS, kind, seed=seed) for seed in (1, 1, 2**40))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_a_class_with_too_few_images_is_named():
    with pytest.raises(DataError, match=r"class 'c' has only 7 of the 8 images that 8 folds needs.*folds.n_splits"):
        folds.make(LABELS, "stratified", count=8, class_names=("a", "b", "c"))
    with pytest.raises(DataError, match=r"val_fraction 0.01 of 77 images is 1"):
        folds.make(LABELS, "holdout", val_fraction=0.01)
    with pytest.raises(DataError, match="1 image has no label"):
        folds.make(np.append(LABELS, -1), "stratified")


@pytest.mark.parametrize("kind", ["holdout", "stratified", "repeated", "stratified_group"])
def test_the_only_image_of_a_class_is_always_trained_on(kind):
    labels = np.append(LABELS, [3, 4])
    groups = np.arange(len(labels)) // 2 if kind == "stratified_group" else None
    made = folds.make(labels, kind, count=3, groups=groups)
    assert (made[-2:] == folds.TRAIN_ONLY).all()
    assert set(labels[(made >= 0).reshape(len(labels), -1).any(axis=1)]) == {0, 1, 2}
    if groups is not None:
        assert all(len(set(made[groups == group].tolist())) == 1 for group in groups)


def test_a_file_gives_the_folds_back_in_the_order_of_the_table(tmp_path):
    path, made = tmp_path / "folds.csv", folds.make(LABELS, "holdout")
    folds.write(path, table(), made)
    np.testing.assert_array_equal(folds.read(path, table()), made)
    shuffled = path.read_text().splitlines()
    path.write_text("\n".join([shuffled[0], *shuffled[:0:-1]]))
    np.testing.assert_array_equal(folds.read(path, table()), made)
    assert list(tmp_path.iterdir()) == [path]


def test_existing_folds_are_never_replaced_by_others(tmp_path):
    path, made = tmp_path / "folds.csv", folds.make(LABELS, "stratified")
    folds.write(path, table(), made)
    folds.write(path, table(), made)
    with pytest.raises(DataError, match="exists with other folds"):
        folds.write(path, table(), (made + 1) % 5)
    np.testing.assert_array_equal(folds.read(path, table()), made)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda text: text.replace("\n3.png,a", "\n3.png,b"),
            r"line 5 has target 'b' for '3.png', the data set has 'a'",
        ),
        (lambda text: text.replace("\n3.png,", "\nx.png,"), r"1 ID is missing from it \(first: 3.png\)"),
        (lambda text: text + "x.png,a,0\n", r"1 ID is not in the data set \(first: x.png\)"),
        (lambda text: text + "3.png,a,0\n", r"an ID occurs twice"),
        (lambda text: text.replace(",1\n", ",one\n"), r"has fold 'one'"),
        (lambda text: text.replace(",1\n", ",-2\n"), r"has fold '-2'"),
        (lambda text: text.replace(",1\n", ",9\n"), r"without a gap"),
        (lambda text: text.replace("fold", "folder", 1), r"no column 'fold'.*perhaps you mean 'folder'"),
    ],
)
def test_a_file_that_does_not_fit_the_data_set_is_refused(tmp_path, change, expected):
    path = tmp_path / "folds.csv"
    folds.write(path, table(), folds.make(LABELS, "stratified"))
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=expected):
        folds.read(path, table())
