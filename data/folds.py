"""Which image validates which fold model, decided once and kept in folds.csv. Order and sampling are `data.sampler`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from config.errors import DataError
from data import csvfile, keyed
from data.index import Table

Kind = Literal["holdout", "stratified"]
TRAIN_ONLY = -1
_HEADER = ("ID", "target", "fold")


def make(
    labels: NDArray[np.int64],
    kind: Kind,
    count: int = 5,
    val_fraction: float = 0.2,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> NDArray[np.int64]:
    """The fold int64 `[N]` that each image validates, -1 for one that is always trained on.

    `stratified` is scikit-learn's StratifiedKFold over `count` folds; `holdout` its StratifiedShuffleSplit: fold 0 is
    the share `val_fraction`. Raises `DataError` naming the class that has too few images.
    """
    labels = np.asarray(labels, dtype=np.int64)
    state = keyed.number(seed, "folds") % 2**32
    folds = np.full(len(labels), TRAIN_ONLY, dtype=np.int64)
    if kind == "stratified":
        _check_classes(labels, count, f"{count} folds", "set folds.count lower", class_names)
        splits = StratifiedKFold(count, shuffle=True, random_state=state).split(labels, labels)
        for fold, (_, validation) in enumerate(splits):
            folds[validation] = fold
        return folds
    _check_classes(labels, 2, "a hold-out", "", class_names)
    _check_holdout(labels, val_fraction)
    splits = StratifiedShuffleSplit(1, test_size=val_fraction, random_state=state).split(labels, labels)
    folds[next(splits)[1]] = 0
    return folds


def validates(folds: NDArray[np.int64], number: int) -> NDArray[np.bool_]:
    """bool `[N]`: the images that judge the model of fold `number`; all others train it."""
    return np.asarray((folds.reshape(len(folds), -1) == number).any(axis=1))


def write(path: Path, table: Table, folds: NDArray[np.int64]) -> None:
    """Write columns ID, target, fold in the order of `table`; an existing file with other content is never replaced."""
    rows = zip(table.ids, _targets(table), folds.tolist(), strict=True)
    content = csvfile.encode(_HEADER, rows)
    if path.exists() and path.read_bytes() != content:
        raise DataError(f"{path}: exists with other folds; read it with folds.file, or choose another run name")
    csvfile.replace(path, content)


def read(path: Path, table: Table) -> NDArray[np.int64]:
    """The folds int64 `[N]` in the order of `table`; `DataError` where the file and the data set differ."""
    rows = csvfile.read(path, _HEADER)
    by_id = {row.cells["ID"]: row for row in rows}
    if len(by_id) < len(rows):
        raise DataError(f"{path}: an ID occurs twice; keep one line for each image")
    _check_ids(path, set(by_id), set(table.ids))
    folds = np.empty(len(table.ids), dtype=np.int64)
    for i, (name, target) in enumerate(zip(table.ids, _targets(table), strict=True)):
        row = by_id[name]
        if row.cells["target"] != target:
            raise DataError(
                f"{path}: line {row.line} has target {row.cells['target']!r} for {name!r}, the data set "
                f"has {target!r}; the labels changed since, make new folds"
            )
        folds[i] = _fold(path, row)
    _check_numbers(path, folds)
    return folds


def _targets(table: Table) -> list[str]:
    return [table.class_names[label] for label in table.labels.tolist()]


def _fold(path: Path, row: csvfile.Row) -> int:
    text = row.cells["fold"]
    if text != str(TRAIN_ONLY) and not (text.isascii() and text.isdigit()):
        raise DataError(f"{path}: line {row.line} has fold {text!r}; write 0, 1, ... or -1 for 'always in training'")
    return int(text)


def _check_classes(
    labels: NDArray[np.int64], least: int, purpose: str, remedy: str, class_names: Sequence[str]
) -> None:
    if (labels < 0).any():
        raise DataError(f"{int((labels < 0).sum())} images have no label; folds are made of labelled images only")
    classes, counts = np.unique(labels, return_counts=True)
    few = int(counts.argmin())
    if counts[few] < least:
        name = class_names[classes[few]] if class_names else str(classes[few])
        advice = " or ".join(filter(None, ["add images", "remove the class", remedy]))
        raise DataError(f"class {name!r} has only {counts[few]} of the {least} images that {purpose} needs; {advice}")


def _check_holdout(labels: NDArray[np.int64], val_fraction: float) -> None:
    classes = len(np.unique(labels))
    validation = int(np.ceil(val_fraction * len(labels)))
    if min(validation, len(labels) - validation) < classes:
        raise DataError(
            f"folds.val_fraction {val_fraction} of {len(labels)} images is {validation} to validate on, "
            f"both sides need {classes} (one of each class) or more; change it, or use folds.kind stratified"
        )


def _check_ids(path: Path, found: set[str], wanted: set[str]) -> None:
    for names, what in ((wanted - found, "are missing from it"), (found - wanted, "are not in the data set")):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise DataError(
                f"{path}: {len(names)} IDs {what} (first: {first}); the images changed since, make new folds"
            )


def _check_numbers(path: Path, folds: NDArray[np.int64]) -> None:
    numbers = [int(n) for n in np.unique(folds) if n != TRAIN_ONLY]
    if not numbers or numbers != list(range(len(numbers))):
        raise DataError(f"{path}: its folds are {numbers}; they must be 0, 1, 2, ... without a gap")
