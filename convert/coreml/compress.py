"""Weight-only compression of Core ML programs through `coremltools.optimize`: int8, and palettes by k-means."""

from __future__ import annotations

from typing import Any

from convert.verification.precision import PRECISIONS, lossy
from infer.runtimes.mil.package import coremltools

# What coremltools appends to the name of a constant that it has compressed.
SUFFIXES = ("_quantized", "_palettized")
# Smaller constants cost accuracy and save nothing.
_SMALLEST = 2048
# From this macOS on there are scales for blocks of input channels and tables for groups of output channels.
_BLOCKS = 15
# These divide nearly all channel counts; a constant that they do not divide is compressed as before.
_BLOCK_SIZE, _GROUP_SIZE = 16, 8


def compressed(model: Any, precision: str, float_layers: tuple[str, ...] = (), macos: int = 14) -> Any:
    """The model with its constants of 2048 numbers and more compressed, `float_layers` as they are; fp ones unchanged.

    int8 is symmetric, with a scale for each output channel; a palette is one table for a whole constant. For macOS 15
    there is a scale for each 16 input channels of it, and a table for each 8 output channels.
    """
    if not lossy(precision):
        return model
    optimize = coremltools("coremltools.optimize.coreml")
    left_in_float = dict.fromkeys(float_layers)
    bits = PRECISIONS[precision].palette_bits
    for fine in (True, False) if macos >= _BLOCKS else (False,):  # the second leaves what the first has compressed
        if bits:
            kind = {"granularity": "per_grouped_channel", "group_size": _GROUP_SIZE} if fine else {}
            how = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=_SMALLEST, **kind)
            apply = optimize.palettize_weights
        else:
            kind = {"granularity": "per_block", "block_size": _BLOCK_SIZE} if fine else {}
            how = optimize.OpLinearQuantizerConfig(
                mode="linear_symmetric", dtype="int8", weight_threshold=_SMALLEST, **kind
            )
            apply = optimize.linear_quantize_weights
        model = apply(model, optimize.OptimizationConfig(how, op_name_configs=left_in_float))
    return model


def original(name: str) -> str | None:
    """The name of the constant before compression; None for one that is not compressed."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), None)
