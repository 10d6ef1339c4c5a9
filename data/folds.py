"""Which image validates which fold model, decided once and kept in folds.csv. Order is `data.loading.sampler`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import (
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
)

from config.errors import DataError
from config.places import atomic_write
from config.text import counted
from data import csvfile
from data.rng import philox_seed
from data.sources import Table

Kind = Literal["holdout", "stratified", "stratified_group", "repeated"]
TRAIN_ONLY = -1
_FEWER = "set folds.n_splits lower"


def make(
    labels: NDArray[np.int64],
    kind: Kind,
    count: int = 5,
    val_fraction: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] = (),
    repeats: int = 1,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The fold int64 `[N]` that each image validates, -1 for one that is always trained on.

    `stratified` is scikit-learn's StratifiedKFold over `count` folds; `stratified_group` its StratifiedGroupKFold,
    which parts no group (`groups` int64 `[N]`); `holdout` its StratifiedShuffleSplit: fold 0 is the share
    `val_fraction`; `repeated` its RepeatedStratifiedKFold, int64 `[N, repeats]` with folds 0 to count * repeats - 1, a
    column a repetition. An image that is the only one of its class is always trained on, and so are those of its
    group. Raises `DataError` naming the class that has too few images.
    """
    labels = np.asarray(labels, dtype=np.int64)
    alone = singles(labels)
    if groups is not None and alone.any():
        alone |= np.isin(groups, groups[alone])
    if alone.any() and not alone.all():
        rest = None if groups is None else groups[~alone]
        drawn = make(labels[~alone], kind, count, val_fraction, seed, class_names, repeats, rest)
        fold_of = np.full((len(labels), *drawn.shape[1:]), TRAIN_ONLY, dtype=np.int64)
        fold_of[~alone] = drawn
        return fold_of
    state = philox_seed(seed, "folds") % 2**32
    if kind == "holdout":
        return _holdout(labels, val_fraction, state, class_names)
    if kind == "stratified_group":
        return _by_group(labels, np.arange(len(labels)) if groups is None else groups, count, state, class_names)
    _check_classes(labels, count, f"{count} folds", _FEWER, class_names)
    if kind == "stratified":
        return _numbered(len(labels), StratifiedKFold(count, shuffle=True, random_state=state).split(labels, labels))
    splits = list(RepeatedStratifiedKFold(n_splits=count, n_repeats=repeats, random_state=state).split(labels, labels))
    columns = [_numbered(len(labels), splits[i : i + count], i) for i in range(0, len(splits), count)]
    return np.stack(columns, axis=1)


def _holdout(
    labels: NDArray[np.int64], val_fraction: float, state: int, class_names: Sequence[str]
) -> NDArray[np.int64]:
    _check_classes(labels, 2, "a hold-out", "", class_names)
    classes = len(np.unique(labels))
    validation = int(np.ceil(val_fraction * len(labels)))
    if min(validation, len(labels) - validation) < classes:
        raise DataError(
            f"folds.val_fraction {val_fraction} of {len(labels)} images is {validation} to validate on, "
            f"both sides need {classes} (one of each class) or more; change it, or use folds.strategy stratified"
        )
    splits = StratifiedShuffleSplit(1, test_size=val_fraction, random_state=state).split(labels, labels)
    return _numbered(len(labels), splits)


def _by_group(
    labels: NDArray[np.int64], groups: NDArray[np.int64], count: int, state: int, class_names: Sequence[str]
) -> NDArray[np.int64]:
    _check_classes(labels, count, f"{count} folds", _FEWER, class_names)
    pairs = np.unique(np.stack([labels, groups]), axis=1)
    purpose = "stratified_group, so that it is trained in every fold,"
    _check_classes(pairs[0], 2, purpose, "split its group", class_names, "groups")
    distinct = len(np.unique(groups))
    if distinct < count:
        raise DataError(
            f"there are only {counted(distinct, 'group')} of images for {count} folds; {_FEWER}, or make smaller groups"
        )
    splits = StratifiedGroupKFold(count, shuffle=True, random_state=state).split(labels, labels, groups)
    folds = _numbered(len(labels), splits)
    empty = sorted(set(range(count)) - set(folds.tolist()))
    if empty:
        raise DataError(f"{distinct} groups of images leave fold {empty[0]} of {count} without any; {_FEWER}")
    return folds


def _numbered(
    images: int, splits: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]], first: int = 0
) -> NDArray[np.int64]:
    folds = np.full(images, TRAIN_ONLY, dtype=np.int64)
    for fold, (_, validation) in enumerate(splits, start=first):
        folds[validation] = fold
    return folds


def singles(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool `[N]`: the images that are the only ones of their class."""
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.asarray((counts == 1)[inverse] & (labels >= 0))


def united(folds: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The folds with every image of a group (int64 `[N]`) in the fold of the group's first one, so that no copy of a
    picture judges a model that was trained on another. Meant for few and small groups: the folds' sizes change."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(folds[first][group], dtype=np.int64)


def check_trained(folds: NDArray[np.int64], table: Table) -> None:
    """`DataError` where the data set's own folds leave a class to be validated alone, by a model that never saw it."""
    for fold in numbers(folds):
        validation = validates(folds, fold)
        alone = set(table.labels[validation].tolist()) - set(table.labels[~validation].tolist())
        if alone:
            name = table.class_names[min(alone)]
            raise DataError(
                f"{table.root}: class {name!r} is validated by fold {fold} of the data set's own split and has no "
                "image to train on; add one, or set folds.strategy holdout, which draws a new split"
            )


def numbers(folds: NDArray[np.int64]) -> list[int]:
    """The numbers of all folds, in order."""
    return [int(n) for n in np.unique(folds) if n != TRAIN_ONLY]


def validates(folds: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
    """bool `[N]`: the images that judge the model of fold `number`; all others train it."""
    return np.asarray((folds.reshape(len(folds), -1) == number).any(axis=1))


def write(path: Path, table: Table, folds: NDArray[np.int64]) -> None:
    """Write columns ID, target, fold in the order of `table`; of repeated folds also fold_2 and so on.

    An existing file with other content is never replaced: `DataError`.
    """
    columns = folds.reshape(len(folds), -1)
    names = ["fold", *(f"fold_{i}" for i in range(2, columns.shape[1] + 1))]
    rows = ((*known, *row) for *known, row in zip(table.ids, _targets(table), columns.tolist(), strict=True))
    content = csvfile.encode(("ID", "target", *names), rows)
    if path.exists() and path.read_bytes() != content:
        raise DataError(f"{path}: exists with other folds; read it with folds.file, or choose another run name")
    atomic_write(path, content)


def read(path: Path, table: Table) -> NDArray[np.int64]:
    """The folds as `make` gives them, in the order of `table`; `DataError` where the file and the data set differ.

    A file without the column target is taken too: then it is not checked that the labels are still the same.
    """
    key = csvfile.id_column(path, table.id_column)
    rows = csvfile.read(path, (key, "fold"))
    by_id = {row.cells[key]: row for row in rows}
    if len(by_id) < len(rows):
        raise DataError(f"{path}: an ID occurs twice; keep one line for each image")
    _check_ids(path, set(by_id), set(table.ids))
    names = [name for name in rows[0].cells if re.fullmatch(r"fold(_\d+)?", name)]
    folds = np.empty((len(table.ids), len(names)), dtype=np.int64)
    for i, (name, target) in enumerate(zip(table.ids, _targets(table), strict=True)):
        row = by_id[name]
        if row.cells.get("target", target) != target:
            raise DataError(
                f"{path}: line {row.line} has target {row.cells['target']!r} for {name!r}, the data set "
                f"has {target!r}; the labels changed since, make new folds"
            )
        for column, text in enumerate(row.cells[fold] for fold in names):
            if text != str(TRAIN_ONLY) and not (text.isascii() and text.isdigit()):
                fault = f"line {row.line} has {names[column]} {text!r}"
                raise DataError(f"{path}: {fault}; write 0, 1, ... or -1 for 'always in training'")
            folds[i, column] = int(text)
    _check_numbers(path, folds)
    return folds if len(names) > 1 else folds[:, 0]


def with_vanished(path: Path, table: Table) -> Table:
    """`table` in the order of the file, with the images that only the file remembers; their paths lead to nothing.

    The table as it is where none is gone, and where a class would be another one.
    """
    rows = csvfile.read(path, ("ID", "target", "fold"))
    names = [row.cells["ID"] for row in rows]
    if set(names) <= set(table.ids) or not {row.cells["target"] for row in rows} <= set(table.class_names):
        return table
    path_of = dict(zip(table.ids, table.paths, strict=True))
    paths = [path_of.get(name, table.root / name) for name in names]
    number = {name: i for i, name in enumerate(table.class_names)}
    labels = np.array([number[row.cells["target"]] for row in rows], dtype=np.int64)
    return replace(table, ids=names, paths=paths, labels=labels, groups=None, fold_of=None, columns={})


def _targets(table: Table) -> list[str]:
    return [table.class_names[label] for label in table.labels.tolist()]


def _check_classes(
    labels: NDArray[np.int64],
    least: int,
    purpose: str,
    remedy: str,
    class_names: Sequence[str],
    what: str = "images",
) -> None:
    if (labels < 0).any():
        unlabelled = counted(int((labels < 0).sum()), "image has", "images have")
        raise DataError(f"{unlabelled} no label; folds are made of labelled images only")
    classes, counts = np.unique(labels, return_counts=True)
    few = int(counts.argmin())
    if counts[few] < least:
        name = class_names[classes[few]] if class_names else str(classes[few])
        advice = " or ".join(filter(None, ["add images", "remove the class", remedy]))
        raise DataError(f"class {name!r} has only {counts[few]} of the {least} {what} that {purpose} needs; {advice}")


def _check_ids(path: Path, listed: set[str], wanted: set[str]) -> None:
    for names, what in ((wanted - listed, "missing from it"), (listed - wanted, "not in the data set")):
        if names:
            first, others = sorted(names)[:3], sorted(listed if names <= wanted else wanted)
            count, hint = counted(len(names), "ID is", "IDs are"), csvfile.near(first[0], others)
            raise DataError(
                f"{path}: {count} {what} (first: {', '.join(first)}){hint}; the images changed since, make new folds"
            )


def _check_numbers(path: Path, folds: NDArray[np.int64]) -> None:
    present = numbers(folds)
    if not present or present != list(range(len(present))):
        raise DataError(f"{path}: its folds are {present}; they must be 0, 1, 2, ... without a gap")
    columns = [numbers(column) for column in folds.T]
    if sum(map(len, columns)) > len(present):
        raise DataError(f"{path}: a fold stands in two of its columns; number the repetitions' folds on")
