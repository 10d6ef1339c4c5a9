"""Merges the predictions of one member for several views of an image. `postprocess` mixes members.

The geometric mean of probabilities, once it sums to one again, is the softmax of the mean of the logits: both names
are accepted, since users of ttach know it as `gmean`. Its `max` and `gmean` do not sum to one; here all merges do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ensemble.calibration.scaling import Floats, log_softmax
from ensemble.weighting.average import Merge, WeightedAverage


class Maximum:
    """The greatest probability that any view gives to each class, normalised; as `WeightedAverage`."""

    def __init__(self) -> None:
        self._best: Floats | None = None

    def add(self, logits: ArrayLike, *, temperature: float = 1.0) -> None:
        """Add logits `[N, C]` of one view, divided by `temperature`."""
        logs = log_softmax(logits, temperature)
        self._best = logs if self._best is None else np.maximum(self._best, logs)

    def log_probabilities(self) -> Floats:
        """float64 `[N, C]`: normalised log probabilities."""
        return log_softmax(np.asarray(self._best))


def start(how: Merge) -> Maximum | WeightedAverage:
    """An empty merge of that kind; `probabilities` and `logits` are arithmetic means."""
    if how == "max":
        return Maximum()
    return WeightedAverage("logits" if how == "geometric" else how)
