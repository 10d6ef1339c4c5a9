"""Greedy selection of runs with replacement (Caruana et al. 2004), as AutoGluon's `EnsembleSelection` does it.

Round by round the run is added whose addition lowers the regret most; how often each was taken, up to the best round,
is its weight. A regret is rounded to six digits; among equal ones a run that is already in is preferred, then the
one with the lower log loss. Where AutoGluon then draws lots, the first run is taken here.

`Front` makes a round cheap where the regret needs the mixture's most probable class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble.calibration.scaling import Floats
from ensemble.scores import Ints

Regret = Callable[[Floats], float]
_DIGITS = 6
_ROUNDED_ABOVE = 1e-4
_RIVALS = 8


def select(regret: Regret, second: Regret, runs: int, rounds: int) -> Floats:
    """Weights `[runs]` that sum to one. `regret` and `second` judge a mixture by its weights; lower is better."""
    counts, best_counts = np.zeros(runs), np.zeros(runs)
    lowest, rounded = np.inf, False
    for taken in range(1, rounds + 1):
        tried = np.array([regret((counts + unit) / taken) for unit in np.eye(runs)])
        if rounded:
            tried = tried.round(_DIGITS)
        chosen = _choice(tried, counts, lambda j, taken=taken: second((counts + np.eye(runs)[j]) / taken))  # type: ignore[misc]
        counts[chosen] += 1
        reached = float(tried[chosen])
        if taken == 1 and abs(reached) > _ROUNDED_ABOVE:
            reached, rounded = round(reached, _DIGITS), True
        if reached < lowest:
            lowest, best_counts = reached, counts.copy()
        if runs == 1:
            break
    return best_counts / best_counts.sum()


def _choice(tried: Floats, counts: Floats, second: Callable[[int], float]) -> int:
    """The run with the lowest regret; ties as in the module's docstring."""
    best = np.flatnonzero(np.isclose(tried, tried.min(), rtol=1e-12, atol=0))
    old = best[counts[best] > 0]
    best = old if len(old) else best
    if len(best) == 1:
        return int(best[0])
    return int(best[np.argmin([second(int(j)) for j in best])])


@dataclass(frozen=True)
class Front:
    """Of each image the classes that can be the most probable one of some mixture.

    A class is left out when another one stands higher with every run: then it does in every weighted mean. `values`
    float32 `[G, M]` are the predictions of the G runs for the M remaining classes, `classes` `[M]` their numbers, and
    `starts` `[N]` where the classes of an image begin.
    """

    values: NDArray[np.float32]
    classes: Ints
    starts: Ints

    def predicted(self, weights: Floats) -> Ints:
        """The highest class of each image `[N]` in the mean with `weights` `[G]`; the lowest number among equals."""
        mixed = weights @ self.values
        top = np.maximum.reduceat(mixed, self.starts)
        lengths = np.diff(np.append(self.starts, len(mixed)))
        is_top = mixed == np.repeat(top, lengths)
        return np.minimum.reduceat(np.where(is_top, self.classes, np.iinfo(np.int64).max), self.starts)


def front(blocks: Iterable[NDArray[np.float32]]) -> Front:
    """The front of predictions in blocks float32 `[G, n, C]`, row after row."""
    values, classes, lengths = [], [], []
    for block in blocks:
        best = _undominated(block)
        row, column = np.nonzero(best)
        values.append(block[:, row, column])
        classes.append(column)
        lengths.append(best.sum(axis=1))
    ends = np.cumsum(np.concatenate(lengths))
    starts = np.append(0, ends[:-1])
    return Front(np.concatenate(values, axis=1), np.concatenate(classes), starts)


def _undominated(block: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool `[n, C]`: all but the classes that one of the strongest few beats with every run."""
    total = block.sum(axis=0)
    few = min(_RIVALS, total.shape[1])
    rivals = np.argpartition(total, -few, axis=1)[:, -few:]
    beaten = np.zeros(total.shape, dtype=bool)
    for rival in rivals.T:
        strongest = np.take_along_axis(block, rival[None, :, None], axis=2)
        beaten |= (block < strongest).all(axis=0)
    return ~beaten
