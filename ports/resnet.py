"""ResNet and its kin (ResNet-C/D/S/T/RS, ResNeXt, Wide, SE, ECA, anti-aliased), timm's `ResNet` in MLX.

He et al. 2015 (arXiv:1512.03385), He et al. 2018 (arXiv:1812.01187, the D stem and shortcut), Xie et al. 2016
(arXiv:1611.05431), Hu et al. 2017 (arXiv:1709.01507), Wang et al. 2019 (arXiv:1910.03151), Bello et al. 2021
(arXiv:2103.07579).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn

from models.registry import ModelSpec
from ports.common.arguments import Activation, Norm, activation, arguments, batch_norm, unsupported
from ports.common.conv import SqueezeExcite, average, conv, draw_fan_out, halve, make_divisible
from ports.common.layers import Conv2d, DropPath, MaxPool2d, classifier, pooling
from ports.common.rows import means, over_pixels

_DEFAULTS: dict[str, Any] = {
    "block": "Bottleneck",
    "layers": [],
    "cardinality": 1,
    "base_width": 64,
    "stem_width": 64,
    "stem_type": "",
    "replace_stem_pool": False,
    "block_reduce_first": 1,
    "down_kernel_size": 1,
    "avg_down": False,
    "channels": [64, 128, 256, 512],
    "act_layer": "relu",
    "norm_layer": "batchnorm",
    "aa_layer": "",
    "zero_init_last": True,
    "block_args": {},
}
_ANTI_ALIAS = {"": "", "AvgPool2d": "avg", "avg": "avg", "BlurPool2d": "blur", "blur": "blur"}


def build(spec: ModelSpec) -> nn.Module:
    """timm's ResNet of `spec`, freshly initialised; `ConfigError` for an argument that is not ported."""
    return ResNet(spec)


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common. `attention` makes the gate for a number of channels, or none."""

    cardinality: int
    base_width: int
    reduce_first: int
    act: Activation
    norm: Norm
    aa: str
    attention: Callable[[int], nn.Module] | None


class Eca(nn.Module):
    """Efficient channel attention: channels gated by a small convolution along their means."""

    def __init__(self, channels: int):
        super().__init__()
        size = int(abs(math.log(channels, 2) + 1) / 2)
        kernel = max(size if size % 2 else size + 1, 3)
        self.conv = nn.Module()
        self.conv.weight = mx.random.uniform(-(kernel**-0.5), kernel**-0.5, (1, 1, kernel))

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape as the input `[N, H, W, C]`."""
        kernel = self.conv.weight.reshape(1, -1, 1)
        gate = mx.sigmoid(mx.conv1d(means(x)[:, 0, 0, :, None], kernel, padding=kernel.shape[1] // 2))
        return x * over_pixels(gate.reshape(-1, 1, 1, x.shape[-1]), x.shape)


class Residual(nn.Module):
    """What both blocks end with: a gate, drop path, the shortcut, and an activation after the sum."""

    def finish(self, outputs: int, style: Style, drop: float, shortcut: list[Any] | None) -> None:
        """Add those parts; `shortcut` None keeps the input as it is."""
        self.se = style.attention(outputs) if style.attention else nn.Identity()
        self.drop_path = DropPath(drop)
        self._act = style.act
        if shortcut:
            self.downsample = shortcut

    def join(self, x: mx.array, y: mx.array) -> mx.array:
        """The input `x` through the shortcut, and the branch's `y`."""
        for layer in self.downsample if "downsample" in self else ():
            x = layer(x)
        return self._act(self.drop_path(self.se(y)) + x)


class BasicBlock(Residual):
    """Two 3x3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, planes: int, stride: int, style: Style, drop: float, shortcut: list[Any] | None):
        super().__init__()
        first = planes // style.reduce_first
        self._aa = style.aa if stride == 2 else ""
        self.conv1 = conv(inputs, first, 3, 1 if self._aa else stride)
        self.bn1 = style.norm(first)
        self.conv2 = conv(first, planes, 3)
        self.bn2 = style.norm(planes)
        self.finish(planes, style, drop, shortcut)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, planes]`."""
        y = halve(self._act(self.bn1(self.conv1(x))), self._aa)
        return self.join(x, self.bn2(self.conv2(y)))


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride is in the 3x3 one."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, planes: int, stride: int, style: Style, drop: float, shortcut: list[Any] | None):
        super().__init__()
        width = int(math.floor(planes * (style.base_width / 64)) * style.cardinality)
        first, outputs = width // style.reduce_first, planes * self.expansion
        self._aa = style.aa if stride == 2 else ""
        self.conv1 = conv(inputs, first, 1)
        self.bn1 = style.norm(first)
        self.conv2 = conv(first, width, 3, 1 if self._aa else stride, style.cardinality)
        self.bn2 = style.norm(width)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = style.norm(outputs)
        self.finish(outputs, style, drop, shortcut)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, 4 * planes]`."""
        y = self._act(self.bn1(self.conv1(x)))
        y = halve(self._act(self.bn2(self.conv2(y))), self._aa)
        return self.join(x, self.bn3(self.conv3(y)))


_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, pooling, classifier."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        args = arguments(spec, _DEFAULTS)
        style = _style(spec, args)
        width = args["stem_width"] * 2 if "deep" in args["stem_type"] else 64
        self._act = style.act
        self.conv1 = _stem(spec.in_chans, width, args, style)
        self.bn1 = style.norm(width)
        self.maxpool = _stem_pool(width, args["replace_stem_pool"], style)
        width = self._add_stages(spec, args, style, width)
        self.global_pool = pooling(spec.global_pool or "avg")
        self.drop = nn.Dropout(spec.drop_rate)
        self.fc = classifier(width, spec)
        draw_fan_out(self, grouped=False)
        if args["zero_init_last"]:
            self._zero_last_norms()

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, H, W, in_chans]` to logits `[N, num_classes]`, or features where `num_classes` is 0."""
        for layer in self.conv1 if isinstance(self.conv1, list) else [self.conv1]:
            x = layer(x)
        x = self._act(self.bn1(x))
        for layer in self.maxpool:
            x = layer(x)
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            x = block(x)
        return self.fc(self.drop(self.global_pool(x)))

    def _add_stages(self, spec: ModelSpec, args: Mapping[str, Any], style: Style, width: int) -> int:
        names = args["block"] if isinstance(args["block"], list) else [args["block"]] * 4
        index, last = 0, max(sum(args["layers"]) - 1, 1)
        for stage, (name, planes, depth) in enumerate(zip(names, args["channels"], args["layers"], strict=True)):
            kind, blocks = _BLOCKS[name], []
            for i in range(depth):
                stride = 2 if stage and i == 0 else 1
                outputs = planes * kind.expansion
                shortcut = _shortcut(width, outputs, stride, args, style) if i == 0 else None
                drop = spec.drop_path_rate * index / last
                blocks.append(kind(width, planes, stride, style, drop, shortcut))
                width, index = outputs, index + 1
            self[f"layer{stage + 1}"] = blocks
        return width

    def _zero_last_norms(self) -> None:
        for block in (*self.layer1, *self.layer2, *self.layer3, *self.layer4):
            last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
            last.weight = mx.zeros_like(last.weight)


def _style(spec: ModelSpec, args: Mapping[str, Any]) -> Style:
    if args["aa_layer"] not in _ANTI_ALIAS:
        raise unsupported(spec, "aa_layer", args["aa_layer"])
    return Style(
        cardinality=args["cardinality"],
        base_width=args["base_width"],
        reduce_first=args["block_reduce_first"],
        act=activation(spec, args["act_layer"]),
        norm=batch_norm(spec, args["norm_layer"]),
        aa=_ANTI_ALIAS[args["aa_layer"]],
        attention=_attention(spec, args["block_args"]),
    )


def _attention(spec: ModelSpec, block_args: Mapping[str, Any]) -> Callable[[int], nn.Module] | None:
    layer = block_args.get("attn_layer")
    options: dict[str, Any] = dict(layer) if isinstance(layer, Mapping) else {"name": layer}
    name, ratio = options.pop("name"), options.pop("rd_ratio", 1 / 16)
    if block_args.keys() - {"attn_layer"} or options or name not in (None, "se", "SEModule", "eca"):
        raise unsupported(spec, "block_args", block_args)
    if name is None:
        return None
    if name == "eca":
        return Eca
    return lambda channels: SqueezeExcite(channels, make_divisible(channels * ratio, round_limit=0.0))


def _stem(in_chans: int, width: int, args: Mapping[str, Any], style: Style) -> Conv2d | list[Any]:
    if "deep" not in args["stem_type"]:
        return conv(in_chans, width, 7, 2)
    second = args["stem_width"]
    first = 3 * (second // 4) if "tiered" in args["stem_type"] else second
    return [
        conv(in_chans, first, 3, 2),
        style.norm(first),
        style.act,
        conv(first, second, 3),
        style.norm(second),
        style.act,
        conv(second, width, 3),
    ]


def _stem_pool(width: int, replaced: bool, style: Style) -> list[Any]:
    blur = [functools.partial(halve, kind=style.aa)] if style.aa else []
    if replaced:
        return [conv(width, width, 3, 1 if blur else 2), *blur, style.norm(width), style.act]
    if style.aa == "avg":
        return blur
    return [MaxPool2d(3, stride=1 if blur else 2, padding=1), *blur]


def _shortcut(inputs: int, outputs: int, stride: int, args: Mapping[str, Any], style: Style) -> list[Any] | None:
    if stride == 1 and inputs == outputs:
        return None
    if args["avg_down"]:
        return [average if stride == 2 else nn.Identity(), conv(inputs, outputs, 1), style.norm(outputs)]
    kernel = args["down_kernel_size"] if stride == 2 else 1
    return [conv(inputs, outputs, kernel, stride), style.norm(outputs)]
