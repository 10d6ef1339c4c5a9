"""MLX's ConvNeXt and ConvNeXt V2 give timm's numbers from timm's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import timm
import torch

import ports
from backends.mlx import model as mlx_model
from backends.torch import model as torch_model
from config.errors import ConfigError
from models import registry
from models.registry import ModelSpec
from ports import layers
from tests.parity import harness

# One architecture for each constructor argument that occurs in the table.
VARIANTS = (
    "convnext_atto",  # conv_mlp
    "convnext_base",  # linear MLP
    "convnextv2_atto",  # GRN, no layer scale
    "convnextv2_base",
    "convnext_atto_ols",  # overlap_tiered stem
    "convnext_nano_ols",  # overlap stem
    "convnext_zepto_rms_ols",  # overlap_act stem, SimpleNorm
    "convnext_atto_rms",  # RMSNorm
    "convnext_large_mlp",  # hidden layer in the head
    "convnext_tiny_hnf",  # norm before pooling
    "convnext_xxlarge",  # eps 1e-5
    "test_convnext3",  # kernel sizes, SiLU
)


def tiny(arch: str, **options: Any) -> ModelSpec:
    spec = registry.get(arch, **{"num_classes": 10, "image_size": 32, **options})
    small: dict[str, Any] = {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32]}
    if spec.args.get("head_hidden_size"):
        small["head_hidden_size"] = 24
    return replace(spec, args={**spec.args, **small})


@pytest.mark.parametrize("arch", VARIANTS)
def test_every_variant_has_timms_logits_and_gradients(arch: str) -> None:
    harness.check_logits(tiny(arch))
    harness.check_gradients(tiny(arch))


@pytest.mark.parametrize("size", [33, 75])
def test_an_odd_image_size_has_timms_logits(size: int) -> None:
    harness.check_logits(tiny("convnextv2_atto"), size)
    harness.check_logits(tiny("convnext_atto_ols"), size)


@pytest.mark.parametrize(
    "options", [{"global_pool": "max"}, {"global_pool": "gem"}, {"num_classes": 0}, {"in_chans": 1}]
)
@pytest.mark.parametrize("arch", ["convnext_atto", "convnext_tiny_hnf"])
def test_heads_and_inputs_have_timms_logits(arch: str, options: dict[str, Any]) -> None:
    harness.check_logits(tiny(arch, image_size=64, **options))  # at 32 the last map is one pixel, and pools nothing


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


def test_the_real_atto_has_timms_logits_at_full_size() -> None:
    harness.check_logits(registry.get("convnext_atto"))


@pytest.mark.parametrize(
    ("argument", "value"), [("output_stride", 16), ("norm_layer", "batchnorm2d"), ("act_layer", "mish")]
)
def test_what_is_not_ported_is_refused_by_name(argument: str, value: object) -> None:
    spec = tiny("convnext_atto")
    with pytest.raises(ConfigError, match=argument):
        ports.create(replace(spec, args={**spec.args, argument: value}))


@pytest.mark.parametrize("arch", ["convnext_atto", "convnextv2_base", "convnext_large_mlp"])
def test_fresh_weights_are_drawn_as_timms(arch: str) -> None:
    spec = tiny(arch)
    _, arrays = mlx_model.build(spec, None, "fp32", seed=1)
    for name, tensor in torch_model.canonical_tensors(torch_model.build(spec)).items():
        want, got = tensor.detach().numpy(), np.array(arrays[name])
        if want.std() == 0:
            np.testing.assert_array_equal(got, want.reshape(got.shape), err_msg=name)
        else:
            assert abs(got.std() / want.std() - 1) < 8 / np.sqrt(got.size), name
            assert abs(got.mean()) < 6 * want.std() / np.sqrt(got.size), name


def test_drop_path_rates_grow_over_the_blocks_as_timms() -> None:
    spec = tiny("convnext_atto", drop_path_rate=0.4)
    want = [getattr(b.drop_path, "drop_prob", 0.0) for s in torch_model.build(spec).stages for b in s.blocks]
    got = [b.drop_path._rate for s in ports.create(spec).stages for b in s.blocks]
    assert got == pytest.approx(want)


def test_drop_path_drops_whole_samples_and_keeps_the_expected_value_as_timms() -> None:
    ones, rate = np.ones((4000, 2, 3, 3), np.float32), 0.3
    mine = layers.DropPath(rate)
    with mlx_model.seeded(0, "test", 0):
        got = np.array(mine(mx.array(ones))).reshape(len(ones), -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        want = timm.layers.DropPath(rate).train()(torch.from_numpy(ones)).numpy()
    assert (got == got[:, :1]).all(), "a sample is dropped as a whole"
    np.testing.assert_allclose(np.unique(got), np.unique(want), rtol=1e-6)
    assert abs(got.mean() - 1) < 5 * got[:, 0].std() / np.sqrt(len(got))
    np.testing.assert_array_equal(np.array(mine.train(False)(mx.array(ones))), ones)


@pytest.mark.parametrize("arch", ["convnext_atto", "convnextv2_base", "convnext_zepto_rms_ols"])
def test_bf16_is_kept_to_the_last_layer(arch: str) -> None:
    spec = tiny(arch, drop_path_rate=0.2, drop_rate=0.2)
    network, arrays = mlx_model.build(spec, harness.weights(spec), "bf16", seed=0)
    seen = []

    class Spy:
        def train(self, mode: bool) -> None:
            network.module.train(mode)

        def __call__(self, x: mx.array) -> mx.array:
            seen.append(network.module(x))
            return seen[-1]

    pixels = mx.array(harness.normalised(spec, harness.images(spec, 2)))
    for training in (True, False):
        mlx_model.forward(replace(network, module=Spy()), arrays, pixels, training)
    assert [logits.dtype for logits in seen] == [mx.bfloat16, mx.bfloat16]
