"""The MIL operations with windows and borders: convolution, pooling, padding. NCHW; convolutions also take NCL.

MIL orders padding as (top, bottom, left, right). Source: coremltools `ops/defs/iOS15/{conv,pool,tensor_operation}.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from config.errors import UnsupportedOperation


def integers(value: Tensor) -> list[int]:
    """The elements of a tensor as Python integers, flat."""
    return [int(n) for n in value.reshape(-1).tolist()]


def conv(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | int = 1,
) -> Tensor:
    """Convolution of `[N, C, H, W]` with OIHW weights, or of `[N, C, L]` with OIL weights."""
    dims = x.ndim - 2
    if dims not in (1, 2):
        raise UnsupportedOperation(f"conv over {dims} spatial dimensions, 1 and 2 are known")
    step, spread = _window(strides, dims), _window(dilations, dims)
    spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], spread, strict=True)]
    border = _border(pad_type, pad, x, spans, step)
    convolve = F.conv1d if dims == 1 else F.conv2d
    return convolve(_padded(x, border, 0.0), weight, bias, step, 0, spread, int(groups))


def max_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str,
    pad: Tensor | None = None,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Maximum over windows; the border never wins."""
    kernel, border = _window(kernel_sizes, 2), _explicit_border(pad_type, pad, 2)
    if ceil_mode and any(border):
        raise UnsupportedOperation(f"max_pool with ceil_mode and padding {border}")
    return F.max_pool2d(_padded(x, border, -float("inf")), kernel, _window(strides, 2), ceil_mode=bool(ceil_mode))


def avg_pool(
    *,
    x: Tensor,
    kernel_sizes: Tensor,
    strides: Tensor | None = None,
    pad_type: str,
    pad: Tensor | None = None,
    exclude_padding_from_average: Tensor | bool = False,
    ceil_mode: Tensor | bool = False,
) -> Tensor:
    """Mean over windows, the border counted as zeros unless `exclude_padding_from_average`."""
    kernel, (top, bottom, left, right) = _window(kernel_sizes, 2), _explicit_border(pad_type, pad, 2)
    if (top, left) != (bottom, right):
        raise UnsupportedOperation(f"avg_pool with unequal padding {[top, bottom, left, right]}")
    count_pad = not exclude_padding_from_average
    return F.avg_pool2d(x, kernel, _window(strides, 2), (top, left), bool(ceil_mode), count_include_pad=count_pad)


def pad(*, x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0) -> Tensor:
    """Padding of the last dimensions, (before, after) of each in order, with a constant or with mirrored values."""
    pairs = [(int(before), int(after)) for before, after in pad.reshape(-1, 2).tolist()]
    while pairs and pairs[0] == (0, 0):  # torch mirrors the last dimensions only
        del pairs[0]
    sides = [n for pair in reversed(pairs) for n in pair]
    if mode == "constant":
        return F.pad(x, sides, value=float(constant_val))
    if mode == "reflect":
        return F.pad(x, sides, mode="reflect") if sides else x
    raise UnsupportedOperation(f"pad with mode {mode!r}")


def _window(value: Tensor | None, dims: int) -> list[int]:
    if value is None:
        return [1] * dims
    if value.numel() != dims:
        raise UnsupportedOperation(f"a window over {value.numel()} spatial dimensions, not {dims}")
    return integers(value)


def _border(pad_type: str, pad: Tensor | None, x: Tensor, spans: list[int], step: list[int]) -> list[int]:
    """(before, after) of each spatial dimension in order."""
    if pad_type not in ("same", "same_lower"):
        return _explicit_border(pad_type, pad, len(spans))
    sides: list[int] = []
    for length, span, stride in zip(x.shape[2:], spans, step, strict=True):
        total = max((-(-length // stride) - 1) * stride + span - length, 0)
        small = total // 2
        sides += [small, total - small] if pad_type == "same" else [total - small, small]
    return sides


def _explicit_border(pad_type: str, pad: Tensor | None, dims: int) -> list[int]:
    if pad_type == "valid":
        return [0] * (2 * dims)
    if pad_type != "custom" or pad is None or pad.numel() != 2 * dims:
        raise UnsupportedOperation(f"padding of type {pad_type!r} over {dims} dimensions")
    return integers(pad)


def _padded(x: Tensor, border: list[int], value: float) -> Tensor:
    pairs = zip(border[::2], border[1::2], strict=True)
    return F.pad(x, [n for pair in reversed(list(pairs)) for n in pair], value=value) if any(border) else x
