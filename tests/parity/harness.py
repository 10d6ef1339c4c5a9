"""Holds MLX against timm and torch on the same weights, and torch against itself: the noise floor.

Call `check_logits`, `check_gradients`, `check_moments` and `check_training` with a tiny `ModelSpec`; the bounds
(issue 3, "how near") stand here and nowhere else. The functions without `check_` measure and return numbers.

The floor is the larger of two distances of torch from itself: fp32 from float64, and contiguous from channels_last.
For a single parameter it is an estimate that luck can make too small: a bias whose slope is a sum of few numbers may
come out exact. So gradients and moments are taken from `SEEDS` draws of weights and images, the worst of each
parameter is compared with the worst floor of the same parameter, and no floor counts as lower than the network's
median.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pytest

from backends.contract import Batch, LossSpec, TrainState
from backends.mlx import session as mlx_session
from backends.torch import session as torch_session
from models.registry import ModelSpec
from tests.parity import passes
from tests.parity.drawn import images, normalised, soft_targets, torch_network, weights

LOGITS = 1e-5
LOSS = 1e-5
STATISTICS = 1e-5
GRADIENT_MOST = 1e-3
FLOORS = 3
SEEDS = 3


@dataclass(frozen=True)
class Gap:
    """How far MLX is from torch in fp32, and how far torch is from itself (float64, channels_last), same measure."""

    mlx: float
    floor: float


@dataclass(frozen=True)
class Gradients:
    """Gaps of one training pass: `parameters` in relative L2, `statistics` relative to their own size."""

    loss: Gap
    parameters: Mapping[str, Gap]
    statistics: Gap


@dataclass(frozen=True)
class Steps:
    """Gaps after some training steps: the worst relative loss; all weights and all EMA weights in relative L2."""

    loss: Gap
    weights: Gap
    ema: Gap


def check_logits(spec: ModelSpec, size: int | None = None) -> Gap:
    """Evaluation logits agree to 1e-5 of their standard deviation."""
    gap = eval_logits(spec, size)
    assert gap.mlx <= LOGITS, (
        f"{spec.name} at {size}: logits differ by {gap.mlx:.1e} of their std (torch {gap.floor:.1e})"
    )
    return gap


def check_gradients(spec: ModelSpec, zero: Mapping[str, str] | None = None) -> Gradients:
    """Loss, gradients and running statistics of one training pass agree.

    `zero` names parameters (shell patterns) whose exact gradient is zero, with the reason; each must truly be so.
    """
    found = gradients(spec, zero)
    assert found.loss.mlx <= LOSS, f"{spec.name}: loss differs by {found.loss.mlx:.1e}"
    assert found.statistics.mlx <= STATISTICS, f"{spec.name}: running statistics differ by {found.statistics.mlx:.1e}"
    _check_each(f"{spec.name}: gradients", found.parameters)
    return found


def check_moments(spec: ModelSpec, zero: Mapping[str, str] | None = None) -> Mapping[str, Gap]:
    """The moments of one step agree by name, on whichever engine the state before it was made; bounds as gradients'."""
    found = moments(spec, zero)
    _check_each(f"{spec.name}: moments", found)
    return found


def check_training(spec: ModelSpec, steps: int = 20) -> Steps:
    """The losses of AdamW steps agree to 3 times torch's own floor, or 1e-5, whichever is larger."""
    found = train_steps(spec, steps)
    bound = max(FLOORS * found.loss.floor, LOSS)
    assert found.loss.mlx <= bound, f"{spec.name}: losses of {steps} steps differ by {found.loss.mlx:.1e} > {bound:.1e}"
    return found


def eval_logits(spec: ModelSpec, size: int | None = None, batch: int = 2) -> Gap:
    """max |difference| / std of the logits in evaluation mode, at `size` pixels (the spec's own when None)."""
    if size:
        spec = replace(spec, preprocessing=replace(spec.preprocessing, size=size))
    values = weights(spec)
    pixels = normalised(spec, images(spec, batch))
    want, *others = (passes.torch_logits(model, pixels) for model in passes.variants(spec, values))
    spread = want.std()
    distance = [float(np.abs(other - want).max() / spread) for other in (passes.mlx_logits(spec, values, pixels), *others)]
    return Gap(distance[0], max(distance[1:]))


def gradients(spec: ModelSpec, zero: Mapping[str, str] | None = None, seeds: int = SEEDS) -> Gradients:
    """Loss, gradients and statistics of one pass in training mode, dropout and drop-path off; the worst of `seeds`."""
    spec = replace(spec, drop_rate=0.0, drop_path_rate=0.0)
    runs = [_passes(spec, seed) for seed in range(seeds)]
    kept = _without_zeros(spec, runs[0][2].gradients, zero or {})

    def worst(distance: Callable[[passes.Pass, passes.Pass], float]) -> Gap:
        mlx = max(distance(mine, want) for mine, want, *_ in runs)
        return Gap(mlx, max(distance(other, want) for _, want, *others in runs for other in others))

    return Gradients(
        loss=worst(lambda a, b: abs(a.loss / b.loss - 1)),
        parameters={name: worst(lambda a, b, n=name: _relative(a.gradients[n], b.gradients[n])) for name in kept},  # type: ignore[misc]
        statistics=worst(lambda a, b: _apart(a.buffers, b.buffers)),
    )


def moments(spec: ModelSpec, zero: Mapping[str, str] | None = None, steps: int = 3) -> Mapping[str, Gap]:
    """Relative L2 of each moment after one step, the state before it made on MLX and on torch, `SEEDS` times."""
    spec = replace(spec, drop_rate=0.0, drop_path_rate=0.0)
    worst: dict[str, Gap] = {}
    for seed in range(SEEDS):
        state, batch = _middle("mlx" if seed % 2 else "torch", spec, seed, steps)
        at = passes.knobs(steps - 1, steps)
        models = passes.variants(spec, state.weights)
        want, *others = (passes.torch_moments(model, spec, state, batch, at) for model in models)
        mine = _stepped("mlx", spec, state, batch, at)
        assert mine.keys() == want.keys()
        for name in want:
            before = worst.get(name, Gap(0.0, 0.0))
            floor = max(_relative(other[name], want[name]) for other in others)
            worst[name] = Gap(max(before.mlx, _relative(mine[name], want[name])), max(before.floor, floor))
    return {n: gap for n, gap in worst.items() if not any(fnmatch(n.partition(".")[2], p) for p in zero or {})}
