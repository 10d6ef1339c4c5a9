"""Attention windows, for Swin, SwinV2 and MaxViT: cutting `[N, H, W, C]` apart, offsets within, attention, joining."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def partition(x: mx.array, window: int) -> mx.array:
    """`[N, H, W, C]` to `[N, windows, window**2, C]`; zeros are added below and right to whole windows."""
    n, h, w, c = x.shape
    x = mx.pad(x, [(0, 0), (0, -h % window), (0, -w % window), (0, 0)])
    rows, columns = x.shape[1] // window, x.shape[2] // window
    x = x.reshape(n, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, rows * columns, window * window, c)


def merge(x: mx.array, window: int, height: int, width: int) -> mx.array:
    """The inverse of `partition`, with what was padded cut off."""
    rows, columns = -(-height // window), -(-width // window)
    x = x.reshape(x.shape[0], rows, columns, window, window, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], rows * window, columns * window, -1)[:, :height, :width]


def relative_index(window: int) -> mx.array:
    """For each pair of tokens in a window, the row of its offset in the bias table; int32 `[window**4]`."""
    y, x = np.divmod(np.arange(window * window), window)
    offset_y, offset_x = (a[:, None] - a[None, :] + window - 1 for a in (y, x))
    return mx.array((offset_y * (2 * window - 1) + offset_x).reshape(-1).astype(np.int32))


def split_window_qkv(qkv: mx.array, heads: int) -> tuple[mx.array, mx.array, mx.array]:
    """`[N, windows, L, 3 * C]` to three of `[N, windows, heads, L, d]`."""
    # Split before it is transposed, so that its gradient is put together in one copy.
    parts = mx.split(qkv.reshape(*qkv.shape[:3], 3, heads, -1), 3, axis=3)
    q, k, v = (part.squeeze(3).transpose(0, 1, 3, 2, 4) for part in parts)
    return q, k, v


def window_attention(scores: mx.array, v: mx.array, bias: mx.array, mask: mx.array | None) -> mx.array:
    """softmax(scores + bias + mask) v for scores `[N, windows, heads, L, L]`; heads joined: `[N, windows, L, C]`.

    Bias `[heads, L, L]` and mask `[windows, 1, L, L]` are broadcast, never repeated over the batch.
    """
    offsets = bias if mask is None else bias + mask
    weights = mx.softmax(scores + offsets.astype(scores.dtype), axis=-1, precise=True)
    out = (weights.astype(v.dtype) @ v).transpose(0, 1, 3, 2, 4)
    return out.reshape(*out.shape[:3], -1)
