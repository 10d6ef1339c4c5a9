"""From labels to the rows that the loss sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smoothed(labels: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> NDArray[np.float32]:
    """One-hot rows float32 `[N, classes]`, mixed with the uniform distribution by `smoothing` (Szegedy et al. 2016),
    as torch's `cross_entropy(label_smoothing=...)` does."""
    rows = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    rows[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    return rows
