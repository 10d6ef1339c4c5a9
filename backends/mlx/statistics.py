"""BatchNorm's running statistics taken anew, for weights that no step has seen, such as averaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mlx.core as mx

from backends.mlx.model import Arrays, Network, forward, normalise
from ports.common.layers import BatchNorm2d


def of_batch(network: Network) -> Callable[[Arrays, mx.array], Arrays]:
    """The statistics of one batch by name, as a function of (all arrays, uint8 images); dropout is off."""

    def statistics(arrays: Arrays, images: mx.array) -> Arrays:
        with _momentum(network, 1.0):
            return forward(network, arrays, normalise(network, images), training=False, measured=True)[1]

    return statistics


def mean(before: Arrays, new: Arrays, count: int) -> Arrays:
    """The mean of `count` batches' statistics, `before` being that of those before."""
    return {name: value + (new[name] - value) / count for name, value in before.items()}


@contextmanager
def _momentum(network: Network, value: float) -> Iterator[None]:
    """With a momentum of 1, what a batch leaves in the running statistics is its own."""
    norms = [m for m in network.module.modules() if isinstance(m, BatchNorm2d)]
    before = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = value
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm._momentum = momentum
