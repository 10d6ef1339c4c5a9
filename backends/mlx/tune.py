"""Times the ways to compute gradients in `ports.common.gradients` once, and caches the faster by chip and MLX version.

The file is `mlx/CHIP_VERSION.json` in the folder of `config.places`. On a CPU nothing is measured unless it is asked
for (`python -m backends tune`): MLX's convolutions there are plain loops, for which its own gradient does least, and
its scatter-add is slow.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from backends.mlx.metal import on_gpu
from config.places import atomic_write, cache_folder, once_a_host
from ports.common import gradients

WAYS = (gradients.LIBRARY, gradients.OURS)
_BUDGET = 2.0  # seconds at first use; what is not measured by then keeps its default
_REPEATS = 3
# Images a side and channels of what is measured: a middle stage of the usual networks, or what a CPU does at once.
_GPU, _CPU = (28, 192), (8, 16)

Seconds = dict[str, dict[str, float]]


class Choice(NamedTuple):
    """The way for each key of `gradients.CHOSEN`, and where that is known from."""

    ways: dict[str, str]
    source: str


def choose() -> Choice:
    """The choice for MLX's default device, set in `gradients.CHOSEN`; on a GPU what was not measured yet is now."""
    choice = choice_of(cache_file())
    gradients.CHOSEN.update(choice.ways)
    return choice


@functools.cache
def choice_of(file: Path) -> Choice:
    """The choice from the device's file, once in a process."""
    seconds, source = read(file), str(file)
    if gradients.DEFAULTS.keys() - seconds.keys() and on_gpu():
        with once_a_host("timing MLX's gradients", str(file)) as waited:  # at once they would disturb each other
            seconds = read(file) if waited else seconds
            if missing := gradients.DEFAULTS.keys() - seconds.keys():
                seconds, source = {**seconds, **measure(_BUDGET, missing)}, "measured now"
                write(file, seconds)
    return Choice(faster(seconds), source if seconds else "known of CPUs")


def faster(seconds: Seconds) -> dict[str, str]:
    """The faster way for each key; for what was not measured the default."""
    fastest = {key: min(both, key=lambda way: both[way]) for key, both in seconds.items()}
    return gradients.DEFAULTS | {key: way for key, way in fastest.items() if key in gradients.DEFAULTS}


def measure(budget: float, keys: Collection[str] = gradients.KEYS) -> Seconds:
    """The seconds of each way, forwards and backwards, the least of three; ends early after `budget` seconds."""
    size, channels = _GPU if on_gpu() else _CPU
    end, seconds = time.perf_counter() + budget, Seconds()
    for key in sorted(keys):
        if time.perf_counter() > end:
            break
        seconds[key] = {way: _seconds(*_case(key, way, size, channels)) for way in WAYS}
    return seconds


def _case(key: str, way: str, size: int, channels: int) -> tuple[Callable[..., list[mx.array]], list[mx.array]]:
    """A function that computes the gradients of `key` in the given way, and its arguments."""
    kernel, stride, batch = gradients.KEYS[key]
    padding = (kernel // 2, kernel // 2)
    arrays = [mx.ones((batch, size, size, channels)), mx.ones((channels, kernel, kernel, 1))]
    forward = functools.partial(gradients.depthwise_conv, stride=stride, low=padding, high=padding)

    def slopes(*primals: mx.array) -> list[mx.array]:
        with _chosen(key, way):
            y = forward(*primals)
            return list(mx.vjp(forward, list(primals), [mx.ones_like(y)])[1])

    return (mx.compile(slopes) if on_gpu() else slopes), arrays


def _seconds(function: Callable[..., list[mx.array]], arrays: list[mx.array]) -> float:
    mx.eval(arrays)
    mx.eval(function(*arrays))
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        mx.eval(function(*arrays))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@contextmanager
def _chosen(key: str, way: str) -> Iterator[None]:
    before = gradients.CHOSEN.copy()
    gradients.CHOSEN[key] = way
    try:
        yield
    finally:
        gradients.CHOSEN.clear()
        gradients.CHOSEN.update(before)


def cache_file() -> Path:
    """Where this chip's measurements with this MLX are kept."""
    chip = re.sub(r"\W+", "_", f"{mx.default_device().type.name}_{mx.device_info().get('device_name', '')}").lower()
    return cache_folder() / "mlx" / f"{chip}_{importlib.metadata.version('mlx')}.json"


def read(file: Path) -> Seconds:
    """What was measured; empty where there is no file, and, with a line on stderr, where it is damaged."""
    try:
        seconds = {
            str(key): {way: float(both[way]) for way in WAYS} for key, both in json.loads(file.read_text()).items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"{file} is damaged ({error}); it is not used", file=sys.stderr)
        return {}
    return {key: both for key, both in seconds.items() if key in gradients.DEFAULTS}


def write(file: Path, seconds: Seconds) -> None:
    """Keep measurements, all or nothing; where that is not possible, a line on stderr says so."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(seconds, indent=1))
    except OSError as error:
        print(f"{file} cannot be written ({error}); the measurement is made again next time", file=sys.stderr)
