"""Static int8 for ONNX: `QuantizeLinear` and `DequantizeLinear` around convolutions and matrix products.

onnxruntime.quantization does it: int8 weights per channel, uint8 activations with ranges of calibration images. A
convolution's range is taken behind its ReLU, ReLU6 and residual addition, since ONNX Runtime computes them as one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from convert.pictures import Pixels

KINDS = ("Conv", "Gemm", "MatMul")
# Computed together with the layer in front of them, so that nothing is quantised in between.
_FUSED = ("Clip", "Relu", "Add")
# Their results stay in float: logits, and what a normalisation or a GELU takes.
_FLOAT_OUTPUTS = ("Gemm", "MatMul")
_CACHE = "ranges.json"


def prepared(message: Any, folder: Path) -> Path:
    """The model with its shapes inferred and its constants folded, as quantisation wants it, in a file of `folder`."""
    plain, ready = folder / "float.onnx", folder / "prepared.onnx"
    onnx.save_model(message, str(plain))
    quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    plain.unlink()
    return ready


def quantized(message: Any, batches: Sequence[Pixels], folder: Path, float_layers: tuple[str, ...] = ()) -> Any:
    """The model in int8; `folder` takes what onnxruntime writes on its way, and holds no new file afterwards."""
    ready = prepared(message, folder)
    made = folder / "int8.onnx"
    kept = [name for name in layers(ready) if name not in float_layers]
    _quantize(ready, made, batches, folder, kept)
    whole = onnx.load(str(made))
    for path in (ready, made, folder / _CACHE):
        path.unlink(missing_ok=True)
    return whole


def one_by_one(message: Any, batches: Sequence[Pixels], folder: Path) -> Iterator[tuple[str, str, Path]]:
    """For each layer its node, its name and the model with it alone in int8, a file that the next one replaces."""
    ready = prepared(message, folder)
    made = folder / "one.onnx"
    for node, name in layers(ready).items():
        _quantize(ready, made, batches, folder, [node])
        yield node, name, made


def layers(file: Path) -> dict[str, str]:
    """The nodes that are quantised, in the model's order, and what the layer of each is called in torch.

    That is the name of its weight, or of the bias that is added behind; a node without either keeps its own.
    Products of two activations, as in attention, stay in float: onnxruntime 1.31 gives wrong answers for them.
    """
    graph = onnx.load(str(file), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    weights = {name for name in stored if "." in name}
    behind = {name: node for node in graph.node for name in node.input}
    found = {}
    for node in (n for n in graph.node if n.op_type in KINDS and n.input[1] in stored):
        then = behind.get(node.output[0])
        near = [*node.input, *(then.input if then is not None and then.op_type == "Add" else ())]
        named = next((name for name in near if name in weights), node.name)
        found[node.name] = re.sub(r"^classifier\.(model\.)?|\.(weight|bias)$", "", named)
    return found


def _with_fused(file: Path, names: list[str]) -> list[str]:
    """The layers `names` with the nodes behind their convolutions that are computed together with them."""
    graph = onnx.load(str(file), load_external_data=False).graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found, wanted = list(names), set(names)
    for node in (n for n in graph.node if n.name in wanted and n.op_type == "Conv"):
        behind = users.get(node.output[0], [])
        while len(behind) == 1 and behind[0].op_type in _FUSED:
            found.append(behind[0].name)
            behind = users.get(behind[0].output[0], [])
    return list(dict.fromkeys(found))


def _quantize(ready: Path, made: Path, batches: Sequence[Pixels], folder: Path, names: list[str]) -> None:
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            str(ready),
            str(made),
            _Reader(ready, batches),
            op_types_to_quantize=[*KINDS, *_FUSED],
            nodes_to_quantize=_with_fused(ready, names),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS)},
            calibration_cache_path=folder / _CACHE,
        )
    finally:
        logging.disable(logging.NOTSET)


class _Reader(CalibrationDataReader):
    """Gives the batches one after the other, in the form that the model's input takes."""

    def __init__(self, file: Path, batches: Sequence[Pixels]):
        inputs = onnx.load(str(file), load_external_data=False).graph.input
        self._names = [one.name for one in inputs]
        self._floats = inputs[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        self._left = iter(batches)

    def get_next(self) -> dict[str, NDArray] | None:
        """The next batch, None after the last."""
        batch = next(self._left, None)
        if batch is None:
            return None
        forms = [np.moveaxis(one, 3, 1) / np.float32(255) if self._floats else one for one in batch]
        return dict(zip(self._names, forms, strict=True))
