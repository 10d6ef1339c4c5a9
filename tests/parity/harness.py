"""Holds MLX against timm and torch on the same weights, and torch against itself: the noise floor.

Call `check_logits`, `check_gradients` and `check_training` with a tiny `ModelSpec`; the bounds (issue 3, "how near")
stand here and nowhere else. The functions without `check_` measure and return numbers. MLX runs eagerly.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from torch import nn

from backends.contract import Batch, Knobs, LossSpec, OptimSpec, Weights, is_buffer
from backends.mlx import model as mlx_model
from backends.mlx import session as mlx_session
from backends.torch import model as torch_model
from models.registry import ModelSpec

LOGITS = 1e-5
LOSS = 1e-5
STATISTICS = 1e-5
GRADIENT_MOST = 1e-3
FLOORS = 3
CLIP, DECAY, EMA = 1.0, 0.05, 0.9


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
    worst = max(gap.floor for gap in found.parameters.values())
    bound = min(FLOORS * worst, GRADIENT_MOST)
    beyond = {name: gap for name, gap in found.parameters.items() if gap.mlx > bound}
    assert not beyond, f"{spec.name}: gradients beyond {bound:.1e}: {beyond}"
    return found


def check_training(spec: ModelSpec, steps: int = 20) -> Steps:
    """The losses of AdamW steps agree to 3 times torch's own floor, or 1e-5, whichever is larger."""
    found = train_steps(spec, steps)
    bound = max(FLOORS * found.loss.floor, LOSS)
    assert found.loss.mlx <= bound, f"{spec.name}: losses of {steps} steps differ by {found.loss.mlx:.1e} > {bound:.1e}"
    return found


def eval_logits(spec: ModelSpec, size: int | None = None, batch: int = 2) -> Gap:
    """max |difference| / std of the logits in evaluation mode, at `size` pixels (the spec's own when None)."""
    spec = sized(spec, size)
    values = weights(spec)
    pixels = normalised(spec, images(spec, batch))
    want = _torch_logits(_torch(spec, values), pixels)
    network, arrays = mlx_model.build(spec, values, "fp32", 0)
    got = np.array(mlx_model.forward(network, arrays, mx.array(pixels), training=False)[0])
    wide = _torch_logits(_torch(spec, values).double(), pixels)
    last = _torch_logits(_torch(spec, values).to(memory_format=torch.channels_last), pixels)
    spread = want.std()
    distance = [float(np.abs(other - want).max() / spread) for other in (got, wide, last)]
    return Gap(distance[0], max(distance[1:]))


def gradients(spec: ModelSpec, zero: Mapping[str, str] | None = None, batch: int = 4) -> Gradients:
    """Loss, gradients and statistics of one pass in training mode, dropout and drop-path off."""
    spec = replace(spec, drop_rate=0.0, drop_path_rate=0.0)
    values = weights(spec)
    pixels, targets = normalised(spec, images(spec, batch)), soft_targets(spec, batch)
    mine = _mlx_pass(spec, values, pixels, targets)
    torch32 = _torch_pass(_torch(spec, values), pixels, targets)
    wide = _torch_pass(_torch(spec, values).double(), pixels, targets)
    last = _torch_pass(_torch(spec, values).to(memory_format=torch.channels_last), pixels, targets)
    kept = _without_zeros(spec, wide.gradients, zero or {})
    ours, floor = (
        {name: max(_relative(one.gradients[name], torch32.gradients[name]) for one in others) for name in kept}
        for others in ((mine,), (wide, last))
    )
    return Gradients(
        loss=Gap(*(max(abs(o.loss / torch32.loss - 1) for o in others) for others in ((mine,), (wide, last)))),
        parameters={name: Gap(ours[name], floor[name]) for name in kept},
        statistics=Gap(
            *(max(_apart(o.buffers, torch32.buffers) for o in others) for others in ((mine,), (wide, last)))
        ),
    )


def train_steps(spec: ModelSpec, steps: int = 20, batch: int = 8) -> Steps:
    """AdamW with warm-up, cosine, weight decay and its no-decay set, clipping and EMA on identical batches."""
    values = weights(spec)
    batches = [
        Batch(images(spec, batch, seed=i), soft_targets(spec, batch, seed=i), np.ones(batch, np.float32))
        for i in range(min(steps, 5))
    ]
    runs = [
        _mlx_run(spec, values, batches, steps),
        _torch_run(_torch(spec, values), spec, batches, steps),
        _torch_run(_torch(spec, values).double(), spec, batches, steps),
        _torch_run(_torch(spec, values).to(memory_format=torch.channels_last), spec, batches, steps),
    ]
    want = runs[1]

    def gap(distance: Any) -> Gap:
        return Gap(distance(runs[0], want), max(distance(runs[2], want), distance(runs[3], want)))

    return Steps(
        loss=gap(lambda a, b: float(np.max(np.abs(a.losses / b.losses - 1)))),
        weights=gap(lambda a, b: _relative(_flat(a.weights), _flat(b.weights))),
        ema=gap(lambda a, b: _relative(_flat(a.ema), _flat(b.ema))),
    )


def sized(spec: ModelSpec, size: int | None) -> ModelSpec:
    """The spec at another input size."""
    return replace(spec, preprocessing=replace(spec.preprocessing, size=size)) if size else spec


def weights(spec: ModelSpec, seed: int = 0) -> Weights:
    """Random canonical weights that hide nothing: no zeros or ones where timm has them, BatchNorm statistics near the
    activations' own but not equal, logits with a standard deviation of 1."""
    model = _torch(spec)
    state = torch_model.canonical_tensors(model)
    trained = {name for name, _ in model.named_parameters()}
    drawn = {n: _drawn(n, t, _rng(n, seed)) for n, t in state.items() if n in trained or is_buffer(n)}
    torch_model.copy_into(state, drawn)
    pixels = torch.from_numpy(normalised(spec, images(spec, 8))).permute(0, 3, 1, 2)
    _calibrate(model, pixels, seed)
    names = (spec.classifier,) if isinstance(spec.classifier, str) else spec.classifier
    with torch.no_grad():
        logits = model.eval()(pixels)
        spread = float(logits.std())
        if spec.num_classes:
            for key in (f"{n}.{kind}" for n in names for kind in ("weight", "bias")):
                state[key].div_(spread)
        assert float(logits.std(dim=0).mean()) > 0.02 * spread, f"{spec.name}: the logits hardly depend on the image"
    return torch_model.to_arrays(state)


def images(spec: ModelSpec, count: int, seed: int = 0) -> np.ndarray:
    """uint8 `[count, size, size, 3]`: coarse coloured patches with noise, different from each other."""
    rng, size = _rng("images", seed), spec.preprocessing.size
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)[:, :size, :size]
    noisy = coarse + rng.normal(0, 30, coarse.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def normalised(spec: ModelSpec, pixels: np.ndarray) -> np.ndarray:
    """float32 `[N, H, W, in_chans]` as a model takes it."""
    prep = spec.preprocessing
    scaled = (pixels / 255 - np.array(prep.mean)) / np.array(prep.std)
    return (scaled if spec.in_chans == 3 else scaled.mean(-1, keepdims=True)).astype(np.float32)


def soft_targets(spec: ModelSpec, count: int, seed: int = 0) -> np.ndarray:
    """float32 `[count, C]`, rows that sum to one."""
    classes = max(spec.num_classes, 2)
    picked = np.eye(classes)[_rng("targets", seed).integers(0, classes, count)]
    return (0.9 * picked + 0.1 / classes).astype(np.float32)


@dataclass(frozen=True)
class _Pass:
    loss: float
    gradients: Mapping[str, np.ndarray]
    buffers: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Run:
    losses: np.ndarray
    weights: Mapping[str, np.ndarray]
    ema: Mapping[str, np.ndarray]


def _torch(spec: ModelSpec, values: Weights | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch_model.build(spec)
    if values is not None:
        torch_model.load_canonical(model, values)
    return model


def _input(model: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    first = next(model.parameters())
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(first.dtype)
    last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _torch_logits(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(_input(model, pixels)).double().numpy()


def _torch_pass(model: nn.Module, pixels: np.ndarray, targets: np.ndarray) -> _Pass:
    model.train()
    logits = model(_input(model, pixels))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(targets).to(logits.dtype))
    loss.backward()
    slopes = {n: _array(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    return _Pass(loss.item(), slopes, {n: _array(b) for n, b in model.named_buffers() if is_buffer(n)})


def _mlx_pass(spec: ModelSpec, values: Weights, pixels: np.ndarray, targets: np.ndarray) -> _Pass:
    network, arrays = mlx_model.build(spec, values, "fp32", 0)
    parameters = {n: a for n, a in arrays.items() if not is_buffer(n)}
    others = {n: a for n, a in arrays.items() if is_buffer(n)}

    def objective(live: mlx_model.Arrays) -> tuple[mx.array, mlx_model.Arrays]:
        logits, buffers = mlx_model.forward(network, {**live, **others}, mx.array(pixels), training=True)
        return mlx_session.losses.cross_entropy(logits, mx.array(targets)).mean(), buffers

    (loss, buffers), slopes = mx.value_and_grad(objective)(parameters)
    as_timm = mlx_model.to_canonical(network, slopes)
    return _Pass(float(np.array(loss)), as_timm, mlx_model.to_canonical(network, buffers))


def _knobs(step: int, steps: int) -> Knobs:
    warm = max(steps // 5, 1)
    share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    return Knobs(lr=1e-3 * share, weight_decay=DECAY, ema_decay=EMA, clip_norm=CLIP)


def _mlx_run(spec: ModelSpec, values: Weights, batches: list[Batch], steps: int) -> _Run:
    multipliers = {n: (1.0, 0.0) for n, v in values.items() if v.ndim <= 1 and not is_buffer(n)}
    session = mlx_session.open(spec, values, OptimSpec(ema=True, multipliers=multipliers), LossSpec(), compile=False)
    losses = []
    for i in range(steps):
        result = session.read(session.train_step(batches[i % len(batches)], None, _knobs(i, steps)))
        losses.append(result.losses.astype(np.float64).mean())
    state = session.state()
    return _Run(np.array(losses), state.weights, state.ema or {})


def _torch_run(model: nn.Module, spec: ModelSpec, batches: list[Batch], steps: int) -> _Run:
    model.train()
    ema = copy.deepcopy(model)
    averages, live = torch_model.canonical_tensors(ema), torch_model.canonical_tensors(model)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    losses = []
    for i in range(steps):
        batch, knobs = batches[i % len(batches)], _knobs(i, steps)
        logits = model(_input(model, normalised(spec, batch.images)))
        loss = nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets).to(logits.dtype))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, knobs.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = knobs.lr
        optimizer.step()
        with torch.no_grad():
            for name, average in averages.items():
                average.lerp_(live[name], 1 - knobs.ema_decay)
        losses.append(loss.item())
    return _Run(np.array(losses), {n: _array(t) for n, t in live.items()}, {n: _array(t) for n, t in averages.items()})


def _without_zeros(spec: ModelSpec, exact: Mapping[str, np.ndarray], zero: Mapping[str, str]) -> list[str]:
    """The parameters to compare; those of exactly zero gradient must be named, and those named must have one."""
    sizes = {name: float(np.linalg.norm(g) / math.sqrt(g.size)) for name, g in exact.items()}
    usual = float(np.median(list(sizes.values())))
    named = {name for name in sizes for pattern in zero if fnmatch(name, pattern)}
    found = {name for name, size in sizes.items() if size < 1e-9 * usual}
    assert found == named, f"{spec.name}: zero gradients {sorted(found)}, but named as such {sorted(named)}"
    return [name for name in sizes if name not in named]


def _drawn(name: str, tensor: torch.Tensor, rng: np.random.Generator) -> np.ndarray:
    kind, value = name.rpartition(".")[2], tensor.detach().numpy()
    noise = rng.standard_normal(value.shape)
    if kind == "running_var":
        drawn = rng.uniform(0.5, 1.5, value.shape)
    elif kind == "weight" and value.ndim > 1:
        drawn = noise / math.sqrt(value[0].size)
    elif "gamma" in kind:
        drawn = 0.5 + 0.1 * noise
    else:
        drawn = value + (0.1 if kind.endswith("bias") else 0.2) * noise
    return drawn.astype(np.float32)


def _calibrate(model: nn.Module, pixels: torch.Tensor, seed: int) -> None:
    """BatchNorm statistics near those of real activations, else deep networks explode; then moved off them."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(pixels)
    for name, norm in norms.items():
        rng, norm.momentum = _rng(f"{name}.calibrated", seed), momenta[name]
        spread = norm.running_var.sqrt() * 0.1
        norm.running_mean += spread * torch.from_numpy(rng.standard_normal(len(spread)).astype(np.float32))
        norm.running_var *= torch.from_numpy(rng.uniform(0.8, 1.25, len(spread)).astype(np.float32))


def _rng(name: str, seed: int) -> np.random.Generator:
    key = np.frombuffer(hashlib.blake2b(f"{seed}|{name}".encode(), digest_size=16).digest(), "<u8")
    return np.random.Generator(np.random.Philox(key=key))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().contiguous().numpy().copy()


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel().astype(np.float64) for name in sorted(arrays)])


def _relative(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(value.astype(np.float64) - reference) / np.linalg.norm(reference))


def _apart(values: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]) -> float:
    """The worst running statistic, relative to the largest of its kind in its layer."""
    return max((float(np.abs(values[n] - r).max() / np.abs(r).max()) for n, r in references.items()), default=0.0)
