"""Swin Transformer (Liu et al. 2021) in MLX, as timm's `swin_transformer`: windows, shifts, relative-position bias.

The trunk here serves `swinv2` too. Window sizes follow from the image size in `models.geometry`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from models.geometry import Stage, swin_stages
from models.registry import ModelSpec
from ports.common.arguments import read_args
from ports.common.gradients import gelu
from ports.common.layers import DropPath, LayerNorm, Linear, PoolHead, drop_path_rates
from ports.common.transformer import FeedForward, PatchEmbed, init_linears, normal
from ports.common.windows import merge, partition, relative_index, split_window_qkv, take_offsets, window_attention


@dataclass(frozen=True)
class Args:
    """timm's constructor arguments that occur; an unknown one is refused."""

    patch_size: int = 4
    window_size: int | list[int] = 7
    embed_dim: int = 96
    depths: list[int] = field(default_factory=lambda: [2, 2, 6, 2])
    num_heads: list[int] = field(default_factory=lambda: [3, 6, 12, 24])
    img_size: int = 224


def shift_mask(stage: Stage) -> mx.array:
    """Additive mask `[windows, 1, window**2, window**2]`: -100 between tokens that only the cyclic shift made
    neighbours."""
    window, side = stage.window, -(-stage.resolution // stage.window) * stage.window
    band = np.zeros(side, dtype=np.float32)
    band[side - window :], band[side - stage.shift :] = 1, 2
    region = mx.array((3 * band[:, None] + band[None, :])[None, :, :, None])
    of_window = np.array(partition(region, window))[0, :, :, 0]
    apart = of_window[:, None, :] != of_window[:, :, None]
    return mx.array(np.where(apart, np.float32(-100), np.float32(0))[:, None])


def windowed(block: nn.Module, x: mx.array, stage: Stage, shift: int) -> mx.array:
    """`block.attn` within the windows of `[N, H, W, C]`, after a cyclic shift that is undone again."""
    height, width = x.shape[1:3]
    x = _roll(x, -shift)
    x = merge(block.attn(partition(x, stage.window)), stage.window, height, width)
    return _roll(x, shift)


def _roll(x: mx.array, shift: int) -> mx.array:
    # MLX's stub knows one axis only; the function takes several.
    return mx.roll(x, (shift, shift), (1, 2)) if shift else x  # type: ignore[arg-type]


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each relative offset and head."""

    def __init__(self, dim: int, heads: int, stage: Stage, shift: int):
        super().__init__()
        self.relative_position_bias_table = normal(((2 * stage.window - 1) ** 2, heads))
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self._heads, self._window = heads, stage.window
        self._index = relative_index(stage.window)
        self._mask = shift_mask(stage) if shift else None

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, windows, L, C]` to the same shape."""
        q, k, v = split_window_qkv(self.qkv(x), self._heads)
        scores = (q @ k.swapaxes(-1, -2)) * q.shape[-1] ** -0.5
        bias = take_offsets(self.relative_position_bias_table, self._index, self._window).transpose(2, 0, 1)
        return self.proj(window_attention(scores, v, bias, self._mask))


class Block(nn.Module):
    """Pre-norm: window attention, then an MLP; `shift` > 0 moves the windows."""

    def __init__(self, dim: int, heads: int, stage: Stage, shift: int, drop_path: float):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-5)
        self.attn = WindowAttention(dim, heads, stage, shift)
        self.norm2 = LayerNorm(dim, eps=1e-5)
        self.mlp = FeedForward(dim, 4 * dim, gelu)
        self.drop_path = DropPath(drop_path)
        self._stage, self._shift = stage, shift

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to the same shape."""
        x = x + self.drop_path(windowed(self, self.norm1(x), self._stage, self._shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def gather_2x2(x: mx.array) -> mx.array:
    """Neighbours into channels: `[N, H, W, C]` to `[N, ceil(H/2), ceil(W/2), 4 * C]`, columns before rows."""
    n, h, w, c = x.shape
    x = mx.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)])
    x = x.reshape(n, x.shape[1] // 2, 2, x.shape[2] // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(n, x.shape[1], x.shape[2], 4 * c)


class PatchMerging(nn.Module):
    """Halves the resolution and doubles the width; norm first."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = LayerNorm(4 * dim, eps=1e-5)
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, ceil(H/2), ceil(W/2), 2 * C]`."""
        return self.reduction(self.norm(gather_2x2(x)))


class SwinStage(nn.Module):
    """Patch merging (from the second stage on), then blocks, every second one shifted."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = blocks

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to the stage's resolution and width."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class Swin(nn.Module):
    """The trunk and head that Swin and SwinV2 share; the stages differ."""

    def __init__(self, spec: ModelSpec, dim: int, patch: int, stages: list[SwinStage]):
        super().__init__()
        width = dim * 2 ** (len(stages) - 1)
        self.patch_embed = PatchEmbed(spec.in_chans, dim, patch, norm=lambda n: LayerNorm(n, eps=1e-5))
        self.layers = stages
        self.norm = LayerNorm(width, eps=1e-5)
        self.head = PoolHead(width, spec)

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, size, size, in_chans]` to logits `[N, num_classes]`."""
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.head(self.norm(x))


def assemble(
    spec: ModelSpec, args: Args, block_of: Callable[[int], Callable[..., nn.Module]], merging: type[nn.Module]
) -> Swin:
    """The network of blocks that `block_of` makes for a stage's number, with `merging` between the stages."""
    rates = drop_path_rates(spec.drop_path_rate, args.depths)
    stages = []
    for i, stage in enumerate(swin_stages(spec)):
        dim, heads, block = args.embed_dim * 2**i, args.num_heads[i], block_of(i)
        blocks = [block(dim, heads, stage, stage.shift * (j % 2), drop_path=rate) for j, rate in enumerate(rates[i])]
        stages.append(SwinStage(merging(dim // 2) if i else nn.Identity(), blocks))
    model = Swin(spec, args.embed_dim, args.patch_size, stages)
    init_linears(model)
    return model


def build(spec: ModelSpec) -> nn.Module:
    """The Swin Transformer of `spec`, freshly initialised as timm's."""
    return assemble(spec, read_args(Args, spec), lambda _: Block, PatchMerging)
