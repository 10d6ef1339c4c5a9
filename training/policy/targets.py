"""From labels and a teacher's answers to the rows that the loss sees."""

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


def softened(log_probabilities: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """A teacher's answers float32 `[N, C]`: the softmax of its logits divided by `temperature` (Hinton et al. 2015)."""
    return np.exp(log_softmax(log_probabilities, temperature)).astype(np.float32)


def blended(hard: NDArray[np.float32], soft: NDArray[np.float32], weight: float) -> NDArray[np.float32]:
    """`(1 - weight) * hard + weight * soft`, float32 `[N, C]`."""
    return np.float32(1 - weight) * hard + np.float32(weight) * soft


class Targets(Protocol):
    """Rows of targets by image: `targets[index]` is float32 `[B, C]` of the images `index`, int64 `[B]`."""

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        """The rows of some images."""


@dataclass(frozen=True, eq=False)
class TargetRows:
    """`Targets` that are made when they are asked for: all of them at once would take N x C x 4 bytes.

    Smoothed one-hot rows of `labels` int64 `[N]`; with `soft`, a teacher's log probabilities float32 `[N, C]`, blended
    with these by `weight`.
    """

    labels: NDArray[np.int64]
    classes: int
    smoothing: float
    soft: NDArray[np.float32] | None = None
    temperature: float = 1.0
    weight: float = 1.0

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        """float32 `[B, C]`."""
        hard = smoothed(self.labels[index], self.classes, self.smoothing)
        if self.soft is None:
            return hard
        return blended(hard, softened(self.soft[index], self.temperature), self.weight)


@dataclass(frozen=True, eq=False)
class JoinedTargets:
    """`Targets` of two sets of images, the second of which follows the `first` images of the first."""

    first: int
    parts: Sequence[Targets]

    def __getitem__(self, index: NDArray[np.int64], /) -> NDArray[np.float32]:
        """float32 `[B, C]`."""
        later = index >= self.first
        first, more = self.parts[0][index[~later]], self.parts[1][index[later] - self.first]
        rows = np.empty((len(index), first.shape[1]), np.float32)
        rows[~later], rows[later] = first, more
        return rows
