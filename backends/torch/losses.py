"""The training losses of `backends.losses` in torch."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from backends import losses
from backends.contract import LossSpec

PerSample = Callable[[Tensor, Tensor], Tensor]


class Ops:
    """What the losses are made of (see `backends.losses`)."""

    exp, expm1, log, log1p, sigmoid = torch.exp, torch.expm1, torch.log, torch.log1p, torch.sigmoid
    log_sigmoid = F.logsigmoid
    softmax, log_softmax = functools.partial(torch.softmax, dim=-1), functools.partial(F.log_softmax, dim=-1)
    log_sum_exp = functools.partial(torch.logsumexp, dim=-1, keepdim=True)
    largest = functools.partial(torch.amax, dim=-1, keepdim=True)
    fixed = Tensor.detach
    cross_entropy = functools.partial(F.cross_entropy, reduction="none")

    @staticmethod
    def total(x: Tensor, keep: bool = False) -> Tensor:
        """The sum of each row."""
        return x.sum(-1, keepdim=keep)

    @staticmethod
    def at_least(x: Tensor, low: float) -> Tensor:
        """The larger of each entry and `low`."""
        return x.clamp(min=low)

    @staticmethod
    def at_most(x: Tensor, high: float) -> Tensor:
        """The smaller of each entry and `high`."""
        return x.clamp(max=high)


def make(spec: LossSpec) -> PerSample:
    """The loss of `spec`, of logits and targets `[N, C]`, as float32 `[N]`; raises `ConfigError` as `losses.make`."""
    loss = losses.make(spec, Ops, lambda logits: _on(spec.class_weights, logits.device))
    return lambda logits, targets: loss(logits.float(), targets)


@functools.cache
def _on(weights: tuple[float, ...], device: torch.device) -> Tensor:
    # Sent once: a copy at each step would wait for the device.
    return torch.tensor(weights, dtype=torch.float32, device=device)
