"""What differs where a pretrained network is fine-tuned on few images.

A new classifier starts from a logistic regression on the network's features (a linear probe): below a random one, the
trunk loses what it knows (Kumar et al. 2022). BatchNorm keeps the statistics of the pretraining: those of small,
augmented batches spoil the features within an epoch. How features are computed stands in `training.run.probe`.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from config.schema import Settings
from data.rng import philox

# Up to here the regression takes seconds; beyond it, an epoch has updates enough for a random classifier to learn.
_MOST_IMAGES, _MOST_LOGITS = 5_000, 250_000
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


def fixed_statistics(settings: Settings, images: int, classes: int) -> bool:
    """Whether BatchNorm keeps the statistics that the weights came with, where `images` train."""
    if settings.optim.batch_norm == "auto":
        return settings.weights != "none" and few(images, classes)
    return settings.optim.batch_norm == "fixed"


def probe(features: NDArray[np.float32], labels: NDArray[np.int64], classes: int, seed: int) -> Head | None:
    """The L2-penalised logistic regression of `labels` on standardised `features` `[N, F]`, for raw features.

    Its C has the lowest log loss in cross-validation over three parts, which are drawn from `seed`. None where the
    images are all of one class.
    """
    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(scale > 1e-6, scale, 1.0)
    inputs = (features - mean) / scale
    if len(np.unique(labels)) < 2:
        return None
    parts = _parts(labels, seed)
    losses = [sum(_loss(inputs, labels, parts == k, c) for k in range(_PARTS)) for c in _STRENGTHS]
    strength = _STRENGTHS[int(np.argmin(losses))]
    model = _regression(inputs, labels, strength)
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
    """The part of each image, each class shared out evenly; -1, in none, for the only image of a class."""
    drawn, parts = philox(seed, "head").permutation(len(labels)), np.full(len(labels), -1)
    for label in np.unique(labels):
        own = drawn[labels[drawn] == label]
        if len(own) > 1:
            parts[own] = (np.arange(len(own)) + label) % _PARTS
    return parts


def _loss(inputs: NDArray[np.float64], labels: NDArray[np.int64], judged: NDArray[np.bool_], strength: float) -> float:
    """The summed log loss of the `judged` images for a regression on the others."""
    if not judged.any():
        return 0.0
    model = _regression(inputs[~judged], labels[~judged], strength)
    column = np.searchsorted(model.classes_, labels[judged])
    return -float(model.predict_log_proba(inputs[judged])[np.arange(len(column)), column].sum())


def _regression(inputs: NDArray[np.float64], labels: NDArray[np.int64], strength: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a start need not be exact
        return LogisticRegression(C=strength, max_iter=200).fit(inputs, labels)
