"""MobileNetV3, MobileNetV4-conv, FBNetV3 and LCNet in MLX against timm."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from models import registry
from tests.parity import harness, shallow

SHIFTED = "a shift without an activation, which the BatchNorm after the next 1x1 convolution takes out again"


@pytest.mark.parametrize("arch", ["tf_mobilenetv3_small_075", "mobilenetv4_conv_small_035"])
def test_logits_at_an_odd_size_are_timms(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_logits(shallow.spec(monkeypatch, arch), size=71)


@pytest.mark.parametrize(
    ("arch", "size", "zero"),
    [
        ("mobilenetv3_small_050", 64, ["blocks.0.0.bn2.bias", "blocks.*.bn3.bias"]),
        ("mobilenetv4_conv_small_035", 71, ["blocks.*.dw_start.bn.bias", "blocks.3.0.pw_proj.bn.bias"]),
        ("lcnet_035", 64, []),
    ],
)
def test_gradients_and_batch_statistics_are_timms(
    arch: str, size: int, zero: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # SiLU in all: a ReLU network's gradient jumps where a rounding error flips a sign, in torch against itself too.
    net = shallow.spec(monkeypatch, arch, size, act="silu")
    harness.check_gradients(net, dict.fromkeys(zero, SHIFTED))


def test_the_hybrid_with_attention_is_refused() -> None:
    with pytest.raises(ConfigError, match="layer_scale_init_value"):
        ports.create(registry.get("mobilenetv4_hybrid_medium"))
