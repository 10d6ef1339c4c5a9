"""Holds MLX against timm and torch on the same weights, and torch against itself: the noise floor.

Call `check_logits`, `check_gradients`, `check_moments` and `check_training` with a tiny `ModelSpec`; the bounds
(issue 3, "how near") stand here and nowhere else. The functions without `check_` measure and return numbers.

The floor is the larger of two distances of torch from itself: fp32 from float64, and contiguous from channels_last.
For a single parameter one draw of it means little: whether a bias's slope, a sum of few numbers, cancels is luck, and
so is how well each engine then rounds it. So gradients and moments are taken from `SEEDS` draws of weights and images,
both distances as the root mean square over them (with 4, no parameter of ten networks passed 3 floors in 200 other
draws, but for the biases of one). A bias's slope is a sum over all pixels or tokens, which torch adds in a cascade and
MLX naively on the CPU: summed in stages it is as exact as torch's. So no floor counts as lower than the network's
median one, nor than `ROUNDING`, three units in fp32's last place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import numpy as np
import pytest

from backends.contract import Batch, Session, SessionConfig, TrainState, Weights
from backends.mlx import session as mlx_session
from backends.torch import session as torch_session
from models.registry import ModelSpec
from tests.parity import passes
from tests.parity.drawn import images, normalised, soft_targets, weights

LOGITS = 1e-5
LOSS = 1e-5
STATISTICS = 1e-5
GRADIENT_MOST = 1e-3
FLOORS = 3
SEEDS = 4
ROUNDING = 4e-7


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
    distance = [
        float(np.abs(other - want).max() / spread) for other in (passes.mlx_logits(spec, values, pixels), *others)
    ]
    return Gap(distance[0], max(distance[1:]))


def gradients(spec: ModelSpec, zero: Mapping[str, str] | None = None, seeds: int = SEEDS) -> Gradients:
    """One pass in training mode, dropout and drop-path off: the worst loss and statistics of `seeds`, and the root mean
    square over them of each parameter's gap."""
    spec = replace(spec, drop_rate=0.0, drop_path_rate=0.0)
    runs = [_passes(spec, seed) for seed in range(seeds)]
    kept = _without_zeros(spec, runs[0][2].gradients, zero or {})

    def worst(distance: Callable[[passes.Pass, passes.Pass], float]) -> Gap:
        mlx = max(distance(mine, want) for mine, want, *_ in runs)
        return Gap(mlx, max(distance(other, want) for _, want, *others in runs for other in others))

    def of(name: str) -> Gap:
        rows = [[_relative(run.gradients[name], want.gradients[name]) for run in others] for _, want, *others in runs]
        mine = [_relative(mine.gradients[name], want.gradients[name]) for mine, want, *_ in runs]
        return Gap(_rms(mine), max(_rms(row) for row in zip(*rows, strict=True)))

    return Gradients(
        loss=worst(lambda a, b: abs(a.loss / b.loss - 1)),
        parameters={name: of(name) for name in kept},
        statistics=worst(lambda a, b: _apart(a.buffers, b.buffers)),
    )


def moments(spec: ModelSpec, zero: Mapping[str, str] | None = None, steps: int = 3) -> Mapping[str, Gap]:
    """Relative L2 of each moment after one step: both engines' sessions, given a state that either made, against
    torch.optim given the same; the root mean square over `SEEDS`."""
    spec = replace(spec, drop_rate=0.0, drop_path_rate=0.0)
    at, gaps, floors = passes.knobs(steps - 1, steps), defaultdict(list), defaultdict(list)
    for seed in range(SEEDS):
        maker = "mlx" if seed % 2 else "torch"
        state, batch = _middle(maker, spec, seed, steps), _batch(spec, 8, seed + steps)
        models = passes.variants(spec, state.weights)
        want, *others = (passes.torch_moments(model, spec, state, batch, at) for model in models)
        for name in (n for n in want if not any(fnmatch(n.partition(".")[2], p) for p in zero or {})):
            floors[name].append([_relative(other[name], want[name]) for other in others])
        for engine in ("mlx", "torch"):
            session = _opened(engine, spec, state.weights)
            session.load(state)
            session.read(session.train_step(batch, None, at))
            got = session.state().optimizer
            assert got.keys() == want.keys()
            for name in floors:
                gaps[name].append(_relative(got[name], want[name]))
    return {name: Gap(_rms(gaps[name]), max(_rms(f) for f in zip(*floors[name], strict=True))) for name in floors}


def train_steps(spec: ModelSpec, steps: int = 20, batch: int = 8) -> Steps:
    """AdamW with warm-up, cosine, weight decay and its no-decay set, clipping and EMA on identical batches."""
    values = weights(spec)
    batches = [_batch(spec, batch, seed) for seed in range(min(steps, 5))]
    mine = passes.mlx_run(spec, values, batches, steps)
    want, *others = (passes.torch_run(m, spec, batches, steps) for m in passes.variants(spec, values))

    def gap(distance: Callable[[passes.Run, passes.Run], float]) -> Gap:
        return Gap(distance(mine, want), max(distance(other, want) for other in others))

    return Steps(
        loss=gap(lambda a, b: float(np.max(np.abs(a.losses / b.losses - 1)))),
        weights=gap(lambda a, b: _relative(_flat(a.weights), _flat(b.weights))),
        ema=gap(lambda a, b: _relative(_flat(a.ema), _flat(b.ema))),
    )


def _check_each(what: str, found: Mapping[str, Gap]) -> None:
    """Each within 3 floors of its own, or of the network's usual one where that is more, and 1e-3 at most."""
    usual = max(float(np.median([gap.floor for gap in found.values()])), ROUNDING)
    bounds = {name: min(FLOORS * max(gap.floor, usual), GRADIENT_MOST) for name, gap in found.items()}
    beyond = {name: (gap, bounds[name]) for name, gap in found.items() if not gap.mlx <= bounds[name]}
    assert not beyond, f"{what} beyond their bounds: {beyond}"


def _passes(spec: ModelSpec, seed: int, batch: int = 4) -> tuple[passes.Pass, ...]:
    """MLX's pass, then torch's in fp32, in float64, in channels_last."""
    values, pixels = weights(spec, seed), normalised(spec, images(spec, batch, seed))
    targets = soft_targets(spec, batch, seed)
    theirs = (passes.torch_pass(model, pixels, targets) for model in passes.variants(spec, values))
    return passes.mlx_pass(spec, values, pixels, targets), *theirs


def _batch(spec: ModelSpec, size: int, seed: int) -> Batch:
    return Batch(images(spec, size, seed), soft_targets(spec, size, seed), np.ones(size, np.float32))


def _middle(engine: str, spec: ModelSpec, seed: int, steps: int) -> TrainState:
    """The state of `engine` before the last of `steps` steps."""
    session = _opened(engine, spec, weights(spec, seed))
    for i in range(steps - 1):
        session.read(session.train_step(_batch(spec, 8, seed + i), None, passes.knobs(i, steps)))
    return session.state()


def _opened(engine: str, spec: ModelSpec, values: Weights) -> Session:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(torch_session.DEVICE_VARIABLE, "cpu")
        module = {"mlx": mlx_session, "torch": torch_session}[engine]
        return module.open(spec, values, SessionConfig(optim=passes.optimizer(values), compile=False))


def _without_zeros(spec: ModelSpec, exact: Mapping[str, np.ndarray], zero: Mapping[str, str]) -> list[str]:
    """The parameters to compare; those of exactly zero gradient must be named, and those named must have one."""
    sizes = {name: float(np.linalg.norm(g) / math.sqrt(g.size)) for name, g in exact.items()}
    usual = float(np.median(list(sizes.values())))
    named = {name for name in sizes for pattern in zero if fnmatch(name, pattern)}
    found = {name for name, size in sizes.items() if size < 1e-9 * usual}
    assert found == named, f"{spec.name}: zero gradients {sorted(found)}, but named as such {sorted(named)}"
    return [name for name in sizes if name not in named]


def _rms(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel().astype(np.float64) for name in sorted(arrays)])


def _relative(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference))


def _apart(values: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]) -> float:
    """The worst running statistic, relative to the largest of its kind in its layer."""
    return max((float(np.abs(values[n] - r).max() / np.abs(r).max()) for n, r in references.items()), default=0.0)
