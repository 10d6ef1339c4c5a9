"""What a Core ML package says of itself: input, outputs, labels, card. Its numbers are `test_families`'s."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from config.errors import BackendUnavailable, ConvertError
from convert.coreml import mlpackage
from convert.graph import torch_network
from convert.verification import sensitivity
from infer import runtimes
from infer.runtimes import mil_reference
from infer.runtimes.mil import package
from models.card import Card
from tests.convert.networks import CLASSES, Network, build
from tests.parity import drawn, kinds

MACOS_14 = 8


def test_the_package_is_an_image_classifier_for_macos_14(vit: Network, vit_package: Path) -> None:
    spec = package.read(vit_package).spec
    assert spec.specificationVersion == MACOS_14
    (image,) = spec.description.input
    kind = image.type.imageType
    assert (image.name, kind.width, kind.height) == ("image", 32, 32)
    assert kind.colorSpace == kind.ColorSpace.Value("RGB")
    outputs = {o.name: o.type.WhichOneof("Type") for o in spec.description.output}
    assert outputs == {
        "classLabel": "stringType",
        "classLabel_probs": "dictionaryType",
        "logits": "multiArrayType",
        "probabilities": "multiArrayType",
    }
    assert mil_reference.open(vit_package).card == vit.card


def test_labels_are_written_as_coremltools_writes_them(vit_package: Path) -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x.mean((2, 3)), -1)

    exported = torch.export.export(Plain(), (torch.zeros(1, len(CLASSES), 4, 4),)).run_decompositions({})
    reference = ct.convert(
        exported,
        inputs=[ct.TensorType(name="x", shape=(1, len(CLASSES), 4, 4))],
        classifier_config=ct.ClassifierConfig(list(CLASSES)),
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.macOS14,
        skip_model_load=True,
    ).get_spec()
    ours = package.read(vit_package).spec
    theirs_last, ours_last = _last(reference), _last(ours)
    theirs_last.inputs["probabilities"].arguments[0].name = "probabilities"
    theirs_last.attributes["name"].CopyFrom(ours_last.attributes["name"])
    assert ours_last == theirs_last
    for name in ("predictedFeatureName", "predictedProbabilitiesName"):
        assert getattr(ours.description, name) == getattr(reference.description, name)
    for one, other in zip(reference.description.output[:2], ours.description.output[:2], strict=True):
        assert (one.name, one.type) == (other.name, other.type)


def _last(spec: Any) -> Any:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return block.operations[-1]


def test_a_tensor_input_takes_the_listed_batches(vit: Network, tmp_path: Path) -> None:
    path = mlpackage.write(vit.classifier, vit.card, tmp_path / "x.mlpackage", batches=(1, 2))
    array = package.read(path).spec.description.input[0].type.multiArrayType
    assert sorted(tuple(s.shape) for s in array.enumeratedShapes.shapes) == [(1, 32, 32, 3), (2, 32, 32, 3)]
    logits = mil_reference.open(path).logits(vit.images)
    assert np.abs(logits - vit.single).max() <= 5 * vit.floor


def test_swin_takes_one_batch_size_and_refuses_several(tmp_path: Path) -> None:
    network = build("swin")
    with pytest.raises(ConvertError, match="one batch size"):
        mlpackage.write(network.classifier, network.card, tmp_path / "x.mlpackage", batches=(1, 2))
    assert not list(tmp_path.iterdir()), "something was left of the failed conversion"
    path = mlpackage.write(network.classifier, network.card, tmp_path / "x.mlpackage", batches=(2,))
    logits = mil_reference.open(path).logits(network.images)
    assert np.abs(logits - network.single).max() <= 5 * network.floor


@pytest.mark.parametrize("arch", ["mobilenetv2_035", "vit_tiny_patch16_224", "maxvit_tiny_tf_224"])
def test_layers_that_lose_most_have_the_network_s_names(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = kinds.tiny(arch, monkeypatch)
    model = drawn.torch_network(spec, drawn.weights(spec))
    card = Card(arch, CLASSES, spec.preprocessing, dict(spec.options), "torch")
    network = torch_network.Classifier(model, spec.preprocessing).eval().requires_grad_(False)
    path = mlpackage.write(network, card, tmp_path / "x.mlpackage", "w8")
    with sensitivity.mixture(network, card, path, "w8", ()) as mixed:
        losses = sensitivity.rank(network, mixed, (drawn.images(spec, 2),))
    assert len({loss.name for loss in losses}) == len(losses) > 5
    assert {loss.name for loss in losses} <= {name for name, _ in model.named_modules()}


def test_writing_a_package_prints_nothing_of_coremltools(
    vit: Network, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mlpackage.write(vit.classifier, vit.card, tmp_path / "x.mlpackage")
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_fills_while_weights_are_written_is_one_line(
    vit: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def no_room(*_: object, **__: object) -> None:
        asked.append(Path(tempfile.mkdtemp()))
        raise RuntimeError("[MIL FileWriter]: Unknown error occurred while writing data to the file.")

    def full(_: str) -> SimpleNamespace:
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(ct, "convert", no_room)
    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(ConvertError, match=r"x\.mlpackage: cannot be written .* free some space"):
        mlpackage.write(vit.classifier, vit.card, tmp_path / "x.mlpackage")
    assert tmp_path in asked[0].parents, "large temporary files lie on another disk than the package"
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is there")
def test_core_ml_itself_is_refused_where_it_does_not_run(vit_package: Path) -> None:
    with pytest.raises(BackendUnavailable, match="macOS"):
        runtimes.open(vit_package, "coreml")


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
@pytest.mark.parametrize("units", ["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"])
def test_core_ml_answers_as_torch_does(units: str, vit: Network, vit_package: Path) -> None:
    logits = runtimes.open(vit_package, "coreml", compute_units=units).logits(vit.images)
    assert (logits.argmax(1) == vit.single.argmax(1)).all()
    assert np.abs(logits - vit.single).max() <= 0.02 * vit.single.std()
