"""Parameters over rows, 1x1 and grouped convolutions, and tables of offsets: their gradients against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ports.common import gradients, layers, rows, windows

RNG = np.random.default_rng(0)
EPSILON = 2.0**-8  # of bf16


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def vjp(function: Callable[..., mx.array], g: np.ndarray, *arrays: mx.array) -> list[np.ndarray]:
    slopes = mx.vjp(function, list(arrays), [mx.array(g).astype(arrays[0].dtype)])[1]
    return [np.array(s.astype(mx.float32)) for s in slopes]


def near(found: Any, wanted: torch.Tensor, rtol: float = 2e-6) -> None:
    want = wanted.detach().numpy()
    np.testing.assert_allclose(np.asarray(found), want, rtol=0, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize("leading", [(5000,), (3, 41, 43), (1, 7)])
def test_sums_over_rows_lose_no_digits_in_half_precision(leading: tuple[int, ...], dtype: mx.Dtype) -> None:
    """All of one sign, where a sum in the dtype itself stops growing."""
    g, bias = np.abs(draw(*leading, 6)), mx.zeros(6, dtype)
    x = mx.zeros((*leading, 6), dtype)
    exact = np.array(mx.array(g).astype(dtype).astype(mx.float32)).astype(np.float64).reshape(-1, 6).sum(axis=0)
    for function in (lambda b: x + rows.over_rows(b, x.shape), lambda b: (x + 1) * rows.over_rows(b, x.shape)):
        (found,) = [np.array(s.astype(mx.float32)) for s in mx.vjp(function, [bias], [mx.array(g).astype(dtype)])[1]]
        np.testing.assert_allclose(found, exact, rtol=EPSILON)


@pytest.mark.parametrize("size", [9, 70])
def test_gates_over_pixels_lose_none_either(size: int) -> None:
    g, gate = np.abs(draw(2, size, size, 4)), mx.zeros((2, 1, 1, 4), mx.bfloat16)
    x = mx.ones((2, size, size, 4), mx.bfloat16)
    rounded = np.array(mx.array(g).astype(mx.bfloat16).astype(mx.float32))
    exact = rounded.sum(axis=(1, 2), keepdims=True, dtype=np.float64)
    slopes = mx.vjp(lambda gate: x * rows.over_pixels(gate, x.shape), [gate], [mx.array(g).astype(mx.bfloat16)])[1]
    np.testing.assert_allclose(np.array(slopes[0].astype(mx.float32)), exact, rtol=EPSILON)


@pytest.mark.parametrize(("shape", "most"), [((3, 41, 43, 16), 2**18), ((3, 41, 43, 16), 4096), ((4, 9, 16), 2**18)])
def test_layer_norm_has_torchs_gradients_in_bf16(
    shape: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows, many, and more than MLX's own sum of the weight's gradient is taken for."""
    monkeypatch.setattr(rows, "_MOST_ROWS", most)
    arrays = [draw(*shape), 1 + draw(16), draw(16), np.abs(draw(*shape))]
    given = [mx.array(a).astype(mx.bfloat16) for a in arrays]
    *exact, g = [torch.tensor(np.array(a.astype(mx.float32)), dtype=torch.float64, requires_grad=True) for a in given]
    y = F.layer_norm(exact[0], shape[-1:], exact[1], exact[2], eps=1e-6)
    y.backward(g)
    outputs, slopes = mx.vjp(lambda *a: rows.layer_norm(*a, 1e-6), given[:3], given[3:])
    near(np.array(outputs[0].astype(mx.float32)), y, 2 * EPSILON)
    to_x, to_weight, to_bias = (np.array(s.astype(mx.float32)) for s in slopes)
    for found, wanted in zip((to_x, to_weight, to_bias), exact, strict=True):
        assert wanted.grad is not None
        if found is to_bias or most == 4096:
            near(found, wanted.grad, (1 if found is to_bias else 2) * EPSILON)
        elif found is to_x:
            near(found, wanted.grad, 2 * EPSILON)


@pytest.mark.parametrize("shape", [(2, 9, 7, 4), (2, 70, 75, 4), (2, 5000, 4)])
@pytest.mark.parametrize(("dtype", "rtol"), [(mx.float32, 2e-6), (mx.bfloat16, EPSILON)])
def test_means_are_torchs(shape: tuple[int, ...], dtype: mx.Dtype, rtol: float) -> None:
    x = mx.array(np.abs(draw(*shape))).astype(dtype)
    exact = torch.tensor(np.array(x.astype(mx.float32)), dtype=torch.float64, requires_grad=True)
    mean = exact.mean(dim=tuple(range(1, len(shape) - 1)), keepdim=True)
    g = draw(*mean.shape)
    mean.backward(torch.tensor(g, dtype=torch.float64))
    near(np.array(rows.means(x).astype(mx.float32)), mean, 2 * rtol)
    assert exact.grad is not None
    near(vjp(rows.means, g, x)[0], exact.grad, 2 * rtol)


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolutions_are_products(bias: bool) -> None:
    conv = layers.Conv2d(6, 10, 1, bias=bias)
    x, w, b, g = draw(2, 5, 4, 6), draw(10, 1, 1, 6), draw(10), draw(2, 5, 4, 10)

    def ours(x: mx.array, w: mx.array, b: mx.array) -> mx.array:
        conv.weight = w
        if bias:
            conv.bias = b
        return conv(x)

    given = [torch.tensor(a, requires_grad=True) for a in (x.transpose(0, 3, 1, 2), w.transpose(0, 3, 1, 2), b)]
    y = F.conv2d(given[0], given[1], given[2] if bias else None)
    y.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
    near(np.array(ours(*map(mx.array, (x, w, b)))).transpose(0, 3, 1, 2), y)
    to_x, to_w, to_b = vjp(ours, g, mx.array(x), mx.array(w), mx.array(b))
    for found, wanted in zip((to_x, to_w), given[:2], strict=True):
        assert wanted.grad is not None
        near(found.transpose(0, 3, 1, 2), wanted.grad)
    if bias:
        assert given[2].grad is not None
        near(to_b, given[2].grad)


@pytest.mark.parametrize("sparing", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kernel", "stride", "size"),
    [(32, 32, 4, 3, 1, 7), (32, 64, 4, 3, 2, 8), (48, 24, 2, 3, 2, 7), (40, 40, 5, 5, 2, 9), (8, 8, 2, 3, 2, 8)],
)
def test_grouped_convolutions_have_torchs_gradients(
    inputs: int,
    outputs: int,
    groups: int,
    kernel: int,
    stride: int,
    size: int,
    sparing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradients, "SPARING", sparing)
    pad = (kernel // 2, kernel // 2)
    x, w = draw(2, size, size, inputs), draw(outputs, kernel, kernel, inputs // groups)
    given = [torch.tensor(a.transpose(0, 3, 1, 2).copy(), requires_grad=True) for a in (x, w)]
    y = F.conv2d(*given, stride=stride, padding=pad, groups=groups)
    g = draw(*(y.shape[i] for i in (0, 2, 3, 1)))
    y.backward(torch.tensor(g.transpose(0, 3, 1, 2).copy()))

    def ours(x: mx.array, w: mx.array) -> mx.array:
        return gradients.grouped_conv(x, w, stride, pad, pad, groups)

    near(np.array(ours(mx.array(x), mx.array(w))).transpose(0, 3, 1, 2), y)
    for found, wanted in zip(vjp(ours, g, mx.array(x), mx.array(w)), given, strict=True):
        assert wanted.grad is not None
        near(found.transpose(0, 3, 1, 2), wanted.grad)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_tables_of_offsets_have_the_gradient_of_an_index(window: int) -> None:
    count, heads = (2 * window - 1) ** 2, 3
    index, table, g = windows.relative_index(window), draw(count, heads), draw(window**4, heads)
    theirs = torch.tensor(table, requires_grad=True)
    taken = theirs[torch.tensor(np.array(index).astype(np.int64))]
    taken.backward(torch.tensor(g))

    def ours(table: mx.array) -> mx.array:
        return windows.take_offsets(table, index, window).reshape(window**4, heads)

    np.testing.assert_array_equal(np.array(ours(mx.array(table))), taken.detach().numpy())
    (found,) = vjp(ours, g, mx.array(table))
    assert theirs.grad is not None
    near(found, theirs.grad)
