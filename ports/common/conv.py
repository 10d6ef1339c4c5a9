"""What the convolutional families share beyond `layers`: convolution blocks, gates, downsampling, channel counts."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ports.common import rows
from ports.common.layers import ACTIVATIONS, BatchNorm2d, Conv2d


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018), timm's `SEModule`: channels gated by a bottleneck of their means."""

    def __init__(self, channels: int, reduced: int, act: Callable[[mx.array], mx.array] = nn.relu):
        super().__init__()
        self.fc1 = Conv2d(channels, reduced, 1)
        self.fc2 = Conv2d(reduced, channels, 1)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """Same shape as the input `[N, H, W, C]`."""
        return x * rows.over_pixels(mx.sigmoid(self.fc2(self._act(self.fc1(rows.means(x))))), x.shape)


class ConvNormAct(nn.Module):
    """timm's `ConvNormAct`: a convolution without bias, BatchNorm and an activation, then `halve` for a stride."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = BatchNorm2d,
        act: Callable[[mx.array], mx.array] = ACTIVATIONS["identity"],
        same: bool = False,
        aa: str = "",
    ):
        super().__init__()
        self._aa = aa if stride > 1 else ""
        stride = 1 if self._aa else stride
        self.conv = conv(in_channels, out_channels, kernel, stride, groups, same=same)
        self.bn = norm(out_channels)
        self._act = act

    def __call__(self, x: mx.array) -> mx.array:
        """`[N, H, W, C]` to `[N, H', W', O]`."""
        return halve(self._act(self.bn(self.conv(x))), self._aa)


def conv(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    same: bool = False,
) -> Conv2d:
    """timm's `create_conv2d`: padded to the size divided by the stride, symmetrically or as TensorFlow (`same`)."""
    padding = "same" if same else (stride - 1 + kernel - 1) // 2
    return Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=bias)


def halve(x: mx.array, kind: str) -> mx.array:
    """Anti-aliased downsampling by 2 of `[N, H, W, C]`: `avg`, `blur` (reflected edge), `blurpc` (zero edge), "" none.

    The blur is the 3x3 binomial filter of Zhang 2019, timm's `BlurPool2d`.
    """
    if kind == "avg":
        return average(x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2])
    if kind:
        for axis in (1, 2):
            x = _blur(x.swapaxes(0, axis), reflect=kind == "blur").swapaxes(0, axis)
    return x


def average(x: mx.array) -> mx.array:
    """2x2 means of `[N, H, W, C]`, at an odd edge of what is there (torch: `ceil_mode`, padding not counted)."""
    _, h, w, _ = x.shape
    if h % 2 or w % 2:
        x = mx.pad(x, [(0, 0), (0, h % 2), (0, w % 2), (0, 0)], mode="edge")
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def _blur(x: mx.array, reflect: bool) -> mx.array:
    low, high = (x[1:2], x[-2:-1]) if reflect else (mx.zeros_like(x[:1]), mx.zeros_like(x[:1]))
    x = mx.concatenate([low, x, high])
    return (x[:-2:2] + 2 * x[1:-1:2] + x[2::2]) / 4


def make_divisible(value: float, divisor: int = 8, round_limit: float = 0.9) -> int:
    """timm's rounding of a channel count to a multiple of `divisor`, never below `round_limit` of `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


def convolutions(model: nn.Module) -> list[Conv2d]:
    """Every convolution of a model, for its initialisation."""
    return [module for module in model.modules() if isinstance(module, Conv2d)]


def draw_fan_out(model: nn.Module, grouped: bool = True) -> None:
    """Draw every convolution from a normal of variance 2 / fan-out (He et al. 2015); `grouped` counts a group's own."""
    for module in convolutions(model):
        out, height, width, _ = module.weight.shape
        fan_out = out * height * width // (module.groups if grouped else 1)
        module.weight = mx.random.normal(module.weight.shape, scale=(2 / fan_out) ** 0.5)
