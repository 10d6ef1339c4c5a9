"""ViT in MLX is timm's, for each kind of weights that people load into one."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients
from tests.parity.shrink import check_fresh, shrunk

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
ARCHS = {
    "augreg": "vit_tiny_patch16_224",
    "dinov2 registers, gated": "vit_giant_patch14_reg4_dinov2",
    "siglip": "vit_base_patch16_siglip_224",
    "aimv2": "aimv2_large_patch14_224",
    "norm after": "vit_base_patch16_rpn_224",
    "parallel": "vit_base_patch16_xp_224",
    "two by two": "vit_base_patch16_18x2_224",
}


@pytest.mark.parametrize("kind", ["augreg", "siglip", "aimv2", "parallel", "two by two", "norm after"])
def test_gradients_are_timms(kind: str) -> None:
    check_gradients(shrunk(ARCHS[kind], 32, TINY))


@pytest.mark.parametrize("kind", ["augreg", "siglip", "aimv2", "dinov2 registers, gated", "norm after"])
def test_fresh_weights_are_drawn_as_timms(kind: str) -> None:
    check_fresh(shrunk(ARCHS[kind], 32, TINY))


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_dwee_patch16_reg1_gap_256.*attn_layer"):
        ports.create(shrunk("vit_dwee_patch16_reg1_gap_256", 32, TINY))
    with pytest.raises(ConfigError, match="gem"):
        ports.create(shrunk(ARCHS["augreg"], 32, TINY, global_pool="gem"))
    with pytest.raises(ConfigError, match="patch"):
        ports.create(shrunk(ARCHS["augreg"], 7, TINY))
