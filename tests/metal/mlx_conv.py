"""Which kernel Metal takes for a convolution: `dispatch_conv_2D_gpu` of MLX 0.32.2's `mlx/backend/metal/conv.cpp`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from tests.metal.mlx_graph import Graph, Operation

Path = Literal["depthwise", "winograd", "implicit", "padded", "general", "unfold", "grouped unfold"]


class Convolution(NamedTuple):
    """Shapes NHWC of input and output, OHWI of the weights, and the arguments of MLX's primitive."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    out: tuple[int, ...]
    stride: list[int]
    low: list[int]
    high: list[int]
    dilation: list[int]
    input_dilation: list[int]
    groups: int
    flip: bool


def convolution(graph: Graph, operation: Operation) -> Convolution:
    """The convolution that an operation of this name is."""
    x, w, out = (graph.arrays[name][0] for name in (*operation.inputs, *operation.outputs))
    return Convolution(x, w, out, *operation.arguments)


def path(conv: Convolution, winograd: bool) -> Path:
    """The kernel; `winograd` False where `MLX_CONV_WINOGRAD` switches that one off. Memory is taken to be enough."""
    channels, outputs = conv.x[-1] // conv.groups, conv.w[0] // conv.groups
    taps, one_stride = conv.w[1] * conv.w[2], set(conv.stride) == {1}
    undilated, dense = set(conv.dilation) == {1}, set(conv.input_dilation) == {1}
    aligned_out = outputs <= 16 or outputs % 16 == 0
    aligned = (channels <= 4 or channels % 16 == 0) and aligned_out
    if conv.groups > 1:
        return _grouped(conv, channels == outputs == 1, aligned)
    large = conv.x[-1] + conv.w[0] >= 256 and conv.x[0] * conv.x[1] * conv.x[2] >= 4096
    by_32 = conv.x[-1] % 32 == conv.w[0] % 32 == 0
    three = conv.w[1] == conv.w[2] == 3
    if winograd and not conv.flip and one_stride and undilated and dense and three and by_32 and large:
        return "winograd"
    many = math.prod(conv.out[:3]) >= 256
    if dense and one_stride and many and not aligned and aligned_out and taps >= 9:
        return "padded"
    if dense and aligned:
        return "implicit"
    return "general" if many or conv.x[-1] % 16 == conv.w[0] % 16 == 0 else "unfold"


def _grouped(conv: Convolution, single: bool, aligned: bool) -> Path:
    if set(conv.input_dilation) != {1}:
        return "grouped unfold"
    small = max(conv.w[1:3]) <= 7 and max(conv.stride) <= 2 and set(conv.dilation) == {1}
    if single and small and conv.x[-1] % 16 == 0:
        return "depthwise"
    return "implicit" if aligned else "grouped unfold"


def unfolds(conv: Convolution) -> bool:
    """Whether Metal writes the k x k neighbours of every pixel to memory first."""
    return path(conv, winograd=False) in ("unfold", "grouped unfold")
