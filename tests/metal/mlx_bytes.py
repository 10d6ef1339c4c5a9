"""The memory traffic of a graph's kernels on Metal: what each reads and writes, with the copies that its layout forces.

Views are free. A kernel reads each of its inputs once and writes its outputs once: caches, and what a matrix product
reads again, are not modelled, nor that MLX may write a result over an input. Which layouts are copied and which
convolutions unfold their input is MLX 0.32.4's (`mlx/backend/metal`: `conv.cpp`, `matmul.cpp`, `normalization.cpp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.lib.stride_tricks import as_strided

from tests.metal.mlx_conv import convolution, unfolds
from tests.metal.mlx_graph import Graph, Operation, norm_kind

_VIEWS: dict[str, Callable[[Any, Any], Any]] = {
    "Transpose": lambda x, given: x.transpose(given[0]),
    "Broadcast": lambda x, given: np.broadcast_to(x, given[0]),
    "ExpandDims": lambda x, given: np.expand_dims(x, tuple(given[0])),
    "Squeeze": lambda x, given: np.squeeze(x, tuple(given[0])),
    "Slice": lambda x, given: x[_slices(given, x.shape)],
    "AsStrided": lambda x, given: as_strided(x, tuple(given[0]), tuple(given[1])),
}
_SAME = ("Depends", "CustomTransforms", "Copy", "StopGradient")
_RESHAPES = ("Reshape", "Flatten", "Unflatten")
_PRODUCTS = ("Matmul", "AddMM")
_WHOLE = ("Softmax", "LogSumExp", "Scan", "Sort")
_KINDS = {
    "Compiled": "elementwise",
    "Convolution": "convolution",
    "Matmul": "matrix product",
    "AddMM": "matrix product",
    "Reduce": "reduction",
    "ArgReduce": "reduction",
    "Softmax": "softmax",
    "LogSumExp": "softmax",
    "Gather": "gather",
    "GatherAxis": "gather",
    "Scatter": "scatter",
    "ScatterAxis": "scatter",
}
RMS_GROUPS = 512  # of rows, each of which the gradient of RMSNorm sums in float32
_FILLS = ("Full", "Arange", "RandomBits", "Pad", "Concatenate", "SliceUpdate")


class Kernel(NamedTuple):
    """One kernel: its kind, the bytes that it reads and writes, and whether it makes float32 of a 16-bit activation."""

    kind: str
    bytes: int
    widens: bool = False


def kernels(graph: Graph, batch: int) -> list[Kernel]:
    """Every kernel of the graph; an activation is an array whose first axis, of four or three, is the `batch`."""
    return _Layouts(graph, batch).run()


class _Layouts:
    """Follows the memory layout of every array, as NumPy views of one byte that is never read."""

    def __init__(self, graph: Graph, batch: int):
        self.graph, self.batch = graph, batch
        self.layout: dict[str, Any] = {}
        self.found: list[Kernel] = []

    def run(self) -> list[Kernel]:
        for operation in self.graph.operations:
            self._take(operation)
        return self.found

    def _take(self, op: Operation) -> None:
        norm = norm_kind(self.graph, op)
        if norm:
            self._norm(op, norm)
        elif op.name in _VIEWS:
            self.layout[op.outputs[0]] = _VIEWS[op.name](self._of(op.inputs[0]), op.arguments)
        elif op.name in _SAME:
            for name, source in zip(op.outputs, op.inputs[-len(op.outputs) :], strict=False):
                self.layout[name] = self._of(op.inputs[0] if op.name == "Depends" else source)
        elif op.name == "Split":
            parts = np.split(self._of(op.inputs[0]), op.arguments[0], op.arguments[1])
            self.layout.update(zip(op.outputs, parts, strict=True))
        elif op.name in _RESHAPES:
            self._reshape(op)
        else:
            self._compute(op)

    def _of(self, name: str) -> Any:
        if name not in self.layout:
            self.layout[name] = _contiguous(self.graph.arrays[name][0])
        return self.layout[name]

    def _bytes(self, name: str) -> int:
        """What reading an array moves: the elements that its view has, each once."""
        view = self._of(name)
        return _distinct(view) * int(self.graph.arrays[name][1].size)

    def _written(self, names: list[str]) -> int:
        return sum(self.graph.size(name) * int(self.graph.arrays[name][1].size) for name in names)

    def _copied(self, name: str) -> None:
        """A copy of an array to a contiguous place, made for one kernel."""
        self.found.append(Kernel("copy", self._bytes(name) + self._written([name])))

    def _reshape(self, op: Operation) -> None:
        shape = self.graph.arrays[op.outputs[0]][0]
        try:
            self.layout[op.outputs[0]] = np.reshape(self._of(op.inputs[0]), shape, copy=False)
        except ValueError:
            overlapping = _distinct(self._of(op.inputs[0])) < self.graph.size(op.outputs[0])
            kind = "unfold" if overlapping else "copy"
            self.found.append(Kernel(kind, self._bytes(op.inputs[0]) + self._written(op.outputs)))

    def _compute(self, op: Operation) -> None:
        if op.name == "Convolution":
            self._unfold(op)
        for name in op.inputs:
            view = self._of(name)
            if op.name in _PRODUCTS and view.ndim > 1 and 1 not in view.strides[-2:] and _distinct(view) == view.size:
                self._copied(name)
            if op.name in _WHOLE and view.strides[-1:] != (1,):
                self._copied(name)
        self._add(_KINDS.get(op.name, "fill and join" if op.name in _FILLS else "elementwise"), op)

    def _add(self, kind: str, op: Operation) -> None:
        moved = sum(self._bytes(name) for name in op.inputs) + self._written(op.outputs)
        self.found.append(Kernel(kind, moved, self._widens(op)))

    def _widens(self, op: Operation) -> bool:
        """Whether an activation that is in bf16 before is in float32 afterwards."""
        sizes = {self.graph.size(n) for n in op.inputs if self.graph.arrays[n][1].size == 2 and self._activation(n)}
        return any(
            self.graph.arrays[n][1] == mx.float32 and self._activation(n) and self.graph.size(n) in sizes
            for n in op.outputs
        )

    def _activation(self, name: str) -> bool:
        shape = self.graph.arrays[name][0]
        return len(shape) > 2 and shape[0] == self.batch and math.prod(shape[1:-1]) > 1

    def _norm(self, op: Operation, kind: str) -> None:
        """`mx.fast`'s norms; backwards with a weight, its gradient is written, row by row or by groups of rows, and
        summed, as is the bias's."""
        count, backward = len(op.outputs), kind.endswith("VJP")
        for name in [op.inputs[0], *(op.inputs[count:-1] if backward else [])]:
            if self._of(name).strides != _contiguous(self._of(name).shape).strides:
                self._copied(name)
        self._add("norm", op)
        if backward and count > 1:
            rows = self._written(op.outputs[:1])
            written = min(rows, RMS_GROUPS * self._written(op.outputs[1:2])) if kind == "RMSNormVJP" else rows
            self.found.append(Kernel("norm", 2 * written + (count > 2) * rows))

    def _unfold(self, op: Operation) -> None:
        """What Metal does before a convolution: contiguous inputs, and the unfolding of those that no kernel takes."""
        for name in op.inputs:
            view = self._of(name)
            if view.strides != _contiguous(view.shape).strides:
                self._copied(name)
        conv = convolution(self.graph, op)
        if unfolds(conv):
            width = int(self.graph.arrays[op.inputs[0]][1].size)
            size = math.prod(conv.out[:-1]) * math.prod(conv.w[1:-1]) * conv.x[-1] * width
            self.found.append(Kernel("unfold", 2 * size))


def _contiguous(shape: tuple[int, ...]) -> Any:
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return as_strided(np.zeros(1, np.int8), shape, strides)


def _distinct(view: Any) -> int:
    """The elements that a view touches: not more than lie between its first and its last."""
    span = 1 + sum((n - 1) * abs(s) for n, s in zip(view.shape, view.strides, strict=True))
    own = math.prod(n for n, s in zip(view.shape, view.strides, strict=True) if s)
    return min(own, span) if view.size else 0


def _slices(given: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a, b if b >= -n else None, s) for a, b, s, n in zip(*given, shape, strict=True))
