"""torch.optim's own AdamW and SGD, with canonical state, per-parameter multipliers and a guard for non-finite steps.

Also the moving average of the weights (EMA). The rates themselves are decided by the caller, step by step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backends.contract import OptimSpec
from backends.torch.model import canonical_tensors
from config.errors import ConfigError

_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def make(parameters: Mapping[str, nn.Parameter], spec: OptimSpec) -> torch.optim.Optimizer:
    """The optimizer of `spec` over named parameters: one group for each pair of multipliers, moments at zero.

    It is torch's fused implementation, which alone can skip an update on the device, without waiting.
    Raises `ConfigError` when `spec.multipliers` name what is no parameter.
    """
    unknown = sorted(spec.multipliers.keys() - parameters.keys())
    if unknown:
        raise ConfigError(f"optimizer multipliers name {unknown[0]!r}, which is no parameter of this model")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(spec.multipliers.get(name, (1.0, 1.0)), []).append(parameter)
    rows = [{"params": members, "lr_mult": rate, "wd_mult": decay} for (rate, decay), members in groups.items()]
    optimizer: torch.optim.Optimizer
    if spec.name == "adamw":
        optimizer = torch.optim.AdamW(rows, betas=spec.betas, eps=spec.eps, fused=True)
    else:
        nesterov = spec.nesterov and spec.momentum > 0
        optimizer = torch.optim.SGD(rows, momentum=spec.momentum, nesterov=nesterov, fused=True)
    for parameter in parameters.values():
        optimizer.state[parameter] = {kind: torch.zeros_like(parameter) for kind in _kinds(spec)}
        if spec.name == "adamw":
            optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device)
    return optimizer


def moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], spec: OptimSpec
) -> dict[str, Tensor]:
    """The optimizer's own tensors as `KIND.NAME`, such as `exp_avg.head.weight`."""
    return {f"{k}.{n}": optimizer.state[p][k] for k in _kinds(spec) for n, p in parameters.items()}


@torch.no_grad()
def set_step(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set AdamW's counts of updates, which its bias correction takes."""
    for entry in optimizer.state.values():
        if "step" in entry:
            entry["step"].fill_(step)


def update(optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, finite: Tensor) -> None:
    """One update at these rates; weights, moments and counts stay as they are where `finite` (bool, 0-d) is false."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]
        group["weight_decay"] = weight_decay * group["wd_mult"]
    if finite.device.type == "mps":
        # Its fused kernels are not known to take the flag; the wait costs little beside an eager MPS step.
        if finite.item():
            optimizer.step()
        return
    # What torch.amp.GradScaler hands to a fused optimizer: 1.0 skips the update inside the kernel.
    optimizer.found_inf = (~finite).float()
    optimizer.step()


def clip_(parameters: list[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale the gradients, whose global norm is `norm`, down to `limit`; 0 or less: leave them."""
    if limit > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)


class Average:
    """The exponential moving average of a model's parameters and running statistics, as a model of its own."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.tensors = canonical_tensors(self.model)
        self._live = canonical_tensors(model)

    @torch.no_grad()
    def update(self, decay: float, finite: Tensor) -> None:
        """`decay * average + (1 - decay) * live`, and nothing where `finite` is false."""
        share = finite.float() * (1 - decay)
        for name, tensor in self.tensors.items():
            tensor.lerp_(self._live[name], share)


class Statistics:
    """The running statistics of a model's normalisation, which a step that is skipped must not have moved."""

    def __init__(self, model: nn.Module):
        own = dict(model.named_parameters())
        self._tensors = [t for n, t in canonical_tensors(model).items() if n not in own]

    def kept(self) -> Tensor | None:
        """A copy of them all."""
        return torch.cat([t.flatten() for t in self._tensors]) if self._tensors else None

    @torch.no_grad()
    def restore(self, kept: Tensor | None, finite: Tensor) -> None:
        """Put the copy back where `finite` is false."""
        if kept is None:
            return
        now = torch.cat([t.flatten() for t in self._tensors])
        chosen = torch.where(finite, now, kept).split([t.numel() for t in self._tensors])
        for tensor, value in zip(self._tensors, chosen, strict=True):
            tensor.copy_(value.view_as(tensor))


def _kinds(spec: OptimSpec) -> tuple[str, ...]:
    return () if spec.name == "sgd" and spec.momentum == 0 else _MOMENTS[spec.name]
