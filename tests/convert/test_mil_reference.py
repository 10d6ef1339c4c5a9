"""The reference evaluator executes what the package says, all of it, and refuses what it does not know."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2

from config.errors import CheckpointError, UnsupportedOperation, WeightsError
from infer.runtimes import mil_reference as reference
from infer.runtimes.mil import evaluate, program
from infer.runtimes.mil import package as mil_package
from tests.convert.networks import CLASSES, Network

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def changed(package: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    """A copy of a package whose program's block went through `change`."""
    copy = folder / "changed.mlpackage"
    shutil.copytree(package, copy)
    model = Model_pb2.Model()
    model.ParseFromString((copy / MODEL).read_bytes())
    (block,) = model.mlProgram.functions["main"].block_specializations.values()
    change(block)
    (copy / MODEL).write_bytes(model.SerializeToString())
    return copy


def first(block: Any, kind: str) -> Any:
    return next(o for o in block.operations if o.type == kind)


def constant(block: Any, name: str) -> Any:
    return next(o for o in block.operations if o.outputs[0].name == name).attributes["val"].immediateValue.tensor


def exact(path: Path, network: Network) -> np.ndarray:
    return reference.open(path, mode="float64").exact(network.images)


def test_a_changed_weight_byte_moves_the_logits(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    places: list[int] = []

    def find(block: Any) -> None:
        *_, head = (o for o in block.operations if o.type == "linear")
        weight = head.inputs["weight"].arguments[0].name
        value = next(o for o in block.operations if o.outputs[0].name == weight).attributes["val"]
        places.append(value.blobFileValue.offset)

    copy = changed(vit_package, tmp_path, find)
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[places[0] + 64 + 3] ^= 0x01  # behind the record of 64 bytes: the exponent of the first weight
    (copy / WEIGHTS).write_bytes(data)
    assert np.abs(exact(copy, vit) - exact(vit_package, vit)).max() > 1e-3


@pytest.mark.parametrize("mode", ["TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"])
def test_a_changed_mode_moves_the_logits(mode: str, vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        name = first(block, "gelu").inputs["mode"].arguments[0].name
        constant(block, name).strings.values[0] = mode

    moved = np.abs(exact(changed(vit_package, tmp_path, change), vit) - exact(vit_package, vit)).max()
    assert moved > 1e-6


def test_a_changed_number_moves_the_logits(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        name = first(block, "layer_norm").inputs["epsilon"].arguments[0].name
        constant(block, name).floats.values[0] = 0.1

    assert np.abs(exact(changed(vit_package, tmp_path, change), vit) - vit.double).max() > 1e-4


def test_two_swapped_inputs_move_the_logits(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        values = first(block, "concat").inputs["values"].arguments
        one, two = values[0].name, values[1].name
        values[0].name, values[1].name = two, one

    assert np.abs(exact(changed(vit_package, tmp_path, change), vit) - vit.double).max() > 1e-4


def test_swapped_operands_of_a_difference_move_the_logits(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        operation = first(block, "sub")
        x, y = operation.inputs["x"].arguments[0].name, operation.inputs["y"].arguments[0].name
        operation.inputs["x"].arguments[0].name, operation.inputs["y"].arguments[0].name = y, x

    assert np.abs(exact(changed(vit_package, tmp_path, change), vit) - vit.double).max() > 1e-2


def test_an_unknown_operation_is_named(vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        first(block, "gelu").type = "mystery"

    with pytest.raises(UnsupportedOperation, match="mystery"):
        reference.open(changed(vit_package, tmp_path, change))


def test_an_unknown_argument_is_named(vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        operation = first(block, "softmax")
        operation.inputs["temperature"].CopyFrom(operation.inputs["axis"])

    with pytest.raises(UnsupportedOperation, match=r"softmax.*temperature"):
        reference.open(changed(vit_package, tmp_path, change))


def test_a_missing_argument_is_named(vit_package: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match=r"linear.*weight"):
        reference.open(changed(vit_package, tmp_path, lambda b: first(b, "linear").inputs.pop("weight")))


def test_an_unknown_mode_is_named(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        name = first(block, "gelu").inputs["mode"].arguments[0].name
        constant(block, name).strings.values[0] = "ROUGH"

    with pytest.raises(UnsupportedOperation, match="ROUGH"):
        exact(changed(vit_package, tmp_path, change), vit)


def test_a_shape_other_than_declared_is_refused(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        first(block, "gelu").outputs[0].type.tensorType.dimensions[1].constant.size += 1

    with pytest.raises(UnsupportedOperation, match=r"gelu.*declares"):
        exact(changed(vit_package, tmp_path, change), vit)


def test_a_dtype_other_than_declared_is_refused(vit: Network, vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        tensor = first(block, "gelu").outputs[0].type.tensorType
        tensor.dataType = mil_package.coremltools("coremltools.proto.MIL_pb2").DataType.Value("INT32")

    with pytest.raises(UnsupportedOperation, match=r"gelu.*declares int32"):
        exact(changed(vit_package, tmp_path, change), vit)


def test_labels_in_another_order_are_refused(vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        values = first(block, "classify").inputs["classes"].arguments[0].value.immediateValue.list.values
        values.reverse()

    with pytest.raises(WeightsError, match="class labels"):
        reference.open(changed(vit_package, tmp_path, change))


def test_truncated_weights_are_refused(vit_package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut.mlpackage"
    shutil.copytree(vit_package, copy)
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:100_000])
    with pytest.raises(WeightsError, match=r"weight\.bin"):
        reference.open(copy)


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, "Manifest.json"])
def test_a_package_with_a_part_missing_is_refused(name: str, vit_package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "part.mlpackage"
    shutil.copytree(vit_package, copy)
    (copy / name).unlink()
    with pytest.raises(WeightsError, match=r"convert it again"):
        reference.open(copy)


def test_an_absent_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such"):
        reference.open(tmp_path / "absent.mlpackage")


def test_weights_outside_the_package_are_refused(vit_package: Path, tmp_path: Path) -> None:
    def change(block: Any) -> None:
        stored = next(o for o in block.operations if o.attributes["val"].blobFileValue.fileName)
        stored.attributes["val"].blobFileValue.fileName = "@model_path/../../../secret.bin"

    with pytest.raises(UnsupportedOperation, match=r"secret\.bin"):
        reference.open(changed(vit_package, tmp_path, change))


def test_labels_and_probabilities_belong_to_the_logits(vit: Network, vit_package: Path) -> None:
    evaluator = evaluate.Evaluator(program.parse(mil_package.read(vit_package)))
    answer: dict[str, Any] = evaluator.run({"image": vit.images[:1].transpose(0, 3, 1, 2).astype(np.float32)})
    expected = torch.softmax(torch.from_numpy(vit.single[0]), 0).numpy()
    assert answer["classLabel"] == CLASSES[expected.argmax()]
    np.testing.assert_allclose([answer["classLabel_probs"][c] for c in CLASSES], expected, rtol=1e-5)
    np.testing.assert_allclose(answer["probabilities"][0].numpy(), expected, rtol=1e-5)


def test_values_are_freed_after_their_last_use(
    vit: Network, vit_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    born: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            alive.append(sum(r() is not None for r in born))
            result = function(**arguments)
            born.extend(weakref.ref(r) for r in ([result] if isinstance(result, torch.Tensor) else []))
            return result

        return call

    evaluator = evaluate.Evaluator(program.parse(mil_package.read(vit_package)))
    for kind in ("linear", "gelu", "add", "matmul", "softmax", "layer_norm"):
        monkeypatch.setitem(evaluate.OPERATIONS, kind, watched(evaluate.OPERATIONS[kind]))
    evaluator.run({"image": vit.images[:1].transpose(0, 3, 1, 2).astype(np.float32)})
    assert len(alive) > 20
    assert max(alive) <= 4


def test_no_images_give_no_rows(vit: Network, vit_package: Path) -> None:
    assert reference.open(vit_package).logits(vit.images[:0]).shape == (0, len(CLASSES))


def test_images_of_another_size_are_refused(vit: Network, vit_package: Path) -> None:
    with pytest.raises(ValueError, match="uint8"):
        reference.open(vit_package).logits(vit.images[:, :-1])
