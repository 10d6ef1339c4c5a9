"""The optimizers of a session, with canonical state, per-parameter multipliers and a guard for non-finite steps.

AdamW and SGD are torch.optim's own; Lion and Muon are in `rules`. Also gradient clipping and the moving average of the
weights (EMA). The rates themselves are decided by the caller, step by step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.utils import adaptive_clip_grad
from torch import Tensor, nn

from backends.contract import OptimSpec
from backends.torch import rules
from backends.torch.model import canonical_tensors
from config.errors import ConfigError

_MOMENTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lion": ("exp_avg",),
    "muon": ("momentum_buffer",),
}
# Where the average's tensors move in one kernel together, which wants a share of each tensor's own form.
_IN_BULK = ("cuda",)
Parameters = Mapping[str, nn.Parameter]


def make(parameters: Parameters, spec: OptimSpec, dtype: torch.dtype) -> list[torch.optim.Optimizer]:
    """The optimizers of `spec` over named parameters: one group for each pair of multipliers, moments at zero.

    There are two for Muon, which moves matrices only. Torch's own are the fused implementations, which alone can skip
    an update on the device, without waiting. `dtype` is the one that Muon may iterate in.
    Raises `ConfigError` when `spec` names what is no parameter, or an unknown optimizer.
    """
    unknown = sorted(spec.named - parameters.keys())
    if unknown:
        raise ConfigError(f"the optimizer's settings name {unknown[0]!r}, which is no parameter of this model")
    kinds: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        kind = "adamw" if spec.name == "muon" and name not in spec.matrices else spec.name
        kinds.setdefault(kind, {})[name] = parameter
    return [_made(kind, members, spec, dtype) for kind, members in kinds.items()]


def _made(kind: str, parameters: Parameters, spec: OptimSpec, dtype: torch.dtype) -> torch.optim.Optimizer:
    rows = _groups(parameters, spec)
    optimizer: torch.optim.Optimizer
    if kind == "adamw":
        optimizer = torch.optim.AdamW(rows, betas=spec.betas, eps=spec.eps, fused=True)
    elif kind == "sgd":
        nesterov = spec.nesterov and spec.momentum > 0
        optimizer = torch.optim.SGD(rows, momentum=spec.momentum, nesterov=nesterov, fused=True)
    elif kind == "lion":
        optimizer = rules.Lion(rows, spec.betas)
    elif kind == "muon":
        optimizer = rules.Muon(rows, spec.momentum, spec.nesterov, dtype)
    else:
        raise ConfigError(f"optimizer {kind!r} is not known to the torch engine; choose {', '.join(_MOMENTS)}")
    slots = () if kind == "sgd" and spec.momentum == 0 else _MOMENTS[kind]
    for parameter in parameters.values():
        optimizer.state[parameter] = {slot: torch.zeros_like(parameter) for slot in slots}
        if kind == "adamw":
            optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device)
    return optimizer


def _groups(parameters: Parameters, spec: OptimSpec) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault(spec.multipliers.get(name, (1.0, 1.0)), []).append(parameter)
    return [{"params": members, "lr_mult": rate, "wd_mult": decay} for (rate, decay), members in groups.items()]


def moments(optimizers: list[torch.optim.Optimizer], parameters: Parameters) -> dict[str, Tensor]:
    """The optimizers' own tensors as `KIND.NAME`, such as `exp_avg.head.weight`."""
    states = {n: o.state[p] for o in optimizers for n, p in parameters.items() if p in o.state}
    return {f"{kind}.{n}": t for n, state in states.items() for kind, t in state.items() if kind != "step"}


@torch.no_grad()
def set_step(
    optimizers: list[torch.optim.Optimizer], parameters: Parameters, spec: OptimSpec, step: int, frozen_steps: int
) -> None:
    """Set AdamW's counts of updates, which its bias correction takes; the head had `frozen_steps` more."""
    for optimizer in optimizers:
        for name, parameter in parameters.items():
            if "step" in optimizer.state.get(parameter, {}):
                optimizer.state[parameter]["step"].fill_(step if name in spec.head else step - frozen_steps)


def update(optimizers: list[torch.optim.Optimizer], lr: float, weight_decay: float, finite: Tensor) -> None:
    """One update at these rates; weights, moments and counts stay as they are where `finite` (bool, 0-d) is false.

    Parameters without a gradient, which are frozen, stay too.
    """
    fused = finite.device.type != "mps"
    if not fused and not finite.item():
        # Torch's kernels for it do not take the flag; the wait costs little beside an eager MPS step.
        return
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_mult"]
            group["weight_decay"] = weight_decay * group["wd_mult"]
        # What torch.amp.GradScaler hands to a fused optimizer: 1.0 skips the update inside the kernel.
        takes_flag = fused or isinstance(optimizer, rules.Lion | rules.Muon)
        optimizer.found_inf = (~finite).float() if takes_flag else None
        optimizer.step()


def limit_(
    parameters: Parameters, spec: OptimSpec, norm: Tensor, clip_norm: float, reduce: Callable[[Tensor], Tensor]
) -> None:
    """Bring the gradients, whose global norm is `norm`, within the limits of `spec`, then of `clip_norm` (0: any).
    `reduce` makes the norm of this process's gradients that of all."""
    if spec.clip_factor:
        adaptive_clip_grad([p for n, p in parameters.items() if n not in spec.head], spec.clip_factor)
    if spec.clip_value:
        nn.utils.clip_grad_value_(parameters.values(), spec.clip_value)
    if clip_norm <= 0:
        return
    if spec.clip_factor or spec.clip_value:
        norm = reduce(total_norm(parameters))
    nn.utils.clip_grads_with_norm_(parameters.values(), clip_norm, norm)


def total_norm(parameters: Parameters) -> Tensor:
    """The L2 norm of all gradients together, float32 0-d."""
    return nn.utils.get_total_norm([p.grad for p in parameters.values() if p.grad is not None])


class Average:
    """The exponential moving average of a model's parameters and running statistics, as a model of its own."""

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.follow(model)

    def follow(self, model: nn.Module) -> None:
        """Take the tensors of both anew, after they were put elsewhere."""
        self.tensors, self._live = canonical_tensors(self.model), canonical_tensors(model)

    @torch.no_grad()
    def update(self, decay: float, finite: Tensor) -> None:
        """`decay * average + (1 - decay) * live`, and nothing where `finite` is false."""
        share = finite.float() * (1 - decay)
        averages, live = list(self.tensors.values()), [self._live[name] for name in self.tensors]
        shares = [share] * len(averages)
        if share.device.type in _IN_BULK:
            # Views of one small array that stays in the cache: 3 passes over the weights, where separate operations of
            # subtracting, scaling and adding take 8, and a 0-d share one kernel for each tensor.
            repeated = share.repeat(max(average.numel() for average in averages))
            shares = [repeated.as_strided(average.size(), average.stride()) for average in averages]
        torch._foreach_lerp_(averages, live, shares)


class Statistics:
    """The running statistics of a model's normalisation, which a step that is skipped must not have moved."""

    def __init__(self, model: nn.Module):
        parameters = dict(model.named_parameters())
        self.tensors = [t for n, t in canonical_tensors(model).items() if n not in parameters]

    def copy(self) -> Tensor | None:
        """A copy of them all."""
        return torch.cat([t.flatten() for t in self.tensors]) if self.tensors else None

    @torch.no_grad()
    def restore(self, before: Tensor | None, moved: Tensor) -> None:
        """Put the copy back where `moved` (bool, 0-d) is false."""
        now = self.copy()
        if before is None or now is None:
            return
        chosen = torch.where(moved, now, before).split([t.numel() for t in self.tensors])
        torch._foreach_copy_(self.tensors, [v.view_as(t) for t, v in zip(self.tensors, chosen, strict=True)])
