"""The graph of an MLX function as Metal would run it: fused as `mx.compile` fuses, copies and unfolds made explicit.

MLX traces without a GPU, so this runs anywhere. What is not in the traced graph is taken from MLX 0.32.4's source:
the rules of fusion (`mlx/compile.cpp`) and which convolutions unfold (`mlx/backend/metal/conv.cpp`). `mx.fast`'s norms,
which are single kernels on Metal but not on a CPU, are traced as single operations. The table is in `mlx_traffic`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

_FUSABLE = """
    Abs ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh AsType Ceil Cos Conjugate Cosh Remainder Erf ErfInv Exp Floor
    Log Log1p LogicalNot Negative Round Sigmoid Sign Sin Sinh Square Sqrt Tan Tanh Expm1 Real Imag BitwiseInvert
    Add Divide Equal Greater GreaterEqual Less LessEqual LogicalOr LogicalAnd LogAddExp Maximum Minimum Multiply
    NotEqual Power Subtract BitwiseBinary ArcTan2
    Select Broadcast
"""
FUSABLE = frozenset(_FUSABLE.split())
_DEPTH, _ARRAYS = 11, 24  # mx.compile's limits of one kernel


@dataclass
class Operation:
    """One primitive, or a group that one kernel computes (`name` "Compiled"). `inputs` and `outputs` name arrays."""

    name: str
    inputs: list[str]
    outputs: list[str]
    arguments: list[Any] = field(default_factory=list)
    parts: list[Operation] = field(default_factory=list)


@dataclass
class Graph:
    """Operations in order, the (shape, dtype) of each array, which arrays leave the function, and its constants."""

    operations: list[Operation]
    arrays: dict[str, tuple[tuple[int, ...], mx.Dtype]]
    outputs: list[str]
    constants: frozenset[str] = frozenset()

    def size(self, name: str) -> int:
        """Elements of an array."""
        return math.prod(self.arrays[name][0])


def traced(function: Callable[..., list[mx.array]], *arguments: mx.array) -> Graph:
    """The simplified graph of `function`, of arrays to a list of arrays; nothing is computed.

    Inside, `mx.custom_function`, `mx.vjp` and `mx.value_and_grad` (of a dictionary, the value first in a tuple) may be
    used, one within the other.
    """
    events: list[dict[str, Any]] = []
    with _patched(dry := Calls(None)):
        function(*arguments)
    held = [mx.zeros(a.shape, a.dtype) for call in dry.made for a in (*call.results, *call.arguments)]
    with _patched(calls := Calls(dry)):

        def whole(*inputs: mx.array) -> list[mx.array]:
            calls.hold(inputs[len(arguments) :])
            results = function(*inputs[: len(arguments)])
            return [*results, *(a for call in calls.made for a in (*call.arguments, *call.results, *call.slopes))]

        mx.export_function(events.append, whole, *arguments, *held)
    return _joined(events, dry.made, len(arguments))


@dataclass
class Call:
    """One use of a custom function."""

    arguments: list[mx.array]
    results: list[mx.array]
    vjp: Callable[..., Any]
    slopes: list[mx.array] = field(default_factory=list)


class Calls:
    """The uses of custom functions, which MLX cannot export, so that a function is traced in pieces.

    The first pass (`dry` None) only notes them, in the order in which they come. In the second each use gives arrays
    that are held, inputs of the whole, in place of its results, and others stand for its slopes; its own function and
    gradient are traced beside it, and what they use in turn likewise.
    """

    def __init__(self, dry: Calls | None):
        self.dry, self.made = dry, list[Call]()
        self.counts: list[int] = []  # of the uses in each function whose gradient is taken
        self._vjp = mx.vjp
        self._results: list[list[mx.array]] = []
        self._slopes: list[list[mx.array]] = []
        self._in_gradient = False

    def hold(self, arrays: Sequence[mx.array]) -> None:
        """Take what stands for the results and slopes of each use, one use after the other."""
        counts = [n for call in self.dry.made for n in (len(call.results), len(call.arguments))] if self.dry else []
        parts = _parts(arrays, counts)
        self._results, self._slopes = parts[::2], parts[1::2]

    def custom_function(self, function: Callable[..., Any]) -> Any:
        """As `mx.custom_function`."""
        return _Custom(function, self)

    def use(self, function: Callable[..., Any], vjp: Callable[..., Any], arguments: Sequence[mx.array]) -> Any:
        """The results of one use, or what stands for them; where no gradient is taken, those of the plain function."""
        if not self._in_gradient:
            return function(*arguments)
        results = self._run(function, arguments, in_gradient=False)
        self.made.append(Call(list(arguments), results, vjp))
        given = self._results[len(self.made) - 1] if self.dry else results
        return given if len(given) > 1 else given[0]

    def value_and_grad(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        """As `mx.value_and_grad`."""

        def traced(given: dict[str, mx.array]) -> Any:
            told: list[Any] = []

            def value(*arrays: mx.array) -> mx.array:
                told.append(objective(dict(zip(given, arrays, strict=True))))
                return told[-1][0]

            _, slopes = self.vjp(value, list(given.values()), [mx.array(1.0)])
            return told[-1], dict(zip(given, slopes, strict=True))

        return traced

    def vjp(self, function: Callable[..., Any], primals: Sequence[mx.array], cotangents: Sequence[mx.array]) -> Any:
        """As `mx.vjp`."""
        start, place = len(self.made), len(self.counts)
        self.counts.append(0)
        if self.dry is None:
            outputs = self._run(function, primals, in_gradient=True)
            self.counts[place] = len(self.made) - start
            for call in self.made[start:]:
                self._pull(call, call.results)
            return outputs, [mx.zeros_like(p) for p in primals]
        end = start + self.dry.counts[place]
        counts = [len(results) for results in self._results[start:end]]
        results, slopes = ([a for part in held[start:end] for a in part] for held in (self._results, self._slopes))

        def flat(*arrays: mx.array) -> list[mx.array]:
            self._results[start:end] = _parts(arrays[len(primals) :], counts)
            outputs = self._run(function, arrays[: len(primals)], in_gradient=True)
            return [*outputs, *(a for call in self.made[start:end] for a in call.arguments)]

        outputs, found = self._vjp(flat, [*primals, *results], [*cotangents, *slopes])
        for call, pulled in zip(self.made[start:end], _parts(found[len(primals) :], counts), strict=True):
            self._pull(call, pulled)
        return outputs[: len(cotangents)], found[: len(primals)]

    def _pull(self, call: Call, cotangents: list[mx.array]) -> None:
        primals, one = call.arguments, len(cotangents) == 1
        call.slopes = _several(
            call.vjp(
                primals if len(primals) > 1 else primals[0],
                cotangents[0] if one else cotangents,
                call.results[0] if one else call.results,
            )
        )

    def _run(self, function: Callable[..., Any], arguments: Sequence[mx.array], in_gradient: bool) -> list[mx.array]:
        before, self._in_gradient = self._in_gradient, in_gradient
        try:
            return _several(function(*arguments))
        finally:
            self._in_gradient = before


class _Custom:
    def __init__(self, function: Callable[..., Any], calls: Calls):
        self._function, self._calls = function, calls
        self._vjp: Callable[..., Any] | None = None

    def vjp(self, function: Callable[..., Any]) -> Callable[..., Any]:
        self._vjp = function
        return function

    def __call__(self, *arguments: mx.array) -> Any:
        if self._vjp is None:
            return self._function(*arguments)
        return self._calls.use(self._function, self._vjp, arguments)


def _several(results: Any) -> list[mx.array]:
    return list(results) if isinstance(results, (list, tuple)) else [results]


def _parts(arrays: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    ends = np.cumsum(counts).tolist()
    return [list(arrays[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def _joined(events: list[dict[str, Any]], calls: list[Call], count: int) -> Graph:
    """The graph of the pieces: where a custom function was used, one operation without cost that nothing fuses with."""
    arrays, inputs, outputs, operations = _read(events)
    constants = frozenset(name for event in events for name, _ in event.get("constants", []))
    counts = [(len(c.results), len(c.arguments)) for c in calls]
    stand_ins = _parts(inputs[count:], [n for pair in counts for n in pair])
    told = _parts(
        outputs, [len(outputs) - sum(r + 2 * a for r, a in counts), *(n for r, a in counts for n in (a, r, a))]
    )
    renamed: dict[str, str] = {}
    for i in range(len(calls)):
        given, results, slopes = told[1 + 3 * i : 4 + 3 * i]
        operations.append(Operation("CustomTransforms", [*given, *results], stand_ins[2 * i]))
        renamed.update(zip(stand_ins[2 * i + 1], slopes, strict=True))

    def real(name: str) -> str:
        # The slope of one use may be that of another within its gradient.
        while name in renamed:
            name = renamed[name]
        return name

    for operation in operations:
        operation.inputs = [real(name) for name in operation.inputs]
    leaving = [real(name) for name in told[0]]
    return Graph(_ordered(operations, leaving), arrays, leaving, constants)


def _read(events: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str], list[str], list[Operation]]:
    arrays: dict[str, tuple[tuple[int, ...], mx.Dtype]] = {}
    operations, ends = [], {}
    for event in events:
        named = {key: [n for n, _, _ in event[key]] for key in ("inputs", "outputs") if key in event}
        for key in named:
            arrays.update({name: (tuple(shape), dtype) for name, shape, dtype in event[key]})
        arrays.update({name: (tuple(value.shape), value.dtype) for name, value in event.get("constants", [])})
        if event["type"] == "primitive":
            operations.append(Operation(event["name"], named["inputs"], named["outputs"], event["arguments"]))
        else:
            ends.update(named)
    return arrays, ends["inputs"], ends["outputs"], operations


def _ordered(operations: list[Operation], leaving: Sequence[str]) -> list[Operation]:
    """What the leaving arrays need, each after its inputs, in the order of a depth-first search as MLX's."""
    makers = {name: op for op in operations for name in op.outputs}
    order: dict[int, Operation] = {}
    stack = [(makers[name], False) for name in reversed(leaving) if name in makers]
    while stack:
        op, ready = stack.pop()
        if id(op) in order:
            continue
        if ready:
            order[id(op)] = op
            continue
        stack.append((op, True))
        stack += [(makers[name], False) for name in reversed(op.inputs) if name in makers]
    return list(order.values())


@contextmanager
def _patched(calls: Calls) -> Iterator[None]:
    """With custom functions noted, and `mx.fast`'s norms as one operation each, with their promotion of dtypes."""
    places: list[tuple[Any, str, Any]] = [
        (mx, "custom_function", calls.custom_function),
        (mx, "value_and_grad", calls.value_and_grad),
        (mx, "vjp", calls.vjp),
        (mx.fast, "layer_norm", functools.partial(_stand_in, "LayerNorm")),
        (mx.fast, "rms_norm", functools.partial(_stand_in, "RMSNorm")),
    ]
    before = [getattr(module, name) for module, name, _ in places]
    for module, name, new in places:
        setattr(module, name, new)
    try:
        yield
    finally:
        for (module, name, _), old in zip(places, before, strict=True):
            setattr(module, name, old)


# A norm among other `Depends` has a mark, a uint64 array as long as the place of its primitive's name here says.
_NORMS = ("", "LayerNorm", "LayerNormVJP", "RMSNorm", "RMSNormVJP")


def _stand_in(name: str, *given: mx.array | float | None) -> mx.array:
    """For a norm of (input, weights, eps)."""
    arrays = [a for a in given if isinstance(a, mx.array)]
    wide = max((a.dtype for a in arrays), key=lambda dtype: dtype.size)

    @mx.custom_function
    def norm(*inputs: mx.array) -> mx.array:
        mark = mx.array(np.zeros(_NORMS.index(name), np.uint64))
        return mx.depends(inputs[:1], [*inputs[1:], mark])[0]

    @norm.vjp
    def _norm_vjp(primals: Any, cotangent: mx.array, _: mx.array) -> Any:
        mark = mx.array(np.zeros(_NORMS.index(f"{name}VJP"), np.uint64))
        slopes = mx.depends(list(primals) if isinstance(primals, Sequence) else [primals], [cotangent, mark])
        return tuple(slopes) if len(slopes) > 1 else slopes[0]

    result: mx.array = norm(*(a.astype(wide) for a in arrays))
    return result


def norm_kind(graph: Graph, operation: Operation) -> str:
    """The primitive of `mx.fast` that an operation stands for, "LayerNorm", "RMSNormVJP", ..., or ""."""
    for name in operation.inputs if operation.name == "Depends" else ():
        shape, dtype = graph.arrays[name]
        if dtype == mx.uint64:
            return _NORMS[shape[0]]
    return ""


def fused(graph: Graph) -> Graph:
    """The graph after `mx.compile`'s fusion of elementwise operations."""
    return _Fusion(graph).run()


class _Fusion:
    """`compile_fuse` of mlx/compile.cpp: backwards through the operations, each with all it can take in."""

    def __init__(self, graph: Graph):
        self.arrays, self.outputs = dict(graph.arrays), set(graph.outputs)
        self.order, self.graph = list(graph.operations), graph
        self.maker = {name: op for op in graph.operations for name in op.outputs}
        self.users: dict[str, set[str]] = {}
        for op in graph.operations:
            for name in op.inputs:
                self.users.setdefault(name, set()).add(op.outputs[0])
        self.done: set[str] = set()

    def run(self) -> Graph:
        kept: list[Operation] = []
        for op in reversed(self.order):
            if op.outputs[0] in self.done:
                continue
            members = self._group(op)
            kept.append(self._compiled(op, members) if len(members) > 1 else op)
        return Graph(kept[::-1], self.arrays, self.graph.outputs, self.graph.constants)

    def _group(self, root: Operation) -> set[str]:
        """Outputs of the operations that are computed together with `root`; empty where it is not fusable."""
        members: set[str] = set()
        inputs: set[str] = set()
        shape = self.arrays[root.outputs[0]][0]

        def visit(name: str, depth: int) -> None:
            if name in members:
                return
            op = self.maker.get(name)
            leaves = name in self.outputs
            fits = op is not None and op.name in FUSABLE and depth < _DEPTH
            if op is None or not fits or (leaves and self.arrays[name][0] != shape):
                inputs.add(name)
                return
            if depth and not self.users[name] <= members:
                if op.name != "Broadcast" or len(inputs) >= _ARRAYS:
                    inputs.add(name)
                    return
                op = self._split(op, members)
                name = op.outputs[0]
            inputs.discard(name)
            if leaves:
                inputs.add(name)
            if len(inputs) >= _ARRAYS:
                return
            members.add(name)
            for taken in op.inputs:
                visit(taken, depth + 1)

        if root.name != "Broadcast":
            visit(root.outputs[0], 0)
        return members

    def _split(self, op: Operation, members: set[str]) -> Operation:
        """A broadcast of its own for the users in a group."""
        name = f"{op.outputs[0]}'{len(self.arrays)}"
        users = self.users[op.outputs[0]] & members
        self.users[op.outputs[0]] -= users
        copy = Operation(op.name, op.inputs, [name], op.arguments)
        for user in users:
            maker = self.maker[user]
            maker.inputs = [name if taken == op.outputs[0] else taken for taken in maker.inputs]
        self.users[name], self.maker[name] = users, copy
        for taken in op.inputs:
            self.users[taken].add(name)
        self.arrays[name] = self.arrays[op.outputs[0]]
        return copy

    def _compiled(self, root: Operation, members: set[str]) -> Operation:
        parts, inputs, seen = [], [], set()

        def collect(name: str) -> None:
            if name in seen:
                return
            seen.add(name)
            if name not in members:
                inputs.append(name)
                return
            for taken in self.maker[name].inputs:
                collect(taken)
            parts.append(self.maker[name])

        collect(root.outputs[0])
        self.done |= members
        outputs = [p.outputs[0] for p in parts[:-1] if p.outputs[0] in self.outputs]
        return Operation("Compiled", inputs, [*outputs, root.outputs[0]], [], parts)
