"""Fine-tuning a pretrained network on few images: BatchNorm's statistics and the start of the new classifier.

BatchNorm normally takes each batch's own statistics. With `optim.batch_norm: auto` the pretrained ones are kept where
few images are enlarged, as a few updates with their own spoil the features (docs/engineering/accuracy.md). The
classifier then starts from a linear probe of these features (Kumar et al. 2022); otherwise the features change with
the statistics, and it starts at random. `training.run.probe` computes the features.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from data.rng import philox

# Up to here the regression takes seconds; beyond it, an epoch has updates enough for a random classifier to learn.
_MOST_IMAGES, _MOST_LOGITS = 5_000, 250_000
_ENLARGED = 2  # times the side: what was measured are images of 8 to 32 pixels at 64 to 128
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, on standardised features
_PARTS = 3


class Head(NamedTuple):
    """A classifier: weight float32 `[C, F]`, bias float32 `[C]`, and the C that cross-validation chose."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strength: float


def few(images: int, classes: int) -> bool:
    """Whether so many training images of so many classes are few."""
    return images <= _MOST_IMAGES and images * classes <= _MOST_LOGITS


def are_enlarged(side: int, size: int) -> bool:
    """Whether images of a shorter side of `side` pixels, 0 if unknown, hold much less than `size` pixels."""
    return 0 < side <= size / _ENLARGED


def probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
) -> Head | None:
    """The L2-penalised logistic regression of `labels` on standardised `features` `[N, F]`, for raw features.

    Its C has the lowest log loss in cross-validation of three parts, drawn from `seed`. None where the images are all
    of one class.
    """
    if len(np.unique(labels)) < 2:
        return None
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6, scale, 1.0)
    inputs, parts = (features - mean) / scale, _parts(labels, seed)
    strength = min(_STRENGTHS, key=lambda c: _loss(inputs, labels, parts, c))
    # To the end, as both engines are to start alike: features that differ by 1e-6 give weights that differ by 2e-6.
    model = _regression(inputs, labels, strength, tol=1e-8, max_iter=1000)
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # one row: the difference of the two logits
        coefficients, intercept = (np.concatenate([-v / 2, v / 2]) for v in (coefficients, intercept))
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, intercept.min())
    weight[model.classes_] = coefficients / scale
    bias[model.classes_] = intercept
    bias -= weight @ mean
    return Head(weight.astype(np.float32), bias.astype(np.float32), strength)


def _parts(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The cross-validation part of each image, classes spread evenly; -1, in none, for the only image of a class."""
    drawn, parts = philox(seed, "head").permutation(len(labels)), np.full(len(labels), -1)
    for label in np.unique(labels):
        members = drawn[labels[drawn] == label]
        if len(members) > 1:
            parts[members] = (np.arange(len(members)) + label) % _PARTS
    return parts


def _loss(inputs: NDArray[np.float64], labels: NDArray[np.int64], parts: NDArray[np.int64], strength: float) -> float:
    """The cross-validated log loss, summed over the images that are in a part."""
    loss = 0.0
    for held_out in range(_PARTS):
        held = np.flatnonzero(parts == held_out)
        if len(held):
            model = _regression(inputs[parts != held_out], labels[parts != held_out], strength)
            column = np.searchsorted(model.classes_, labels[held])
            loss -= model.predict_log_proba(inputs[held])[np.arange(len(held)), column].sum()
    return loss


def _regression(
    inputs: NDArray[np.float64], labels: NDArray[np.int64], strength: float, tol: float = 1e-4, max_iter: int = 200
) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, tol=tol, max_iter=max_iter).fit(inputs, labels)
