"""Functions with gradients of their own: MLX's values, and fewer bytes moved on the way back. Names are torch's.

MLX keeps what a function's pieces need for their gradients (for GELU three arrays of its input's size); these keep the
input alone and compute the rest again, in the one kernel that `mx.compile` makes of it. Where there are several ways
that are equal up to rounding, `CHOSEN` says which is taken; `backends.mlx.tune` sets it for the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx

LIBRARY, OURS = "library", "ours"
_TILE = 7  # the largest kernel of Metal's depthwise convolution

_Pair = Sequence[int]


def depthwise(kernel: int, stride: int, batch: int) -> str:
    """The key in `CHOSEN` of a depthwise convolution. MLX's own gradient on Metal is another off multiples of 16."""
    aligned = batch <= 4 or batch % 16 == 0
    return f"depthwise_{kernel}x{kernel}_stride_{stride}" + ("" if aligned else "_odd_batch")


# (kernel, stride, batch) of the depthwise convolutions for which there is a choice, by key.
KEYS = {depthwise(k, s, n): (k, s, n) for k in (3, 5, 7) for s in (1, 2) for n in (16, 12)}
# Whether MLX's own gradient is taken ("library") or the one of this file ("ours"): here what a CPU is faster with.
DEFAULTS = dict.fromkeys(KEYS, LIBRARY)
CHOSEN = dict(DEFAULTS)
# Whether a CPU spares bytes as a GPU does: for `tests.metal.mlx_traffic`, which counts them anywhere, and for tests.
SPARING = False


def with_vjp(function: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives `function` the gradient that is decorated, of (primals, cotangent, output)."""

    def decorate(vjp: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arrays: mx.array) -> Any:
            # Made anew at every call: MLX's tracer (tests.metal.mlx_graph) puts another in its place.
            custom = mx.custom_function(function)
            custom.vjp(vjp)
            return custom(*arrays)

        return call

    return decorate


def _later(x: mx.array, after: mx.array) -> mx.array:
    """`x` once `after` is there. `mx.compile` computes equal things once, and would keep what is to be made again.

    On a CPU it may: there arithmetic costs more than memory.
    """
    return mx.depends([x], [after])[0] if _spares() else x


def _spares() -> bool:
    return SPARING or bool(mx.default_device().type == mx.gpu)


def _gelu(x: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    return (wide * 0.5 * (1 + mx.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


@with_vjp(_gelu)
def gelu(x: mx.array, g: mx.array, _: mx.array) -> mx.array:
    """x * Phi(x), the exact GELU (Hendrycks and Gimpel 2016), in fp32 whatever the dtype of `x`."""
    wide = _later(x, g).astype(mx.float32)
    density = mx.exp(-0.5 * mx.square(wide)) * (1 / math.sqrt(2 * math.pi))
    return (g.astype(mx.float32) * (0.5 * (1 + mx.erf(wide * math.sqrt(0.5))) + wide * density)).astype(x.dtype)


def _silu(x: mx.array) -> mx.array:
    wide = x.astype(mx.float32)
    return (wide * mx.sigmoid(wide)).astype(x.dtype)


@with_vjp(_silu)
def silu(x: mx.array, g: mx.array, _: mx.array) -> mx.array:
    """x * sigmoid(x) (Elfwing et al. 2018), in fp32 whatever the dtype of `x`."""
    wide = _later(x, g).astype(mx.float32)
    gate = mx.sigmoid(wide)
    return (g.astype(mx.float32) * (gate * (1 + wide * (1 - gate)))).astype(x.dtype)


def batch_norm(x: mx.array, weight: mx.array, bias: mx.array, eps: float) -> tuple[mx.array, mx.array, mx.array]:
    """`x` `[..., C]` normalised by its own statistics, in its dtype; and they, mean and biased variance, float32 `[C]`.

    Gradients are those of the first result; nothing is passed back from the statistics.
    """

    def forward(x: mx.array, weight: mx.array, bias: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        mean = channel_means(x.astype(mx.float32))
        x = _later(x, mean)
        var = channel_means(mx.square(x.astype(mx.float32) - mean))
        x = _later(x, var)
        return _scaled(x, mean, mx.rsqrt(var + eps) * weight, bias), mean, var

    @with_vjp(forward)
    def normalise(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array, mx.array]:
        (x, weight, _), g, (_, mean, var) = primals, cotangents[0], outputs
        count, inverse = x.size // x.shape[-1], mx.rsqrt(var + eps)
        to_bias = channel_means(g.astype(mx.float32))
        g, x = _later(g, to_bias), _later(x, to_bias)
        to_weight = channel_means(g.astype(mx.float32) * ((x.astype(mx.float32) - mean) * inverse))
        g, x = _later(g, to_weight), _later(x, to_weight)
        away = to_bias + (x.astype(mx.float32) - mean) * (inverse * to_weight)
        to_x = (weight * inverse) * (g.astype(mx.float32) - away)
        return to_x.astype(x.dtype), to_weight * count, to_bias * count

    return cast(tuple[mx.array, mx.array, mx.array], tuple(normalise(x, weight, bias)))


def _scaled(x: mx.array, mean: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    return ((x.astype(mx.float32) - mean) * scale + bias).astype(x.dtype)


def channel_means(x: mx.array) -> mx.array:
    """Means over all axes but the last, `[..., C]` to `[C]`, one axis at a time.

    MLX adds naively on the CPU: over the axes of 16 x 112 x 112 at once, a mean is off by 1e-5, a variance by 5e-5.
    """
    while x.ndim > 1:
        x = mx.mean(x, axis=-2)
    return x


def grouped_conv(x: mx.array, w: mx.array, stride: int, low: _Pair, high: _Pair, groups: int) -> mx.array:
    """`x` `[N, H, W, C]` and `w` `[O, k, k, C / groups]` to `[N, H', W', O]`, without what Metal unfolds.

    That is a group whose width is no multiple of 16, which is filled up, and the input's gradient for a stride.
    """
    inside, outside = (_missing(size) for size in (w.shape[3], w.shape[0] // groups))
    if not _spares() or not (inside or outside):
        return _strided(x, w, stride, low, high, groups)
    wide = mx.pad(x.reshape(*x.shape[:3], groups, -1), [(0, 0)] * 4 + [(0, inside)]).reshape(*x.shape[:3], -1)
    kernels = mx.pad(w.reshape(groups, -1, *w.shape[1:]), [(0, 0), (0, outside), (0, 0), (0, 0), (0, inside)])
    y = _strided(wide, kernels.reshape(-1, *kernels.shape[2:]), stride, low, high, groups)
    y = y.reshape(*y.shape[:3], groups, -1)[..., : w.shape[0] // groups]
    return y.reshape(*y.shape[:3], -1)


def _missing(size: int) -> int:
    """Channels of a group to the next multiple of 16; none up to 4, for which Metal has kernels of their own."""
    return 0 if size <= 4 else -size % 16


def _strided(x: mx.array, w: mx.array, stride: int, low: _Pair, high: _Pair, groups: int) -> mx.array:
    def forward(x: mx.array, w: mx.array) -> mx.array:
        return mx.conv_general(x, w, stride=stride, padding=(list(low), list(high)), groups=groups)

    if stride == 1 or not _spares():
        return forward(x, w)

    @with_vjp(forward)
    def convolve(primals: Any, g: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        x, w = primals
        to_w = mx.vjp(lambda w: forward(x, w), [w], [g])[1][0]
        return _to_pixels(x, w, g, stride, low, groups), to_w

    return cast(mx.array, convolve(x, w))


def depthwise_conv(x: mx.array, w: mx.array, stride: int, low: _Pair, high: _Pair) -> mx.array:
    """`x` `[N, H, W, C]` and `w` `[C, k, k, 1]` to `[N, H', W', C]`; `low` and `high` are the padding of both axes."""

    def forward(x: mx.array, w: mx.array) -> mx.array:
        return mx.conv_general(x, w, stride=stride, padding=(list(low), list(high)), groups=x.shape[-1])

    if CHOSEN.get(depthwise(w.shape[1], stride, x.shape[0]), LIBRARY) == LIBRARY:
        return forward(x, w)

    @with_vjp(forward)
    def convolve(primals: Any, g: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
        x, w = primals
        return _to_pixels(x, w, g, stride, low, w.shape[0]), _to_kernels(x, w, g, stride, low)

    return cast(mx.array, convolve(x, w))


def _to_pixels(x: mx.array, w: mx.array, g: mx.array, stride: int, low: _Pair, groups: int) -> mx.array:
    """The gradient of the input: `g` with zeros between its pixels, convolved with the kernel turned round.

    MLX's own, for a stride, unfolds k x k times the input on Metal.
    """
    n, rows, columns, c = g.shape
    if stride > 1:
        between = [(0, 0), (0, 0), (0, stride - 1), (0, 0), (0, stride - 1), (0, 0)]
        g = mx.pad(g.reshape(n, rows, 1, columns, 1, c), between).reshape(n, rows * stride, columns * stride, c)
    before = [w.shape[1] - 1 - side for side in low]
    after = [x.shape[i + 1] - g.shape[i + 1] + low[i] for i in (0, 1)]
    g = g[:, : g.shape[1] + min(after[0], 0), : g.shape[2] + min(after[1], 0)]
    padding = (before, [max(side, 0) for side in after])
    if groups < c:
        w = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 4).reshape(-1, *w.shape[1:3], c // groups)
    return mx.conv_general(g, w, padding=padding, groups=groups, flip=True)


def _to_kernels(x: mx.array, w: mx.array, g: mx.array, stride: int, low: _Pair) -> mx.array:
    """The gradient of the kernels as a depthwise convolution of the input's tiles, each with that tile of `g`.

    A tile is a channel of its own, and its kernel's side is at most 7, which Metal has a fast kernel for. MLX's own
    gradient unfolds k x k times the input there unless the batch is a multiple of 16. A stride becomes more channels.
    """
    n, rows, columns, c = g.shape
    kernel, taps = w.shape[1], -(-w.shape[1] // stride)
    (tall, down), (wide, across) = (_tiling(size, taps) for size in (rows, columns))
    g = mx.pad(g, [(0, 0), (0, down * tall - rows), (0, across * wide - columns), (0, 0)])
    sides = [stride * (count * side + taps - 1) for count, side in ((down, tall), (across, wide))]
    high = [side - size - before for side, size, before in zip(sides, x.shape[1:3], low, strict=True)]
    x = x[:, : x.shape[1] + min(high[0], 0), : x.shape[2] + min(high[1], 0)]
    x = mx.pad(x, [(0, 0), *((before, max(after, 0)) for before, after in zip(low, high, strict=True)), (0, 0)])
    row, image = sides[1] * c, sides[0] * sides[1] * c
    shape = [tall + taps - 1, wide + taps - 1, stride, stride, n, down, across, c]
    steps = [stride * row, stride * c, row, c, image, tall * stride * row, wide * stride * c, 1]
    tiles = mx.as_strided(x, shape, steps).reshape(1, *shape[:2], -1)
    kernels = g.reshape(n, down, tall, across, wide, c).transpose(0, 1, 3, 5, 2, 4).reshape(1, -1, tall, wide, 1)
    kernels = mx.broadcast_to(kernels, (stride**2, *kernels.shape[1:])).reshape(-1, tall, wide, 1)
    each = mx.conv_general(tiles, kernels, groups=kernels.shape[0]).astype(mx.float32)
    summed = each.reshape(taps, taps, stride, stride, -1, c).sum(axis=4)
    summed = summed.transpose(0, 2, 1, 3, 4).reshape(taps * stride, taps * stride, c)[:kernel, :kernel]
    return summed.transpose(2, 0, 1)[..., None].astype(w.dtype)


def _tiling(size: int, taps: int) -> tuple[int, int]:
    """(side, count) of the tiles, side at most 7, that cover `size` with the fewest pixels, their margins counted."""
    sides = range(1, _TILE + 1)
    side = min(sides, key=lambda side: (-(-size // side) * (side + taps - 1), -side))
    return side, -(-size // side)


def max_pool(x: mx.array, kernel: int, stride: int, padding: int) -> mx.array:
    """The maximum of each window of `[N, H, W, C]`, as torch's `max_pool2d`; of equal ones the first has the gradient.

    MLX's own gradient is a scatter-add, which on Metal is not the same twice.
    """
    outside = mx.array(-math.inf, x.dtype)
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in x.shape[1:3])
    taps = [(i, j) for i in range(kernel) for j in range(kernel)]
    edge = [(0, 0), (padding, padding), (padding, padding), (0, 0)]

    def shifted(x: mx.array) -> list[mx.array]:
        x = mx.pad(x, edge, constant_values=outside)
        last = (stride * (rows - 1) + 1, stride * (columns - 1) + 1)
        return [x[:, i : i + last[0] : stride, j : j + last[1] : stride] for i, j in taps]

    def forward(x: mx.array) -> mx.array:
        most, *others = shifted(x)
        for other in others:
            most = mx.maximum(most, other)
        return most

    @with_vjp(forward)
    def pooled(x: mx.array, g: mx.array, y: mx.array) -> mx.array:
        first = mx.array(len(taps), mx.uint8)
        for number, value in reversed(list(enumerate(shifted(x)))):
            first = mx.where(value == y, mx.array(number, mx.uint8), first)
        return _spread(g, first, x.shape, kernel, stride, padding)

    return cast(mx.array, pooled(x))


def _spread(g: mx.array, first: mx.array, shape: Sequence[int], kernel: int, stride: int, padding: int) -> mx.array:
    """Each of `g` to the pixel of its window that `first` numbers; pixels are summed by their place within a stride."""
    more = -(-kernel // stride) - 1  # windows before one's own that reach a pixel
    edge = [(0, 0), (more, more), (more, more), (0, 0)]
    g, first = mx.pad(g, edge), mx.pad(first, edge, constant_values=mx.array(kernel**2, mx.uint8))
    rows, columns = (size - more for size in g.shape[1:3])
    zero, phases = mx.array(0, g.dtype), []
    for down in range(stride):
        for across in range(stride):
            total = mx.zeros((g.shape[0], rows, columns, g.shape[3]), g.dtype)
            for i in range(down, kernel, stride):
                for j in range(across, kernel, stride):
                    top, left = more - i // stride, more - j // stride
                    mine = first[:, top : top + rows, left : left + columns] == i * kernel + j
                    total = total + mx.where(mine, g[:, top : top + rows, left : left + columns], zero)
            phases.append(total)
    spread = mx.stack(phases, axis=3).reshape(-1, rows, columns, stride, stride, g.shape[3])
    spread = spread.transpose(0, 1, 3, 2, 4, 5).reshape(-1, rows * stride, columns * stride, g.shape[3])
    short = [(0, max(size + padding - there, 0)) for size, there in zip(shape[1:3], spread.shape[1:3], strict=True)]
    spread = mx.pad(spread, [(0, 0), *short, (0, 0)])
    return spread[:, padding : padding + shape[1], padding : padding + shape[2]]
