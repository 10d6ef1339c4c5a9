"""The training losses of `backends.losses` in MLX."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx

from backends import losses
from backends.contract import LossSpec

Loss = Callable[[mx.array, mx.array], mx.array]


class Ops:
    """What the losses are made of (see `backends.losses`)."""

    exp, expm1, log, log1p, sigmoid = mx.exp, mx.expm1, mx.log, mx.log1p, mx.sigmoid
    softmax = functools.partial(mx.softmax, axis=-1)
    log_sum_exp = functools.partial(mx.logsumexp, axis=-1, keepdims=True)
    largest = functools.partial(mx.max, axis=-1, keepdims=True)
    fixed, at_least, at_most = mx.stop_gradient, mx.maximum, mx.minimum

    @staticmethod
    def total(x: mx.array, keep: bool = False) -> mx.array:
        """The sum of each row."""
        return mx.sum(x, axis=-1, keepdims=keep)

    @staticmethod
    def log_softmax(x: mx.array) -> mx.array:
        """Logarithms of each row's softmax."""
        return x - mx.logsumexp(x, axis=-1, keepdims=True)

    @staticmethod
    def log_sigmoid(x: mx.array) -> mx.array:
        """Logarithms of each entry's sigmoid."""
        return -mx.logaddexp(-x, 0.0)

    @staticmethod
    def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
        """`[N]`, as torch's `cross_entropy(reduction="none")`."""
        return -mx.sum(targets * Ops.log_softmax(logits), axis=-1)


def make(spec: LossSpec) -> Loss:
    """The loss of `spec`, of logits and targets `[N, C]`, as float32 `[N]`; raises `ConfigError` as `losses.make`."""
    weights = mx.array(spec.class_weights)
    return losses.make(spec, Ops, lambda _: weights)
