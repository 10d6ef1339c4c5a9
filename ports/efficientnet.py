"""EfficientNet, EfficientNetV2 and the mobile nets built from the same blocks, timm's `EfficientNet` in MLX.

Tan and Le 2019 (arXiv:1905.11946) and 2021 (arXiv:2104.00298), Sandler et al. 2018 (arXiv:1801.04381). The blocks and
their assembly serve `mobilenetv3` too, which has another head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from models.registry import ModelSpec
from ports.common.arguments import Activation, Norm, activation, arguments, batch_norm, unsupported
from ports.common.conv import conv, draw_fan_out, halve, make_divisible
from ports.common.layers import Conv2d, DropPath, Linear, classifier, pooling
from ports.common.rows import means, over_pixels

# timm's defaults for both families, and for this one.
DEFAULTS: dict[str, Any] = {
    "block_args": [],
    "num_features": 1280,
    "fix_stem": False,
    "pad_type": "",
    "act_layer": "ReLU",
    "norm_layer": "BatchNorm2d",
    "aa_layer": "",
    "se_layer": {"name": "SqueezeExcite"},
    "round_chs_fn": "round_channels",
}
_DEFAULTS = {**DEFAULTS, "stem_size": 32, "stem_kernel_size": 3}
_ANTI_ALIAS = {"": "", "avg": "avg", "AvgPool2d": "avg", "blur": "blur", "BlurPool2d": "blur", "blurpc": "blurpc"}
Fields = Mapping[str, Any]


def build(spec: ModelSpec) -> nn.Module:
    """timm's EfficientNet of `spec`, freshly initialised; `ConfigError` for an argument that is not ported."""
    return EfficientNet(spec)


class EfficientNet(nn.Module):
    """Stem, stages of inverted residual blocks, a 1x1 convolution, pooling, classifier."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        args = arguments(spec, _DEFAULTS)
        style = Style.of(spec, args)
        width = args["stem_size"] if args["fix_stem"] else style.channels(args["stem_size"])
        self._act = style.act
        self.conv_stem = style.conv(spec.in_chans, width, args["stem_kernel_size"], 2)
        self.bn1 = style.norm(width)
        self.blocks, width = trunk(spec, args["block_args"], width, style, BLOCKS)
        if args["num_features"]:
            self.conv_head = style.conv(width, args["num_features"], 1)
            width = args["num_features"]
            self.bn2 = style.norm(width)
        self.global_pool = pooling(spec.global_pool or "avg")
        self.drop = nn.Dropout(spec.drop_rate)
        self.classifier = classifier(width, spec)
        draw_weights(self)

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, H, W, in_chans]` to logits `[N, num_classes]`, or features where `num_classes` is 0."""
        x = self._act(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            for block in stage:
                x = block(x)
        if "conv_head" in self:
            x = self._act(self.bn2(self.conv_head(x)))
        return self.classifier(self.drop(self.global_pool(x)))


@dataclass(frozen=True)
class Style:
    """What all blocks of one network have in common.

    `gate` makes a squeeze-and-excitation for (channels, ratio, the block's activation); `gate_from_expanded` says that
    its ratio counts from the expanded channels of a block, not from its input's.
    """

    act: Activation
    norm: Norm
    channels: Callable[[float], int]
    gate: Callable[[int, float, Activation], nn.Module]
    gate_from_expanded: bool
    same: bool
    aa: str

    @staticmethod
    def of(spec: ModelSpec, args: Fields) -> Style:
        """The style that the constructor's arguments describe."""
        if args["pad_type"] not in ("", "same"):
            raise unsupported(spec, "pad_type", args["pad_type"])
        if args["aa_layer"] not in _ANTI_ALIAS:
            raise unsupported(spec, "aa_layer", args["aa_layer"])
        return Style(
            act=activation(spec, args["act_layer"]),
            norm=batch_norm(spec, args["norm_layer"]),
            channels=_rounding(spec, "round_chs_fn", args["round_chs_fn"]),
            gate=_gate(spec, args["se_layer"]),
            gate_from_expanded=args.get("se_from_exp", False),
            same=args["pad_type"] == "same",
            aa=_ANTI_ALIAS[args["aa_layer"]],
        )

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1, group_size: int = 0) -> Conv2d:
        """A padded convolution without bias; `group_size` 0 is dense, 1 depthwise."""
        groups = outputs // group_size if group_size else 1
        return conv(inputs, outputs, kernel, stride, groups, same=self.same)

    def squeeze(self, channels: int, block: Fields) -> nn.Module:
        """The block's squeeze-and-excitation on `channels`, or the identity."""
        ratio = block["se_ratio"]
        if not ratio:
            return nn.Identity()
        if not self.gate_from_expanded:
            ratio /= block.get("exp_ratio", 1.0)
        return self.gate(channels, ratio, self.act)


class SqueezeExcite(nn.Module):
    """Channels gated by a bottleneck of their means, under EfficientNet's names."""

    def __init__(self, channels: int, reduced: int, act: Activation, gate: Activation):
        super().__init__()
        self.conv_reduce = Conv2d(channels, reduced, 1)
        self.conv_expand = Conv2d(reduced, channels, 1)
        self._act, self._gate = act, gate

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape as the input `[N, H, W, C]`."""
        y = self._act(self.conv_reduce(means(x)))
        return x * over_pixels(self._gate(self.conv_expand(y)), x.shape)


class Residual(nn.Module):
    """A branch, added to its input where the block's fields and shapes let it."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__()
        skip = block["skip"] if "skip" in block else not block["noskip"]
        self._skip = skip and block["stride"] == 1 and inputs == outputs
        self._act = style.act
        self._aa = style.aa if block["stride"] > 1 else ""
        self._stride = 1 if self._aa else block["stride"]
        self.drop_path = DropPath(drop)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H / stride, W / stride, O]`."""
        return self.drop_path(self.branch(x)) + x if self._skip else self.branch(x)


class ConvBnAct(Residual):
    """One convolution (`cn`)."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__(inputs, outputs, block, drop, style)
        self.conv = style.conv(inputs, outputs, block["kernel_size"], self._stride, block.get("group_size", 0))
        self.bn1 = style.norm(outputs)

    def branch(self, x: mx.array) -> mx.array:
        """Convolution, norm, activation."""
        return halve(self._act(self.bn1(self.conv(x))), self._aa)


class DepthwiseSeparable(Residual):
    """Depthwise, then pointwise (`ds`); `dsa` has an activation after the pointwise one too."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__(inputs, outputs, block, drop, style)
        self.conv_dw = style.conv(inputs, inputs, block["dw_kernel_size"], self._stride, block.get("group_size", 1))
        self.bn1 = style.norm(inputs)
        self.se = style.squeeze(inputs, block)
        self.conv_pw = style.conv(inputs, outputs, block["pw_kernel_size"])
        self.bn2 = style.norm(outputs)
        self._pw_act = block["pw_act"]

    def branch(self, x: mx.array) -> mx.array:
        """Depthwise convolution, gate, projection."""
        x = halve(self._act(self.bn1(self.conv_dw(x))), self._aa)
        x = self.bn2(self.conv_pw(self.se(x)))
        return self._act(x) if self._pw_act else x


class InvertedResidual(Residual):
    """MBConv (`ir`): expand, depthwise, gate, project."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__(inputs, outputs, block, drop, style)
        middle = make_divisible(inputs * block["exp_ratio"])
        self.conv_pw = style.conv(inputs, middle, block["exp_kernel_size"])
        self.bn1 = style.norm(middle)
        self.conv_dw = style.conv(middle, middle, block["dw_kernel_size"], self._stride, block.get("group_size", 1))
        self.bn2 = style.norm(middle)
        self.se = style.squeeze(middle, block)
        self.conv_pwl = style.conv(middle, outputs, block["pw_kernel_size"])
        self.bn3 = style.norm(outputs)

    def branch(self, x: mx.array) -> mx.array:
        """Expansion, depthwise convolution, gate, projection."""
        x = self._act(self.bn1(self.conv_pw(x)))
        x = halve(self._act(self.bn2(self.conv_dw(x))), self._aa)
        return self.bn3(self.conv_pwl(self.se(x)))


class EdgeResidual(Residual):
    """Fused MBConv (`er`): one dense convolution expands, a pointwise one projects."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__(inputs, outputs, block, drop, style)
        forced = style.channels(block["force_in_chs"]) if block["force_in_chs"] else inputs
        middle = make_divisible(forced * block["exp_ratio"])
        self.conv_exp = style.conv(inputs, middle, block["exp_kernel_size"], self._stride, block.get("group_size", 0))
        self.bn1 = style.norm(middle)
        self.se = style.squeeze(middle, block)
        self.conv_pwl = style.conv(middle, outputs, block["pw_kernel_size"])
        self.bn2 = style.norm(outputs)

    def branch(self, x: mx.array) -> mx.array:
        """Expansion, gate, projection."""
        x = halve(self._act(self.bn1(self.conv_exp(x))), self._aa)
        return self.bn2(self.conv_pwl(self.se(x)))


BLOCKS: dict[str, type[Residual]] = {
    "cn": ConvBnAct,
    "ds": DepthwiseSeparable,
    "dsa": DepthwiseSeparable,
    "ir": InvertedResidual,
    "er": EdgeResidual,
}


def trunk(
    spec: ModelSpec,
    stages: list[list[dict[str, Any]]],
    width: int,
    style: Style,
    kinds: Mapping[str, type[Residual]],
) -> tuple[list[list[nn.Module]], int]:
    """The blocks by stage, and the channels that leave them; only the first block of a stage keeps its stride."""
    total, index, built = sum(map(len, stages)), 0, []
    for stage in stages:
        blocks: list[nn.Module] = []
        for fields in stage:
            block = {**fields, "stride": 1 if blocks else fields["stride"]}
            _check(spec, block, kinds)
            style_of_block = (
                dataclasses.replace(style, act=activation(spec, block["act_layer"])) if block["act_layer"] else style
            )
            outputs = style.channels(block["out_chs"])
            drop = spec.drop_path_rate * index / total
            blocks.append(kinds[block["block_type"]](width, outputs, block, drop, style_of_block))
            width, index = outputs, index + 1
        built.append(blocks)
    return built, width


def _check(spec: ModelSpec, block: Fields, kinds: Mapping[str, type[Residual]]) -> None:
    refused = {
        "block_type": block["block_type"] not in kinds,
        "num_experts": bool(block.get("num_experts")),
        "s2d": bool(block.get("s2d")),
        **{name: isinstance(value, list) for name, value in block.items() if name.endswith("kernel_size")},
    }
    for name in (n for n, bad in refused.items() if bad):
        raise unsupported(spec, f"block_args.{name}", block[name])


def _rounding(spec: ModelSpec, argument: str, value: str | Fields) -> Callable[[float], int]:
    options: dict[str, Any] = {"name": value} if isinstance(value, str) else dict(value)
    if options.pop("name") != "round_channels" or options.keys() - {"multiplier", "divisor", "round_limit"}:
        raise unsupported(spec, argument, value)
    multiplier = options.pop("multiplier", 1.0)
    return lambda channels: make_divisible(channels * multiplier, **options)


def _gate(spec: ModelSpec, value: str | Fields) -> Callable[[int, float, Activation], nn.Module]:
    options = {"name": value} if isinstance(value, str) else dict(value)
    name, rounding = options.pop("name"), options.pop("rd_round_fn", None)
    gate = activation(spec, options.pop("gate_layer", "sigmoid"))
    forced = options.pop("force_act_layer", None)
    if name != "SqueezeExcite" or options:
        raise unsupported(spec, "se_layer", value)
    reduced = _rounding(spec, "se_layer.rd_round_fn", rounding) if rounding else round
    forced_act = activation(spec, forced) if forced else None
    return lambda channels, ratio, act: SqueezeExcite(channels, reduced(channels * ratio), forced_act or act, gate)


def draw_weights(model: nn.Module) -> None:
    """The TensorFlow initialisation of timm's `_init_weight_goog`: normal by fan-out, uniform classifier, no biases."""
    draw_fan_out(model)
    for module in model.modules():
        if isinstance(module, Linear):
            bound = module.weight.shape[0] ** -0.5
            module.weight = mx.random.uniform(-bound, bound, module.weight.shape)
        if isinstance(module, (nn.Linear, Conv2d)) and "bias" in module:
            module.bias = mx.zeros_like(module.bias)
