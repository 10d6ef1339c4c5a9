"""Heads and inputs on both engines: features without a classifier, each pooling, one input channel."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten

import ports
from backends.torch import model as torch_model
from config.errors import ConfigError
from models import registry
from models.weights import loading
from ports.common import layers
from tests.parity import harness, kinds

OPTIONS = [
    {"num_classes": 0},
    {"global_pool": "avg"},
    {"global_pool": "max"},
    {"global_pool": "gem"},
    {"in_chans": 1},
]
# Their tokens are pooled, or one is taken: timm has no gem for them, and neither engine makes one up.
WITHOUT_GEM = ("vit", "eva")
# At its usual 32 pixels the last map is a single one, and pools nothing.
SIZE = {"convnext": 64}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()))
@pytest.mark.parametrize("family", registry.FAMILIES)
def test_logits_or_features_are_timms(family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kinds.tiny(kinds.ORDINARY[family], monkeypatch, SIZE.get(family), **options)
    if family in WITHOUT_GEM and options.get("global_pool") == "gem":
        for build in (ports.create, torch_model.build):
            with pytest.raises(ConfigError, match="gem"):
                build(spec)
        return
    harness.check_logits(spec)


@pytest.mark.parametrize("family", [f for f in registry.FAMILIES if f not in WITHOUT_GEM])
def test_gem_begins_as_torchs_and_learns_its_power(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = kinds.tiny(kinds.ORDINARY[family], monkeypatch, SIZE.get(family), global_pool="gem")
    name = loading.pool_power(spec)
    model = ports.create(spec)
    assert name in dict(tree_flatten(model.trainable_parameters()))
    theirs = torch_model.to_arrays(torch_model.canonical_tensors(torch_model.build(spec)))
    np.testing.assert_array_equal(layers.canonical(model)[name], theirs[name])


def test_gem_has_torchs_slopes_in_its_input_and_its_power() -> None:
    # Slopes of one sign: in a network those of the power cancel, 1 in 44 is left, and so are the digits.
    x = np.random.default_rng(0).normal(1, 1, (4, 3, 3, 16)).astype(np.float32)
    mine = layers.GeM()
    slope_x, slope_p = mx.grad(lambda v, p: _with_power(mine, p)(v).sum(), argnums=(0, 1))(mx.array(x), mx.array([3.3]))
    theirs = torch_model.GeM(torch.nn.AdaptiveAvgPool2d(1), 3.3).double()
    wide = torch.from_numpy(x).double().permute(0, 3, 1, 2).requires_grad_()
    theirs(wide).sum().backward()
    assert wide.grad is not None
    assert theirs.p.grad is not None
    assert np.array(slope_p)[0] == pytest.approx(theirs.p.grad.item(), rel=1e-6)
    want = wide.grad.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.array(slope_x) - want).max() <= 2e-6 * np.abs(want).max()


def _with_power(gem: layers.GeM, power: mx.array) -> layers.GeM:
    gem.p = power
    return gem
