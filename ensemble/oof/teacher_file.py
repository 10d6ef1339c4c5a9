"""The file of a teacher's predictions, `.npz`: which fold's members predicted each row, and the split of the runs.

Members of fold k never saw the images that validate fold k, so that a student of fold k may learn from them and from no
others. That holds for images without labels too, since pseudo labels carry what their teacher saw. `infer.teacher`
predicts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError, DataError
from config.places import atomic_path
from ensemble.calibration.scaling import log_softmax
from ensemble.ensemble_file import refuse_existing

WRITE = "write it with `python -m infer teacher RUN --out FILE.npz`"


@dataclass(frozen=True, eq=False)
class TeacherPredictions:
    """R predictions: image `ids` str `[R]`, `log_probabilities` float32 `[R, C]` of `class_names`, `fold` int64 `[R]`,
    the fold whose validation images the predicting members never saw. `split` is the fold of each image that they knew
    of, -1 for one that all of them were trained on. `unreadable` are images that could not be read: they have no rows.
    """

    source: str
    ids: NDArray[np.str_]
    log_probabilities: NDArray[np.float32]
    class_names: tuple[str, ...]
    fold: NDArray[np.int64]
    split: Mapping[str, int]
    unreadable: frozenset[str] = frozenset()

    def rows(self, fold: int) -> dict[str, int]:
        """The row of each image that the members of a fold predicted; `DataError` when they predicted one twice."""
        rows = np.flatnonzero(self.fold == fold).tolist()
        row_of = {str(self.ids[row]): row for row in rows}
        if len(row_of) < len(rows):
            raise DataError(f"{self.source}: answers an image twice for fold {fold}; {WRITE}")
        return row_of


def write(path: Path, predictions: TeacherPredictions) -> None:
    """Write the `.npz`; `ConfigError` when it exists already."""
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished, unfinished.open("wb") as file:
        np.savez(
            file,
            ids=predictions.ids,
            probabilities=np.exp(predictions.log_probabilities).astype(np.float32),
            class_names=np.array(predictions.class_names),
            fold=predictions.fold,
            split_ids=np.array(list(predictions.split)),
            split_fold=np.array(list(predictions.split.values()), dtype=np.int64),
            unreadable=np.array(sorted(predictions.unreadable), dtype=np.str_),
        )


def read(path: Path) -> TeacherPredictions:
    """Read what `write` wrote, or a file like it with `logits` in place of `probabilities`.

    `ConfigError` for a file that does not say which folds its predictions are for, `DataError` for a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as an .npz of a teacher's answers ({error}); {WRITE}") from error
    predictions = arrays.get("logits", arrays.get("probabilities"))
    if predictions is None or "ids" not in arrays or "class_names" not in arrays:
        raise DataError(f"{path}: has the arrays {', '.join(arrays)}, not ids, class_names and probabilities; {WRITE}")
    lacking = [name for name in ("fold", "split_ids", "split_fold") if name not in arrays]
    if lacking:
        raise ConfigError(
            f"{path}: has no array {lacking[0]!r}, so it does not say which validation images its teacher saw; {WRITE}"
        )
    _check(path, arrays, predictions)
    logarithms = log_softmax(predictions).astype(np.float32) if "logits" in arrays else logarithm(predictions)
    names = tuple(str(name) for name in arrays["class_names"])
    split = dict(zip(arrays["split_ids"].astype(str).tolist(), arrays["split_fold"].astype(int).tolist(), strict=True))
    unreadable = frozenset(arrays["unreadable"].astype(str).tolist()) if "unreadable" in arrays else frozenset()
    fold = arrays["fold"].astype(np.int64)
    return TeacherPredictions(str(path), arrays["ids"].astype(str), logarithms, names, fold, split, unreadable)


def _check(path: Path, arrays: Mapping[str, NDArray], predictions: NDArray) -> None:
    """`DataError` unless the arrays fit each other and the predictions are finite, and probabilities sum to one."""
    fits = predictions.ndim == 2 and predictions.shape == (len(arrays["ids"]), len(arrays["class_names"]))
    if not fits or len(arrays["fold"]) != len(predictions) or len(arrays["split_ids"]) != len(arrays["split_fold"]):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise DataError(f"{path}: its arrays do not fit each other ({shapes}); {WRITE}")
    sums = predictions.sum(axis=1, dtype=np.float64)
    probable = "logits" in arrays or bool((predictions >= 0).all() and np.allclose(sums, 1, atol=1e-3))
    if not np.isfinite(predictions).all() or not probable:
        raise DataError(f"{path}: holds answers that are not finite or no probabilities; {WRITE}")


def logarithm(probabilities: NDArray) -> NDArray[np.float32]:
    """float32 log probabilities, normalised; 0 counts as the smallest normal float32."""
    return log_softmax(np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))).astype(
        np.float32
    )
