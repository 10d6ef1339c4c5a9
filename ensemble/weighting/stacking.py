"""Stacking: multinomial logistic regression on the logits of all runs (Wolpert 1992), stored as plain arrays.

The features of an image are each run's log probabilities less their mean: its logits, whatever their constant. The cost
grows with the square of the number of classes; it is for tens of classes, not for hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from ensemble.calibration import scaling
from ensemble.calibration.scaling import Floats
from ensemble.oof.oof_table import Table
from ensemble.scores import Ints
from ensemble.weighting import average, weights
from ensemble.weighting.stack import Stack, features

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, the inverse of the penalty, for features of variance one
_ITERATIONS = 1000
_MOST = 5e9  # multiplications in one step of the regression


def fit(table: Table, temperatures: Sequence[float]) -> Stack:
    """Fit on the images that all runs predicted; the penalty is the best of four on one fold held out."""
    table = table.take(weights.shared(table))
    _check(table)
    runs = range(len(table.logits))
    rows = features(list(average.tempered(table, temperatures, slice(0, len(table.ids)), runs)))
    scale = float(rows.std()) or 1.0
    rows /= scale
    coef, intercept = _regression(rows, table.targets, table.classes, _strength(rows, table))
    return Stack(coef / scale, intercept)


def _check(table: Table) -> None:
    """`ConfigError` where a regression would take hours, or has nothing to tell apart."""
    images, runs, classes = len(table.ids), len(table.logits), table.classes
    if len(np.unique(table.targets)) < 2:
        raise ConfigError(
            "--method stacking: all images that it could learn from are of one class; take --method equal"
        )
    if images * runs * classes**2 > _MOST:
        raise ConfigError(
            f"--method stacking: {classes} classes x {runs} runs x {images} images would take hours; it is for tens of"
            " classes, take --method convex or greedy"
        )


def mix(table: Table, temperatures: Sequence[float], stack: Stack) -> NDArray[np.float32]:
    """Log probabilities float32 `[N, C]` of all rows; a run that did not predict a row counts as undecided there."""
    predictions = np.empty((len(table.ids), table.classes), dtype=np.float32)
    runs = range(len(table.logits))
    for rows in scaling.blocks(len(table.ids), table.classes * len(runs)):
        predictions[rows] = stack.apply(list(average.tempered(table, temperatures, rows, runs)))
    return predictions


def _strength(rows: Floats, table: Table) -> float:
    held = table.fold == table.fold.max()
    if held.all() or len(np.unique(table.targets[~held])) < 2:
        return _STRENGTHS[len(_STRENGTHS) // 2]
    losses = []
    for strength in _STRENGTHS:
        coef, intercept = _regression(rows[~held], table.targets[~held], table.classes, strength)
        logs = scaling.log_softmax(rows[held] @ coef.T + intercept)
        losses.append(scaling.log_loss(logs, table.targets[held]))
    return _STRENGTHS[int(np.argmin(losses))]


def _regression(rows: Floats, targets: Ints, classes: int, strength: float) -> tuple[Floats, Floats]:
    """Coefficients `[C, F]` and intercepts `[C]`; a class without images gets the mean of the others' own weights."""
    from sklearn.linear_model import LogisticRegression  # inference does not need it

    model = LogisticRegression(C=strength, max_iter=_ITERATIONS).fit(rows, targets)
    classes_seen = model.classes_
    coef, intercept = model.coef_, model.intercept_
    if len(classes_seen) == 2:  # scikit-learn keeps the difference of the two
        coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
    every, offset = np.zeros((classes, rows.shape[1])), np.full(classes, intercept.min())
    every[classes_seen], offset[classes_seen] = coef, intercept
    runs = rows.shape[1] // classes
    absent = np.setdiff1d(np.arange(classes), classes_seen)
    for g in range(runs):
        every[absent, g * classes + absent] = every[classes_seen, g * classes + classes_seen].mean()
    return every, offset
