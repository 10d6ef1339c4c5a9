"""Scores of predictions and their intervals: log loss, Brier, accuracy, macro-F1, ECE, and a bootstrap over images.

Predictions are log probabilities `[N, C]`, targets and predicted classes integers `[N]`. Macro-F1 is over all classes;
one that has no image and is never predicted counts 0, as scikit-learn's with `labels=range(C), zero_division=0`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.rng import philox
from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats, Rows

Metric = Literal["log_loss", "macro_f1", "accuracy"]
METRICS: tuple[Metric, ...] = ("log_loss", "macro_f1", "accuracy")
_DRAWS = 1000
_COVERED = 0.95

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """Log loss in nats, macro-F1 over all classes, ECE, accuracy and Brier score of predictions for `rows` images."""

    name: str
    rows: int
    log_loss: float
    macro_f1: float
    ece: float
    accuracy: float = float("nan")
    brier: float = float("nan")


class Interval(NamedTuple):
    """A score, and where 95% of the scores of resampled images lie."""

    value: float
    low: float
    high: float


class Judged(NamedTuple):
    """Row by row: the target's log probability, the top-1 probability, and the predicted class."""

    true: Floats
    confidence: Floats
    predicted: Ints


def judge(log_probabilities: Rows, targets: Ints) -> Judged:
    """The intermediate values of the scores of `[N, C]` predictions."""
    blocks = []
    for block in scaling.blocks(*log_probabilities.shape):
        rows = np.asarray(log_probabilities[block])
        best, here = rows.argmax(axis=1), np.arange(len(rows))
        blocks.append((rows[here, targets[block]].astype(np.float64), np.exp(rows[here, best], dtype=np.float64), best))
    return Judged(*(np.concatenate(column) for column in zip(*blocks, strict=True)))


def score(name: str, log_probabilities: Rows, targets: Ints, predicted: Ints | None = None) -> Score:
    """All scores; `predicted` are the labels where they are not the most probable classes."""
    judged = judge(log_probabilities, targets)
    labels = judged.predicted if predicted is None else predicted
    bins = scaling.reliability(judged.confidence, judged.predicted == targets)
    return Score(
        name,
        len(targets),
        float(-judged.true.mean()),
        macro_f1(labels, targets, log_probabilities.shape[1]),
        scaling.gap(bins),
        float((labels == targets).mean()),
        scaling.brier(log_probabilities, targets),
    )


def macro_f1(
    predicted: Ints, targets: Ints, classes: int, weights: Floats | None = None, among: Ints | None = None
) -> float:
    """The mean of the classes' F1, or of those `among` them that have an image; `weights` `[N]` counts each image so
    often."""
    hit = predicted == targets
    right = np.bincount(targets[hit], None if weights is None else weights[hit], classes)
    there = np.bincount(targets, weights, classes)
    count_predicted = np.bincount(predicted, weights, classes)
    each = 2 * right / np.maximum(there + count_predicted, 1e-12)
    return float(each.mean() if among is None else each[among][there[among] > 0].mean())


def interval(
    metric: Metric, judged: Judged, targets: Ints, classes: int, seed: int = 0, among: Ints | None = None
) -> Interval:
    """The score and its 95% percentile interval over 1,000 resamplings of the images (Efron 1979).

    `among` as for `macro_f1`.
    """
    hit = (judged.predicted == targets).astype(np.float64)
    # Sums of products, and no dot products: BLAS would wait for its threads a thousand times on a busy machine.
    measures: dict[Metric, Callable[[Floats], float]] = {
        "log_loss": lambda counts: float(-(judged.true * counts).sum() / counts.sum()),
        "accuracy": lambda counts: float((hit * counts).sum() / counts.sum()),
        "macro_f1": lambda counts: macro_f1(judged.predicted, targets, classes, counts, among),
    }
    count, measure = len(targets), measures[metric]
    drawn = [measure(resampled(count, seed, draw)) for draw in range(_DRAWS)]
    tail = 100 * (1 - _COVERED) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return Interval(measure(np.ones(count)), float(low), float(high))


def resampled(count: int, seed: int, draw: int) -> Floats:
    """The number of times each of `count` images occurs in a bootstrap sample of them, `[count]`."""
    rng = philox(seed, "bootstrap", draw)
    return np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
