"""The gradients of `ports.common.gradients` against torch's, and MLX's own where there is a choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ports.common import gradients, layers

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def nchw(x: Any) -> Any:
    return np.asarray(x).transpose(0, 3, 1, 2).copy()


def near(found: mx.array, wanted: torch.Tensor, rtol: float = 2e-6) -> None:
    want = wanted.detach().numpy()
    np.testing.assert_allclose(np.array(found), want, rtol=0, atol=rtol * np.abs(want).max())


def torch_vjp(function: Callable[..., torch.Tensor], g: np.ndarray | None, *arrays: np.ndarray) -> Any:
    given = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = function(*given)
    y.backward(torch.tensor(g if g is not None else np.ones(y.shape, np.float32)))
    return y, [x.grad for x in given]


@pytest.fixture(params=[gradients.LIBRARY, gradients.OURS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(gradients, "CHOSEN", dict.fromkeys(gradients.DEFAULTS, request.param))
    monkeypatch.setattr(gradients, "SPARING", request.param == gradients.OURS)
    yield request.param


@pytest.mark.parametrize(
    ("rows", "columns", "kernel", "stride", "padding"),
    [
        (14, 9, 7, 1, 3),
        (15, 13, 5, 2, 2),
        (6, 8, 3, 1, 1),
        (9, 11, 3, 2, "same"),
        (8, 8, 3, 2, "same"),
        (2, 3, 7, 2, 3),
    ],
)
def test_depthwise_convolutions_have_torchs_gradients(
    way: str, rows: int, columns: int, kernel: int, stride: int, padding: Any
) -> None:
    conv = layers.Conv2d(4, 4, kernel, stride, padding, groups=4, bias=False)
    low, high = layers.sides((rows, columns), kernel, stride, padding, 1)
    x, w = draw(3, rows, columns, 4), draw(4, kernel, kernel, 1)

    def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, (low[1], high[1], low[0], high[0])), w, stride=stride, groups=4)

    g = nchw(draw(3, *reference(torch.tensor(nchw(x)), torch.tensor(nchw(w))).shape[2:], 4))
    y, (to_x, to_w) = torch_vjp(reference, g, nchw(x), nchw(w))

    def ours(x: mx.array, w: mx.array) -> mx.array:
        conv.weight = w
        return conv(x)

    found, slopes = mx.vjp(ours, [mx.array(x), mx.array(w)], [mx.array(g.transpose(0, 2, 3, 1))])
    for array, wanted in ((found[0], y), (slopes[0], to_x), (slopes[1], to_w)):
        near(array.transpose(0, 3, 1, 2), wanted)


@pytest.mark.parametrize(
    ("rows", "columns", "kernel", "stride", "padding"),
    [(8, 8, 3, 2, 1), (9, 7, 3, 2, 1), (6, 6, 3, 1, 1), (9, 9, 2, 2, 0), (10, 10, 5, 3, 2)],
)
def test_of_equal_maxima_the_first_has_the_gradient(
    rows: int, columns: int, kernel: int, stride: int, padding: int
) -> None:
    """Whole numbers, so that most windows have ties; all are negative, so that padding must not win."""
    x = RNG.integers(-4, 0, (2, rows, columns, 3)).astype(np.float32)
    y = F.max_pool2d(torch.tensor(nchw(x)), kernel, stride, padding)
    g = nchw(draw(2, *y.shape[2:], 3))
    y, (to_x,) = torch_vjp(lambda x: F.max_pool2d(x, kernel, stride, padding), g, nchw(x))
    pool = layers.MaxPool2d(kernel, stride, padding)
    found, slopes = mx.vjp(pool, [mx.array(x)], [mx.array(g.transpose(0, 2, 3, 1))])
    near(found[0].transpose(0, 3, 1, 2), y, 0)
    near(slopes[0].transpose(0, 3, 1, 2), to_x)


def test_without_ties_mlxs_own_max_pool_has_the_same_gradient() -> None:
    x, g = mx.array(draw(2, 9, 9, 3)), mx.array(draw(2, 5, 5, 3))
    pools = (layers.MaxPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1))
    found = [np.array(mx.vjp(pool, [x], [g])[1][0]) for pool in pools]
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize(("ours", "reference"), [(gradients.gelu, F.gelu), (gradients.silu, F.silu)])
def test_activations_have_torchs_values_and_gradients(ours: Any, reference: Any) -> None:
    x = 4 * draw(3, 50)
    y, (to_x,) = torch_vjp(reference, None, x)
    found, slopes = mx.vjp(ours, [mx.array(x)], [mx.ones(x.shape)])
    near(found[0], y, 5e-7)
    near(slopes[0], to_x, 1e-6)
    assert ours(mx.array(x).astype(mx.bfloat16)).dtype == mx.bfloat16


def test_batch_norm_trains_as_torchs() -> None:
    x, weight, bias, g = 2 * draw(4, 6, 5, 8) + 3, draw(8), draw(8), draw(4, 6, 5, 8)
    ours, theirs = layers.BatchNorm2d(8), torch.nn.BatchNorm2d(8)

    def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, theirs.running_mean, theirs.running_var, weight, bias, training=True)

    y, (to_x, to_weight, to_bias) = torch_vjp(reference, nchw(g), nchw(x), weight, bias)

    def forward(x: mx.array, weight: mx.array, bias: mx.array) -> mx.array:
        ours.weight, ours.bias = weight, bias
        return ours(x)

    found, slopes = mx.vjp(forward, [mx.array(a) for a in (x, weight, bias)], [mx.array(g)])
    near(found[0].transpose(0, 3, 1, 2), y)
    near(slopes[0].transpose(0, 3, 1, 2), to_x)
    near(slopes[1], to_weight)
    near(slopes[2], to_bias)
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    near(ours.running_mean, theirs.running_mean)
    near(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("sparing", [False, True])
def test_compiled_gradients_equal_eager_ones(sparing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in a row in one compiled function, as the training step has them, against the same run eagerly."""
    monkeypatch.setattr(gradients, "SPARING", sparing)
    monkeypatch.setattr(gradients, "CHOSEN", dict.fromkeys(gradients.DEFAULTS, gradients.OURS))
    conv, norm, pool = (
        layers.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False),
        layers.BatchNorm2d(4),
        layers.MaxPool2d(3, 2, 1),
    )
    last = layers.LayerNorm(4)

    def slopes(x: mx.array, w: mx.array) -> list[mx.array]:
        def loss(x: mx.array, w: mx.array) -> mx.array:
            conv.weight = w
            return mx.sum(mx.square(gradients.gelu(last(pool(gradients.silu(norm(conv(x))))))))

        return list(mx.grad(loss, argnums=(0, 1))(x, w))

    given = mx.array(draw(2, 12, 12, 4)), mx.array(draw(4, 3, 3, 1))
    for found, wanted in zip(mx.compile(slopes)(*given), slopes(*given), strict=True):
        np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=1e-5, atol=1e-5)
