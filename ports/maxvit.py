"""MaxViT (Tu et al. 2022) in MLX, as timm's `maxxvit`: MBConv, attention within windows, attention across a grid.

All `maxvit_*` architectures: TensorFlow's (`tf`) and timm's own with a bias table (`rw`) or a bias MLP (`rmlp`).
CoAtNet, ConvNeXt convolutions (`maxxvit_*`) and parallel blocks are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from config.errors import ConfigError
from models.geometry import maxvit_window
from models.registry import ModelSpec
from ports.common.arguments import Activation, activation, arguments, unsupported
from ports.common.conv import SqueezeExcite, average, conv, convolutions, draw_fan_out, make_divisible
from ports.common.gradients import silu
from ports.common.layers import (
    BatchNorm2d,
    Conv2d,
    DropPath,
    LayerNorm,
    Linear,
    PoolHead,
    classifier,
    drop_path_rates,
    pooling,
)
from ports.common.transformer import FeedForward, layer_scale, normal
from ports.common.windows import merge, partition, relative_index, split_window_qkv, take_offsets, window_attention

# What every architecture here has in common; another value is refused.
_FIXED: dict[str, dict[str, Any]] = {
    "conv_cfg": {
        "block_type": "mbconv",
        "kernel_size": 3,
        "group_size": 1,
        "pre_norm_act": False,
        "stride_mode": "dw",
        "pool_type": "avg2",
        "attn_early": False,
        "attn_layer": "se",
        "norm_layer": "batchnorm2d",
    },
    "transformer_cfg": {
        "attn_bias": True,
        "attn_drop": 0.0,
        "proj_drop": 0.0,
        "grid_size": None,
        "window_size": None,
        "no_block_attn": False,
        "use_nchw_attn": False,
        "norm_layer": "layernorm2d",
        "norm_layer_cl": "layernorm",
    },
}


@dataclass(frozen=True)
class Parts:
    """timm's configuration of the convolutional and the transformer half, and the window side that the size gives."""

    conv: Mapping[str, Any]
    attn: Mapping[str, Any]
    conv_act: Activation
    attn_act: Activation
    window: int

    def batch_norm(self, channels: int) -> BatchNorm2d:
        """BatchNorm with the recorded eps."""
        return BatchNorm2d(channels, eps=self.conv["norm_eps"])

    def norm(self, channels: int) -> LayerNorm:
        """LayerNorm with the recorded eps."""
        return LayerNorm(channels, eps=self.attn["norm_eps"])


class Downsample(nn.Module):
    """The shortcut of a strided block: 2x2 means, and a 1x1 convolution where the width changes."""

    def __init__(self, before: int, after: int, bias: bool):
        super().__init__()
        self.expand = Conv2d(before, after, 1, bias=bias) if before != after else nn.Identity()

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, before]` to `[N, H/2, W/2, after]`."""
        return self.expand(average(x))


class MbConv(nn.Module):
    """Pre-norm inverted bottleneck with squeeze-and-excitation."""

    def __init__(self, parts: Parts, before: int, after: int, stride: int, drop_path: float):
        super().__init__()
        cfg, same = parts.conv, parts.conv["padding"] == "same"
        middle = make_divisible((after if cfg["expand_output"] else before) * cfg["expand_ratio"])
        reduced = int(cfg["attn_ratio"] * (after if cfg["expand_output"] else middle))
        self.shortcut = Downsample(before, after, cfg["output_bias"]) if stride == 2 else nn.Identity()
        self.pre_norm = parts.batch_norm(before)
        self.conv1_1x1 = conv(before, middle, 1)
        self.norm1 = parts.batch_norm(middle)
        self.conv2_kxk = conv(middle, middle, 3, stride, groups=middle, same=same)
        self.norm2 = parts.batch_norm(middle)
        self.se = SqueezeExcite(middle, reduced, silu)
        self.conv3_1x1 = conv(middle, after, 1, bias=cfg["output_bias"])
        self.drop_path = DropPath(drop_path)
        self._act = parts.conv_act

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, before]` to `[N, H/stride, W/stride, after]`."""
        y = self._act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        y = self.se(self._act(self.norm2(self.conv2_kxk(y))))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(y))


class BiasTable(nn.Module):
    """A learned bias for each offset and head, `[offsets, heads]`, or in TensorFlow's form `[heads, 2w-1, 2w-1]`."""

    def __init__(self, window: int, heads: int, tensorflow: bool):
        super().__init__()
        side, self._window, self._tensorflow = 2 * window - 1, window, tensorflow
        self.relative_position_bias_table = normal((heads, side, side) if tensorflow else (side * side, heads))
        self._index = relative_index(window)

    def __call__(self) -> mx.array:
        """`[heads, L, L]`, queries first; TensorFlow's offsets go from the query to the key."""
        table = self.relative_position_bias_table
        if not self._tensorflow:
            return take_offsets(table, self._index, self._window).transpose(2, 0, 1)
        table = table.reshape(table.shape[0], -1).T
        return take_offsets(table, self._index, self._window).transpose(2, 1, 0)


class BiasMlp(nn.Module):
    """Biases computed from log-spaced offsets by a small MLP, whose hidden layer drops an eighth in training."""

    def __init__(self, window: int, heads: int, hidden: int):
        super().__init__()
        self.mlp = {"fc1": Linear(2, hidden), "fc2": Linear(hidden, heads)}
        self.drop = nn.Dropout(0.125)
        line = np.arange(1 - window, window, dtype=np.float32)
        line = np.sign(line) * np.log1p(np.abs(line))
        self._offsets = mx.array(np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2))
        self._index, self._window = relative_index(window), window

    def __call__(self) -> mx.array:
        """`[heads, L, L]`, queries first."""
        offsets = self._offsets.astype(self.mlp["fc1"].weight.dtype)
        table = self.mlp["fc2"](self.drop(nn.relu(self.mlp["fc1"](offsets))))
        return take_offsets(table, self._index, self._window).transpose(2, 0, 1)


class Attention(nn.Module):
    """Multi-head attention within groups of tokens, with relative-position bias."""

    def __init__(self, parts: Parts, dim: int):
        super().__init__()
        cfg, self._heads = parts.attn, dim // parts.attn["dim_head"]
        self.qkv = Linear(dim, 3 * dim)
        if cfg["rel_pos_type"] == "mlp":
            self.rel_pos: nn.Module = BiasMlp(parts.window, self._heads, cfg["rel_pos_dim"])
        else:
            self.rel_pos = BiasTable(parts.window, self._heads, cfg["rel_pos_type"] == "bias_tf")
        self.proj = Linear(dim, dim)
        self._head_first = cfg["head_first"]

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, groups, L, C]` to the same shape."""
        qkv = self.qkv(x)
        if self._head_first:
            per_head = qkv.reshape(*qkv.shape[:3], self._heads, 3, -1)
            q, k, v = per_head.transpose(4, 0, 1, 3, 2, 5)
        else:
            q, k, v = split_window_qkv(qkv, self._heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)
        return self.proj(window_attention(scores, v, self.rel_pos(), None))


class PartitionAttention(nn.Module):
    """A transformer block whose attention sees a window (near tokens) or a grid (one token of each window)."""

    def __init__(self, parts: Parts, dim: int, grid: bool, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = parts.norm(dim), parts.norm(dim)
        self.attn = Attention(parts, dim)
        self.mlp = FeedForward(dim, int(dim * parts.attn["expand_ratio"]), parts.attn_act)
        self.ls1, self.ls2 = (layer_scale(dim, parts.attn["init_values"]) for _ in range(2))
        self.drop_path = DropPath(drop_path)
        self._window, self._grid = parts.window, grid

    def _attend(self, x: mx.array) -> mx.array:
        # A grid of w x w tokens that lie H/w apart is a window of side H/w with its two axes exchanged.
        height, width = x.shape[1:3]
        if not self._grid:
            return merge(self.attn(partition(x, self._window)), self._window, height, width)
        stride = height // self._window
        y = self.attn(partition(x, stride).swapaxes(1, 2))
        return merge(y.swapaxes(1, 2), stride, height, width)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to the same shape."""
        x = x + self.drop_path(self.ls1(self._attend(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Block(nn.Module):
    """MBConv, window attention, grid attention."""

    def __init__(self, parts: Parts, before: int, after: int, stride: int, drop_path: float):
        super().__init__()
        self.conv = MbConv(parts, before, after, stride, drop_path)
        self.attn_block = PartitionAttention(parts, after, False, drop_path)
        self.attn_grid = PartitionAttention(parts, after, True, drop_path)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, before]` to `[N, H/stride, W/stride, after]`."""
        return self.attn_grid(self.attn_block(self.conv(x)))


class Stage(nn.Module):
    """Blocks of one width; the first halves the resolution."""

    def __init__(self, parts: Parts, before: int, after: int, rates: list[float]):
        super().__init__()
        widths = [before] + [after] * (len(rates) - 1)
        self.blocks = [Block(parts, w, after, 1 if i else 2, rates[i]) for i, w in enumerate(widths)]

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, before]` to `[N, H/2, W/2, after]`."""
        for block in self.blocks:
            x = block(x)
        return x


class Stem(nn.Module):
    """Two 3x3 convolutions, the first of stride 2, with BatchNorm and activation between."""

    def __init__(self, parts: Parts, in_chans: int, widths: list[int], bias: bool):
        super().__init__()
        same = parts.conv["padding"] == "same"
        self.conv1 = conv(in_chans, widths[0], 3, 2, bias=bias, same=same)
        self.norm1 = parts.batch_norm(widths[0])
        self.conv2 = conv(widths[0], widths[1], 3, bias=bias, same=same)
        self._act = parts.conv_act

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, in_chans]` to `[N, H/2, W/2, widths[1]]`."""
        return self.conv2(self._act(self.norm1(self.conv1(x))))


class HiddenHead(nn.Module):
    """timm's `NormMlpClassifierHead`: pool, norm, a tanh layer, dropout, `fc`."""

    def __init__(self, parts: Parts, dim: int, hidden: int, spec: ModelSpec):
        super().__init__()
        self.global_pool = pooling(spec.global_pool or "avg")
        self.norm = parts.norm(dim)
        self.pre_logits = {"fc": Linear(dim, hidden)}
        self.drop = nn.Dropout(spec.drop_rate)
        self.fc = classifier(hidden, spec)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, dim]` to `[N, num_classes]`."""
        return self.fc(self.drop(mx.tanh(self.pre_logits["fc"](self.norm(self.global_pool(x))))))


class MaxViT(nn.Module):
    """Stem, four stages, head."""

    def __init__(self, spec: ModelSpec, cfg: Mapping[str, Any], parts: Parts):
        super().__init__()
        width, dims, rates = cfg["stem_width"], cfg["embed_dim"], drop_path_rates(spec.drop_path_rate, cfg["depths"])
        widths = [width, width] if isinstance(width, int) else width
        self.stem = Stem(parts, spec.in_chans, widths, cfg["stem_bias"])
        before = [widths[1], *dims]
        self.stages = [Stage(parts, before[i], dims[i], rates[i]) for i in range(len(dims))]
        hidden = cfg["head_hidden_size"]
        self.norm = nn.Identity() if hidden else parts.norm(dims[-1])
        self.head: nn.Module = HiddenHead(parts, dims[-1], hidden, spec) if hidden else PoolHead(dims[-1], spec)

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, size, size, in_chans]` to logits `[N, num_classes]`."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.norm(x))


def build(spec: ModelSpec) -> nn.Module:
    """The MaxViT of `spec`, freshly initialised as timm's "vit_eff"; its image size is a multiple of 32."""
    # timm lays further arguments over the recorded configuration.
    cfg = arguments(spec, {**spec.args["model_cfg"], "model_cfg": None})
    model = MaxViT(spec, cfg, _parts(spec, cfg))
    draw_fan_out(model.stem)
    for stage in model.stages:
        draw_fan_out(stage)
    for layer in convolutions(model):
        if "bias" in layer:
            layer.bias = mx.zeros_like(layer.bias)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.startswith("stages."):
            bound = (6 / sum(layer.weight.shape)) ** 0.5
            layer.weight = mx.random.uniform(-bound, bound, layer.weight.shape)
            layer.bias = normal(layer.bias.shape, std=1e-6 if ".mlp." in name else 0.0)
    return model


def _parts(spec: ModelSpec, cfg: Mapping[str, Any]) -> Parts:
    for half, fixed in _FIXED.items():
        for key, value in fixed.items():
            if cfg[half][key] != value:
                raise unsupported(spec, f"{half}.{key}", cfg[half][key])
    if set(cfg["block_type"]) != {"M"}:
        raise unsupported(spec, "block_type", cfg["block_type"])
    attn, ratio = cfg["transformer_cfg"], cfg["transformer_cfg"]["partition_ratio"]
    if attn["rel_pos_type"] not in ("bias", "bias_tf", "mlp"):
        raise unsupported(spec, "transformer_cfg.rel_pos_type", attn["rel_pos_type"])
    if spec.preprocessing.size % ratio:
        raise ConfigError(f"model {spec.name}: image_size {spec.preprocessing.size} is no multiple of {ratio}")
    acts = [activation(spec, cfg[half]["act_layer"]) for half in ("conv_cfg", "transformer_cfg")]
    return Parts(cfg["conv_cfg"], attn, acts[0], acts[1], maxvit_window(spec))
