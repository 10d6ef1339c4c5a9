"""Parameters spread over the rows of activations, with gradients that Metal computes well. Convolutions are elsewhere.

In half precision Metal adds up rows in that precision, which leaves 1 to 3% of noise in a sum of 50,000; a matrix
product accumulates in fp32. `mx.fast`'s norms keep MLX's own sums: they are part of its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import mlx.core as mx

from ports.gradients import with_vjp

_HALF = (mx.float16, mx.bfloat16)
_FEW_ROWS = 4096


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
