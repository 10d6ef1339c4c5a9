"""Scores of logits against integer targets: scikit-learn's, under the names that settings and files use.

Logits are `[N, C]` arrays, or anything of that shape that gives rows when sliced (`ensemble.oof.oof_files.Gathered`).
They are processed in blocks of rows: 50,000 images of 1,000 classes would need several times 400 MB otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from ensemble.calibration.scaling import Rows, blocks

_EPS = float(np.finfo(np.float64).eps)


def scores(logits: Rows, targets: NDArray[np.int64]) -> dict[str, float]:
    """`macro_f1` (over all classes; one without samples or predictions counts 0), `accuracy` and `log_loss` in nats.

    logits `[N, C]`, targets `[N]` in 0..C-1. Logits that are not finite give NaN scores. Probabilities are clipped as
    scikit-learn's `log_loss` does, to the float64 resolution off 0 and 1.
    """
    predicted, of_target = np.empty(len(targets), np.int64), np.empty(len(targets), np.float64)
    for rows in blocks(*logits.shape):
        chunk = np.asarray(logits[rows], np.float64)
        if not np.isfinite(chunk).all():
            return dict.fromkeys(("macro_f1", "accuracy", "log_loss"), float("nan"))
        predicted[rows] = chunk.argmax(axis=1)
        of_target[rows] = softmax(chunk, axis=1)[np.arange(len(chunk)), targets[rows]]
    labels = np.arange(logits.shape[1])
    return {
        "macro_f1": float(f1_score(targets, predicted, average="macro", labels=labels, zero_division=0)),
        "accuracy": float(accuracy_score(targets, predicted)),
        "log_loss": float(-np.log(of_target.clip(_EPS, 1 - _EPS)).mean()),
    }


def predictions(logits: Rows) -> NDArray[np.int64]:
    """The class of the largest logit, int64 `[N]`."""
    predicted = np.empty(len(logits), np.int64)
    for rows in blocks(*logits.shape):
        predicted[rows] = np.asarray(logits[rows]).argmax(axis=1)
    return predicted


def confusion(logits: Rows, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts `[C, C]`, a row a true class, a column a predicted one."""
    counts: NDArray[np.int64] = confusion_matrix(targets, predictions(logits), labels=np.arange(logits.shape[1]))
    return counts
