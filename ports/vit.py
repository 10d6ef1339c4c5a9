"""Vision Transformer (Dosovitskiy et al. 2021) in MLX, as timm's `vision_transformer`.

One trunk for AugReg, DINOv2, CLIP, SigLIP, DeiT-3-like, AIMv2, BEiT-3 and RADIO weights: what differs between them
are the arguments below. Differential attention is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from models.geometry import patch_grid, position_prefix
from models.registry import ModelSpec
from ports.common.arguments import Activation, Norm, activation, layer_norm, read_args, unsupported
from ports.common.layers import DropPath, Linear, classifier, drop_path_rates
from ports.common.transformer import (
    AttentionPool,
    FeedForward,
    PackedGLU,
    PatchEmbed,
    SwiGLU,
    attend,
    init_linears,
    layer_scale,
    normal,
    pool_tokens,
    split_qkv,
    token_pooling,
    with_tokens,
)


@dataclass(frozen=True)
class Args:
    """timm's constructor arguments that occur; an unknown one is refused."""

    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    scale_attn_norm: bool = False
    scale_mlp_norm: bool = False
    proj_bias: bool = True
    init_values: float | None = None
    class_token: bool = True
    no_embed_class: bool = False
    reg_tokens: int = 0
    pre_norm: bool = False
    final_norm: bool = True
    fc_norm: bool | None = None
    global_pool: str = "token"
    pool_include_prefix: bool = False
    embed_norm_layer: Any = None
    norm_layer: Any = "LayerNorm"
    act_layer: str = "gelu"
    block_fn: str = "Block"
    mlp_layer: Any = "Mlp"
    attn_layer: str = ""
    # The image size is the spec's; nothing is resized in the forward pass, so "dynamic" has no meaning here.
    img_size: int = 224
    dynamic_img_size: bool = False


@dataclass(frozen=True)
class Parts:
    """What every block is made from."""

    args: Args
    norm: Norm
    act: Activation

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return int(self.args.embed_dim * self.args.mlp_ratio)

    def mlp(self) -> nn.Module:
        """The recorded feed-forward layer."""
        dim, bias = self.args.embed_dim, self.args.proj_bias
        inner = self.norm if self.args.scale_mlp_norm else None
        if self.args.mlp_layer == "SwiGLU":
            return SwiGLU(dim, self.hidden, self.act, inner, bias)
        if self.args.mlp_layer == _PACKED:
            return PackedGLU(dim, self.hidden // 2, self.act, bias)
        return FeedForward(dim, self.hidden, self.act, inner, bias)

    def scale(self) -> nn.Module:
        """Layer scale, where the architecture has it."""
        return layer_scale(self.args.embed_dim, self.args.init_values)


_PACKED = {"name": "GluMlp", "act_layer": "SiLU", "gate_last": False}


class Attention(nn.Module):
    """Multi-head self-attention, with optional norms of queries and keys and of the output."""

    def __init__(self, parts: Parts):
        super().__init__()
        args, dim = parts.args, parts.args.embed_dim
        self.qkv = Linear(dim, 3 * dim, bias=args.qkv_bias)
        self.q_norm, self.k_norm = _head_norms(parts)
        self.norm = parts.norm(dim) if args.scale_attn_norm else nn.Identity()
        self.proj = Linear(dim, dim, bias=args.proj_bias)
        self._heads = args.num_heads

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        q, k, v = split_qkv(self.qkv(x), self._heads)
        return self.proj(self.norm(attend(self.q_norm(q), self.k_norm(k), v)))


def _head_norms(parts: Parts) -> tuple[nn.Module, nn.Module]:
    width = parts.args.embed_dim // parts.args.num_heads
    q, k = (parts.norm(width) if parts.args.qk_norm else nn.Identity() for _ in range(2))
    return q, k


class Block(nn.Module):
    """Pre-norm: x + attention, x + MLP."""

    def __init__(self, parts: Parts, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = parts.norm(parts.args.embed_dim), parts.norm(parts.args.embed_dim)
        self.attn, self.mlp = Attention(parts), parts.mlp()
        self.ls1, self.ls2 = parts.scale(), parts.scale()
        self.drop_path = DropPath(drop_path)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ResPostBlock(nn.Module):
    """Each branch is normalised before it is added; `init_values` is where those norms start."""

    def __init__(self, parts: Parts, drop_path: float):
        super().__init__()
        self.norm1, self.norm2 = parts.norm(parts.args.embed_dim), parts.norm(parts.args.embed_dim)
        self.attn, self.mlp = Attention(parts), parts.mlp()
        self.drop_path = DropPath(drop_path)
        if parts.args.init_values is not None:
            for norm in (self.norm1, self.norm2):
                norm.weight = mx.full(norm.weight.shape, parts.args.init_values)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        x = x + self.drop_path(self.norm1(self.attn(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class ParallelScalingBlock(nn.Module):
    """Attention and MLP side by side from one projection (Dehghani et al. 2023, ViT-22B)."""

    def __init__(self, parts: Parts, drop_path: float):
        super().__init__()
        args, dim = parts.args, parts.args.embed_dim
        self.in_norm = parts.norm(dim)
        self.in_proj = Linear(dim, parts.hidden + 3 * dim, bias=args.qkv_bias)
        if not args.qkv_bias:
            self.mlp_bias = mx.zeros((parts.hidden,))
        self.q_norm, self.k_norm = _head_norms(parts)
        self.attn_out_proj = Linear(dim, dim, bias=args.proj_bias)
        self.mlp_out_proj = Linear(parts.hidden, dim, bias=args.proj_bias)
        self.ls, self.drop_path = parts.scale(), DropPath(drop_path)
        self._heads, self._hidden, self._act = args.num_heads, parts.hidden, parts.act

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        mlp, qkv = mx.split(self.in_proj(self.in_norm(x)), [self._hidden], axis=-1)
        mlp = mlp + self.mlp_bias if "mlp_bias" in self else mlp
        q, k, v = split_qkv(qkv, self._heads)
        y = self.attn_out_proj(attend(self.q_norm(q), self.k_norm(k), v)) + self.mlp_out_proj(self._act(mlp))
        return x + self.drop_path(self.ls(y))


class Branch(nn.Module):
    """One of the parallel branches: norm, attention or MLP under its own name, layer scale, drop path."""

    def __init__(self, parts: Parts, name: str, drop_path: float):
        super().__init__()
        self.norm, self.ls, self.drop_path = parts.norm(parts.args.embed_dim), parts.scale(), DropPath(drop_path)
        self[name] = Attention(parts) if name == "attn" else parts.mlp()
        self._name = name

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        return self.drop_path(self.ls(self[self._name](self.norm(x))))


class ParallelThingsBlock(nn.Module):
    """Two attentions side by side, then two MLPs (Touvron et al. 2022)."""

    def __init__(self, parts: Parts, drop_path: float):
        super().__init__()
        self.attns = [Branch(parts, "attn", drop_path) for _ in range(2)]
        self.ffns = [Branch(parts, "mlp", drop_path) for _ in range(2)]

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to the same shape."""
        x = x + (self.attns[0](x) + self.attns[1](x))
        return x + (self.ffns[0](x) + self.ffns[1](x))


BLOCKS = {kind.__name__: kind for kind in (Block, ResPostBlock, ParallelScalingBlock, ParallelThingsBlock)}


class VisionTransformer(nn.Module):
    """Patches and tokens with position embeddings, blocks, pooling, head."""

    def __init__(self, spec: ModelSpec, parts: Parts):
        super().__init__()
        args, dim = parts.args, parts.args.embed_dim
        embed_norm = layer_norm(spec, args.embed_norm_layer, 1e-6) if args.embed_norm_layer else None
        self.patch_embed = PatchEmbed(spec.in_chans, dim, args.patch_size, not args.pre_norm, embed_norm)
        if args.class_token:
            self.cls_token = normal((1, 1, dim), std=1e-6)
        if args.reg_tokens:
            self.reg_token = normal((1, args.reg_tokens, dim), std=1e-6)
        self.pos_embed = normal((1, position_prefix(spec) + patch_grid(spec) ** 2, dim))
        self.norm_pre = parts.norm(dim) if args.pre_norm else nn.Identity()
        rates = drop_path_rates(spec.drop_path_rate, [args.depth])[0]
        self.blocks = [BLOCKS[args.block_fn](parts, rate) for rate in rates]
        self._head(spec, parts)

    def _head(self, spec: ModelSpec, parts: Parts) -> None:
        args, dim = parts.args, parts.args.embed_dim
        kind = token_pooling(spec, args.global_pool)
        after = kind in ("avg", "max") if args.fc_norm is None else args.fc_norm
        self.norm = parts.norm(dim) if args.final_norm and not after else nn.Identity()
        if kind == "map":
            self.attn_pool = AttentionPool(dim, args.num_heads, parts.hidden, parts.norm, parts.act)
        self.fc_norm = parts.norm(dim) if args.final_norm and after else nn.Identity()
        self.head_drop = nn.Dropout(spec.drop_rate)
        self.head = classifier(dim, spec)
        tokens = int(args.class_token) + args.reg_tokens
        self._embed_all = not args.no_embed_class
        self._pool, self._prefix = kind, 0 if args.pool_include_prefix else tokens

    def __call__(self, x: mx.array) -> mx.array:
        """Images `[N, size, size, in_chans]` to logits `[N, num_classes]`."""
        x = self.norm_pre(with_tokens(self, self.patch_embed(x), self._embed_all))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self._pool == "map":
            x = self.attn_pool(x[:, self._prefix :])
        else:
            x = pool_tokens(x, self._pool, self._prefix)
        return self.head(self.head_drop(self.fc_norm(x)))


def build(spec: ModelSpec) -> nn.Module:
    """The Vision Transformer of `spec`, freshly initialised as timm's."""
    args = read_args(Args, spec)
    if args.block_fn not in BLOCKS:
        raise unsupported(spec, "block_fn", args.block_fn)
    if args.attn_layer:
        raise unsupported(spec, "attn_layer", args.attn_layer)
    if args.mlp_layer not in ("Mlp", "SwiGLU", _PACKED):
        raise unsupported(spec, "mlp_layer", args.mlp_layer)
    model = VisionTransformer(
        spec, Parts(args, layer_norm(spec, args.norm_layer, 1e-6), activation(spec, args.act_layer))
    )
    init_linears(model)
    for module in model.modules():
        if isinstance(module, (SwiGLU, PackedGLU)):
            module.open_gate()
    return model
