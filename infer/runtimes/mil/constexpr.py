"""Compressed weights of a Core ML program: the `constexpr_*` operations, which only unpack constants, on NumPy.

Source of the definitions: coremltools `ops/defs/iOS16/constexpr_ops.py` and `ops/defs/iOS18/compression.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.errors import UnsupportedOperation

Array = NDArray[Any]


def unpack(kind: str, arguments: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    """The dense array, of `shape`, in the dtype of its scale or table; `UnsupportedOperation` for what is not known."""
    function = KINDS.get((kind, frozenset(arguments)))
    if function is None:
        raise UnsupportedOperation(f"operation {kind!r} with {', '.join(sorted(arguments)) or 'no arguments'}")
    dense = function(**arguments)
    if dense.shape != shape:
        raise UnsupportedOperation(f"{kind} gives {list(dense.shape)}, the program declares {list(shape)}")
    return dense


def bits(packed: NDArray[np.uint8], width: int, count: int) -> NDArray[np.uint8]:
    """`count` unsigned integers of `width` bits from bytes, the least significant bit first."""
    flat = np.unpackbits(packed, count=count * width, bitorder="little").reshape(count, width)
    return np.packbits(flat, axis=1, bitorder="little")[:, 0]


def _affine(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    def along(vector: Array) -> Array:
        sizes = [1] * quantized_data.ndim
        sizes[int(axis)] = -1
        return vector.reshape(sizes) if vector.ndim else vector

    shifted = quantized_data.astype(np.float32) - along(zero_point).astype(np.float32)
    return (shifted * along(scale).astype(np.float32)).astype(scale.dtype)


def _lookup(indices: Array, lut: Array, shape: Array) -> Array:
    width = int(np.log2(len(lut)))
    count = int(np.prod(shape, dtype=np.int64))
    if 2**width != len(lut) or len(indices) != -(-count * width // 8):
        raise UnsupportedOperation(f"constexpr_lut_to_dense of {len(lut)} entries and {len(indices)} bytes")
    return lut[bits(indices, width, count)].reshape([int(n) for n in shape])


def _lookup_tables(indices: Array, lut: Array) -> Array:
    """`lut` `[blocks along each axis..., entries, 1]`: a table for each block of the indices."""
    blocks, entries = lut.shape[:-2], lut.shape[-2] if lut.ndim > 1 else 0
    if lut.ndim != indices.ndim + 2 or lut.shape[-1] != 1 or indices.max(initial=0) >= entries:
        raise UnsupportedOperation(
            f"constexpr_lut_to_dense of {list(indices.shape)} with tables {list(lut.shape)}: vectors are not known"
        )
    numbers = _by_block(np.arange(np.prod(blocks, dtype=np.int64)).reshape(blocks), indices.shape)
    return lut.reshape(-1, entries)[numbers, indices]


def _by_block(values: Array, shape: tuple[int, ...]) -> Array:
    """One value for each block, repeated over its block in an array of `shape`."""
    if values.ndim != len(shape) or any(not n or d % n for n, d in zip(values.shape, shape, strict=True)):
        raise UnsupportedOperation(f"blocks {list(values.shape)} of an array {list(shape)}")
    for axis, (blocks, length) in enumerate(zip(values.shape, shape, strict=True)):
        values = np.repeat(values, length // blocks, axis)
    return values


KINDS: dict[tuple[str, frozenset[str]], Callable[..., Array]] = {
    (kind, frozenset(inspect.signature(function).parameters)): function
    for kind, function in (
        ("constexpr_affine_dequantize", _affine),
        ("constexpr_lut_to_dense", _lookup),
        ("constexpr_lut_to_dense", _lookup_tables),
        (
            "constexpr_blockwise_shift_scale",
            lambda data, scale: (data.astype(np.float32) * _by_block(scale.astype(np.float32), data.shape)).astype(
                scale.dtype
            ),
        ),
    )
}
