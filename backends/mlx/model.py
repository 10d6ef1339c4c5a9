"""The network as a pure function of its arrays, and the door between canonical weights and MLX's.

A port is built once and its arrays are taken out of it; `forward` puts a given set back in for one call. So the
compiled step has no hidden state. Architectures live in `ports`, losses and optimizers in their own files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import ports
from backends.contract import Precision, Weights, is_buffer
from backends.mlx import metal, threads
from config.errors import ConfigError
from models.registry import ModelSpec
from ports.common import layers

Arrays = dict[str, mx.array]
_RANDOM: Any = mx.random.state
_DTYPES = {"fp32": mx.float32, "tf32": mx.float32, "bf16": mx.bfloat16}


@dataclass(frozen=True)
class Network:
    """A port emptied of its arrays: `homes` says where each canonical name belongs.

    `mean` and `std` are of pixel values in [0, 255], shape [3]; `channels` is the port's number of input channels.
    """

    module: nn.Module
    homes: Mapping[str, tuple[nn.Module, str]]
    dtype: mx.Dtype
    mean: mx.array
    std: mx.array
    channels: int


def build(spec: ModelSpec, weights: Weights | None, precision: Precision, seed: int) -> tuple[Network, Arrays]:
    """The network of `spec` and its float32 arrays by name, from `weights` or freshly drawn from `seed`.

    Raises `ConfigError` for what MLX cannot build and `WeightsError` for weights that do not fit.
    """
    if spec.in_chans not in (1, 3):
        raise ConfigError(f"model {spec.name}: in_chans is {spec.in_chans}; images are RGB, so choose 1 or 3")
    if precision not in _DTYPES:
        raise ConfigError(f"train.precision {precision}: the MLX engine has {', '.join(_DTYPES)}; choose one of them")
    threads.end_cleanly()
    metal.set_arithmetic(precision)
    with seeded(seed, "weights", 0):
        module = ports.create(spec)
    if weights is not None:
        layers.load_canonical(module, weights, f"the weights for {spec.name}")
    homes = layers.places(module)
    arrays = {name: owner[key] for name, (owner, key) in homes.items()}
    prep = spec.preprocessing
    mean, std = (mx.array(np.asarray(v, np.float32) * 255) for v in (prep.mean, prep.std))
    network = Network(module, homes, _DTYPES[precision], mean, std, spec.in_chans)
    _empty(network)
    mx.eval(arrays)
    return network, arrays


def normalise(network: Network, images: mx.array) -> mx.array:
    """uint8 `[N, H, W, 3]` to float32 `[N, H, W, channels]`; one channel is the mean of the normalised three."""
    scaled = (images.astype(mx.float32) - network.mean) / network.std
    return scaled if network.channels == 3 else mx.mean(scaled, axis=-1, keepdims=True)


def forward(
    network: Network, arrays: Arrays, pixels: mx.array, training: bool, frozen: bool = False, measured: bool = False
) -> tuple[mx.array, Arrays]:
    """float32 logits `[N, C]` of normalised pixels, and the running statistics after the call.

    In bf16 the float32 masters are cast here, inside what is differentiated; modules that say `keep_fp32` keep them.
    `frozen` makes training use the running statistics, and leave them; `measured` moves them, and only them, outside of
    training too.
    """
    network.module.train(training)
    for name, (owner, key) in network.homes.items():
        if (frozen or measured) and is_buffer(name):
            owner.train(measured)
        owner[key] = cast(network, name, arrays[name])
    logits = network.module(pixels.astype(network.dtype))
    buffers = {name: owner[key] for name, (owner, key) in network.homes.items() if is_buffer(name)}
    _empty(network)
    return logits.astype(mx.float32), buffers


def cast(network: Network, name: str, array: mx.array) -> mx.array:
    """What the network computes with for the float32 master `array` called `name`."""
    keep = is_buffer(name) or getattr(network.homes[name][0], "keep_fp32", False)
    return array if keep else array.astype(network.dtype)


def to_canonical(network: Network, arrays: Arrays) -> Weights:
    """Arrays under parameter names (weights, or moments of them) as float32 NumPy in timm's layout."""
    return {name: layers.timm_layout(*network.homes[name], value) for name, value in arrays.items()}


@contextmanager
def seeded(seed: int, purpose: str, count: int) -> Iterator[None]:
    """MLX's random numbers keyed by (seed, purpose, count) inside, and as they were afterwards."""
    high, low = (int(word) for word in np.array(_RANDOM[0]))
    digest = hashlib.blake2b(f"{seed}|{purpose}|{count}".encode(), digest_size=8).digest()
    mx.random.seed(int.from_bytes(digest, "little"))
    try:
        yield
    finally:
        mx.random.seed(high << 32 | low)


def _empty(network: Network) -> None:
    # A port that kept the arrays of its last call would keep their memory too.
    blank = mx.array(0.0)
    for owner, key in network.homes.values():
        owner[key] = blank
