"""The out-of-fold (OOF) answers of finished runs: read from their folders, checked, and aligned by image.

What is made of them stands in `fit`.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import CheckpointError, DataError
from infer import repeats
from infer.member import check_classes
from infer.predictors import checkpoint

BEST = "best"
OOF = "oof.npz"
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
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Run:
    """One run's OOF answers: `logits` float32 `[N, C]` of the images `ids`, `targets` int64 `[N]`, and its folds."""

    path: Path
    folds: tuple[Path, ...]
    class_names: tuple[str, ...]
    ids: NDArray[np.str_]
    logits: NDArray[np.float32]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """The runs' answers to all images that any of them answered.

    `logits[g]` is float32 `[N, C]` of run g, zeros where `present[g]`, bool `[N]`, says that it has no answer.
    """

    ids: NDArray[np.str_]
    targets: NDArray[np.int64]
    logits: list[NDArray[np.float32]]
    present: list[NDArray[np.bool_]]


def read(path: Path) -> Run:
    """Read `RUN/fold_K/oof.npz` and the class names of `RUN/fold_K/best` of all finished folds.

    `CheckpointError` when the run has none or one is damaged, `DataError` when two folds answer the same image.
    """
    folds = [fold for fold in _folds(path) if (fold / OOF).is_file() and (fold / BEST).is_dir()]
    if not folds:
        raise CheckpointError(f"{path}: has no finished fold (fold_K/{BEST} and fold_K/{OOF}); train it first")
    cards = [(str(fold), checkpoint.read_card(fold / BEST).class_names) for fold in folds]
    check_classes(cards)
    parts = [_load(fold / OOF, len(cards[0][1])) for fold in folds]
    ids, logits, targets = (np.concatenate([part[i] for part in parts]) for i in range(3))
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any() and repeats.of_run(path):
        ids, logits, targets = repeats.merged(repeats.Answers(ids, logits, targets))
    elif (counts > 1).any():
        twice = str(unique[counts > 1][0])
        raise DataError(f"{path}: two folds both answer image {twice!r}; they are not of one split")
    return Run(path, tuple(folds), cards[0][1], ids, logits, targets)


def align(runs: Sequence[Run]) -> Table:
    """All runs' rows by image, sorted by ID; `ConfigError` or `DataError` when classes or targets disagree."""
    check_classes([(str(run.path), run.class_names) for run in runs])
    ids = np.unique(np.concatenate([run.ids for run in runs]))
    targets = np.full(len(ids), -1, dtype=np.int64)
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
        whole = np.zeros((len(ids), run.logits.shape[1]), dtype=np.float32)
        whole[rows] = run.logits
        logits.append(whole)
        present.append(np.isin(np.arange(len(ids)), rows))
    return Table(ids, targets, logits, present)


def _folds(path: Path) -> list[Path]:
    """`fold_0`, `fold_1`, ... in the order of their numbers."""
    numbered = [(re.fullmatch(r"fold_(\d+)", fold.name), fold) for fold in path.glob("fold_*")]
    return [fold for _, fold in sorted((int(match[1]), fold) for match, fold in numbered if match)]


def _load(path: Path, classes: int) -> tuple[NDArray[np.str_], NDArray[np.float32], NDArray[np.int64]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, logits, targets = file["ids"], file["logits"], file["targets"]
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
