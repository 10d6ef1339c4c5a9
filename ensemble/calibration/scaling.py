"""From logits to calibrated probabilities: softmax, scores of probabilities, temperature.

Logits are `[N, C]` arrays, or objects of that shape that give rows when sliced (`oof_table.Gathered`); targets are
integers `[N]`. Rows are processed in blocks, so that memory does not grow with their number. `maps` has maps with a
parameter for each class.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_Float = TypeVar("_Float", bound=np.floating)

_COLDEST, _HOTTEST = 0.02, 50.0  # temperatures outside say that the logits are not a classifier's
_FIRST = 2048
_BLOCK = 1 << 19  # elements of a block: some MiB, which stay in the cache


class Rows(Protocol):
    """`[N, C]` numbers that are read some rows at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and C."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class Bins(NamedTuple):
    """A reliability diagram: the images of each bin of top-1 confidence, their mean confidence and accuracy."""

    images: NDArray[np.int64]
    confidence: Floats
    accuracy: Floats


def blocks(count: int, width: int) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, some MiB each."""
    step = max(1, _BLOCK // max(width, 1))
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """float64 `[N, C]`: log probabilities of `logits / temperature`; rows of `exp` of it sum to one."""
    return normalised(np.asarray(logits, dtype=np.float64) / temperature)


def normalised(logits: NDArray[_Float]) -> NDArray[_Float]:
    """Log softmax over the last axis, in the precision of the logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_loss(log_probabilities: ArrayLike, targets: NDArray[np.int64]) -> float:
    """Mean of minus the log probability of the target, in nats."""
    rows = np.asarray(log_probabilities)
    return float(-rows[np.arange(len(targets)), targets].mean(dtype=np.float64))


def brier(log_probabilities: Rows, targets: NDArray[np.int64]) -> float:
    """Mean squared distance of the probabilities from the one-hot target, in [0, 2] (Brier 1950)."""
    total = 0.0
    for rows in blocks(*log_probabilities.shape):
        distance = np.exp(np.asarray(log_probabilities[rows], dtype=np.float64))
        distance[np.arange(len(distance)), targets[rows]] -= 1
        total += float(np.einsum("ij,ij->", distance, distance))
    return total / len(targets)


def temperature(logits: Rows | ArrayLike, targets: NDArray[np.int64]) -> float:
    """The temperature that minimises the log loss of `softmax(logits / T)` (Guo et al. 2017), within 0.02 and 50.

    The loss is convex in 1/T: SciPy's `brentq` finds the root of its slope. Where there are many rows, the optimum of
    the first ones narrows the search.
    """
    from scipy.optimize import brentq  # slow to import, and inference needs none of it

    rows: Any = logits if hasattr(logits, "shape") else np.asarray(logits)
    slope = functools.cache(functools.partial(_slope, rows, targets))
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if len(targets) > 4 * _FIRST:
        near = 1 / temperature(rows[:_FIRST], targets[:_FIRST])
        for point in (near * 0.9, near * 1.1):
            low, high = (max(point, low), high) if slope(point) < 0 else (low, min(point, high))
    if slope(low) >= 0 or slope(high) <= 0:
        return 1 / (low if slope(low) >= 0 else high)
    return 1 / float(brentq(slope, low, high, xtol=1e-9, rtol=1e-6))


def _slope(logits: Rows, targets: NDArray[np.int64], inverse: float) -> float:
    """The derivative of the mean log loss of `softmax(logits * inverse)` in `inverse`."""
    total = 0.0
    for block in blocks(*logits.shape):
        rows = np.asarray(logits[block])
        rows = rows - rows.max(axis=1, keepdims=True)
        powers = np.exp(rows * rows.dtype.type(inverse))
        mean = np.einsum("ij,ij->i", powers, rows) / powers.sum(axis=1, dtype=np.float64)
        total += float((mean - rows[np.arange(len(rows)), targets[block]]).sum(dtype=np.float64))
    return total / len(targets)


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = 15) -> Bins:
    """Equal bins of the top-1 probability `confidence` `[N]`; the means of an empty bin are NaN."""
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(which, weights=values, minlength=bins) / count for values in (confidence, correct)]
    return Bins(count, means[0], means[1])


def gap(bins: Bins) -> float:
    """The expected calibration error of a reliability diagram."""
    return float(np.nansum(bins.images * np.abs(bins.accuracy - bins.confidence)) / bins.images.sum())
