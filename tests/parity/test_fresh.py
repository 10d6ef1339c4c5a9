"""Fresh convolutional networks in MLX: the spread of their weights and their drop rates are timm's; bf16 stays bf16."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

import ports
from backends.mlx import model as mlx_model
from backends.torch import model as torch_model
from models import registry
from ports.common import layers
from tests.parity.drawn import torch_network

ARCHS = ["resnet18", "seresnet50t", "ecaresnet26t", "efficientnet_b0", "tf_efficientnetv2_b0", "mobilenetv3_small_100"]
ARCHS += ["mobilenetv4_conv_small", "regnety_002", "regnetz_005"]


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_have_timms_spread(arch: str) -> None:
    spec = registry.get(arch, num_classes=50)
    with mlx_model.seeded(0, "test", 0):
        ours = layers.canonical(ports.create(spec))
    theirs = torch_model.to_arrays(torch_model.canonical_tensors(torch_network(spec)))
    for name, value in theirs.items():
        if np.ptp(value) == 0:
            np.testing.assert_array_equal(ours[name], value, err_msg=name)
        elif value.size >= 500:
            # Six standard errors of the ratio of two normal samples' spreads.
            near = 6 / value.size**0.5
            assert abs(ours[name].std() / value.std() - 1) < near, name
            assert abs(ours[name].mean() - value.mean()) < near * 1.5 * value.std(), name


@pytest.mark.parametrize("arch", ["ecaresnet26t", "resnetblur18", "test_efficientnet", "mobilenetv4_conv_small_035"])
def test_bf16_weights_give_bf16_logits(arch: str) -> None:
    model = ports.create(registry.get(arch, image_size=64))
    for module, key in layers.places(model).values():
        if not getattr(module, "keep_fp32", False):
            module[key] = module[key].astype(mx.bfloat16)
    assert model(mx.zeros((2, 64, 64, 3), mx.bfloat16)).dtype == mx.bfloat16
