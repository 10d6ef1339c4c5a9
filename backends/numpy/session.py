"""Softmax regression as a session: everything of the contract, deterministic, with no framework.

The architecture of the spec is ignored but for its classes, image size, mean and std.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.contract import (
    Batch,
    Knobs,
    LossSpec,
    MixPlan,
    OptimSpec,
    Precision,
    StepResult,
    TrainState,
    Weights,
    Which,
)
from backends.numpy import model, optim
from config.errors import ConfigError
from models.registry import ModelSpec
from models.weights import check


def open(
    spec: ModelSpec,
    weights: Weights | None,
    optim: OptimSpec,
    loss: LossSpec,
    precision: Precision = "fp32",
    seed: int = 0,
    compile: bool = True,
) -> Session:
    """A linear session for `spec`; it computes in fp32 whatever the precision, and compiles nothing."""
    del precision, compile
    return Session(spec, weights, optim, loss, seed)


class Session:
    """See `backends.contract.Session`."""

    rank = 0
    world_size = 1

    def __init__(self, spec: ModelSpec, weights: Weights | None, optimizer: OptimSpec, loss: LossSpec, seed: int):
        if loss.name != "cross_entropy" or loss.options:
            raise ConfigError(f"loss {loss.name!r}: the numpy engine has only cross_entropy, without options")
        self._class_weights = np.asarray(loss.class_weights or (1.0,), np.float32)
        self._shapes = model.shapes(spec)
        unknown = sorted(optimizer.multipliers.keys() - self._shapes.keys())
        if unknown:
            raise ConfigError(f"optimizer multipliers name {unknown[0]!r}, which is no parameter of this model")
        if weights is not None:
            check(weights, self._shapes)
        own = _copied(weights) if weights is not None else model.fresh(spec, seed)
        self._spec, self._optimizer = spec, optimizer
        ema = _copied(own) if optimizer.ema else None
        self._state = TrainState(weights=own, ema=ema, optimizer=optim.fresh(own, optimizer))

    def train_step(self, batch: Batch, mix: MixPlan | None, knobs: Knobs) -> StepResult:
        """Apply one update at once; the pending result is the result."""
        state = self._state
        state.calls += 1
        pixels, targets = model.normalise(batch.images, self._spec), batch.targets
        if mix is not None:
            pixels, targets = model.mixed(pixels, targets, mix)
        with np.errstate(all="ignore"):
            losses, gradients = model.losses_and_gradients(
                state.weights, model.features(pixels), targets * self._class_weights, batch.weights
            )
            norm = optim.norm(gradients)
        finite = math.isfinite(norm) and bool(np.isfinite((losses * batch.weights).sum()))
        if finite:
            self._apply(gradients, norm, knobs)
        return StepResult(losses.astype(np.float32), norm, finite)

    def read(self, pending: StepResult) -> StepResult:
        """The result of an update."""
        return pending

    def logits(self, images: NDArray[np.uint8], which: Which = "live") -> NDArray[np.float32]:
        """float32 `[N, C]` of uint8 `[N, H, W, 3]`."""
        weights = self._state.weights if which == "live" else self._state.ema
        if weights is None:
            raise ConfigError(
                "this session keeps no EMA weights; open it with OptimSpec(ema=True) or ask for live ones"
            )
        return model.logits(weights, model.features(model.normalise(images, self._spec)))

    def state(self) -> TrainState:
        """A copy of the whole state."""
        kept = self._state
        ema = None if kept.ema is None else _copied(kept.ema)
        return TrainState(_copied(kept.weights), ema, _copied(kept.optimizer), kept.step, kept.calls)

    def load(self, state: TrainState, strict: bool = True) -> None:
        """Take over a whole state; with `strict=False` names may be absent (kept as here) or unknown (left out)."""
        held = self._state
        absent = {} if strict else state.weights
        ema = absent if state.ema is None else state.ema
        weights = _fitted("weights", state.weights, held.weights, strict)
        average = _fitted("ema", ema, held.ema or {}, strict)
        moments = _fitted("optimizer", state.optimizer, held.optimizer, strict)
        kept = average if self._optimizer.ema else None
        self._state = TrainState(weights, kept, moments, state.step, state.calls)

    def describe(self) -> dict[str, Any]:
        """Device, precision, memory in bytes, library versions."""
        size = sum(a.nbytes for a in (*self._state.weights.values(), *self._state.optimizer.values()))
        return {
            "engine": "numpy",
            "device": f"cpu: {platform.processor() or platform.machine()}",
            "precision": "fp32",
            "compiled": False,
            "memory": {"active": size},
            "versions": {"numpy": np.__version__, "python": platform.python_version()},
        }

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _apply(self, gradients: Weights, norm: float, knobs: Knobs) -> None:
        state = self._state
        if 0 < knobs.clip_norm < norm:
            gradients = {n: g * np.float32(knobs.clip_norm / (norm + 1e-6)) for n, g in gradients.items()}
        state.step += 1
        state.weights, state.optimizer = optim.update(
            state.weights, gradients, state.optimizer, self._optimizer, knobs, state.step
        )
        if state.ema is not None:
            share = np.float32(1 - knobs.ema_decay)
            state.ema = {n: e + share * (state.weights[n] - e) for n, e in state.ema.items()}


def _fitted(part: str, given: Weights, held: Weights, strict: bool) -> Weights:
    if not strict:
        given = {name: given.get(name, own) for name, own in held.items()}
    check(given, {name: own.shape for name, own in held.items()}, f"{part} of the state")
    return _copied(given)


def _copied(weights: Weights) -> Weights:
    return {name: np.array(value, dtype=np.float32) for name, value in weights.items()}
