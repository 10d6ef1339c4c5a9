"""Each rule finds the fault that is planted for it, and not what is like it and right."""

from __future__ import annotations

import functools
import importlib.metadata
import io
import re
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import pytest

from backends.mlx import metal
from ports.common import layers, rows, transformer
from tests.metal import mlx_graph, rules, traces
from tests.metal.rules import Trace

HALF, FLOAT = mx.bfloat16, mx.float32
Function = Callable[..., mx.array]


def test_the_rules_were_read_at_the_installed_version_of_mlx() -> None:
    again = "\n".join(f"  {name}: {source}" for name, source in rules.SOURCES.items())
    found = importlib.metadata.version("mlx")
    assert found == rules.VERSION, f"the rules were read at MLX {rules.VERSION}, here is {found}; read again:\n{again}"
    assert rules.SOURCES.keys() == rules.RULES.keys()


def broken(function: Function, *arguments: mx.array) -> set[str]:
    """The rules that a function of arrays breaks."""
    graph = mlx_graph.traced(lambda *given: [function(*given)], *arguments)
    return set(rules.faults(Trace(graph, training=False)))


def slope(function: Function) -> Function:
    """The gradient of the sum of a function, for its last argument."""

    def gradient(*given: mx.array) -> mx.array:
        def objective(last: dict[str, mx.array]) -> tuple[mx.array]:
            return (mx.sum(function(*given[:-1], last["x"]).astype(FLOAT)),)

        return mx.value_and_grad(objective)({"x": given[-1]})[1]["x"]

    return gradient


def conv(**options: int) -> Function:
    return lambda x, w: mx.conv_general(x, w, **options)


def zeros(*shape: int, dtype: mx.Dtype = FLOAT) -> mx.array:
    return mx.zeros(shape, dtype)


MATRIX = zeros(4, 4)
CHANNELS, ROWS, MORE_ROWS = (zeros(*shape, dtype=HALF) for shape in ((8,), (2, 2500, 8), (2, 2**17 + 1, 8)))
WIDE_ROWS = zeros(2**18 + 1, 4104, dtype=HALF)  # never computed
FAULTS: list[tuple[str, Function, list[mx.array]]] = [
    ("no_kernel", lambda x: mx.linalg.qr(x, stream=mx.cpu)[0], [MATRIX]),
    ("no_kernel", lambda x: mx.linalg.svd(x, stream=mx.cpu)[1], [MATRIX]),
    ("no_kernel", lambda x: mx.linalg.inv(x, stream=mx.cpu), [MATRIX]),
    ("no_kernel", lambda x: mx.linalg.cholesky(x, stream=mx.cpu), [MATRIX]),
    ("no_kernel", lambda x: mx.linalg.eigvalsh(x, stream=mx.cpu), [MATRIX]),
    ("float64", lambda x: mx.add(x.astype(mx.float64), 1, stream=mx.cpu), [MATRIX]),
    ("winograd", conv(padding=1), [zeros(16, 32, 32, 128, dtype=HALF), zeros(128, 3, 3, 128, dtype=HALF)]),
    ("winograd", conv(padding=1), [zeros(9, 32, 32, 32, dtype=mx.float16), zeros(224, 3, 3, 32, dtype=mx.float16)]),
    ("unfold", conv(padding=1, groups=4), [zeros(2, 8, 8, 32), zeros(32, 3, 3, 8)]),
    (
        "unfold",
        slope(lambda w, x: conv(padding=1, stride=2, groups=2)(x, w)),
        [zeros(32, 3, 3, 16), zeros(2, 8, 8, 32)],
    ),
    ("pointwise", conv(), [zeros(2, 8, 8, 32), zeros(16, 1, 1, 32)]),
    ("half_sums", lambda x: mx.sum(x, axis=0), [zeros(4097, 8, dtype=HALF)]),
    ("half_sums", slope(lambda x, bias: x + bias), [zeros(2, 70, 70, 8, dtype=mx.float16), zeros(8, dtype=mx.float16)]),
    ("half_sums", lambda x: mx.mean(x, axis=1), [zeros(2, 4900, 8, dtype=HALF)]),
    ("half_sums", slope(lambda x, bias: mx.fast.layer_norm(x, bias, bias, 1e-6)), [ROWS, CHANNELS]),
    ("half_sums", slope(lambda x, weight: mx.fast.layer_norm(x, weight, None, 1e-6)), [MORE_ROWS, CHANNELS]),
    ("half_sums", slope(lambda x, weight: mx.fast.rms_norm(x, weight, 1e-6)), [WIDE_ROWS, zeros(4104, dtype=HALF)]),
    ("scatter", slope(lambda i, table: table[i]), [mx.array([1, 1, 0]), zeros(2, 3)]),
    ("scatter", slope(nn.MaxPool2d(3, 2, 1)), [zeros(1, 8, 8, 4)]),
    ("scatter", slope(lambda i, x: mx.take_along_axis(x, i, axis=1)), [zeros(2, 1, dtype=mx.int32), zeros(2, 3)]),
]
RIGHT: list[tuple[Function, list[mx.array]]] = [
    (conv(padding=1), [zeros(16, 32, 32, 128), zeros(128, 3, 3, 128)]),
    (conv(padding=1, stride=2), [zeros(16, 32, 32, 128, dtype=HALF), zeros(128, 3, 3, 128, dtype=HALF)]),
    (conv(padding=1, groups=2), [zeros(2, 8, 8, 32), zeros(32, 3, 3, 16)]),
    (conv(stride=2), [zeros(2, 8, 8, 32), zeros(16, 1, 1, 32)]),
    (lambda x: mx.sum(x, axis=0), [zeros(4096, 8, dtype=HALF)]),
    (lambda x: mx.sum(x, axis=0), [zeros(9999, 8)]),
    (lambda x: mx.max(x, axis=0), [zeros(9999, 8, dtype=HALF)]),
    (slope(lambda x, bias: x + rows.over_rows(bias, x.shape)), [zeros(2, 70, 70, 8, dtype=HALF), zeros(8, dtype=HALF)]),
    (rows.means, [zeros(2, 70, 70, 8, dtype=HALF)]),
    (slope(lambda w, x: rows.means(x)), [MATRIX, zeros(2, 70, 70, 8, dtype=HALF)]),
    (rows.means, [zeros(2, 4900, 8, dtype=HALF)]),
    (lambda x: mx.mean(mx.mean(x, axis=2), axis=1), [zeros(2, 70, 70, 8, dtype=HALF)]),
    (slope(lambda x, bias: rows.layer_norm(x, bias, bias, 1e-6)), [ROWS, CHANNELS]),
    (slope(lambda x, weight: rows.layer_norm(x, weight, weight, 1e-6)), [MORE_ROWS, CHANNELS]),
    (slope(lambda x, weight: mx.fast.rms_norm(x, weight, 1e-6)), [MORE_ROWS, CHANNELS]),
    (slope(lambda x, bias: mx.fast.layer_norm(x, bias, bias, 1e-6)), [zeros(4096, 8, dtype=HALF), CHANNELS]),
    (slope(layers.MaxPool2d(3, 2, 1)), [zeros(1, 8, 8, 4)]),
    (lambda i, table: table[i], [mx.array([1, 1, 0]), zeros(2, 3)]),
]


@pytest.fixture(autouse=True)
def winograd_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in metal.WINOGRAD:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_a_planted_fault_is_found(number: int) -> None:
    rule, function, arguments = FAULTS[number]
    assert broken(function, *arguments) == {rule}


@pytest.mark.parametrize("number", range(len(RIGHT)))
def test_what_looks_like_a_fault_and_is_none_passes(number: int) -> None:
    function, arguments = RIGHT[number]
    assert broken(function, *arguments) == set()


def test_more_than_20_index_arrays_are_a_fault() -> None:
    place, whole = mx.array([0]), zeros(*[1] * 21)
    assert broken(lambda x: x[(place,) * 21], whole) == {"index_arrays"}
    assert broken(lambda x: x[(place,) * 20], whole) == set()


def added(*arrays: mx.array) -> list[mx.array]:
    """The sum of all but five as a tree, times a constant and the five; MLX compares with its 24 inputs too late."""

    def tree(part: tuple[mx.array, ...]) -> mx.array:
        return part[0] if len(part) == 1 else tree(part[: len(part) // 2]) + tree(part[len(part) // 2 :])

    return [functools.reduce(mx.multiply, arrays[-5:], tree(arrays[:-5]) * 2.5)]


@pytest.mark.parametrize(("count", "broken"), [(27, False), (28, True)])
def test_arguments_of_a_kernel_are_counted_without_constants(count: int, broken: bool) -> None:
    """Inputs, the output, strides, shape and size: 31 of 27 arrays; and MLX makes one kernel of them, too."""
    arrays = [mx.array([float(n)] * 8) for n in range(count)]
    found = rules.faults(Trace(mlx_graph.traced(added, *arrays), training=False))
    assert set(found) == ({"buffers"} if broken else set())
    text = io.StringIO()
    mx.export_to_dot(text, *mx.compile(added)(*arrays))
    (kernel,) = re.findall(r"(\d+) \[label =\"Compiled", text.getvalue())
    assert len(re.findall(rf"-> {kernel}$", text.getvalue(), re.M)) == count + 1, "the constant counts here"


@pytest.mark.parametrize("head", [64, 96, 128, 192, 256, 512])
def test_attention_of_few_queries_is_refused_under_a_gradient_alone(head: int) -> None:
    def attend(k: mx.array, q: mx.array) -> mx.array:
        return mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0)

    def found(function: Function, queries: int, training: bool, head: int = head) -> set[str]:
        k, q = zeros(2, 3, 16, head), zeros(2, 3, queries, head)
        with traces.uncomputed() as seen:
            graph = mlx_graph.traced(lambda *given: [(slope(function) if training else function)(*given)], k, q)
        return set(rules.faults(Trace(graph, training, seen)))

    assert found(attend, 1, training=True) == found(attend, 8, training=True) == {"attention"}
    assert not found(attend, 9, training=True)
    assert not found(attend, 1, training=False)
    assert not found(attend, 1, training=True, head=48)
    assert not found(lambda k, q: transformer.attend(q, k, k), 1, training=True)


def test_winograd_passes_where_a_session_switched_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CONV_WINOGRAD", "0")
    assert broken(conv(padding=1), zeros(16, 32, 32, 128, dtype=HALF), zeros(128, 3, 3, 128, dtype=HALF)) == set()
