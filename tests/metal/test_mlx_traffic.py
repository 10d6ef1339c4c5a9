"""The counts of `tests.metal.mlx_traffic`: kernels as MLX itself fuses them, and the bytes of known functions."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import mlx.core as mx
import pytest

from backends.mlx import model
from ports.common import gradients
from tests import tiny
from tests.metal import mlx_bytes, mlx_graph, mlx_traffic


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "SPARING", True)


def kernels(function: Callable[..., list[mx.array]], *arguments: mx.array, batch: int = 1) -> list[mlx_bytes.Kernel]:
    return mlx_bytes.kernels(mlx_graph.fused(mlx_graph.traced(function, *arguments)), batch)


def test_kernels_are_fused_as_mlx_fuses_them() -> None:
    """A branching function with products, broadcasts, several outputs and more than eleven steps in a row."""

    def function(x: mx.array, y: mx.array) -> list[mx.array]:
        z = mx.tanh(x) * y + mx.exp(-x)
        deep = z
        for _ in range(20):
            deep = mx.sin(deep) + 1
        mean = mx.mean(z, axis=0)
        return [(z @ y.T) * mx.sum(x) + 1, deep - mean, mx.square(z), mx.where(z > 0, z, -mean)]

    x, y = mx.ones((8, 8)), mx.ones((8, 8))
    text = io.StringIO()
    mx.export_to_dot(text, *mx.compile(function)(x, y))
    theirs = sum(label.startswith("Compiled") for label in re.findall(r'label ="([^"]*)"', text.getvalue()))
    ours = mlx_graph.fused(mlx_graph.traced(function, x, y)).operations
    assert sum(op.name == "Compiled" for op in ours) == theirs > 3


def test_bytes_of_known_functions_are_counted() -> None:
    x = mx.ones((4, 100, 10))
    whole = 4 * x.size
    (one,) = kernels(lambda x: [mx.exp(x) * 2 + x], x)
    assert one == ("elementwise", 2 * whole + 4, False), "4 bytes are the constant 2"
    (turned,) = kernels(lambda x: [mx.exp(x.transpose(0, 2, 1))], x)
    assert turned.bytes == 2 * whole, "a view costs nothing"
    copy, total = kernels(lambda x: [mx.sum(x.transpose(0, 2, 1).reshape(4, -1), axis=1)], x)
    assert (copy.kind, copy.bytes) == ("copy", 2 * whole)
    assert (total.kind, total.bytes) == ("reduction", whole + 16)
    (small,) = kernels(lambda x: [x[:, :1] + x], x)
    assert small.bytes == whole + 4 * 40 + whole
    (wide,) = kernels(lambda x: [x.astype(mx.float32) + 1], x.astype(mx.bfloat16), batch=4)
    assert wide.widens


@pytest.mark.parametrize(("batch", "way"), [(16, "library"), (12, "library"), (12, "ours")])
def test_only_mlxs_own_gradient_unfolds_and_only_off_multiples_of_sixteen(
    batch: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gradients.CHOSEN, gradients.depthwise(7, 1, batch), way)

    def slopes(x: mx.array, w: mx.array) -> list[mx.array]:
        def objective(given: dict[str, mx.array]) -> tuple[mx.array]:
            return (mx.sum(mx.square(gradients.depthwise_conv(x, given["w"], 1, (3, 3), (3, 3)))),)

        return list(mx.value_and_grad(objective)({"w": w})[1].values())

    found = kernels(slopes, mx.zeros((batch, 14, 14, 32)), mx.zeros((32, 7, 7, 1)), batch=batch)
    unfolded = sum(k.bytes for k in found if k.kind == "unfold")
    activation = 4 * batch * 14 * 14 * 32
    if way == "ours":
        assert unfolded < 6 * activation, "a tile of 7 x 7 is read with its margin of 3"
    else:
        assert unfolded == (2 * 49 * activation if batch == 12 else 0)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_nothing_makes_fp32_of_bf16_activations(family: str) -> None:
    row = mlx_traffic.counts(tiny.spec(family), "bf16", 7)
    assert row["widened"] == 0
    assert row["kernels"] == sum(kind["kernels"] for kind in row["kinds"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_kernel_updates_a_parameter(precision: str) -> None:
    """Weight, two moments and EMA come from one kernel, with arguments left of the 31 that Metal takes."""
    spec = tiny.spec("vit")
    graph = mlx_graph.fused(mlx_traffic.step_graph(spec, precision, 4))
    updates = [op for op in graph.operations if op.name == "Compiled" and len(op.outputs) == 4]
    _, parameters = model.build(spec, None, "fp32", seed=0)
    shapes = sorted(graph.arrays[op.outputs[0]][0] for op in updates)
    assert shapes == sorted(tuple(p.shape) for p in parameters.values())
    assert max(len(op.inputs) + len(op.outputs) for op in updates) <= 28


def test_the_command_prints_bytes_and_names_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "resnet18", "--size", "32", "--batch", "4"]
    assert mlx_traffic.main([*words, "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["models"]["resnet18"]
    assert row["bf16"]["bytes"] < row["fp32"]["bytes"]
    assert mlx_traffic.main([*words, "--precision", "fp32"]) == 0
    assert "| elementwise |" in capsys.readouterr().out
    assert mlx_traffic.main(["--model", "no_such_net"]) == 1
    assert "no_such_net" in capsys.readouterr().err
