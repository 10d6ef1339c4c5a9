"""Drop-path and dropout are timm's: which rate stands where, what is dropped, how the rest is scaled."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from timm.layers import DropPath as TimmDropPath

import ports
from backends.mlx import model as mlx_model
from backends.torch import model as torch_model
from models import registry
from models.registry import ModelSpec
from ports.common import layers
from tests.parity import harness, kinds

MANY = 4000
# Standard errors within which a mean of draws must lie: once in 1.7 million by chance, and the seeds are fixed.
SIGMAS = 5


@pytest.mark.parametrize("shape", [(MANY, 6), (MANY, 5, 4), (MANY, 3, 3, 2)])
def test_drop_path_drops_whole_samples_and_scales_the_others(shape: tuple[int, ...]) -> None:
    x, rate = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32), 0.3
    mine = layers.DropPath(rate)
    with mlx_model.seeded(0, "test", 0):
        got = np.array(mine(mx.array(x)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = TimmDropPath(rate).train()(torch.from_numpy(x)).numpy()
    for dropped in (got, want):
        scales = (dropped / x).reshape(MANY, -1)
        np.testing.assert_allclose(scales, np.broadcast_to(scales[:, :1], scales.shape), rtol=1e-6)
        assert_rate(scales[:, 0], rate)
    np.testing.assert_array_equal(np.array(mine.train(False)(mx.array(x))), x)


def test_dropout_drops_single_values_and_scales_the_others() -> None:
    rate, ones = 0.3, np.ones((MANY, 8), np.float32)
    with mlx_model.seeded(0, "test", 0):
        got = np.array(nn.Dropout(rate)(mx.array(ones)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = torch.nn.Dropout(rate)(torch.from_numpy(ones)).numpy()
    for dropped in (got, want):
        assert_rate(dropped.ravel(), rate)
        assert (np.ptp(dropped, axis=1) > 0).mean() > 0.9, "values of one sample are dropped apart"


def assert_rate(scales: np.ndarray, rate: float) -> None:
    """What is kept is scaled by 1 / (1 - rate); `rate` of it is dropped, so that the expected value is kept."""
    np.testing.assert_allclose(scales[scales != 0], 1 / (1 - rate), rtol=1e-6)
    assert abs((scales == 0).mean() - rate) < SIGMAS * np.sqrt(rate * (1 - rate) / scales.size)
    assert abs(scales.mean() - 1) < SIGMAS * scales.std() / np.sqrt(scales.size)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_each_block_has_timms_rate(family: str) -> None:
    spec = registry.get(kinds.ORDINARY[family], drop_path_rate=0.3)
    theirs = [m.drop_prob for m in torch_model.build(spec).modules() if isinstance(m, TimmDropPath)]
    mine = [m for m in ports.create(spec).modules() if isinstance(m, layers.DropPath) and m._rate]
    # Where timm has two modules of a rate in a block, a port may call one twice.
    np.testing.assert_allclose(sorted({m._rate for m in mine}), sorted(set(theirs)), rtol=1e-6)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_drop_rate_reaches_the_classifier_alone(family: str) -> None:
    spec = registry.get(kinds.ORDINARY[family], drop_rate=0.25)
    mine = [m._p_1 for m in ports.create(spec).modules() if isinstance(m, nn.Dropout)]
    assert [p for p in mine if p != 1.0] == [0.75]


@pytest.mark.parametrize("family", ["convnext", "vit", "swin"])
def test_logits_in_training_have_timms_mean_and_spread(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image many times: what the dropped samples' logits come to, over the whole network."""
    size = {"swin": 16}.get(family)
    spec = kinds.tiny(kinds.ORDINARY[family], monkeypatch, size, drop_path_rate=0.4, drop_rate=0.3)
    values = harness.weights(spec)
    pixels = np.repeat(harness.normalised(spec, harness.images(spec, 1)), MANY // 4, axis=0)
    got, want = mlx_draws(spec, values, pixels), torch_draws(spec, values, pixels)
    assert got.std(axis=0).min() > 0.05
    error = np.sqrt((got.var(axis=0) + want.var(axis=0)) / len(pixels))
    assert (np.abs(got.mean(axis=0) - want.mean(axis=0)) < SIGMAS * error).all()
    # The standard error of a spread: from its own fourth moment, since these are no normal distributions.
    spread = [np.sqrt(((x - x.mean(0)) ** 2).var(axis=0) / len(x)) for x in (got, want)]
    assert (np.abs(got.var(axis=0) - want.var(axis=0)) < SIGMAS * np.hypot(*spread)).all()


def mlx_draws(spec: ModelSpec, values: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    network, arrays = mlx_model.build(spec, values, "fp32", 0)
    with mlx_model.seeded(0, "test", 1):
        return np.array(mlx_model.forward(network, arrays, mx.array(pixels), training=True)[0])


def torch_draws(spec: ModelSpec, values: dict[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    with torch.random.fork_rng(), torch.no_grad():
        model = torch_model.build(spec).train()
        torch_model.load_canonical(model, values)
        torch.manual_seed(0)
        return model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
