"""Weighted averages of predictions: of probabilities, of logits, or of ranks.

`WeightedAverage` takes predictions one by one; `mix` averages a table of memory-mapped out-of-fold predictions, some
rows at a time, in float32. `weights` finds the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats
from ensemble.oof.oof_table import Table

Combine = Literal["probabilities", "logits", "ranks"]
Merge = Literal["probabilities", "logits", "geometric", "max"]
Predictions = NDArray[np.float32]
_SMALLEST = np.finfo(np.float64).tiny


def default_merge(combine: Combine) -> Merge:
    """The default merge of views."""
    return "probabilities" if combine == "ranks" else combine


class WeightedAverage:
    """The weighted mean of predictions for the same images, added one by one in any number.

    A weight is one number, or one for each row (0 where the prediction is missing); each row is normalised by the sum
    of its weights.
    """

    def __init__(self, combine: Combine = "probabilities"):
        self._combine = combine
        self._sum: Floats | float = 0.0
        self._weight: Floats | float = 0.0

    def add(self, logits: ArrayLike, weight: float | NDArray[np.floating] = 1.0, temperature: float = 1.0) -> None:
        """Add logits `[N, C]`, divided by `temperature`."""
        logs = scaling.log_softmax(logits, temperature)
        if self._combine == "probabilities":
            logs = np.exp(logs)
        elif self._combine == "ranks":
            from scipy.stats import rankdata  # slow to import, and few ensembles mix ranks

            logs = rankdata(logs, axis=-1)
        column = np.asarray(weight, dtype=np.float64).reshape(-1, 1)
        self._sum = self._sum + column * logs
        self._weight = self._weight + column

    def log_probabilities(self, temperature: float = 1.0) -> Floats:
        """float64 `[N, C]`: the mixture's log probabilities, divided by `temperature` and normalised."""
        mean = np.asarray(self._sum) / self._weight
        if self._combine == "probabilities":
            mean = np.log(np.maximum(mean, _SMALLEST))
        return scaling.log_softmax(mean, temperature)


def mix(table: Table, temperatures: Sequence[float], weights: Floats, combine: Combine) -> Predictions:
    """Log probabilities float32 `[N, C]`; the weights of the runs that predicted a row are normalised for it.

    A row that only runs of weight 0 predicted takes those equally.
    """
    predictions = np.empty((len(table.ids), table.classes), dtype=np.float32)
    present = np.stack(table.present, axis=1)
    shares = (weights * present).astype(np.float32)
    shares = np.where(shares.sum(axis=1, keepdims=True) > 0, shares, present)
    shares /= shares.sum(axis=1, keepdims=True)
    used = np.flatnonzero(shares.any(axis=0)).tolist()
    for rows in scaling.blocks(len(table.ids), table.classes):
        logs = tempered(table, temperatures, rows, used)
        predictions[rows] = _mean(logs, shares[rows][:, used].T[:, :, None], combine)
    return predictions


def tempered(table: Table, temperatures: Sequence[float], rows: slice, used: Iterable[int]) -> Predictions:
    """Log probabilities float32 `[U, n, C]` of the runs `used`, each at its temperature, for some rows."""
    return np.stack([scaling.normalised(table.logits[g][rows] / np.float32(temperatures[g])) for g in used])


def summands(logs: Predictions, combine: Combine) -> Predictions:
    """The averaged values: probabilities, log probabilities, or the classes' ranks, C for the most probable."""
    if combine == "probabilities":
        return np.exp(logs)
    if combine == "logits":
        return logs
    from scipy.stats import rankdata

    return rankdata(logs, axis=-1).astype(np.float32)


def _mean(logs: Predictions, shares: Predictions, combine: Combine) -> Predictions:
    """Log probabilities `[n, C]` of the mean of `logs` `[U, n, C]` with `shares` `[U, n, 1]` that sum to one."""
    if combine != "probabilities":
        return scaling.normalised((shares * summands(logs, combine)).sum(axis=0))
    top = logs.max(axis=0)  # taken out first: what underflows is nothing beside the largest
    mean = (shares * np.exp(logs - top)).sum(axis=0)
    # A run of no weight may be the one with the largest answer.
    return scaling.normalised(top + np.log(np.maximum(mean, np.finfo(np.float32).tiny)))
