"""Networks small enough for tests: real architectures of the registry with fewer and narrower layers.

To add a family, add a row to `TINY`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from models import registry
from models.registry import ModelSpec


class Tiny(NamedTuple):
    """An architecture, the constructor arguments that make it small, and an image size in pixels."""

    arch: str
    args: dict[str, Any]
    size: int


TINY = {
    "convnext": Tiny("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 16, 24]}, 32),
    "convnextv2": Tiny("convnextv2_atto", {"depths": [1, 1, 2, 1], "dims": [8, 16, 16, 24]}, 32),
    "resnet": Tiny("resnet26d", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24], "stem_width": 8}, 32),
    "efficientnet": Tiny("test_efficientnet", {}, 32),
    "vit": Tiny("vit_tiny_patch16_224", {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}, 32),
    "swin": Tiny(
        "swin_tiny_patch4_window7_224",
        {"window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3]},
        32,
    ),
}


def spec(family: str, num_classes: int = 5, image_size: int | None = None, **options: Any) -> ModelSpec:
    """The tiny `ModelSpec` of a row of `TINY`; options as for `models.registry.get`."""
    row = TINY[family]
    full = registry.get(row.arch, num_classes=num_classes, image_size=image_size or row.size, **options)
    return replace(full, args={**full.args, **row.args})
