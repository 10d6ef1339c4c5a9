"""Calibration maps with parameters for each class: vector scaling and isotonic regression; and clipping.

A map takes log probabilities `[N, C]` to log probabilities. The one parameter of a temperature is `scaling`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats
from ensemble.scores import Ints

Logs = NDArray[np.floating]
_TINY = np.finfo(np.float32).tiny
_GAIN = 1e-6  # of the loss: less is no reason to clip
_CLIPS = 10.0 ** np.arange(-8.0, -1.5, 0.25)


@dataclass(frozen=True)
class Vector:
    """Vector scaling (Guo et al. 2017): `softmax(scale * log p + bias)`, both `[C]`."""

    scale: Floats
    bias: Floats

    def apply(self, logs: Logs) -> Logs:
        """Log probabilities `[N, C]` of log probabilities, in their own precision."""
        kind = logs.dtype.type
        return scaling.normalised(logs * self.scale.astype(kind) + self.bias.astype(kind))


@dataclass(frozen=True)
class Isotonic:
    """A rising piecewise linear curve for each class, then normalised (Zadrozny and Elkan 2002).

    The knots of class c are `x` and `y` from `starts[c]` to `starts[c + 1]`. No probability is under `floor`, so that a
    class that was never right at some confidence is not impossible there.
    """

    x: Floats
    y: Floats
    starts: Ints
    floor: float

    def apply(self, logs: Logs) -> Logs:
        """Log probabilities `[N, C]` of log probabilities, in their own precision."""
        risen = np.empty_like(logs)
        for c, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:], strict=True)):
            risen[:, c] = np.interp(np.exp(logs[:, c]), self.x[start:end], self.y[start:end])
        return np.asarray(np.log(clipped(risen / np.maximum(risen.sum(axis=1, keepdims=True), _TINY), self.floor)))


def vector(logs: Logs, targets: Ints) -> Vector:
    """The scales and biases of the lowest log loss, found by L-BFGS from the best temperature; scales are not negative.

    Biases are unique up to a common summand: their mean is 0.
    """
    count, classes = logs.shape
    ones = np.ones(classes)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scale, bias = parameters.astype(logs.dtype).reshape(2, classes)
        total, slope, offset = 0.0, np.zeros(classes), np.zeros(classes)
        for block in scaling.blocks(count, classes):
            rows, here = logs[block], np.arange(len(logs[block]))
            mapped = scaling.normalised(rows * scale + bias)
            total -= float(mapped[here, targets[block]].sum(dtype=np.float64))
            excess = np.exp(mapped)
            excess[here, targets[block]] -= 1
            slope += np.einsum("ij,ij->j", excess, rows)
            offset += excess.sum(axis=0)
        return total / count, np.concatenate([slope, offset]) / count

    start = np.concatenate([ones / scaling.temperature(logs, targets), 0 * ones])
    bounds = [(0.0, None)] * classes + [(None, None)] * classes
    from scipy.optimize import minimize  # inference does not need it

    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200, "ftol": 1e-9})
    scale, bias = result.x.reshape(2, classes)
    return Vector(scale, bias - bias.mean())


def isotonic(logs: Logs, targets: Ints) -> Isotonic:
    """scikit-learn's isotonic regression of each class's own hits on its probability."""
    from sklearn.isotonic import IsotonicRegression  # inference does not need it

    knots = []
    for c in range(logs.shape[1]):
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        curve.fit(np.exp(logs[:, c], dtype=np.float64), targets == c)
        knots.append((curve.X_thresholds_, curve.y_thresholds_))
    x, y = (np.concatenate(column) for column in zip(*knots, strict=True))
    starts = np.append(0, np.cumsum([len(knot[0]) for knot in knots]))
    return Isotonic(x, y, starts, floor=0.5 / (len(targets) + logs.shape[1]))


def clip(logs: Logs, targets: Ints) -> float:
    """The lowest probability, of some between 1e-8 and 1e-2, that gives the lowest log loss; 0 when none helps."""
    tried = [(scaling.log_loss(logs, targets), 0.0)]
    for lowest in _CLIPS[1 / logs.shape[1] > _CLIPS]:
        loss = 0.0
        for block in scaling.blocks(*logs.shape):
            rows = clip_logs(logs[block], float(lowest))
            loss -= float(rows[np.arange(len(rows)), targets[block]].sum(dtype=np.float64))
        tried.append((loss / len(targets) + _GAIN, float(lowest)))
    return min(tried)[1]


def clip_logs(logs: Logs, lowest: float) -> Logs:
    """Log probabilities raised to that of about `lowest`, with rows normalised again."""
    return np.asarray(np.log(clipped(np.exp(logs), lowest))) if lowest else logs


def clipped(probabilities: Logs, lowest: float) -> Logs:
    """Probabilities raised to `lowest` and normalised again."""
    raised = np.maximum(probabilities, probabilities.dtype.type(lowest))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
