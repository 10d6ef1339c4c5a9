"""Attention windows, for Swin, SwinV2 and MaxViT: cutting `[N, H, W, C]` apart, offsets within, attention, joining."""

from __future__ import annotations

import functools
from typing import cast

import mlx.core as mx
import numpy as np

from ports.common.gradients import with_vjp
from ports.common.rows import over_rows


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
    return mx.array(_relative_index(window))


def _relative_index(window: int) -> np.ndarray:
    y, x = np.divmod(np.arange(window * window), window)
    offset_y, offset_x = (a[:, None] - a[None, :] + window - 1 for a in (y, x))
    return (offset_y * (2 * window - 1) + offset_x).reshape(-1).astype(np.int32)


@functools.cache
def _pairs_of_offsets(window: int) -> tuple[np.ndarray, np.ndarray]:
    """The places of each offset in `relative_index`, int32 `[(2 * window - 1)**2, window**2]`, filled up with zeros;
    and bool of that shape, where there is one."""
    index = _relative_index(window)
    there = np.arange(window * window) < np.bincount(index)[:, None]
    pairs = np.zeros(there.shape, np.int32)
    pairs[there] = np.argsort(index, kind="stable")
    return pairs, there


def take_offsets(table: mx.array, index: mx.array, window: int) -> mx.array:
    """A table `[offsets, heads]` at `relative_index(window)`: of each pair of tokens, `[window**2, window**2, heads]`.

    MLX's gradient of a gather is a scatter-add, which on Metal is not the same twice; this one is a gather and
    a product.
    """

    @with_vjp(lambda table: table[index])
    def taken(_table: mx.array, g: mx.array, _: mx.array) -> mx.array:
        pairs, there = _pairs_of_offsets(window)
        ones = mx.array(there[:, None].astype(np.float32)).astype(g.dtype)
        return (ones @ g[mx.array(pairs)]).squeeze(1)

    return cast(mx.array, taken(table)).reshape(window**2, window**2, -1)


def split_window_qkv(qkv: mx.array, heads: int) -> tuple[mx.array, mx.array, mx.array]:
    """`[N, windows, L, 3 * C]` to three of `[N, windows, heads, L, d]`."""
    # Split before it is transposed, so that its gradient is put together in one copy.
    thirds = mx.split(qkv.reshape(*qkv.shape[:3], 3, heads, -1), 3, axis=3)
    q, k, v = (third.squeeze(3).transpose(0, 1, 3, 2, 4) for third in thirds)
    return q, k, v


def window_attention(scores: mx.array, v: mx.array, bias: mx.array, mask: mx.array | None) -> mx.array:
    """softmax(scores + bias + mask) v for scores `[N, windows, heads, L, L]`; heads joined: `[N, windows, L, C]`.

    Bias `[heads, L, L]` and mask `[windows, 1, L, L]` are broadcast, never repeated over the batch.
    """
    scores = scores + over_rows(bias.astype(scores.dtype), scores.shape)
    scores = scores if mask is None else scores + mask.astype(scores.dtype)
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = (weights.astype(v.dtype) @ v).transpose(0, 1, 3, 2, 4)
    return out.reshape(*out.shape[:3], -1)
