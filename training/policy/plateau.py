"""The plateau schedule: a factor on the learning rate that falls when the score stops improving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.policy.stopping import HIGHER_IS_BETTER


@dataclass
class Plateau:
    """torch's ReduceLROnPlateau in its default relative mode, as a state machine saved in every checkpoint.

    `update` is called once an epoch. `scale` starts at 1 and is multiplied by `factor` after more than `patience`
    epochs without an improvement by the share `threshold`, down to `floor`.
    """

    metric: str
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    floor: float = 0.0
    scale: float = 1.0
    best: float = math.nan
    waited: int = 0

    def update(self, score: float) -> None:
        """Take an epoch's score."""
        if self._better(score):
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        if self.waited > self.patience:
            self.scale, self.waited = max(self.scale * self.factor, self.floor), 0

    def _better(self, score: float) -> bool:
        if math.isnan(self.best):
            return math.isfinite(score)
        if HIGHER_IS_BETTER[self.metric]:
            return score > self.best * (1 + self.threshold)
        return score < self.best * (1 - self.threshold)
