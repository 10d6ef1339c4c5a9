"""Grad-CAM (Selvaraju et al. 2017): where a trained network looks when it predicts a class. For checkpoints.

The engine gives the features that the head sees and the class score's gradient for them. They are combined here as in
pytorch-grad-cam: gradients averaged over positions weight the channels, and negative sums are cut off.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from config.errors import ConfigError
from infer import runtimes
from infer.runtimes import checkpoint
from infer.runtimes import images as pixels
from models.card import Card
from models.families import FAMILIES
from models.geometry import patch_grid
from models.registry import ModelSpec

_BATCH = 8
_TINY = 1e-7  # pytorch-grad-cam's


class Activations(NamedTuple):
    """Features and the gradients of the wanted classes' logits for them, both float32 `[N, h, w, K]`."""

    features: NDArray[np.float32]
    gradients: NDArray[np.float32]


# (uint8 `[N, S, S, 3]`, int64 `[N]` class numbers) to features and gradients
GradFn = Callable[[NDArray[np.uint8], NDArray[np.int64]], Activations]


class Explainer:
    """A checkpoint that shows where it looks; `card` says what to feed it."""

    def __init__(self, card: Card, grad_fn: GradFn):
        self.card, self._grad_fn = card, grad_fn

    def heatmaps(self, images: NDArray[np.uint8], classes: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 `[N, S, S]` in 0..1 for uint8 `[N, S, S, 3]` and one class number an image: 1 matters most.

        `ConfigError` where the images are so small that the features are a single place.
        """
        pixels.checked((images,), self.card)
        wanted = np.asarray(classes, dtype=np.int64)
        size = self.card.preprocessing.size
        maps = [np.zeros((0, size, size), np.float32)]
        for start in range(0, len(images), _BATCH):
            rows = slice(start, start + _BATCH)
            activations = self._grad_fn(images[rows], wanted[rows])
            if activations.features.shape[1:3] == (1, 1):
                raise ConfigError(
                    f"model {self.card.model}: at {size} pixels its features are one place, so that Grad-CAM has "
                    "nothing to tell apart; it needs larger images"
                )
            maps.append(combine(activations, size))
        return np.concatenate(maps)


def open(path: Path, runtime: str | None = None) -> Explainer:
    """The explainer of a checkpoint folder, on the engine that suits it or on `runtime`.

    `ConfigError` for artefacts without gradients (.onnx, .mlpackage) and for models whose features
    are no map; else as `infer.runtimes.open`.
    """
    chosen = runtimes.choose(path, runtime)
    if chosen not in ("torch", "mlx"):
        raise ConfigError(f"{path}: {chosen} gives no gradients for Grad-CAM; take the checkpoint, on torch or mlx")
    card, spec, weights = checkpoint.read(path, chosen)
    if spec.family not in FAMILIES:
        raise ConfigError(
            f"model {spec.name}: Grad-CAM does not know where the {spec.family} family keeps its features"
        )
    engine = importlib.import_module(f"infer.runtimes.gradcam_{chosen}")
    return Explainer(card, engine.open(spec, weights, FAMILIES[spec.family].gradcam))


def combine(activations: Activations, size: int) -> NDArray[np.float32]:
    """Heat maps float32 `[N, size, size]` in 0..1 of features and gradients."""
    weights = activations.gradients.mean(axis=(1, 2))
    small = np.maximum(np.einsum("nhwk,nk->nhw", activations.features, weights), 0)
    maps = np.stack([cv2.resize(heatmap, (size, size)) for heatmap in small])
    maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return np.asarray(maps / (_TINY + maps.max(axis=(1, 2), keepdims=True)), dtype=np.float32)


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """uint8 `[S, S, 3]` RGB: the image with its heat map `[S, S]` over it, blue where it is 0, red where it is 1."""
    colours = cv2.cvtColor(cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_JET), cv2.COLOR_BGR2RGB)
    blended: NDArray[np.uint8] = cv2.addWeighted(image, 0.5, colours, 0.5, 0)
    return blended


def grid(tokens: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """The tokens `[N, prefix + h * h, K]` of the patches, which come last, as `[N, h, h, K]`."""
    side = patch_grid(spec)
    return tokens[:, -side * side :].reshape(len(tokens), side, side, tokens.shape[2])
