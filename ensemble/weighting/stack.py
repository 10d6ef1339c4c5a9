"""A fitted stack (see `stacking`), which inference applies: plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats


@dataclass(frozen=True)
class Stack:
    """`softmax(coef @ features + intercept)`: `coef` `[C, G * C]`, `intercept` `[C]`."""

    coef: Floats
    intercept: Floats

    def apply(self, logs: Sequence[NDArray[np.floating]]) -> Floats:
        """Log probabilities `[N, C]` of those of the G runs, each `[N, C]`, in the order they were fitted in."""
        return scaling.log_softmax(features(logs) @ self.coef.T + self.intercept)


def features(logs: Sequence[NDArray[np.floating]]) -> Floats:
    """float64 `[N, G * C]` of the runs' log probabilities, each `[N, C]`."""
    return np.concatenate([np.asarray(rows, np.float64) - rows.mean(axis=1, keepdims=True) for rows in logs], axis=1)
