"""What each MIL operation computes, in torch on the CPU: the ones that the model families need, no others.

Every function takes the operation's own argument names, so that an unknown argument cannot pass unseen, and raises
`UnsupportedOperation` for a mode that it does not know. Integers are int64 throughout; rounding floats to the
declared dtype is the evaluator's work.
Source of the definitions: the operation reference of coremltools (`converters/mil/mil/ops/defs`, iOS 15 to 17).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from config.errors import UnsupportedOperation
from infer.runtimes.mil.spatial import avg_pool, conv, max_pool, pad

Value: TypeAlias = Tensor | str | tuple[str, ...]
Result: TypeAlias = Value | Sequence[Tensor] | tuple[str, dict[str, float]]

_FLOATS = ("fp16", "fp32", "fp64")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")


def _ints(value: Tensor) -> list[int]:
    return [int(n) for n in value.reshape(-1).tolist()]


def _add(*, x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _sub(*, x: Tensor, y: Tensor) -> Tensor:
    return x - y


def _mul(*, x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _real_div(*, x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="floor")


def _equal(*, x: Tensor, y: Tensor) -> Tensor:
    return x == y


def _select(*, cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


def _pow(*, x: Tensor, y: Tensor) -> Tensor:
    return x**y


def _square(*, x: Tensor) -> Tensor:
    return x * x


def _sqrt(*, x: Tensor) -> Tensor:
    return torch.sqrt(x)


def _rsqrt(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.rsqrt(x + (1e-12 if epsilon is None else epsilon))


def _inverse(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return 1 / (x + (1e-4 if epsilon is None else epsilon))


def _abs(*, x: Tensor) -> Tensor:
    return x.abs()


def _clip(*, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x.clamp(alpha, beta)


def _maximum(*, x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def _relu(*, x: Tensor) -> Tensor:
    return F.relu(x)


def _tanh(*, x: Tensor) -> Tensor:
    return torch.tanh(x)


def _sigmoid(*, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def _sigmoid_hard(*, x: Tensor, alpha: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
    slope, middle = 0.2 if alpha is None else alpha, 0.5 if beta is None else beta
    return (slope * x + middle).clamp(0, 1)


def _thresholded_relu(*, x: Tensor, alpha: Tensor | None = None) -> Tensor:
    return torch.where(x >= (1.0 if alpha is None else alpha), x, 0.0)


def _silu(*, x: Tensor) -> Tensor:
    return F.silu(x)


def _gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise UnsupportedOperation(f"gelu with mode {mode!r}")


def _softmax(*, x: Tensor, axis: Tensor | None = None) -> Tensor:
    return torch.softmax(x, -1 if axis is None else int(axis))


def _cast(*, x: Tensor, dtype: str) -> Tensor:
    if dtype in _FLOATS:
        return x if x.is_floating_point() else x.double()
    if dtype in _INTEGERS:
        return x.long()
    if dtype == "bool":
        return x.bool()
    raise UnsupportedOperation(f"cast to {dtype!r}")


def _linear(*, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight, bias)


def _matmul(*, x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None) -> Tensor:
    left = x.mT if transpose_x is not None and bool(transpose_x) else x
    right = y.mT if transpose_y is not None and bool(transpose_y) else y
    return left @ right


def _attention(*, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _layer_norm(
    *,
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    dims = sorted(n % x.ndim for n in (range(x.ndim) if axes is None else _ints(axes)))
    if dims != list(range(x.ndim - len(dims), x.ndim)):
        raise UnsupportedOperation(f"layer_norm over axes {dims} of {x.ndim}, only the last ones are known")
    return F.layer_norm(x, x.shape[dims[0] :], gamma, beta, 1e-5 if epsilon is None else float(epsilon))


def _batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, 1e-5 if epsilon is None else float(epsilon))


def _exp(*, x: Tensor) -> Tensor:
    return torch.exp(x)


def _floor(*, x: Tensor) -> Tensor:
    return torch.floor(x)


def _log(*, x: Tensor, epsilon: Tensor | None = None) -> Tensor:
    return torch.log(x + (1e-45 if epsilon is None else epsilon))


def _reduce_max(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    dims = list(range(x.ndim)) if axes is None else _ints(axes)
    return x.amax(dims, keepdim=keep_dims is not None and bool(keep_dims))


def _reduce_sum(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    dims = list(range(x.ndim)) if axes is None else _ints(axes)
    return x.sum(dims, keepdim=keep_dims is not None and bool(keep_dims))


def _reduce_mean(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    dims = list(range(x.ndim)) if axes is None else _ints(axes)
    return x.mean(dims, keepdim=keep_dims is not None and bool(keep_dims))


def _reduce_l2_norm(*, x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    dims = list(range(x.ndim)) if axes is None else _ints(axes)
    return torch.linalg.vector_norm(x, dim=dims, keepdim=keep_dims is not None and bool(keep_dims))


def _reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    wanted = _ints(shape)
    if 0 in wanted:
        raise UnsupportedOperation(f"reshape to {wanted}: a size of 0 (copy a dimension)")
    return x.reshape(wanted)


def _reverse(*, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(list(range(x.ndim)) if axes is None else _ints(axes))


def _transpose(*, x: Tensor, perm: Tensor) -> Tensor:
    return x.permute(_ints(perm))


def _squeeze(*, x: Tensor, axes: Tensor) -> Tensor:
    return x.squeeze(tuple(_ints(axes)))


def _expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(n % rank for n in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _concat(*, values: Sequence[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    if interleave is not None and bool(interleave):
        raise UnsupportedOperation("concat with interleave")
    return torch.cat([torch.atleast_1d(v) for v in values], int(axis))


def _stack(*, values: Sequence[Tensor], axis: Tensor) -> Tensor:
    return torch.stack(list(values), int(axis))


def _split(*, x: Tensor, axis: Tensor, split_sizes: Tensor | None = None, num_splits: Tensor | None = None) -> Result:
    if split_sizes is not None:
        return x.split(_ints(split_sizes), int(axis))
    if num_splits is None or x.shape[int(axis)] % int(num_splits):
        raise UnsupportedOperation("split into uneven parts without split_sizes")
    return x.split(x.shape[int(axis)] // int(num_splits), int(axis))


def _tile(*, x: Tensor, reps: Tensor) -> Tensor:
    return x.tile(_ints(reps))


def _shape(*, x: Tensor) -> Tensor:
    return torch.tensor(x.shape)


def _gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | None = None,
    batch_dims: Tensor | None = None,
    validate_indices: Tensor | None = None,  # noqa: ARG001  # indices are always validated here
) -> Tensor:
    if batch_dims is not None and int(batch_dims) != 0:
        raise UnsupportedOperation(f"gather with batch_dims {int(batch_dims)}")
    dim = 0 if axis is None else int(axis) % x.ndim
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= x.shape[dim]):
        raise UnsupportedOperation(f"gather with indices outside [0, {x.shape[dim]}), undefined since iOS 17")
    picked = x.index_select(dim, indices.reshape(-1))
    return picked.reshape([*x.shape[:dim], *indices.shape, *x.shape[dim + 1 :]])


def _slice_by_index(
    *,
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    starts, ends = _ints(begin), _ints(end)
    steps = [1] * x.ndim if stride is None else _ints(stride)
    if min(steps) < 1:
        raise UnsupportedOperation(f"slice_by_index with stride {steps}")
    open_start, open_end, single = (
        [False] * x.ndim if m is None else m.bool().tolist() for m in (begin_mask, end_mask, squeeze_mask)
    )
    index: list[int | slice] = []
    for axis in range(x.ndim):
        start = 0 if open_start[axis] else starts[axis]
        if single[axis]:
            index.append(start)
        else:
            index.append(slice(start, None if open_end[axis] else ends[axis], steps[axis]))
    return x[tuple(index)]


def _classify(*, probabilities: Tensor, classes: tuple[str, ...]) -> Result:
    values = probabilities.reshape(-1).tolist()
    if len(values) != len(classes):
        raise UnsupportedOperation(f"classify of {len(values)} probabilities into {len(classes)} classes")
    best = max(range(len(values)), key=lambda k: values[k] if not math.isnan(values[k]) else -math.inf)
    return classes[best], dict(zip(classes, values, strict=True))


OPERATIONS: dict[str, Callable[..., Result]] = {
    "abs": _abs,
    "add": _add,
    "avg_pool": avg_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "classify": _classify,
    "clip": _clip,
    "concat": _concat,
    "conv": conv,
    "equal": _equal,
    "exp": _exp,
    "expand_dims": _expand_dims,
    "floor": _floor,
    "gather": _gather,
    "gelu": _gelu,
    "inverse": _inverse,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "log": _log,
    "matmul": _matmul,
    "max_pool": max_pool,
    "maximum": _maximum,
    "mul": _mul,
    "pad": pad,
    "pow": _pow,
    "real_div": _real_div,
    "reduce_l2_norm": _reduce_l2_norm,
    "reduce_max": _reduce_max,
    "reduce_mean": _reduce_mean,
    "reduce_sum": _reduce_sum,
    "relu": _relu,
    "reshape": _reshape,
    "reverse": _reverse,
    "rsqrt": _rsqrt,
    "scaled_dot_product_attention": _attention,
    "select": _select,
    "shape": _shape,
    "sigmoid": _sigmoid,
    "sigmoid_hard": _sigmoid_hard,
    "silu": _silu,
    "slice_by_index": _slice_by_index,
    "softmax": _softmax,
    "split": _split,
    "squeeze": _squeeze,
    "sqrt": _sqrt,
    "square": _square,
    "stack": _stack,
    "sub": _sub,
    "tanh": _tanh,
    "thresholded_relu": _thresholded_relu,
    "tile": _tile,
    "transpose": _transpose,
}
