"""MLX's ConvNeXt and ConvNeXt V2 give timm's numbers from timm's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import ports
from backends.mlx import model as mlx_model
from backends.torch import model as torch_model
from config.errors import ConfigError
from models import registry
from models.registry import ModelSpec
from tests.parity import harness
from tests.parity.drawn import torch_network

# What has a slope of its own.
VARIANTS = (
    "convnext_atto",
    "convnextv2_atto",  # GRN, no layer scale
    "convnext_zepto_rms_ols",  # overlapping stem with an activation, SimpleNorm
    "convnext_atto_rms",  # RMSNorm
    "convnext_large_mlp",  # hidden layer in the head
    "convnext_tiny_hnf",  # norm before pooling
    "test_convnext3",  # kernel sizes, SiLU
)


def tiny(arch: str, **options: Any) -> ModelSpec:
    spec = registry.get(arch, **{"num_classes": 10, "image_size": 32, **options})
    small: dict[str, Any] = {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32]}
    if spec.args.get("head_hidden_size"):
        small["head_hidden_size"] = 24
    return replace(spec, args={**spec.args, **small})


@pytest.mark.parametrize("arch", VARIANTS)
def test_every_variant_has_timms_gradients(arch: str) -> None:
    harness.check_gradients(tiny(arch))


@pytest.mark.parametrize("size", [33, 75])
def test_an_odd_image_size_has_timms_logits(size: int) -> None:
    harness.check_logits(tiny("convnext_atto_ols"), size)


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
    # Seeded, for once in 16 million draws torch's truncated normal gives its cut: -2, where the deviation is 0.02.
    for name, tensor in torch_model.canonical_tensors(torch_network(spec)).items():
        want, got = tensor.detach().numpy(), np.array(arrays[name])
        if want.std() == 0:
            np.testing.assert_array_equal(got, want.reshape(got.shape), err_msg=name)
        else:
            assert abs(got.std() / want.std() - 1) < 8 / np.sqrt(got.size), name
            assert abs(got.mean()) < 6 * want.std() / np.sqrt(got.size), name


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
