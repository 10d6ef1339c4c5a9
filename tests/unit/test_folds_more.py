"""Folds that part no group, repeated folds, folds of a user's own, and what OOF answers become of them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.model_selection import RepeatedStratifiedKFold, StratifiedGroupKFold

from config import load
from config.errors import ConfigError, DataError
from data import folds, groups, sources
from data.rng import philox_seed
from data.sources import Table
from ensemble.oof import oof_files
from tests.unit.test_campaign import NEVER, settings
from training.run import prepare, results, train_run

LABELS = np.tile(np.arange(3), 40)
GROUPS = np.arange(120) // 4
STATE = philox_seed(7, "folds") % 2**32


def test_group_folds_are_those_of_scikit_learn_and_part_no_group() -> None:
    made = folds.make(LABELS, "stratified_group", 5, seed=7, groups=GROUPS)
    reference = StratifiedGroupKFold(5, shuffle=True, random_state=STATE).split(LABELS, LABELS, GROUPS)
    for number, (_, validation) in enumerate(reference):
        np.testing.assert_array_equal(np.flatnonzero(made == number), validation)
    assert all(len(set(made[group == GROUPS])) == 1 for group in GROUPS)


def test_a_class_of_one_group_is_refused_since_one_fold_would_never_train_it() -> None:
    together = np.where(LABELS == 1, 0, np.arange(120) + 1)
    with pytest.raises(DataError, match=r"class 'b' has only 1 of the 2 groups .*split its group"):
        folds.make(LABELS, "stratified_group", 5, groups=together, class_names=("a", "b", "c"))


def test_groups_too_few_for_the_folds_are_refused() -> None:
    with pytest.raises(DataError, match=r"only 2 groups of images for 3 folds; set folds\.n_splits lower"):
        folds.make(LABELS, "stratified_group", 3, groups=np.arange(120) // 60)


def test_repeated_folds_are_those_of_scikit_learn_numbered_on(tmp_path: Path) -> None:
    made = folds.make(LABELS, "repeated", 4, seed=7, repeats=3)
    reference = RepeatedStratifiedKFold(n_splits=4, n_repeats=3, random_state=STATE).split(LABELS, LABELS)
    for number, (train, validation) in enumerate(reference):
        np.testing.assert_array_equal(np.flatnonzero(folds.validates(made, number)), validation)
        np.testing.assert_array_equal(np.flatnonzero(~folds.validates(made, number)), train)
    assert folds.numbers(made) == list(range(12))
    names = [f"{i}.png" for i in range(120)]
    table = Table(names, [Path(name) for name in names], LABELS, ("a", "b", "c"), Path())
    folds.write(tmp_path / "folds.csv", table, made)
    np.testing.assert_array_equal(folds.read(tmp_path / "folds.csv", table), made)


def with_groups(digits: Path, root: Path) -> Path:
    """The digits with a column `group`: each eight neighbouring rows of train.csv."""
    shutil.copytree(digits, root)
    with (root / "train.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (root / "train.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("ID", "target", "group"))
        writer.writerows((row["ID"], row["target"], f"page {i // 2}") for i, row in enumerate(rows))
    return root


def test_groups_of_a_column_and_of_a_file_are_joined(digits: Path, tmp_path: Path) -> None:
    root, file = with_groups(digits, tmp_path / "data"), tmp_path / "duplicates.csv"
    table = sources.load(root)
    file.write_text(f"ID,group\n{table.ids[0]},x\n{table.ids[9]},x\n{table.ids[30]},y\n")
    found = groups.read(table, "group", file)
    assert len({found[i] for i in (0, 1, 8, 9)}) == 1, "pages 0 and 4 are one group, since the file joins them"
    assert found[30] == found[31] != found[0]
    assert len(set(found)) == len(table.ids) // 2 - 1
    alone = groups.read(sources.load(digits), "group", file)
    assert alone[0] == alone[9]
    assert len(set(alone)) == len(table.ids) - 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ID,group\nnot_there.png,a\n", r"1 of its IDs are not in the data set \(first: not_there.png\)"),
        ("ID,set\na,b\n", "no column 'group'"),
    ],
)
def test_a_wrong_file_of_groups_is_named(text: str, said: str, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        groups.read(sources.load(digits), "group", tmp_path / "groups.csv")


def test_group_folds_without_groups_name_the_column(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'group'"):
        train_run.run_all("numpy", settings(digits, tmp_path, "--folds.strategy", "stratified_group"), NEVER)
    with pytest.raises(ConfigError, match=r"folds\.groups: .*expected null where folds\.strategy is stratified"):
        load.parse(["--data.root", "x", "--folds.strategy", "stratified", "--folds.groups", "g.csv"], "test")


def test_a_run_of_group_folds_parts_no_group(digits: Path, tmp_path: Path) -> None:
    root = with_groups(digits, tmp_path / "data")
    wanted = settings(root, tmp_path / "runs", "--folds.strategy", "stratified_group")
    table = sources.load(root)
    fold_of = prepare.draw_folds(wanted, table)
    pages = groups.read(table, "group", None)
    assert all(len(set(fold_of[pages == page])) == 1 for page in pages)


def test_a_run_of_repeated_folds_answers_each_image_once_with_the_mean(digits: Path, tmp_path: Path) -> None:
    more = ["--folds.strategy", "repeated", "--folds.repeats", "2", "--train.epochs", "1", "--mining.cap", "0"]
    folder = train_run.run_all("numpy", settings(digits, tmp_path, *more), NEVER)
    assert len(list(folder.glob("fold_*/result.yaml"))) == 4
    ids, logits, _ = results.oof(folder)
    assert len(ids) == len(set(ids)) == 80
    each = []
    for fold in folder.glob("fold_*/"):
        with np.load(fold / "oof.npz") as file:
            each += [softmax(file["logits"][i]) for i in np.flatnonzero(file["ids"] == ids[3])]
    assert len(each) == 2
    np.testing.assert_allclose(softmax(np.asarray(logits)[3]), np.mean(each, axis=0), rtol=1e-5)
    run = oof_files.read(folder)
    assert sorted(run.ids) == sorted(ids)


def test_a_users_own_folds_need_no_target(digits: Path, tmp_path: Path) -> None:
    table = sources.load(digits)
    lines = [f"{name},{i % 2}" for i, name in enumerate(table.ids)]
    (tmp_path / "mine.csv").write_text("\n".join(["ID,fold", *lines]))
    made = folds.read(tmp_path / "mine.csv", table)
    np.testing.assert_array_equal(made, np.arange(80) % 2)
    (tmp_path / "mine.csv").write_text("\n".join(["ID,fold,fold_2", *(f"{line},{line[-1]}" for line in lines)]))
    with pytest.raises(DataError, match="a fold stands in two of its columns"):
        folds.read(tmp_path / "mine.csv", table)
