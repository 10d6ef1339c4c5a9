"""Lion and Muon, as timm's, in the one form that torch.optim's fused optimizers have: able to skip an update on the
device, without a wait. Which parameters they are for, and at what rates, is decided in `optim`.

As in those, a `found_inf` of 1.0 (float32, 0-d, on the device) leaves weights and moments as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Jordan 2024: the quintic whose five-fold iteration brings singular values near one, and what keeps 0 / 0 away.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_TINY = 1e-7


class Lion(torch.optim.Optimizer):
    """Lion (Chen et al. 2023): the sign of an average of the gradients; decoupled weight decay."""

    found_inf: Tensor

    def __init__(self, groups: Iterable[dict[str, Any]], betas: tuple[float, float]):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._betas = betas

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update with each group's `lr` and `weight_decay`; its state is `exp_avg`."""
        del closure
        live, (beta1, beta2) = 1 - self.found_inf, self._betas
        for group, parameter, gradient, average in _with_gradients(self, "exp_avg", self.found_inf):
            parameter.mul_(1 - live * (group["lr"] * group["weight_decay"]))
            parameter.sub_(average.lerp(gradient, 1 - beta1).sign_().mul_(live * group["lr"]))
            average.lerp_(gradient, 1 - beta2)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024): the averaged gradient, its singular values made one; decoupled weight decay.

    The step is scaled by 0.2 * sqrt(larger side), so that its size is AdamW's and one learning rate serves both (Liu
    et al. 2025). Kernels are flattened to (outputs, rest). The iteration runs in `dtype`.
    """

    found_inf: Tensor

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float, nesterov: bool, dtype: torch.dtype):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._momentum, self._nesterov, self._dtype = momentum, nesterov, dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update with each group's `lr` and `weight_decay`; its state is `momentum_buffer`."""
        del closure
        live = 1 - self.found_inf
        for group, parameter, gradient, buffer in _with_gradients(self, "momentum_buffer", self.found_inf):
            buffer.lerp_(gradient, 1 - self._momentum)
            step = gradient.lerp(buffer, self._momentum) if self._nesterov else buffer
            flat = step.reshape(len(step), -1)
            turned = orthogonal(flat, self._dtype).view(step.shape)
            scale = 0.2 * math.sqrt(max(flat.shape))
            parameter.mul_(1 - live * (group["lr"] * group["weight_decay"]))
            parameter.sub_(turned * (live * (group["lr"] * scale)))


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The float32 matrix `x` `[R, C]` with its singular values brought near one by five Newton-Schulz iterations."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = (x / torch.linalg.vector_norm(x).clamp(min=_TINY)).to(dtype)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).float().contiguous()


def _with_gradients(
    optimizer: torch.optim.Optimizer, kind: str, found_inf: Tensor
) -> Iterable[tuple[dict[str, Any], Tensor, Tensor, Tensor]]:
    """(group, parameter, gradient, average); the average stands in for a gradient that is not finite, and so stays."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                average = optimizer.state[parameter][kind]
                yield group, parameter, torch.where(found_inf > 0, average, parameter.grad), average
