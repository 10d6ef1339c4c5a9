"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv 2301.00808) in MLX, as timm's.

Everything timm's constructor takes in the registered architectures: patch and overlapping stems, LayerNorm, RMSNorm
or SimpleNorm, layer scale or global response normalisation, and both orders of the head. `output_stride` (dilation)
is not here: no classifier uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.core as mx
import mlx.nn as nn

from config.errors import ConfigError
from models.registry import ModelSpec
from ports.common.arguments import Activation, read_args, unsupported
from ports.common.conv import make_divisible
from ports.common.gradients import gelu
from ports.common.layers import ACTIVATIONS, Conv2d, DropPath, LayerNorm, Linear, RmsNorm, drop_path_rates, pooling
from ports.common.rows import over_rows

_STEMS = ("patch", "overlap", "overlap_tiered", "overlap_act")


@dataclass(frozen=True)
class Settings:
    """timm's constructor arguments and their defaults. `gamma` is `ls_init_value`; None leaves layer scale out."""

    depths: Sequence[int] = (3, 3, 9, 3)
    dims: Sequence[int] = (96, 192, 384, 768)
    kernel_sizes: int | Sequence[int] = 7
    ls_init_value: float | None = 1e-6
    stem_type: str = "patch"
    patch_size: int = 4
    head_init_scale: float = 1.0
    head_norm_first: bool = False
    head_hidden_size: int | None = None
    conv_mlp: bool = False
    conv_bias: bool = True
    use_grn: bool = False
    act_layer: str = "gelu"
    norm_layer: str = "layernorm"
    norm_eps: float = 1e-6

    def kernel(self, stage: int) -> int:
        """Side of the depthwise kernels of a stage, from 0."""
        return self.kernel_sizes if isinstance(self.kernel_sizes, int) else self.kernel_sizes[stage]


def build(spec: ModelSpec) -> ConvNeXt:
    """The network of `spec`, initialised as timm does; `ConfigError` for an argument that is not supported here."""
    settings = _settings(spec)
    model = ConvNeXt(settings, spec)
    _initialise(model, settings.head_init_scale)
    return model


def _settings(spec: ModelSpec) -> Settings:
    settings = read_args(Settings, spec)
    known = {"stem_type": _STEMS, "act_layer": tuple(ACTIVATIONS), "norm_layer": tuple(NORMS)}
    for key, choices in known.items():
        if getattr(settings, key) not in choices:
            raise unsupported(spec, key, getattr(settings, key))
    return settings


class SimpleNorm(RmsNorm):
    """x / std(x) over the last axis times a weight, the mean not taken out; the variance is the unbiased one."""

    keep_fp32: ClassVar[bool] = True

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape and dtype as the input."""
        wide = x.astype(mx.float32)
        scale = mx.rsqrt(mx.var(wide, axis=-1, keepdims=True, ddof=1) + self.eps)
        return (wide * scale * self.weight).astype(x.dtype)


NORMS: Mapping[str, Callable[[int, float], nn.Module]] = {
    "layernorm": LayerNorm,
    "layernorm2d": LayerNorm,
    "rmsnorm": RmsNorm,
    "rmsnorm2d": RmsNorm,
    "simplenorm": SimpleNorm,
    "simplenorm2d": SimpleNorm,
}


class GlobalResponseNorm(nn.Module):
    """x + weight * x * N(x) + bias, N the L2 norm over the pixels divided by its mean over the channels."""

    keep_fp32: ClassVar[bool] = True

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = mx.zeros((dim,))
        self.bias = mx.zeros((dim,))
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to the same shape and dtype."""
        wide = x.astype(mx.float32)
        # One axis at a time: MLX adds naively on the CPU.
        energy = mx.sum(mx.sum(mx.square(wide), axis=2, keepdims=True), axis=1, keepdims=True)
        # As torch's norm: the gradient at a channel that is zero everywhere is zero, not infinite.
        norm = mx.where(energy > 0, mx.sqrt(mx.where(energy > 0, energy, 1.0)), 0.0)
        relative = norm / (mx.mean(norm, axis=-1, keepdims=True) + self._eps)
        return (wide + (self.bias + self.weight * (wide * relative))).astype(x.dtype)


class Mlp(nn.Module):
    """fc1, activation, fc2; `conv` makes 1x1 convolutions of them (timm's `ConvMlp`)."""

    def __init__(self, dim: int, hidden: int, act: Activation, conv: bool):
        super().__init__()
        make = (lambda i, o: Conv2d(i, o, 1)) if conv else Linear
        self.fc1, self.fc2 = make(dim, hidden), make(hidden, dim)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, dim]` to the same shape."""
        return self.fc2(self._act(self.fc1(x)))


class GrnMlp(Mlp):
    """timm's `GlobalResponseNormMlp`: fc1, activation, GRN, fc2."""

    def __init__(self, dim: int, hidden: int, act: Activation, conv: bool):
        super().__init__(dim, hidden, act, conv)
        self.grn = GlobalResponseNorm(hidden)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, dim]` to the same shape."""
        return self.fc2(self.grn(self._act(self.fc1(x))))


class Block(nn.Module):
    """Depthwise convolution, norm, MLP, layer scale, and the residual."""

    def __init__(self, dim: int, kernel: int, rate: float, s: Settings):
        super().__init__()
        self.conv_dw = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=s.conv_bias)
        self.norm = NORMS[s.norm_layer](dim, s.norm_eps)
        self.mlp = (GrnMlp if s.use_grn else Mlp)(dim, 4 * dim, ACTIVATIONS[s.act_layer], conv=s.conv_mlp)
        if s.ls_init_value is not None:
            self.gamma = mx.full((dim,), s.ls_init_value)
        self.drop_path = DropPath(rate)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, dim]` to the same shape."""
        branch = self.mlp(self.norm(self.conv_dw(x)))
        if "gamma" in self:
            branch = branch * over_rows(self.gamma, branch.shape)
        return x + self.drop_path(branch)


class Stage(nn.Module):
    """An optional norm and strided convolution, then blocks of one width."""

    def __init__(self, in_dim: int, index: int, stride: int, rates: list[float], s: Settings):
        super().__init__()
        dim = s.dims[index]
        self.downsample: list[nn.Module] = []
        if in_dim != dim or stride > 1:
            self.downsample = [
                NORMS[s.norm_layer](in_dim, s.norm_eps),
                Conv2d(in_dim, dim, 2 if stride > 1 else 1, stride, bias=s.conv_bias),
            ]
        self.blocks = [Block(dim, s.kernel(index), rate, s) for rate in rates]

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, in_dim]` to `[N, H / stride, W / stride, dim]`."""
        return _chain([*self.downsample, *self.blocks], x)


class Head(nn.Module):
    """Pool, norm (before it, as `norm_pre`, with `head_norm_first`), optional hidden layer, dropout, classifier."""

    def __init__(self, dim: int, spec: ModelSpec, s: Settings):
        super().__init__()
        self.global_pool = pooling(spec.global_pool or "avg")
        if not s.head_norm_first:
            self.norm = NORMS[s.norm_layer](dim, s.norm_eps)
        if s.head_hidden_size:
            self.pre_logits = {"fc": Linear(dim, s.head_hidden_size)}
        self.drop = nn.Dropout(spec.drop_rate)
        if spec.num_classes:
            self.fc = Linear(s.head_hidden_size or dim, spec.num_classes)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, dim]` to logits `[N, num_classes]`, or to the features before them."""
        x = self.global_pool(x)
        x = self.norm(x) if "norm" in self else x
        x = gelu(self.pre_logits["fc"](x)) if "pre_logits" in self else x
        x = self.drop(x)
        return self.fc(x) if "fc" in self else x


class ConvNeXt(nn.Module):
    """Stem, four stages, head."""

    def __init__(self, s: Settings, spec: ModelSpec):
        super().__init__()
        if s.head_norm_first and s.head_hidden_size:
            raise ConfigError(f"model {spec.name}: head_norm_first and head_hidden_size exclude each other")
        self.stem = list(_stem(s, spec.in_chans))
        rates = drop_path_rates(spec.drop_path_rate, list(s.depths))
        stem_stride = s.patch_size if s.stem_type == "patch" else 4
        strides = [2 if i > 0 or stem_stride == 2 else 1 for i in range(4)]
        in_dims = (s.dims[0], *s.dims)
        self.stages = [Stage(in_dims[i], i, strides[i], rates[i], s) for i in range(4)]
        if s.head_norm_first:
            self.norm_pre = NORMS[s.norm_layer](s.dims[-1], s.norm_eps)
        self.head = Head(s.dims[-1], spec, s)

    def __call__(self, x: mx.array) -> mx.array:
        """Normalised images `[N, H, W, in_chans]` to logits `[N, num_classes]`."""
        x = _chain([*self.stem, *self.stages], x)
        return self.head(self.norm_pre(x) if "norm_pre" in self else x)


class _Act(nn.Module):
    """An activation that takes a place in a numbered list."""

    def __init__(self, act: Activation):
        super().__init__()
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        return self._act(x)


def _stem(s: Settings, channels: int) -> Iterator[nn.Module]:
    """timm's stem as the numbered list that gives its names."""
    dim = s.dims[0]
    if s.stem_type == "patch":
        yield Conv2d(channels, dim, s.patch_size, s.patch_size, bias=s.conv_bias)
    else:
        middle = make_divisible(dim // 2) if s.stem_type == "overlap_tiered" else dim
        yield Conv2d(channels, middle, 3, 2, 1, bias=s.conv_bias)
        if s.stem_type == "overlap_act":
            yield _Act(ACTIVATIONS[s.act_layer])
        yield Conv2d(middle, dim, 3, 2, 1, bias=s.conv_bias)
    yield NORMS[s.norm_layer](dim, s.norm_eps)


def _chain(layers: list[nn.Module], x: mx.array) -> mx.array:
    for layer in layers:
        x = layer(x)
    return x


def _initialise(model: ConvNeXt, head_scale: float) -> None:
    """Normal with standard deviation 0.02, biases zero, the head scaled (timm cuts at 100 deviations: never)."""
    for name, module in model.named_modules():
        if isinstance(module, (Conv2d, nn.Linear)):
            scale = head_scale if isinstance(module, Linear) and name.startswith("head.") else 1.0
            module.weight = 0.02 * scale * mx.random.normal(module.weight.shape)
            if "bias" in module:
                module.bias = mx.zeros_like(module.bias)
