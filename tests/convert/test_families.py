"""Every family, converted and read back from disk, answers as timm's network on torch does."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from convert.coreml import mlpackage
from convert.onnx import export
from infer.runtimes import mil_reference as reference
from infer.runtimes import onnx as onnx_predictor
from tests.convert import networks

# In multiples of torch's own rounding error on the same images, as issue 7 fixes it.
FLOORS = 5


@pytest.mark.parametrize("family", networks.FAMILIES)
def test_converted_answers_as_torch_does(family: str, tmp_path: Path) -> None:
    network = networks.build(family)
    allowed = FLOORS * network.floor
    file = export.write(network.classifier, network.card, tmp_path / "x.onnx")
    package = mlpackage.write(network.classifier, network.card, tmp_path / "x.mlpackage")
    for opened in (onnx_predictor.open(file), reference.open(package)):
        logits = opened.logits(network.images)
        assert logits.dtype == np.float32
        assert np.abs(logits - network.single).max() <= allowed, opened.runtime
    exact = reference.open(package, mode="float64").exact(network.images)
    assert np.abs(exact - network.double).max() <= allowed


@pytest.mark.parametrize("family", ["convnext", "swin"])
def test_fp16_is_as_good_as_torch_in_half_precision(family: str, tmp_path: Path) -> None:
    network = networks.build(family)
    half = copy.deepcopy(network.classifier)
    half.model.half()
    floor = np.abs(half(networks.pixels(network.images)).numpy() - network.single).max()
    package = mlpackage.write(network.classifier, network.card, tmp_path / "x.mlpackage", "fp16")
    file = export.write(network.classifier, network.card, tmp_path / "x.onnx", "fp16")
    for logits in (
        reference.open(package).logits(network.images),
        onnx_predictor.open(file).logits(network.images),
    ):
        assert np.abs(logits - network.single).max() <= FLOORS * floor
    assert next(network.classifier.model.parameters()).dtype.itemsize == 4, "the caller's network was changed"
