"""Writes ONNX files: uint8 `images` `[N, S, S, 3]` in, float32 `logits` `[N, C]` out, normalisation and card inside."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import onnx
import torch

from backends.contract import Weights
from config.errors import ConvertError
from convert import torch_graph
from convert.place import whole
from convert.quiet import quietly
from models.card import CARD_KEY, Card

Precision = Literal["fp32", "fp16"]

OPSET = 18
# A protobuf message cannot be larger.
_MOST_BYTES = 2**31 - 1


def export(weights: Weights, card: Card, out: Path, precision: Precision = "fp32", overwrite: bool = False) -> Path:
    """Write `out`, an `.onnx` file, from canonical weights; it is checked by `onnx.checker` before it is in its place.

    fp16 keeps the input, the normalisation and the logits as they are and computes the network in half precision.
    Raises `ConvertError` or `WeightsError`.
    """
    return write(torch_graph.classifier(weights, card), card, out, precision, overwrite)


def write(
    classifier: torch_graph.Classifier, card: Card, out: Path, precision: Precision = "fp32", overwrite: bool = False
) -> Path:
    """`export` of a network that is already built."""
    with whole(out, overwrite) as path:
        with quietly():
            message = _message(classifier, card, precision)
        if message.ByteSize() > _MOST_BYTES:
            raise ConvertError(f"{out}: larger than the 2 GB that an ONNX file can hold; convert to fp16 or Core ML")
        onnx.checker.check_model(message, full_check=True)
        onnx.save_model(message, str(path))
    return out


def _message(classifier: torch_graph.Classifier, card: Card, precision: Precision) -> Any:
    if precision == "fp16":
        classifier = copy.deepcopy(classifier)
        classifier.model.half()
    size = card.preprocessing.size
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            torch_graph.FromBytes(classifier).eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ConvertError(f"{card.model}: torch cannot export it to ONNX ({_line(error)})") from error
    message = program.model_proto
    _strip(message.graph)
    message.metadata_props.add(key=CARD_KEY, value=card.to_json())
    return message


def _strip(graph_message: Any) -> None:
    """Take out the stack traces of this machine that torch attaches to every node."""
    for node in graph_message.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*graph_message.input, *graph_message.output, *graph_message.value_info, *graph_message.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
