"""Patch grids, prefix tokens and attention windows that follow from a spec and its image size.

Arithmetic only: the ports build with it and `resample` fits weights with it, so both see the same shapes.
"""

from __future__ import annotations

from typing import NamedTuple

from config.errors import ConfigError
from models.registry import ModelSpec


class Stage(NamedTuple):
    """One Swin stage: tokens along a side, window along a side, and the shift of every second block (0: none)."""

    resolution: int
    window: int
    shift: int


def patch_grid(spec: ModelSpec, default_patch: int = 16) -> int:
    """Patches along a side; pixels beyond the last whole patch are not seen (as a strided convolution's)."""
    patch = int(spec.args.get("patch_size", default_patch))
    grid = spec.preprocessing.size // patch
    if grid == 0:
        raise ConfigError(f"model {spec.name}: image_size {spec.preprocessing.size} is less than one patch of {patch}")
    return grid


def position_prefix(spec: ModelSpec) -> int:
    """Leading entries of `pos_embed` that belong to class and register tokens, not to the patch grid."""
    if spec.args.get("no_embed_class", False):
        return 0
    registers = spec.args.get("reg_tokens", spec.args.get("num_reg_tokens", 0))
    return int(spec.args.get("class_token", True)) + int(registers)


def swin_stages(spec: ModelSpec) -> list[Stage]:
    """timm's window rule: a stage no larger than its window is one window and has no shift."""
    depths = spec.args.get("depths", [2, 2, 6, 2])
    wanted = spec.args.get("window_size", 7)
    windows = wanted if isinstance(wanted, (list, tuple)) else [wanted] * len(depths)
    if len(windows) != len(depths) or (wanted is windows and len(windows) == 2):
        raise ConfigError(f"model {spec.name}: window_size {wanted} is not one square window for each stage")
    stages, resolution = [], patch_grid(spec, default_patch=4)
    for i, window in enumerate(windows):
        resolution = resolution if i == 0 else (resolution + 1) // 2
        stages.append(Stage(resolution, min(window, resolution), window // 2 if resolution > window else 0))
    return stages


def maxvit_window(spec: ModelSpec) -> int:
    """Side of MaxViT's block windows and of its grids: the image size over the partition ratio."""
    config = spec.args["model_cfg"]["transformer_cfg"]
    return int(config["window_size"] or spec.preprocessing.size // config["partition_ratio"])


def coatnet_grid(spec: ModelSpec, stage: int) -> int:
    """Tokens along a side of a CoAtNet stage (from 0), whose attention sees them all; stem and stages halve."""
    side = spec.preprocessing.size // 2
    for _ in range(stage + 1):
        side = (side + 1) // 2
    return side
