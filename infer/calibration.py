"""From logits to calibrated probabilities: softmax, log loss, temperature, expected calibration error.

Everything is NumPy in float64 on logits `[N, C]` and integer targets `[N]`. How members mix stands in `ensemble`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

Floats = NDArray[np.float64]

_LOWEST, _HIGHEST = 0.02, 50.0  # temperatures outside say that the logits are not a classifier's


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """float64 `[N, C]`: log probabilities of `logits / temperature`; rows of `exp` of it sum to one."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))


def log_loss(log_probabilities: ArrayLike, targets: NDArray[np.int64]) -> float:
    """Mean of minus the log probability of the target, in nats."""
    rows = np.asarray(log_probabilities, dtype=np.float64)
    return float(-rows[np.arange(len(targets)), targets].mean())


def temperature(logits: ArrayLike, targets: NDArray[np.int64]) -> float:
    """The temperature that minimises the log loss of `softmax(logits / T)` (Guo et al. 2017), within 0.02 and 50.

    The loss is convex in 1/T, so the bounded search finds its one minimum.
    """
    rows = np.asarray(logits, dtype=np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)  # so that no exponential overflows
    wanted = float(rows[np.arange(len(targets)), targets].mean())
    scaled = np.empty_like(rows)

    def loss(log_temperature: float) -> float:
        slope = math.exp(-log_temperature)
        np.exp(np.multiply(rows, slope, out=scaled), out=scaled)
        return float(np.log(scaled.sum(axis=1)).mean()) - slope * wanted

    bounds = (math.log(_LOWEST), math.log(_HIGHEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def expected_calibration_error(probabilities: ArrayLike, targets: NDArray[np.int64], bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of top-1 confidence (Naeini et al. 2015), in [0, 1]."""
    rows = np.asarray(probabilities, dtype=np.float64)
    confidence, correct = rows.max(axis=1), rows.argmax(axis=1) == targets
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(rows))
