"""The MIL operations with windows and borders: convolution, pooling, padding. Two spatial dimensions, NCHW.

MIL orders padding as (top, bottom, left, right). Source: coremltools `ops/defs/iOS15/{conv,pool,tensor_operation}.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from config.errors import UnsupportedOperation


def conv(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Convolution of `[N, C, H, W]` with OIHW weights."""
    if x.ndim != 4:
        raise UnsupportedOperation(f"conv over {x.ndim - 2} spatial dimensions, 2 are known")
    step, spread = _pair(strides), _pair(dilations)
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    border = _border(pad_type, pad, x, spans, step)
    return F.conv2d(_padded(x, border, 0.0), weight, bias, step, 0, spread, 1 if groups is None else int(groups))


def max_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str,
    pad: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Maximum over windows; the border never wins."""
    kernel, border = _pair(kernel_sizes), _pool_border(pad_type, pad)
    up = ceil_mode is not None and bool(ceil_mode)
    if up and any(border):
        raise UnsupportedOperation(f"max_pool with ceil_mode and padding {border}")
    return F.max_pool2d(_padded(x, border, -float("inf")), kernel, _pair(strides), ceil_mode=up)


def avg_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | None = None,
    ceil_mode: Tensor | None = None,
) -> Tensor:
    """Mean over windows, the border counted as zeros unless `exclude_padding_from_average`."""
    kernel, (top, bottom, left, right) = _pair(kernel_sizes), _pool_border(pad_type, pad)
    if (top, left) != (bottom, right):
        raise UnsupportedOperation(f"avg_pool with unequal padding {[top, bottom, left, right]}")
    own_only = exclude_padding_from_average is not None and bool(exclude_padding_from_average)
    up = ceil_mode is not None and bool(ceil_mode)
    return F.avg_pool2d(x, kernel, _pair(strides), (top, left), ceil_mode=up, count_include_pad=not own_only)


def pad(*, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """Padding of the last dimensions, (before, after) of each in order."""
    if mode != "constant":
        raise UnsupportedOperation(f"pad with mode {mode!r}")
    pairs = pad.reshape(-1, 2).tolist()
    value = 0.0 if constant_val is None else float(constant_val)
    return F.pad(x, [int(n) for pair in reversed(pairs) for n in pair], value=value)


def _pair(value: Tensor | None) -> tuple[int, int]:
    if value is None:
        return (1, 1)
    if value.numel() != 2:
        raise UnsupportedOperation(f"a window over {value.numel()} spatial dimensions, 2 are known")
    first, second = value.reshape(-1).tolist()
    return int(first), int(second)


def _border(
    pad_type: str, pad: Tensor | None, x: Tensor, spans: list[int], step: tuple[int, int]
) -> tuple[int, int, int, int]:
    if pad_type not in ("same", "same_lower"):
        return _pool_border(pad_type, pad)
    sides: list[int] = []
    for length, span, stride in zip(x.shape[2:], spans, step, strict=True):
        total = max((-(-length // stride) - 1) * stride + span - length, 0)
        small = total // 2
        sides += [small, total - small] if pad_type == "same" else [total - small, small]
    top, bottom, left, right = sides
    return top, bottom, left, right


def _pool_border(pad_type: str, pad: Tensor | None) -> tuple[int, int, int, int]:
    if pad_type == "valid":
        return (0, 0, 0, 0)
    if pad_type != "custom" or pad is None:
        raise UnsupportedOperation(f"padding of type {pad_type!r}")
    top, bottom, left, right = (int(n) for n in pad.reshape(-1).tolist())
    return top, bottom, left, right


def _padded(x: Tensor, border: tuple[int, int, int, int], value: float) -> Tensor:
    top, bottom, left, right = border
    return F.pad(x, [left, right, top, bottom], value=value) if any(border) else x
