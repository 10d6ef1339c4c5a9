"""Optimizers, gradient clipping and EMA as functions of flat dicts of arrays. How one parameter moves is in `rules`.

Rates reach them as arrays, so that a schedule never retraces. What the rates are is decided in `training/policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from backends.contract import OptimSpec
from backends.mlx import rules
from backends.mlx.model import Arrays
from config.errors import ConfigError

Moments = dict[str, Arrays]

_SLOTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lion": ("exp_avg",),
    "muon": ("momentum_buffer",),
}
# Floors of adaptive clipping, timm's: under the norm of a unit's weights, and of its gradient.
_LEAST_WEIGHT, _LEAST_GRADIENT = 1e-3, 1e-6


def slots(spec: OptimSpec, name: str) -> tuple[str, ...]:
    """What `spec` keeps for the parameter `name`, as torch calls it."""
    if spec.name == "sgd" and not spec.momentum:
        return ()
    return _SLOTS["adamw" if spec.name == "muon" and name not in spec.matrices else spec.name]


def fresh(spec: OptimSpec, parameters: Arrays) -> Moments:
    """All moments at zero; `ConfigError` for an optimizer or a parameter that is not there."""
    if spec.name not in _SLOTS:
        raise ConfigError(f"optimizer {spec.name!r} is not known to the MLX engine; choose {', '.join(_SLOTS)}")
    unknown = sorted(spec.named - parameters.keys())
    if unknown:
        raise ConfigError(f"the optimizer's settings name {unknown[0]!r}, which is no parameter of this model")
    moments: Moments = {}
    for name, parameter in parameters.items():
        for slot in slots(spec, name):
            moments.setdefault(slot, {})[name] = mx.zeros_like(parameter)
    return moments


def update(
    spec: OptimSpec,
    parameters: Arrays,
    gradients: Arrays,
    moments: Moments,
    rates: tuple[mx.array, mx.array],
    counts: tuple[mx.array, mx.array],
    dtype: mx.Dtype,
    taken: mx.array,
) -> tuple[Arrays, Moments]:
    """The parameters that have a gradient, moved, and all moments.

    `rates` are learning rate and weight decay before the multipliers; `counts` the int32 numbers, from 1, of this
    update for the head and for the rest. `dtype` is the one of the network's arithmetic. Where `taken` is false nothing
    moves; the gradients must be finite all the same.
    """
    rule_of = _rules(spec, counts, dtype, taken)
    rates = (mx.where(taken, rates[0], 0.0), mx.where(taken, rates[1], 0.0))
    new: Arrays = {}
    new_moments: Moments = {slot: dict(arrays) for slot, arrays in moments.items()}
    for name, gradient in gradients.items():
        rate, decay = spec.multipliers.get(name, (1.0, 1.0))
        before = {slot: moments[slot][name] for slot in slots(spec, name)}
        new[name], after = rule_of(name)(parameters[name], gradient, before, rates[0] * rate, rates[1] * decay)
        for slot, value in after.items():
            new_moments[slot][name] = value
    return new, new_moments


def _rules(
    spec: OptimSpec, counts: tuple[mx.array, mx.array], dtype: mx.Dtype, taken: mx.array
) -> Callable[[str], rules.Rule]:
    if spec.name in ("sgd", "lion"):
        rule = rules.sgd(spec, taken) if spec.name == "sgd" else rules.lion(spec, taken)
        return lambda _: rule
    head, rest = (rules.adamw(spec, count, taken) for count in counts)
    muon = rules.muon(spec, dtype, taken)
    matrices = spec.matrices if spec.name == "muon" else frozenset()
    return lambda name: muon if name in matrices else head if name in spec.head else rest


def norm(gradients: Arrays) -> mx.array:
    """The L2 norm of all gradients together. Summed by rows first: one long float32 sum would lose digits."""
    squares = [_total(mx.square(g.astype(mx.float32)), 0) for g in gradients.values()]
    return mx.sqrt(mx.sum(mx.stack(squares)))


def limited(spec: OptimSpec, parameters: Arrays, gradients: Arrays, total: mx.array, clip_norm: mx.array) -> Arrays:
    """Gradients within the limits of `spec` and a norm of `clip_norm` (0 or less: any); `total` is their norm.

    As `timm.utils.adaptive_clip_grad`, `torch.nn.utils.clip_grad_value_` and `clip_grad_norm_`, one after the other.
    """
    if spec.clip_factor:
        gradients = {
            n: g if n in spec.head else _adapted(g, parameters[n], spec.clip_factor) for n, g in gradients.items()
        }
    if spec.clip_value:
        gradients = {n: mx.clip(g, -spec.clip_value, spec.clip_value) for n, g in gradients.items()}
    if spec.clip_factor or spec.clip_value:
        total = norm(gradients)
    scale = mx.where(clip_norm > 0, mx.minimum(clip_norm / (total + 1e-6), 1.0), 1.0)
    return {name: g * scale for name, g in gradients.items()}


def averaged(ema: Arrays, arrays: Mapping[str, mx.array], decay: mx.array) -> Arrays:
    """decay * ema + (1 - decay) * arrays, for every array that the average keeps."""
    return {name: decay * value + (1 - decay) * arrays[name] for name, value in ema.items()}


def _adapted(gradient: mx.array, parameter: mx.array, factor: float) -> mx.array:
    most = factor * mx.maximum(_unit_norms(parameter), _LEAST_WEIGHT)
    size = _unit_norms(gradient)
    return gradient * mx.where(size < most, 1.0, most / mx.maximum(size, _LEAST_GRADIENT))


def _unit_norms(x: mx.array) -> mx.array:
    """The norm of all that belongs to one output, of a vector as a whole; broadcastable to `x`."""
    keep = 1 if x.ndim > 1 else 0
    sizes = mx.sqrt(_total(mx.square(x), keep))
    return sizes.reshape(sizes.shape + (1,) * (x.ndim - keep))


def _total(x: mx.array, keep: int) -> mx.array:
    """The sum over all axes but the first `keep`, row by row: one kernel a level, and no long naive sum on a CPU."""
    x = x.reshape(x.shape[0], -1) if x.ndim > 2 else x
    while x.ndim > keep:
        x = mx.sum(x, axis=-1)
    return x
