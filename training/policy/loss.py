"""From the settings and a fold's training labels to the `LossSpec` that the engines get."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from backends.contract import LossSpec
from config.errors import ConfigError
from config.sections.train import CLASS_WEIGHTS_BETA, Loss
from training.policy import sampling


def spec(settings: Loss, labels: NDArray[np.int64], classes: int) -> LossSpec:
    """The loss of a fold; `labels` int64 `[N]` are its training images', of `classes` classes."""
    return LossSpec(settings.name, settings.options(), class_weights(settings, labels, classes))


def class_weights(settings: Loss, labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """A factor for each class, empty for none; a class without images has 0 unless the settings list the factors."""
    kind = settings.class_weights
    if kind == "none":
        return ()
    if kind == "balanced":
        present, factors = np.unique(labels), np.zeros(classes)
        factors[present] = compute_class_weight("balanced", classes=present, y=labels)
        return tuple(factors.tolist())
    if kind == "effective_number":
        beta = CLASS_WEIGHTS_BETA if settings.class_weights_beta is None else settings.class_weights_beta
        return tuple(sampling.effective_number_weights(labels, classes, beta).tolist())
    return kind


def check(settings: Loss, class_names: Sequence[str]) -> None:
    """`ConfigError` where the listed class weights are not one for each class of the data set."""
    listed = settings.class_weights
    if not isinstance(listed, str) and len(listed) != len(class_names):
        more = ", ..." if len(class_names) > 5 else ""
        raise ConfigError(
            f"loss.class_weights: found {len(listed)} numbers; the data set has {len(class_names)} classes, "
            f"in this order: {', '.join(class_names[:5])}{more}"
        )
