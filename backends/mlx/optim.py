"""AdamW and SGD as torch.optim defines them, gradient clipping and EMA, as functions of flat dicts of arrays.

Rates reach them as arrays, so that a schedule never retraces. What the rates are is decided in `training/policy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from backends.contract import OptimSpec
from backends.mlx.model import Arrays
from config.errors import ConfigError

Moments = dict[str, Arrays]
# (parameter, gradient, its moments, learning rate, weight decay) to (parameter, moments)
Rule = Callable[[mx.array, mx.array, Arrays, mx.array, mx.array], tuple[mx.array, Arrays]]


class Rates(NamedTuple):
    """Learning rate and weight decay of each parameter, both float32 `[P]` in the order of the parameters."""

    lr: mx.array
    decay: mx.array


def slots(spec: OptimSpec) -> tuple[str, ...]:
    """The names of the moments that `spec` keeps for each parameter, as torch calls them."""
    if spec.name == "adamw":
        return ("exp_avg", "exp_avg_sq")
    if spec.name == "sgd":
        return ("momentum_buffer",) if spec.momentum else ()
    raise ConfigError(f"optimizer {spec.name!r} is not known to the MLX engine; choose adamw or sgd")


def fresh(spec: OptimSpec, parameters: Arrays) -> Moments:
    """All moments at zero."""
    return {slot: {name: mx.zeros_like(p) for name, p in parameters.items()} for slot in slots(spec)}


def multipliers(spec: OptimSpec, names: list[str]) -> mx.array:
    """float32 `[2, P]`: the learning-rate and weight-decay multipliers of the parameters `names`."""
    unknown = sorted(spec.multipliers.keys() - set(names))
    if unknown:
        raise ConfigError(f"optimizer multipliers name {unknown[0]!r}, which is no parameter of this model")
    pairs = [spec.multipliers.get(name, (1.0, 1.0)) for name in names]
    return mx.array(np.asarray(pairs, np.float32).reshape(-1, 2).T)


def update(
    spec: OptimSpec, parameters: Arrays, gradients: Arrays, moments: Moments, rates: Rates, step: mx.array
) -> tuple[Arrays, Moments]:
    """New parameters and moments; `step` is the int32 number of this update, from 1."""
    one = _adamw(spec, step) if spec.name == "adamw" else _sgd(spec)
    new: Arrays = {}
    kept: Moments = {slot: {} for slot in moments}
    for i, (name, parameter) in enumerate(parameters.items()):
        before = {slot: arrays[name] for slot, arrays in moments.items()}
        new[name], after = one(parameter, gradients[name], before, rates.lr[i], rates.decay[i])
        for slot, value in after.items():
            kept[slot][name] = value
    return new, kept


def norm(gradients: Arrays) -> mx.array:
    """The L2 norm of all gradients together. Summed by rows first: one long float32 sum would lose digits."""
    squares = [_total(mx.square(g.astype(mx.float32))) for g in gradients.values()]
    return mx.sqrt(mx.sum(mx.stack(squares)))


def clipped(gradients: Arrays, total: mx.array, limit: mx.array) -> Arrays:
    """Gradients scaled to a norm of `limit` where their norm `total` exceeds it, as `torch.nn.utils.clip_grad_norm_`.

    A limit of 0 or less leaves them as they are.
    """
    scale = mx.where(limit > 0, mx.minimum(limit / (total + 1e-6), 1.0), 1.0)
    return {name: g * scale for name, g in gradients.items()}


def averaged(ema: Arrays, arrays: Mapping[str, mx.array], decay: mx.array) -> Arrays:
    """decay * ema + (1 - decay) * arrays, for every array that the average keeps."""
    return {name: decay * value + (1 - decay) * arrays[name] for name, value in ema.items()}


def _adamw(spec: OptimSpec, step: mx.array) -> Rule:
    beta1, beta2 = spec.betas
    count = step.astype(mx.float32)
    # 1 - beta**t loses digits in float32 for small t; expm1 does not.
    correction1 = -mx.expm1(count * math.log(beta1))
    correction2 = mx.sqrt(-mx.expm1(count * math.log(beta2)))

    def one(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        p = p * (1 - lr * decay)
        first = beta1 * m["exp_avg"] + (1 - beta1) * g
        second = beta2 * m["exp_avg_sq"] + (1 - beta2) * mx.square(g)
        p = p - (lr / correction1) * (first / (mx.sqrt(second) / correction2 + spec.eps))
        return p, {"exp_avg": first, "exp_avg_sq": second}

    return one


def _sgd(spec: OptimSpec) -> Rule:
    def one(p: mx.array, g: mx.array, m: Arrays, lr: mx.array, decay: mx.array) -> tuple[mx.array, Arrays]:
        g = g + decay * p
        if not spec.momentum:
            return p - lr * g, {}
        buffer = spec.momentum * m["momentum_buffer"] + g
        step = g + spec.momentum * buffer if spec.nesterov else buffer
        return p - lr * step, {"momentum_buffer": buffer}

    return one


def _total(x: mx.array) -> mx.array:
    while x.ndim:
        x = mx.sum(x, axis=-1)
    return x
