"""Static int8 for ONNX: `QuantizeLinear` and `DequantizeLinear` around convolutions and matrix products.

onnxruntime.quantization does it: int8 weights per channel, uint8 activations with ranges of calibration images. A
convolution's range is taken behind its ReLU, ReLU6 and residual addition, since ONNX Runtime computes them as one.
Rounded weights shift the mean of a layer's outputs; its bias takes that back (bias correction: Nagel et al. 2019,
"Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2; here with measured means).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from convert.verification.pictures import Pixels

KINDS = ("Conv", "Gemm", "MatMul")
# Computed together with the layer in front of them, so that nothing is quantised in between.
_FUSED = ("Clip", "Relu", "Add")
# Their results stay in float: logits, and what a normalisation or a GELU takes.
_FLOAT_OUTPUTS = ("Gemm", "MatMul")
_CACHE = "ranges.json"
# The axes of a layer's outputs that a bias is the same for.
_SHARED = {"Conv": lambda rank: [0, *range(2, rank)], "Gemm": lambda _: [0]}


class Quantizer:
    """A model of which all or some layers are quantised: ranges and mean shifts are measured once, on `batches`.

    `folder` is for the temporary files of onnxruntime; `close` deletes them.
    """

    def __init__(self, message: Any, batches: Sequence[Pixels], folder: Path):
        self._ready, self._corrected = folder / "prepared.onnx", folder / "corrected.onnx"
        self._cache = folder / _CACHE
        plain = folder / "float.onnx"
        onnx.save_model(message, str(plain))
        # Infers shapes and folds constants, as quantisation needs it.
        quant_pre_process(str(plain), str(self._ready), skip_symbolic_shape=True)
        plain.unlink()
        self._batches = batches
        self.layers = layers(self._ready)
        float_file = folder / "whole.onnx"
        _quantize(self._ready, float_file, batches, self._cache, list(self.layers))
        self._shifts = _shifts(onnx.load(str(self._ready)), onnx.load(str(float_file)), batches, list(self.layers))
        float_file.unlink()

    def write(self, out: Path, names: Sequence[str]) -> None:
        """Write the model with the nodes `names` in int8, the others in float."""
        message = onnx.load(str(self._ready))
        for node in message.graph.node:
            if node.name in names and node.name in self._shifts:
                _correct(message.graph, node, self._shifts[node.name])
        onnx.save_model(message, str(self._corrected))
        _quantize(self._corrected, out, self._batches, self._cache, list(names))

    def close(self) -> None:
        """Delete the files."""
        for path in (self._ready, self._corrected, self._cache):
            path.unlink(missing_ok=True)


def quantized(message: Any, batches: Sequence[Pixels], folder: Path, float_layers: tuple[str, ...] = ()) -> Any:
    """The model in int8; `folder` is for temporary files and holds no new file afterwards."""
    int8_file = folder / "int8.onnx"
    with contextlib.closing(Quantizer(message, batches, folder)) as quantizer:
        quantizer.write(int8_file, [name for name in quantizer.layers if name not in float_layers])
    model = onnx.load(str(int8_file))
    int8_file.unlink()
    return model


def layers(file: Path) -> dict[str, str]:
    """The nodes that are quantised, in the model's order, and what the layer of each is called in torch.

    That is the name of its weight, or of the bias that is added after it; a node without either keeps its name.
    Products of two activations, as in attention, stay in float: onnxruntime 1.31 gives wrong answers for them.
    """
    graph = onnx.load(str(file), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    weights = {name for name in stored if "." in name}
    behind = {name: node for node in graph.node for name in node.input}
    by_layer = {}
    for node in (n for n in graph.node if n.op_type in KINDS and n.input[1] in stored):
        then = behind.get(node.output[0])
        near = [*node.input, *(then.input if then is not None and then.op_type == "Add" else ())]
        named = next((name for name in near if name in weights), node.name)
        by_layer[node.name] = re.sub(r"^classifier\.(model\.)?|\.(weight|bias)$", "", named)
    return by_layer


def _with_fused(file: Path, names: list[str]) -> list[str]:
    """The layers `names` with the nodes behind their convolutions that are computed together with them."""
    graph = onnx.load(str(file), load_external_data=False).graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    fused, wanted = list(names), set(names)
    for node in (n for n in graph.node if n.name in wanted and n.op_type == "Conv"):
        behind = users.get(node.output[0], [])
        while len(behind) == 1 and behind[0].op_type in _FUSED:
            fused.append(behind[0].name)
            behind = users.get(behind[0].output[0], [])
    return list(dict.fromkeys(fused))


def _shifts(message: Any, quantized: Any, batches: Sequence[Pixels], names: Sequence[str]) -> dict[str, NDArray]:
    """The shift of the mean of each layer's outputs from rounding its weights, float32 `[channels]`, by node.

    The layer is computed with the difference of its weights alone, on the float network's activations. A MatMul is
    left out: its bias is an addition behind it.
    """
    graph = message.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    rounded = _weights(quantized.graph)
    shifts = {}
    for node in [n for n in graph.node if n.name in names and n.op_type in _SHARED and n.input[1] in rounded]:
        weight = numpy_helper.to_array(stored[node.input[1]])
        difference, shift = f"{node.name}/difference", f"{node.name}/shift"
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        del copied.input[1:], copied.output[:]
        copied.name = difference
        copied.input.append(difference)
        copied.output.append(f"{difference}/output")
        axes = np.array(_SHARED[node.op_type](weight.ndim), np.int64)
        graph.initializer.append(numpy_helper.from_array(rounded[node.input[1]] - weight, difference))
        graph.initializer.append(numpy_helper.from_array(axes, f"{shift}/axes"))
        mean = onnx.helper.make_node("ReduceMean", [copied.output[0], f"{shift}/axes"], [shift], keepdims=0)
        graph.node.extend([copied, mean])
        graph.output.append(onnx.helper.make_tensor_value_info(shift, onnx.TensorProto.FLOAT, None))
        shifts[node.name] = shift
    return _means(message, shifts, batches)


def _means(message: Any, outputs: dict[str, str], batches: Sequence[Pixels]) -> dict[str, NDArray]:
    """The mean of each output over all images."""
    if not outputs:
        return {}
    session = onnxruntime.InferenceSession(message.SerializeToString(), providers=["CPUExecutionProvider"])
    reader, total, count = _Reader(message, batches), [np.zeros(1, np.float32)] * len(outputs), 0
    while (feeds := reader.get_next()) is not None:
        size = len(next(iter(feeds.values())))
        total = [a + size * b for a, b in zip(total, session.run(list(outputs.values()), feeds), strict=True)]
        count += size
    return {name: sums / count for name, sums in zip(outputs, total, strict=True)}


def _weights(graph: Any) -> dict[str, NDArray[np.float32]]:
    """The rounded weights of a quantised model in float, by the name that they had before."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    weights = {}
    for node in (n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored):
        levels, scale = (numpy_helper.to_array(stored[name]) for name in node.input[:2])
        if levels.dtype == np.int8:  # int32 are biases
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            by_channel = scale.reshape([-1 if k == axis else 1 for k in range(levels.ndim)]) if scale.ndim else scale
            weights[node.input[0].removesuffix("_quantized")] = levels.astype(np.float32) * by_channel
    return weights


def _correct(graph: Any, node: Any, shift: NDArray) -> None:
    """Give the node a bias of its own, without `shift`."""
    bias = np.zeros_like(shift)
    if len(node.input) > 2:
        bias = numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[2]))
    del node.input[2:]
    node.input.append(f"{node.name}/corrected_bias")
    graph.initializer.append(numpy_helper.from_array((bias - shift).astype(np.float32), node.input[2]))


def _quantize(ready: Path, int8_file: Path, batches: Sequence[Pixels], cache: Path, names: list[str]) -> None:
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(ready),
            str(int8_file),
            _Reader(onnx.load(str(ready), load_external_data=False), batches),
            op_types_to_quantize=[*KINDS, *_FUSED],
            nodes_to_quantize=_with_fused(ready, names),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS)},
            calibration_cache_path=cache,
        )
    finally:
        logging.disable(logging.NOTSET)


class _Reader(CalibrationDataReader):
    """Gives the batches one after the other, in the form that the model's input takes."""

    def __init__(self, message: Any, batches: Sequence[Pixels]):
        inputs = message.graph.input
        self._names = [node_arg.name for node_arg in inputs]
        self._floats = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        forms = [np.moveaxis(array, 3, 1) / np.float32(255) if self._floats else array for array in batch]
        return dict(zip(self._names, forms, strict=True))
