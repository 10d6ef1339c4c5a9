"""int8, 8-bit weights and palettes: what is written, what the evaluator reads of it, and which layers stay in float."""

from __future__ import annotations

import copy
from pathlib import Path

import coremltools as ct
import coremltools.optimize.coreml as optimize
import numpy as np
import onnx as onnx_library
import onnxruntime
import pytest

from config.errors import ConfigError
from convert.coreml import mlpackage
from convert.onnx import export
from convert.onnx import int8 as onnx_int8
from convert.verification import pictures, precision, sensitivity
from infer.runtimes import mil_reference as reference
from infer.runtimes import onnx as onnx_predictor
from infer.runtimes.mil import package, program
from tests.convert.networks import Network, build


@pytest.fixture(scope="module")
def small() -> Network:
    return build("convnext")


@pytest.mark.parametrize(
    ("kind", "macos", "bits"),
    [("w8", 14, 8), ("palette6", 14, 6), ("w8", 15, 8), ("palette6", 15, 6), ("palette4", 15, 4)],
)
def test_the_evaluator_unpacks_weights_as_coremltools_does(
    kind: str, macos: int, bits: int, small: Network, tmp_path: Path
) -> None:
    path = mlpackage.write(small.classifier, small.card, tmp_path / "x.mlpackage", kind, (1,), macos=macos)
    unpacked = optimize.decompress_weights(ct.models.MLModel(str(path), skip_model_load=True))
    unpacked.save(str(tmp_path / "dense.mlpackage"))
    dense = program.parse(package.read(tmp_path / "dense.mlpackage"))
    ours = program.parse(package.read(path))
    compressed = {n: v for n, v in ours.constants.items() if n.endswith(("_quantized", "_palettized"))}
    assert len(compressed) > 5
    theirs = {v.tobytes() for v in dense.constants.values() if isinstance(v, np.ndarray)}
    assert all(value.tobytes() in theirs for value in compressed.values())
    assert max(len(np.unique(v)) for v in compressed.values()) > 2 ** (bits - 1)
    logits = reference.open(path).logits(small.images)
    assert (logits.argmax(1) == small.single.argmax(1)).all()
    assert np.abs(logits - small.single).max() < {8: 0.05, 6: 0.15, 4: 0.6}[bits] * small.single.std()


def test_a_changed_index_byte_of_a_palette_moves_the_logits(small: Network, tmp_path: Path) -> None:
    path = mlpackage.write(small.classifier, small.card, tmp_path / "x.mlpackage", "palette6")
    before = reference.open(path).logits(small.images)
    (block,) = package.read(path).spec.mlProgram.functions["main"].block_specializations.values()
    operation = [o for o in block.operations if o.type == "constexpr_lut_to_dense"][-1]
    file = path / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    data[operation.attributes["indices"].blobFileValue.offset + 64] ^= 0x20
    file.write_bytes(data)
    assert np.abs(reference.open(path).logits(small.images) - before).max() > 1e-4


@pytest.fixture(scope="module")
def int8(vit: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "x.onnx"
    return export.write(
        vit.classifier, vit.card, out, "int8", calibration=[(vit.images,)], float_layers=("node_linear_8",)
    )


def test_int8_is_per_channel_and_leaves_the_named_layers(int8: Path, vit: Network) -> None:
    model = onnx_library.load(int8)
    onnx_library.checker.check_model(model, full_check=True)
    made = {name: node for node in model.graph.node for name in node.output}
    (convolution,) = (n for n in model.graph.node if n.op_type == "Conv")
    assert [made[name].op_type for name in convolution.input[:2]] == ["DequantizeLinear"] * 2
    scale = next(t for t in model.graph.initializer if t.name == made[convolution.input[1]].input[1])
    assert list(scale.dims) == [vit.classifier.model.patch_embed.proj.out_channels]
    (head,) = (n for n in model.graph.node if n.op_type == "Gemm")
    assert head.input[1] == "classifier.model.head.weight"
    logits = onnx_predictor.open(int8).logits(vit.images)
    assert (logits.argmax(1) == vit.single.argmax(1)).all()
    assert 1e-4 < np.abs(logits - vit.single).max() < 0.15 * vit.single.std()
    assert sorted(p.name for p in int8.parent.iterdir()) == ["x.onnx"]


@pytest.mark.parametrize("family", ["mobilenetv2", "resnet"])
def test_int8_takes_the_range_of_a_convolution_behind_its_activation(family: str, tmp_path: Path) -> None:
    """ReLU6 and ReLU are computed with their convolution; logits stay in float."""
    network = build(family)
    path = export.write(network.classifier, network.card, tmp_path / "x.onnx", "int8", calibration=[(network.images,)])
    graph = onnx_library.load(path).graph
    users: dict[str, list[onnx_library.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def behind(node: onnx_library.NodeProto, steps: int) -> set[str]:
        nodes = [node]
        for _ in range(steps):
            nodes = [user for one in nodes for user in users.get(one.output[0], [])]
        return {one.op_type for one in nodes}

    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 10
    for node in convolutions:
        if behind(node, 1) == {"QuantizeLinear"}:
            assert not behind(node, 3) & {"Clip", "Relu"}
    assert {made.op_type for made in graph.node if "logits" in made.output} == {"Gemm"}
    if family == "resnet":  # random ReLU6 weights lose more than a standard deviation of the logits by int8
        logits = onnx_predictor.open(path).logits(network.images)
        assert np.abs(logits - network.single).max() < 0.5 * network.single.std()


@pytest.mark.parametrize("biased", [True, False])
def test_rounded_weights_do_not_move_the_mean_of_a_layer(biased: bool, tmp_path: Path) -> None:
    """One weight of each channel is so large that the others round to zero; its own input is always zero."""
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.01, 0.03, (4, 8, 1, 1)).astype(np.float32)
    weight[:, 0] = 10
    bias = [onnx_library.numpy_helper.from_array(np.array([0, 1, -1, 0.5], np.float32), "bias")] if biased else []
    make = onnx_library.helper
    graph = make.make_graph(
        [make.make_node("Conv", ["images", "weight", *(["bias"] if biased else [])], ["logits"], name="conv")],
        "g",
        [make.make_tensor_value_info("images", onnx_library.TensorProto.FLOAT, ["N", 8, 3, 3])],
        [make.make_tensor_value_info("logits", onnx_library.TensorProto.FLOAT, ["N", 4, 3, 3])],
        [onnx_library.numpy_helper.from_array(weight, "weight"), *bias],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8)
    images = rng.integers(0, 256, (5, 3, 3, 8), dtype=np.uint8)
    images[..., 0] = 0
    small = onnx_int8.quantized(model, [(images[:3],), (images[3:],)], tmp_path)

    def logits(one: onnx_library.ModelProto) -> np.ndarray:
        session = onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"images": np.moveaxis(images, 3, 1) / np.float32(255)})[0].mean((0, 2, 3))

    assert "QuantizeLinear" in {node.op_type for node in small.graph.node}
    # The outputs have steps of 0.008; the rounded weights alone would move the means by 0.06.
    np.testing.assert_allclose(logits(small), logits(model), atol=0.004)
    assert not list(tmp_path.iterdir())


def test_the_layer_that_was_made_hard_for_int8_is_named_first(small: Network) -> None:
    """One channel of its input is a thousand times the others."""
    hard = copy.deepcopy(small.classifier)
    hard.model.head.norm.weight[0] *= 1000
    hard.model.head.fc.weight[:, 0] *= 0.001
    with sensitivity.mixture(hard, small.card, Path("x.onnx"), "int8", [(small.images,)]) as mixed:
        losses = sensitivity.rank(hard, mixed, (small.images,))
    assert losses[0].name == "head.fc"
    assert losses[0].kl_divergence > 10 * losses[1].kl_divergence


def test_the_layer_that_was_made_hard_for_a_palette_is_named_first(small: Network, tmp_path: Path) -> None:
    """One column of its weights is a thousand times the others."""
    hard = copy.deepcopy(small.classifier)
    norm, convolution = hard.model.stages[2].downsample
    norm.weight[0] *= 0.001
    norm.bias[0] *= 0.001
    convolution.weight[:, 0] *= 1000
    path = mlpackage.write(hard, small.card, tmp_path / "x.mlpackage", "palette4")
    with sensitivity.mixture(hard, small.card, path, "palette4", []) as mixed:
        losses = sensitivity.rank(hard, mixed, (small.images,))
        in_float = [loss.layer for loss in losses[:4]]
        mixture = mixed.open([layer for layer in mixed.layers if layer not in in_float]).logits(small.images)
    written = mlpackage.write(hard, small.card, tmp_path / "y.mlpackage", "palette4", float_layers=tuple(in_float))
    assert (reference.open(written).logits(small.images) == mixture).all()
    assert losses[0].name == "stages.2.downsample.1"
    assert losses[0].kl_divergence > 2 * losses[1].kl_divergence


def test_layers_are_added_to_float_until_the_limits_hold() -> None:
    losses = [sensitivity.Loss(f"l{k}", f"n{k}", 1.0 / (k + 1)) for k in range(9)]
    asked: list[int] = []

    def holds(layers: tuple[str, ...]) -> bool:
        asked.append(len(layers))
        return len(layers) >= 2

    assert sensitivity.layers_in_float(losses, holds) == ("l0", "l1")
    assert asked == [0, 1, 2]
    asked.clear()
    assert len(sensitivity.layers_in_float([*losses, *losses], lambda layers: holds(layers) and False)) == 9
    assert asked == [0, 1, 2, 4, 8, 9]
    assert "yes" in sensitivity.table(losses, ["l0"]).splitlines()[2]


def test_calibration_images_are_drawn_by_class() -> None:
    labels = np.repeat([0, 1, 2], [100, 10, 3])
    drawn = pictures.draw(labels, 30)
    assert np.bincount(labels[drawn]).tolist() == [17, 10, 3]
    assert (pictures.draw(labels, 30) == drawn).all()
    assert len(pictures.draw(labels, 500)) == 113


def test_what_no_format_takes_is_said() -> None:
    kinds = precision.pairs(["onnx", "coreml"], ["fp32", "int8", "w8"])
    assert kinds == [("onnx", "fp32"), ("onnx", "int8"), ("coreml", "fp32"), ("coreml", "w8")]
    with pytest.raises(ConfigError, match=r"coreml has no int8.*w8"):
        precision.pairs(["coreml"], ["int8"])
    with pytest.raises(ConfigError, match="w8 is one of coreml only"):
        precision.pairs(["onnx"], ["fp32", "w8"])
