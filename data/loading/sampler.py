"""The order of an epoch's samples. `data.augment` transforms them, `data.loading.loader` loads them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.rng import philox


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64 `[n]` of one epoch over all ranks, the same for equal (n, seed, epoch)."""
    return philox(seed, "order", epoch).permutation(n).astype(np.int64)


def occurrences(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each position of an order how often its sample stood before: repeated samples are augmented differently."""
    by_sample = np.argsort(order, kind="stable")
    values = order[by_sample]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    repeats = np.empty(len(order), np.int64)
    repeats[by_sample] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return repeats
