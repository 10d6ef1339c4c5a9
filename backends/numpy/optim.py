"""AdamW and SGD as torch.optim defines them, on dicts of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from backends.contract import Knobs, OptimSpec, Weights

Array = NDArray[np.float32]
_MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}


def fresh(weights: Weights, spec: OptimSpec) -> Weights:
    """Zero moments under `KIND.NAME`."""
    kinds = () if spec.name == "sgd" and spec.momentum == 0 else _MOMENTS[spec.name]
    return {f"{kind}.{name}": np.zeros_like(w) for kind in kinds for name, w in weights.items()}


def norm(gradients: Mapping[str, Array]) -> float:
    """The global L2 norm."""
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))


def update(
    weights: Weights, gradients: Weights, moments: Weights, spec: OptimSpec, knobs: Knobs, step: int
) -> tuple[Weights, Weights]:
    """New weights and moments after update number `step` (from 1); the gradients are clipped already."""
    new: Weights = {}
    kept: Weights = dict(moments)
    rule = _adamw if spec.name == "adamw" else _sgd
    for name, weight in weights.items():
        rate, decay = spec.multipliers.get(name, (1.0, 1.0))
        change = rule(name, weight, gradients[name], kept, spec, knobs.weight_decay * decay, step)
        shrunk = weight * (1 - knobs.lr * rate * knobs.weight_decay * decay) if spec.name == "adamw" else weight
        new[name] = (shrunk - knobs.lr * rate * change).astype(np.float32)
    return new, kept


def _adamw(
    name: str, weight: Array, gradient: Array, moments: Weights, spec: OptimSpec, decay: float, step: int
) -> Array:
    del weight, decay  # decoupled: the caller shrinks the weight
    first, second = spec.betas
    average, square = f"exp_avg.{name}", f"exp_avg_sq.{name}"
    moments[average] = (first * moments[average] + (1 - first) * gradient).astype(np.float32)
    moments[square] = (second * moments[square] + (1 - second) * np.square(gradient)).astype(np.float32)
    size = np.sqrt(moments[square]) / math.sqrt(1 - second**step) + spec.eps
    return (moments[average] / (1 - first**step) / size).astype(np.float32)


def _sgd(
    name: str, weight: Array, gradient: Array, moments: Weights, spec: OptimSpec, decay: float, step: int
) -> Array:
    del step
    gradient = gradient + np.float32(decay) * weight
    if not spec.momentum:
        return gradient
    buffer = f"momentum_buffer.{name}"
    moments[buffer] = (spec.momentum * moments[buffer] + gradient).astype(np.float32)
    return (gradient + spec.momentum * moments[buffer]).astype(np.float32) if spec.nesterov else moments[buffer]
