"""The order of an epoch's samples. What a sample looks like is `data.augment`, how it gets there `data.loader`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data import keyed


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64 `[n]` of one epoch over all ranks, the same for equal (n, seed, epoch)."""
    return keyed.rng(seed, "order", epoch).permutation(n).astype(np.int64)
