"""EVA-02 and its rotary kin in MLX are timm's."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients, check_logits, check_training
from tests.parity.shrink import check_fresh, shrunk

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
ARCHS = {
    "eva": "eva_giant_patch14_224",
    "eva02 packed": "eva02_tiny_patch14_336",
    "eva02 apart": "eva02_large_patch14_448",
    "eva02 inner norm": "eva02_base_patch16_clip_224",
    "eva02 norm after": "eva02_enormous_patch14_clip_224",
    "rope": "vit_base_patch16_rope_ape_224",
    "rope learned": "vit_base_patch16_rope_mixed_224",
    "rope registers": "vit_base_patch16_rope_reg1_gap_256",
    "dinov3": "vit_base_patch16_dinov3",
    "dinov3 gated": "vit_huge_plus_patch16_dinov3_qkvb",
    "perception encoder": "vit_pe_core_base_patch16_224",
    "perception encoder, features": "vit_pe_spatial_large_patch14_448",
}


@pytest.mark.parametrize("kind", ARCHS)
def test_logits(kind: str) -> None:
    heads = {"attn_pool_num_heads": 3} if kind == "perception encoder" else {}
    check_logits(shrunk(ARCHS[kind], 40, {**TINY, **heads}))


@pytest.mark.parametrize(
    ("size", "options"), [(43, {}), (40, {"global_pool": "max", "in_chans": 1}), (40, {"num_classes": 0})]
)
def test_logits_of_other_sizes_and_heads(size: int, options: dict) -> None:
    check_logits(shrunk(ARCHS["eva02 packed"], size, TINY, **options))


@pytest.mark.parametrize("kind", ["eva02 packed", "eva02 apart", "rope learned", "dinov3 gated"])
def test_gradients(kind: str) -> None:
    check_gradients(shrunk(ARCHS[kind], 40, TINY))


def test_training() -> None:
    check_training(shrunk(ARCHS["eva02 packed"], 40, TINY))


@pytest.mark.parametrize("kind", ["eva02 apart", "rope learned", "perception encoder"])
def test_fresh_weights(kind: str) -> None:
    check_fresh(shrunk(ARCHS[kind], 40, {**TINY, **({"attn_pool_num_heads": 3} if kind[0] == "p" else {})}))


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_base_patch16_sapiens2.*attn_only_layer_scale"):
        ports.create(shrunk("vit_base_patch16_sapiens2", 40, TINY))
