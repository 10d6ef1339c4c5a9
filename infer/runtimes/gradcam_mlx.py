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
    """In a module's place: keeps its first argument, after adding `shift` to it."""

    def __init__(self, inner: Any):
        super().__init__()
        self.inner = inner
        self._state: dict[str, Any] = {"shift": None, "seen": None}

    def __call__(self, x: mx.array, *rest: Any) -> mx.array:
        """What the module gives."""
        if self._state["shift"] is not None:
            x = x + self._state["shift"]
        self._state["seen"] = x
        return self.inner(x, *rest)


def open(spec: ModelSpec, weights: Weights, module_name: str) -> GradFn:
    """The function that gives features and gradients; `place` names the module, -1 in it the last of a list."""
    network, arrays = model.build(spec, weights, "fp32", 0)
    tap = tapped(network.module, module_name, spec.name)

    def scores(shift: mx.array | None, images: mx.array, classes: mx.array) -> tuple[mx.array, mx.array]:
        tap._state["shift"] = shift
        logits, _ = model.forward(network, arrays, model.normalise(network, images), training=False)
        return mx.take_along_axis(logits, classes[:, None], axis=1).sum(), tap._state["seen"]

    @memory_errors()
    def feel(images: NDArray[np.uint8], classes: NDArray[np.int64]) -> Activations:
        arrays = mx.array(images), mx.array(classes)
        _, features = scores(None, *arrays)
        mx.eval(features)
        _, gradient = mx.value_and_grad(scores)(mx.zeros_like(features), *arrays)
        tap._state.update(shift=None, seen=None)
        arrays_ = (np.array(a.astype(mx.float32)) for a in (features, gradient))
        return Activations(*(grid(a, spec) if a.ndim == 3 else a for a in arrays_))

    return feel


def tapped(network: Any, module_name: str, name: str) -> Hook:
    """Put a tap into the dotted `place` of a network; `ConfigError` where the model called `name` has none."""
    *path, last = module_name.split(".")
    owner = network
    for name_part in path:
        owner = owner[-1] if name_part == "-1" else getattr(owner, name_part, None)
        if owner is None:
            break
    inner = getattr(owner, last, None)
    if inner is None:
        raise ConfigError(f"model {name}: has no {module_name}, where Grad-CAM looks for the features")
    tap = Hook(inner)
    setattr(owner, last, tap)
    return tap
