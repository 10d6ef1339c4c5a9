"""One image as a batch has it: read, decoded and transformed with the random numbers of its position in the order.

Threads (`data.loading.loader`) and worker processes (`data.loading.worker`) both prepare images here, so their batches
are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.pixels import Pixels
from data.rng import philox

Transform = Callable[[Pixels, np.random.Generator], Pixels]


@dataclass(frozen=True)
class ByEpoch:
    """A transform that changes over the training: `at(epoch)` is that of one epoch, and a pure function of it."""

    at: Callable[[int], Transform]


def at_epoch(transform: Transform | ByEpoch, epoch: int) -> Transform:
    """The transform of an epoch."""
    return transform.at(epoch) if isinstance(transform, ByEpoch) else transform


@dataclass(frozen=True)
class Preparation:
    """How one epoch's images are prepared. `source(address, shrink)` gives the decoded pixels; an address is what that
    source knows an image by."""

    source: Callable[[Any, Callable[[int, int], int]], Pixels]
    transform: Transform
    seed: int
    epoch: int

    def __call__(self, address: Any, sample: int, repeat: int) -> Pixels:
        """uint8 `[size, size, 3]`, of a sample that stood `repeat` times before in the order."""
        new_rng = functools.partial(philox, self.seed, "augment", self.epoch, sample, repeat)
        shrink = getattr(self.transform, "shrink", None)  # what the transform will leave with the same random numbers
        image = self.source(address, lambda height, width: shrink(height, width, new_rng) if shrink else 1)
        return self.transform(image, new_rng())
