"""Parameters spread over the rows of activations, norms, and means, so that Metal sums the rows well. Convolutions are
elsewhere.

In half precision Metal adds up rows in that precision, which leaves 1 to 3% of noise in a sum of 50,000. A matrix
product accumulates in fp32, and so does the gradient of the weight in `mx.fast.rms_norm`; in `mx.fast.layer_norm` those
of weight and bias do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import mlx.core as mx

from ports.common.gradients import with_vjp

_HALF = (mx.float16, mx.bfloat16)
_FEW_ROWS = 4096
# Metal adds up a column in 1024 parts, of which a part in bf16 stops growing after 256 terms of one size.
_MOST_ROWS = 1024 * 256


def over_rows(parameter: mx.array, shape: Sequence[int]) -> mx.array:
    """`parameter`, of the last axes of `shape`, as it is added to or multiplied with an activation of that shape.

    In half precision and over many rows it is repeated, without memory, and its gradient is a matrix product.
    """
    if parameter.dtype not in _HALF or math.prod(shape) <= _FEW_ROWS * parameter.size:
        return parameter

    @with_vjp(lambda parameter: mx.broadcast_to(parameter, shape))
    def spread(parameter: mx.array, g: mx.array, _: mx.array) -> mx.array:
        return _sum_of_rows(g, parameter.shape)

    return cast(mx.array, spread(parameter))


def over_pixels(gate: mx.array, shape: Sequence[int]) -> mx.array:
    """`gate` `[N, 1, 1, C]` as it is multiplied with an activation of `shape` `[N, H, W, C]`; as `over_rows`."""
    n, height, width, c = shape
    if gate.dtype not in _HALF or height * width <= _FEW_ROWS:
        return gate

    @with_vjp(lambda gate: mx.broadcast_to(gate, shape))
    def spread(gate: mx.array, g: mx.array, _: mx.array) -> mx.array:
        ones = mx.ones((2, height * width), g.dtype)
        return (ones @ g.reshape(n, height * width, c))[:, :1].reshape(gate.shape)

    return cast(mx.array, spread(gate))


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float) -> mx.array:
    """`mx.fast.layer_norm` over the last axis, `weight` and `bias` `[C]` in the dtype of `x`.

    In half precision and over many rows the bias's gradient is a matrix product. MLX's own of the weight is kept, as
    any other moves more bytes, but for so many rows that it would stop growing.
    """
    count = x.size // x.shape[-1]
    if x.dtype not in _HALF or count <= _FEW_ROWS or weight is None or bias is None:
        return mx.fast.layer_norm(x, weight, bias, eps)

    def plain(x: mx.array, weight: mx.array | None = None) -> mx.array:
        return mx.fast.layer_norm(x, weight, None, eps)

    @with_vjp(lambda x, weight, bias: mx.fast.layer_norm(x, weight, bias, eps))
    def norm(primals: Sequence[mx.array], g: mx.array, _: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        x, weight, bias = primals
        if count <= _MOST_ROWS:
            to_x, to_weight = mx.vjp(plain, [x, weight], [g])[1]
        else:
            x = mx.depends([x], [g])[0]  # not normalised again before its turn has come
            to_x, to_weight = mx.vjp(plain, [x], [g * weight])[1][0], _sum_of_rows(g * plain(x), weight.shape)
        return to_x, to_weight, _sum_of_rows(g, bias.shape)

    return cast(mx.array, norm(x, weight, bias))


def means(x: mx.array) -> mx.array:
    """Means over the rows of each image, `[N, ..., C]` to `[N, 1, ..., C]`; in half precision many in fp32."""
    count = math.prod(x.shape[1:-1])
    shape = (x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
    if x.dtype not in _HALF or count <= _FEW_ROWS:
        for axis in range(1, x.ndim - 1):  # one at a time: MLX adds naively on the CPU
            x = _divided(mx.sum(x, axis=axis, keepdims=True), x.shape[axis])
        return x

    @with_vjp(lambda x: (mx.ones((2, count), x.dtype) @ x.reshape(len(x), count, -1))[:, :1].reshape(shape))
    def total(x: mx.array, g: mx.array, _: mx.array) -> mx.array:
        return mx.broadcast_to(g, x.shape)

    return _divided(cast(mx.array, total(x)), count)


def _divided(total: mx.array, count: int) -> mx.array:
    # In fp32: bf16 has neither 1 / 7, which `mx.mean` multiplies with, nor 5,000.
    return (total.astype(mx.float32) / count).astype(total.dtype)


def _sum_of_rows(g: mx.array, shape: Sequence[int]) -> mx.array:
    """`g` `[..., *shape]` summed over its leading axes."""
    columns = math.prod(shape)
    rows = g.reshape(-1, columns)
    # Two rows of ones: with one Metal takes the kernel for vectors, whose threads each walk all rows.
    return (mx.ones((2, rows.shape[0]), g.dtype) @ rows)[:1].reshape(shape)


def affine(x: mx.array, weight: mx.array, bias: mx.array | None) -> mx.array:
    """x w^T + b of `x` `[..., C]`, `weight` `[O, C]` and `bias` `[O]`: `[..., O]`."""
    rows, shape = x.reshape(-1, x.shape[-1]), (x.size // x.shape[-1], weight.shape[0])
    y = rows @ weight.T if bias is None else mx.addmm(over_rows(bias, shape), rows, weight.T)
    return y.reshape(*x.shape[:-1], weight.shape[0])
