"""Swin Transformer V2 (Liu et al. 2022) in MLX, as timm's `swin_transformer_v2`.

Against `swin`: cosine attention with a learned scale, biases computed from log-spaced offsets by a small MLP, and
norms after the branches. So its weights do not depend on the window size.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from models.geometry import Stage
from models.registry import ModelSpec
from ports import swin
from ports.common.arguments import read_args
from ports.common.gradients import gelu
from ports.common.layers import DropPath, LayerNorm, Linear
from ports.common.rows import over_rows
from ports.common.transformer import FeedForward
from ports.common.windows import relative_index, split_window_qkv, take_offsets, window_attention
from ports.swin import gather_2x2, shift_mask, windowed

_MAX_LOG_SCALE = math.log(100.0)


@dataclass(frozen=True)
class Args(swin.Args):
    """Those of Swin, and one more."""

    pretrained_window_sizes: list[int] = field(default_factory=lambda: [0, 0, 0, 0])


def log_offsets(window: int, pretrained: int) -> mx.array:
    """All offsets of a window as log-spaced coordinates, float32 `[(2 * window - 1)**2, 2]`.

    They are scaled by the window of pre-training where there was another, so that its MLP still fits.
    """
    line = np.arange(1 - window, window, dtype=np.float32) * 8 / max((pretrained or window) - 1, 1)
    line = np.sign(line) * np.log2(np.abs(line) + 1) / math.log2(8)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    return mx.array(grid.reshape(-1, 2).astype(np.float32))


def unit(x: mx.array) -> mx.array:
    """`x` over its length along the last axis, in fp32; a zero vector stays zero and has a finite gradient."""
    wide = x.astype(mx.float32)
    length = mx.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * mx.rsqrt(mx.maximum(length, 1e-24))).astype(x.dtype)


class WindowAttention(nn.Module):
    """Cosine attention within windows; keys have no bias. The scale and the scores stay in fp32."""

    keep_fp32: ClassVar[bool] = True

    def __init__(self, dim: int, heads: int, stage: Stage, shift: int, pretrained: int):
        super().__init__()
        self.logit_scale = mx.full((heads, 1, 1), math.log(10))
        self.cpb_mlp = [Linear(2, 512), nn.ReLU(), Linear(512, heads, bias=False)]
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = mx.zeros((dim,))
        self.v_bias = mx.zeros((dim,))
        self.proj = Linear(dim, dim)
        self._heads, self._window = heads, stage.window
        self._index = relative_index(stage.window)
        self._offsets = log_offsets(stage.window, pretrained)
        self._mask = shift_mask(stage) if shift else None

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, windows, L, C]` to the same shape."""
        bias = mx.concatenate([self.q_bias, mx.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv(x)
        q, k, v = split_window_qkv(qkv + over_rows(bias.astype(x.dtype), qkv.shape), self._heads)
        scale = mx.exp(mx.minimum(self.logit_scale, _MAX_LOG_SCALE))
        scores = (unit(q) @ unit(k).swapaxes(-1, -2)) * scale
        return self.proj(window_attention(scores, v, self._position_bias(), self._mask))

    def _position_bias(self) -> mx.array:
        table = self._offsets.astype(self.cpb_mlp[0].weight.dtype)
        for layer in self.cpb_mlp:
            table = layer(table)
        return 16 * mx.sigmoid(take_offsets(table, self._index, self._window).transpose(2, 0, 1))


class Block(nn.Module):
    """Residual post-norm: each branch is normalised before it is added."""

    def __init__(self, dim: int, heads: int, stage: Stage, shift: int, pretrained: int, drop_path: float):
        super().__init__()
        self.attn = WindowAttention(dim, heads, stage, shift, pretrained)
        self.norm1 = LayerNorm(dim, eps=1e-5)
        self.mlp = FeedForward(dim, 4 * dim, gelu)
        self.norm2 = LayerNorm(dim, eps=1e-5)
        self.drop_path = DropPath(drop_path)
        self._stage, self._shift = stage, shift

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to the same shape."""
        x = x + self.drop_path(self.norm1(windowed(self, x, self._stage, self._shift)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the width; norm last."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(2 * dim, eps=1e-5)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, ceil(H/2), ceil(W/2), 2 * C]`."""
        return self.norm(self.reduction(gather_2x2(x)))


def build(spec: ModelSpec) -> nn.Module:
    """The Swin Transformer V2 of `spec`, freshly initialised as timm's: every residual branch starts at zero."""
    args = read_args(Args, spec)
    model = swin.assemble(
        spec, args, lambda i: functools.partial(Block, pretrained=args.pretrained_window_sizes[i]), PatchMerging
    )
    for stage_module in model.layers:
        for block in stage_module.blocks:
            block.norm1.weight, block.norm2.weight = (mx.zeros_like(n.weight) for n in (block.norm1, block.norm2))
    return model
