"""A Core ML ML Program as plain data: typed operations in order, constants decoded. Nothing here computes.

Source: `MIL.proto` of coremltools.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.errors import UnsupportedOperation, WeightsError
from infer.runtimes.mil import blob as mil_blob
from infer.runtimes.mil import constexpr
from infer.runtimes.mil.package import Package, coremltools

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("?"),
    "FLOAT16": np.dtype("<f2"),
    "FLOAT32": np.dtype("<f4"),
    "FLOAT64": np.dtype("<f8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
}
# Integers of fewer bits than a byte, in blobs only.
PACKED = {"UINT4": 4, "UINT6": 6}
_IMMEDIATE = ("floats", "ints", "bools", "longInts", "doubles")
Constant = NDArray[Any] | str | tuple[str, ...]


@dataclass(frozen=True)
class Declared:
    """The declaration of a value: `dtype` None for strings and dictionaries, `shape` with None for any length."""

    name: str
    dtype: np.dtype | None
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Named:
    """An argument that is the value of an earlier operation or input."""

    name: str


Argument = Named | Constant


@dataclass(frozen=True)
class Operation:
    """One operation: each input is a list of arguments (more than one for `concat` and the like)."""

    kind: str
    inputs: dict[str, tuple[Argument, ...]]
    outputs: tuple[Declared, ...]


@dataclass(frozen=True)
class Program:
    """A program: `constants` by name, `operations` in order without them, `outputs` by name."""

    inputs: tuple[Declared, ...]
    constants: dict[str, Constant]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


def parse(package: Package) -> Program:
    """Decode the package's only function.

    `UnsupportedOperation` for what is not a plain ML Program, `WeightsError` for one that contradicts itself.
    """
    try:
        return _parse(package)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise WeightsError(f"{package.path}: its program is damaged ({error}); convert it again") from error


def _parse(package: Package) -> Program:
    kind = package.spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise UnsupportedOperation(f"{package.path}: is a {kind}, not an ML Program")
    functions = package.spec.mlProgram.functions
    if list(functions) != ["main"] or len(functions["main"].block_specializations) != 1:
        raise UnsupportedOperation(
            f"{package.path}: has functions {sorted(functions)}, one `main` of one kind is known"
        )
    main = functions["main"]
    (block,) = main.block_specializations.values()
    reader = _Reader(package.folder)
    held = [o for o in block.operations if o.type == "const" or o.type.startswith("constexpr_")]
    constants = {o.outputs[0].name: reader.constant(o) for o in held}
    operations = tuple(reader.operation(o) for o in block.operations if o.outputs[0].name not in constants)
    return Program(tuple(reader.declared(i) for i in main.inputs), constants, operations, tuple(block.outputs))


class _Reader:
    """Decodes messages; knows the folder that `@model_path` stands for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._dtype_name = coremltools("coremltools.proto.MIL_pb2").DataType.Name

    def constant(self, operation: Any) -> Constant:
        if operation.type != "const":
            return self._unpacked(operation)
        unknown = set(operation.attributes) - {"name", "val"}
        if unknown or operation.inputs:
            raise UnsupportedOperation(f"const with {', '.join(sorted(unknown) or operation.inputs)}")
        return self._value(operation.attributes["val"])

    def _unpacked(self, operation: Any) -> Constant:
        """A `constexpr_*` operation's value; its arguments are attributes up to macOS 14, inputs from 15 on."""
        if any(a.WhichOneof("binding") != "value" for i in operation.inputs.values() for a in i.arguments):
            raise UnsupportedOperation(
                f"{operation.type} ({operation.outputs[0].name}) of another value, not a constant"
            )
        attributes = {name: self._value(value) for name, value in operation.attributes.items() if name != "name"}
        attributes.update({name: self._value(value.arguments[0].value) for name, value in operation.inputs.items()})
        shape = self.declared(operation.outputs[0]).shape
        return constexpr.unpack(operation.type, attributes, tuple(-1 if n is None else n for n in shape))

    def operation(self, operation: Any) -> Operation:
        unknown = set(operation.attributes) - {"name"}
        if unknown or operation.blocks:
            what = ", ".join(sorted(unknown)) or "nested blocks"
            raise UnsupportedOperation(
                f"operation {operation.type} with {what} is not known to the reference evaluator"
            )
        inputs = {
            name: tuple(
                Named(a.name) if a.WhichOneof("binding") == "name" else self._value(a.value) for a in value.arguments
            )
            for name, value in operation.inputs.items()
        }
        return Operation(operation.type, inputs, tuple(map(self.declared, operation.outputs)))

    def declared(self, named: Any) -> Declared:
        if named.type.WhichOneof("type") != "tensorType":
            return Declared(named.name, None, ())
        dtype, shape = self._tensor_type(named.type.tensorType)
        return Declared(named.name, dtype, shape)

    def _tensor_type(self, tensor: Any) -> tuple[np.dtype | None, tuple[int | None, ...]]:
        name = self._dtype_name(tensor.dataType)
        if name != "STRING" and name not in DTYPES and name not in PACKED:
            raise UnsupportedOperation(f"values of type {name} are not known to the reference evaluator")
        sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return np.dtype("u1") if name in PACKED else DTYPES.get(name), tuple(sizes)

    def _value(self, value: Any) -> Constant:
        if value.type.WhichOneof("type") == "listType":
            return tuple(v.immediateValue.tensor.strings.values[0] for v in value.immediateValue.list.values)
        dtype, declared = self._tensor_type(value.type.tensorType)
        shape = tuple(-1 if n is None else n for n in declared)
        if value.WhichOneof("value") == "blobFileValue":
            if dtype is None or -1 in shape:
                raise UnsupportedOperation("a blob of strings or of unknown shape is not known")
            blob = value.blobFileValue
            width = PACKED.get(self._dtype_name(value.type.tensorType.dataType))
            return mil_blob.read(self._file(blob.fileName), blob.offset, dtype, shape, width)
        return _immediate(value.immediateValue.tensor, dtype, shape)

    def _file(self, name: str) -> Path:
        relative = name.removeprefix("@model_path/")
        if relative == name or Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise UnsupportedOperation(f"weights in {name!r}, only files under @model_path are known")
        return self._folder / relative


def _immediate(tensor: Any, dtype: np.dtype | None, shape: tuple[int, ...]) -> Constant:
    kind = tensor.WhichOneof("value")
    if kind == "strings" and dtype is None:
        return str(tensor.strings.values[0]) if not shape else tuple(tensor.strings.values)
    if kind == "bytes" and dtype is not None:
        return np.frombuffer(tensor.bytes.values, dtype).reshape(shape).copy()
    if kind in _IMMEDIATE and dtype is not None:
        return np.array(getattr(tensor, kind).values, dtype).reshape(shape)
    raise UnsupportedOperation(f"an immediate value kept as {kind} of type {dtype} is not known")
