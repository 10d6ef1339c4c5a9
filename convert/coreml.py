"""Writes Core ML packages: ML Programs for macOS 14, pixels in, labels, probabilities and logits out, card inside.

Works on Linux too, where nothing can be predicted; `infer.predictors.mil_reference` evaluates the result there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from backends.contract import Weights
from config.errors import ConvertError
from convert import torch_graph
from convert.classify import add_labels
from convert.place import whole
from convert.quiet import quietly
from infer.predictors.mil_package import coremltools
from models.card import CARD_KEY, Card

Precision = Literal["fp32", "fp16"]


def export(
    weights: Weights,
    card: Card,
    out: Path,
    precision: Precision = "fp32",
    batches: tuple[int, ...] = (),
    overwrite: bool = False,
) -> Path:
    """Write `out`, an `.mlpackage`, from canonical weights.

    Without `batches` the input is `image`, one RGB picture of the card's size, and the package is a classifier
    (`classLabel`, `classLabel_probs`). With them it is `images`, float32 `[N, S, S, 3]` in [0, 255] for each N listed
    (the first is the default), and there are no labels. Outputs in both: float32 `logits` and `probabilities` `[N, C]`.
    Raises `ConvertError`, `WeightsError`, or `BackendUnavailable` where coremltools is missing.
    """
    return write(torch_graph.classifier(weights, card), card, out, precision, batches, overwrite)


def write(
    classifier: torch_graph.Classifier,
    card: Card,
    out: Path,
    precision: Precision = "fp32",
    batches: tuple[int, ...] = (),
    overwrite: bool = False,
) -> Path:
    """`export` of a network that is already built."""
    with whole(out, overwrite) as path, quietly():
        ct = coremltools()
        exported = _exported(classifier, card, batches)
        model = _converted(ct, exported, card, precision, batches)
        spec = model.get_spec()
        if not batches:
            add_labels(spec, card.class_names)
        spec.description.metadata.userDefined[CARD_KEY] = card.to_json()
        spec.description.metadata.shortDescription = f"{card.model}, {len(card.class_names)} classes"
        ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(path))
    return out


def _exported(classifier: torch_graph.Classifier, card: Card, batches: tuple[int, ...]) -> Any:
    size = card.preprocessing.size
    module = torch_graph.WithProbabilities(classifier, channels_last=bool(batches)).eval()
    shape = (size, size, 3) if batches else (3, size, size)
    many = len(batches) > 1
    example = torch.zeros(2 if many else (*batches, 1)[0], *shape)
    # A range of one length would be a constant, which torch refuses to call dynamic.
    dynamic = {"pixels": {0: torch.export.Dim("batch", min=1, max=max(*batches, 2))}} if many else None
    exported = torch.export.export(module, (example,), dynamic_shapes=dynamic).run_decompositions({})
    drop_aliases(exported.graph)
    return exported


def drop_aliases(fx_graph: Any) -> None:
    """Replace each `aten.alias` (Swin has some, coremltools knows none) by its input, which it equals."""
    for node in list(fx_graph.nodes):
        if node.target == torch.ops.aten.alias.default:
            node.replace_all_uses_with(node.args[0])
            fx_graph.erase_node(node)


def _converted(ct: Any, exported: Any, card: Card, precision: Precision, batches: tuple[int, ...]) -> Any:
    try:
        return ct.convert(
            exported,
            inputs=[_input(ct, card.preprocessing.size, batches)],
            outputs=[ct.TensorType(name=name, dtype=np.float32) for name in ("logits", "probabilities")],
            minimum_deployment_target=ct.target.macOS14,
            compute_precision=ct.precision.FLOAT16 if precision == "fp16" else ct.precision.FLOAT32,
            skip_model_load=True,
        )
    except (ValueError, NotImplementedError, RuntimeError) as error:
        line = " ".join(str(error).split())[:300]
        hint = "; one batch size alone may work" if len(batches) > 1 else ""
        raise ConvertError(f"{card.model}: coremltools cannot convert it ({line}){hint}") from error


def _input(ct: Any, size: int, batches: tuple[int, ...]) -> Any:
    if not batches:
        return ct.ImageType(name="image", shape=(1, 3, size, size), color_layout=ct.colorlayout.RGB)
    shapes = [(n, size, size, 3) for n in batches]
    shape = ct.EnumeratedShapes(shapes, default=shapes[0]) if len(shapes) > 1 else shapes[0]
    return ct.TensorType(name="images", shape=shape, dtype=np.float32)
