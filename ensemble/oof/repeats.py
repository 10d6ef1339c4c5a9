"""Merges the out-of-fold predictions of repeated folds, which predict each image several times, as an ensemble does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration.scaling import log_softmax


def occurrences(ids: NDArray[np.str_]) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """The distinct ids `[N]` in the order of their first row, and int64 `[R, N]` the rows of the first to the R-th
    time that each appears, -1 where there is none."""
    unique, first, inverse, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    again = np.empty(len(ids), dtype=np.int64)
    again[order] = np.arange(len(ids)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((int(counts.max(initial=1)), len(unique)), -1, dtype=np.int64)
    rows[again, inverse] = np.arange(len(ids))
    by_appearance = np.argsort(first)
    return unique[by_appearance], rows[:, by_appearance]


def mean(logits: NDArray[np.float32], there: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32 `[N, C]`: the logarithm of the mean of the probabilities of logits `[R, N, C]` that are `there` `[R, N]`.

    Logits of an image with one prediction are unchanged; one without predictions has zeros.
    """
    count = there.sum(axis=0)[:, None]
    probabilities = np.exp(log_softmax(logits)) * there[:, :, None]
    means = np.log(np.maximum(probabilities.sum(axis=0) / np.maximum(count, 1), np.finfo(np.float32).tiny))
    return np.where(count > 1, means, (logits * there[:, :, None]).sum(axis=0)).astype(np.float32)
