"""Scores of logits against integer targets: scikit-learn's, under the names that settings and files use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss


def scores(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> dict[str, float]:
    """`macro_f1` (over all classes; one without samples or predictions counts 0), `accuracy` and `log_loss` in nats.

    logits `[N, C]`, targets `[N]` in 0..C-1. Logits that are not finite give NaN scores.
    """
    if not np.isfinite(logits).all():
        return dict.fromkeys(("macro_f1", "accuracy", "log_loss"), float("nan"))
    labels = np.arange(logits.shape[1])
    predicted = logits.argmax(axis=1)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return {
        "macro_f1": float(f1_score(targets, predicted, average="macro", labels=labels, zero_division=0)),
        "accuracy": float(accuracy_score(targets, predicted)),
        "log_loss": float(log_loss(targets, probabilities, labels=labels)),
    }


def confusion(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts `[C, C]`, a row a true class, a column a predicted one."""
    counts: NDArray[np.int64] = confusion_matrix(targets, logits.argmax(axis=1), labels=np.arange(logits.shape[1]))
    return counts
