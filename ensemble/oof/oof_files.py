"""The out-of-fold (OOF) answers of finished runs: read from their folders, checked, and aligned by image.

Logits stay memory-mapped in their files: what is made of them, in `fit`, takes some rows at a time. How answers with
TTA views come about stands in `views_oof`.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
# What NumPy and zipfile raise for damaged files; NotImplementedError and RuntimeError speak of zip features.
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
    """One run's OOF answers: `logits` `[N, C]` of the images `ids`, `targets` int64 `[N]`, `fold` int64 `[N]`, and the
    folders of its finished folds. `views` are those that the answers were made with."""

    path: Path
    folds: tuple[Path, ...]
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]
    logits: Gathered
    targets: Ints
    fold: Ints
    views: tuple[str, ...]


def view_file(views: Sequence[str], merge: str = "probabilities") -> str:
    """The name of the file of a fold's OOF answers with these views, merged by `merge`."""
    return OOF if tuple(views) == ORIGINAL else f"oof_{merge}_{','.join(views)}.npz"


def read(path: Path, views: Sequence[str] = ORIGINAL, merge: str = "probabilities") -> Run:
    """Read `RUN/fold_K/oof.npz` and the class names of `RUN/fold_K/best` of all finished folds.

    Answers that were made with `views` are taken where all folds have them, else those of the original view.
    `CheckpointError` when the run has none or one is damaged, `DataError` when two folds answer the same image of a
    run whose folds are not repeated.
    """
    folds = finished(path)
    cards = [(str(fold), read_card(fold / BEST).class_names) for fold in folds]
    check_classes(cards)
    name = view_file(views, merge)
    if not all((fold / name).is_file() for fold in folds):
        name, views = OOF, ORIGINAL
    parts = [_load(fold / name, len(cards[0][1])) for fold in folds]
    ids, part_of, row = _places([part_of[0] for part_of in parts], path)
    targets, fold_of = _targets(parts, part_of, row, ids, path), np.array([number(fold) for fold in folds])
    logits = Gathered([part_of[1] for part_of in parts], part_of, row)
    return Run(path, tuple(folds), cards[0][1], ids, logits, targets, fold_of[part_of[0]], tuple(views))


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
        shape = (len(run.logits.part), len(ids))
        part_of, row = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        part_of[:, rows], row[:, rows] = run.logits.part, run.logits.row
        logits.append(Gathered(run.logits.parts, part_of, row))
        present.append(part_of.max(axis=0) >= 0)
    return Table(ids, targets, logits, present, fold_of)


def _places(named: Sequence[NDArray[np.str_]], path: Path) -> tuple[NDArray[np.str_], Ints, Ints]:
    """The distinct ids of all folds, in the order of their first appearance, and for each repeat and id its fold and
    its row there."""
    ids, rows = repeats.occurrences(np.concatenate(named))
    if len(rows) > 1:
        twice = str(ids[rows[1] >= 0][0])
        if not _has_repeats(path) or any(len(np.unique(ids_of_part)) < len(ids_of_part) for ids_of_part in named):
            raise DataError(f"{path}: two folds both answer image {twice!r}; they are not of one split")
    fold = np.repeat(np.arange(len(named)), [len(ids_of_part) for ids_of_part in named])
    row = np.concatenate([np.arange(len(ids_of_part)) for ids_of_part in named])
    return ids, np.where(rows >= 0, fold[rows], -1), np.where(rows >= 0, row[rows], 0)


def _targets(
    parts: Sequence[tuple[Any, Any, Ints]], part_of: Ints, row: Ints, ids: NDArray[np.str_], path: Path
) -> Ints:
    """int64 `[N]`; `DataError` when repeats disagree on the target of an image."""
    labels = np.full(part_of.shape, -1, dtype=np.int64)
    for number, (_, _, targets) in enumerate(parts):
        labels[part_of == number] = targets[row[part_of == number]]
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


def _has_repeats(run: Path) -> bool:
    """Whether the folds of a run were drawn several times."""
    file = run / "folds.csv"
    return file.is_file() and "fold_2" in csvfile.header(file)
