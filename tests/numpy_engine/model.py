"""Softmax regression on downscaled images: features, logits and gradients. No optimizer, no state."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from backends.contract import MixPlan, Weights
from models.registry import ModelSpec

# Images are averaged down to this many cells a side (fewer when they are smaller).
GRID = 8
Array = NDArray[np.float32]


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The weights of the classifier of `spec`: `head.weight` `[C, D]` and `head.bias` `[C]`."""
    side = min(GRID, spec.preprocessing.size)
    return {"head.weight": (spec.num_classes, side * side * 3), "head.bias": (spec.num_classes,)}


def fresh(spec: ModelSpec, seed: int) -> Weights:
    """Small normal weights drawn from `seed`, and a zero bias."""
    key = np.frombuffer(hashlib.blake2b(f"{seed}|weights".encode(), digest_size=16).digest(), dtype="<u8")
    rng = np.random.Generator(np.random.Philox(key=key))
    of = shapes(spec)
    return {
        "head.weight": (0.02 * rng.standard_normal(of["head.weight"])).astype(np.float32),
        "head.bias": np.zeros(of["head.bias"], np.float32),
    }


def normalise(images: NDArray[np.uint8], spec: ModelSpec) -> Array:
    """uint8 `[N, H, W, 3]` to float32 of the same shape."""
    mean, std = (np.asarray(v, np.float32) for v in (spec.preprocessing.mean, spec.preprocessing.std))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def mixed(pixels: Array, targets: Array, mix: MixPlan) -> tuple[Array, Array]:
    """Mixup and CutMix of `contract.MixPlan`."""
    other = pixels[mix.permutation]
    share = mix.blend[:, None, None, None]
    out = share * pixels + (1 - share) * other
    for i, (top, bottom, left, right) in enumerate(mix.box):
        out[i, top:bottom, left:right] = other[i, top:bottom, left:right]
    own = mix.own[:, None]
    return out, own * targets + (1 - own) * targets[mix.permutation]


def features(pixels: Array) -> Array:
    """Means of `GRID x GRID` cells, flattened: `[N, H, W, 3]` to `[N, D]`."""
    for axis in (1, 2):
        length = pixels.shape[axis]
        cells = min(GRID, length)
        starts = np.arange(cells) * length // cells
        counts = np.diff(np.append(starts, length)).astype(np.float32)
        shape = [-1 if a == axis else 1 for a in range(4)]
        sums: Array = np.add.reduceat(pixels, starts, axis=axis)
        pixels = sums / counts.reshape(shape)
    return pixels.reshape(len(pixels), math.prod(pixels.shape[1:]))


def logits(weights: Mapping[str, Array], inputs: Array) -> Array:
    """float32 `[N, C]` of features `[N, D]`."""
    return inputs @ weights["head.weight"].T + weights["head.bias"]


def losses_and_gradients(
    weights: Mapping[str, Array], inputs: Array, targets: Array, share: Array
) -> tuple[Array, Weights]:
    """Per-sample soft-target cross entropy `[N]`, and the gradients of its mean weighted by `share` `[N]`."""
    scores = logits(weights, inputs)
    scores = scores - scores.max(axis=1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    losses = -(targets * log_probabilities).sum(axis=1)
    slope = np.exp(log_probabilities) * targets.sum(axis=1, keepdims=True) - targets
    slope = slope * (share / share.sum())[:, None]
    return losses, {"head.weight": slope.T @ inputs, "head.bias": slope.sum(axis=0)}
