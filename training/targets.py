"""From labels and a teacher's answers to the rows that the loss sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infer.calibration import log_softmax


def smoothed(labels: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> NDArray[np.float32]:
    """One-hot rows float32 `[N, classes]`, mixed with the uniform distribution by `smoothing` (Szegedy et al. 2016),
    as torch's `cross_entropy(label_smoothing=...)` does."""
    rows = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    rows[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    return rows


def softened(log_probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """A teacher's answers float32 `[N, C]`: the softmax of its logits divided by `temperature` (Hinton et al. 2015)."""
    return np.exp(log_softmax(log_probabilities, temperature)).astype(np.float32)


def blended(hard: NDArray[np.float32], soft: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """`(1 - weight) * hard + weight * soft`, float32 `[N, C]`."""
    return np.float32(1 - weight) * hard + np.float32(weight) * soft
