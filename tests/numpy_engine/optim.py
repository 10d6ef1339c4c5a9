"""AdamW and SGD as torch.optim defines them, Lion as timm does, and clipping, on dicts of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from backends.contract import OptimSpec, StepHyperparams, Weights

Array = NDArray[np.float32]
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",), "lion": ("exp_avg",)}
# Floors of adaptive clipping, timm's: under the norm of a unit's weights, and of its gradient.
_LEAST_WEIGHT, _LEAST_GRADIENT = 1e-3, 1e-6


def fresh(weights: Weights, spec: OptimSpec) -> Weights:
    """Zero moments under `KIND.NAME`."""
    kinds = () if spec.name == "sgd" and spec.momentum == 0 else MOMENTS[spec.name]
    return {f"{kind}.{name}": np.zeros_like(w) for kind in kinds for name, w in weights.items()}


def norm(gradients: Mapping[str, Array]) -> float:
    """The global L2 norm."""
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))


def limited(weights: Weights, gradients: Weights, spec: OptimSpec, clip_norm: float) -> Weights:
    """Gradients within the limits of `spec` and a norm of `clip_norm`, in the order that the contract gives."""
    if spec.clip_factor:
        free = {n: g if n in spec.head else _adapted(g, weights[n], spec.clip_factor) for n, g in gradients.items()}
        gradients = free
    if spec.clip_value:
        gradients = {n: np.clip(g, -spec.clip_value, spec.clip_value) for n, g in gradients.items()}
    total = norm(gradients)
    if 0 < clip_norm < total:
        gradients = {n: g * np.float32(clip_norm / (total + 1e-6)) for n, g in gradients.items()}
    return gradients


def _adapted(gradient: Array, weight: Array, factor: float) -> Array:
    axes = tuple(range(1, gradient.ndim)) or None
    size, own = (np.sqrt(np.square(a).sum(axis=axes, keepdims=True)) for a in (gradient, weight))
    most = factor * np.maximum(own, _LEAST_WEIGHT)
    return (gradient * np.where(size < most, 1.0, most / np.maximum(size, _LEAST_GRADIENT))).astype(np.float32)


def update(
    weights: Weights,
    gradients: Weights,
    moments: Weights,
    spec: OptimSpec,
    knobs: StepHyperparams,
    counts: Mapping[str, int],
) -> tuple[Weights, Weights]:
    """The weights that have a gradient, moved, and all moments; `counts` number this update of each, from 1."""
    new: Weights = {}
    kept: Weights = dict(moments)
    rule = {"adamw": _adamw, "sgd": _sgd, "lion": _lion}[spec.name]
    for name, gradient in gradients.items():
        weight, (rate, decay) = weights[name], spec.multipliers.get(name, (1.0, 1.0))
        change = rule(name, weight, gradient, kept, spec, knobs.weight_decay * decay, counts[name])
        shrunk = weight if spec.name == "sgd" else weight * (1 - knobs.lr * rate * knobs.weight_decay * decay)
        new[name] = (shrunk - knobs.lr * rate * change).astype(np.float32)
    return new, kept


def _lion(
    name: str, weight: Array, gradient: Array, moments: Weights, spec: OptimSpec, decay: float, step: int
) -> Array:
    del weight, decay, step  # decoupled: the caller shrinks the weight
    first, second = spec.betas
    average = f"exp_avg.{name}"
    change = np.sign(first * moments[average] + (1 - first) * gradient)
    moments[average] = (second * moments[average] + (1 - second) * gradient).astype(np.float32)
    return change.astype(np.float32)


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
