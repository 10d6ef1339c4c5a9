"""Every kind of architecture in the registry, and a tiny network of each, the same on both engines.

Two architectures are of one kind when timm's constructor arguments differ in numbers alone, so that the same code
builds them. A kind that is new to the registry is tested without being named anywhere.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from models import registry
from models.registry import ModelSpec
from tests.parity import shallow
from tests.parity.shrink import shrunk

Args = dict[str, Any]


def representatives(family: str) -> list[str]:
    """The smallest architecture of each kind that MLX builds."""
    kinds = defaultdict(list)
    for arch in registry.members(family):
        spec = registry.get(arch)
        if not registry.engines(spec)["mlx"]:
            kinds[json.dumps([spec.cls, _shape(dict(spec.args))], sort_keys=True)].append((spec.parameters, arch))
    return [min(members)[1] for members in kinds.values()]


def tiny(
    arch: str, patch: pytest.MonkeyPatch, size: int | None = None, act: str | None = None, **options: Any
) -> ModelSpec:
    """`arch` with few and narrow layers for five classes; `act` replaces its activation (convolutional families).

    timm builds the same one as long as `patch` lasts.
    """
    spec = registry.get(arch)
    shrink, usual = _TINY[spec.family]
    size = size or usual
    if shrink is None:
        return shallow.spec(patch, arch, size, act, **options)
    return shrunk(arch, size, {**shrink(dict(spec.args)), **({"act_layer": act} if act else {})}, **options)


def _shape(value: Any) -> Any:
    """Arguments with each number as whether it is zero, and lists as the set of what is in them."""
    if isinstance(value, dict):
        return {key: _shape(entry) for key, entry in value.items() if key != "img_size"}
    if isinstance(value, list):
        return sorted({json.dumps(_shape(entry), sort_keys=True) for entry in value})
    return value if value is None or isinstance(value, (bool, str)) else bool(value)


def _convnext(args: Args) -> Args:
    hidden = {"head_hidden_size": 24} if args.get("head_hidden_size") else {}
    return {"depths": [1, 2, 1, 1], "dims": [8, 16, 24, 32], **hidden}


def _resnet(args: Args) -> Args:
    small: Args = {"layers": [1, 1, 2, 1], "channels": [8, 16, 16, 24]}
    if args.get("norm_layer") == "groupnorm":
        small["channels"] = [32, 32, 64, 64]  # in 32 groups
    if "stem_width" in args:
        small["stem_width"] = 8
    if args.get("cardinality", 1) > 1:
        small.update(cardinality=4, base_width=16)
    return small


def _regnet(_args: Args) -> Args:
    # One or two blocks a stage: whole, untrained networks amplify rounding too much.
    return {"depth": 6, "w0": 16, "wa": 24.0, "wm": 2.0, "group_size": 8}


def _vit(_args: Args) -> Args:
    return {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}


def _eva(args: Args) -> Args:
    heads: Args = {"attn_pool_num_heads": 3} if args.get("attn_pool_num_heads") else {}
    if groups := args.get("num_kv_heads"):
        heads["num_kv_heads"] = [3, 3 if len(set(groups)) == 1 else 1]  # one for each block
    return {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, **heads}


def _swin(args: Args) -> Args:
    # 12, 6, 3 tokens a side: whole windows, padded windows, one clipped window.
    windows = [4, 4, 2] if isinstance(args.get("window_size"), list) else 4
    return {"embed_dim": 16, "depths": [2, 2, 1], "num_heads": [1, 2, 4], "window_size": windows}


def _swinv2(args: Args) -> Args:
    before = {"pretrained_window_sizes": [3, 2]} if any(args.get("pretrained_window_sizes", [0])) else {}
    return {"embed_dim": 16, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4, **before}


def _maxvit(args: Args) -> Args:
    hidden = {"head_hidden_size": 24} if args["model_cfg"]["head_hidden_size"] else {}
    return {"embed_dim": [32, 64], "depths": [1, 1], "block_type": ["M", "M"], "stem_width": [8, 16], **hidden}


# Family to what makes it tiny (None: `shallow` does) and to the image size in pixels.
_TINY: dict[str, tuple[Callable[[Args], Args] | None, int]] = {
    "convnext": (_convnext, 32),
    "efficientnet": (None, 72),
    "mobilenetv3": (None, 72),
    "swin": (_swin, 48),
    "swinv2": (_swinv2, 48),
    "resnet": (_resnet, 64),
    "regnet": (_regnet, 64),
    "vit": (_vit, 32),
    "eva": (_eva, 40),
    "maxvit": (_maxvit, 64),
}
# One ordinary architecture a family, for what does not depend on the kind.
ORDINARY = {
    "convnext": "convnext_atto",
    "efficientnet": "test_efficientnet",
    "mobilenetv3": "mobilenetv3_small_050",
    "swin": "swin_tiny_patch4_window7_224",
    "swinv2": "swinv2_tiny_window8_256",
    "resnet": "resnet26d",
    "regnet": "regnety_002",
    "vit": "vit_tiny_patch16_224",
    "eva": "eva02_tiny_patch14_336",
    "maxvit": "maxvit_tiny_tf_224",
}
# What has no influence in training, and so an exact gradient of zero, by family.
_SHIFTED = "a shift of a linear bottleneck, which the BatchNorm after the next 1x1 convolution takes out again"
_BEFORE_NORM = "a constant per channel before BatchNorm"
ZERO = {
    "efficientnet": {"blocks.2.0.bn2.bias": _SHIFTED, "blocks.[34].0.bn3.bias": _SHIFTED},
    "mobilenetv3": {"blocks.0.0.bn2.bias": _SHIFTED, "blocks.*.bn3.bias": _SHIFTED},
    "maxvit": {"stem.conv1.bias": _BEFORE_NORM, "stages.*.conv.pre_norm.bias": _BEFORE_NORM},
}
