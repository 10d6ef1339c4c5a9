"""What the transformer families share in MLX: tokens, attention, feed-forward variants, and their initialisation.

Names are timm's. What convolutional families share as well is in `layers`; attention windows are in `windows`.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from config.errors import ConfigError
from models.registry import ModelSpec
from ports.common.arguments import Activation, Norm
from ports.common.layers import Conv2d, Linear
from ports.common.rows import means, over_rows


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected: `[N, H, W, C]` to `[N, H/p, W/p, dim]`."""

    def __init__(self, in_chans: int, dim: int, patch: int, bias: bool = True, norm: Norm | None = None):
        super().__init__()
        self.proj = Conv2d(in_chans, dim, patch, stride=patch, bias=bias)
        self.norm = norm(dim) if norm else nn.Identity()

    def __call__(self, x: mx.array) -> mx.array:
        """Project, then normalise where the family does."""
        return self.norm(self.proj(x))


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al. 2021)."""

    def __init__(self, dim: int, value: float):
        super().__init__()
        self.gamma = mx.full((dim,), value)

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape as the input."""
        return x * over_rows(self.gamma, x.shape)


def layer_scale(dim: int, value: float | None) -> nn.Module:
    """A `LayerScale`, or nothing where timm has none (no value, or zero)."""
    return LayerScale(dim, value) if value else nn.Identity()


def split_heads(x: mx.array, heads: int) -> mx.array:
    """`[N, L, heads * d]` to `[N, heads, L, d]`."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def split_qkv(qkv: mx.array, heads: int) -> tuple[mx.array, mx.array, mx.array]:
    """`[N, L, 3 * heads * d]`, thirds first, to three of `[N, heads, L, d]`."""
    # Cut into heads before it is split, so that its gradient is put together in one copy.
    thirds = mx.split(qkv.reshape(*qkv.shape[:2], 3, heads, -1), 3, axis=2)
    q, k, v = (third.squeeze(2).transpose(0, 2, 1, 3) for third in thirds)
    return q, k, v


# At most so many queries, and Metal takes its vector kernel, which has no gradient (MLX 0.32.4).
_FEW_QUERIES = 8


def attend(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
    """softmax(q k^T / sqrt(d)) v of `[N, heads, L, d]`, heads joined again: `[N, L, heads * d]`."""
    scale = q.shape[-1] ** -0.5
    if q.shape[2] <= _FEW_QUERIES:
        out = mx.softmax((q * scale) @ k.swapaxes(-1, -2), axis=-1, precise=True) @ v
    else:
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
    return out.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


class FeedForward(nn.Module):
    """timm's `Mlp`: fc1, activation, an optional norm (NormFormer), fc2."""

    def __init__(self, dim: int, hidden: int, act: Activation, norm: Norm | None = None, bias: bool = True):
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = Linear(hidden, dim, bias=bias)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., dim]` to `[..., dim]`."""
        return self.fc2(self.norm(self._act(self.fc1(x))))


class PackedGLU(nn.Module):
    """timm's `GluMlp` with the gate in the first half: act(gate) * value, both from one fc1 of `2 * hidden`."""

    def __init__(self, dim: int, hidden: int, act: Activation, bias: bool = True):
        super().__init__()
        self.fc1 = Linear(dim, 2 * hidden, bias=bias)
        self.fc2 = Linear(hidden, dim, bias=bias)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., dim]` to `[..., dim]`."""
        gate, value = mx.split(self.fc1(x), 2, axis=-1)
        return self.fc2(self._act(gate) * value)

    def open_gate(self) -> None:
        """timm's start in ViT: the second half of fc1 near zero, its bias one."""
        half = self.fc1.weight.shape[0] // 2
        low = normal((half, self.fc1.weight.shape[1]), std=1e-6)
        self.fc1.weight = mx.concatenate([self.fc1.weight[:half], low])
        if "bias" in self.fc1:
            self.fc1.bias = mx.concatenate([self.fc1.bias[:half], mx.ones((half,))])


class SwiGLU(nn.Module):
    """timm's `SwiGLU` (Shazeer 2020): act(fc1_g x) * fc1_x x, an optional norm, fc2."""

    def __init__(self, dim: int, hidden: int, act: Activation, norm: Norm | None = None, bias: bool = True):
        super().__init__()
        self.fc1_g = Linear(dim, hidden, bias=bias)
        self.fc1_x = Linear(dim, hidden, bias=bias)
        self.norm = norm(hidden) if norm else nn.Identity()
        self.fc2 = Linear(hidden, dim, bias=bias)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., dim]` to `[..., dim]`."""
        return self.fc2(self.norm(self._act(self.fc1_g(x)) * self.fc1_x(x)))

    def open_gate(self) -> None:
        """timm's start in ViT: the gate's weights near zero, its bias one."""
        self.fc1_g.weight = normal(self.fc1_g.weight.shape, std=1e-6)
        if "bias" in self.fc1_g:
            self.fc1_g.bias = mx.ones_like(self.fc1_g.bias)


class AttentionPool(nn.Module):
    """timm's `AttentionPoolLatent` ("map" pooling of SigLIP): one learned query attends to all tokens, then an MLP."""

    def __init__(self, dim: int, heads: int, hidden: int, norm: Norm, act: Activation):
        super().__init__()
        self.latent = dim**-0.5 * mx.random.truncated_normal(-2, 2, (1, 1, dim))
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)
        self.norm = norm(dim)
        self.mlp = FeedForward(dim, hidden, act)
        self._heads = heads

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, L, dim]` to `[N, dim]`."""
        q = split_heads(self.q(self.latent), self._heads)
        k, v = (split_heads(half, self._heads) for half in mx.split(self.kv(x), 2, axis=-1))
        y = self.proj(attend(mx.broadcast_to(q, (x.shape[0], *q.shape[1:])), k, v))
        return (y + self.mlp(self.norm(y)))[:, 0]


def with_tokens(model: nn.Module, x: mx.array, embed_all: bool) -> mx.array:
    """Patches `[N, h, w, C]` to tokens `[N, L, C]`: the model's class and register tokens first, and its position
    embeddings, if any, added to all (`embed_all`) or to the patches alone."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    extra = [model[name] for name in ("cls_token", "reg_token") if name in model]
    pos_embed = model.get("pos_embed")
    if pos_embed is not None and not embed_all:
        x = x + pos_embed
    x = mx.concatenate([mx.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in extra] + [x], axis=1)
    return x + pos_embed if pos_embed is not None and embed_all else x


def token_pooling(spec: ModelSpec, default: str) -> str:
    """The pooling of a token network: the one asked for or the architecture's; `ConfigError` for `gem`."""
    if spec.global_pool == "gem":
        raise ConfigError(f"model {spec.name}: timm has no gem pooling for {spec.family}; choose avg or max")
    return spec.global_pool or default


def pool_tokens(x: mx.array, kind: str, prefix: int) -> mx.array:
    """`[N, L, C]` to `[N, C]`: the class token, or the mean or maximum of all tokens after the first `prefix`."""
    if kind == "token":
        return x[:, 0]
    x = x[:, prefix:]
    return mx.max(x, axis=1) if kind == "max" else means(x).squeeze(1)


def normal(shape: tuple[int, ...], std: float = 0.02) -> mx.array:
    """timm's `trunc_normal_`, whose bounds of +-2 lie so many standard deviations out that nothing is cut."""
    return std * mx.random.normal(shape)


def init_linears(model: nn.Module) -> None:
    """Every linear layer to N(0, 0.02) with zero bias: what timm's transformers start from."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.weight = normal(module.weight.shape)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)
