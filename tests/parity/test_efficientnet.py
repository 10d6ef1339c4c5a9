"""EfficientNet, EfficientNetV2 and the mobile nets in MLX against timm: TensorFlow's padding, slopes, refusals."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from models import registry
from tests.parity import harness, shallow

SHIFTED = "a shift of a linear bottleneck, which the BatchNorm after the next 1x1 convolution takes out again"


# TensorFlow's padding depends on the size: these reach both parities at every stride.
@pytest.mark.parametrize("size", [65, 66, 67, 68])
def test_logits_under_asymmetric_padding_are_timms(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_logits(shallow.spec(monkeypatch, "tf_efficientnetv2_b0"), size)


def test_logits_of_a_whole_network_are_timms() -> None:
    harness.check_logits(registry.get("test_efficientnet", num_classes=5, image_size=64))


@pytest.mark.parametrize(
    ("arch", "size", "zero"),
    [
        ("test_efficientnet", 64, ["blocks.2.0.bn2.bias", "blocks.[34].0.bn3.bias"]),
        ("tf_efficientnet_b0", 71, ["blocks.0.0.bn2.bias", "blocks.*.bn3.bias"]),
        ("tf_efficientnetv2_b0", 64, ["blocks.2.0.bn2.bias", "blocks.*.bn3.bias"]),
        ("efficientnet_blur_b0", 72, ["blocks.0.0.bn2.bias", "blocks.*.bn3.bias"]),
    ],
)
def test_gradients_and_batch_statistics_are_timms(
    arch: str, size: int, zero: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # SiLU in all: a ReLU network's gradient jumps where a rounding error flips a sign, in torch against itself too.
    net = shallow.spec(monkeypatch, arch, size, act="silu")
    harness.check_gradients(net, dict.fromkeys(zero, SHIFTED))


@pytest.mark.parametrize(
    ("arch", "argument"),
    [
        ("efficientnet_b1_pruned", "pruned"),
        ("efficientnet_b0_gn", "norm_layer"),
        ("mixnet_s", "kernel_size"),
        ("efficientnet_cc_b0_4e", "num_experts"),
        ("efficientnet_x_b3", "s2d"),
        ("gc_efficientnetv2_rw_t", "se_layer"),
    ],
)
def test_what_is_not_ported_is_refused_by_its_argument(arch: str, argument: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        ports.create(registry.get(arch))
