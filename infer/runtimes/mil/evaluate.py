"""Executes the operations of a Core ML program one by one; `program` reads it, `mil_reference` feeds it images.

An unknown operation, argument, mode or shape raises `UnsupportedOperation`.
"native" computes each operation in float32 and rounds its result to the declared dtype, as an engine with fp32
accumulators does; "float64" computes all in double precision from the stored weights: the program without rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from config.errors import UnsupportedOperation, WeightsError
from infer.runtimes.mil.ops import OPERATIONS, Result, Value
from infer.runtimes.mil.program import Constant, Declared, Named, Operation, Program

Mode = Literal["native", "float64"]


class Evaluator:
    """Executes one program. Constants are converted once; other values are freed after their last use."""

    def __init__(self, program: Program, mode: Mode = "native"):
        self.program = program
        self._mode = mode
        self._dtype = torch.float64 if mode == "float64" else torch.float32
        self._constants = {name: self._value(value) for name, value in program.constants.items()}
        self._last_use = _last_uses(program)
        for operation in program.operations:
            _check_known(operation)

    def run(self, feeds: Mapping[str, NDArray]) -> dict[str, Result]:
        """All outputs by name; tensors are float32 or float64 `torch.Tensor`s, `classify` gives its label and table."""
        values: dict[str, Result] = {}
        for declared in self.program.inputs:
            values[declared.name] = self._settle(self._value(feeds[declared.name]), declared, "input")
        for step, operation in enumerate(self.program.operations):
            results = self._results(operation, values)
            for declared, result in zip(operation.outputs, results, strict=True):
                values[declared.name] = self._settle(result, declared, operation.kind)
            for name in self._last_use.get(step, ()):
                del values[name]
        return {name: self._lookup(name, values) for name in self.program.outputs}

    def _results(self, operation: Operation, values: Mapping[str, Result]) -> Sequence[Result]:
        arguments: dict[str, object] = {}
        for name, bound in operation.inputs.items():
            results = [self._lookup(a.name, values) if isinstance(a, Named) else self._value(a) for a in bound]
            arguments[name] = results if name == "values" else results[0]
        try:
            result = OPERATIONS[operation.kind](**arguments)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            where = operation.outputs[0].name
            raise UnsupportedOperation(f"{operation.kind} ({where}) cannot be computed: {error}") from error
        outputs: Sequence[Result] = result if isinstance(result, (tuple, list)) else [result]
        if len(outputs) != len(operation.outputs):
            raise UnsupportedOperation(
                f"{operation.kind} gives {len(outputs)} values, the program declares {len(operation.outputs)}"
            )
        return outputs

    def _lookup(self, name: str, values: Mapping[str, Result]) -> Result:
        if name in self._constants:
            return self._constants[name]
        if name not in values:
            raise WeightsError(f"the program uses {name!r} before it is computed; the package is damaged")
        return values[name]

    def _value(self, value: Constant) -> Value:
        if isinstance(value, (str, tuple)):
            return value
        if value.dtype.kind in "iu":
            return torch.from_numpy(value.astype(np.int64))
        tensor = torch.from_numpy(value)
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _settle(self, result: Result, declared: Declared, kind: str) -> Result:
        """Check a result against its declaration and round it to the declared dtype."""
        if declared.dtype is None or not isinstance(result, Tensor):
            return result
        shape = tuple(result.shape)
        fits = len(shape) == len(declared.shape) and all(
            d is None or d == n for d, n in zip(declared.shape, shape, strict=True)
        )
        if not fits or result.is_floating_point() != (declared.dtype.kind == "f"):
            got = f"{str(result.dtype).removeprefix('torch.')} {list(shape)}"
            raise UnsupportedOperation(
                f"{kind} ({declared.name}) gives {got}, the program declares {declared.dtype} {list(declared.shape)}"
            )
        if declared.dtype == np.float16 and self._mode == "native":
            return result.half().to(self._dtype)
        return result.to(self._dtype) if result.is_floating_point() else result


def _check_known(operation: Operation) -> None:
    """`UnsupportedOperation` by name for an operation, or an argument of one, that is not known."""
    if operation.kind not in OPERATIONS:
        raise UnsupportedOperation(f"operation {operation.kind!r} is not known to the reference evaluator")
    parameters = inspect.signature(OPERATIONS[operation.kind]).parameters
    unknown = sorted(set(operation.inputs) - set(parameters))
    missing = sorted(n for n, p in parameters.items() if p.default is p.empty and n not in operation.inputs)
    if unknown or missing:
        what = f"unknown {', '.join(unknown)}" if unknown else f"no {', '.join(missing)}"
        raise UnsupportedOperation(f"operation {operation.kind!r} ({operation.outputs[0].name}) with {what}")
    many = [n for n, bound in operation.inputs.items() if n != "values" and len(bound) != 1]
    if many:
        raise UnsupportedOperation(f"operation {operation.kind!r} with several values as {', '.join(many)}")


def _last_uses(program: Program) -> dict[int, list[str]]:
    """For each step, the values that nothing needs afterwards."""
    last: dict[str, int] = {}
    for step, operation in enumerate(program.operations):
        for name in (a.name for bound in operation.inputs.values() for a in bound if isinstance(a, Named)):
            last[name] = step
        last.update({declared.name: step for declared in operation.outputs})
    needed = set(program.outputs) | set(program.constants)
    freed: dict[int, list[str]] = {}
    for name, step in last.items():
        if name not in needed:
            freed.setdefault(step, []).append(name)
    return freed
