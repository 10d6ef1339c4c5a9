"""Averages of weights: over the ends of the last epochs (SWA), and over checkpoints (greedy soup).

Arithmetic on canonical arrays and the order of trials; the trainer judges weights, and `candidates` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backends.contract import Weights
from models.weights import loading as files
from training.policy.stopping import HIGHER_IS_BETTER

_PREFIX, _COUNT = "swa.", "swa_count"


@dataclass
class Swa:
    """The mean of the weights at the ends of all epochs from `start` on (Izmailov et al. 2018), kept in checkpoints.

    Running statistics are averaged too; recalibrate them before use.
    """

    start: int
    count: int = 0
    mean: Weights = field(default_factory=dict)

    def observe(self, weights: Weights) -> None:
        """Add the weights at the end of an epoch, as torch's `AveragedModel` does."""
        self.count += 1
        self.mean = with_another(self.mean, weights, self.count)

    def arrays(self) -> Weights:
        """What a checkpoint keeps; empty before `start`."""
        if not self.count:
            return {}
        return {_COUNT: np.array([self.count], np.float32), **{_PREFIX + n: w.copy() for n, w in self.mean.items()}}

    def restore(self, arrays: Weights) -> None:
        """Restore what `arrays` returned, or start anew where there is nothing of it."""
        self.count = int(arrays[_COUNT][0]) if _COUNT in arrays else 0
        self.mean = {n.removeprefix(_PREFIX): w.copy() for n, w in arrays.items() if n.startswith(_PREFIX)}


class Judged(NamedTuple):
    """Weights with their own running statistics, their logits `[N, C]` of the validation images, and the scores."""

    weights: Weights
    logits: NDArray[np.float32]
    scores: dict[str, float]


# (weights, whether they are an average whose running statistics must be recalibrated)
Judge = Callable[[Weights, bool], Judged]


def soup(paths: Sequence[Path], judge: Judge, metric: str) -> tuple[Judged, list[Path]]:
    """The greedy soup (Wortsman et al. 2022) of checkpoints, by their EMA where they have one, and its ingredients.

    Starting with the best, each is added, in the order of its own score, if that does not make the average worse. Of
    checkpoints with the same logits one is taken.
    """
    single: dict[Path, Judged] = {}
    for path in paths:
        ema = path / "ema.safetensors"
        judged = judge(files.read(ema if ema.exists() else path / files.MODEL_FILE)[0], False)
        if not any(np.array_equal(judged.logits, other.logits) for other in single.values()):
            single[path] = judged
    ranked = sorted(single, key=lambda path: goodness(single[path].scores, metric), reverse=True)
    best, members = single[ranked[0]], ranked[:1]
    mean = best.weights
    for path in ranked[1:]:
        wider = with_another(mean, single[path].weights, len(members) + 1)
        trial = judge(wider, True)
        if goodness(trial.scores, metric) >= goodness(best.scores, metric):
            best, mean, members = trial, wider, [*members, path]
    return best, members


def goodness(scores: dict[str, float], metric: str) -> float:
    """The metric as a number of which more is better; a score that is no number is the worst."""
    score = scores[metric]
    if math.isnan(score):
        return -math.inf
    return score if HIGHER_IS_BETTER[metric] else -score


def with_another(mean: Weights, weights: Weights, count: int) -> Weights:
    """The mean of `count` sets of weights, where `mean` is that of all but the last."""
    if count == 1:
        return {name: value.copy() for name, value in weights.items()}
    return {name: mean[name] + (value - mean[name]) / np.float32(count) for name, value in weights.items()}
