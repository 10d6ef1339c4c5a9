"""Writes Core ML packages: ML Programs, pixels in, labels, probabilities and logits out, card inside.

Works on Linux too, where nothing can be predicted; `infer.runtimes.mil_reference` evaluates the result there.
"""

from __future__ import annotations

import errno
import functools
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config.errors import ConvertError
from convert.coreml import compress
from convert.coreml.classify import add_labels
from convert.graph import torch_network
from convert.place import atomic_artefact, temporaries
from convert.quiet import quietly
from infer.runtimes import images as pixels
from infer.runtimes.mil.package import coremltools
from models.card import CARD_KEY, Card

# Core ML's own names of the systems; newer ones run the packages of older ones.
TARGETS = {13: "iOS16", 14: "iOS17", 15: "iOS18"}


class _Result(NamedTuple):
    """An argument of `_replace`'s calls: the result of an earlier call; -1 is the previous one."""

    call: int


_LAST = _Result(-1)


def write(
    network: torch_network.Network,
    card: Card,
    out: Path,
    precision: str = "fp32",
    batches: tuple[int, ...] = (),
    overwrite: bool = False,
    macos: int = 14,
    float_layers: tuple[str, ...] = (),
) -> Path:
    """Write `out`, an `.mlpackage` for this macOS or a newer one.

    Without `batches` the input is `image`, one RGB picture of the card's size, and the package is a classifier
    (`classLabel`, `classLabel_probs`). With them it is `images`, float32 `[N, S, S, 3]` in [0, 255] for each N listed
    (the first is the default), and there are no labels. Where the card has several inputs, they are `image_480` or
    `images_480` and the like. Outputs in both: float32 `logits` and `probabilities` `[N, C]`.
    `float_layers` names constants of the program that stay in fp16 where `precision` compresses the others.
    Raises `ConvertError`, or `BackendUnavailable` where coremltools is missing.
    """
    with atomic_artefact(out, overwrite) as path, temporaries(path.parent), quietly():
        model = converted(network, card, precision, batches, macos)
        save(compress.compressed(model, precision, float_layers, macos), card, path, labels=not batches)
    return out


def converted(
    network: torch_network.Network, card: Card, precision: str, batches: tuple[int, ...] = (), macos: int = 14
) -> Any:
    """coremltools' model, in fp32, or in fp16 for every other precision; nothing is compressed yet.

    Its weights are a temporary file. Raises `ConvertError`, and `OSError` where there is no room for that.
    """
    ct = coremltools()
    named = zip(pixels.names(card, "images" if batches else "image"), card.inputs, strict=True)
    # One pass writes `x * weight + bias` (group norms) as a batch_norm without an epsilon, whose default of 1e-5 makes
    # each such layer 5e-6 too small.
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_elementwise_to_batchnorm"})
    try:
        return ct.convert(
            _exported(network, card, batches),
            inputs=[_input(ct, name, prep.size, batches) for name, prep in named],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in ("logits", "probabilities")],
            minimum_deployment_target=getattr(ct.target, TARGETS[macos]),
            compute_precision=ct.precision.FLOAT32 if precision == "fp32" else ct.precision.FLOAT16,
            pass_pipeline=passes,
            skip_model_load=True,
        )
    except (ValueError, NotImplementedError, RuntimeError) as error:
        if shutil.disk_usage(tempfile.gettempdir()).free < torch_network.size(network):  # it does not say so itself
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        line = " ".join(str(error).split())[:300]
        hint = "; one batch size alone may work" if len(batches) > 1 else ""
        raise ConvertError(f"{card.model}: coremltools cannot convert it ({line}){hint}") from error


def layer_names(network: torch_network.Network, card: Card) -> dict[str, str]:
    """The layer of the network that each weight or value of the program belongs to, by its name without `_cast_fp16`.

    It is the layer whose weights make the value, or the nearest one before: coremltools folds BatchNorm into the
    convolution before it and then calls the weights by a number.
    """
    exported = _exported(network, card, ())
    signature = exported.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names: dict[str, str] = {}
    for node in exported.graph.nodes:
        if node.name in stored:
            names[node.name] = _layer(stored[node.name])
            continue
        inputs = [source.name for source in node.all_input_nodes]
        weights = [stored[name] for name in inputs if name in stored]
        before = [names[name] for name in inputs if name in names and name not in stored]
        if weights and "batch_norm" not in node.name:
            names[node.name] = _layer(weights[0])
        elif before:
            names[node.name] = before[0]
    return names


def _layer(weight: str) -> str:
    return re.sub(r"^classifier\.(model\.)?|\.weight$", "", weight)


def save(model: Any, card: Card, path: Path, labels: bool) -> None:
    """Save coremltools' model with the card inside, as a classifier where `labels`."""
    spec = model.get_spec()
    if labels:
        add_labels(spec, card.class_names)
    spec.description.metadata.userDefined[CARD_KEY] = card.to_json()
    spec.description.metadata.shortDescription = f"{card.model}, {len(card.class_names)} classes"
    coremltools().models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(path))


def _exported(network: torch_network.Network, card: Card, batches: tuple[int, ...]) -> Any:
    module = torch_network.Exported(
        network, lambda images: images.permute(0, 3, 1, 2) if batches else images, probabilities=True
    ).eval()
    sizes = [prep.size for prep in card.inputs]
    shapes = [(size, size, 3) if batches else (3, size, size) for size in sizes]
    many = len(batches) > 1
    examples = tuple(torch.zeros(2 if many else (*batches, 1)[0], *shape) for shape in shapes)
    # A range of one length would be a constant, which torch refuses to call dynamic.
    batch = {0: torch.export.Dim("batch", min=1, max=max(*batches, 2))} if many else None
    dynamic = {"images": tuple(batch for _ in sizes)} if many else None
    exported = torch.export.export(module, examples, dynamic_shapes=dynamic).run_decompositions({})
    _fold_scalars(exported)
    rewrite(exported.graph)
    return exported


def _fold_scalars(exported: Any) -> None:
    """Write scalars of rank zero that follow from weights alone (the lambda of differential attention) as numbers:
    coremltools 9.0 computes them itself and then refuses its own result."""
    signature = exported.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    fixed = {node for node in exported.graph.nodes if stored.get(node.name) in exported.state_dict}
    scalars = []
    for node in exported.graph.nodes:
        result, inputs = node.meta.get("val"), set(node.all_input_nodes)
        if node.op == "call_function" and isinstance(result, torch.Tensor) and inputs and fixed >= inputs:
            fixed.add(node)
            scalars += [] if result.ndim else [node]

    @functools.cache
    def value(node: Any) -> Any:
        if node.name in stored:
            return exported.state_dict[stored[node.name]]
        arguments, keywords = torch.fx.node.map_arg((node.args, node.kwargs), value)
        return node.target(*arguments, **keywords)

    numbers = {node: float(value(node)) for node in scalars}
    for node in reversed(scalars):
        for user in list(node.users):
            user.replace_input_with(node, numbers[node])
        exported.graph.erase_node(node)


def rewrite(fx_graph: Any) -> None:
    """Write the operations that coremltools does not know, or reads wrongly, as others that mean the same.

    `alias` (Swin) is its input, and so is an anti-aliased resize to the size that its input has: ViTs with dynamic
    image sizes resize their position table to the grid, which is the table's own since the image size is fixed when
    the network is built. `addcmul(x, y, z, value=v)` (ConvNeXt V2) is `x + v * (y * z)`. coremltools 9.0 drops the
    keyword of `gelu(x, approximate="tanh")` and writes the exact GELU; written out, the tanh form is fused again. It
    divides the input of `rms_norm` by its largest value but epsilon not, so that epsilon counts too much or too little.
    """
    aten = torch.ops.aten
    for node in list(fx_graph.nodes):
        resizes = node.target in (aten._upsample_bicubic2d_aa.vec, aten._upsample_bicubic2d_aa.default)
        same_size = resizes and node.meta["val"].shape == node.args[0].meta["val"].shape
        if node.target == aten.alias.default or same_size:
            node.replace_all_uses_with(node.args[0])
            fx_graph.erase_node(node)
        elif node.target == aten.gelu.default:
            if node.kwargs.get("approximate") == "tanh":
                _replace(fx_graph, node, _gelu_tanh(*node.args))
        elif node.target == aten.rms_norm.default:
            _replace(fx_graph, node, _rms_norm(*node.args))
        elif node.target == aten.addcmul.default:
            _replace(fx_graph, node, _addcmul(*node.args, **node.kwargs))


def _gelu_tanh(x: Any) -> list[tuple[Any, ...]]:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), in the order of coremltools' own pattern."""
    aten = torch.ops.aten
    return [
        (aten.pow.Tensor_Scalar, x, 3.0),
        (aten.mul.Tensor, _LAST, 0.044715),
        (aten.add.Tensor, x, _LAST),
        (aten.mul.Tensor, _LAST, math.sqrt(2 / math.pi)),
        (aten.tanh.default, _LAST),
        (aten.add.Tensor, _LAST, 1.0),
        (aten.mul.Tensor, _LAST, 0.5),
        (aten.mul.Tensor, x, _LAST),
    ]


def _addcmul(x: Any, y: Any, z: Any, value: float = 1.0) -> list[tuple[Any, ...]]:
    aten = torch.ops.aten
    scale = [] if value == 1 else [(aten.mul.Tensor, _LAST, value)]
    return [(aten.mul.Tensor, y, z), *scale, (aten.add.Tensor, x, _LAST)]


def _rms_norm(x: Any, shape: list[int], weight: Any = None, eps: float | None = None) -> list[tuple[Any, ...]]:
    """x / sqrt(mean(x^2) + eps); rows with values above 1 are divided by the largest first: fp16 squares overflow."""
    aten = torch.ops.aten
    dims = [-n - 1 for n in range(len(shape))]
    epsilon = torch.finfo(torch.float32).eps if eps is None else eps
    return [
        (aten.abs.default, x),
        (aten.amax.default, _Result(0), dims, True),
        (aten.clamp.default, _Result(1), 1.0, None),
        (aten.div.Tensor, x, _Result(2)),
        (aten.mul.Tensor, _Result(3), _Result(3)),
        (aten.mean.dim, _Result(4), dims, True),
        (aten.reciprocal.default, _Result(2)),
        (aten.mul.Tensor, _Result(6), _Result(6)),
        (aten.mul.Tensor, _Result(7), epsilon),
        (aten.add.Tensor, _Result(5), _Result(8)),
        (aten.rsqrt.default, _Result(9)),
        (aten.mul.Tensor, _Result(3), _Result(10)),
        *([] if weight is None else [(aten.mul.Tensor, _Result(11), weight)]),
    ]


def _replace(fx_graph: Any, node: Any, calls: Sequence[tuple[Any, ...]]) -> None:
    """Replace `node` by the calls, each a function and its arguments."""
    results: list[Any] = []
    with fx_graph.inserting_before(node):
        for function, *arguments in calls:
            bound = tuple(results[a.call] if isinstance(a, _Result) else a for a in arguments)
            results.append(fx_graph.call_function(function, bound))
            results[-1].meta = dict(node.meta)
    node.replace_all_uses_with(results[-1])
    fx_graph.erase_node(node)


def _input(ct: Any, name: str, size: int, batches: tuple[int, ...]) -> Any:
    if not batches:
        return ct.ImageType(name=name, shape=(1, 3, size, size), color_layout=ct.colorlayout.RGB)
    shapes = [(n, size, size, 3) for n in batches]
    shape = ct.EnumeratedShapes(shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
    return ct.TensorType(name=name, shape=shape, dtype=np.float32)
