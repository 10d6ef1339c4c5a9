"""The MIL operations in torch on the CPU: those that the model families need, no others.

Every function takes the operation's own argument names, so that an unknown argument is refused; their defaults
are those of MIL. `UnsupportedOperation` is raised for a mode that is not known. Integers are int64 throughout; rounding
floats to the declared dtype is the evaluator's work.
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
from infer.runtimes.mil.spatial import avg_pool, conv, integers, max_pool, pad

Value: TypeAlias = Tensor | str | tuple[str, ...]
Result: TypeAlias = Value | Sequence[Tensor] | tuple[str, dict[str, float]]

_FLOATS = ("fp16", "fp32", "fp64")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "int64")


def _dims(x: Tensor, axes: Tensor | None) -> list[int]:
    return list(range(x.ndim)) if axes is None else integers(axes)


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operation that applies torch's `function` over some axes, or over all of them."""
    return lambda *, x, axes=None, keep_dims=False: function(x, dim=_dims(x, axes), keepdim=bool(keep_dims))


def _gelu(*, x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise UnsupportedOperation(f"gelu with mode {mode!r}")


def _cast(*, x: Tensor, dtype: str) -> Tensor:
    if dtype in _FLOATS:
        return x if x.is_floating_point() else x.double()
    if dtype in _INTEGERS:
        return x.long()
    if dtype == "bool":
        return x.bool()
    raise UnsupportedOperation(f"cast to {dtype!r}")


def _matmul(*, x: Tensor, y: Tensor, transpose_x: Tensor | bool = False, transpose_y: Tensor | bool = False) -> Tensor:
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def _layer_norm(
    *,
    x: Tensor,
    axes: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    dims = sorted(n % x.ndim for n in _dims(x, axes))
    if dims != list(range(x.ndim - len(dims), x.ndim)):
        raise UnsupportedOperation(f"layer_norm over axes {dims} of {x.ndim}, only the last ones are known")
    return F.layer_norm(x, x.shape[dims[0] :], gamma, beta, float(epsilon))


def _batch_norm(
    *,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | float = 1e-5,
) -> Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, float(epsilon))


def _reshape(*, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape)
    if 0 in sizes:
        raise UnsupportedOperation(f"reshape to {sizes}: a size of 0 (copy a dimension)")
    return x.reshape(sizes)


def _expand_dims(*, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(n % rank for n in integers(axes)):
        x = x.unsqueeze(axis)
    return x


def _concat(*, values: Sequence[Tensor], axis: Tensor, interleave: Tensor | bool = False) -> Tensor:
    if interleave:
        raise UnsupportedOperation("concat with interleave")
    return torch.cat([torch.atleast_1d(v) for v in values], int(axis))


def _split(*, x: Tensor, axis: Tensor, split_sizes: Tensor | None = None, num_splits: Tensor | None = None) -> Result:
    if split_sizes is not None:
        return x.split(integers(split_sizes), int(axis))
    if num_splits is None or x.shape[int(axis)] % int(num_splits):
        raise UnsupportedOperation("split into uneven parts without split_sizes")
    return x.split(x.shape[int(axis)] // int(num_splits), int(axis))


def _gather(
    *,
    x: Tensor,
    indices: Tensor,
    axis: Tensor | int = 0,
    batch_dims: Tensor | int = 0,
    validate_indices: Tensor | None = None,  # noqa: ARG001  # indices are always validated here
) -> Tensor:
    if batch_dims != 0:
        raise UnsupportedOperation(f"gather with batch_dims {int(batch_dims)}")
    dim = int(axis) % x.ndim
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
    starts, ends = integers(begin), integers(end)
    steps = [1] * x.ndim if stride is None else integers(stride)
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
    "abs": lambda *, x: x.abs(),
    "add": lambda *, x, y: x + y,
    "avg_pool": avg_pool,
    "batch_norm": _batch_norm,
    "cast": _cast,
    "classify": _classify,
    "clip": lambda *, x, alpha, beta: x.clamp(alpha, beta),
    "concat": _concat,
    "conv": conv,
    "equal": lambda *, x, y: x == y,
    "exp": lambda *, x: torch.exp(x),
    "expand_dims": _expand_dims,
    "floor": lambda *, x: torch.floor(x),
    "gather": _gather,
    "gelu": _gelu,
    "inverse": lambda *, x, epsilon=1e-4: 1 / (x + epsilon),
    "layer_norm": _layer_norm,
    "linear": lambda *, x, weight, bias=None: F.linear(x, weight, bias),
    "log": lambda *, x, epsilon=1e-45: torch.log(x + epsilon),
    "matmul": _matmul,
    "max_pool": max_pool,
    "maximum": lambda *, x, y: torch.maximum(x, y),
    "mul": lambda *, x, y: x * y,
    "pad": pad,
    "pow": lambda *, x, y: x**y,
    "real_div": lambda *, x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="floor"),
    "reduce_l2_norm": _reduction(torch.linalg.vector_norm),
    "reduce_max": _reduction(torch.amax),
    "reduce_mean": _reduction(torch.mean),
    "reduce_sum": _reduction(torch.sum),
    "relu": lambda *, x: F.relu(x),
    "reshape": _reshape,
    "reverse": lambda *, x, axes=None: x.flip(_dims(x, axes)),
    "rsqrt": lambda *, x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "scaled_dot_product_attention": lambda *, query, key, value, attn_mask=None: F.scaled_dot_product_attention(
        query, key, value, attn_mask
    ),
    "select": lambda *, cond, a, b: torch.where(cond, a, b),
    "shape": lambda *, x: torch.tensor(x.shape),
    "sigmoid": lambda *, x: torch.sigmoid(x),
    "sigmoid_hard": lambda *, x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "silu": lambda *, x: F.silu(x),
    "slice_by_index": _slice_by_index,
    "softmax": lambda *, x, axis=-1: torch.softmax(x, int(axis)),
    "split": _split,
    "sqrt": lambda *, x: torch.sqrt(x),
    "square": lambda *, x: x * x,
    "squeeze": lambda *, x, axes: x.squeeze(tuple(integers(axes))),
    "stack": lambda *, values, axis: torch.stack(list(values), int(axis)),
    "sub": lambda *, x, y: x - y,
    "tanh": lambda *, x: torch.tanh(x),
    "thresholded_relu": lambda *, x, alpha=1.0: torch.where(x >= alpha, x, 0.0),
    "tile": lambda *, x, reps: x.tile(integers(reps)),
    "transpose": lambda *, x, perm: x.permute(integers(perm)),
}
