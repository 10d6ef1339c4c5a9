"""EVA-02 and its rotary kin in MLX are timm's."""

from __future__ import annotations

import pytest

import ports
from config.errors import ConfigError
from tests.parity.harness import check_gradients
from tests.parity.shrink import check_fresh, shrunk

TINY = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
ARCHS = {
    "eva02 packed": "eva02_tiny_patch14_336",
    "eva02 apart": "eva02_large_patch14_448",
    "rope learned": "vit_base_patch16_rope_mixed_224",
    "dinov3 gated": "vit_huge_plus_patch16_dinov3_qkvb",
    "perception encoder": "vit_pe_core_base_patch16_224",
}


@pytest.mark.parametrize("kind", ["eva02 packed", "eva02 apart", "rope learned", "dinov3 gated"])
def test_gradients_are_timms(kind: str) -> None:
    check_gradients(shrunk(ARCHS[kind], 40, TINY))


@pytest.mark.parametrize("kind", ["eva02 apart", "rope learned", "perception encoder"])
def test_fresh_weights_are_drawn_as_timms(kind: str) -> None:
    check_fresh(shrunk(ARCHS[kind], 40, {**TINY, **({"attn_pool_num_heads": 3} if kind[0] == "p" else {})}))


def test_what_is_not_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vit_base_patch16_sapiens2.*attn_only_layer_scale"):
        ports.create(shrunk("vit_base_patch16_sapiens2", 40, TINY))
