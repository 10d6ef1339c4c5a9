"""From labels and a teacher's predictions to the target rows of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration.scaling import log_softmax


def smoothed(labels: NDArray[np.int64], classes: int, smoothing: float = 0.0) -> NDArray[np.float32]:
    """One-hot rows float32 `[N, classes]`, mixed with the uniform distribution by `smoothing` (Szegedy et al. 2016),
    as torch's `cross_entropy(label_smoothing=...)` does."""
    rows = np.full((len(labels), classes), smoothing / classes, dtype=np.float32)
    rows[np.arange(len(labels)), labels] += np.float32(1 - smoothing)
    return rows


class Targets(Protocol):
    """Rows of targets by image: `targets[index]` is float32 `[B, C]` of the images `index`, int64 `[B]`."""

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        """The rows of some images."""


@dataclass(frozen=True, eq=False)
class TargetRows:
    """`Targets` that are computed on use: all of them at once would take N x C x 4 bytes.

    Smoothed one-hot rows of `labels` int64 `[N]`. With a teacher's log probabilities `soft` float32 `[N, C]` they are
    `(1 - weight)` of these and `weight` of the teacher's softmax at `temperature` (Hinton et al. 2015).
    """

    labels: NDArray[np.int64]
    classes: int
    smoothing: float
    soft: NDArray[np.float32] | None = None
    temperature: float = 1.0
    weight: float = 1.0

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        hard = smoothed(self.labels[index], self.classes, self.smoothing)
        if self.soft is None:
            return hard
        soft = np.exp(log_softmax(self.soft[index], self.temperature)).astype(np.float32)
        return np.float32(1 - self.weight) * hard + np.float32(self.weight) * soft


@dataclass(frozen=True, eq=False)
class JoinedTargets:
    """`Targets` of two sets of images, the second of which follows the `first` images of the first."""

    first: int
    parts: Sequence[Targets]

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        later = index >= self.first
        first, more = self.parts[0][index[~later]], self.parts[1][index[later] - self.first]
        rows = np.empty((len(index), first.shape[1]), np.float32)
        rows[~later], rows[later] = first, more
        return rows
