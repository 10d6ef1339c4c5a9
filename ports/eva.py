"""EVA and its kin in MLX, as timm's `eva`: ViTs with rotary position embeddings (RoPE) and gated MLPs.

EVA and EVA-02 (Fang et al. 2022, 2023), Perception Encoder, RoPE-ViT (Heo et al. 2024), DINOv3 and their relatives.
Grouped-query attention and the train-time rescaling of coordinates (Sapiens2) are not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from models.geometry import patch_grid, position_prefix
from models.registry import ModelSpec
from ports.common.arguments import Norm, layer_norm, read_args, unsupported
from ports.common.gradients import gelu, silu
from ports.common.layers import DropPath, Linear, classifier, drop_path_rates
from ports.common.rows import over_rows
from ports.common.transformer import (
    AttentionPool,
    FeedForward,
    PackedGLU,
    PatchEmbed,
    SwiGLU,
    attend,
    init_linears,
    normal,
    pool_tokens,
    split_heads,
    token_pooling,
    with_tokens,
)


@dataclass(frozen=True)
class Args:
    """timm's constructor arguments, as far as registered architectures use them; any other is refused."""

    patch_size: int = 16
    global_pool: str = "avg"
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    qkv_bias: bool = True
    qkv_fused: bool = True
    mlp_ratio: float = 4.0
    swiglu_mlp: bool = False
    swiglu_align_to: int = 0
    scale_mlp: bool = False
    scale_attn_inner: bool = False
    attn_type: str = "eva"
    norm_layer: Any = "LayerNorm"
    init_values: float | None = None
    class_token: bool = True
    num_reg_tokens: int = 0
    no_embed_class: bool = False
    use_abs_pos_emb: bool = True
    use_rot_pos_emb: bool = False
    rope_type: str = "cat"
    rope_grid_offset: float = 0.0
    rope_grid_indexing: str = "ij"
    rope_temperature: float = 10000.0
    rope_rotate_half: bool = False
    ref_feat_shape: list[int] | None = None
    use_post_norm: bool = False
    use_pre_transformer_norm: bool = False
    use_post_transformer_norm: bool | None = None
    use_fc_norm: bool | None = None
    attn_pool_num_heads: int | None = None
    attn_pool_mlp_ratio: float | None = None
    # The image size is the spec's; nothing is resized in the forward pass, so "dynamic" has no meaning here.
    img_size: int = 224
    dynamic_img_size: bool = False

    @property
    def prefix(self) -> int:
        """Class and register tokens, which are not rotated."""
        return int(self.class_token) + self.num_reg_tokens


def rope_angles(args: Args, grid: int) -> np.ndarray:
    """Rotation angles of a square patch grid, float32 `[grid**2, head_dim / 2]`.

    `cat` counts patches, scaled to the grid of pre-training; `dinov3` places them in [-1, 1].
    """
    bands = args.embed_dim // args.num_heads // 4
    exponents = np.arange(bands, dtype=np.float32) / np.float32(bands)
    periods = np.float32(args.rope_temperature) ** exponents
    if args.rope_type == "dinov3":
        line = (np.arange(grid, dtype=np.float32) + np.float32(0.5 + args.rope_grid_offset)) / np.float32(grid)
        angles = np.float32(2 * np.pi) * (2 * _coordinates(line, args) - 1)[..., None] / periods
    else:
        line = np.arange(grid, dtype=np.float32) + np.float32(args.rope_grid_offset)
        if args.ref_feat_shape is not None:
            line = line / np.float32(grid) * np.float32(args.ref_feat_shape[0])
        angles = _coordinates(line, args)[..., None] * (1 / periods)
    return angles.reshape(grid * grid, 2 * bands)


def _coordinates(line: np.ndarray, args: Args) -> np.ndarray:
    """The pair of coordinates of each patch in reading order, `[L, 2]`: (y, x), or (x, y) with "xy"."""
    y, x = np.meshgrid(line, line, indexing="ij")
    pair = (x, y) if args.rope_grid_indexing == "xy" else (y, x)
    return np.stack(pair, axis=-1).reshape(-1, 2)


class FixedRope(nn.Module):
    """The same rotation for every block and head: angles `[L, d / 2]`."""

    def __init__(self, args: Args, grid: int):
        super().__init__()
        self._angles = mx.array(rope_angles(args, grid))

    def __call__(self, _block: int) -> mx.array:
        """Angles of one block, broadcastable to `[N, heads, L, d / 2]`."""
        return self._angles


class MixedRope(nn.Module):
    """Learned frequencies along both axes for each block and head (RoPE-Mixed)."""

    keep_fp32: ClassVar[bool] = True

    def __init__(self, args: Args, grid: int):
        super().__init__()
        bands = args.embed_dim // args.num_heads // 4
        size = mx.array(args.rope_temperature ** (-np.arange(bands, dtype=np.float32) / bands))
        turn = 2 * np.pi * mx.random.uniform(shape=(args.depth, args.num_heads, 1))
        x = mx.concatenate([size * mx.cos(turn), size * mx.cos(turn + np.pi / 2)], axis=-1)
        y = mx.concatenate([size * mx.sin(turn), size * mx.sin(turn + np.pi / 2)], axis=-1)
        self.freqs = mx.stack([x, y])
        self._grid = mx.array(_coordinates(np.arange(grid, dtype=np.float32), args))

    def __call__(self, block: int) -> mx.array:
        """Angles of one block, `[heads, L, d / 2]`."""
        first, second = self._grid[:, 0, None], self._grid[:, 1, None]
        return first * self.freqs[0, block][:, None] + second * self.freqs[1, block][:, None]


def rotate(x: mx.array, angles: mx.array, prefix: int, half: bool) -> mx.array:
    """Turn pairs of channels of `[N, heads, L, d]` by `angles`, in fp32, but for the first `prefix` tokens.

    A pair is two neighbours, or with `half` two channels that are d / 2 apart.
    """
    prefix_rows, wide = x[:, :, :prefix], x[:, :, prefix:].astype(mx.float32)
    cos, sin = mx.cos(angles), mx.sin(angles)
    if half:
        a, b = mx.split(wide, 2, axis=-1)
        turned = mx.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    else:
        a, b = wide[..., ::2], wide[..., 1::2]
        turned = mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(wide.shape)
    return mx.concatenate([prefix_rows, turned.astype(x.dtype)], axis=2)


class Attention(nn.Module):
    """Self-attention with rotated queries and keys; in the `eva` form keys have no bias."""

    def __init__(self, args: Args, norm: Norm):
        super().__init__()
        dim, eva = args.embed_dim, args.attn_type == "eva"
        if args.qkv_fused:
            self.qkv = Linear(dim, 3 * dim, bias=args.qkv_bias and not eva)
            if args.qkv_bias and eva:
                self.q_bias, self.v_bias = mx.zeros((dim,)), mx.zeros((dim,))
        else:
            self.q_proj = Linear(dim, dim, bias=args.qkv_bias)
            self.k_proj = Linear(dim, dim, bias=args.qkv_bias and not eva)
            self.v_proj = Linear(dim, dim, bias=args.qkv_bias)
        self.norm = norm(dim) if args.scale_attn_inner else nn.Identity()
        self.proj = Linear(dim, dim)
        self._heads, self._prefix, self._half = args.num_heads, args.prefix, args.rope_rotate_half

    def _qkv(self, x: mx.array) -> list[mx.array]:
        if "q_proj" in self:
            return [self.q_proj(x), self.k_proj(x), self.v_proj(x)]
        q, k, v = mx.split(self.qkv(x), 3, axis=-1)
        if "q_bias" in self:
            q, v = q + over_rows(self.q_bias, q.shape), v + over_rows(self.v_bias, v.shape)
        return [q, k, v]

    def __call__(self, x: mx.array, angles: mx.array | None) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        q, k, v = (split_heads(projected, self._heads) for projected in self._qkv(x))
        if angles is not None:
            q, k = (rotate(heads, angles, self._prefix, self._half) for heads in (q, k))
        return self.proj(self.norm(attend(q, k, v)))


def mlp(args: Args, norm: Norm) -> nn.Module:
    """The recorded feed-forward layer: plain, or gated with its two projections apart or packed."""
    hidden, inner = int(args.embed_dim * args.mlp_ratio), norm if args.scale_mlp else None
    if not args.swiglu_mlp:
        return FeedForward(args.embed_dim, hidden, gelu, inner)
    align = args.swiglu_align_to
    if args.scale_mlp or (align and not args.use_post_norm):
        return SwiGLU(args.embed_dim, hidden + (-hidden % align if align else 0), silu, inner)
    return PackedGLU(args.embed_dim, hidden, silu)


class Block(nn.Module):
    """Pre-norm block with optional layer scale."""

    def __init__(self, args: Args, norm: Norm, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = norm(args.embed_dim), norm(args.embed_dim)
        self.attn, self.mlp = Attention(args, norm), mlp(args, norm)
        if args.init_values is not None:
            self.gamma_1, self.gamma_2 = (mx.full((args.embed_dim,), args.init_values) for _ in range(2))
        self.drop_path = DropPath(drop_path)

    def __call__(self, x: mx.array, angles: mx.array | None) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        y = self.attn(self.norm1(x), angles)
        x = x + self.drop_path(y * over_rows(self.gamma_1, y.shape) if "gamma_1" in self else y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y * over_rows(self.gamma_2, y.shape) if "gamma_2" in self else y)


class PostNormBlock(nn.Module):
    """Each branch is normalised before it is added; there is no layer scale."""

    def __init__(self, args: Args, norm: Norm, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = norm(args.embed_dim), norm(args.embed_dim)
        self.attn, self.mlp = Attention(args, norm), mlp(args, norm)
        self.drop_path = DropPath(drop_path)

    def __call__(self, x: mx.array, angles: mx.array | None) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        x = x + self.drop_path(self.norm1(self.attn(x, angles)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class Eva(nn.Module):
    """Patches and tokens with absolute and rotary positions, blocks, pooling, head."""

    def __init__(self, spec: ModelSpec, args: Args, norm: Norm):
        super().__init__()
        dim, grid, bare = args.embed_dim, patch_grid(spec), args.use_pre_transformer_norm
        self.patch_embed = PatchEmbed(spec.in_chans, dim, args.patch_size, bias=not bare)
        if args.class_token:
            self.cls_token = normal((1, 1, dim))
        if args.num_reg_tokens:
            self.reg_token = normal((1, args.num_reg_tokens, dim))
        if args.use_abs_pos_emb:
            self.pos_embed = normal((1, position_prefix(spec) + grid**2, dim))
        if args.use_rot_pos_emb:
            self.rope = (MixedRope if args.rope_type == "mixed" else FixedRope)(args, grid)
        self.norm_pre = norm(dim) if bare else nn.Identity()
        block = PostNormBlock if args.use_post_norm else Block
        rates = drop_path_rates(spec.drop_path_rate, [args.depth])[0]
        self.blocks = [block(args, norm, rate) for rate in rates]
        self._embed_all, self._prefix = not args.no_embed_class, args.prefix
        self._head(spec, args, norm)

    def _head(self, spec: ModelSpec, args: Args, norm: Norm) -> None:
        dim, self._pool = args.embed_dim, token_pooling(spec, args.global_pool)
        after = self._pool == "avg" if args.use_fc_norm is None else args.use_fc_norm
        before = not after if args.use_post_transformer_norm is None else args.use_post_transformer_norm
        self.norm = norm(dim) if before else nn.Identity()
        if self._pool == "map":
            hidden = int(dim * (args.attn_pool_mlp_ratio or args.mlp_ratio))
            self.attn_pool = AttentionPool(dim, args.attn_pool_num_heads or args.num_heads, hidden, norm, gelu)
        self.fc_norm = norm(dim) if after else nn.Identity()
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.head = classifier(dim, spec)

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, size, size, in_chans]` to logits `[N, num_classes]`."""
        x = self.norm_pre(with_tokens(self, self.patch_embed(x), self._embed_all))
        for i, block in enumerate(self.blocks):
            x = block(x, self.rope(i) if "rope" in self else None)
        x = self.norm(x)
        x = self.attn_pool(x) if self._pool == "map" else pool_tokens(x, self._pool, self._prefix)
        return self.head(self.head_drop(self.fc_norm(x)))


def build(spec: ModelSpec) -> nn.Module:
    """The network of `spec`, freshly initialised as timm's: later blocks start smaller, the head near zero."""
    args = read_args(Args, spec)
    for name, known in (("attn_type", ("eva", "rope")), ("rope_type", ("cat", "mixed", "dinov3"))):
        if getattr(args, name) not in known:
            raise unsupported(spec, name, getattr(args, name))
    model = Eva(spec, args, layer_norm(spec, args.norm_layer, 1e-6))
    init_linears(model)
    for depth, block in enumerate(model.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight = layer.weight / (2 * depth) ** 0.5
    if spec.num_classes > 0:
        model.head.weight = model.head.weight * 0.001
    return model
