"""Weight-only compression of Core ML programs through `coremltools.optimize`: int8, and palettes by k-means."""

from __future__ import annotations

from typing import Any

from convert.precision import PRECISIONS, lossy
from infer.predictors.mil_package import coremltools

# What coremltools appends to the name of a constant that it has compressed.
SUFFIXES = ("_quantized", "_palettized")
# Smaller constants cost accuracy and save nothing.
_SMALLEST = 2048


def compressed(model: Any, precision: str, float_layers: tuple[str, ...] = ()) -> Any:
    """The model with its constants of 2048 numbers and more compressed, `float_layers` as they are; fp ones unchanged.

    int8 is symmetric, with a scale for each output channel; a palette is one table for a whole constant.
    """
    if not lossy(precision):
        return model
    optimize = coremltools("coremltools.optimize.coreml")
    kept = dict.fromkeys(float_layers)
    bits = PRECISIONS[precision].palette_bits
    if bits:
        how = optimize.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=_SMALLEST)
        return optimize.palettize_weights(model, optimize.OptimizationConfig(how, op_name_configs=kept))
    how = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=_SMALLEST)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(how, op_name_configs=kept))


def original(name: str) -> str | None:
    """The name of the constant that a compressed one stands for; None for a name that is none."""
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None
