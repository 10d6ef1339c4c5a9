"""RegNetX, RegNetY and RegNetZ, timm's `RegNet` in MLX.

Radosavovic et al. 2020 (arXiv:2003.13678): the widths of all blocks follow from four numbers. Dollar et al. 2021
(arXiv:2103.06877) for Z. The pre-activated RegNetV is not ported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from models.registry import ModelSpec
from ports.common.arguments import Activation, Norm, activation, arguments, batch_norm, unsupported
from ports.common.conv import ConvNormAct, SqueezeExcite, average, draw_fan_out, make_divisible
from ports.common.layers import DropPath, Linear, PoolHead, drop_path_rates

_DEFAULTS: dict[str, Any] = {"model_cfg": {}, "zero_init_last": True}


def build(spec: ModelSpec) -> nn.Module:
    """timm's RegNet of `spec`, freshly initialised; `ConfigError` for an argument that is not ported."""
    return RegNet(spec)


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common."""

    bottle_ratio: float
    se_ratio: float
    downsample: str
    linear_out: bool
    act: Activation
    norm: Norm


@dataclass(frozen=True)
class Stage:
    """One stage: its number of blocks, its channels, and the channels in one group of its 3x3 convolutions."""

    depth: int
    width: int
    group_size: int


def stages(cfg: Mapping[str, Any]) -> list[Stage]:
    """The stages that the design's numbers describe: `w0`, `wa`, `wm`, `depth`, then made divisible by the groups."""
    linear = np.arange(cfg["depth"], dtype=np.float32) * np.float32(cfg["wa"]) + np.float32(cfg["w0"])
    exponents = np.round(np.log(linear / np.float32(cfg["w0"])) / np.float32(math.log(cfg["wm"])))
    quantised = np.round(cfg["w0"] * np.power(np.float32(cfg["wm"]), exponents) / 8) * 8
    widths, depths = np.unique(quantised.astype(int), return_counts=True)
    rows = []
    for width, depth in zip(widths.tolist(), depths.tolist(), strict=True):
        bottleneck = int(width * cfg["bottle_ratio"])
        group = min(cfg["group_size"], bottleneck)
        if cfg["group_min_ratio"]:
            bottleneck = make_divisible(bottleneck, group)  # torchvision's rounding
        else:
            bottleneck = round(bottleneck / group) * group
        rows.append(Stage(depth, int(bottleneck / cfg["bottle_ratio"]), group))
    return rows


class RegNet(nn.Module):
    """A 3x3 stem, four stages of bottlenecks, pooling, classifier."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        args = arguments(spec, {**_DEFAULTS, **spec.args["model_cfg"]})
        cfg = {key: args[key] for key in args["model_cfg"]}  # as in timm, a field of it may be given by itself
        style = _style(spec, cfg)
        width = cfg["stem_width"]
        self.stem = ConvNormAct(spec.in_chans, width, 3, 2, norm=style.norm, act=style.act)
        plan = stages(cfg)
        drops = drop_path_rates(spec.drop_path_rate, [stage.depth for stage in plan])
        for i, (stage, rates) in enumerate(zip(plan, drops, strict=True), start=1):
            self[f"s{i}"] = _blocks(width, stage, rates, style)
            width = stage.width
        self.final_conv = _final(width, cfg["num_features"], style)
        self.head = PoolHead(cfg["num_features"] or width, spec)
        _draw_weights(self, args["zero_init_last"])

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, H, W, in_chans]` to logits `[N, num_classes]`, or features where `num_classes` is 0."""
        x = self.stem(x)
        for stage in (self.s1, self.s2, self.s3, self.s4):
            for block in stage.values():
                x = block(x)
        return self.head(self.final_conv(x))


def _final(width: int, features: int, style: Style) -> Activation:
    if features:
        return ConvNormAct(width, features, norm=style.norm, act=style.act)
    return style.act if style.linear_out else nn.Identity()


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions with the gate after the 3x3 one, and a shortcut where there is one."""

    def __init__(self, inputs: int, stage: Stage, stride: int, drop: float, style: Style):
        super().__init__()
        outputs = stage.width
        middle = round(outputs * style.bottle_ratio)
        groups = middle // stage.group_size
        self.conv1 = ConvNormAct(inputs, middle, norm=style.norm, act=style.act)
        self.conv2 = ConvNormAct(middle, middle, 3, stride, groups, style.norm, style.act)
        reduced = round(inputs * style.se_ratio)
        self.se = SqueezeExcite(middle, reduced, style.act) if style.se_ratio else nn.Identity()
        self.conv3 = ConvNormAct(middle, outputs, norm=style.norm)
        self._act = (lambda x: x) if style.linear_out else style.act
        self._skip = (inputs == outputs and stride == 1) or bool(style.downsample)
        self.downsample = _shortcut(inputs, outputs, stride, style)
        self.drop_path = DropPath(drop)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, width]`."""
        y = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self._skip:
            for layer in self.downsample if isinstance(self.downsample, list) else [self.downsample]:
                x = layer(x)
            y = self.drop_path(y) + x
        return self._act(y)


def _shortcut(inputs: int, outputs: int, stride: int, style: Style) -> nn.Module | list[Any]:
    if (inputs == outputs and stride == 1) or not style.downsample:
        return nn.Identity()
    if style.downsample == "avg":
        return [average if stride == 2 else nn.Identity(), ConvNormAct(inputs, outputs, norm=style.norm)]
    return ConvNormAct(inputs, outputs, 1, stride, norm=style.norm)


def _blocks(inputs: int, stage: Stage, rates: list[float], style: Style) -> dict[str, nn.Module]:
    blocks = {}
    for i, rate in enumerate(rates, start=1):
        blocks[f"b{i}"] = Bottleneck(inputs, stage, 2 if i == 1 else 1, rate, style)
        inputs = stage.width
    return blocks


def _style(spec: ModelSpec, cfg: Mapping[str, Any]) -> Style:
    if cfg["preact"]:
        raise unsupported(spec, "model_cfg.preact", True)
    if cfg["downsample"] not in ("conv1x1", "avg", "", None):
        raise unsupported(spec, "model_cfg.downsample", cfg["downsample"])
    return Style(
        bottle_ratio=cfg["bottle_ratio"],
        se_ratio=cfg["se_ratio"],
        downsample=cfg["downsample"] or "",
        linear_out=cfg["linear_out"],
        act=activation(spec, cfg["act_layer"]),
        norm=batch_norm(spec, cfg["norm_layer"]),
    )


def _draw_weights(model: RegNet, zero_last: bool) -> None:
    draw_fan_out(model)
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            module.fc1.bias, module.fc2.bias = mx.zeros_like(module.fc1.bias), mx.zeros_like(module.fc2.bias)
        if isinstance(module, Bottleneck) and zero_last:
            module.conv3.bn.weight = mx.zeros_like(module.conv3.bn.weight)
        if isinstance(module, Linear):
            module.weight = mx.random.normal(module.weight.shape, scale=0.01)
            module.bias = mx.zeros_like(module.bias)
