"""Reads timm's constructor arguments as `models/tables` records them; refuses what a port does not build.

A class is recorded by its name, a partial as `{"name": ..., keyword: ...}`. The layers made from them are elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from config.errors import ConfigError
from models.registry import ModelSpec
from ports.common.layers import ACTIVATIONS, BatchNorm2d, LayerNorm, RmsNorm

Activation = Callable[[mx.array], mx.array]
Norm = Callable[[int], nn.Module]
Arguments = TypeVar("Arguments")


def unsupported(spec: ModelSpec, argument: str, value: object) -> ConfigError:
    """The error for an architecture that a port would not build as timm does."""
    return ConfigError(
        f"model {spec.name}: MLX has no port of {argument}={json.dumps(value)}; train it with train_torch.py"
    )


def arguments(spec: ModelSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded arguments over timm's `defaults`; `ConfigError` names the first one that `defaults` lacks."""
    for name in sorted(spec.args.keys() - defaults.keys()):
        raise unsupported(spec, name, spec.args[name])
    return {**defaults, **spec.args}


def read_args(kind: type[Arguments], spec: ModelSpec) -> Arguments:
    """timm's recorded constructor arguments as the family's dataclass; `ConfigError` for one it does not know."""
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in sorted(spec.args.keys() - known):
        raise unsupported(spec, name, spec.args[name])
    return kind(**spec.args)


def activation(spec: ModelSpec, name: str) -> Activation:
    """The activation that timm calls by a class (`SiLU`, `Hardswish`) or a name (`hard_swish`)."""
    by_name = {key.replace("_", ""): act for key, act in ACTIVATIONS.items()}
    plain = name.lower().replace("_", "")
    if plain not in by_name:
        raise unsupported(spec, "act_layer", name)
    return by_name[plain]


def batch_norm(spec: ModelSpec, layer: str | Mapping[str, Any]) -> Norm:
    """What makes the recorded `norm_layer` for a number of channels: BatchNorm with its eps and momentum, no other."""
    options = {"name": layer} if isinstance(layer, str) else dict(layer)
    name = options.pop("name")
    if name.lower() not in ("batchnorm", "batchnorm2d") or options.keys() - {"eps", "momentum"}:
        raise unsupported(spec, "norm_layer", layer)
    return functools.partial(BatchNorm2d, **options)


def layer_norm(spec: ModelSpec, recorded: Any, eps: float) -> Norm:
    """What makes the recorded `norm_layer` of a transformer for a width; `eps` is the family's default."""
    options = recorded if isinstance(recorded, dict) else {"name": recorded}
    kinds: dict[str, Any] = {"layernorm": LayerNorm, "rmsnorm": RmsNorm}
    name, extra = options["name"].lower(), options.keys() - {"name", "eps"}
    if name not in kinds or extra:
        raise unsupported(spec, "norm_layer", recorded)
    return functools.partial(kinds[name], eps=options.get("eps", eps))
