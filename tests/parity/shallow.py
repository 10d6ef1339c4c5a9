"""EfficientNet's kin with one or two blocks a stage, on both engines; whole, untrained ones amplify rounding too much.

timm's entry points take no `block_args`, so they are shortened on the way into its constructor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm.models.efficientnet
import timm.models.mobilenetv3

from models import registry
from models.registry import ModelSpec

_BUILDERS = (timm.models.efficientnet, timm.models.mobilenetv3)
Stages = list[list[dict[str, Any]]]


def spec(patch: pytest.MonkeyPatch, arch: str, size: int = 72, act: str | None = None, **options: Any) -> ModelSpec:
    """The shallow `arch` for five classes on `size` pixels, which `patch` makes timm build in this test too."""
    full = registry.get(arch, image_size=size, **{"num_classes": 5, **options})
    timm_args = registry.timm_args
    patch.setattr(registry, "timm_args", lambda s: {k: v for k, v in timm_args(s).items() if k != "block_args"})
    for module in _BUILDERS:
        patch.setattr(module, "build_model_with_cfg", _shortening(module.build_model_with_cfg))
    args = {**full.args, "block_args": _first_blocks(full.args["block_args"])}
    return replace(full, args={**args, **({"act_layer": act} if act else {})})


def _shortening(build: Any) -> Any:
    return lambda *given, **kwargs: build(*given, **{**kwargs, "block_args": _first_blocks(kwargs["block_args"])})


def _first_blocks(stages: Stages) -> Stages:
    return [stage[:2] if i == 1 else stage[:1] for i, stage in enumerate(stages)]
