"""What Metal refuses, computes wrongly or computes slowly, as rules about a traced graph.

They were read at `VERSION`; for another version of MLX read `SOURCES` again, then set it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx

from tests.metal import mlx_conv, mlx_graph
from tests.metal.mlx_graph import Graph, Operation

VERSION = "0.32.4"
SOURCES = {
    "no_kernel": "mlx/backend/metal/primitives.cpp: which `eval_gpu` throw",
    "float64": "mlx/backend/metal/utils.cpp: dtypes without a kernel",
    "index_arrays": "mlx/backend/metal/indexing.cpp: METAL_MAX_INDEX_ARRAYS",
    "buffers": "mlx/backend/metal/compiled.cpp: the limit of `cnt`",
    "attention": "mlx/backend/metal/scaled_dot_product_attention.cpp: which kernels give a log-sum-exp; mlx/fast.cpp",
    "winograd": "mlx/backend/metal/conv.cpp: dispatch_conv_2D_gpu, and the names of its environment variables",
    "unfold": "mlx/backend/metal/conv.cpp: dispatch_conv_2D_gpu, groups; mlx/primitives.cpp: Convolution::vjp",
    "pointwise": "mlx/backend/metal/conv.cpp: whether a 1x1 convolution has become a matrix product",
    "half_sums": "mlx/backend/metal/reduce.cpp, kernels/reduction/*.h: the accumulator's type, in how many parts a "
    "column is summed; normalization.cpp: gw_temp, its dtype and rows; kernels/defines.h: RMS_LOOPED_LIMIT",
    "scatter": "mlx/primitives.cpp: the gradients of Gather and of reductions; kernels/indexing/scatter.h: atomics",
}
_NO_KERNEL = frozenset(["QRF", "SVD", "Inverse", "Cholesky", "Eig", "Eigh", "LUF", "Load"])
_INDEX_ARRAYS, _BUFFERS, _ROWS = 20, 31, 4096
_SPLIT_ROWS, _RMS_WIDTH = 1024 * 256, 4096  # a bf16 sum of equal terms stops growing at 256
_VECTOR_HEADS, _VECTOR_QUERIES = (64, 96, 128, 192, 256, 512), 8
_SUM, _MEAN_OF_AXIS = 2, 0  # of Reduce and Scatter; of ScatterAxis
_HALF = (mx.bfloat16, mx.float16)


@dataclass
class Trace:
    """A traced function: its graph before fusion, whether gradients are taken in it, and its fused attention, as
    (queries, head size)."""

    graph: Graph
    training: bool
    attention: list[tuple[int, int]] = field(default_factory=list)

    @cached_property
    def fused(self) -> Graph:
        """The graph after `mx.compile`."""
        return mlx_graph.fused(self.graph)

    def named(self, *names: str) -> Iterator[Operation]:
        """The operations of these names."""
        return (op for op in self.graph.operations if op.name in names)

    def half(self, name: str) -> bool:
        """Whether an array is of half precision."""
        return self.graph.arrays[name][1] in _HALF

    def convolutions(self) -> Iterator[tuple[mlx_conv.Convolution, bool]]:
        """Each 2-d convolution, and whether it is in half precision."""
        for op in self.named("Convolution"):
            yield mlx_conv.convolution(self.graph, op), self.half(op.inputs[0])


def no_kernel(trace: Trace) -> Iterator[str]:
    """Primitives that throw on the GPU."""
    return (op.name for op in trace.named(*_NO_KERNEL))


def float64(trace: Trace) -> Iterator[str]:
    """Arrays that Metal cannot hold."""
    return (str(shape) for shape, dtype in trace.graph.arrays.values() if dtype == mx.float64)


def index_arrays(trace: Trace) -> Iterator[str]:
    """Gathers and scatters with more index arrays than there are arguments."""
    for op in trace.named("Gather", "Scatter"):
        count = len(op.inputs) - (2 if op.name == "Scatter" else 1)
        if count > _INDEX_ARRAYS:
            yield f"{op.name} with {count}"


def buffers(trace: Trace) -> Iterator[str]:
    """Compiled kernels with more arguments than Metal binds: inputs but for scalar constants, which are part of the
    kernel's text, outputs, strides, shape and size."""
    arrays, constants = trace.fused.arrays, trace.fused.constants
    for op in trace.fused.operations:
        bound = [name for name in op.inputs if name not in constants or arrays[name][0]]
        count = len(bound) + len(op.outputs) + 3
        if op.name == "Compiled" and count > _BUFFERS:
            yield f"{count} of {'+'.join(part.name for part in op.parts)}"


def attention(trace: Trace) -> Iterator[str]:
    """Attention whose kernel gives no log-sum-exp to the gradient."""
    for queries, head in trace.attention if trace.training else ():
        if queries <= _VECTOR_QUERIES and head in _VECTOR_HEADS:
            yield f"{queries} queries, head size {head}"


def winograd(trace: Trace) -> Iterator[str]:
    """3x3 convolutions whose transforms lose digits in half precision, unless they are switched off."""
    on = os.environ.get("MLX_CONV_WINOGRAD") != "0"
    for conv, half in trace.convolutions():
        if half and mlx_conv.path(conv, on) == "winograd":
            yield f"{conv.x} by {conv.w}"


def unfold(trace: Trace) -> Iterator[str]:
    """Grouped convolutions that first write the k x k neighbours of each pixel."""
    for conv, _ in trace.convolutions():
        if mlx_conv.path(conv, winograd=True) == "grouped unfold":
            yield f"{conv.x} by {conv.w}, groups {conv.groups}, stride {conv.stride}, dilated {conv.input_dilation}"


def pointwise(trace: Trace) -> Iterator[str]:
    """1x1 convolutions of stride 1 that a matrix product computes faster."""
    for conv, _ in trace.convolutions():
        plain = {*conv.stride, *conv.input_dilation, conv.w[1], conv.w[2], conv.groups} == {1}
        if plain and not any((*conv.low, *conv.high)):
            yield f"{conv.x} by {conv.w}"


def half_sums(trace: Trace) -> Iterator[str]:
    """Sums in half precision over more rows than its eight digits bear; one after another, each for itself."""
    for op in trace.named("Reduce"):
        before, after = (trace.graph.size(name) for name in (*op.inputs, *op.outputs))
        if op.arguments[0] == _SUM and trace.half(op.inputs[0]) and before > _ROWS * after:
            yield f"{trace.graph.arrays[op.inputs[0]][0]} over {op.arguments[1]}"
    for op in trace.named("Depends"):
        yield from _norm_sums(trace, op)


def _norm_sums(trace: Trace, op: Operation) -> Iterator[str]:
    """The same in `mx.fast`'s norms. The gradient of RMSNorm's weight is one of 512 sums in fp32, up to a width;
    LayerNorm's is allowed as many rows as a sum that is split in 1024 bears, since all else moves more bytes."""
    kind, (shape, _) = mlx_graph.norm_kind(trace.graph, op), trace.graph.arrays[op.outputs[0]]
    if not kind.endswith("VJP") or len(op.outputs) == 1 or not trace.half(op.outputs[0]):
        return
    rows = math.prod(shape[:-1])
    if kind == "LayerNormVJP" and len(op.outputs) > 2 and rows > _ROWS:
        yield f"{kind} {shape}: the bias"
    if rows > _SPLIT_ROWS and (kind == "LayerNormVJP" or shape[-1] > _RMS_WIDTH):
        yield f"{kind} {shape}: the weight"


def scatter(trace: Trace) -> Iterator[str]:
    """Sums whose order, and so whose last digits, differ from one run to the next."""
    for op in trace.named("Scatter", "ScatterAxis"):
        if op.arguments[0] == (_SUM if op.name == "Scatter" else _MEAN_OF_AXIS):
            yield f"{op.name} into {trace.graph.arrays[op.outputs[0]][0]}"


RULES: dict[str, Callable[[Trace], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        no_kernel,
        float64,
        index_arrays,
        buffers,
        attention,
        winograd,
        unfold,
        pointwise,
        half_sums,
        scatter,
    )
}


def faults(trace: Trace, leave: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """What breaks the rules, by rule, but for those to `leave` out."""
    found = {name: sorted(set(rule(trace))) for name, rule in RULES.items() if name not in leave}
    return {name: lines for name, lines in found.items() if lines}
