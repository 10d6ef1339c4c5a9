"""Gradient checkpointing (Chen et al. 2016): of each block only the input is kept, and the block is computed again for
its gradient. Masks are drawn, and running statistics moved, the first time only.

Unlike `mx.checkpoint`, the gradients wait for each other: a block is computed again only when its turn has come, and
the block before it begins only when this one's gradients are done. Otherwise MLX, free to choose the order, leaves the
weights' gradients to the end and keeps what they need of every block (measured in 16 blocks of one matrix product and
two activations: 72 MiB at most without, 38 with `mx.checkpoint`, 12 so).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from backends.contract import is_buffer
from backends.mlx.model import Network
from config.errors import ConfigError
from ports.common.layers import DropPath

# The blocks of all families by their names: ConvNeXt, Swin and MaxViT; ViT and EfficientNet; ResNet; RegNet.
_BLOCK = re.compile(r"(stages|layers)\.\d+\.blocks\.\d+|blocks\.\d+(\.\d+)?|layer\d+\.\d+|s\d+\.b\d+")


def wrap(network: Network, name: str) -> None:
    """Make every block of the network a checkpoint; `ConfigError` where the model, called `name`, has none."""
    blocks = [path for path, _ in network.module.named_modules() if _BLOCK.fullmatch(path)]
    if not blocks:
        raise ConfigError(f"train.checkpoint_gradients: model {name} has no blocks to compute again; set it to false")
    for path in blocks:
        homes = [home for key, home in network.homes.items() if key.startswith(f"{path}.")]
        _replace(network.module, path, Checkpoint(_at(network.module, path), homes))


class Checkpoint(nn.Module):
    """A block that is computed again for its gradient. `homes` are the (owner, key) of all its arrays."""

    def __init__(self, block: nn.Module, homes: list[tuple[nn.Module, str]]):
        super().__init__()
        self._masks = Masks()
        for path, module in block.named_modules():
            if isinstance(module, DropPath | nn.Dropout):
                _replace(block, path, Masked(module, self._masks))
        self.block = block
        # Tuples, as lists would be taken for children.
        self._parameters = tuple((owner, key) for owner, key in homes if not is_buffer(key))
        self._buffers = tuple((owner, key) for owner, key in homes if is_buffer(key))

    def __call__(self, x: mx.array, *rest: mx.array | None) -> mx.array:
        """What the block gives for the same arguments."""
        if not self.training:
            return self.block(x, *rest)
        present = [i for i, r in enumerate(rest) if r is not None]
        self._masks.drawn = []
        again = False

        def compute(x: mx.array, *arrays: mx.array) -> mx.array:
            nonlocal again
            others: list[mx.array | None] = [None] * len(rest)
            for i, value in zip(present, arrays, strict=False):
                others[i] = value
            before = [owner[key] for owner, key in (*self._parameters, *self._buffers)]
            _put(self._parameters, arrays[len(present) :])
            self._masks.begin(again)
            y: mx.array = self.block(x, *others)
            _put((*self._parameters, *(self._buffers if again else ())), before)
            again = True
            return y

        held = [owner[key] for owner, key in self._parameters]
        y: mx.array = _checkpoint(compute)(x, *(r for r in rest if r is not None), *held)
        return y


def _checkpoint(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """`function` with a gradient that computes it again, in its turn (see above)."""
    custom = mx.custom_function(function)

    @custom.vjp
    def _gradients(primals: Any, cotangent: mx.array, _output: mx.array) -> tuple[mx.array, ...]:
        _, slopes = mx.vjp(function, mx.depends(list(primals), [cotangent]), [cotangent])
        return (*mx.depends(slopes[:1], slopes[1:]), *slopes[1:])

    return cast(Callable[..., mx.array], custom)


def _put(homes: Iterable[tuple[nn.Module, str]], arrays: Iterable[mx.array]) -> None:
    for (owner, key), value in zip(homes, arrays, strict=False):
        owner[key] = value


class Masks:
    """The masks of one pass through a block: drawn in the first, used again in the second."""

    def __init__(self) -> None:
        self.drawn: list[mx.array | None] = []
        self._used = 0
        self._again = False

    def begin(self, again: bool) -> None:
        """Start at the first mask."""
        self._used, self._again = 0, again

    def next(self, draw: Any) -> mx.array | None:
        """The next mask, drawn by `draw()` the first time."""
        if not self._again:
            self.drawn.append(draw())
        self._used += 1
        return self.drawn[self._used - 1]


class Masked(nn.Module):
    """Dropout or drop-path whose mask comes from `masks`: what the module makes of ones."""

    def __init__(self, module: nn.Module, masks: Masks):
        super().__init__()
        self.module, self._masks = module, masks

    def __call__(self, x: mx.array) -> mx.array:
        """`x` with a part of it dropped."""
        if not self.training:
            return x
        mask = self._masks.next(lambda: self._draw(x))
        return x if mask is None else x * mask

    def _draw(self, x: mx.array) -> mx.array | None:
        by_sample = isinstance(self.module, DropPath)  # one number a sample
        ones = mx.ones((x.shape[0],) + (1,) * (x.ndim - 1) if by_sample else x.shape, x.dtype)
        mask = self.module(ones)
        return None if mask is ones else mask


def _at(module: Any, path: str) -> Any:
    for key in path.split("."):
        module = module[int(key)] if isinstance(module, list) else module[key]
    return module


def _replace(module: Any, path: str, new: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    holder = _at(module, parent) if parent else module
    holder[int(last) if isinstance(holder, list) else last] = new
