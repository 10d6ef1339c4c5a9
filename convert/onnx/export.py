"""Writes ONNX files: images in, float32 `logits` `[N, C]` out, normalisation and card inside.

`int8` quantizes what is exported here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import external_data_helper

from config.errors import ConvertError
from convert.graph import torch_network
from convert.onnx import int8
from convert.place import atomic_artefact
from convert.quiet import quietly
from convert.verification.pictures import Pixels
from infer.runtimes import images as pixels
from infer.runtimes import onnx as runtime
from models.card import CARD_KEY, Card

OPSET = 18
TRIED_KEY = "tandem.tried"
# A protobuf message cannot be larger.
MOST_BYTES = 2**31 - 1
_BESIDE_BYTES = 1024  # of a tensor that goes into the file beside it


def write(
    network: torch_network.Network,
    card: Card,
    out: Path,
    precision: str = "fp32",
    overwrite: bool = False,
    float_input: bool = False,
    calibration: Sequence[Pixels] = (),
    float_layers: tuple[str, ...] = (),
    probabilities: bool = False,
    opset: int = OPSET,
) -> Path:
    """Write `out`, an `.onnx` file that `onnx.checker` accepts and this machine's ONNX Runtime has run.

    Its input `images` is uint8 `[N, S, S, 3]`, or with `float_input` float32 `[N, 3, S, S]` in [0, 1]; of a card with
    several inputs they are `images_480` and the like. Its metadata hold the card and which execution providers were
    tried. fp16 computes the network in half precision; int8 needs `calibration`, batches of images, and leaves the
    nodes `float_layers` as they are. `probabilities` adds the softmax as a second output. A model over 2 GB has its
    weights in `out` + `.data`. Raises `ConvertError`.
    """
    with atomic_artefact(out, overwrite, also=(".data",)) as path:
        with quietly():
            message = exported(network, card, precision, float_input, probabilities, opset)
            if precision == "int8":
                message = int8.quantized(message, calibration, path.parent, float_layers)
        message.metadata_props.add(key=CARD_KEY, value=card.to_json())
        lower_versions(message)
        save(message, path)
        del message  # a large one has no room beside what ONNX Runtime makes of it
        _try(path)
    return out


def exported(
    network: torch_network.Network,
    card: Card,
    precision: str = "fp32",
    float_input: bool = False,
    probabilities: bool = False,
    opset: int = OPSET,
) -> Any:
    """The ONNX model in memory, simplified by onnxscript's optimizer as torch's exporter calls it.

    Raises `ConvertError` where torch cannot export it, or not with this opset.
    """
    if precision == "fp16":
        network = copy.deepcopy(network)
        network.halve()
    names = list(pixels.names(card))
    to_pixels = torch_network.from_fractions if float_input else torch_network.from_levels
    module = torch_network.Exported(network, to_pixels, probabilities)
    batch = torch.export.Dim("batch")
    dtype = torch.float32 if float_input else torch.uint8
    shapes = [(3, p.size, p.size) if float_input else (p.size, p.size, 3) for p in card.inputs]
    try:
        program = torch.onnx.export(
            module.eval(),
            tuple(torch.zeros(2, *shape, dtype=dtype) for shape in shapes),
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=["logits", "probabilities"] if probabilities else ["logits"],
            dynamic_shapes={"images": tuple({0: batch} for _ in names)},
            external_data=False,
            optimize=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConvertError(f"{card.model}: torch cannot export it to ONNX ({reason})") from error
    message = program.model_proto
    (version,) = (entry.version for entry in message.opset_import if entry.domain == "")
    if version != opset:  # torch leaves it at what it could reach, with a warning only
        raise ConvertError(
            f"{card.model}: cannot be written with opset {opset}, only with {version}; give --opset {version}"
        )
    graph = message.graph  # torch attaches stack traces of this machine to every node
    for item in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    return message


def lower_versions(message: Any) -> None:
    """Keep only the operator sets in use, and the lowest IR version that they need, for older runtimes."""
    domains = {"" if node.domain == "ai.onnx" else node.domain for node in _nodes(message.graph)}
    used = [opset for opset in message.opset_import if opset.domain in domains]
    del message.opset_import[:]
    message.opset_import.extend(used)
    message.ir_version = onnx.helper.find_min_ir_version_for(used, ignore_unknown=True)


def _nodes(graph_message: Any) -> Iterator[Any]:
    for node in graph_message.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def save(message: Any, path: Path) -> None:
    """Save and check a model, its tensors beside it in `path` + `.data` when they exceed what a message can hold."""
    large = sum(len(tensor.raw_data) for tensor in message.graph.initializer) > MOST_BYTES - 2**24
    if large:
        for tensor in message.graph.initializer:  # save_model's own option looks for the file in the working directory
            if len(tensor.raw_data) >= _BESIDE_BYTES:
                external_data_helper.set_external_data(tensor, f"{path.name}.data")
        onnx.save_model(message, str(path))
        onnx.checker.check_model(str(path), full_check=True)
    else:
        onnx.checker.check_model(message, full_check=True)
        onnx.save_model(message, str(path))


def _try(path: Path) -> None:
    """Predict one black image on each provider of this machine, and record these in the file."""
    tried = {}
    for provider in runtime.available(path):
        opened = runtime.open(path, (provider,))
        opened.logits(*(np.zeros((1, prep.size, prep.size, 3), np.uint8) for prep in opened.card.inputs))
        if provider in opened.providers:
            tried[provider] = runtime.version()
        opened.close()
    message = onnx.load(str(path), load_external_data=False)
    message.metadata_props.add(key=TRIED_KEY, value=json.dumps(tried, sort_keys=True))
    onnx.save_model(message, str(path))
