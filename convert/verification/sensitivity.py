"""Measures which layers lose most by int8 or by a palette: each alone is compressed, all others stay in float.

The converted networks are run: ONNX in ONNX Runtime, Core ML in the reference evaluator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import log_softmax

from convert.coreml import compress, mlpackage
from convert.graph import torch_network
from convert.onnx import export, int8
from convert.quiet import quietly
from convert.verification.pictures import Pixels
from infer.runtimes import Predictor
from infer.runtimes import onnx as onnx_runtime
from infer.runtimes.mil import package as mil_package
from infer.runtimes.mil import program
from infer.runtimes.mil.evaluate import Evaluator
from infer.runtimes.mil_reference import MilReferencePredictor
from models.card import CARD_KEY, Card

# A sweep runs the network once per layer.
IMAGES = 32


class Loss(NamedTuple):
    """The loss from compressing one layer alone: the mean of KL(float || compressed) in nats.

    `layer` is its node or constant, `name` its name in the network.
    """

    layer: str
    name: str
    kl_divergence: float


class Mixture(Protocol):
    """A network with any of its layers compressed; `layers` maps each node or constant to its name in the network."""

    layers: dict[str, str]

    def open(self, compressed: Collection[str]) -> Predictor:
        """The network with these layers compressed and all others in float; it ends with the next call."""
        ...


@contextlib.contextmanager
def mixture(
    network: torch_network.Network,
    card: Card,
    artefact: Path,
    precision: str,
    calibration: Sequence[Pixels],
    macos: int = 14,
) -> Iterator[Mixture]:
    """The mixture of `artefact`, a file or package in `precision`, with its network in float.

    Of a Core ML package those constants can be compressed that are so in the artefact, of an ONNX file all layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        if artefact.suffix == ".onnx":
            yield _Onnx(network, card, calibration, Path(folder))
        else:
            yield _CoreML(network, card, artefact, precision, macos, Path(folder))


def rank(network: torch_network.Network, mixed: Mixture, images: Pixels) -> list[Loss]:
    """All layers of the mixture, the one that loses most first; `images` are those of one batch."""
    before = log_softmax(torch_network.once(network, *images).astype(np.float64), 1)
    losses = []
    for layer, name in mixed.layers.items():
        with contextlib.closing(mixed.open([layer])) as opened:
            after = log_softmax(opened.logits(*images).astype(np.float64), 1)
        losses.append(Loss(layer, name, float((np.exp(before) * (before - after)).sum(1).mean())))
    return sorted(losses, key=lambda loss: -loss.kl_divergence)


def layers_in_float(losses: Sequence[Loss], holds: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """The fewest of the worst layers (0, 1, 2, 4, ... at most half) that must stay in float.

    `holds(layers)` says whether the limits hold with these in float; where no number helps, the largest is returned.
    """
    names: tuple[str, ...] = ()
    half = len(losses) // 2
    for number in sorted({0, half, *(2**k for k in range(half.bit_length()))}):
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


class _Onnx:
    """See `Mixture`; each one is a file in `folder` that the next one replaces."""

    def __init__(self, network: torch_network.Network, card: Card, calibration: Sequence[Pixels], folder: Path):
        with quietly():
            message = export.exported(network, card)
        message.metadata_props.add(key=CARD_KEY, value=card.to_json())
        self._quantizer, self._file = int8.Quantizer(message, calibration, folder), folder / "mixed.onnx"
        self.layers = self._quantizer.layers

    def open(self, compressed: Collection[str]) -> Predictor:
        self._quantizer.write(self._file, [layer for layer in self.layers if layer in compressed])
        return onnx_runtime.open(self._file)


class _CoreML:
    """See `Mixture`; the evaluator takes the constants of the artefact or of the program in fp16."""

    def __init__(
        self, network: torch_network.Network, card: Card, artefact: Path, precision: str, macos: int, folder: Path
    ):
        with quietly():
            model = mlpackage.converted(network, card, precision, macos=macos)
            mlpackage.save(model, card, folder / "float.mlpackage", labels=False)
            named = mlpackage.layer_names(network, card)
        self._card, self._plain = card, program.parse(mil_package.read(folder / "float.mlpackage"))
        used = {
            argument.name: operation.outputs[0].name.removesuffix("_cast_fp16")
            for operation in self._plain.operations
            for bound in operation.inputs.values()
            for argument in bound
            if isinstance(argument, program.Named)
        }
        constants = program.parse(mil_package.read(artefact)).constants
        self._dense = {
            layer: dense
            for name, dense in constants.items()
            if (layer := compress.original(name)) is not None and layer in self._plain.constants
        }
        self.layers = {
            layer: named.get(layer.removesuffix("_to_fp16")) or named.get(used.get(layer, ""), layer)
            for layer in self._dense
        }

    def open(self, compressed: Collection[str]) -> Predictor:
        constants = {**self._plain.constants, **{layer: self._dense[layer] for layer in compressed}}
        return MilReferencePredictor(self._card, Evaluator(dataclasses.replace(self._plain, constants=constants)), ())
