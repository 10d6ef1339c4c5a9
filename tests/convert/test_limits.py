"""int8, w8 and palettes keep their limits on calibration images by themselves, or are refused."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import onnx as onnx_library
import pytest

from convert import command, export, source
from convert.export import Job
from convert.graph import torch_ensemble
from convert.graph.torch_network import Classifier
from convert.onnx import export as onnx
from convert.verification import sensitivity, speed
from models.card import Card
from tests.convert.networks import Network

HEAD = "node_linear_8"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for k in range(24):
        cv2.imwrite(str(folder / f"{k}.png"), rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return folder


@pytest.fixture(scope="module")
def vit_file(vit: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx.write(vit.classifier, vit.card, tmp_path_factory.mktemp("vit") / "x.onnx")


def one(network: Classifier, card: Card, monkeypatch: pytest.MonkeyPatch) -> source.Source:
    monkeypatch.setattr(torch_ensemble, "build", lambda _: network)
    return source.Source(Path("best"), card, ())


@pytest.fixture(scope="module")
def hard(vit: Network) -> Classifier:
    """One channel of the head's input is ten thousand times the others."""
    network = copy.deepcopy(vit.classifier)
    network.model.norm.weight[0] *= 10000
    network.model.norm.bias[0] *= 10000
    network.model.head.weight[:, 0] *= 0.0001
    return network


def test_int8_keeps_the_hard_layer_in_float_by_itself(
    hard: Classifier,
    vit: Network,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sensitivity, "rank", lambda *_: [sensitivity.Loss(n, n, 0.1) for n in (HEAD, "node_linear_3")])
    told = one(hard, vit.card, monkeypatch)
    options = command.parser().parse_args(["best", "--to", "onnx", "--calibrate", str(pictures)])
    jobs = [Job("onnx", "int8", tmp_path / "x.onnx"), Job("onnx", "fp32", tmp_path / "y.onnx")]
    assert export.export(told, jobs, options) == []
    said = capsys.readouterr().out
    assert "x.onnx: 1 of 2 layers in float keep the limits" in said and f"ms an image; worst: {HEAD}" in said
    (head,) = (n for n in onnx_library.load(tmp_path / "x.onnx").graph.node if n.op_type == "Gemm")
    assert head.input[1] == "classifier.model.head.weight", "quantised"
    assert (tmp_path / "x.onnx.sweep.md").read_text().splitlines()[2].endswith("| yes |")
    assert "x.onnx: fp32's speed" in said and "with 1 image at a time" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.onnx.sweep.md", "y.onnx"]


def test_a_precision_that_cannot_keep_its_limits_is_refused_and_costs_no_other(
    vit: Network,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sensitivity, "rank", lambda *_: [sensitivity.Loss("no", "blocks.0.mlp.fc1", 0.1)])
    monkeypatch.setattr(export.Exporter, "_faults", lambda *_: ("log loss 2 instead of 1, within 3% wanted",))
    told = one(vit.classifier, vit.card, monkeypatch)
    options = command.parser().parse_args(["best", "--to", "coreml", "--calibrate", str(pictures)])
    jobs = [Job("coreml", "palette4", tmp_path / "x.mlpackage"), Job("coreml", "fp16", tmp_path / "y.mlpackage")]
    (fault,) = export.export(told, jobs, options)
    assert "palette4 is refused for vit_tiny_patch16_224; worst: blocks.0.mlp.fc1" in fault
    assert "log loss" in fault and "24 calibration images" in fault
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.mlpackage.sweep.md", "y.mlpackage"]
    assert "wrote" in capsys.readouterr().out


def test_without_images_the_limits_are_not_checked_and_that_is_said(
    vit: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = one(vit.classifier, vit.card, monkeypatch)
    options = command.parser().parse_args([str(tmp_path / "best"), "--to", "coreml"])
    assert export.export(told, [Job("coreml", "w8", tmp_path / "x.mlpackage")], options) == []
    assert "limits are not checked" in (said := capsys.readouterr().out) and "--calibrate IMAGES" in said


@pytest.mark.parametrize(("plain", "small", "pays"), [(3.0, 1.0, True), (1.4, 1.0, False), (1.0, 2.0, False)])
def test_the_command_says_when_int8_does_not_pay(
    plain: float, small: float, pays: bool, vit_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "in_turn", lambda paths, count: [plain, small])
    said = speed.line(vit_file, vit_file)
    assert f"{plain / small:.2f} x with 1 image at a time" in said and "with 16 images" in said
    assert ("does not pay on this machine" in said) != pays
