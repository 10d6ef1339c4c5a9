"""The best epoch and early stopping, a small state machine saved in every checkpoint; the sign of overfitting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_OVERFITTING = 4  # epochs that show it
HIGHER_IS_BETTER = {"macro_f1": True, "accuracy": True, "log_loss": False}


@dataclass
class Stopping:
    """Follows one metric. `update` is called once an epoch with its validation score.

    An epoch is the best when its score is better than the best so far, by however little. Only a gain of more than
    `min_delta` over the last epoch that did so (`reference`) starts the patience anew, so that tiny gains do not keep a
    run alive.
    """

    metric: str
    patience: int = 0
    min_delta: float = 0.0
    best: float = math.nan
    best_epoch: int = -1
    reference: float = math.nan
    waited: int = 0

    def update(self, score: float, epoch: int) -> bool:
        """Take the score of `epoch`; True when it is the best so far. A score that is not finite never is."""
        best = self._gain(score, self.best) > 0
        if best:
            self.best, self.best_epoch = score, epoch
        if self._gain(score, self.reference) > self.min_delta:
            self.reference, self.waited = score, 0
        else:
            self.waited += 1
        return best

    @property
    def stop(self) -> bool:
        """Whether the patience (0: endless) is used up."""
        return 0 < self.patience <= self.waited

    def _gain(self, score: float, than: float) -> float:
        if not math.isfinite(score):
            return -math.inf
        if math.isnan(than):
            return math.inf
        return score - than if HIGHER_IS_BETTER[self.metric] else than - score


def overfitting(history: Sequence[dict[str, float]]) -> bool:
    """Whether, over the last four epochs, the validation loss rose each time while the training loss fell."""
    recent = history[-_OVERFITTING:]
    return len(recent) == _OVERFITTING and all(
        b["log_loss"] > a["log_loss"] and b["train_loss"] < a["train_loss"] for a, b in pairwise(recent)
    )
