"""Progressive hard-sample mining with a guard against label noise: a state machine over per-sample losses.

Related: online hard example mining (Shrivastava et al. 2016) and small-loss selection against noisy labels (Han et al.
2018). Off until `start`; then the share of draws that goes to hard samples grows linearly to `cap`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from config.sections import data as settings
from data.rng import philox
from training.policy import sampling

_REMEMBER = 0.5  # weight of the older mean when a sample's newest loss arrives


@dataclass
class Mining:
    """`losses` float32 `[N]` is the running mean of each sample's loss, NaN before its first; `fresh` are the losses of
    the current epoch. An epoch's draws depend on `losses` alone, so that a resume in its middle draws the same.

    The hardest `noise_share` of all samples are suspected of wrong labels: they are drawn once an epoch like the others
    and never mined. The next hardest `hard_share` are the pool that mined draws come from.
    """

    count: int
    start: int
    ramp: int
    cap: float
    hard_share: float = 0.3
    noise_share: float = 0.01
    losses: NDArray[np.float32] = field(init=False)
    fresh: NDArray[np.float32] = field(init=False)

    @staticmethod
    def of(config: settings.Mining, samples: int) -> Mining:
        """The mining of the settings over `samples` samples, without any losses yet."""
        return Mining(
            samples, config.start_epoch, config.ramp_epochs, config.cap, config.hard_share, config.noise_share
        )

    def __post_init__(self) -> None:
        self.losses = np.full(self.count, np.nan, np.float32)
        self.fresh = self.losses.copy()

    def observe(self, index: NDArray[np.int64], losses: NDArray[np.float32]) -> None:
        """Take the losses of one batch; of a sample that is drawn several times in an epoch the last one counts."""
        self.fresh[index] = losses

    def close_epoch(self) -> None:
        """Take the epoch's losses into the running means."""
        old = np.where(np.isnan(self.losses), self.fresh, self.losses)
        mean = np.float32(_REMEMBER) * old + np.float32(1 - _REMEMBER) * self.fresh
        self.losses = np.where(np.isnan(self.fresh), self.losses, mean)
        self.fresh = np.full(self.count, np.nan, np.float32)

    def share(self, epoch: int) -> float:
        """The share of an epoch's draws that are mined: 0 before `start`, `cap` from `start + ramp` on."""
        if epoch < self.start or self.cap <= 0:
            return 0.0
        return self.cap * min((epoch - self.start + 1) / max(self.ramp, 1), 1.0)

    def draw(self, total: int, seed: int, epoch: int) -> NDArray[np.int64]:
        """The mined samples of an epoch of `total` draws, spread evenly over the hard pool."""
        count, pool = int(self.share(epoch) * total), self.hard()
        if not count or not len(pool):
            return np.zeros(0, np.int64)
        return sampling.draw(pool, count, philox(seed, "mining", epoch))

    def hard(self) -> NDArray[np.int64]:
        """The hard pool, hardest first, without the suspects."""
        ranked, suspects = self._ranked(), len(self.suspects())
        return ranked[suspects : suspects + max(int(self.hard_share * self.count), 1)]

    def suspects(self) -> NDArray[np.int64]:
        """The samples whose loss stays highest, hardest first: labels worth a look."""
        return self._ranked()[: int(self.noise_share * self.count)]

    def _ranked(self) -> NDArray[np.int64]:
        observed = np.flatnonzero(~np.isnan(self.losses))
        return observed[np.argsort(-self.losses[observed], kind="stable")]
