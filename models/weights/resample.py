"""Fits position weights to another image size, as timm does when it loads a checkpoint. NumPy only.

Position embeddings (ViT, EVA) are resized like pictures; relative-position bias tables (Swin, MaxViT, CoAtNet) are
read off a geometric grid, which keeps near offsets sharp. SwinV2 computes its biases, so its weights never change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from config.errors import WeightsError
from models.geometry import coatnet_grid, maxvit_window, patch_grid, position_prefix, swin_stages
from models.registry import ModelSpec

Array = NDArray[np.float32]
_TABLE = ".relative_position_bias_table"
# Saved by older timm versions, computed anew by every model since.
_DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "rope.pos_embed", "rope.bands")


def resample(weights: Mapping[str, Array], spec: ModelSpec) -> dict[str, Array]:
    """A copy of `weights` (timm's names) whose position weights have the shapes of `spec`'s image size.

    What already fits is passed on untouched; index tables and masks, which follow from the size, are left out as
    timm does. Raises `WeightsError` for a table that is no square grid.
    """
    fitted = {name: value for name, value in weights.items() if not name.endswith(_DERIVED)}
    if spec.family in ("vit", "eva") and "pos_embed" in fitted:
        fitted["pos_embed"] = _position_embedding(fitted["pos_embed"], patch_grid(spec), position_prefix(spec))
    if spec.family in ("swin", "maxvit"):
        for name in [n for n in fitted if n.endswith(_TABLE)]:
            fitted[name] = resize_bias_table(fitted[name], _window(name, spec), name)
    return fitted


def _window(name: str, spec: ModelSpec) -> int:
    if spec.family == "maxvit":
        hierarchical = re.match(r"stages\.(\d+)\.blocks\.\d+\.attn\.rel_pos\.", name)
        return coatnet_grid(spec, int(hierarchical[1])) if hierarchical else maxvit_window(spec)
    windowed = re.match(r"layers\.(\d+)\.", name)
    stages = swin_stages(spec)
    if windowed is None or int(windowed[1]) >= len(stages):
        raise WeightsError(f"weights: {name} belongs to no stage of {spec.name}; is it another architecture's file?")
    return stages[int(windowed[1])].window


def _position_embedding(table: Array, grid: int, prefix: int) -> Array:
    """`[1, prefix + old**2, C]` to `[1, prefix + grid**2, C]` (timm's `resample_abs_pos_embed`)."""
    old = math.isqrt(max(table.shape[1] - prefix, 0))
    if old * old != table.shape[1] - prefix:
        raise WeightsError(
            f"weights: pos_embed has {table.shape[1]} positions, not {prefix} tokens and a square grid; "
            "is it another architecture's file?"
        )
    if old == grid:
        return table
    square = table[0, prefix:].reshape(old, old, -1)
    patches = resize(square, grid, grid).reshape(1, grid * grid, -1)
    return np.concatenate([table[:, :prefix], patches], axis=1)


def resize(image: Array, height: int, width: int) -> Array:
    """Bicubic resize of `[H, W, C]` with antialiasing.

    Matches `torch.nn.functional.interpolate(mode="bicubic", antialias=True)` and Pillow's bicubic.
    """
    rows, columns = _cubic_matrix(image.shape[0], height), _cubic_matrix(image.shape[1], width)
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image, optimize=True).astype(np.float32)


def _cubic_matrix(old: int, new: int) -> NDArray[np.float64]:
    """The `[new, old]` weights of one axis; the kernel (a = -0.5) widens with the reduction, rows sum to one."""
    scale = old / new
    width = max(scale, 1.0)
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(int(centre - 2 * width + 0.5), 0), min(int(centre + 2 * width + 0.5), old)
        taps = np.arange(first, last)
        matrix[i, first:last] = _cubic((taps - centre + 0.5) / width)
    return matrix / matrix.sum(axis=1, keepdims=True)


def _cubic(x: NDArray[np.floating]) -> NDArray[np.floating]:
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def resize_bias_table(table: Array, window: int, name: str = "table") -> Array:
    """A relative-position bias table for another window (timm's `resize_rel_pos_bias_table`, from BEiT).

    `[(2w-1)**2, heads]` (Swin) or `[heads, 2w-1, 2w-1]` (MaxViT in TensorFlow's form), float32, to the same form.
    """
    flat, side = table.ndim == 2, 2 * window - 1
    old = math.isqrt(table.shape[0]) if flat else table.shape[1]
    if flat and old * old != table.shape[0]:
        raise WeightsError(f"weights: {name} has {table.shape[0]} offsets, which is no square window")
    if old == side:
        return table
    matrix = _geometric_matrix(old, side)
    square = table.reshape(old, old, -1) if flat else table.transpose(1, 2, 0)
    fitted = np.einsum("ih,jw,hwc->ijc", matrix, matrix, square, optimize=True).astype(np.float32)
    return fitted.reshape(side * side, -1) if flat else np.ascontiguousarray(fitted.transpose(2, 0, 1))


def _geometric_matrix(old: int, new: int) -> NDArray[np.float64]:
    """The `[new, old]` weights that interpolate linearly between old offsets placed in a geometric progression."""
    ratio, half = _ratio(old // 2, new // 2), old // 2
    steps = np.cumsum(ratio ** np.arange(half)) if half else np.zeros(0)
    places = np.concatenate([-steps[::-1], [0.0], steps]).astype(np.float32)
    wanted = np.arange(new, dtype=np.float32) - new // 2
    return np.stack([np.interp(wanted, places, row) for row in np.eye(old)], axis=1)


def _ratio(terms: int, reach: int) -> float:
    """The growth in [1.01, 1.5] for which `terms` steps reach `reach`, by bisection to 1e-6."""
    low, high = 1.01, 1.5
    middle = high
    while high - low > 1e-6:
        middle = (low + high) / 2
        if (1 - middle**terms) / (1 - middle) > reach:
            high = middle
        else:
            low = middle
    return middle
