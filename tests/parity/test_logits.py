"""Every kind of architecture that MLX builds has timm's evaluation logits, at its usual size and an odd one."""

from __future__ import annotations

import pytest

from models import registry
from tests.parity import harness, kinds

# Pixels that no stride divides; MaxViT takes multiples of 32 alone, so there windows and grids of three.
ODD = {"swin": 61, "swinv2": 61, "maxvit": 96, "vit": 37, "eva": 43, "convnext": 75}


@pytest.mark.parametrize("arch", [arch for family in registry.FAMILIES for arch in kinds.representatives(family)])
def test_logits_of_every_kind_are_timms(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_logits(kinds.tiny(arch, monkeypatch))


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_logits_at_an_odd_size_are_timms(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.check_logits(kinds.tiny(kinds.ORDINARY[family], monkeypatch), ODD.get(family, 71))
