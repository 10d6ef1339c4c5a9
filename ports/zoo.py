"""mlx-image's own zoo, `mlxim/NAME`: its networks behind the door that the ports have. No architecture is here.

mlx-image (github.com/riccardomusmeci/mlx-image) converts torchvision's weights; its names of parameters stay its own.
Its convolutions, norms and pooling become those of `layers`, which the canonical layout and mixed precision go by; its
classifier is set anew, since some of its networks ignore `num_classes`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from config.errors import BackendUnavailable, ConfigError
from models.registry import ModelSpec
from ports.common.layers import BatchNorm2d, Conv2d, DropPath, LayerNorm, Linear, MaxPool2d

PREFIX = "mlxim/"
INSTALL = "pip install --no-deps mlx-image==0.1.10"
# Trained by torchvision with BatchNorm's eps at 1e-3 and its momentum at 0.01; mlx-image leaves MLX's defaults.
_SLOW_NORMS = ("mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7")
# Kept by mlx-image among the parameters, but fixed by the architecture.
CONSTANTS = ("relative_position_index", "relative_coords_table")


def entries() -> dict[str, tuple[Callable[..., nn.Module], Any]]:
    """mlx-image's names, each with its constructor and its configuration (input, and where the weights are)."""
    try:
        from mlxim.model._registry import MODEL_CONFIG, MODEL_ENTRYPOINT
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mlxim":
            raise
        raise BackendUnavailable(
            f"the models of {PREFIX} need mlx-image, not installed here; run: {INSTALL}"
        ) from error
    return {name: (make, MODEL_CONFIG[name]) for name, make in MODEL_ENTRYPOINT.items()}


def build(spec: ModelSpec) -> nn.Module:
    """The network of `spec`, as mlx-image initialises it; `ConfigError` for an option that it does not have."""
    _refuse(spec)
    name = spec.name.removeprefix(PREFIX)
    model = entries()[name][0]()
    rates = [module.p for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    _rebuild(model, spec, max(rates, default=0.0))
    _set_classifier(model, spec)
    for module in model.modules() if name in _SLOW_NORMS else ():
        if isinstance(module, BatchNorm2d):
            module._eps, module._momentum = 1e-3, 0.01
    return model


def _refuse(spec: ModelSpec) -> None:
    asked = {
        f"in_chans={spec.in_chans}": spec.in_chans != 3,
        f"global_pool={spec.global_pool}": bool(spec.global_pool),
        f"image_size={spec.preprocessing.size}": spec.fixed_input_size and spec.preprocessing.size != spec.hub_size,
        f"drop_rate={spec.drop_rate:g}": spec.drop_rate > 0 and not spec.args["dropout"],
        f"drop_path_rate={spec.drop_path_rate:g}": spec.drop_path_rate > 0 and not spec.args["drop_path"],
    }
    for option in (name for name, bad in asked.items() if bad):
        raise ConfigError(f"model {spec.name}: mlx-image has no {option} for it; leave it out, or use timm's model")


def _rebuild(value: Any, spec: ModelSpec, most: float) -> Any:
    """`value` with the layers in it replaced; `most` is the largest rate of stochastic depth that mlx-image sets."""
    kind = type(value).__name__
    if kind in _LAYERS:
        layer = _LAYERS[kind](value)
        for key, array in value.items():
            if isinstance(array, mx.array):
                layer[key] = array
        return layer
    if kind == "StochasticDepth":
        return DropPath(spec.drop_path_rate * value.p / most if most else 0.0)
    if kind == "Dropout":
        return nn.Dropout(spec.drop_rate if value._p_1 < 1 else 0.0)
    if isinstance(value, nn.Module):
        _hide_constants(value)
        for key, child in list(value.items()):
            value[key] = _rebuild(child, spec, most)
    elif isinstance(value, list):
        return [_rebuild(child, spec, most) for child in value]
    return value


def _conv(old: Any) -> Conv2d:
    out, kernel, _, inputs = old.weight.shape
    geometry = (old.stride[0], tuple(old.padding), old.dilation if isinstance(old.dilation, int) else old.dilation[0])
    return Conv2d(inputs * old.groups, out, kernel, *geometry, groups=old.groups, bias="bias" in old)


# The layer of `layers` in place of each of mlx-image's, whose arrays it then gets.
_LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "Conv2d": _conv,
    "BatchNorm": lambda old: BatchNorm2d(old.num_features, eps=old.eps, momentum=old.momentum),
    "LayerNorm": lambda old: LayerNorm(old.dims, eps=old.eps, affine="weight" in old, bias="bias" in old),
    "Linear": lambda old: Linear(old.weight.shape[1], old.weight.shape[0], bias="bias" in old),
    "MaxPool2d": lambda old: MaxPool2d(old._kernel_size[0], old._stride[0], old._padding[0][0]),
}


def _hide_constants(module: nn.Module) -> None:
    # Outside the module's dictionary MLX does not take them for parameters, and mlx-image still finds them.
    for name in CONSTANTS:
        value = module.pop(name, None)
        if isinstance(value, mx.array):
            object.__setattr__(module, name, value)


def _set_classifier(model: nn.Module, spec: ModelSpec) -> None:
    classes, features = spec.num_classes, spec.args["features"]
    parent, _, key = str(spec.classifier).rpartition(".")
    home: Any = model
    for segment in parent.split(".") if parent else ():
        home = home[int(segment)] if isinstance(home, list) else getattr(home, segment)
    layer = Linear(features, classes) if classes else nn.Identity()
    if isinstance(home, list):
        home[int(key)] = layer
    else:
        setattr(home, key, layer)
