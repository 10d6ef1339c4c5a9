"""The best epoch and early stopping: one small state machine, saved in every checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
