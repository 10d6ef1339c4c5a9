"""MobileNetV3, MobileNetV4-conv, FBNetV3 and LCNet, timm's `MobileNetV3` in MLX.

Howard et al. 2019 (arXiv:1905.02244), Qin et al. 2024 (arXiv:2404.10518). The blocks that EfficientNet has as well are
in `efficientnet`; here are the universal inverted bottleneck and the head, which pools before its convolution.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from models.registry import ModelSpec
from ports.common.arguments import arguments
from ports.common.conv import ConvNormAct, conv, make_divisible
from ports.common.layers import ACTIVATIONS, classifier, pooling
from ports.efficientnet import BLOCKS, DEFAULTS, Fields, Residual, Style, draw_weights, trunk

_DEFAULTS = {**DEFAULTS, "stem_size": 16, "head_bias": True, "head_norm": False, "se_from_exp": True}


def build(spec: ModelSpec) -> nn.Module:
    """timm's MobileNetV3 of `spec`, freshly initialised; `ConfigError` for an argument that is not ported."""
    return MobileNetV3(spec)


class MobileNetV3(nn.Module):
    """Stem, stages of inverted bottlenecks, pooling, a convolution on the pooled features, classifier."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        args = arguments(spec, _DEFAULTS)
        style = Style.of(spec, args)
        width = args["stem_size"] if args["fix_stem"] else style.channels(args["stem_size"])
        self._act = style.act
        self.conv_stem = style.conv(spec.in_chans, width, 3, 2)
        self.bn1 = style.norm(width)
        kinds = {**BLOCKS, "uir": UniversalInvertedResidual}
        self.blocks, width = trunk(spec, args["block_args"], width, style, kinds)
        self.global_pool = pooling(spec.global_pool or "avg")
        features = args["num_features"]
        normed = args["head_norm"]
        self.conv_head = conv(width, features, 1, bias=args["head_bias"] and not normed)
        self.norm_head = style.norm(features) if normed else nn.Identity()
        self.drop = nn.Dropout(spec.drop_rate)
        self.classifier = classifier(features, spec)
        draw_weights(self)

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, H, W, in_chans]` to logits `[N, num_classes]`, or features where `num_classes` is 0."""
        x = self._act(self.bn1(self.conv_stem(x)))
        for stage in self.blocks:
            for block in stage:
                x = block(x)
        pooled = self.global_pool(x)[:, None, None, :]
        x = self._act(self.norm_head(self.conv_head(pooled)))[:, 0, 0]
        return self.classifier(self.drop(x))


class UniversalInvertedResidual(Residual):
    """The universal inverted bottleneck (`uir`): optional depthwise convolutions before, inside and after expansion."""

    def __init__(self, inputs: int, outputs: int, block: Fields, drop: float, style: Style):
        super().__init__(inputs, outputs, block, drop, style)
        start, middle, end = (block[f"dw_kernel_size_{position}"] for position in ("start", "mid", "end"))
        stride, group_size = block["stride"], block.get("group_size", 1)
        width = make_divisible(inputs * block["exp_ratio"])

        def depthwise(channels: int, kernel: int, stride: int, act: bool, aa: str) -> nn.Module:
            if not kernel:
                return nn.Identity()
            act_used = style.act if act else ACTIVATIONS["identity"]
            groups = channels // group_size if group_size else 1
            return ConvNormAct(channels, channels, kernel, stride, groups, style.norm, act_used, style.same, aa)

        self.dw_start = depthwise(inputs, start, 1 if middle else stride, False, style.aa)
        self.pw_exp = ConvNormAct(inputs, width, norm=style.norm, act=style.act)
        self.dw_mid = depthwise(width, middle, stride, True, style.aa)
        self.se = style.squeeze(width, block)
        self.pw_proj = ConvNormAct(width, outputs, norm=style.norm)
        self.dw_end = depthwise(outputs, end, 1 if start or middle else stride, False, "")

    def branch(self, x: mx.array) -> mx.array:
        """Depthwise, expansion, depthwise, gate, projection, depthwise; each depthwise one may be absent."""
        x = self.dw_mid(self.pw_exp(self.dw_start(x)))
        return self.dw_end(self.pw_proj(self.se(x)))
