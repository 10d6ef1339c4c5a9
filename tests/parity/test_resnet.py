"""ResNet and its kin in MLX against timm: odd sizes, slopes of each kind of block and gate, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import ports
from config.errors import ConfigError
from models import registry
from models.registry import ModelSpec
from tests.parity import harness

SMALL = {"layers": [1, 1, 2, 1], "channels": [8, 16, 16, 24]}
VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet26d": {"stem_width": 8},
    "resnext50_32x4d": {"cardinality": 4, "base_width": 16},
    "ecaresnet26t": {"stem_width": 8},
    "senet154": {"stem_width": 8, "cardinality": 4, "base_width": 16},
    "resnetblur18": {},
}


def tiny(arch: str, size: int = 64, **options: Any) -> ModelSpec:
    """The architecture with few and narrow blocks, on `size` pixels, five classes."""
    act = options.pop("act", None)
    spec = registry.get(arch, image_size=size, **{"num_classes": 5, **options})
    return replace(spec, args={**spec.args, **SMALL, **VARIANTS[arch], **({"act_layer": act} if act else {})})


@pytest.mark.parametrize("arch", ["resnet18", "resnet26d", "resnetblur18"])
def test_logits_at_an_odd_size_are_timms(arch: str) -> None:
    harness.check_logits(tiny(arch), size=71)


# SiLU: a ReLU network's gradient jumps where a rounding error flips a sign, in torch against itself too.
@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet26d", "resnext50_32x4d", "ecaresnet26t", "senet154", "resnetblur18"]
)
def test_gradients_and_batch_statistics_are_timms(arch: str) -> None:
    harness.check_gradients(tiny(arch, act="silu"))


def test_gradients_at_an_odd_size_with_gem_are_timms() -> None:
    harness.check_gradients(tiny("resnet26d", size=71, act="silu", global_pool="gem"))


@pytest.mark.parametrize("arch", ["ecaresnet50d_pruned", "resnet50_gn"])
def test_what_is_not_ported_is_refused_by_its_argument(arch: str) -> None:
    with pytest.raises(ConfigError, match=r"pruned|norm_layer"):
        ports.create(registry.get(arch))
