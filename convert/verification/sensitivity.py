"""Which layers lose most by int8 or by a palette: each alone is compressed, all others stay in float.

What is run are the converters' own files, ONNX in ONNX Runtime, Core ML in the reference evaluator.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from convert.coreml import compress, mlpackage
from convert.graph import torch_network
from convert.onnx import export, int8
from convert.quiet import quietly
from convert.verification.pictures import Pixels
from infer.runtimes import onnx as onnx_runtime
from infer.runtimes.mil import package as mil_package
from infer.runtimes.mil import program
from infer.runtimes.mil.evaluate import Evaluator
from infer.runtimes.mil_reference import MilReferencePredictor
from models.card import CARD_KEY, Card

# A sweep runs the whole network once a layer.
IMAGES = 32


class Loss(NamedTuple):
    """What compressing one layer alone costs: the mean of KL(float || compressed) in nats.

    `layer` is its node or constant, `name` what a person calls it.
    """

    layer: str
    name: str
    kl_divergence: float


def rank(
    network: torch_network.Network,
    card: Card,
    target: str,
    precision: str,
    images: Pixels,
    calibration: Sequence[Pixels],
    macos: int = 14,
) -> list[Loss]:
    """All layers that `precision` compresses, the one that loses most first; `images` are those of one batch."""
    before = log_softmax(torch_network.once(network, *images).astype(np.float64), 1)
    with tempfile.TemporaryDirectory() as folder:
        if target == "onnx":
            losses = list(_onnx(network, card, images, calibration, Path(folder), before))
        else:
            losses = list(_coreml(network, card, precision, images, Path(folder), before, macos))
    return sorted(losses, key=lambda loss: -loss.kl_divergence)


def kept(losses: Sequence[Loss], holds: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """The fewest of the worst layers (0, 1, 2, 4, ... at most half) that must stay in float.

    `holds(layers)` says whether the limits hold with these in float; where no number helps, the largest is returned.
    """
    names: tuple[str, ...] = ()
    for number in [0, *(2**k for k in range(len(losses)) if 2 ** (k + 1) <= len(losses))]:
        names = tuple(loss.layer for loss in losses[:number])
        if holds(names):
            break
    return names


def worst(losses: Sequence[Loss]) -> str:
    """The three layers that lose most, in words."""
    return "; ".join(f"{loss.name} (KL {loss.kl_divergence:.1e} alone)" for loss in losses[:3])


def table(losses: Sequence[Loss], in_float: Sequence[str]) -> str:
    """All layers as a Markdown table."""
    lines = ["| layer | KL with it alone compressed | kept in float |", "|---|---|---|"]
    lines += [f"| {x.name} | {x.kl_divergence:.3g} | {'yes' if x.layer in in_float else ''} |" for x in losses]
    return "\n".join(lines) + "\n"


def _kl(before: NDArray, logits: NDArray) -> float:
    after = log_softmax(logits.astype(np.float64), 1)
    return float((np.exp(before) * (before - after)).sum(1).mean())


def _onnx(
    network: torch_network.Network,
    card: Card,
    images: Pixels,
    calibration: Sequence[Pixels],
    folder: Path,
    before: NDArray,
) -> Iterator[Loss]:
    with quietly():
        message = export.exported(network, card)
    message.metadata_props.add(key=CARD_KEY, value=card.to_json())
    for node, name, file in int8.one_by_one(message, calibration, folder):
        opened = onnx_runtime.open(file)
        yield Loss(node, name, _kl(before, opened.logits(*images)))
        opened.close()


def _coreml(
    network: torch_network.Network,
    card: Card,
    precision: str,
    images: Pixels,
    folder: Path,
    before: NDArray,
    macos: int,
) -> Iterator[Loss]:
    with quietly():
        model = mlpackage.converted(network, card, precision, macos=macos)
        mlpackage.save(model, card, folder / "float.mlpackage", labels=False)
        small = compress.compressed(model, precision, macos=macos)
        mlpackage.save(small, card, folder / "small.mlpackage", labels=False)
        layers = mlpackage.layer_names(network, card)
    plain, compressed = (_program(folder / name) for name in ("float.mlpackage", "small.mlpackage"))
    used = {
        argument.name: operation.outputs[0].name.removesuffix("_cast_fp16")
        for operation in plain.operations
        for bound in operation.inputs.values()
        for argument in bound
        if isinstance(argument, program.Named)
    }
    for name, dense in compressed.constants.items():
        layer = compress.original(name)
        if layer is not None and layer in plain.constants:
            changed = dataclasses.replace(plain, constants={**plain.constants, layer: dense})
            answer = MilReferencePredictor(card, Evaluator(changed), ()).logits(*images)
            stored = layer.removesuffix("_to_fp16")
            yield Loss(layer, layers.get(stored) or layers.get(used.get(layer, ""), layer), _kl(before, answer))


def _program(path: Path) -> Any:
    package = mil_package.read(path)
    return program.parse(package)
