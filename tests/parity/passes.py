"""One pass, a training run, or one step from a given state, on each engine: what `harness` compares.

On torch's side the network may be in float64 or channels_last, which is how torch's own noise is measured.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import torch
from torch import nn

from backends.contract import Batch, OptimSpec, SessionConfig, StepHyperparams, TrainState, Weights, is_buffer
from backends.mlx import losses as mlx_losses
from backends.mlx import model as mlx_model
from backends.mlx import session as mlx_session
from backends.torch import model as torch_model
from models.registry import ModelSpec
from tests.parity.drawn import normalised, torch_network

Arrays = Mapping[str, np.ndarray]
CLIP, DECAY, EMA, PEAK = 1.0, 0.05, 0.9, 1e-3
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Pass:
    """The loss, the gradients and the running statistics of one pass in training mode."""

    loss: float
    gradients: Arrays
    buffers: Arrays


@dataclass(frozen=True)
class Run:
    """The loss of each step, and the weights and EMA weights after the last."""

    losses: np.ndarray
    weights: Arrays
    ema: Arrays


def variants(spec: ModelSpec, values: Weights) -> tuple[nn.Module, nn.Module, nn.Module]:
    """torch in fp32, which is the reference, and twice torch again: in float64, and in channels_last."""
    last = torch_network(spec, values).to(memory_format=torch.channels_last)
    return torch_network(spec, values), torch_network(spec, values).double(), last


def optimizer(values: Weights) -> OptimSpec:
    """AdamW that does not decay biases and norms, with an EMA."""
    multipliers = {n: (1.0, 0.0) for n, v in values.items() if v.ndim <= 1 and not is_buffer(n)}
    return OptimSpec(ema=True, multipliers=multipliers)


def knobs(step: int, steps: int) -> StepHyperparams:
    """Warm-up over a fifth of the steps, then cosine."""
    warm = max(steps // 5, 1)
    share = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    return StepHyperparams(lr=PEAK * share, weight_decay=DECAY, ema_decay=EMA, clip_norm=CLIP)


def torch_logits(model: nn.Module, pixels: np.ndarray) -> np.ndarray:
    """float64 logits in evaluation mode of normalised `[N, H, W, C]`."""
    with torch.no_grad():
        return model.eval()(_input(model, pixels)).double().numpy()


def mlx_logits(spec: ModelSpec, values: Weights, pixels: np.ndarray) -> np.ndarray:
    """float32 logits in evaluation mode of normalised `[N, H, W, C]`."""
    network, arrays = mlx_model.build(spec, values, "fp32", 0)
    return np.array(mlx_model.forward(network, arrays, mx.array(pixels), training=False)[0])


def torch_pass(model: nn.Module, pixels: np.ndarray, targets: np.ndarray) -> Pass:
    """One pass through torch's network."""
    loss = _loss(model.train(), pixels, targets)
    loss.backward()
    slopes = {n: _array(p.grad) for n, p in model.named_parameters() if p.grad is not None}
    return Pass(loss.item(), slopes, {n: _array(b) for n, b in model.named_buffers() if is_buffer(n)})


def mlx_pass(spec: ModelSpec, values: Weights, pixels: np.ndarray, targets: np.ndarray) -> Pass:
    """One pass through MLX's network, eagerly."""
    network, arrays = mlx_model.build(spec, values, "fp32", 0)
    parameters = {n: a for n, a in arrays.items() if not is_buffer(n)}
    others = {n: a for n, a in arrays.items() if is_buffer(n)}

    def objective(live: mlx_model.Arrays) -> tuple[mx.array, mlx_model.Arrays]:
        logits, buffers = mlx_model.forward(network, {**live, **others}, mx.array(pixels), training=True)
        return mlx_losses.Ops.cross_entropy(logits, mx.array(targets)).mean(), buffers

    (loss, buffers), slopes = mx.value_and_grad(objective)(parameters)
    as_timm = mlx_model.to_canonical(network, slopes)
    return Pass(float(np.array(loss)), as_timm, mlx_model.to_canonical(network, buffers))


def mlx_run(spec: ModelSpec, values: Weights, batches: list[Batch], steps: int) -> Run:
    """A training run of MLX's session, eagerly."""
    session = mlx_session.open(spec, values, SessionConfig(optim=optimizer(values), compile=False))
    losses = []
    for i in range(steps):
        result = session.read(session.train_step(batches[i % len(batches)], None, knobs(i, steps)))
        losses.append(result.losses.astype(np.float64).mean())
    state = session.state()
    return Run(np.array(losses), state.weights, state.ema or {})


def torch_run(model: nn.Module, spec: ModelSpec, batches: list[Batch], steps: int) -> Run:
    """The same run written with nothing but torch."""
    ema = copy.deepcopy(model.train())
    averages, live = torch_model.canonical_tensors(ema), torch_model.canonical_tensors(model)
    adamw = _adamw(model)
    losses = []
    for i in range(steps):
        losses.append(_update(model, adamw, spec, batches[i % len(batches)], knobs(i, steps)))
        with torch.no_grad():
            for name, average in averages.items():
                average.lerp_(live[name], 1 - EMA)
    return Run(np.array(losses), {n: _array(t) for n, t in live.items()}, {n: _array(t) for n, t in averages.items()})


def torch_moments(model: nn.Module, spec: ModelSpec, state: TrainState, batch: Batch, at: StepHyperparams) -> Arrays:
    """torch.optim's moments, `exp_avg.NAME` and `exp_avg_sq.NAME`, one step after `state`."""
    torch_model.load_canonical(model, state.weights)
    adamw, named = _adamw(model.train()), dict(model.named_parameters())
    for name, parameter in named.items():
        # Copies: torch.optim updates its moments in place.
        moments = {slot: torch.tensor(state.optimizer[f"{slot}.{name}"], dtype=parameter.dtype) for slot in MOMENTS}
        adamw.state[parameter] = {"step": torch.tensor(float(state.step)), **moments}
    _update(model, adamw, spec, batch, at)
    return {f"{slot}.{name}": _array(adamw.state[p][slot]) for name, p in named.items() for slot in MOMENTS}


def _adamw(model: nn.Module) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1]},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, weight_decay=DECAY)


def _update(model: nn.Module, adamw: torch.optim.AdamW, spec: ModelSpec, batch: Batch, at: StepHyperparams) -> float:
    loss = _loss(model, normalised(spec, batch.images), batch.targets)
    adamw.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), at.clip_norm)
    for group in adamw.param_groups:
        group["lr"] = at.lr
    adamw.step()
    return loss.item()


def _loss(model: nn.Module, pixels: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    logits = model(_input(model, pixels))
    return nn.functional.cross_entropy(logits, torch.from_numpy(targets).to(logits.dtype))


def _input(model: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    first = next(model.parameters())
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(first.dtype)
    last = any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().contiguous().numpy().copy()
