"""The out-of-fold (OOF) predictions of finished runs: read from their folders, checked, and aligned by image.

Logits stay memory-mapped in their files; `fit` reads some rows at a time. `infer.views_oof` writes those with TTA
views.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import CheckpointError, DataError
from data import csvfile
from ensemble.oof import npz, repeats
from ensemble.oof.oof_table import Gathered, Table
from models.card import check_classes, read_card

BEST = "best"
OOF = "oof.npz"
ORIGINAL = ("original",)
# What NumPy and zipfile raise for damaged files; RuntimeError for unsupported zip features.
_DAMAGED = (
    OSError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    MemoryError,
    OverflowError,
    RuntimeError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One run's OOF predictions: `logits` `[N, C]` of the images `ids`, `targets` int64 `[N]`, `fold` int64 `[N]`, the
    folders of its finished `folds`, and the TTA `views`."""

    path: Path
    folds: tuple[Path, ...]
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]
    logits: Gathered
    targets: Ints
    fold: Ints
    views: tuple[str, ...]


def view_file(views: Sequence[str], merge: str = "probabilities") -> str:
    """The name of the file of a fold's OOF predictions with these views, merged by `merge`."""
    return OOF if tuple(views) == ORIGINAL else f"oof_{merge}_{','.join(views)}.npz"


def read(path: Path, views: Sequence[str] = ORIGINAL, merge: str = "probabilities") -> Run:
    """Read `RUN/fold_K/oof.npz` and the class names of `RUN/fold_K/best` of all finished folds.

    Predictions with `views` are taken where all folds have them, else those of the original view. `CheckpointError`
    when the run has none or one is damaged, `DataError` when two folds predict the same image of a run whose folds are
    not repeated.
    """
    folds = finished(path)
    cards = [(str(fold), read_card(fold / BEST).class_names) for fold in folds]
    check_classes(cards)
    class_names = cards[0][1]
    name = view_file(views, merge)
    if not all((fold / name).is_file() for fold in folds):
        name, views = OOF, ORIGINAL
    ids_of, logits_of, targets_of = zip(*(_load(fold / name, len(class_names)) for fold in folds), strict=True)
    ids, file, row = _locate(ids_of, path)
    logits = Gathered(logits_of, file, row)
    targets = _targets(targets_of, file, row, ids, path)
    fold_of = np.array([number(fold) for fold in folds])[file[0]]
    return Run(path, tuple(folds), class_names, ids, logits, targets, fold_of, tuple(views))


def finished(path: Path) -> list[Path]:
    """The finished folds of a run, in the order of their numbers; `CheckpointError` when there is none."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: there is no such run folder; train it first with train_torch.py or train_mlx.py"
        )
    numbered = [(re.fullmatch(r"fold_(\d+)", fold.name), fold) for fold in path.glob("fold_*")]
    ordered = [fold for _, fold in sorted((int(match[1]), fold) for match, fold in numbered if match)]
    folds = [fold for fold in ordered if (fold / OOF).is_file() and (fold / BEST).is_dir()]
    if not folds:
        lacking = f"has no finished fold (fold_K/{BEST} and fold_K/{OOF})"
        raise CheckpointError(f"{path}: {lacking}; train it first, with --resume {path} where it was begun")
    return folds


def number(fold: Path) -> int:
    """K of a folder `fold_K`."""
    return int(fold.name.removeprefix("fold_"))


def align(runs: Sequence[Run]) -> Table:
    """All runs' rows by image, sorted by ID; `ConfigError` or `DataError` when classes or targets disagree."""
    check_classes([(str(run.path), run.class_names) for run in runs])
    ids = np.unique(np.concatenate([run.ids for run in runs]))
    targets, fold_of = np.full(len(ids), -1, dtype=np.int64), np.full(len(ids), -1, dtype=np.int64)
    logits, present = [], []
    for run in runs:
        rows = np.searchsorted(ids, run.ids)
        wrong = (targets[rows] >= 0) & (targets[rows] != run.targets)
        if wrong.any():
            name = str(run.ids[wrong][0])
            raise DataError(
                f"{run.path}: image {name!r} has another target than in the runs before; fit runs of one data set"
            )
        targets[rows] = run.targets
        fold_of[rows] = np.where(fold_of[rows] < 0, run.fold, fold_of[rows])
        shape = (len(run.logits.file), len(ids))
        file, row = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        file[:, rows], row[:, rows] = run.logits.file, run.logits.row
        logits.append(Gathered(run.logits.files, file, row))
        present.append(file.max(axis=0) >= 0)
    return Table(ids, targets, logits, present, fold_of)


def _locate(ids_of: Sequence[NDArray[np.str_]], path: Path) -> tuple[NDArray[np.str_], Ints, Ints]:
    """The distinct ids of all files, in the order of their first appearance, and for each repeat and id its file and
    its row there."""
    ids, rows = repeats.occurrences(np.concatenate(ids_of))
    if len(rows) > 1:
        twice, table = str(ids[rows[1] >= 0][0]), path / "folds.csv"
        repeated = table.is_file() and "fold_2" in csvfile.header(table)
        if not repeated or any(len(np.unique(names)) < len(names) for names in ids_of):
            raise DataError(f"{path}: two folds both answer image {twice!r}; they are not of one split")
    file = np.repeat(np.arange(len(ids_of)), [len(names) for names in ids_of])
    row = np.concatenate([np.arange(len(names)) for names in ids_of])
    return ids, np.where(rows >= 0, file[rows], -1), np.where(rows >= 0, row[rows], 0)


def _targets(targets_of: Sequence[Ints], file: Ints, row: Ints, ids: NDArray[np.str_], path: Path) -> Ints:
    """int64 `[N]`; `DataError` when repeats disagree on the target of an image."""
    labels = np.full(file.shape, -1, dtype=np.int64)
    for number, targets in enumerate(targets_of):
        labels[file == number] = targets[row[file == number]]
    wrong = ((labels >= 0) & (labels != labels[0])).any(axis=0)
    if wrong.any():
        raise DataError(f"{path}: its folds disagree on the target of image {ids[wrong][0]!r}; train it again")
    return labels[0]


def _load(path: Path, classes: int) -> tuple[NDArray[np.str_], NDArray[np.float32], Ints]:
    try:
        arrays = npz.read(path)
        ids, logits, targets = arrays["ids"], arrays["logits"], arrays["targets"]
    except _DAMAGED as error:
        raise CheckpointError(f"{path}: is damaged or not Tandem's ({error}); train this fold again") from error
    kinds = ids.dtype.kind, logits.dtype.kind, targets.dtype.kind
    if kinds != ("U", "f", "i") or ids.ndim != 1 or logits.shape != (len(ids), classes) or targets.shape != ids.shape:
        raise CheckpointError(f"{path}: its arrays do not fit {classes} classes; train the fold again")
    if not np.isfinite(logits).all():
        raise CheckpointError(f"{path}: its logits are not finite; train the fold again")
    if len(targets) and not (targets.min() >= 0 and targets.max() < classes):
        raise CheckpointError(f"{path}: holds targets outside 0..{classes - 1}; train the fold again")
    return ids, logits, targets
