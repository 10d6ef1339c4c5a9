"""The architectures in MLX, one file a family; parameter names are exactly timm's.

`create` is the only entry. Each family file has `build(spec) -> nn.Module`, whose `__call__` takes float NHWC images,
normalised, and returns logits `[N, num_classes]` (features where `num_classes` is 0).
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from config.errors import ConfigError
from models.registry import ModelSpec


def supported(family: str) -> bool:
    """Whether MLX has this family."""
    return importlib.util.find_spec(f"ports.{family}") is not None


def create(spec: ModelSpec) -> Any:
    """The MLX module of `spec`, freshly initialised; `ConfigError` when MLX has no such family or option."""
    if not supported(spec.family):
        raise ConfigError(f"model {spec.name}: the family {spec.family} has no MLX port; train it with train_torch.py")
    return importlib.import_module(f"ports.{spec.family}").build(spec)
