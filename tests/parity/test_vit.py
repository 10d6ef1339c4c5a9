"""ViT in MLX is timm's, for each kind of weights that people load into one."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients, check_logits, check_training
from tests.parity.shrink import check_fresh, shrunk

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
ARCHS = {
    "augreg": "vit_tiny_patch16_224",
    "dinov2": "vit_base_patch14_dinov2",
    "dinov2 registers, gated": "vit_giant_patch14_reg4_dinov2",
    "clip": "vit_base_patch16_clip_224",
    "openai clip": "vit_base_patch16_clip_quickgelu_224",
    "siglip": "vit_base_patch16_siglip_224",
    "siglip averaged": "vit_base_patch32_siglip_gap_256",
    "registers averaged": "vit_betwixt_patch16_reg4_gap_256",
    "aimv2": "aimv2_large_patch14_224",
    "beit3": "beit3_base_patch16_224",
    "radio": "vit_base_patch16_radio_v3",
    "internvit": "vit_intern300m_patch14_448",
    "norm after": "vit_base_patch16_rpn_224",
    "parallel": "vit_base_patch16_xp_224",
    "parallel with biases": "vit_pwee_patch16_reg1_gap_256",
    "two by two": "vit_base_patch16_18x2_224",
    "prefix pooled": "test_vit3",
}


@pytest.mark.parametrize("kind", ARCHS)
def test_logits(kind: str) -> None:
    check_logits(shrunk(ARCHS[kind], 32, TINY))


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (37, {}),
        (32, {"global_pool": "avg"}),
        (32, {"global_pool": "max", "in_chans": 1}),
        (32, {"num_classes": 0}),
    ],
)
def test_logits_of_other_sizes_and_heads(size: int, options: dict) -> None:
    check_logits(shrunk(ARCHS["augreg"], size, TINY, **options))


@pytest.mark.parametrize("kind", ["augreg", "siglip", "aimv2", "parallel", "two by two", "norm after"])
def test_gradients(kind: str) -> None:
    check_gradients(shrunk(ARCHS[kind], 32, TINY))


def test_training() -> None:
    check_training(shrunk(ARCHS["augreg"], 32, TINY))


@pytest.mark.parametrize("kind", ["augreg", "siglip", "aimv2", "dinov2 registers, gated", "norm after"])
def test_fresh_weights(kind: str) -> None:
    check_fresh(shrunk(ARCHS[kind], 32, TINY))


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_dwee_patch16_reg1_gap_256.*attn_layer"):
        ports.create(shrunk("vit_dwee_patch16_reg1_gap_256", 32, TINY))
    with pytest.raises(ConfigError, match="gem"):
        ports.create(shrunk(ARCHS["augreg"], 32, TINY, global_pool="gem"))
    with pytest.raises(ConfigError, match="patch"):
        ports.create(shrunk(ARCHS["augreg"], 7, TINY))
