"""MLX's side of Grad-CAM: the input of one module of a port, and the logits' gradient for it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from backends.contract import Weights
from backends.mlx import model
from backends.mlx.memory import memory_errors
from config.errors import ConfigError
from infer.explain.gradcam import Activations, GradFn, grid
from models.registry import ModelSpec


class Hook(nn.Module):
    """Replaces a module: keeps its first argument, after adding `shift` to it."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        self._state: dict[str, Any] = {"shift": None, "features": None}

    def __call__(self, x: mx.array, *rest: Any) -> mx.array:
        """The module's output."""
        if self._state["shift"] is not None:
            x = x + self._state["shift"]
        self._state["features"] = x
        return self.inner(x, *rest)


def open(spec: ModelSpec, weights: Weights, module_name: str) -> GradFn:
    """The function that gives features and gradients; -1 in the dotted `module_name` is the last of a list."""
    network, arrays = model.build(spec, weights, "fp32", 0)
    hook = _hooked(network.module, module_name, spec.name)

    def scores(shift: mx.array | None, images: mx.array, classes: mx.array) -> tuple[mx.array, mx.array]:
        hook._state["shift"] = shift
        logits, _ = model.forward(network, arrays, model.normalise(network, images), training=False)
        return mx.take_along_axis(logits, classes[:, None], axis=1).sum(), hook._state["features"]

    @memory_errors()
    def gradients(images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Activations:
        inputs = mx.array(images), mx.array(classes)
        _, features = scores(None, *inputs)
        mx.eval(features)
        _, gradient = mx.value_and_grad(scores)(mx.zeros_like(features), *inputs)
        hook._state.update(shift=None, features=None)
        outputs = (np.array(a.astype(mx.float32)) for a in (features, gradient))
        return Activations(*(grid(a, spec) if a.ndim == 3 else a for a in outputs))

    return gradients


def _hooked(network: Any, module_name: str, model_name: str) -> Hook:
    """Put a hook in place of a module; `ConfigError` where the model has none of that name."""
    *path, last = module_name.split(".")
    owner = network
    for segment in path:
        owner = owner[-1] if segment == "-1" else getattr(owner, segment, None)
        if owner is None:
            break
    inner = getattr(owner, last, None)
    if inner is None:
        raise ConfigError(f"model {model_name}: has no {module_name}, where Grad-CAM looks for the features")
    hook = Hook(inner)
    setattr(owner, last, hook)
    return hook
