"""What the families share in MLX: only that. Images are NHWC; names and numbers are timm's.

A canonical (timm) array becomes an MLX parameter by the kind of module that owns it: `Conv2d` keeps its weight as
OHWI and is transposed from OIHW; everything else is taken as it is. `load_canonical` and `canonical` are that door.
A module whose class says `keep_fp32 = True` takes its own parameters in fp32 also where the rest computes in bf16.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from config.errors import ConfigError
from models.registry import ModelSpec
from models.weights.loading import check
from ports.common import gradients, rows

Padding = int | tuple[int, int] | str


class Conv2d(nn.Module):
    """Convolution with torch's arguments; `padding="same"` is TensorFlow's asymmetric padding of the `tf_` models."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: Padding = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        fan_in = in_channels // groups * kernel_size**2
        bound = fan_in**-0.5
        shape = (out_channels, kernel_size, kernel_size, in_channels // groups)
        self.weight = mx.random.uniform(-bound, bound, shape)
        if bias:
            self.bias = mx.random.uniform(-bound, bound, (out_channels,))
        self._geometry = (kernel_size, stride, padding, dilation, groups)

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return self._geometry[4]

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H', W', O]`."""
        kernel, stride, padding, dilation, groups = self._geometry
        low, high = sides(x.shape[1:3], kernel, stride, padding, dilation)
        if kernel == stride == groups == 1 and not any((*low, *high)):
            # Metal has no short cut to a matrix product.
            return rows.affine(x, self.weight.reshape(self.weight.shape[0], -1), self.get("bias"))
        if groups > 1 and kernel > 1 and dilation == 1:
            single = groups == x.shape[-1] == self.weight.shape[0]
            conv = gradients.depthwise_conv if single else functools.partial(gradients.grouped_conv, groups=groups)
            x = conv(x, self.weight, stride, low, high)
        else:
            x = mx.conv_general(
                x, self.weight, stride=stride, padding=(low, high), kernel_dilation=dilation, groups=groups
            )
        return x + rows.over_rows(self.bias, x.shape) if "bias" in self else x


class Linear(nn.Linear):
    """MLX's linear layer, whose bias has an exact gradient in half precision too."""

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., C]` to `[..., O]`."""
        return rows.affine(x, self.weight, self.get("bias"))


def sides(
    pixels: Sequence[int], kernel: int, stride: int, padding: Padding, dilation: int
) -> tuple[list[int], list[int]]:
    """The padding before and after, each (rows, columns)."""
    if isinstance(padding, str):
        sides = [_same(n, kernel, stride, dilation) for n in pixels]
        return [low for low, _ in sides], [high for _, high in sides]
    both = [padding, padding] if isinstance(padding, int) else list(padding)
    return both, both


def _same(length: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max((-(-length // stride) - 1) * stride + (kernel - 1) * dilation + 1 - length, 0)
    return total // 2, total - total // 2


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, statistics in fp32 whatever the input's dtype.

    MLX's kernel takes input and weights in one dtype: fp32 weights would make fp32 copies of the input and the result.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape and dtype as the input."""
        weight = self.weight.astype(x.dtype) if "weight" in self else None
        bias = self.bias.astype(x.dtype) if "bias" in self else None
        return rows.layer_norm(x, weight, bias, self.eps)


class RmsNorm(nn.RMSNorm):
    """x / rms(x) over the last axis times a weight, statistics in fp32 whatever the input's dtype."""

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape and dtype as the input."""
        return mx.fast.rms_norm(x, self.weight.astype(x.dtype), self.eps)


class BatchNorm2d(nn.Module):
    """torch's BatchNorm2d over the last axis: biased variance to normalise, unbiased into the running statistic.

    Statistics are taken and kept in fp32, since those of fp16 and bf16 overflow.
    """

    keep_fp32: ClassVar[bool] = True

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self.running_mean = mx.zeros((channels,))
        self.running_var = mx.ones((channels,))
        self._eps, self._momentum = eps, momentum
        self.freeze(keys=["running_mean", "running_var"], recurse=False)

    def unfreeze(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Unfreeze everything but the running statistics."""
        super().unfreeze(*args, **kwargs)
        return self.freeze(keys=["running_mean", "running_var"], recurse=False)

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., C]` to the same shape and dtype."""
        if not self.training:
            scale = mx.rsqrt(self.running_var + self._eps) * self.weight
            return ((x.astype(mx.float32) - self.running_mean) * scale + self.bias).astype(x.dtype)
        y, mean, var = gradients.batch_norm(x, self.weight, self.bias, self._eps)
        count = x.size // x.shape[-1]
        keep, new = 1 - self._momentum, self._momentum
        self.running_mean = keep * self.running_mean + new * mx.stop_gradient(mean)
        self.running_var = keep * self.running_var + new * mx.stop_gradient(var) * (count / max(count - 1, 1))
        return y


class MaxPool2d(nn.Module):
    """torch's MaxPool2d over `[N, H, W, C]`; the padding is never the maximum."""

    def __init__(self, kernel_size: int, stride: int, padding: int = 0):
        super().__init__()
        self._geometry = (kernel_size, stride, padding)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H', W', C]`."""
        return gradients.max_pool(x, *self._geometry)


class DropPath(nn.Module):
    """Stochastic depth: drops a sample's branch with `rate` and scales the kept ones by 1 / (1 - rate), as timm's."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self._rate = rate

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape as the input."""
        if not self.training or self._rate == 0.0:
            return x
        keep = mx.random.bernoulli(1 - self._rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        return x * (keep.astype(x.dtype) / (1 - self._rate))


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic et al. 2018) with a learnable exponent, `[N, H, W, C]` to `[N, C]`."""

    keep_fp32: ClassVar[bool] = True

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = mx.array([p])
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """Mean of x**p over the pixels, to the power 1/p, in fp32."""
        wide = mx.maximum(x.astype(mx.float32), self._eps)
        # Powers of shares of the maximum neither overflow nor cancel; the mean scales with it, so no gradient is lost.
        most = mx.stop_gradient(mx.max(wide, axis=(1, 2), keepdims=True))
        share = mx.power(pool(mx.power(wide / most, self.p), "avg"), 1 / self.p)
        return (most[:, 0, 0] * share).astype(x.dtype)


def pool(x: mx.array, kind: str) -> mx.array:
    """`avg` or `max` over the pixels of `[N, H, W, C]`, giving `[N, C]`."""
    return mx.max(x, axis=(1, 2)) if kind == "max" else rows.means(x).squeeze((1, 2))


def pooling(kind: str) -> Callable[[mx.array], mx.array]:
    """`avg`, `max` or `gem` over the pixels of `[N, H, W, C]`, giving `[N, C]`; make it a head's `global_pool`."""
    if kind not in ("avg", "max", "gem"):
        raise ConfigError(f"global_pool {kind!r} is not known here; choose avg, max or gem")
    return GeM() if kind == "gem" else functools.partial(pool, kind=kind)


class PoolHead(nn.Module):
    """timm's `ClassifierHead`: pool `[N, H, W, C]` by `avg`, `max` or `gem`, dropout, `fc`."""

    def __init__(self, dim: int, spec: ModelSpec):
        super().__init__()
        self.global_pool = pooling(spec.global_pool or "avg")
        self.drop = nn.Dropout(spec.drop_rate)
        self.fc = classifier(dim, spec)

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, num_classes]`, or `[N, C]` without classes."""
        return self.fc(self.drop(self.global_pool(x)))


def classifier(dim: int, spec: ModelSpec) -> nn.Module:
    """The last linear layer, or nothing where `num_classes` is 0."""
    return Linear(dim, spec.num_classes) if spec.num_classes > 0 else nn.Identity()


def drop_path_rates(rate: float, depths: list[int]) -> list[list[float]]:
    """timm's linear ramp from 0 to `rate` over all blocks, split by stage."""
    ramp = np.linspace(0, rate, sum(depths)).tolist()
    starts = np.cumsum([0, *depths]).tolist()
    return [ramp[a:b] for a, b in itertools.pairwise(starts)]


ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": gradients.gelu,
    "gelu_tanh": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
    "relu6": nn.relu6,
    "silu": gradients.silu,
    "swish": gradients.silu,
    "sigmoid": mx.sigmoid,
    "hard_swish": nn.hardswish,
    "hard_sigmoid": lambda x: nn.relu6(x + 3) / 6,
    "tanh": mx.tanh,
    "identity": lambda x: x,
}


def places(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Canonical name to (owning module, key) of every array of the model, parameters and running statistics."""
    return {
        f"{prefix}.{key}" if prefix else key: (module, key)
        for prefix, module in model.named_modules()
        for key, value in module.items()
        if isinstance(value, mx.array) and not key.startswith("_")
    }


def canonical(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's arrays as float32 NumPy under timm's names and layout."""
    return {name: timm_layout(module, key, module[key]) for name, (module, key) in places(model).items()}


def load_canonical(model: nn.Module, weights: dict[str, np.ndarray], source: str = "weights") -> None:
    """Set every array from timm's names and layout; `WeightsError`, with nothing changed, when names or shapes differ.

    `num_batches_tracked` and other entries that only torch keeps must be left out by the caller.
    """
    homes = places(model)
    check(weights, {name: timm_shape(module, key, module[key]) for name, (module, key) in homes.items()}, source)
    for name, (module, key) in homes.items():
        module[key] = mx.array(mlx_layout(module, key, weights[name]))


def timm_shape(module: nn.Module, key: str, value: mx.array) -> tuple[int, ...]:
    """The shape in timm's layout of an array of `module`'s parameter `key`."""
    turned = isinstance(module, Conv2d) and key == "weight"
    return tuple(value.shape[i] for i in (0, 3, 1, 2)) if turned else tuple(value.shape)


def mlx_layout(module: nn.Module, key: str, value: np.ndarray) -> np.ndarray:
    """A canonical array of `module`'s parameter `key` as float32 in MLX's layout: `Conv2d` weights OIHW to OHWI."""
    value = np.asarray(value, dtype=np.float32)
    turned = isinstance(module, Conv2d) and key == "weight" and value.ndim == 4
    return np.ascontiguousarray(value.transpose(0, 2, 3, 1)) if turned else value


def timm_layout(module: nn.Module, key: str, value: mx.array) -> np.ndarray:
    """An array of `module`'s parameter `key` as float32 NumPy in timm's layout: `Conv2d` weights OHWI to OIHW."""
    array = np.array(value.astype(mx.float32))
    turned = isinstance(module, Conv2d) and key == "weight"
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if turned else array
